"""What nerfstudio's models of voxel shapes and of images share: their loss is one of points, and not of rays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mnif_nerf.latents.meta import PointObjective
from mnif_nerf.models.base import InstanceModel
from mnif_nerf.rendering.batch import PointBatch


class GridModel(InstanceModel):
    """See the module."""

    def objective(self, data: PointBatch, seed: int | None = None) -> PointObjective:
        """Squared errors of values, or cross entropy where the head is "logit"; nothing in it is random."""
        return PointObjective(self.field, data)

    def losses(self, latents: Tensor, data: PointBatch, generator: torch.Generator) -> dict[str, Any]:
        """See `InstanceModel`; the PSNR is that of the drawn points (of shapes, many of them near the surface)."""
        objective = self.objective(data)
        loss = objective.losses(latents).mean()
        if objective.kind == "bce":
            return {"losses": {"bce": loss}}
        return {"losses": {"mse": loss}, "psnr": -10.0 * torch.log10(loss.detach() / 4.0)}
