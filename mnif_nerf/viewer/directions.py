"""The principal directions of the training latents: along which objects differ most, and how far they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnif_nerf.axes import PrincipalAxes

REACH = 3.0  # standard deviations that a position can be away from the mean
POSITION_STEP = 0.05


@dataclass(frozen=True)
class Directions:
    """Means, directions and spreads, from `Directions.from_latents`.

    Attributes:
        mean: `[D]`.
        basis: `[D, K]`, orthonormal columns, the direction of the largest variance first.
        scale: `[K]`, standard deviations of the training latents along them; 0 where they do not differ.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    @classmethod
    def from_latents(cls, latents: Tensor, count: int) -> Directions:
        """The first `count` (or D, if that is less) principal directions of latents `[N, D]`.

        Their signs are those that make the largest number of each direction positive, so that they repeat.
        """
        axes = PrincipalAxes.from_table(latents.cpu())
        basis, scale = axes.basis[:, :count], axes.scale[:count]
        scale[scale < 1e-6 * float(latents.abs().max())] = 0.0
        parts = (part.to(latents.device, torch.float32) for part in (axes.mean, basis, scale))
        return cls(*parts)

    @property
    def flat(self) -> bool:
        """Whether the latents do not differ at all (as at the start of a training)."""
        return not bool((self.scale > 0).any())

    def positions(self, latent: Tensor) -> tuple[float, ...]:
        """Where a latent `[D]` lies along each direction: K numbers of standard deviations from the mean.

        Clipped to `REACH` and rounded to `POSITION_STEP`, as a slider shows them.
        """
        along = (latent - self.mean) @ self.basis
        exact = torch.where(self.scale > 0, along / self.scale.clamp(min=1e-12), 0.0)
        clipped = exact.clamp(-REACH, REACH).tolist()
        return tuple(round(round(value / POSITION_STEP) * POSITION_STEP, 2) for value in clipped)

    def offset(self, steps: Sequence[float]) -> Tensor:
        """The latent difference `[D]` of steps along the directions, K numbers of standard deviations."""
        return self.basis @ (self.scale * torch.tensor(steps, dtype=torch.float32, device=self.scale.device))
