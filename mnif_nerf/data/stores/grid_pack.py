"""Turning one split of voxel grids or pictures into a folder of arrays (see `mnif_nerf.data.stores.grid_store`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnif_nerf.data.readers.mesh_files import MESH_SUFFIXES
from mnif_nerf.data.readers.voxel_files import read_voxels, require_shape, resample
from mnif_nerf.data.stores.grid_layout import GridLayout, GridSource
from mnif_nerf.data.stores.packing import GrowingArray, ordered_results, pack_bits, require_space
from mnif_nerf.errors import MNIFError

MESH_RESOLUTION = 64
"""Cells along an edge of a voxelised mesh where neither the user nor a grid beside it says otherwise."""
_SURFACE_SHARE = 0.08  # of all cells, a guess for the space a store needs


def resolve_size(layout: GridLayout, resolution: int | None, channels: int | None) -> tuple[int, int]:
    """The resolution and the channels of a data set; what is None is found out from the files.

    Raises:
        MNIFError: an unreadable file, or a size that cannot be had.
    """
    if resolution is not None and resolution < 1:
        raise MNIFError(f"resolution {resolution}: must be 1 or more.")
    if layout.modality == "image":
        from mnif_nerf.data.readers.picture_files import inspect_pictures

        return inspect_pictures(layout.files(), resolution, channels)
    if resolution is None:
        every = (source for sources in layout.splits.values() for source in sources)
        first = next((source for source in every if source.path.suffix.lower() not in MESH_SUFFIXES), None)
        with ShapeReader() as reader:
            resolution = MESH_RESOLUTION if first is None else len(reader.read(first))
    return resolution, 1


class ShapeReader:
    """Reads shapes of any kind of file; a context, since HDF5 files stay open in between."""

    def __init__(self) -> None:
        from mnif_nerf.data.readers.imnet import Hdf5Reader

        self._tables = Hdf5Reader()  # made here, since several threads read

    def __enter__(self) -> ShapeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._tables.close()

    def read(self, source: GridSource, resolution: int = MESH_RESOLUTION) -> np.ndarray:
        """One shape as bool [G, G, G]: a grid as it is in its file, a mesh voxelised at `resolution`.

        Raises:
            MNIFError: unreadable, all empty or all full.
        """
        suffix = source.path.suffix.lower()
        if suffix in MESH_SUFFIXES:
            from mnif_nerf.data.geometry.voxel_meshes import voxelise_file

            cells = voxelise_file(source.path, resolution)
        elif source.row is not None:
            cells = self._tables.read(source)
        else:
            cells = read_voxels(source.path)
        require_shape(cells, label(source))
        return cells


def surface_cells(cells: np.ndarray) -> np.ndarray:
    """Cells of bool [G, G, G] that have a neighbour of the other kind among the 26 around them: int32 [S], sorted."""
    some, every = cells, cells
    for axis in range(3):
        ahead, behind = (slice(None),) * axis + (slice(1, None),), (slice(None),) * axis + (slice(None, -1),)
        grown, shrunk = some.copy(), every.copy()
        grown[ahead] |= some[behind]
        grown[behind] |= some[ahead]
        shrunk[ahead] &= every[behind]
        shrunk[behind] &= every[ahead]
        some, every = grown, shrunk
    return np.flatnonzero(some & ~every).astype(np.int32)


def pack_voxels(
    sources: tuple[GridSource, ...],
    folder: Path,
    resolution: int,
    coarsen: bool,
    advance: Callable[[int], None] = lambda shapes: None,
) -> None:
    """Write bits.npy, surface.npy and surface_offsets.npy.

    Args:
        sources: the shapes.
        folder: where to write.
        resolution: G.
        coarsen: whether finer grids are brought to G; otherwise they are refused.
        advance: told the number of shapes done since the last call.

    Raises:
        MNIFError: a shape cannot be read or is of another size, or the disk cannot hold the store.
    """
    cells = resolution**3
    size = len(sources) * (-(-cells // 8) + 4 * int(_SURFACE_SHARE * cells))
    require_space(folder, size, f"{len(sources)} shapes")
    bits = GrowingArray(folder / "bits.npy", (-(-cells // 8),))
    surface = GrowingArray(folder / "surface.npy", (), np.int32)
    offsets = [0]
    try:
        with ShapeReader() as reader:
            jobs = ((_pack_shape, reader, source, resolution, coarsen) for source in sources)
            for packed, near in ordered_results(jobs):
                bits.append(packed)
                surface.append(near)
                offsets.append(offsets[-1] + len(near))
                advance(1)
    finally:
        bits.close()
        surface.close()
    np.save(folder / "surface_offsets.npy", np.array(offsets, dtype=np.int64))


def pack_pictures(
    sources: tuple[GridSource, ...],
    folder: Path,
    resolution: int,
    channels: int,
    advance: Callable[[int], None] = lambda pictures: None,
) -> None:
    """Write images.npy, uint8 [N, H, W, C].

    Raises:
        MNIFError: a picture cannot be read or does not fit, or the disk cannot hold the store.
    """
    from mnif_nerf.data.readers.picture_files import read_picture

    row = (resolution, resolution, channels)
    require_space(folder, len(sources) * resolution**2 * channels, f"{len(sources)} pictures")
    images = GrowingArray(folder / "images.npy", row)
    try:
        for picture in ordered_results((read_picture, source.path, resolution, channels) for source in sources):
            images.append(picture)
            advance(1)
    finally:
        images.close()


def label(source: GridSource) -> str:
    """How messages name an instance."""
    return str(source.path) if source.row is None else f"{source.path}, row {source.row}"


def unequal_size(source: GridSource, size: int, first: int) -> str:
    """What to say of a grid of another size than the first one's."""
    return (
        f"{label(source)}: {size}^3 cells, but the first shape has {first}^3; give all grids one size, or ask for a"
        " resolution that divides every size."
    )


def _pack_shape(
    reader: ShapeReader, source: GridSource, resolution: int, coarsen: bool
) -> tuple[np.ndarray, np.ndarray]:
    cells, name = reader.read(source, resolution), label(source)
    if len(cells) != resolution:
        if not coarsen:
            raise MNIFError(unequal_size(source, len(cells), resolution))
        cells = resample(cells, resolution, name)
        require_shape(cells, f"{name} at {resolution}^3")
    return pack_bits(cells[None])[0], surface_cells(cells)
