"""Occupancy of closed triangle meshes on a regular grid."""

from __future__ import annotations

import numpy as np

from mnif_nerf.errors import MNIFError
from mnif_nerf.scene_box import HALF_EXTENT

MAX_VOXELS = 512
"""Largest resolution that the commands make."""


def check_voxel_resolution(resolution: int) -> None:
    """Refuse a resolution of `--voxels` that makes no sense.

    Raises:
        MNIFError: below 4, or above `MAX_VOXELS`.
    """
    if not 4 <= resolution <= MAX_VOXELS:
        raise MNIFError(f"{resolution} voxels along an edge: must be 4 to {MAX_VOXELS}.")


def occupancy_of_mesh(vertices: np.ndarray, faces: np.ndarray, resolution: int = 64) -> np.ndarray:
    """Which cell centres lie inside one closed mesh, by counting crossings along vertical lines.

    Args:
        vertices, faces: [V, 3] and [F, 3]; every edge must be shared by two faces. The surface may touch
            itself but not overlap itself (overlapping shells cancel: do each alone and join the results).
        resolution: cells of the scene box along each axis.

    Returns:
        bool [G, G, G] in x, y, z order; cell (i, j, k) has its centre at -0.5 + (i + 0.5) / G.

    Raises:
        MNIFError: `resolution` is below 1.
    """
    cells = np.zeros((resolution,) * 3, dtype=bool)
    columns, first_above, _ = column_crossings(vertices, faces, resolution)
    if not len(columns):
        return cells
    # Only where the mesh is: a part of a car covers a small piece of the grid.
    start, end = columns.min(axis=0), columns.max(axis=0) + 1
    size = (*(end - start), resolution + 1)
    place = np.ravel_multi_index((*(columns - start).T, first_above), size)
    odd = (np.bincount(place, minlength=int(np.prod(size))) & 1).astype(bool).reshape(size)
    cells[start[0] : end[0], start[1] : end[1]] = np.logical_xor.accumulate(odd[..., :-1], axis=2)
    return cells


def column_crossings(
    vertices: np.ndarray, faces: np.ndarray, resolution: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the vertical lines through cell centres cross triangles.

    Args:
        vertices, faces: [V, 3] and [F, 3].
        resolution: cells of the scene box along each axis.

    Returns: for each of M crossings its column [M, 2] (x, y), the lowest cell in 0 ... G whose centre lies above it,
        and the sign by which the number of surrounding surfaces changes there, going up: +1 where the triangle faces
        down (the line enters), -1 where it faces up.

    Raises:
        MNIFError: `resolution` is below 1.
    """
    if resolution < 1:
        raise MNIFError(f"occupancy resolution {resolution}: must be 1 or more.")
    cell = 2 * HALF_EXTENT / resolution
    # Grid units, with a shift far below a cell, so that no centre falls exactly on an edge or a vertex.
    shift = np.array([1.7e-6, 2.9e-6, 0.0])
    corners = ((np.asarray(vertices, np.float64) + HALF_EXTENT) / cell - 0.5 - shift)[faces]
    low = np.clip(np.ceil(corners[..., :2].min(1)), 0, resolution).astype(np.int64)
    high = np.clip(np.floor(corners[..., :2].max(1)) + 1, 0, resolution).astype(np.int64)
    sizes = np.maximum(high - low, 0)
    counts = sizes[:, 0] * sizes[:, 1]
    face = np.repeat(np.arange(len(corners)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = low[face] + np.stack([within // sizes[face, 1], within % sizes[face, 1]], axis=1)
    a, b, c = corners[face, 0], corners[face, 1], corners[face, 2]
    weights = np.stack([_area(b, c, columns), _area(c, a, columns), _area(a, b, columns)], axis=1)
    total = weights.sum(axis=1)
    hit = ((weights > 0).all(1) | (weights < 0).all(1)) & (np.abs(total) > 1e-14)
    height = (weights[hit] * np.stack([a[hit, 2], b[hit, 2], c[hit, 2]], axis=1)).sum(1) / total[hit]
    first_above = np.clip(np.ceil(height), 0, resolution).astype(np.int64)
    return columns[hit], first_above, np.where(total[hit] < 0, 1, -1)


def _area(first: np.ndarray, second: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Twice the signed area of the triangles (first, second, point) seen along z."""
    return (first[:, 0] - point[:, 0]) * (second[:, 1] - point[:, 1]) - (first[:, 1] - point[:, 1]) * (
        second[:, 0] - point[:, 0]
    )
