"""Rendering points of a surface as they are: the truth beside a model's surfaces."""

from __future__ import annotations

import torch
from torch import Tensor

from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.surface import shade

_DEEP = 0.02  # world units: what lies farther behind the nearest point of a pixel is hidden
_GREY = 0.75
_PAINT = 0.77  # about what `shade` gives where light falls straight on matt paint


@torch.no_grad()
def render_splats(
    points: Tensor, normals: Tensor, colors: Tensor | None, pose: Tensor, camera: Intrinsics, edge: int = 0
) -> Tensor:
    """Points of a surface as little squares, in their colours and shaded as the model's surfaces are, on white.

    Args:
        points: `[P, 3]` world units.
        normals: `[P, 3]` outward; points that look away are not drawn.
        colors: `[P, 3]` in [0, 1]; grey where None.
        pose: camera to world `[4, 4]`.
        camera: camera of the picture.
        edge: of a square, pixels; 0 takes what leaves few holes.

    Returns:
        `[H, W, 3]` in [0, 1].
    """
    rays = points - pose[:3, 3]
    directions = rays / rays.norm(dim=1, keepdim=True)
    local = rays @ pose[:3, :3]
    seen = ((normals * directions).sum(dim=1) < 0) & (local[:, 2] > 0)
    local, normals, directions = local[seen], normals[seen], directions[seen]
    paint = points.new_full((len(local), 3), _GREY) if colors is None else colors[seen]
    light = shade(normals, directions).mean(dim=1, keepdim=True) / _PAINT
    depth = local[:, 2]
    column = camera.focal * local[:, 0] / depth + camera.cx
    row = camera.focal * local[:, 1] / depth + camera.cy
    if edge == 0:
        area = (column.max() - column.min()) * (row.max() - row.min()) if len(depth) else torch.tensor(0.0)
        edge = max(1, min(9, round(float((3.0 * area / max(len(depth), 1)).sqrt()))))
    offsets = torch.arange(edge) - (edge - 1) / 2
    rows = (row[:, None, None] + offsets[:, None]).floor().long().expand(-1, edge, edge).reshape(-1)
    columns = (column[:, None, None] + offsets).floor().long().expand(-1, edge, edge).reshape(-1)
    owner = torch.arange(len(depth)).repeat_interleave(edge * edge)
    within = (rows >= 0) & (rows < camera.height) & (columns >= 0) & (columns < camera.width)
    pixel, owner = (rows * camera.width + columns)[within], owner[within]
    pixels = camera.height * camera.width
    nearest = torch.full((pixels,), torch.inf).scatter_reduce(0, pixel, depth[owner], "amin")
    front = depth[owner] < nearest[pixel] + _DEEP
    pixel, owner = pixel[front], owner[front]
    drawn = (paint * light).clamp(0.0, 1.0)
    total = torch.zeros(pixels, 3).index_add(0, pixel, drawn[owner])
    count = torch.zeros(pixels).index_add(0, pixel, torch.ones(len(pixel)))
    picture = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), 1.0)
    return picture.view(camera.height, camera.width, 3)
