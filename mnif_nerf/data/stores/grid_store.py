"""The packed store of grids: one split as memory-mapped arrays, built once and found again.

On disk (`<root>/.mnif/<reader>-<resolution>/<split>/`, or under the folder that MNIF_CACHE names):

    manifest.json            format version, fingerprint of the source files, the grid's facts, names
    bits.npy                 cells that are inside or not: uint8 [N, cells / 8], cell c is bit c % 8 of byte c // 8
    surface.npy              bits: int32, numbers of the cells near the surface: of each instance those inside, sorted,
                             then those outside
    surface_offsets.npy      bits: int64 [2 N + 1], where each of these parts begins
    bytes.npy                pictures: uint8 [N, *shape, C], with alpha (C = 4) as `mnif_nerf.rendering.alpha` has it
    floats.npy               real values in their own units: float32 [N, *shape, C]

Cells are numbered as in `mnif_nerf.rendering.grids`, the last axis fastest. A cell is near the surface if one of those
around it, diagonals included, is of the other kind. Large splits lie in shards (`mnif_nerf.data.stores.shards`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.readers.grid_reader import GridReader, Size, Values, get_reader
from mnif_nerf.data.readers.voxel_values import corners_note
from mnif_nerf.data.stores.cache import (
    PackedFormat,
    cache_place,
    files_fingerprint,
    map_array,
    open_or_build,
)
from mnif_nerf.data.stores.grid_layout import GridLayout, grid_splits, labels_in, locate_grids
from mnif_nerf.data.stores.grid_pack import DTYPES, GridPacking, pack_grids, pack_row, pack_sharded, row_shape
from mnif_nerf.data.stores.packing import bits_of_any, unpack_bits
from mnif_nerf.data.stores.shards import Rows, map_rows, move_shards, shard_folder, shard_ranges
from mnif_nerf.errors import MNIFError
from mnif_nerf.labels import Labels
from mnif_nerf.names import listed
from mnif_nerf.progress import progress_bar

__all__ = ["GridStore", "grid_splits", "open_grid_store", "store_of"]

FORMAT = PackedFormat("mnif_nerf packed grids", 3)


@dataclass(frozen=True)
class GridStore:
    """One split of grids of one shape, packed; N instances.

    Attributes:
        folder, root: of the packed arrays, and of the data.
        modality: name of the reader, which is that of the modality.
        values_kind: how cells are kept: "bits", "bytes" or "floats".
        split, names: of the instances.
        facts: shape, channels and units.
        packed: uint8 [N, cells / 8], uint8 [N, *shape, C] or float32 [N, *shape, C].
        surface_cells, surface_offsets: int32, and int64 [2 N + 1]; None but for bits.
        labels: by the folders of the files, where they give some.
    """

    folder: Path
    root: Path
    modality: str
    values_kind: Values
    split: str
    names: tuple[str, ...]
    facts: GridFacts
    packed: Rows
    surface_cells: Rows | None = None
    surface_offsets: np.ndarray | None = None
    labels: Labels | None = None

    @property
    def num_instances(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells per axis."""
        return self.facts.shape

    @property
    def channels(self) -> int:
        """Numbers per cell."""
        return self.facts.channels

    @property
    def resolution(self) -> int:
        """Cells along the longest edge."""
        return self.facts.resolution

    @property
    def dims(self) -> int:
        """Axes of a grid."""
        return self.facts.dims

    @property
    def num_cells(self) -> int:
        """Cells of one grid."""
        return self.facts.num_cells

    @property
    def has_surface(self) -> bool:
        """Whether cells near a surface are known."""
        return self.surface_cells is not None

    def values(self, instance: int) -> np.ndarray:
        """One instance: bool [*shape], uint8 [*shape, C], or float32 [*shape] ([*shape, C] of several channels).

        Raises:
            MNIFError: no such instance.
        """
        self._require(instance)
        if self.values_kind == "bits":
            return unpack_bits(self.packed[instance], self.shape)
        value = np.array(self.packed[instance])
        return value[..., 0] if self.values_kind == "floats" and self.channels == 1 else value

    def targets(self, instances: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """What the field should say at cells: float32 [B, C, N] in [-1, 1]; bits are -1 outside and +1 inside.

        Args:
            instances: int64 [B].
            cells: int64 [B, N], numbers of cells.
        """
        if self.values_kind == "bits":
            bits = self.packed[instances[:, None], cells >> 3] >> (cells & 7).astype(np.uint8) & 1
            return (2.0 * bits[:, None].astype(np.float32) - 1.0).astype(np.float32, copy=False)
        found = self.packed.reshape(self.num_instances, -1, self.channels)[instances[:, None], cells]
        return self._scaled(np.swapaxes(found, 1, 2))

    def all_targets(self, instances: np.ndarray) -> np.ndarray:
        """`targets` at every cell in order: float32 [B, C, cells]."""
        if self.values_kind == "bits":
            bits = unpack_bits(self.packed[instances], (1, self.num_cells))
            return np.where(bits, np.float32(1), np.float32(-1))
        found = self.packed[instances].reshape(len(instances), -1, self.channels)
        return self._scaled(np.swapaxes(found, 1, 2))

    def union(self) -> np.ndarray:
        """Cells that are inside of at least one instance: bool [*shape]; of bits only."""
        return unpack_bits(bits_of_any(self.packed, self.num_instances, self.folder), self.shape)

    def surface(self, instance: int) -> np.ndarray:
        """Numbers of the cells near an instance's surface, sorted: int32 [S].

        Raises:
            MNIFError: no such instance, or values that have no surface.
        """
        self._require(instance)
        if self.surface_cells is None or self.surface_offsets is None:
            raise MNIFError(f"{self.root}: values of modality {self.modality!r} have no surface; only voxels do.")
        first, last = (int(place) for place in self.surface_offsets[2 * instance : 2 * instance + 3 : 2])
        return np.sort(self.surface_cells[first:last])

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        if self.values_kind == "bytes":
            return values.astype(np.float32) * np.float32(2.0 / 255.0) - np.float32(1.0)
        return (values - np.float32(self.facts.low)) * np.float32(
            2.0 / (self.facts.high - self.facts.low)
        ) - np.float32(1)

    def _require(self, instance: int) -> None:
        if not 0 <= instance < self.num_instances:
            last = self.num_instances - 1
            raise MNIFError(f"instance {instance}: the {self.split} split of {self.root} has instances 0 to {last}.")


def open_grid_store(
    root: Path | str,
    split: str,
    modality: str | GridReader,
    resolution: Size = None,
    channels: int | None = None,
    progress: bool = True,
) -> GridStore:
    """Open the packed store of a split, building it first where it is absent or older than the data.

    Args:
        root: the data set, as `mnif_nerf.data.stores.grid_layout` describes it.
        split: "train", "val" or "test".
        modality: a reader, or its name: "voxel", "image" or "signal".
        resolution: cells along the longest edge, or the exact shape. None takes what the files have: voxels and
            signals must agree, meshes alone become 64^3, pictures have 64 or less. Finer voxels and signals are
            brought to a resolution that divides theirs, by blocks.
        channels: of pictures, 1, 3 or 4; of signals, how many the last axis of an array holds. None takes what the
            files have.
        progress: show a progress bar while packing.

    Raises:
        MNIFError: nothing to read, no such split, an unreadable file, grids of unequal size, a full disk, a cache
            that cannot be written.
    """
    layout = locate_grids(root, modality)
    sources, reader = layout.sources(split), layout.reader
    channels = 1 if reader.values == "bits" else channels
    place = layout.root if layout.root.is_dir() else layout.root.parent
    # What the files have is found out from all of them, so that every split gets the same.
    settled = resolution is not None and channels is not None and reader.values != "floats"
    files = list(dict.fromkeys(source.path for source in sources)) if settled else layout.files()
    listing = ((path.relative_to(place).as_posix(), path.stat()) for path in files)
    # Names of an HDF5's rows come from a list beside it, which may change alone.
    names = [tuple(source.name for source in sources)] if sources[0].row is not None else []
    asked = f"-{channels}" if channels and reader.values != "bits" else ""
    size = "x".join(str(n) for n in resolution) if isinstance(resolution, tuple) else str(resolution or "own")
    target = cache_place(layout.root, layout.cache) / f"{reader.name}-{size}{asked}" / split

    fingerprint = files_fingerprint(listing, resolution, channels, len(sources), *names, *reader.changes)

    def build(folder: Path) -> dict[str, Any]:
        facts = reader.settle(layout.every(), resolution, channels)
        how = GridPacking(reader, facts, resolution is None)
        sharded = len(shard_ranges(len(sources), how.row_bytes)) > 1
        with progress_bar(f"packing {split}", len(sources), reader.nouns, progress) as advance:
            if sharded:
                shards = pack_sharded(how, sources, target, fingerprint, advance)
            else:
                shards = [(folder, pack_grids(how, sources, folder, advance))]
        names = [name for _, some in shards for name in some]
        labels, note = layout.labels(split, names)
        notes = [*reader.notes(sources, channels, facts), *full_corners(shards, reader, facts)]
        without = sorted({source.name for source in sources} - set(names))
        if without:
            notes.insert(
                0, f"{split}: without a shape (all cells empty, or all full), and left out: {listed(without)}."
            )
        if split == next(iter(layout.splits)):  # they are about all splits, and told once
            notes = [*(f"{layout.root}: {each}" for each in (*layout.notes, *([note] if note else []))), *notes]
        content: dict[str, Any] = {"split": split, "grid": facts.to_dict(), "names": names, "notes": notes}
        if sharded:
            move_shards(target, len(shards), folder)
            content["shards"] = [len(some) for _, some in shards]
        return {**content, "labels": None if labels is None else labels.to_dict()}

    return open_or_build(
        target,
        FORMAT,
        fingerprint,
        f"the {split} split",
        lambda manifest: _open_arrays(layout, target, manifest),
        build,
    )


def full_corners(shards: Sequence[tuple[Path, Sequence[str]]], reader: GridReader, facts: GridFacts) -> list[str]:
    """A sentence on solids all of whose corners are inside, as where 1 stands for empty.

    Args:
        shards: folders of arrays, and the names of the instances in each.
        reader, facts: of the grids.
    """
    if reader.values != "bits":
        return []
    corners = np.array([np.ravel_multi_index(c, facts.shape) for c in product(*((0, n - 1) for n in facts.shape))])
    found: list[str] = []
    for folder, names in shards:
        if names:
            packed = map_array(folder / "bits.npy", (len(names), *row_shape("bits", facts)))
            full = ((packed[:, corners >> 3] >> (corners & 7).astype(np.uint8)) & 1).all(axis=1)
            found += [name for name, one in zip(names, full) if one]
    return [corners_note(found, sum(len(names) for _, names in shards))] if found else []


def store_of(values: Sequence[np.ndarray], modality: str | GridReader, facts: GridFacts | None = None) -> GridStore:
    """A store in memory, of grids that no file holds.

    Args:
        values: voxels bool [X, Y, Z], pictures uint8 [H, W, C], or signals [*shape, C], all of one shape.
        modality: a reader, or its name.
        facts: a grid of the same units; where None, those of signals are the lowest and highest of `values`.

    Raises:
        MNIFError: another shape or type, or values with nothing to learn in them.
    """
    reader, arrays = get_reader(modality), [np.asarray(value) for value in values]
    kind = reader.values
    if kind == "floats" and facts is not None:
        arrays = [value[..., None] if value.ndim == facts.dims else value for value in arrays]
    first = arrays[0]
    for index, value in enumerate(arrays):
        reader.check(value, f"grid {index}")
        if value.shape != first.shape:
            raise MNIFError(
                f"grid {index}: {value.dtype} {list(value.shape)}; expected all of one size "
                f"(the first is {list(first.shape)})."
            )
    shape, channels = (first.shape, 1) if kind == "bits" else (first.shape[:-1], first.shape[-1])
    if facts is None and kind == "floats":
        facts = GridFacts(shape, channels, float(min(a.min() for a in arrays)), float(max(a.max() for a in arrays)))
    rows = [pack_row(kind, value) for value in arrays]
    near = [part for _, parts in rows for part in parts]
    here, names = Path("memory"), tuple(f"{index:03d}" for index in range(len(arrays)))
    packed = np.stack([row for row, _ in rows]).astype(DTYPES[kind], copy=False)
    cells = np.concatenate(near) if near else None
    offsets = np.cumsum([0, *(len(part) for part in near)]) if near else None
    units = facts or GridFacts(shape, channels)
    known = GridFacts(shape, channels, units.low, units.high, units.rate, units.dtype)
    return GridStore(here, here, reader.name, kind, "given", names, known, packed, cells, offsets)


def _open_arrays(layout: GridLayout, target: Path, manifest: dict[str, Any]) -> GridStore:
    names, stored, kind = tuple(manifest["names"]), manifest["grid"], layout.reader.values
    facts = GridFacts.from_dict(stored, len(stored["shape"]))
    sizes = manifest.get("shards")
    packed = map_rows(target, f"{kind}.npy", sizes, (len(names), *row_shape(kind, facts)), DTYPES[kind])
    surface, offsets = _open_surface(target, sizes, len(names)) if kind == "bits" else (None, None)
    return GridStore(
        folder=target,
        root=layout.root,
        modality=layout.reader.name,
        values_kind=kind,
        split=str(manifest["split"]),
        names=names,
        facts=facts,
        packed=packed,
        surface_cells=surface,
        surface_offsets=offsets,
        labels=labels_in(layout, manifest, target),
    )


def _open_surface(target: Path, sizes: Sequence[int] | None, count: int) -> tuple[Rows, np.ndarray]:
    """Cells near the surface, and where those of each of `count` instances begin; ValueError means damage."""
    folders = [target] if sizes is None else [shard_folder(target, k) for k, size in enumerate(sizes) if size]
    known = [np.load(folder / "surface_offsets.npy") for folder in folders]
    if any(part.ndim != 1 or len(part) == 0 for part in known):
        raise ValueError("array sizes differ from the manifest")
    offsets = np.cumsum([0, *np.concatenate([np.diff(part) for part in known])])
    if offsets.shape != (2 * count + 1,):
        raise ValueError("array sizes differ from the manifest")
    ends = iter([int(part[-1]) for part in known])
    cells = None if sizes is None else [next(ends) if size else 0 for size in sizes]
    return map_rows(target, "surface.npy", cells, (int(offsets[-1]),), np.int32), offsets
