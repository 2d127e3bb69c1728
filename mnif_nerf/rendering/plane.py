"""Pictures of image fields: pixel by pixel, and as a plane in the world that a camera looks at.

The plane is x = 0, from -0.5 to 0.5 along y and z, and faces +x. Seen from there, rows run down
(-z) and columns to the right (+y); from behind the picture is mirrored, like a slide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.heads import color_from_raw
from mnif_nerf.rendering.alpha import has_alpha, over_white
from mnif_nerf.rendering.grids import cell_coordinates
from mnif_nerf.rendering.intervals import box_interval
from mnif_nerf.scene_box import HALF_EXTENT

_CHUNK = 65536  # points evaluated together, which bounds the memory


@torch.no_grad()
def render_image(compact: CompactField, shape: int | Sequence[int]) -> Tensor:
    """The picture of an image field, at any resolution.

    Args:
        compact: a field of two coordinates (row, column).
        shape: (H, W) pixels, or one number for a square; the field is read at their centres.

    Returns:
        `[H, W, C]` in [0, 1], on the field's device; of four channels, colours premultiplied.
    """
    device = compact.weights[0].device
    height, width = (shape, shape) if isinstance(shape, int) else shape
    pixels = torch.arange(height * width, device=device).split(_CHUNK)
    parts = [_colors(compact, cell_coordinates(part, (height, width))) for part in pixels]
    return torch.cat(parts, dim=1).T.reshape(height, width, -1)


@torch.no_grad()
def render_plane(
    compact: CompactField,
    origins: Tensor,
    directions: Tensor,
    shape: Sequence[int] = (1, 1),
) -> dict[str, Tensor]:
    """Rays that meet the picture on its plane, over a white background.

    Args:
        compact: a field of two coordinates (row, column) and one, three or four channels.
        origins, directions: `[R, 3]` world units; directions of unit length.
        shape: (H, W) of the picture, for its proportions; its longer edge is one unit long.

    Returns:
        `rgb` `[R, 3]` in [0, 1], grey repeated; `depth` `[R, 1]`, the distance to the plane (where the ray misses
        the picture, to the far side of the scene box); and `accumulation` `[R, 1]`, on the picture its alpha or 1,
        and 0 beside it. A ray along the plane, or with the plane behind it, misses.
    """
    distance = -origins[:, 0] / directions[:, 0]  # infinite or NaN along the plane, which no comparison lets pass
    points = origins + distance.unsqueeze(1) * directions
    at = torch.stack([-points[:, 2], points[:, 1]]) / HALF_EXTENT
    reach = torch.tensor([count / max(shape) for count in shape], dtype=at.dtype, device=at.device).unsqueeze(1)
    hit = (distance > 0) & (at.abs() <= reach).all(dim=0)
    near, far = box_interval(origins, directions, HALF_EXTENT)
    rgb, accumulation = origins.new_ones(len(origins), 3), hit.unsqueeze(1).to(origins.dtype)
    for rays in hit.nonzero().flatten().split(_CHUNK):
        if len(rays):
            colors = _colors(compact, at[:, rays]).T.to(rgb.dtype)
            rgb[rays] = over_white(colors).expand(-1, 3)
            if has_alpha(colors):
                accumulation[rays] = colors[:, 3:]
    depth = torch.where(hit, distance, torch.maximum(far, near))
    return {"rgb": rgb, "depth": depth.unsqueeze(1), "accumulation": accumulation}


def _colors(compact: CompactField, coordinates: Tensor) -> Tensor:
    """Colours `[C, N]` at field coordinates `[2, N]`."""
    return color_from_raw(compact.evaluate(coordinates), compact.head)


@torch.no_grad()
def render_texture(picture: Tensor, origins: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """Rays that meet a picture on the plane x = 0, its longest edge one unit long, over a white background.

    Args:
        picture: `[H, W, 3]` in [0, 1]; the nearest pixel counts.
        origins, directions: `[R, 3]` world units; directions of unit length.

    Returns:
        as `render_plane`.
    """
    size = origins.new_tensor([*picture.shape[:2]])
    distance = -origins[:, 0] / directions[:, 0]
    points = origins + distance.unsqueeze(1) * directions
    place = torch.stack([-points[:, 2], points[:, 1]], dim=1) * size.max() + 0.5 * size  # in pixels
    hit = (distance > 0) & ((place >= 0) & (place <= size)).all(dim=1)
    row, column = place[hit].floor().long().minimum(size.long() - 1).unbind(dim=1)
    rgb = origins.new_ones(len(origins), 3)
    rgb[hit] = picture[row, column].to(rgb.dtype)
    near, far = box_interval(origins, directions, HALF_EXTENT)
    depth = torch.where(hit, distance, torch.maximum(far, near))
    return {"rgb": rgb, "depth": depth.unsqueeze(1), "accumulation": hit.unsqueeze(1).to(rgb.dtype)}
