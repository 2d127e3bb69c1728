"""Occupancy of a field as voxel files: .binvox (read by trimesh, binvox and many shape tools) and .npz.

Voxels stay in the library's axes: index order [x, y, z], z up, +x forward, +y left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.density import CHUNK, check_resolution, density_grid, field_device, level_of
from mnif_nerf.fields.distance import TRUNCATION, DistanceField
from mnif_nerf.files import atomic_file
from mnif_nerf.rendering.grids import cell_coordinates
from mnif_nerf.rendering.intervals import cell_index
from mnif_nerf.rendering.near_cells import cell_points, distances_at, near_cells
from mnif_nerf.rendering.occupancy import RadianceField

VOXEL_FORMATS = ("binvox", "npz")
_AXES = "index [x, y, z]; +x forward, +y left, +z up"


def field_to_occupancy(
    field: RadianceField,
    resolution: int | Sequence[int] = 64,
    level: float | None = None,
    cells: Tensor | None = None,
    half_extent: float = 0.5,
    skip_empty: bool = True,
) -> np.ndarray:
    """Which cells are inside the object: bool `[X, Y, Z]`, density at the cell's centre above `level`.

    Args:
        field: with `density` (see `CompactField`).
        resolution: cells along the edges X, Y and Z of a centred box whose longest edge is that of the scene box; or
            one number for the scene box itself.
        level: density of the surface; `level_of` when None.
        cells: bool `[C, C, C]` where the object can be, or None.
        half_extent: half the edge of the box, in world units.
        skip_empty: see `density_grid`; without it the answer is exact in every cell.

    Raises:
        MNIFError: the resolution does not fit in memory, or the field is damaged.
    """
    level = level_of(field, half_extent) if level is None else level
    if not isinstance(resolution, int):
        if len(set(resolution)) > 1:
            return _box_density(field, resolution, cells, half_extent) > level
        resolution = resolution[0]
    density = density_grid(field, resolution, half_extent, cells, level=level, skip_empty=skip_empty)
    return (density > level).numpy()


@torch.no_grad()
def distance_occupancy(
    field: DistanceField, resolution: int, level: float = 0.0, cells: Tensor | None = None
) -> np.ndarray:
    """Which cells of the scene box are inside: bool `[G, G, G]`, where the distance at the centre is below `level`.

    Args:
        field: the field; only cells near its surface are evaluated.
        resolution: G.
        level: world units.
        cells: bool `[C, C, C]` where the object can be, or None.

    Raises:
        MNIFError: the resolution does not fit in memory, or the field is damaged.
    """
    check_resolution(resolution, bytes_per_cell=5)
    near, inside = near_cells(field, resolution, level, cells)
    index = near.flatten().nonzero().flatten()
    distance = distances_at(field, cell_points(index, resolution, field.half_extent))
    if not torch.isfinite(distance).all():
        raise MNIFError("the field gives NaN or infinite distances; its weights are damaged, so train it again.")
    inside.view(-1)[index] = distance < level
    return inside.cpu().numpy()


def distance_values(field: DistanceField, resolution: int, cells: Tensor | None = None) -> np.ndarray:
    """Signed distances at the centres of the scene box's cells, float32 `[G, G, G]`, cut to plus or minus `TRUNCATION`.

    Args:
        field: the field; only cells near its surface are evaluated, the others have one of the ends.
        resolution: G.
        cells: bool `[C, C, C]` where the object can be, or None.

    Raises:
        MNIFError: the resolution does not fit in memory, or the field is damaged.
    """
    check_resolution(resolution, bytes_per_cell=9)
    near, inside = near_cells(field, resolution, 0.0, cells)
    values = torch.where(inside, -TRUNCATION, TRUNCATION)
    index = near.flatten().nonzero().flatten()
    distance = distances_at(field, cell_points(index, resolution, field.half_extent))
    if not torch.isfinite(distance).all():
        raise MNIFError("the field gives NaN or infinite distances; its weights are damaged, so train it again.")
    values.view(-1)[index] = distance.clamp(-TRUNCATION, TRUNCATION)
    return values.cpu().numpy()


@torch.no_grad()
def _box_density(field: RadianceField, shape: Sequence[int], cells: Tensor | None, half_extent: float) -> np.ndarray:
    """Densities `[*shape]` at the centres of a box's cells, 0 outside `cells`."""
    check_resolution(max(shape), bytes_per_cell=5)
    device, parts = field_device(field), []
    active = None if cells is None else cells.to(device, torch.bool).flatten()
    for part in torch.arange(math.prod(shape), device=device).split(CHUNK):
        points = cell_coordinates(part, shape).T * half_extent
        density = field.density(points)
        if active is not None and cells is not None:
            density = torch.where(active[cell_index(points, len(cells), half_extent)], density, 0.0)
        parts.append(density.float().cpu())
    found = torch.cat(parts).reshape(*shape)
    if not torch.isfinite(found).all():
        raise MNIFError("the field gives NaN or infinite densities; its weights are damaged, so train it again.")
    return found.numpy()


def write_voxels(occupancy: np.ndarray, path: Path | str, half_extent: float = 0.5) -> Path:
    """Write bool `[X, Y, Z]` as .binvox or .npz (the suffix chooses), atomically.

    A .binvox is always a cube: a box is filled up with empty cells on all sides. A .npz keeps the shape.

    Args:
        occupancy: cells of a centred box.
        path: path of the file.
        half_extent: half the longest edge of the box, world units.

    Raises:
        MNIFError: an unknown suffix, an array without three axes, or a folder that cannot be written.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in VOXEL_FORMATS:
        raise MNIFError(f"{path}: unknown voxel format {path.suffix!r}; use one of {', '.join(VOXEL_FORMATS)}.")
    occupancy = np.asarray(occupancy, dtype=bool)
    if occupancy.ndim != 3:
        raise MNIFError(f"{path}: voxels of shape {list(occupancy.shape)} are no solid; expected [X, Y, Z].")
    with atomic_file(path) as temporary:
        if kind == "binvox":
            temporary.write_bytes(binvox_bytes(occupancy, half_extent))
        else:
            _write_npz(occupancy, temporary, half_extent)
    return path


def binvox_bytes(occupancy: np.ndarray, half_extent: float = 0.5) -> bytes:
    """Bool `[X, Y, Z]` in binvox format, version 1: a text header, then (value, count <= 255) byte pairs.

    In the file z runs faster than x, and y fastest. `translate` is the cube's lower corner and `scale` its
    edge. Where a box is filled up by an odd number of cells, the cube is shifted by half a cell to fit.
    """
    occupancy, shift = padded_to_cube(occupancy)
    edge = 2 * half_extent / len(occupancy)
    flat = np.asarray(occupancy, dtype=np.uint8).transpose(0, 2, 1).reshape(-1)
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] ^ 1))
    lengths = np.diff(starts, append=len(flat))
    pieces = -(-lengths // 255)
    counts = np.full(pieces.sum(), 255, dtype=np.uint8)
    counts[np.cumsum(pieces) - 1] = lengths - 255 * (pieces - 1)
    pairs = np.stack([np.repeat(flat[starts], pieces), counts], axis=1)
    corner = " ".join(f"{-half_extent + edge * by:.9g}" for by in shift)
    size = " ".join(str(n) for n in occupancy.shape)
    header = f"#binvox 1\ndim {size}\ntranslate {corner}\nscale {2 * half_extent:.9g}\ndata\n"
    return header.encode() + pairs.tobytes()


def padded_to_cube(occupancy: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    """Cells `[X, Y, Z]` of a box in the cube `[G, G, G]` of its longest edge, with empty cells around them.

    Returns:
        the cube, and by how much of a cell it is off centre along each axis: 0 or 0.5.
    """
    size = max(occupancy.shape)
    missing = [size - count for count in occupancy.shape]
    padded = np.pad(occupancy, [(each // 2, each - each // 2) for each in missing])
    return padded, tuple(0.5 * (each % 2) for each in missing)


def _write_npz(occupancy: np.ndarray, path: Path, half_extent: float) -> None:
    reach = half_extent * np.array(occupancy.shape) / max(occupancy.shape)
    bounds = np.stack([-reach, reach]).astype(np.float32)
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            occupancy=np.packbits(occupancy, bitorder="little"),
            shape=np.array(occupancy.shape, dtype=np.int64),
            bounds=bounds,
            axes=np.array(_AXES),
        )
