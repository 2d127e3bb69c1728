"""What a latent of a field of signed distance and colour is fitted to: points with what is known of both there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mnif_nerf.fields.heads import color_from_raw, distance_from_raw
from mnif_nerf.fields.losses import DistanceLoss
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.latents.evidence import PointEvidence, PointPool

_DISTANCE = DistanceLoss()


class DistanceEvidence(PointEvidence):
    """Evidence of points for a field of signed distance and colour.

    Targets of its pools are `[N, 5]`: red, green and blue (sRGB in [0, 1], NaN where they are not known), then the
    least and the greatest that the signed distance can be (world units, positive outside; equal where it is known,
    infinite where there is no bound). So a point that is only known to be outside counts for what it says.

    Args:
        field: the trained mixture, with head "sdf".
        pools: where the points are drawn from.
        points_per_step: N; a step's draw.
        seed: random seed of the draws.
        distance: lengths and weights of the loss, as in training.

    Raises:
        MNIFError: no points at all.
    """

    in_training: ClassVar[bool] = False

    def __init__(
        self,
        field: ModulatedField,
        pools: Sequence[PointPool],
        points_per_step: int = 2048,
        seed: int = 0,
        distance: DistanceLoss = _DISTANCE,
    ) -> None:
        super().__init__(field, pools, points_per_step, seed)
        self.distance = distance

    def losses(self, latents: Tensor, step: int, points: int | None = None) -> Tensor:
        """See `Evidence`."""
        batch = self.draw(len(latents), step, points)
        raw = self.field.evaluate(latents, batch.points)
        said, low, high = distance_from_raw(raw[:, -1]), batch.targets[:, 3], batch.targets[:, 4]
        bound = self.distance.truncation
        # What lies beyond the truncation has to be at least as far.
        low = low.clamp(max=bound).masked_fill(low <= -bound, -torch.inf)
        high = high.clamp(min=-bound).masked_fill(high >= bound, torch.inf)
        error = ((low - said).clamp(min=0.0) + (said - high).clamp(min=0.0)) / bound
        colors = batch.targets[:, :3]
        if raw.shape[1] > 1:
            known = torch.isfinite(colors)
            off = color_from_raw(raw[:, :3], self.field.spec.head) - torch.where(known, colors, 0.0)
            error = error + self.distance.color_weight * (off.square() * known).mean(dim=1)
        return error.mean(dim=1)
