"""Points in and around voxels, with signed distances from the exact distance transform; without colour."""

from __future__ import annotations

import numpy as np

from mnif_nerf.data.geometry.raytrace import face_normals
from mnif_nerf.data.geometry.surface_points import (
    HALF_EXTENT,
    NEAR_NOISE,
    WIDE_NOISE,
    PointCounts,
    SurfacePoints,
    from_lattice,
    to_lattice,
)
from mnif_nerf.rendering.cell_distances import cell_distances

_MARGIN = 1  # empty cells around the cube, so that solids that touch its side are closed


def draw_voxel_points(cells: np.ndarray, counts: PointCounts, generator: np.random.Generator) -> SurfacePoints:
    """Draw points of a solid that fills cells; within each kind they come in random order.

    The surface lies midway between the centres of filled and empty cells. Distances are exact at the centres of cells
    (to the nearest centre of the other kind, less half a cell) and interpolated between them.

    Args:
        cells: bool [X, Y, Z]; the longest edge spans the cube [-0.5, 0.5].
        counts: how many of each kind.
        generator: where they come from.
    """
    import mcubes
    from scipy import ndimage

    size = 2 * HALF_EXTENT / max(cells.shape)
    around_grid = [_MARGIN + -(-(max(cells.shape) - count) // 2) for count in cells.shape]  # as wide as the cube
    padded = np.pad(cells, [(count, count) for count in around_grid])
    grid = cell_distances(padded, size)
    first = (0.5 - np.array(padded.shape) / 2) * size  # centre of the first cell of the padded grid

    def distances(points: np.ndarray) -> np.ndarray:
        place = (points - first) / size
        return ndimage.map_coordinates(grid, place.T, order=1, mode="nearest", prefilter=False)

    corners, faces = mcubes.marching_cubes(grid, 0.0)
    corners = corners * size + first
    normals, double = face_normals(corners, faces)
    middles = corners[faces].mean(axis=1)
    flipped = np.mean(distances(middles + 0.25 * size * normals) < 0) > 0.5
    normals = -normals if flipped else normals
    sums = np.cumsum(double)
    around = counts.wide + counts.near
    face = np.searchsorted(sums, generator.random(around + counts.surface) * sums[-1]).clip(max=len(faces) - 1)
    weights = generator.dirichlet((1.0, 1.0, 1.0), len(face))
    drawn = np.einsum("pk,pkc->pc", weights, corners[faces[face]])
    drawn[: counts.wide] += generator.normal(0.0, WIDE_NOISE, (counts.wide, 3))
    drawn[counts.wide : around] += generator.normal(0.0, NEAR_NOISE, (counts.near, 3))
    uniform = generator.uniform(-HALF_EXTENT, HALF_EXTENT, (counts.uniform, 3))
    where = from_lattice(to_lattice(np.concatenate([uniform, drawn])))
    distance = distances(where.astype(np.float64)).astype(np.float32)
    kind = np.repeat(np.arange(4, dtype=np.uint8), counts.by_kind)
    distance[kind == 3] = 0.0
    found = np.full((len(where), 3), np.nan, np.float32)
    found[kind == 3] = normals[face[around:]]
    return SurfacePoints(where, distance, None, kind, found)
