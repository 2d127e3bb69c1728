"""A folder of meshes becomes a data set in the SRN layout, by the renderer that draws our own cars."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mnif_nerf.data.generate.mesh_folder import MeshFolder, list_folder
from mnif_nerf.data.generate.mesh_record import MeshRecord
from mnif_nerf.data.generate.scene_jobs import Pictures, ViewPlan, render_pictures, run_jobs
from mnif_nerf.data.generate.settings import MeshFolderOptions, ViewCounts
from mnif_nerf.data.generate.varied_copies import is_varied, original_of, plan_copies
from mnif_nerf.data.generate.writer import claim_output, write_manifest, write_occupancy
from mnif_nerf.data.geometry.raytrace import Camera
from mnif_nerf.data.geometry.voxelise import check_voxel_resolution
from mnif_nerf.data.readers.labels import FILE, find_table, folder_labels, table_labels, useful, write_labels
from mnif_nerf.data.readers.mesh_files import MESH_SUFFIXES, frame, mesh_rank
from mnif_nerf.data.readers.mesh_input import MeshInput
from mnif_nerf.data.readers.mesh_notes import COLOR_NOTES, MeshNote, table
from mnif_nerf.data.readers.splits import clean_name, one_of_each, own_splits, scene_names, split_names
from mnif_nerf.data.readers.voxel_files import require_shape
from mnif_nerf.errors import MNIFError
from mnif_nerf.labels import Labels


@dataclass
class MeshSummary:
    """What `render_mesh_folder` made: scene names per split, (file, reason) of what was skipped, sentences on the
    others, and a table of what the folder held that was not used."""

    output: Path
    category: str
    splits: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    table: list[str] = field(default_factory=list)

    def told(self, input: Path) -> list[str]:
        """Lines for the user: what was skipped and why, notes on the others, and what the folder held."""
        skipped = [reason if str(path) in reason else f"{path}: {reason}" for path, reason in self.skipped]
        return [
            *(f"skipped {line}" for line in skipped),
            *self.notes,
            f"{input} held:",
            *(f"  {x}" for x in self.table),
        ]


@dataclass(frozen=True)
class _MeshJob:
    mesh: MeshInput
    pictures: tuple[Pictures, ...] = ()
    camera: Camera | None = None
    voxels: Path | None = None
    resolution: int = 0


def render_mesh_folder(
    input: Path | str,
    output: Path | str,
    options: MeshFolderOptions | None = None,
    views: ViewCounts | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> MeshSummary:
    """Render every mesh below a folder and write `<output>/<category>_{train,train_val,val,test}`.

    Args:
        input: folder of mesh files, at any depth.
        output: the folder to write; one made earlier from the same files and settings is completed.
        options: the files' axes, the splits and the seed; the defaults when None.
        views: pictures of every mesh; the defaults when None.
        workers: processes; None for one per core.
        progress: whether to show bars.

    Returns: what was written and what was skipped (unreadable, empty or not finite meshes).

    Raises:
        MNIFError: no folder, no readable mesh in it, a setting that makes no sense, a foreign output folder.
    """
    input, output = Path(input), Path(output)
    options, views = options or MeshFolderOptions(), views or ViewCounts()
    plan = plan_meshes(input, output, options, workers, progress)
    settings = {**plan.settings, **asdict(views)}
    claim_output(output, "from-meshes", settings)
    view_plan = ViewPlan(output, plan.summary.category, **asdict(views))
    jobs = {}
    for index, name in enumerate(sorted(plan.inputs, key=lambda name: (is_varied(name), name))):
        pictures = view_plan.pictures(plan.split_of[name], name, (options.seed, index))
        if not all(item.folder.exists() for item in pictures):
            jobs[name] = _MeshJob(plan.inputs[name], pictures, view_plan.camera)
    reasons = run_jobs(_draw, list(jobs.values()), workers, progress, "Rendering meshes")
    plan.leave_out_hopeless(jobs, reasons)
    plan.tell_changed()
    return plan.finish("from-meshes", settings)


def voxelise_mesh_folder(
    input: Path | str,
    output: Path | str,
    resolution: int = 64,
    options: MeshFolderOptions | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> MeshSummary:
    """Fill every mesh below a folder and write `<output>/{train,val,test}/NAME.npz`.

    `mnif_nerf.data.geometry.voxel_meshes` describes how meshes are filled, closed or not. Meshes that leave no cell
    filled, or none empty, are skipped.

    Args:
        resolution: cells along an edge of the unit cube; the other arguments as in `render_mesh_folder`.

    Returns: what was written and what was skipped.

    Raises:
        MNIFError: see `render_mesh_folder`.
    """
    input, output = Path(input), Path(output)
    check_voxel_resolution(resolution)
    options = options or MeshFolderOptions()
    plan = plan_meshes(input, output, options, workers, progress)
    settings = {**plan.settings, "voxels": resolution}
    claim_output(output, "from-meshes-voxels", settings)
    jobs = {}
    for name, mesh in plan.inputs.items():
        target = output / plan.split_of[name] / f"{name}.npz"
        if not target.exists():
            jobs[name] = _MeshJob(mesh, voxels=target, resolution=resolution)
    reasons = run_jobs(_fill, list(jobs.values()), workers, progress, "Filling meshes")
    plan.leave_out_hopeless(jobs, reasons)
    plan.tell_changed()
    return plan.finish("from-meshes-voxels", settings, colors=False)


@dataclass
class MeshPlan:
    """Readable meshes and varied copies of them by scene name, the settings that decide the data set, and what is
    reported of it."""

    inputs: dict[str, MeshInput]
    settings: dict[str, Any]
    summary: MeshSummary
    record: MeshRecord
    changed: list[str]  # scenes whose files are not those that were read before
    folder: MeshFolder
    labels_file: Path | None = None

    def __post_init__(self) -> None:
        self.split_of = {name: split for split, names in self.summary.splits.items() for name in names}
        self.readable = {name: mesh.path for name, mesh in self.inputs.items()}

    def leave_out(self, reasons: dict[str, str]) -> None:
        """Count scenes as skipped, by name and reason; copies are told in notes, their originals may well be used."""
        self.summary.skipped += [(self.readable[name], why) for name, why in reasons.items() if not is_varied(name)]
        self.summary.notes += [f"{name} is left out: {why}" for name, why in reasons.items() if is_varied(name)]
        kept = {split: [n for n in names if n not in reasons] for split, names in self.summary.splits.items()}
        self.summary.splits = {split: names for split, names in kept.items() if names}

    def leave_out_hopeless(self, names: Iterable[str], reasons: Sequence[str | None]) -> None:
        """Count as skipped what has a reason.

        Raises:
            MNIFError: nothing is left.
        """
        hopeless = {name: reason for name, reason in zip(names, reasons) if reason is not None}
        if hopeless and len(hopeless) == len(self.inputs):
            first = next(iter(hopeless.values()))
            raise MNIFError(f"{self.record.input}: none of its meshes can be used; the first: {first}")
        self.leave_out(hopeless)

    def tell_changed(self) -> None:
        """Note which files have changed since what is in the output was made of them."""
        if self.changed:
            self.summary.notes.append(
                f"{len(self.changed)} of the files have changed since they were used ({', '.join(self.changed[:5])}"
                f"{', ...' * (len(self.changed) > 5)}): remove {self.summary.output} to use them as they are now."
            )

    def finish(self, kind: str, settings: dict[str, Any], colors: bool = True) -> MeshSummary:
        """Write down what was made; `colors` says whether the data has any."""
        self.write_labels()
        self.tabulate(colors)
        skipped = {str(path): reason for path, reason in self.summary.skipped}
        more = {"splits": self.summary.splits, "skipped": skipped, "table": self.summary.table}
        write_manifest(self.summary.output, kind, settings, complete=True, **more)
        return self.summary

    @cached_property
    def labels(self) -> Labels | None:
        """Labels of the readable meshes, in their order: of the chosen table, or of the folders they lie in."""
        root, chosen = self.folder.root, self.labels_file
        table = find_table(root, "auto" if chosen is None else str(chosen))
        if table is not None:
            unused = set(self.folder.meshes) - set(self.readable.values())
            return table_labels(table, self.readable, root, list(self.readable), unused)
        found, note = folder_labels(self.readable, root)
        self.summary.notes += [f"{root}: {note}"] if note else []
        return found

    def labels_of(self, names: Sequence[str]) -> Labels | None:
        """Labels of some scenes."""
        place = {name: row for row, name in enumerate(self.readable)}
        return None if self.labels is None else useful(self.labels.some(place[name] for name in names))

    def write_labels(self) -> None:
        """Write `labels.csv` beside the data."""
        names = sorted(name for own in self.summary.splits.values() for name in own)
        found = self.labels_of(names)
        if found is not None:
            write_labels(self.summary.output / FILE, names, found)
            self.summary.notes.append(f"labels: {found.describe()}")

    def tabulate(self, colors: bool = True) -> None:
        """Say what the folder held that was not used."""
        dropped = {path for path, _ in self.summary.skipped}
        known = {path: self.record.of(path) for path in self.folder.meshes}
        used = set(self.readable.values()) - dropped  # a file that changed since it was read is not known
        reads = [(path, read) for path, read in known.items() if path in used and read is not None]
        notes = [(self._name(path), _told(read.notes, colors)) for path, read in reads]
        self.summary.table = [f"{len(used)} of {len(known)} meshes are used"]
        if dropped:
            names = [self._name(path) for path in sorted(dropped)]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            self.summary.table.append(f"{len(names)} left out, for the reasons above: {', '.join(names[:5])}{more}")
        if other := [self._name(path) for path in known if path not in used and path not in dropped]:
            more = f" and {len(other) - 5} more" if len(other) > 5 else ""
            self.summary.table.append(
                f"{len(other)} of shapes that are used from other files: {', '.join(other[:5])}{more}"
            )
        self.summary.table += table(notes)
        self.summary.table += self.folder.mentions(
            [FILE, *(name for read in known.values() if read for name in read.used)]
        )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder.root).as_posix()


def _told(notes: Sequence[MeshNote], colors: bool) -> list[MeshNote]:
    return [note for note in notes if colors or note.kind not in COLOR_NOTES]


def plan_meshes(input: Path, output: Path, options: MeshFolderOptions, workers: int | None, progress: bool) -> MeshPlan:
    """Find, try and share out the meshes of a folder.

    Raises:
        MNIFError: see `render_mesh_folder`.
    """
    folder = list_folder(input, output)
    files, notes = one_of_each(_require_meshes(folder), mesh_rank)
    for suffix in {path.suffix.lower() for path in files}:
        frame(suffix, options.up, options.forward)
    record = MeshRecord(output, input, (options.up, options.forward))
    changed = set(record.changed(files))
    readable, skipped = _sift(files, record, workers, progress)
    splits, more = _shares(readable, input, options)
    shared = {name for names in splits.values() for name in names}
    skipped += [(path, "is in no folder of a split") for name, path in readable.items() if name not in shared]
    inputs = {
        name: MeshInput(path, options.up, options.forward, input) for name, path in readable.items() if name in shared
    }
    if options.copies:
        copies = plan_copies(splits["train"], options.copies, options.vary, options.seed)
        for name, (variation, donor) in copies.items():
            inputs[name] = replace(inputs[original_of(name)], variation=variation, donor=inputs[donor].path)
        more = [*more, f"{len(copies)} varied copies of the {len(splits['train'])} training meshes are made."]
        splits = {**splits, "train": [*splits["train"], *copies]}
    category = re.sub(r"_(train|val|test)$", "", clean_name(options.category or input.resolve().name))
    settings = {**_deciding(options), "category": category, "meshes": _digest(files, input)}
    summary = MeshSummary(output, category, splits, skipped, [*notes, *more])
    again = [name for name, mesh in inputs.items() if mesh.path in changed]
    return MeshPlan(inputs, settings, summary, record, again, folder, options.labels)


def _deciding(options: MeshFolderOptions) -> dict[str, Any]:
    """The settings that decide what is made of meshes; labels may change at any time."""
    settings = {name: value for name, value in asdict(options).items() if name != "labels"}
    # None as in what was made before there were copies.
    return {**settings, "copies": options.copies or None, "vary": options.vary if options.copies else None}


def _shares(
    readable: dict[str, Path], root: Path, options: MeshFolderOptions
) -> tuple[dict[str, list[str]], list[str]]:
    """The splits of meshes by name, the archive's own where it has some; and sentences about them."""
    own, notes = own_splits(list(readable.values()), root)
    if "train" not in own:
        return split_names(sorted(readable), options.val_fraction, options.test_fraction, options.seed), []
    names = {path: name for name, path in readable.items()}
    shares = {split: sorted(names[path] for path in paths) for split, paths in own.items()}
    return shares, [*notes, f"the folder's own splits are kept: {', '.join(shares)}."]


def _sift(
    files: list[Path], record: MeshRecord, workers: int | None, progress: bool
) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Readable meshes by scene name, and (file, reason) of the others. Files that the record knows are not read, and
    those that it knows otherwise stay in it as they were: something may have been made of them.

    Raises:
        MNIFError: none can be read.
    """
    reasons = {path: known.reason for path in files if (known := record.of(path)) is not None}
    kept = set(record.changed(files))
    jobs = [MeshInput(path, *record.axes, record.input) for path in files if path not in reasons]

    def note(job: MeshInput, found: _Probed) -> None:
        reasons[job.path] = found.reason
        if job.path not in kept:
            record.note(job.path, found.reason, found.notes, found.used)

    run_jobs(_probe, jobs, workers, progress, "Reading meshes", note)
    skipped = [(path, reason) for path in files if (reason := reasons[path]) is not None]
    if len(skipped) == len(files):
        record.forget()
        raise MNIFError(f"{record.input}: none of its {len(files)} meshes can be used; the first: {skipped[0][1]}")
    names = scene_names(files, record.input)
    return {name: path for name, path in zip(names, files) if reasons[path] is None}, skipped


def find_meshes(input: Path, output: Path | None = None) -> list[Path]:
    """Mesh files below `input`, sorted; hidden ones and those below `output` are left out.

    Raises:
        MNIFError: no such folder, or no mesh file in it.
    """
    return _require_meshes(list_folder(input, output))


def _require_meshes(folder: MeshFolder) -> list[Path]:
    if not folder.meshes:
        there = "; ".join(["", *folder.mentions(())])
        raise MNIFError(f"{folder.root}: no mesh in it; expected files that end in {', '.join(MESH_SUFFIXES)}{there}.")
    return folder.meshes


@dataclass(frozen=True)
class _Probed:
    """Why a mesh cannot be used, or None, and what else is known of it."""

    reason: str | None
    notes: tuple[MeshNote, ...] = ()
    used: tuple[Path, ...] = ()


def _probe(mesh: MeshInput) -> _Probed:
    try:
        content = mesh.read()
    except MNIFError as error:
        return _Probed(str(error))
    return _Probed(None, content.notes, content.used)


def _draw(job: _MeshJob) -> str | None:
    """Write a mesh's pictures; returns why there are none, or None."""
    assert job.camera is not None
    if render_pictures(job.mesh.read().surface, job.pictures, job.camera):
        return None
    return f"{job.mesh.path}: nothing of it is seen, it is thinner than a pixel; ask for a larger `resolution`."


def _fill(job: _MeshJob) -> str | None:
    """Write a mesh's voxels; returns why there are none, or None."""
    from mnif_nerf.data.geometry.voxel_meshes import voxelise_surface

    assert job.voxels is not None
    cells = voxelise_surface(job.mesh.read().surface, job.resolution)
    try:
        require_shape(cells, f"{job.mesh.path} at {job.resolution}^3")
    except MNIFError as error:
        return str(error)
    write_occupancy(job.voxels, cells)
    return None


def _digest(files: list[Path], root: Path) -> str:
    """Number of files and a digest of their names and sizes, to notice that the folder changed."""
    listing = "\n".join(f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in files)
    return f"{len(files)} files, {hashlib.sha256(listing.encode()).hexdigest()[:12]}"
