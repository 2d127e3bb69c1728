"""Cameras around a voxel shape or before an image, and what they should see: the truth beside the model's pictures.

Imports nothing of nerfstudio.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mnif_nerf.rendering.cameras import DEFAULT_RADIUS, Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.intervals import box_interval
from mnif_nerf.rendering.surface import shade

HALF_EXTENT = 0.5


def orbit_poses(split: str) -> Tensor:
    """Cameras `[V, 4, 4]` around a shape: eight for "train", four others, from higher up, for all else."""
    count, elevation, first = (8, 20.0, 0.0) if split == "train" else (4, 35.0, 22.5)
    return torch.stack([orbit_pose(elevation, first + 360.0 * k / count) for k in range(count)])


def front_camera(resolution: int) -> tuple[Tensor, Intrinsics]:
    """A camera `[1, 4, 4]` whose pixels are those of an image of `resolution`² on the plane x = 0."""
    focal_over_width = DEFAULT_RADIUS / (2 * HALF_EXTENT)
    return orbit_pose(0.0, 0.0)[None], Intrinsics.default(resolution, focal_over_width)


def shape_picture(cells: Tensor, pose: Tensor, camera: Intrinsics) -> Tensor:
    """The faces of the occupied cells, shaded as the model's surfaces are, on white.

    Every ray walks from cell to cell (Amanatides and Woo 1987), all rays at once.

    Args:
        cells: bool `[G, G, G]`, index [x, y, z].
        pose: camera to world `[4, 4]`.
        camera: of the picture.

    Returns:
        `[H, W, 3]` in [0, 1].
    """
    size, edge = len(cells), 2 * HALF_EXTENT / len(cells)
    origins, directions = pixel_rays(pose, camera)
    directions = torch.where(directions.abs() < 1e-7, 1e-7, directions)
    near, far = box_interval(origins, directions, HALF_EXTENT)
    rays = (far > near).nonzero().flatten()
    origin, direction = origins[rays], directions[rays]
    forward = direction.sign()
    # Where the ray enters the box, it crosses the face of the axis it reaches last.
    axis = ((-HALF_EXTENT * forward - origin) / direction).argmax(dim=1, keepdim=True)
    entry = origin + near[rays, None] * direction
    cell = ((entry + HALF_EXTENT) / edge).floor().clamp(0, size - 1)
    next_face = ((cell + (forward > 0)) * edge - HALF_EXTENT - origin) / direction
    rgb = torch.ones(len(origins), 3)
    while len(rays):
        x, y, z = cell.long().unbind(dim=1)
        hit = cells[x, y, z]
        normal = torch.zeros_like(direction[hit]).scatter(1, axis[hit], -forward[hit].gather(1, axis[hit]))
        rgb[rays[hit]] = shade(normal, direction[hit])
        axis = next_face.argmin(dim=1, keepdim=True)
        cell = cell.scatter_add(1, axis, forward.gather(1, axis))
        next_face = next_face.scatter_add(1, axis, edge / direction.abs().gather(1, axis))
        on = ~hit & ((cell >= 0) & (cell < size)).all(dim=1)
        rays, axis, cell, next_face = rays[on], axis[on], cell[on], next_face[on]
        direction, forward = direction[on], forward[on]
    return rgb.view(camera.height, camera.width, 3)
