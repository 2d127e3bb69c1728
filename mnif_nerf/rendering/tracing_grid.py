"""Distances of a field kept on a grid, so that rays ask the network little more than once where they meet the surface.

Coarse cells that may hold surface are divided into bricks of 4 x 4 x 4 parts with distances at their corners, linear
between them. Where something thin may hide between corners, parts are marked as rough: there rays ask the field itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mnif_nerf.fields.distance import TRUNCATION, TRUST, DistanceField
from mnif_nerf.rendering.grid_march import FREE, PARTS, SOLID
from mnif_nerf.rendering.near_cells import distances_at, field_device
from mnif_nerf.rendering.occupancy import resize_cells
from mnif_nerf.rendering.surface import SurfaceGrid

RESOLUTION = 48  # coarse cells: their half diagonal is below what distances are learned to
# Of a part's edge: a distance foreseen below the first, though it is higher by the second, tells of something thin.
_CLOSE, _BENT = 0.05, 0.35
_MOST_BRICKS = 24_000  # a field with more of them is a sponge; it is asked itself, not kept


class TracingGrid(SurfaceGrid):
    """An occupancy grid whose cells at the surface hold bricks of distances.

    Args:
        cells: bool `[G, G, G]`: cells that hold surface or inside.
        index: int32 `[G^3]`: a cell's brick, or -1 where nothing is, or -2 where all is inside.
        steps: `[B, 5, 5, 5]` world units: the believed share of the distance at the corners of a brick's parts.
        rough: uint8 `[B, 4, 4, 4]`: parts in which the field itself has to be asked.
        half_extent: half the edge of the cube the grid covers.
    """

    def __init__(self, cells: Tensor, index: Tensor, steps: Tensor, rough: Tensor, half_extent: float = 0.5) -> None:
        super().__init__(cells, torch.zeros(cells.shape, device=cells.device), half_extent)
        self.index, self.steps, self.rough = index.contiguous(), steps.contiguous(), rough.contiguous()


@torch.no_grad()
def distance_grid(field: DistanceField, resolution: int = RESOLUTION, bounds: Tensor | None = None) -> TracingGrid:
    """The grid of a field over its scene box, on the field's device.

    Args:
        field: the field.
        resolution: G, coarse cells along an edge.
        bounds: bool `[g, g, g]` outside which nothing exists, or None.
    """
    device, half = field_device(field), field.half_extent
    corners = torch.arange((resolution + 1) ** 3, device=device)
    coarse = TRUST * distances_at(field, _corner_points(corners, resolution, half)).view((resolution + 1,) * 3)
    near = _near(_extreme(coarse, torch.minimum), _extreme(coarse, torch.maximum), resolution, half)
    inside = coarse[:-1, :-1, :-1] < 0
    if bounds is not None:
        allowed = resize_cells(bounds.to(device), resolution)
        near, inside = near & allowed, inside & allowed
    index = torch.where(inside, SOLID, FREE).to(torch.int32).flatten()
    bricks = near.flatten().nonzero().flatten()
    if len(bricks) > _MOST_BRICKS:
        steps = torch.ones(1, PARTS + 1, PARTS + 1, PARTS + 1, device=device)
        rough = torch.ones(1, PARTS, PARTS, PARTS, dtype=torch.uint8, device=device)
        index[bricks] = 0
        return TracingGrid(near | inside, index, steps, rough, half)
    kept, steps, rough = _filled(field, coarse, _place(bricks, resolution))
    dropped, bricks = bricks[~kept], bricks[kept]
    near.view(-1)[dropped] = False
    index[bricks] = torch.arange(len(bricks), dtype=torch.int32, device=device)
    return TracingGrid(near | inside, index, steps, rough, half)


def _filled(field: DistanceField, coarse: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the cells at `place` `[C, 3]` get a brick, bool `[C]`, and `steps` and `rough` of a `TracingGrid`.

    Args:
        field: the field.
        coarse: steps at the corners `[G + 1, G + 1, G + 1]` of the cells.
        place: `[C, 3]` int64.
    """
    half = field.half_extent
    middle = _refined(field, coarse, place)
    size = len(middle) - 1
    values = middle.view(-1)[_around(2 * place, size, 0, 2)]
    kept = _near(_extreme(values, torch.minimum), _extreme(values, torch.maximum), size, half).flatten(1).any(dim=1)
    place, values = place[kept], values[kept]
    # Halves that the surface crosses are divided again; in the others distances are linear enough.
    known = middle.view(-1)[_around(2 * place, size, -1, 3)]
    crossed = (_extreme(values, torch.minimum) <= 0) != (_extreme(values, torch.maximum) <= 0)
    divided = crossed | _hides(known, TRUST * 2 * half / size) | ~_extreme(values, torch.maximum).isfinite()
    brick, *part = divided.nonzero().T
    finest = _refined(field, middle, 2 * place[brick] + torch.stack(part, dim=1))
    size = len(finest) - 1
    steps = F.interpolate(values[:, None], (PARTS + 1,) * 3, mode="trilinear", align_corners=True)[:, 0]
    corners, flat = _around(PARTS * place, size, 0, PARTS), finest.view(-1)
    own = flat[corners]
    steps = torch.where(own.isinf(), steps, own)
    flat[corners] = steps
    hides = _hides(flat[_around(PARTS * place, size, -1, PARTS + 1)], TRUST * 2 * half / size)
    return kept, steps, (hides | ~_extreme(steps, torch.maximum).isfinite()).to(torch.uint8)


def _refined(field: DistanceField, steps: Tensor, cells: Tensor) -> Tensor:
    """Steps on a grid twice as fine `[2 n + 1, 2 n + 1, 2 n + 1]`, infinite where they are not known.

    Args:
        field: asked at the new corners in the cells.
        steps: `[n + 1, n + 1, n + 1]`.
        cells: places `[N, 3]` in the grid of n cells.
    """
    size = 2 * (len(steps) - 1)
    out = torch.full((size + 1,) * 3, torch.inf, device=steps.device)
    out[::2, ::2, ::2] = steps
    flat, corners = out.view(-1), _around(2 * cells, size, 0, 2).flatten()
    asked = torch.zeros(flat.shape, dtype=torch.bool, device=steps.device)
    asked[corners[flat[corners].isinf()]] = True
    index = asked.nonzero().flatten()
    flat[index] = TRUST * distances_at(field, _corner_points(index, size, field.half_extent))
    return out


def _hides(steps: Tensor, unit: float) -> Tensor:
    """Parts bool `[B, K, K, K]` that may hold a piece of the solid of which no corner of theirs tells.

    Along an edge of such a part steps fall from the corner before towards zero, and are higher again at the next; or a
    single corner lies inside, and the solid is too thin there for what is linear between corners.

    Args:
        steps: `[B, K + 3, K + 3, K + 3]` at the corners of K^3 parts and one around them; infinite where not known.
        unit: step across a part.
    """
    steps = torch.where(steps < torch.inf, steps, torch.nan)  # of which nothing is true below
    count = steps.shape[1] - 3
    out = torch.zeros(len(steps), count, count, count, dtype=torch.bool, device=steps.device)
    for axis in (1, 2, 3):
        line = steps
        for other in {1, 2, 3} - {axis}:
            line = line.narrow(other, 1, count + 1)
        before, low, high, after = (line.narrow(axis, k, count) for k in range(4))
        doubt = torch.zeros(low.shape, dtype=torch.bool, device=steps.device)
        for here, there, behind in ((low, high, before), (high, low, after)):
            foreseen = 2 * here - behind
            doubt |= (foreseen < _CLOSE * unit) & (there - foreseen > _BENT * unit)
        doubt &= (low > 0) & (high > 0)
        doubt |= ((low > 0) & (high <= 0) & (after > 0)) | ((before > 0) & (low <= 0) & (high > 0))
        for other in {1, 2, 3} - {axis}:
            doubt = doubt.narrow(other, 0, count) | doubt.narrow(other, 1, count)
        out |= doubt
    return out


def _place(index: Tensor, size: int) -> Tensor:
    """Places `[N, 3]` of cells with flat index `[N]` (x-major) in a grid of `size` cells."""
    return torch.stack([index // size**2, index // size % size, index % size], dim=1)


def _around(place: Tensor, size: int, first: int, last: int) -> Tensor:
    """Flat index `[N, k, k, k]` of the corners `first` to `last` from the one at `place` `[N, 3]`, within the grid."""
    offsets = torch.arange(first, last + 1, device=place.device)
    x, y, z = ((place[:, axis : axis + 1] + offsets).clamp(0, size) for axis in range(3))
    return (x[:, :, None, None] * (size + 1) + y[:, None, :, None]) * (size + 1) + z[:, None, None, :]


def _corner_points(index: Tensor, size: int, half_extent: float) -> Tensor:
    """Corners `[N, 3]` (world units) of the grid of `size` cells with flat index `[N]`."""
    return _place(index, size + 1) * (2 * half_extent / size) - half_extent


def _near(lowest: Tensor, highest: Tensor, size: int, half_extent: float) -> Tensor:
    """Which cells of a grid of `size` may hold surface, by the least and the largest step at their corners."""
    reach = min(math.sqrt(3.0) * half_extent / size, TRUST * TRUNCATION)
    return ~((lowest >= reach) | (highest <= -reach))  # NaN counts as near


def _extreme(values: Tensor, which: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The least or largest of the values at the corners of each cell, along the last three axes."""
    for axis in (-1, -2, -3):
        count = values.shape[axis] - 1
        values = which(values.narrow(axis, 0, count), values.narrow(axis, 1, count))
    return values
