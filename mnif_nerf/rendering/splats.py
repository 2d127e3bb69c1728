"""Rendering points of a surface as they are: the truth beside a model's surfaces."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial import KDTree
from torch import Tensor

from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.surface import shade

_DEEP = 0.02  # world units: what lies farther behind the nearest point of a pixel is hidden
_AROUND = 24  # points beside one that may hide it
_BEHIND = 0.006  # world units: what lies farther behind such a plane is hidden by it
_HIDING = 4  # of which so many do
_EDGE_ON = 0.05  # least cosine between a plane's normal and a ray
_FILLING = 5  # times as large: squares that fill holes
_FINE = 512  # pixels along an edge that smooth pictures are drawn with
_GREY = 0.75
_PAINT = 0.77  # about what `shade` gives where light falls straight on matt paint


class KnownSurface(Protocol):
    """Points `[P, 3]` of a surface, outward normals and, where they are known, colours: such as the `SurfacePoints` of
    `mnif_nerf.data.geometry`."""

    @property
    def points(self) -> np.ndarray:
        """World units."""

    @property
    def normals(self) -> np.ndarray:
        """Unit vectors."""

    @property
    def color(self) -> np.ndarray | None:
        """In [0, 1]."""


def render_points(surface: KnownSurface, pose: Tensor, camera: Intrinsics, smooth: bool = False) -> Tensor:
    """`render_splats` of arrays; `smooth` draws several times as finely and averages."""
    parts = (surface.points, surface.normals, surface.color)
    points, normals, color = (None if part is None else torch.from_numpy(part) for part in parts)
    assert points is not None
    assert normals is not None
    finer = max(2, _FINE // camera.width) if smooth else 1
    picture = render_splats(points, normals, color, pose, camera.scaled(finer))
    return F.avg_pool2d(picture.permute(2, 0, 1), finer).permute(1, 2, 0)


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
    drawn = (paint * light).clamp(0.0, 1.0)
    shown = _in_front(row, column, depth, rays[seen], normals, camera.focal)
    row, column, depth, drawn = row[shown], column[shown], depth[shown], drawn[shown]
    picture, covered = _squares(row, column, depth, drawn, camera, edge)
    # Holes between the squares, but nothing beyond the outline, are filled by larger ones.
    # The colours there are a guess anyhow, so every other point serves.
    few = slice(None, None, 2)
    coarse, beneath = _squares(row[few], column[few], depth[few], drawn[few], camera, _FILLING * edge)
    holes = _closed(covered, _FILLING * edge) & ~covered & beneath
    return torch.where(holes[..., None], coarse, picture)


def _in_front(row: Tensor, column: Tensor, depth: Tensor, rays: Tensor, normals: Tensor, focal: float) -> Tensor:
    """Which points bool `[P]` are not seen through the gaps of nearer ones: of the points beside them in the picture,
    too few span a plane that their ray meets before it meets them.

    Args:
        row, column, depth: `[P]`, places in the picture, and distances along its axis.
        rays: `[P, 3]` from the camera to the points.
        normals: `[P, 3]`.
        focal: focal length in pixels.
    """
    if len(depth) <= _AROUND:
        return torch.ones(len(depth), dtype=torch.bool)
    places = torch.stack([row, column], dim=1).numpy()
    beside, around = (torch.from_numpy(part[:, 1:]) for part in KDTree(places).query(places, _AROUND + 1))
    others = normals[around]
    along = (others * rays[:, None]).sum(dim=-1)  # below 0, as the planes face the camera, or hardly so at an edge
    met = (others * rays[around]).sum(dim=-1) / along.clamp(max=-_EDGE_ON * rays.norm(dim=1, keepdim=True))
    way = beside * depth[:, None] / focal  # world units; round a corner, a plane is in front by about as much
    return ((1 - met) * depth[:, None] > _BEHIND + way).sum(dim=1) < _HIDING


def _squares(
    row: Tensor, column: Tensor, depth: Tensor, colors: Tensor, camera: Intrinsics, edge: int
) -> tuple[Tensor, Tensor]:
    """Squares of `edge` pixels around places (row, column) `[P]`, nearest ones first: the picture `[H, W, 3]` on white,
    and which pixels are covered, bool `[H, W]`."""
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
    total = torch.zeros(pixels, 3).index_add(0, pixel, colors[owner])
    count = torch.zeros(pixels).index_add(0, pixel, torch.ones(len(pixel)))
    picture = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), 1.0)
    shape = (camera.height, camera.width)
    return picture.view(*shape, 3), (count > 0).view(shape)


def _closed(covered: Tensor, edge: int) -> Tensor:
    """Which pixels bool `[H, W]` are covered or lie in a hole that a square of `edge` pixels closes."""
    size = 2 * (edge // 2) + 1
    grown = ndimage.maximum_filter(covered.numpy().view(np.uint8), size, mode="constant")
    return torch.from_numpy(ndimage.minimum_filter(grown, size, mode="constant", cval=1) > 0)
