"""Where a ray is worth sampling: its stretch inside the scene box, and inside the occupied cells of a grid."""

from __future__ import annotations

import torch
from torch import Tensor


def box_interval(origins: Tensor, directions: Tensor, half_extent: float | Tensor) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave the cube [-half_extent, half_extent]^3.

    Args:
        origins, directions: `[..., 3]`; directions of unit length.
        half_extent: half the edge of the cube, or of a box's edges `[3]`.

    Returns:
        near and far `[...]`, near >= 0; a ray that misses the cube has far <= near.
    """
    # An exact zero would make 0 * inf below; a tiny slope gives the same interval.
    slopes = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions).reciprocal()
    first = (-half_extent - origins) * slopes
    second = (half_extent - origins) * slopes
    near = torch.minimum(first, second).amax(dim=-1).clamp(min=0.0)
    far = torch.maximum(first, second).amin(dim=-1)
    return near, far


def cell_index(points: Tensor, resolution: int, half_extent: float) -> Tensor:
    """Flat index `[...]` (x-major, then y, z) of the cell of a `resolution`^3 grid that holds `points` `[..., 3]`.

    Points outside the cube take the nearest cell.
    """
    scaled = (points + half_extent) * (resolution / (2 * half_extent))
    i = scaled.clamp_(0, resolution - 1).long()
    return (i[..., 0] * resolution + i[..., 1]) * resolution + i[..., 2]


def step_positions(near: Tensor, far: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Midpoints `[..., steps]` of equal steps from `near` to `far` `[...]`, and the step lengths `[..., 1]`."""
    width = ((far - near) / steps).unsqueeze(-1)
    fractions = torch.arange(steps, device=near.device, dtype=near.dtype) + 0.5
    return near.unsqueeze(-1) + fractions * width, width


def occupied_span(inside: Tensor, near: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shrink rays to the span from their first to their last occupied step.

    Args:
        inside: `[..., steps]` bool, whether a step's midpoint lies in an occupied cell.
        near: `[...]` start of the first step.
        width: `[..., 1]` step lengths.

    Returns:
        near `[...]`, far `[...]` and hit `[...]` bool; without any occupied step near = far and hit is false.
    """
    steps = inside.shape[-1]
    number = torch.arange(1, steps + 1, dtype=torch.int16, device=inside.device)
    last = (inside * number).amax(dim=-1)
    first = steps - (inside * number.flip(0)).amax(dim=-1)
    hit = last > 0
    width = width.squeeze(-1)
    start = near + torch.where(hit, first, 0) * width
    end = near + last * width
    return start, end, hit
