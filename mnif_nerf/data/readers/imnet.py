"""Voxels in the HDF5 layout of IM-NET, in which the paper's ShapeNet came.

A file holds one split, told by "train", "val" or "test" in its name (`all_vox256_img_train.hdf5`); files that name
none are shared out by the program. Read is

    voxels                   uint8 [N, X, Y, Z] or [N, X, Y, Z, 1], above 0.5 inside

and, where there is no such table,

    points_64, values_64     uint8 [N, P, 3] and [N, P, 1]: sampled cells of a 64^3 grid

A point p in 0 ... 255 lies in cell p // 4 (at (p + 1) / 128 - 1 in [-1, 1], within half a sample of its centre). Such
points crowd at the surface; cells without one get the value of the nearest cell that has one. A text file of the same
name (.txt), one line per row, names the shapes; without it they are numbered.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnif_nerf.data.readers.arrays import MOST_INFLATED, require_memory
from mnif_nerf.data.readers.splits import GRID_SPLITS, SPLIT_NAMES, GridSource, share_out
from mnif_nerf.data.readers.voxel_files import LARGEST
from mnif_nerf.data.readers.voxel_values import inside_cells
from mnif_nerf.errors import MNIFError, first_line, require

if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".hdf5", ".h5")
POINT_RESOLUTION = 64
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?![a-z])")
_SMALL = 64 << 20  # bytes that a row may take however small its file is
_POINTS = ("points_64", "values_64")


def hdf5_sources(tables: list[Path]) -> dict[str, tuple[GridSource, ...]]:
    """The shapes of every split of some files, in the order train, val, test.

    Raises:
        MNIFError: h5py is missing, a file is damaged or lacks the tables, or only some files name a split.
    """
    rows: dict[str, list[GridSource]] = {split: [] for split in GRID_SPLITS}
    unnamed: list[GridSource] = []
    for path in tables:
        found = _SPLIT.search(path.stem.lower())
        (rows[SPLIT_NAMES[found[1]]] if found else unnamed).extend(_rows(path))
    if unnamed and any(rows.values()):
        raise MNIFError(f"{unnamed[0].path}: names no split beside files that do; put train, val or test in its name.")
    for split in (*rows.values(), unnamed):
        name, count = Counter(source.name for source in split).most_common(1)[0] if split else ("", 0)
        if count > 1:
            raise MNIFError(f"{tables[0].parent}: {count} shapes are named {name}; give each a name of its own.")
    if unnamed:
        by_name = {source.name: source for source in unnamed}
        rows = {split: [by_name[name] for name in names] for split, names in share_out(list(by_name)).items()}
    return {split: tuple(sources) for split, sources in rows.items() if sources}


class Hdf5Reader:
    """Reads shapes from IM-NET files, which it keeps open until `close`."""

    def __init__(self) -> None:
        self._open: dict[Path, h5py.File] = {}
        self._lock = threading.Lock()  # rows are asked for by several threads

    def read(self, source: GridSource) -> np.ndarray:
        """One shape: bool [X, Y, Z].

        Raises:
            MNIFError: damaged, or of another number of axes.
        """
        path, row = source.path, source.row
        with _damage_told(f"{path}: row {row} cannot be read", "fetch the file again"):
            with self._lock:
                if path not in self._open:
                    self._open[path] = _open(path)
            file = self._open[path]
            if "voxels" in file:
                cells = inside_cells(_row(file["voxels"], source), source)
                cells = cells[..., 0] if cells.ndim == 4 and cells.shape[-1] == 1 else cells
            else:
                cells = _from_points(*(_row(file[name], source) for name in _POINTS))
        if cells.ndim != 3:
            raise MNIFError(f"{path}: row {row} has shape {list(cells.shape)}; expected [X, Y, Z].")
        return cells

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            file.close()
        self._open.clear()


def _row(table: Any, source: GridSource) -> np.ndarray:
    """One row of a table, as large as a row may be.

    Raises:
        MNIFError: it asks for more than `LARGEST` cells along an edge, than could be packed into the file, or than the
            memory holds.
    """
    shape = tuple(int(n) for n in table.shape[1:])
    needed = math.prod(shape) * table.dtype.itemsize
    packed = MOST_INFLATED * source.path.stat().st_size
    if (len(shape) > 2 and max(shape) > LARGEST) or needed > max(packed, _SMALL):
        raise MNIFError(
            f"{source}: asks for {needed / 2**30:.1f} GiB (shape {list(shape)}) in a file of "
            f"{source.path.stat().st_size / 2**20:.1f} MiB; fetch the file again, or write smaller grids."
        )
    require_memory(needed, str(source))
    return np.asarray(table[source.row])


@contextlib.contextmanager
def _damage_told(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except MNIFError:
        raise
    except Exception as error:  # h5py raises what it likes
        raise MNIFError(f"{what} ({first_line(error)}); {remedy}.") from None


def _rows(path: Path) -> list[GridSource]:
    axes: tuple[int, ...]
    with _damage_told(f"{path}: cannot be read as HDF5", "fetch it again"), _open(path) as file:
        keys = sorted(file.keys())
        if "voxels" in keys:
            table, axes = file["voxels"], (4, 5)
        elif set(_POINTS) <= set(keys):
            table, axes = file[_POINTS[0]], (3,)
        else:
            found = ", ".join(keys) or "nothing"
            raise MNIFError(
                f"{path}: holds {found}, but neither voxels nor {' and '.join(_POINTS)}; is it one of IM-NET's files?"
            )
        shape = tuple(int(n) for n in getattr(table, "shape", ()))
        if len(shape) not in axes:
            raise MNIFError(f"{path}: {table.name[1:]} has shape {list(shape)}; expected one of IM-NET's tables.")
        count = shape[0]
        if count > max(1 << 20, MOST_INFLATED * path.stat().st_size):
            raise MNIFError(f"{path}: says {count} shapes, which cannot be in this file; fetch it again.")
    return [GridSource(name, path, row) for row, name in enumerate(_names(path, count))]


def _names(path: Path, count: int) -> list[str]:
    listing = path.with_suffix(".txt")
    if listing.is_file():
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [re.sub(r"[^\w.\-]+", "-", line.strip()) for line in lines if line.strip()]
        if len(names) == count and len(set(names)) == count:
            return names
        print(f"{listing}: {len(names)} names for {count} shapes, or some twice; the shapes are numbered.", flush=True)
    return [f"{path.stem}-{row:06d}" for row in range(count)]


def _open(path: Path) -> Any:
    h5py = require("h5py", "hdf5")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        reason = str(error).splitlines()[0][:120]
        raise MNIFError(f"{path}: cannot be read as HDF5 ({reason}); fetch it again.") from None


def _from_points(points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """bool [64, 64, 64] from points uint8 [P, 3] and values [P, 1], by the nearest point."""
    from scipy import ndimage

    cells = tuple((points.reshape(-1, 3).astype(np.int64) * POINT_RESOLUTION // 256).T)
    known = np.zeros((POINT_RESOLUTION,) * 3, dtype=bool)
    inside = np.zeros_like(known)
    known[cells] = True
    inside[cells] = values.reshape(-1) > 0.5
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return inside[tuple(nearest)]
