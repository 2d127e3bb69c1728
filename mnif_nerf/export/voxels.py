"""Occupancy of a field as voxel files: .binvox (read by trimesh, binvox and many shape tools) and .npz.

Voxels stay in the library's axes: index order [x, y, z], z up, +x forward, +y left.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.density import density_grid, level_of
from mnif_nerf.files import atomic_file
from mnif_nerf.rendering.occupancy import RadianceField

VOXEL_FORMATS = ("binvox", "npz")
_AXES = "index [x, y, z]; +x forward, +y left, +z up"


def field_to_occupancy(
    field: RadianceField,
    resolution: int = 64,
    level: float | None = None,
    cells: Tensor | None = None,
    half_extent: float = 0.5,
    skip_empty: bool = True,
) -> np.ndarray:
    """Which cells are inside the object: bool `[G, G, G]`, density at the cell's centre above `level`.

    Args:
        field: with `density` (see `CompactField`).
        resolution: G.
        level: density of the surface; `level_of` when None.
        cells: bool `[C, C, C]` where the object can be, or None.
        half_extent: half the edge of the box, in world units.
        skip_empty: see `density_grid`; without it the answer is exact in every cell.

    Raises:
        MNIFError: the resolution does not fit in memory, or the field is damaged.
    """
    level = level_of(field, half_extent) if level is None else level
    density = density_grid(field, resolution, half_extent, cells, level=level, skip_empty=skip_empty)
    return (density > level).numpy()


def write_voxels(occupancy: np.ndarray, path: Path | str, half_extent: float = 0.5) -> Path:
    """Write bool `[G, G, G]` as .binvox or .npz (the suffix chooses), atomically.

    Raises:
        MNIFError: an unknown suffix, a grid that is not a cube, or a folder that cannot be written.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in VOXEL_FORMATS:
        raise MNIFError(f"{path}: unknown voxel format {path.suffix!r}; use one of {', '.join(VOXEL_FORMATS)}.")
    occupancy = np.asarray(occupancy, dtype=bool)
    if occupancy.ndim != 3 or len(set(occupancy.shape)) != 1:
        raise MNIFError(f"{path}: voxels of shape {list(occupancy.shape)} are not a cube; expected [G, G, G].")
    with atomic_file(path) as temporary:
        if kind == "binvox":
            temporary.write_bytes(binvox_bytes(occupancy, half_extent))
        else:
            _write_npz(occupancy, temporary, half_extent)
    return path


def binvox_bytes(occupancy: np.ndarray, half_extent: float = 0.5) -> bytes:
    """Bool `[G, G, G]` in binvox format, version 1: a text header, then (value, count <= 255) byte pairs.

    In the file z runs faster than x, and y fastest. `translate` is the box's lower corner and `scale` its
    edge.
    """
    flat = np.asarray(occupancy, dtype=np.uint8).transpose(0, 2, 1).reshape(-1)
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] ^ 1))
    lengths = np.diff(starts, append=len(flat))
    pieces = -(-lengths // 255)
    counts = np.full(pieces.sum(), 255, dtype=np.uint8)
    counts[np.cumsum(pieces) - 1] = lengths - 255 * (pieces - 1)
    pairs = np.stack([np.repeat(flat[starts], pieces), counts], axis=1)
    corner = f"{-half_extent:.9g}"
    size = " ".join(str(n) for n in occupancy.shape)
    header = f"#binvox 1\ndim {size}\ntranslate {corner} {corner} {corner}\nscale {2 * half_extent:.9g}\ndata\n"
    return header.encode() + pairs.tobytes()


def read_npz(path: Path | str) -> tuple[np.ndarray, dict[str, Any]]:
    """Read back a .npz of `write_voxels`.

    Returns:
        bool `[G, G, G]`, and its metadata: bounds `[2, 3]` (world units) and axes (a sentence).

    Raises:
        MNIFError: the file is missing or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise MNIFError(f"{path}: no such file.")
    try:
        with np.load(path, allow_pickle=False) as content:
            shape = tuple(int(n) for n in content["shape"])
            bits = np.unpackbits(content["occupancy"], count=int(np.prod(shape)), bitorder="little")
            return bits.reshape(shape).astype(bool), {
                "bounds": content["bounds"],
                "axes": str(content["axes"]),
            }
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise MNIFError(f"{path}: not voxels written by mnif-export-mesh ({error}).") from None


def _write_npz(occupancy: np.ndarray, path: Path, half_extent: float) -> None:
    bounds = np.array([[-half_extent] * 3, [half_extent] * 3], dtype=np.float32)
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            occupancy=np.packbits(occupancy, bitorder="little"),
            shape=np.array(occupancy.shape, dtype=np.int64),
            bounds=bounds,
            axes=np.array(_AXES),
        )
