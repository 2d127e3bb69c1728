"""Rendering a grid of voxels as it is: the truth beside a model's surfaces."""

from __future__ import annotations

import torch
from torch import Tensor

from mnif_nerf.rendering.cameras import Intrinsics, pixel_rays
from mnif_nerf.rendering.intervals import box_interval
from mnif_nerf.rendering.surface import shade
from mnif_nerf.scene_box import HALF_EXTENT


def render_cells(cells: Tensor, pose: Tensor, camera: Intrinsics) -> Tensor:
    """The faces of the occupied cells, shaded as the model's surfaces are, on white.

    Every ray walks from cell to cell (Amanatides and Woo 1987), all rays at once.

    Args:
        cells: bool `[X, Y, Z]`, index [x, y, z]; the box that they fill is centred, its longest
            edge that of the scene box.
        pose: camera to world `[4, 4]`.
        camera: camera of the picture.

    Returns:
        `[H, W, 3]` in [0, 1].
    """
    size = torch.tensor(cells.shape)
    edge = 2 * HALF_EXTENT / max(cells.shape)
    half = 0.5 * edge * size
    origins, directions = pixel_rays(pose, camera)
    directions = torch.where(directions.abs() < 1e-7, 1e-7, directions)
    near, far = box_interval(origins, directions, half)
    rays = (far > near).nonzero().flatten()
    origin, direction = origins[rays], directions[rays]
    forward = direction.sign()
    # Where the ray enters the box, it crosses the face of the axis it reaches last.
    axis = ((-half * forward - origin) / direction).argmax(dim=1, keepdim=True)
    entry = origin + near[rays, None] * direction
    cell = ((entry + half) / edge).floor().clamp(min=0).minimum(size - 1)
    next_face = ((cell + (forward > 0)) * edge - half - origin) / direction
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
