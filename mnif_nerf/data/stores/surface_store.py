"""The packed store of points with signed distance and colour: one split as memory-mapped arrays.

On disk (`<root>/points/<split>/`, as `mnif-data` writes it):

    manifest.json            format version, counts of points by kind, whether there is colour, names
    points.array             uint16 [N, P, 3], places in the cube, see `from_lattice`
    distance.array           float16 [N, P], world units, positive outside; of the points as they are kept
    color.array              uint8 [N, P, 3], sRGB; absent without colour
    normals.array            int8 [N, S, 3], outward normals of the points on the surface, times 127

Each is in numpy's .npy format; large splits lie in shards (`mnif_nerf.data.stores.shards`). The points of an instance
are sorted by kind, and in random order within a kind.

Any other folder of meshes or voxels, laid out as for voxels (`mnif_nerf.data.stores.grid_layout`), is turned into the
same in `<root>/.mnif/sdf-<points>/<split>/` when it is opened first, or under the folder that MNIF_CACHE names. What
was computed before a run was stopped is kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnif_nerf.data.generate.scene_jobs import run_jobs
from mnif_nerf.data.geometry.surface_points import POINTS, PointCounts, SurfacePoints, from_lattice
from mnif_nerf.data.readers.splits import GRID_SPLITS
from mnif_nerf.data.readers.voxels import meshes_first
from mnif_nerf.data.stores.cache import (
    PackedFormat,
    cache_place,
    files_fingerprint,
    open_or_build,
)
from mnif_nerf.data.stores.grid_layout import GridLayout, labels_in, locate_grids
from mnif_nerf.data.stores.manifest import read_manifest, write_manifest
from mnif_nerf.data.stores.shards import Rows, map_rows
from mnif_nerf.data.stores.surface_jobs import PointJob, join_facts, make_part, wanting
from mnif_nerf.data.stores.surface_pack import decode_normals, pack_parts, parts_folder, remove_parts, rows
from mnif_nerf.errors import MNIFError, require
from mnif_nerf.files import atomic_folder, recover_folder
from mnif_nerf.labels import Labels

FORMAT = PackedFormat("mnif_nerf surface points", 1)
FOLDER = "points"
"""Below a data set's folder, where its splits are."""


@dataclass(frozen=True)
class SurfaceStore:
    """One split; N instances of P points each.

    Attributes:
        folder, root: of the packed arrays, and of the data.
        split, names: of the instances.
        counts: points of an instance by kind.
        places: uint16 [N, P, 3].
        distances: float16 [N, P].
        colors: uint8 [N, P, 3], or None without colour.
        normals: int8 [N, S, 3].
        labels: of the instances, where there are some.
    """

    folder: Path
    root: Path
    split: str
    names: tuple[str, ...]
    counts: PointCounts
    places: Rows
    distances: Rows
    colors: Rows | None
    normals: Rows
    labels: Labels | None = None

    @property
    def num_instances(self) -> int:
        """Instances."""
        return len(self.names)

    @property
    def num_points(self) -> int:
        """Points of an instance."""
        return self.counts.total

    @property
    def has_color(self) -> bool:
        """Whether colours are known."""
        return self.colors is not None

    @property
    def channels(self) -> int:
        """Numbers per point that a field learns: three colours and the distance, or the distance alone."""
        return 4 if self.has_color else 1

    def points(self, instance: int) -> SurfacePoints:
        """All points of one instance.

        Raises:
            MNIFError: no such instance.
        """
        if not 0 <= instance < self.num_instances:
            last = self.num_instances - 1
            raise MNIFError(f"instance {instance}: the {self.split} split of {self.root} has instances 0 to {last}.")
        normals = np.full((self.num_points, 3), np.nan, np.float32)
        if self.counts.surface:
            normals[-self.counts.surface :] = decode_normals(self.normals[instance])
        return SurfacePoints(
            points=from_lattice(self.places[instance]),
            distance=self.distances[instance].astype(np.float32),
            color=None if self.colors is None else self.colors[instance].astype(np.float32) / np.float32(255),
            kind=np.repeat(np.arange(4, dtype=np.uint8), self.counts.by_kind),
            normals=normals,
        )

    def values(self, instance: int) -> SurfacePoints:
        """The same, under the name that it has for stores of grids."""
        return self.points(instance)

    def targets(self, instances: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Some points, and what the field should say there.

        Args:
            instances: int64 [B].
            places: int64 [B, N], numbers of points.

        Returns:
            Field coordinates float32 [B, 3, N] in [-1, 1]; colours in [0, 1] (where there are) and, last, the signed
            distance in world units: float32 [B, 4 or 1, N].
        """
        rows, channels = instances[:, None], self.channels
        coordinates = np.moveaxis(self.places[rows, places], 2, 1) * np.float32(2 / 65535) - np.float32(1)
        targets = np.empty((len(instances), channels, places.shape[1]), np.float32)
        if self.colors is not None:
            np.multiply(np.moveaxis(self.colors[rows, places], 2, 1), np.float32(1 / 255), out=targets[:, :3])
        targets[:, -1] = self.distances[rows, places]
        return coordinates, targets


def packed_splits(root: Path | str) -> tuple[str, ...]:
    """The splits of points that `mnif-data` wrote, in the order train, val, test; empty where there are none."""
    place = Path(root) / FOLDER
    return tuple(split for split in GRID_SPLITS if (place / split / "manifest.json").is_file())


def surface_files(root: Path | str) -> dict[str, Path | None]:
    """Instances of all splits by name, each with its file where the data are files.

    Raises:
        MNIFError: there is no such data, or a store of it is damaged.
    """
    place, packed = Path(root) / FOLDER, packed_splits(root)
    if not packed:
        return locate_grids(root, "voxel", meshes_first).own_files()
    return {name: None for split in packed for name in open_packed(Path(root), place / split).names}


def surface_splits(root: Path | str) -> tuple[str, ...]:
    """The splits of a data set of points, or of a folder of meshes or voxels, in the order train, val, test.

    Raises:
        MNIFError: there is nothing of all these.
    """
    return packed_splits(root) or tuple(locate_grids(root, "voxel", meshes_first).splits)


def open_surface_store(
    root: Path | str, split: str, points: int = POINTS, workers: int | None = None, progress: bool = True
) -> SurfaceStore:
    """Open a split; points of meshes and voxels are computed where that was not done yet.

    Args:
        root: a data set of points, or a folder of meshes or voxels.
        split: "train", "val" or "test".
        points: of an instance, see `PointCounts.of`; data sets of points have their own number.
        workers: processes that compute points; None for one per core.
        progress: whether to show a bar.

    Raises:
        MNIFError: there is no such split, nothing can be used, a full disk, a cache that cannot be written, a data set
            that is damaged or of another version.
    """
    root = Path(root)
    recover_folder(root / FOLDER / split)
    found = packed_splits(root)
    if found and split not in found:
        raise MNIFError(f"{root}: no {split} split in it; name a split that is there ({', '.join(found)}).")
    if found:
        return open_packed(root, root / FOLDER / split)
    return _open_folder(root, split, PointCounts.of(points), workers, progress)


def _open_folder(root: Path, split: str, counts: PointCounts, workers: int | None, progress: bool) -> SurfaceStore:
    layout = locate_grids(root, "voxel", meshes_first)
    sources, first = layout.sources(split), next(iter(layout.splits))
    for module in ("igl", "manifold3d"):
        require(module, "meshes")
    place = cache_place(layout.root, layout.cache) / f"sdf-{counts.total - counts.surface}"
    base = layout.root if layout.root.is_dir() else layout.root.parent
    files = dict.fromkeys(source.path for source in sources)
    listing = ((path.relative_to(base).as_posix(), path.stat()) for path in files)
    fingerprint = files_fingerprint(listing, [str(source) for source in sources])

    def build(folder: Path) -> dict[str, Any]:
        kept = parts_folder(place, f"{split}-{fingerprint[:12]}")
        jobs = [PointJob(source, kept / f"{number}.npz", counts) for number, source in enumerate(sources)]
        missing = wanting(jobs)
        reasons = run_jobs(make_part, missing, workers, progress, f"Points of {split}")
        failed = {job.source.name: reason for job, reason in zip(missing, reasons) if reason is not None}
        if len(failed) == len(sources):
            raise MNIFError(
                f"{root}: none of its {split} objects can be used; the first: {next(iter(failed.values()))}"
            )
        parts = {job.source.name: job.part for job in jobs if job.source.name not in failed}
        has_color, notes = join_facts(parts)
        if split != first:  # every split has the channels of the first
            has_color = _open_folder(root, first, counts, workers, progress).has_color
        shards = pack_parts(parts, folder, place / split, counts, has_color)
        notes = [f"skipped {reason}" for reason in failed.values()] + [f"{split}: {note}" for note in notes]
        notes += [f"{root}: {note}" for note in layout.notes]
        labels, note = layout.labels(split, list(parts))
        notes += [f"{root}: {note}"] if note and split == first else []
        return {**describe_store(split, list(parts), counts, has_color, labels), **shards, "notes": notes}

    def open_built(manifest: dict[str, Any]) -> SurfaceStore:
        return open_arrays(root, place / split, manifest, layout)

    store = open_or_build(place / split, FORMAT, fingerprint, f"the {split} split", open_built, build)
    for folder in place.glob(f".{split}-*.parts"):
        remove_parts(folder)
    return store


def open_packed(root: Path, folder: Path) -> SurfaceStore:
    """Open a folder that `write_store` wrote.

    Raises:
        MNIFError: it is damaged or of another version.
    """
    manifest = read_manifest(folder)
    version = manifest.get("format_version") if manifest.get("format") == FORMAT.name else None
    if version != FORMAT.version:
        raise MNIFError(f"{folder}: has format version {version}, this program reads {FORMAT.version}; make it again.")
    try:
        return open_arrays(root, folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise MNIFError(f"{folder}: damaged ({error}); remove it and make it again with mnif-data.") from None


def open_arrays(root: Path, folder: Path, manifest: dict[str, Any], layout: GridLayout | None = None) -> SurfaceStore:
    """The store in a folder, made of the files of a layout where there are some; ValueError, KeyError, TypeError and
    OSError mean damage."""
    names, counts = tuple(manifest["names"]), PointCounts(**manifest["counts"])
    arrays = {
        name: map_rows(folder, f"{name}.array", manifest.get("shards"), (len(names), *shape), dtype)
        for name, shape, dtype in rows(counts, bool(manifest["color"]))
    }
    return SurfaceStore(
        folder=folder,
        root=root,
        split=str(manifest["split"]),
        names=names,
        counts=counts,
        places=arrays["points"],
        distances=arrays["distance"],
        colors=arrays.get("color"),
        labels=labels_in(layout, manifest, folder),
        normals=arrays["normals"],
    )


def describe_store(
    split: str, names: list[str], counts: PointCounts, has_color: bool, labels: Labels | None = None
) -> dict[str, Any]:
    """The manifest of a store, but for its format."""
    content = {"split": split, "counts": asdict(counts), "color": has_color, "names": names}
    return {**content, "labels": None if labels is None else labels.to_dict()}


def write_store(
    folder: Path,
    split: str,
    parts: dict[str, Path],
    counts: PointCounts,
    has_color: bool,
    labels: Labels | None = None,
) -> None:
    """Pack instances, by name, each a file of `write_part`, into a store that appears whole.

    Args:
        folder: of the store.
        split: its name.
        parts: files by name.
        counts: points of each.
        has_color: whether colours are known.
        labels: of the instances, in the order of `parts`.

    Raises:
        MNIFError: a part is damaged, or the disk is full.
    """
    with atomic_folder(folder, replace=True) as temporary:
        shards = pack_parts(parts, temporary, folder, counts, has_color)
        head = {"format": FORMAT.name, "format_version": FORMAT.version, **shards}
        write_manifest(temporary, {**head, **describe_store(split, list(parts), counts, has_color, labels)})
