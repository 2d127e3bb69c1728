"""Voxel grids as training data: grids as their files have them, meshes voxelised, IM-NET's tables."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.readers.grid_reader import (
    GridReader,
    Read,
    Size,
    cells_text,
    check_size,
    coarse_shape,
    register,
)
from mnif_nerf.data.readers.images import IMAGE_SUFFIXES
from mnif_nerf.data.readers.imnet import HDF5_SUFFIXES, Hdf5Reader, hdf5_sources
from mnif_nerf.data.readers.mesh_files import MESH_SUFFIXES, mesh_rank
from mnif_nerf.data.readers.splits import GridSource
from mnif_nerf.data.readers.voxel_files import VOXEL_SUFFIXES, NoShapeError, read_voxels, require_shape, resample
from mnif_nerf.errors import MNIFError

_POINTS = re.compile(r"(points|pointcloud)(_\d+)?\.npz")
MESH_RESOLUTION = 64
"""Cells along an edge of a voxelised mesh where neither the user nor a grid beside it says otherwise."""


class VoxelReader(GridReader):
    """Solids: bool [X, Y, Z], index order [x, y, z]."""

    name, values, nouns = "voxel", "bits", "shapes"
    expected = f"{', '.join(VOXEL_SUFFIXES)} or mesh files, in train/, val/ and test/ or all together, or IM-NET's HDF5"
    suffixes = VOXEL_SUFFIXES + MESH_SUFFIXES
    companions = (*IMAGE_SUFFIXES, ".mtl", ".bin", ".array")
    folders = ("", "occupancy")

    def sift(self, files: Sequence[Path]) -> tuple[list[Path], list[str]]:
        """Grids and meshes; points.npz and pointcloud.npz of Occupancy Networks are neither."""
        found, notes = super().sift(files)
        points = [path for path in found if _POINTS.fullmatch(path.name.lower())]
        kept = [path for path in found if path not in set(points)]
        if points and kept:
            notes.append(f"{len(points)} files hold points, not voxels, and are left out ({points[0].name}, ...).")
        return (kept, notes) if kept else (found, notes)

    def rank(self, kind: str) -> int:
        """Solid grids first, then any grid, then meshes, shells last."""
        if kind.startswith((".surface", ".hollow", ".shell")):
            return 100
        return super().rank(kind) - (50 if kind.startswith((".solid", ".filled")) else 0)

    def tables(self, root: Path) -> list[Path]:
        """IM-NET's HDF5: the root itself, or files in it."""
        found = [root] if root.is_file() else sorted(root.iterdir())
        return [path for path in found if path.suffix.lower() in HDF5_SUFFIXES and path.is_file()]

    def table_sources(self, tables: list[Path]) -> dict[str, tuple[GridSource, ...]]:
        """Rows of these files."""
        return hdf5_sources(tables)

    def settle(self, sources: Sequence[GridSource], size: Size, channels: int | None) -> GridFacts:
        """The shape of the first grid; meshes alone become cubes of 64 cells."""
        check_size(size)
        if isinstance(size, tuple):
            return GridFacts(size)
        grids = [source for source in sources if source.path.suffix.lower() not in MESH_SUFFIXES]
        if not grids:
            return GridFacts((size or MESH_RESOLUTION,) * 3)
        first, shape = _first_shape(grids)
        return GridFacts(shape if size is None else coarse_shape(shape, size, first))

    @contextlib.contextmanager
    def reading(self, facts: GridFacts, exact: bool) -> Iterator[Read]:
        """Finer grids are brought to the shape by blocks, unless `exact`."""
        with ShapeReader() as reader:

            def read(source: GridSource) -> np.ndarray:
                cells = reader.read(source, facts.resolution)
                if cells.shape != facts.shape:
                    if exact:
                        raise MNIFError(unequal_shape(source, cells.shape, facts.shape))
                    cells = resample(cells, facts.shape, source)
                    require_shape(cells, f"{source} at {cells_text(facts.shape)}")
                return cells

            yield read

    def check(self, value: np.ndarray, name: str) -> None:
        """Bool [X, Y, Z], neither empty nor full."""
        if value.ndim != 3 or value.dtype != np.bool_:
            raise MNIFError(f"{name}: {value.dtype} {list(value.shape)}; expected bool [X, Y, Z].")
        require_shape(value, name)


class ShapeReader:
    """Reads shapes of any kind of file; a context, since HDF5 files stay open in between."""

    def __init__(self) -> None:
        self._tables = Hdf5Reader()  # made here, since several threads read

    def __enter__(self) -> ShapeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._tables.close()

    def read(self, source: GridSource, resolution: int = MESH_RESOLUTION) -> np.ndarray:
        """One shape as bool [X, Y, Z]: a grid as it is in its file, a mesh voxelised in a cube of `resolution`.

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
        require_shape(cells, source)
        return cells


def _first_shape(grids: Sequence[GridSource]) -> tuple[GridSource, tuple[int, ...]]:
    """The first grid that holds a shape, and how many cells it has."""
    refusal: NoShapeError | None = None
    with ShapeReader() as reader:
        for source in grids:
            try:
                return source, reader.read(source).shape
            except NoShapeError as error:
                refusal = refusal or error
    assert refusal is not None
    raise refusal


def unequal_shape(source: GridSource, shape: Sequence[int], first: Sequence[int]) -> str:
    """What to say of a grid of another shape than the first one's."""
    return (
        f"{source}: {cells_text(shape)} cells, but the first shape has {cells_text(first)}; give all grids one size, "
        "or ask for a `resolution` that divides every size."
    )


READER = register(VoxelReader())


def meshes_first(kind: str) -> int:
    """Another rank of the same kinds, for who wants surfaces with their colours: meshes, then grids as above."""
    return mesh_rank(kind) if kind.endswith(MESH_SUFFIXES) else 1000 + READER.rank(kind)
