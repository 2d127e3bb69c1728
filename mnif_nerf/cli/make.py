"""`mnif-make`: from a folder of things to new ones and a page that shows them, in a given time.

Every stage is what one of the other commands does, with its output in log.txt. What is made already is kept, so that
the same command goes on after an interruption.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from mnif_nerf.cli.generation_common import made_before, stored_objects
from mnif_nerf.cli.sample_pictures import is_broken
from mnif_nerf.errors import MNIFError, flag_paths, run_command, with_flags
from mnif_nerf.limits import require_options
from mnif_nerf.names import quoted

if TYPE_CHECKING:
    from mnif_nerf.modalities import Modality
    from mnif_nerf.pipelines.generation import MNIFPipeline

_EACH, _ONCE = 8.0, 25.0  # seconds that a sample takes after training, with mesh and pictures, and all of them together
_LATER = 0.4  # of the time at most is kept for what follows training
_SAVE_EVERY = 500  # steps that an interruption loses at most
_FRAMES = 12  # of a turn
_MOST_MB = 200.0  # of the page
_SEED = 42  # of training, which the user's is added to
_MOST = {"num_samples": 256, "texture": 8192, "faces": 5_000_000, "seed": 2**32 - 1 - _SEED}
_NEAR_COPY = 0.25  # of the distance between the user's own things
_FEW = 50  # of them: samples of fewer are mostly copies; all of so few are learned from, and none held out


@dataclass(frozen=True)
class MakeOptions:
    """From a folder of meshes, voxels, pictures or scenes to new ones, on a page that opens in any browser.

    Reads the folder, learns from it, draws new things and writes index.html (live, in one file), a sheet of pictures
    and, of solid things, textured .glb files. Run the same command again to go on after an interruption.

    Attributes:
        input: folder of .glb, .gltf, .obj, .ply, .off or .stl files, or of anything else that mnif-data check accepts.
        minutes: for everything, on this machine; the more, the better.
        output: the folder to write; by default the input's name with _made behind it.
        num_samples: how many new things to draw.
        texture: texels along an edge of a mesh's picture; 0 leaves colours at the vertices.
        faces: triangles of a mesh, at most.
        copies: varied copies of each mesh to learn from as well (longer or wider, mirrored, in the colours of another):
            from few meshes new things are near copies without, and with them need more minutes to be as sharp.
        seed: random seed of everything.
    """

    input: tyro.conf.Positional[Path]
    minutes: float = 10.0
    output: Path | None = None
    num_samples: int = 16
    texture: int = 1024
    faces: int = 10_000
    copies: int = 0
    seed: int = 0

    def folder(self) -> Path:
        """Where everything goes."""
        return self.output or Path(f"{self.input.resolve().name}_made")


class _Stages:
    """Says which stage runs, keeps what its command prints in a log, and counts the time."""

    def __init__(self, total: int, log: Path) -> None:
        self.total, self.log, self.begun, self.count = total, log, time.perf_counter(), 0

    @property
    def seconds(self) -> float:
        """Since the first stage began."""
        return time.perf_counter() - self.begun

    @contextlib.contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Run the next stage; its progress bars are shown, and what it prints is in the log."""
        self.count += 1
        print(f"[{self.count}/{self.total}] {what}", flush=True)
        with self.log.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            print(f"\n=== {what}")
            yield
            print(f"({self.seconds:.1f} s since the start)")


def make(
    input: Path | str, minutes: float = 10.0, output: Path | str | None = None, num_samples: int = 16, seed: int = 0
) -> MNIFPipeline:
    """What `mnif-make` does: from a folder of things to a trained model, new things and a page.

    Args:
        input: folder of meshes, voxels, pictures or scenes.
        minutes: for everything.
        output: the folder to write; by default the input's name with _made behind it.
        num_samples: new things.
        seed: random seed of everything.

    Returns:
        the model, ready to draw more.

    Raises:
        MNIFError: nothing that can be learned from, an option out of range, or an output made of something else.
    """
    return main(MakeOptions(Path(input), minutes, None if output is None else Path(output), num_samples, seed=seed))


def main(options: MakeOptions) -> MNIFPipeline:
    """Run every stage that is not done yet; returns the model.

    Raises:
        MNIFError: see `make`.
    """
    from mnif_nerf.data.generate.writer import claim_output, write_manifest
    from mnif_nerf.pipelines.generation import MNIFPipeline

    _check(options)
    output = options.folder()
    kind, meshes = _kind(options.input)
    if options.copies and not meshes:
        raise MNIFError(
            f"`copies` {options.copies}: only meshes are varied, and {options.input} has others; leave it out."
        )
    settings = {"input": str(options.input.resolve()), "minutes": options.minutes, "seed": options.seed}
    settings["copies"] = options.copies or None  # None as in what was made before there were copies
    claim_output(output, "make", settings)
    stages = _Stages(2 + meshes + kind.has_surface + kind.has_page, output / "log.txt")
    data = _read_meshes(options, output / "data", stages) if meshes else options.input
    run = _train(options, kind, data, stages)
    pipe = MNIFPipeline.from_pretrained(run)
    _draw(options, run, stages)
    if kind.has_surface:
        _write_meshes(options, run, pipe, stages)
    if kind.has_page:
        _write_page(options, run, stages)
    write_manifest(output, "make", settings, complete=True)
    _tell(options, run, pipe, stages)
    return pipe


def _check(options: MakeOptions) -> None:
    from mnif_nerf.data.generate.varied_copies import DEFAULT_VARIATIONS, check_copies

    if not options.minutes > 0 or options.minutes > 60 * 24 * 30:
        raise MNIFError(
            f"`minutes` {options.minutes:g} is no time to work in; give about 10, or 60 for better results."
        )
    require_options(options, {"num_samples": 1, "faces": 4}, **_MOST)
    check_copies(options.copies, DEFAULT_VARIATIONS)
    if not options.input.exists():
        raise MNIFError(f"{options.input}: no such folder; give the one that holds your meshes, voxels or pictures.")
    if options.folder().resolve().is_relative_to(options.input.resolve()):
        raise MNIFError(
            f"{options.folder()}: lies in the input, so what is made would be read as input; choose another `output`."
        )


def _kind(folder: Path) -> tuple[Modality, bool]:
    """What is learned from a folder, and whether points have to be drawn of its meshes first."""
    from mnif_nerf import modalities
    from mnif_nerf.data.readers.mesh_files import MESH_SUFFIXES
    from mnif_nerf.data.readers.splits import find_files

    try:
        kind, refusal = modalities.from_data(folder), None
    except MNIFError as error:
        kind, refusal = None, error
    # Meshes can be read as voxels too, which are coarser and have no colours.
    filled = kind is not None and kind.has_surface and kind.is_grid
    if (kind is None or filled) and folder.is_dir() and find_files(folder, MESH_SUFFIXES):
        return next(each for each in map(modalities.get, modalities.names()) if each.has_points), True
    if kind is None:
        assert refusal is not None
        raise refusal
    return kind, False


def _read_meshes(options: MakeOptions, data: Path, stages: _Stages) -> Path:
    """Points of the meshes; what was left out is said in full."""
    from mnif_nerf.data.generate.mesh_points import sample_mesh_folder
    from mnif_nerf.data.generate.meshes import find_meshes
    from mnif_nerf.data.generate.settings import MeshFolderOptions

    with stages.stage(f"reading the meshes in {options.input}"):
        share = 0.0 if len(find_meshes(options.input)) < _FEW else 0.1
        folder = MeshFolderOptions(val_fraction=share, test_fraction=share, seed=options.seed, copies=options.copies)
        summary = sample_mesh_folder(options.input, data, options=folder)
    for line in summary.told(options.input):
        print(f"      {line}")
    return data


def _train(options: MakeOptions, kind: Modality, data: Path, stages: _Stages) -> Path:
    """The model and its latent prior, in the time that the rest leaves; returns the run folder."""
    from mnif_nerf.cli import train_prior
    from mnif_nerf.pipelines.methods import get_method
    from mnif_nerf.pipelines.run import TrainingRun
    from mnif_nerf.pipelines.run_checks import finished_steps

    settings = get_method(f"{kind.method}-lite").new_run()
    settings.data, settings.machine.seed, settings.steps_per_save = data, _SEED + options.seed, _SAVE_EVERY
    settings.output_dir, settings.experiment_name, settings.timestamp = options.folder(), "model", "run"
    run = settings.run_folder()
    if finished_steps(run):
        with stages.stage("learned already"):
            if not _prior_of(run).is_file():
                train_prior.main(train_prior.TrainPriorOptions(run))
            return run
    total = 60 * options.minutes
    later = min(_ONCE + _EACH * options.num_samples, _LATER * total)
    if list(settings.checkpoint_folder().glob("*.ckpt")):
        settings.load_dir, words = settings.checkpoint_folder(), "going on with learning"
    else:
        settings.minutes = max(total - stages.seconds - later, total / 4) / 60
        settings.pipeline.preset = "auto"
        words = f"learning what they have in common, {settings.minutes:.1f} minutes"
    with stages.stage(words):
        try:
            TrainingRun(settings, lambda line: print(line, flush=True)).train()
        except SystemExit:  # says how to go on with mnif-train; here the same command does
            raise KeyboardInterrupt from None
    return run


def _draw(options: MakeOptions, run: Path, stages: _Stages) -> None:
    from mnif_nerf.cli import sample

    with stages.stage(f"drawing {options.num_samples} new ones"):
        wanted = sample.SampleOptions(str(run), options.num_samples, options.seed, frames=_FRAMES)
        wanted.output = options.folder() / "samples"
        if not made_before(wanted.output / "samples.json", _prior_of(run), num_samples=options.num_samples):
            sample.main(wanted)


def _write_meshes(options: MakeOptions, run: Path, pipe: MNIFPipeline, stages: _Stages) -> None:
    from mnif_nerf.cli import export_mesh

    with stages.stage("writing them as meshes"):
        wanted = export_mesh.ExportOptions(
            str(run), source="latent", latent_file=_latents(options), faces=options.faces
        )
        colored = pipe.model.field.spec.out_features > 1
        wanted.output, wanted.texture = options.folder() / "meshes", (options.texture or None) if colored else None
        settings = {"faces": options.faces, "texture": wanted.texture}
        report = wanted.output / "report.json"
        if made_before(report, _latents(options), **settings):
            return
        report.unlink(missing_ok=True)  # of other samples
        try:
            export_mesh.main(wanted)
        except MNIFError as error:
            if not report.is_file():
                raise
            print(error)  # not one has a surface that can be written; there is still a page to make


def _write_page(options: MakeOptions, run: Path, stages: _Stages) -> None:
    from mnif_nerf.cli import export_web

    with stages.stage("writing the page"):
        page, latents = options.folder() / "index.html", _latents(options)
        if page.is_file() and page.stat().st_mtime >= latents.stat().st_mtime:
            return
        title = f"{options.num_samples} new {_name(options)}"
        wanted = export_web.WebOptions(str(run), source="latent", latent_file=latents, title=title, frames=_FRAMES)
        wanted.output, wanted.max_size_mb = page, _MOST_MB
        export_web.main(wanted)


def _prior_of(run: Path) -> Path:
    return run / "model" / "prior" / "prior.json"


def _latents(options: MakeOptions) -> Path:
    return options.folder() / "samples" / "latents.safetensors"


def _name(options: MakeOptions) -> str:
    return options.input.resolve().stem.replace("_", " ")


def _tell(options: MakeOptions, run: Path, pipe: MNIFPipeline, stages: _Stages) -> None:
    """What there is now, for somebody who has not heard of any of it."""
    from mnif_nerf.files import read_json

    output, made, kind = (
        options.folder(),
        read_json(options.folder() / "samples" / "samples.json")["samples"],
        pipe.kind,
    )
    broken = [entry["name"] for entry in made if is_broken(entry)]
    failures = _failures(options) if kind.has_surface else []
    print(f"\n{len(made)} new {_name(options)}, {stages.seconds / 60:.1f} minutes:")
    rows = [("samples/contact_sheet.png", "all of them in one picture")]
    if kind.has_views:
        rows.append(("samples/turntable.mp4", "the same, turning"))
    if kind.has_surface and len(failures) < len(made):
        rows.append(("meshes/*.glb", "for Blender, game engines and any 3D program"))
    if kind.has_page:
        rows.insert(0, ("index.html", "open it in a browser: turn them, blend them, send the file to anybody"))
    for path, what in rows:
        print(f"  {output / path!s:44s} {what}")
    if broken:
        print(f"{len(broken)} look broken and are marked on the picture: {', '.join(broken[:8])}")
    if failures:
        print(f"{len(failures)} could not be written as meshes: {failures[0]}")
    copies = _near_copies(pipe, _latents(options))
    if copies:
        remedy = "; --copies 7 varies them" if kind.has_points else ""
        few = f": {len(pipe.names)} are few to learn from{remedy}" if len(pipe.names) < _FEW else ""
        print(f"{len(copies)} are near copies of one of yours, named on the picture{few}.")
    print(f"What was learned is in {run}, what was printed on the way in {output / 'log.txt'}.")
    print(f"next: more of them: mnif-sample --load-config {quoted(run)} --seed {options.seed + 1}")


def _failures(options: MakeOptions) -> list[str]:
    """Why things could not be written as meshes, a sentence each."""
    from mnif_nerf.cli.export_mesh import ARGUMENTS
    from mnif_nerf.files import read_json

    objects = read_json(options.folder() / "meshes" / "report.json")["objects"]
    paths = flag_paths(MakeOptions)
    return [with_flags(entry["error"], paths, ARGUMENTS) for entry in objects if "error" in entry]


def _near_copies(pipe: MNIFPipeline, latents: Path) -> list[str]:
    """Samples that are near copies of one of the user's own things, not of a varied copy."""
    from mnif_nerf.data.generate.varied_copies import is_varied

    if pipe.prior is None:
        return []
    own = [row for row, name in enumerate(pipe.names) if not is_varied(name)]
    near = _NEAR_COPY * pipe.prior.spacing(own)
    return [item.name for item in stored_objects(pipe, latents) if pipe.nearest(item, own)[1] < near]


def entrypoint() -> None:
    """The console script."""
    run_command(lambda: main(tyro.cli(MakeOptions, prog="mnif-make")), [MakeOptions])


if __name__ == "__main__":
    entrypoint()
