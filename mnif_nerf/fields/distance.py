"""A field of signed distance and colour as a solid in the scene box."""

from __future__ import annotations

import torch
from torch import Tensor

from mnif_nerf.fields.heads import color_from_raw, distance_from_raw
from mnif_nerf.fields.solid import NEUTRAL_GREY, SolidField, ValueField

# What shows a field believes distances (world units) up to here. They are learned up to 0.03 (`DistanceLoss`); farther
# off a field only says that it is at least as far, and from there to here it was never seen to say much more.
TRUNCATION = 0.05
# How much of a distance is believed: learned ones grow up to 1 / TRUST times as fast as true ones here and there.
TRUST = 0.65


class DistanceField(SolidField):
    """A field with head "sdf" in world coordinates. A point is inside where its distance is negative.

    Whatever works on solids (`SolidField`) works on it: `value` is minus the distance, as a share of `TRUNCATION`.

    Args:
        compact: the field, with `evaluate`: raw values `[4, N]` (red, green, blue, solid) or `[1, N]` (without colour)
            at feature-major points `[3, N]` in field coordinates [-1, 1].
        half_extent: half the edge of the scene box, which the field knows as [-1, 1]^3.
    """

    def __init__(self, compact: ValueField, half_extent: float = 0.5) -> None:
        super().__init__(compact, half_extent)
        probe = next(iter(self.parameters()), torch.zeros(0))
        with torch.no_grad():
            channels = len(compact.evaluate(torch.zeros(3, 1, device=probe.device, dtype=probe.dtype)))
        self.has_color = channels > 1

    def raw(self, points: Tensor) -> Tensor:
        """The field's own outputs `[C, N]` at points `[N, 3]` (world units)."""
        return self.compact.evaluate(points.T / self.half_extent)

    def distance(self, points: Tensor) -> Tensor:
        """Signed distances `[N]` (world units, positive outside) at points `[N, 3]`; see `TRUNCATION`."""
        return distance_from_raw(self.raw(points)[-1])

    def color(self, points: Tensor) -> Tensor:
        """Colours `[N, 3]` (sRGB in [0, 1]) at points `[N, 3]`, learned near the surface; grey where there are none."""
        return self._color(self.raw(points))

    def _color(self, raw: Tensor) -> Tensor:
        if not self.has_color:
            return raw.new_full((raw.shape[1], 3), NEUTRAL_GREY)
        return color_from_raw(raw[:3], "sdf").T

    def value(self, points: Tensor) -> Tensor:
        """Values `[N]` in [-1, 1], positive inside, at points `[N, 3]`: -distance / `TRUNCATION`, cut to that range."""
        return (self.distance(points) / -TRUNCATION).clamp(-1.0, 1.0)

    def radiance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colours `[N, 3]` and densities `[N]` (see `SolidField.density`) at points `[N, 3]`."""
        raw = self.raw(points)
        return self._color(raw), self._density((distance_from_raw(raw[-1]) / -TRUNCATION).clamp(-1.0, 1.0))

    def surface(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances `[N]`, how they grow `[N, 3]`, and colours `[N, 3]` at points `[N, 3]` on or near the surface."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            raw = self.raw(points)
            distance = distance_from_raw(raw[-1])
            (slope,) = torch.autograd.grad(distance.sum(), points)
        return distance.detach(), slope, self._color(raw.detach())

    def distance_and_slope(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Distances `[N]` and how they grow, `[N, 3]`, at points `[N, 3]`, by differentiation (see `gradient`)."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            distance = self.distance(points)
            (slope,) = torch.autograd.grad(distance.sum(), points)
        return distance.detach(), slope

    def gradient(self, points: Tensor) -> Tensor:
        """How `value` grows where it is not cut: `[N, 3]` (1/world unit) at points `[N, 3]`; it points inwards."""
        return self.distance_and_slope(points)[1] / -TRUNCATION
