"""Rays of several fields at a time, their small networks as a batch: small pictures of many objects keep a GPU busy.

The samples are those of `mnif_nerf.rendering.views`, and so are the pictures, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.evaluate import evaluate
from mnif_nerf.fields.heads import color_from_raw, density_from_raw
from mnif_nerf.fields.network import join_flat
from mnif_nerf.rendering.intervals import box_interval
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.views import DEFAULT_STEP, Rays, points_together, rays_together, render_chunk

_BLOCK = 1024  # points that one network takes at a time; the last block of each is filled up


def alike(fields: Sequence[CompactField], grids: Sequence[OccupancyGrid]) -> bool:
    """Whether these fields, each with its grid, can be rendered together."""
    forms = {(field.form, field.head) for field in fields}
    return len(forms) == 1 and len({(grid.resolution, grid.half_extent) for grid in grids}) == 1


@torch.no_grad()
def render_fields(
    fields: Sequence[CompactField], grids: Sequence[OccupancyGrid], origins: Tensor, directions: Tensor, owners: Tensor
) -> Tensor:
    """Colours `[R, 3]` in [0, 1] of rays over a white background, as `render_rays` gives them of each field.

    On a GPU the host waits once, and three times in every chunk of rays.

    Args:
        fields: B collapsed fields that are `alike`.
        grids: occupancy of each.
        origins, directions: `[R, 3]` world units; directions of unit length.
        owners: int64 `[R]`, which field each ray is for, in ascending order.
    """
    half_extent = grids[0].half_extent
    near, far = box_interval(origins, directions, half_extent)
    low, high = torch.stack([grid.corners for grid in grids]).unbind(1)
    center, half = ((low + high) / 2)[owners], ((high - low) / 2)[owners]
    start, end = box_interval((origins - center) / half, directions / half, 1.0)
    start, end = torch.maximum(near, start), torch.minimum(far, end)
    met = (end > start) & (half[:, 0] > 0)
    every = Rays(origins, directions, near, far, start, end)
    networks = _Networks(fields)
    cells = torch.stack([grid.cells for grid in grids]), torch.stack([grid.least_density for grid in grids])
    rgb = torch.ones_like(origins)
    for rays in met.nonzero().flatten().split(rays_together(origins.device, half_extent, DEFAULT_STEP)):
        if len(rays) == 0:
            continue
        own = owners[rays]
        part = render_chunk(
            partial(networks.of_rays, own),
            Rays(*(values[rays] for values in every)),
            _OwnCells(*cells, grids[0], own),
            DEFAULT_STEP,
        )
        rgb[rays] = part["rgb"]
    return rgb


class _OwnCells:
    """The cells of B grids `[B, G, G, G]`; each of R rays meets those of its owner `[R]`."""

    def __init__(self, cells: Tensor, least_density: Tensor, grid: OccupancyGrid, owners: Tensor) -> None:
        self.cells, self.least_density, self._grid = cells, least_density, grid
        self._first = (owners * grid.resolution**3).unsqueeze(-1)

    def lookup(self, points: Tensor) -> Tensor:
        """See `OccupancyGrid`."""
        return self._grid.lookup(points) + self._first


class _Networks:
    """B fields as one function of points and their owners."""

    def __init__(self, fields: Sequence[CompactField]) -> None:
        self.form, self.head, self.count = fields[0].form, fields[0].head, len(fields)
        layers = range(len(fields[0].weights))
        self.flat = [
            join_flat(torch.stack([f.weights[k] for f in fields]), torch.stack([f.biases[k] for f in fields]))
            for k in layers
        ]

    def of_rays(self, owners: Tensor, points: Tensor, asked: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """The `Values` of rays with these owners `[R]`."""
        return self(points, owners[asked // samples])

    def __call__(self, points: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """Colours `[N, 3]` and densities `[N]` at points `[N, 3]`, whose owners `[N]` ascend.

        Each network's points are laid out in blocks of its own, so that what is filled up does not grow with how
        unequal they are.
        """
        if len(points) == 0:
            return points.new_zeros(0, 3), points.new_zeros(0)
        counts = torch.zeros(self.count, dtype=torch.long, device=points.device)
        counts.index_add_(0, owners, torch.ones_like(owners))
        blocks = (counts + _BLOCK - 1) // _BLOCK
        # From a point's number to its place: what all blocks before its owner's are longer than their points.
        ahead = (blocks.cumsum(0) - blocks) * _BLOCK - (counts.cumsum(0) - counts)
        places = torch.arange(len(points), device=points.device) + ahead[owners]
        together = points_together(points.device) // _BLOCK
        number = filled = int(blocks.sum())
        # The fused kernel is timed for every number of networks, so the last part has a power of two of them.
        filled += (1 << (number % together - 1).bit_length()) - number % together if number % together else 0
        laid = points.new_zeros(filled * _BLOCK, 3)
        laid[places] = points
        of_block = torch.zeros(filled, dtype=torch.long, device=points.device)
        networks = torch.arange(self.count, device=points.device)
        of_block[:number] = networks.repeat_interleave(blocks, output_size=number)
        parts = [
            evaluate(self.form, [part[some] for part in self.flat], own.transpose(1, 2).contiguous())
            for some, own in zip(of_block.split(together), laid.view(filled, _BLOCK, 3).split(together))
        ]
        raw = torch.cat(parts).transpose(1, 2).reshape(filled * _BLOCK, -1)[places].T
        return color_from_raw(raw[:3], self.head).T, density_from_raw(raw[3], self.head)
