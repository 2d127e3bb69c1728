"""A voxel field as a solid in the scene box: what its one channel says about inside, outside and the surface.

`mnif_nerf.fields.distance` has the same of fields that say distances.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

# density = level * exp(GAIN * value): as far as the mesh export looks (a factor of e^6) on either side of the surface.
GAIN = 6.0
# Values nearer to zero would give the level itself, in float32, and not be above it.
_LEAST_INSIDE = 1e-6
# What tools that ask a solid for its colour get.
NEUTRAL_GREY = 0.75


class ValueField(Protocol):
    """A field of raw values: `CompactField` is one, and so can an analytic test object be."""

    def evaluate(self, points: Tensor) -> Tensor:
        """Raw values `[C, N]` at feature-major points `[3, N]` in field coordinates [-1, 1]; C is 1 without colours."""
        ...


def surface_thickness(half_extent: float = 0.5) -> float:
    """The depth (world units) over which a surface is expected to become opaque: 1/32 of the box's edge."""
    return 2.0 * half_extent / 32.0


def surface_level(half_extent: float = 0.5) -> float:
    """The density (1/world unit) taken as the surface: 1 - exp(-density * `surface_thickness`) is one half.

    A camera sees a surface about where the optical depth along the ray reaches log 2. In a field that stays
    at the returned density (22.2 for the unit box) that is one thirty-second of the box below the skin, the
    size of a cell of the hulls that training samples in. The level deliberately does not depend on the export
    resolution, so 64^3 and 256^3 meshes describe the same surface.
    """
    return math.log(2.0) / surface_thickness(half_extent)


class SolidField(nn.Module):
    """A voxel field in world coordinates, with the density that rendering and export tools ask for.

    A point is inside where `value` > 0, and just there `density` > `surface_level`. So meshes, voxel files and
    occupancy grids made for radiance fields work on solids as they are.

    Args:
        compact: the field, with `evaluate`, and its `head` ("signed" where it has none): see `mnif_nerf.fields.heads`.
        half_extent: half the edge of the scene box, which the field knows as [-1, 1]^3.

    Attributes:
        has_color: whether `color` says more than a neutral grey.
    """

    has_color = False

    def __init__(self, compact: ValueField, half_extent: float = 0.5) -> None:
        super().__init__()
        self.compact = compact
        self.half_extent = half_extent
        self.head = str(getattr(compact, "head", "signed"))

    def value(self, points: Tensor) -> Tensor:
        """Values `[N]` in [-1, 1], positive inside, at points `[N, 3]` (world units).

        A signed field's own number; of a logit its tanh(logit / 2), which is 2 * occupancy - 1. Both are cut to
        [-1, 1] only where the field goes beyond (a linear output may).
        """
        raw = self.compact.evaluate(points.T / self.half_extent)[0]
        return torch.tanh(0.5 * raw) if self.head == "logit" else raw.clamp(-1.0, 1.0)

    def forward(self, points: Tensor) -> Tensor:
        """The same as `value`."""
        return self.value(points)

    def density(self, points: Tensor) -> Tensor:
        """Densities `[N]` (1/world unit) at points `[N, 3]`: above `surface_level` where the point is inside."""
        return self._density(self.value(points))

    def _density(self, value: Tensor) -> Tensor:
        value = torch.where(value > 0, value.clamp(min=_LEAST_INSIDE), value)
        return surface_level(self.half_extent) * torch.exp(GAIN * value)

    def color(self, points: Tensor) -> Tensor:
        """A neutral grey `[N, 3]` at points `[N, 3]`."""
        return torch.full_like(points, NEUTRAL_GREY)

    def radiance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """A neutral grey `[N, 3]` and densities `[N]` at points `[N, 3]`."""
        return self.color(points), self.density(points)

    def gradient(self, points: Tensor) -> Tensor:
        """How `value` grows: `[N, 3]` (1/world unit) at points `[N, 3]`, by differentiation; it points inwards.

        The compiled kernel does not differentiate in points, so torch computes; ask for thousands, not millions.
        """
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(points).sum(), points)
        return gradient
