"""Reading voxel grids: .binvox, .npy and .npz.

Grids keep the axes of their files, index order [x, y, z].
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from mnif_nerf.data.generate.writer import read_occupancy
from mnif_nerf.data.readers.arrays import Arrays, load_arrays
from mnif_nerf.data.readers.grid_reader import blocks
from mnif_nerf.data.readers.voxel_values import inside_cells
from mnif_nerf.data.stores.packing import unpack_bits
from mnif_nerf.errors import MNIFError, first_line

POINTS_REMEDY = "voxelise its mesh, or take a file of voxels that lies beside it"
VOXEL_SUFFIXES = (".binvox", ".npy", ".npz")
LARGEST = 1024
"""Cells along an edge: a file that asks for more is damaged, or would fill the memory."""
_GRID_NAMES = ("voxels", "voxel", "occupancy", "occ", "vox", "grid")  # of an array, others beside it
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error, zipfile.BadZipFile)


def read_voxels(path: Path | str) -> np.ndarray:
    """Read a grid: bool [X, Y, Z], index order [x, y, z].

    `.binvox`: as written by binvox and by `mnif-export-mesh`. `.npy`: [X, Y, Z] (of more axes, those of
    length 1 at either end are dropped); bool, or numbers as `inside_cells` takes them. `.npz`: what `mnif-data`
    and `mnif-export-mesh` write, or a single such array under any name. No more memory is taken than the file holds,
    128 times its size of a .binvox, 1100 times of an .npz.

    Raises:
        MNIFError: missing, truncated, of another kind, no occupancy, or not of three axes.
    """
    path = Path(path)
    if not path.is_file():
        raise MNIFError(f"{path}: no such file.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".binvox":
            return _box(_read_binvox(path), path)
        if suffix == ".npy":
            return _box(inside_cells(_only_array(load_arrays(path)), path), path)
        if suffix == ".npz":
            return _box(_read_npz(path), path)
    except MNIFError:
        raise
    except _READ_ERRORS as error:
        raise MNIFError(f"{path}: cannot be read as voxels ({first_line(error)}); write it again.") from None
    raise MNIFError(f"{path}: unknown voxel format {suffix!r}; use one of {', '.join(VOXEL_SUFFIXES)}.")


class NoShapeError(MNIFError):
    """A grid that can be read, and holds nothing to learn."""


def require_shape(cells: np.ndarray, name: object) -> None:
    """Refuse a grid that holds nothing to learn.

    Raises:
        NoShapeError: no cell is inside, or all are.
    """
    if not cells.any():
        raise NoShapeError(f"{name}: every cell is empty, so there is no shape in it; remove it or voxelise it again.")
    if cells.all():
        raise NoShapeError(f"{name}: every cell is full, so there is no shape in it; remove it or voxelise it again.")


def require_cube(cells: np.ndarray, name: object) -> None:
    """Refuse a grid whose edges differ.

    Raises:
        MNIFError: with its shape.
    """
    if len(set(cells.shape)) != 1:
        raise MNIFError(f"{name}: a grid of shape {list(cells.shape)} is not a cube; expected [G, G, G], so pad it.")


def resample(cells: np.ndarray, shape: tuple[int, ...], name: object) -> np.ndarray:
    """Bring a grid [X, Y, Z] to a coarser one by blocks: a block is inside where at least half of its cells are.

    Raises:
        MNIFError: `shape` does not divide the grid's.
    """
    if cells.shape == tuple(shape):
        return cells
    block = blocks(cells.shape, shape, name)
    split = [n for pair in zip(shape, block) for n in pair]
    counts = cells.reshape(split).sum(axis=tuple(range(1, len(split), 2)))
    return 2 * counts >= math.prod(block)


def _read_binvox(path: Path) -> np.ndarray:
    content = path.read_bytes()
    head, found, data = content.partition(b"\ndata\n")
    if not found:  # written where lines end otherwise
        head, found, data = content.partition(b"\ndata\r\n")
    lines = head.decode("ascii", errors="replace").splitlines()
    if not found or not head.startswith(b"#binvox"):
        raise ValueError("no binvox header")
    dims = next((line.split()[1:] for line in lines if line.startswith("dim ")), [])
    shape = tuple(int(n) for n in dims)
    if len(shape) != 3 or not all(1 <= n <= LARGEST for n in shape):
        raise ValueError(f"dimensions {' '.join(dims) or 'missing'}")
    pairs = np.frombuffer(data[: len(data) // 2 * 2], dtype=np.uint8).reshape(-1, 2)
    count, expected = int(pairs[:, 1].sum(dtype=np.int64)), shape[0] * shape[1] * shape[2]
    if count != expected:
        kind = "truncated: " if count < expected else ""
        raise ValueError(f"{kind}{count} of {expected} cells")
    # In the file z runs faster than x, and y fastest.
    cells = np.repeat(pairs[:, 0] != 0, pairs[:, 1]).reshape(shape[0], shape[2], shape[1])
    return np.ascontiguousarray(cells.transpose(0, 2, 1))


def _read_npz(path: Path) -> np.ndarray:
    found = load_arrays(path)
    if isinstance(found, np.ndarray):
        return inside_cells(found, path)
    with found as content:
        names = set(content.files)
        if {"packed", "resolution"} <= names:
            return read_occupancy(path)
        if "points" in names:
            raise MNIFError(f"{path}: holds {points_kind(names)}, and no grid of voxels; {POINTS_REMEDY}.")
        if {"occupancy", "shape"} <= names:  # of mnif-export-mesh
            shape, bits = tuple(int(n) for n in content["shape"]), content["occupancy"]
            if min(shape, default=0) < 1 or len(bits) != -(-math.prod(shape) // 8):
                raise ValueError(f"{len(bits)} bytes of bits for a grid of {list(shape)}")
            return unpack_bits(bits, shape)
        named = [name for name in _GRID_NAMES if name in names]
        grids = [content[name] for name in (named if len(named) == 1 else content.files)]
        if len(grids) > 1:
            grids = [array for array in grids if array.size > 1]  # single numbers say something about the grid
        if len(grids) != 1:
            raise ValueError(f"arrays {', '.join(sorted(names)) or 'missing'}; expected a single one")
        return inside_cells(grids[0], path)


def points_kind(names: set[str]) -> str:
    """What an .npz with an array of points holds, for a sentence."""
    if "occupancies" in names:
        return "points of the volume with their occupancies (as Occupancy Networks' points.npz does)"
    return "points of a surface"


def _only_array(found: np.ndarray | Arrays) -> np.ndarray:
    if isinstance(found, np.ndarray):
        return found
    raise ValueError("an archive of arrays; name it .npz")


def _box(cells: np.ndarray, path: Path) -> np.ndarray:
    while cells.ndim > 3 and cells.shape[-1] == 1:
        cells = cells[..., 0]
    while cells.ndim > 3 and cells.shape[0] == 1:
        cells = cells[0]
    if cells.ndim == 2 and cells.shape[1] in (3, 4) and len(cells) > 4:
        raise MNIFError(
            f"{path}: an array of shape {list(cells.shape)} holds points or the numbers of cells, and no grid; write "
            "grid = np.zeros((G, G, G), bool) with grid[tuple(cells.T)] = True."
        )
    if cells.ndim != 3 or cells.size == 0:
        raise MNIFError(f"{path}: an array of shape {list(cells.shape)} is no grid of voxels; expected [X, Y, Z].")
    return np.ascontiguousarray(cells)
