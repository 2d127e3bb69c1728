"""The packed store of voxel grids and pictures: one split as memory-mapped arrays, built once and found again.

On disk (`<root>/.mnif/<modality>-<resolution>/<split>/`, or under the folder that MNIF_CACHE names):

    manifest.json            format version, fingerprint of the source files, sizes, names
    bits.npy                 voxels: uint8 [N, G^3 / 8], cell c is bit c % 8 of byte c // 8
    surface.npy              voxels: int32, numbers of the cells near the surface, shape after shape
    surface_offsets.npy      voxels: int64 [N + 1], where each shape's part of them begins
    images.npy               pictures: uint8 [N, H, W, C]

Cells are numbered as in `mnif_nerf.rendering.grids`: a voxel [x, y, z] is (x * G + y) * G + z, a pixel
row * W + column. A cell is near the surface if one of the 26 around it is of the other kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnif_nerf.data.readers.voxel_files import require_shape
from mnif_nerf.data.stores.cache import (
    PackedFormat,
    cache_place,
    files_fingerprint,
    map_array,
    open_or_build,
)
from mnif_nerf.data.stores.grid_layout import GridLayout, grid_splits, locate_grids
from mnif_nerf.data.stores.grid_pack import pack_pictures, pack_voxels, resolve_size, surface_cells
from mnif_nerf.data.stores.packing import pack_bits, unpack_bits
from mnif_nerf.errors import MNIFError
from mnif_nerf.progress import progress_bar

__all__ = ["GridStore", "grid_splits", "open_grid_store", "store_of"]

_UNION_ROWS = 256  # shapes read at a time
FORMAT = PackedFormat("mnif_nerf packed grids", 1)


@dataclass(frozen=True)
class GridStore:
    """One split of voxel grids (modality "voxel") or pictures ("image"), packed; N instances.

    `packed` is uint8, [N, G^3 / 8] bits of voxels or [N, H, W, C] pictures (H = W = resolution). `surface_cells`
    int32 and `surface_offsets` int64 [N + 1] are None for pictures.
    """

    folder: Path
    root: Path
    modality: str
    split: str
    names: tuple[str, ...]
    resolution: int
    channels: int
    packed: np.ndarray
    surface_cells: np.ndarray | None = None
    surface_offsets: np.ndarray | None = None

    @property
    def num_instances(self) -> int:
        return len(self.names)

    @property
    def dims(self) -> int:
        """Axes of a grid: 3 for voxels, 2 for pictures."""
        return 3 if self.modality == "voxel" else 2

    @property
    def num_cells(self) -> int:
        """Cells of one grid: G^3 voxels, or pixels."""
        return self.resolution**self.dims

    def values(self, instance: int) -> np.ndarray:
        """Voxels bool [G, G, G] in [x, y, z] order, or a picture uint8 [H, W, C].

        Raises:
            MNIFError: no such instance.
        """
        self._require(instance)
        if self.modality == "voxel":
            return unpack_bits(self.packed[instance], (self.resolution,) * 3)
        return np.array(self.packed[instance])

    def targets(self, instances: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """What the field should say at cells: float32 [B, C, N] in [-1, 1]; voxels -1 outside and +1 inside.

        Args:
            instances: int64 [B].
            cells: int64 [B, N], numbers of cells.
        """
        if self.modality == "voxel":
            bits = self.packed[instances[:, None], cells >> 3] >> (cells & 7).astype(np.uint8) & 1
            return (2.0 * bits[:, None].astype(np.float32) - 1.0).astype(np.float32, copy=False)
        pixels = self.packed.reshape(self.num_instances, -1, self.channels)[instances[:, None], cells]
        return _from_bytes(np.swapaxes(pixels, 1, 2))

    def all_targets(self, instances: np.ndarray) -> np.ndarray:
        """`targets` at every cell in order: float32 [B, C, cells]."""
        if self.modality == "voxel":
            bits = unpack_bits(self.packed[instances], (1, self.num_cells))
            return np.where(bits, np.float32(1), np.float32(-1))
        return _from_bytes(np.swapaxes(self.packed[instances].reshape(len(instances), -1, self.channels), 1, 2))

    def union(self) -> np.ndarray:
        """Cells that are inside of at least one shape: bool [G, G, G]; voxels only."""
        parts = (self.packed[first : first + _UNION_ROWS] for first in range(0, self.num_instances, _UNION_ROWS))
        union = np.bitwise_or.reduce([np.bitwise_or.reduce(part, axis=0) for part in parts], axis=0)
        return unpack_bits(union, (self.resolution,) * 3)

    def surface(self, instance: int) -> np.ndarray:
        """Numbers of the cells near a shape's surface, sorted: int32 [S]; voxels only.

        Raises:
            MNIFError: no such instance, or a store of pictures.
        """
        self._require(instance)
        if self.surface_cells is None or self.surface_offsets is None:
            raise MNIFError(f"{self.root}: pictures have no surface; only voxels do.")
        first, last = (int(place) for place in self.surface_offsets[instance : instance + 2])
        return self.surface_cells[first:last]

    def _require(self, instance: int) -> None:
        if not 0 <= instance < self.num_instances:
            last = self.num_instances - 1
            raise MNIFError(f"instance {instance}: the {self.split} split of {self.root} has instances 0 to {last}.")


def open_grid_store(
    root: Path | str,
    split: str,
    modality: str,
    resolution: int | None = None,
    channels: int | None = None,
    progress: bool = True,
) -> GridStore:
    """Open the packed store of a split, building it first where it is absent or older than the data.

    Args:
        root: the data set, as `mnif_nerf.data.stores.grid_layout` describes it.
        split: "train", "val" or "test".
        modality: "voxel" or "image".
        resolution: cells or pixels along an edge. None takes what the files have: voxel files must agree, meshes
            alone become 64^3, pictures 64^2 or less. Voxels of a finer grid are brought to a resolution that divides
            theirs: a block is inside where at least half of its cells are.
        channels: of pictures, 1 or 3; None takes what the files have. Voxels have 1.
        progress: show a progress bar while packing.

    Raises:
        MNIFError: nothing to read, no such split, an unreadable file, grids of unequal size, a full disk, a cache
            that cannot be written.
    """
    layout = locate_grids(root, modality)
    sources = layout.sources(split)
    # What the files have is found out from all of them, so that every split gets the same.
    found = resolution is None or (channels is None and modality == "image")
    place = layout.root if layout.root.is_dir() else layout.root.parent
    files = layout.files() if found else list(dict.fromkeys(source.path for source in sources))
    listing = ((path.relative_to(place).as_posix(), path.stat()) for path in files)
    # Names of an HDF5's rows come from a list beside it, which may change alone.
    names = [tuple(source.name for source in sources)] if sources[0].row is not None else []
    asked = f"-{channels}" if channels and modality == "image" else ""
    target = cache_place(layout.root, layout.cache) / f"{modality}-{resolution or 'own'}{asked}" / split
    return open_or_build(
        target,
        FORMAT,
        files_fingerprint(listing, resolution, channels if modality == "image" else 1, len(sources), *names),
        f"the {split} split",
        lambda manifest: _open_arrays(layout, target, manifest),
        lambda temporary: _build(layout, split, temporary, resolution, channels, progress),
    )


def store_of(values: Sequence[np.ndarray], modality: str) -> GridStore:
    """A store in memory, of grids that no file holds.

    Args:
        values: voxels bool [G, G, G], or pictures uint8 [H, H, C], all of one shape.
        modality: "voxel" or "image".

    Raises:
        MNIFError: another shape or type, or voxels that are all empty or all full.
    """
    first = np.asarray(values[0])
    dims, kind = (3, np.bool_) if modality == "voxel" else (2, np.uint8)
    for index, value in enumerate(values):
        value = np.asarray(value)
        if value.ndim != 3 or value.dtype != kind or len(set(value.shape[:dims])) != 1 or value.shape != first.shape:
            expected = "bool [G, G, G]" if modality == "voxel" else "uint8 [H, H, channels]"
            raise MNIFError(
                f"grid {index}: {value.dtype} {list(value.shape)}; expected {expected}, all of one size "
                f"(the first is {list(first.shape)})."
            )
        if modality == "voxel":
            require_shape(value, f"grid {index}")
    names = tuple(f"{index:03d}" for index in range(len(values)))
    here = Path("memory")
    if modality == "image":
        packed = np.stack([np.asarray(value) for value in values])
        return GridStore(here, here, modality, "given", names, len(first), first.shape[2], packed)
    cells = [surface_cells(value) for value in values]
    offsets = np.cumsum([0, *(len(part) for part in cells)])
    packed = np.stack([pack_bits(value[None])[0] for value in values])
    return GridStore(here, here, modality, "given", names, len(first), 1, packed, np.concatenate(cells), offsets)


def _build(
    layout: GridLayout, split: str, folder: Path, resolution: int | None, channels: int | None, progress: bool
) -> dict[str, Any]:
    sources, kind = layout.sources(split), "shapes" if layout.modality == "voxel" else "pictures"
    size, depth = resolve_size(layout, resolution, channels)
    with progress_bar(f"packing {split}", len(sources), kind, progress) as advance:
        if layout.modality == "voxel":
            pack_voxels(sources, folder, size, resolution is not None, advance)
        else:
            pack_pictures(sources, folder, size, depth, advance)
    return {
        "modality": layout.modality,
        "split": split,
        "resolution": size,
        "channels": depth,
        "names": [source.name for source in sources],
    }


def _open_arrays(layout: GridLayout, target: Path, manifest: dict[str, Any]) -> GridStore:
    names, resolution, channels = tuple(manifest["names"]), int(manifest["resolution"]), int(manifest["channels"])
    surface = offsets = None
    if layout.modality == "voxel":
        packed = map_array(target / "bits.npy", (len(names), -(-(resolution**3) // 8)))
        offsets = np.load(target / "surface_offsets.npy")
        if offsets.shape != (len(names) + 1,):
            raise ValueError("array sizes differ from the manifest")
        surface = np.asarray(map_array(target / "surface.npy", (int(offsets[-1]),), np.int32))
    else:
        packed = map_array(target / "images.npy", (len(names), resolution, resolution, channels))
    # As plain arrays over the maps: indexing a memmap object costs more than the reading does.
    return GridStore(
        folder=target,
        root=layout.root,
        modality=layout.modality,
        split=str(manifest["split"]),
        names=names,
        resolution=resolution,
        channels=channels,
        packed=np.asarray(packed),
        surface_cells=surface,
        surface_offsets=offsets,
    )


def _from_bytes(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) * np.float32(2.0 / 255.0) - np.float32(1.0)
