"""nerfstudio's model of radiance fields: see `mnif_nerf.models.base` for what all modalities share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.fields.compact import CompactField
from mnif_nerf.latents.meta import LossObjective
from mnif_nerf.latents.scenes import radiance_objective
from mnif_nerf.models.base import InstanceModel, InstanceModelConfig
from mnif_nerf.models.scoring import ImageScores
from mnif_nerf.rendering.batch import RayBatch
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.radiance_losses import LossConfig, radiance_losses
from mnif_nerf.rendering.views import render_rays


@dataclass
class MNIFModelConfig(InstanceModelConfig):
    """The mixture of neural implicit functions. The defaults are the paper's SRN Cars S shape."""

    _target: type = field(default_factory=lambda: MNIFModel)
    samples_per_ray: int = 8
    """Jittered samples of a ray inside its instance's hull."""
    mask_weight: float = 0.02
    """Weight of the squared error of the accumulation against the silhouette."""
    carve_weight: float = 0.1
    """Weight of the opacity of points outside the hull."""
    carve_length: float = 0.1
    """World units over which that opacity is measured."""
    grid_resolution: int = 48
    """Cells per side of the occupancy grid that rendering skips empty space with."""
    lpips: bool = False
    """Whether evaluation reports LPIPS too; its weights must be in torch's cache or within reach."""

    def loss_config(self, samples_per_ray: int | None = None) -> LossConfig:
        """Weights of the losses and samples per ray (another number of them, where given)."""
        samples = samples_per_ray or self.samples_per_ray
        return LossConfig(samples, self.mask_weight, self.carve_weight, self.carve_length)


class MNIFModel(InstanceModel):
    """Radiance fields, trained on rays grouped by instance and rendered by volume rendering."""

    config: MNIFModelConfig
    own_settings = ("samples_per_ray", "mask_weight", "carve_weight", "carve_length")

    def populate_modules(self) -> None:
        """See `InstanceModel`."""
        super().populate_modules()
        self._losses = self.config.loss_config()
        self._scores = ImageScores(self.config.lpips)

    def losses(self, latents: Tensor, data: RayBatch, generator: torch.Generator) -> dict[str, Any]:
        """See `InstanceModel`; the PSNR is that of the drawn rays."""
        evaluate = partial(self.field.evaluate, latents)
        losses = radiance_losses(evaluate, data, self._losses, generator, head=self.field.spec.head)
        return {"losses": losses, "psnr": -10.0 * torch.log10(losses["rgb"].detach())}

    def objective(self, data: RayBatch, seed: int | None = None, losses: LossConfig | None = None) -> LossObjective:
        """See `InstanceModel`.

        Args:
            data: rays of B instances.
            seed: of the samples' jitter along the rays; None samples the middles.
            losses: other settings than in training.
        """

        return radiance_objective(self.field, data, losses or self._losses, seed)

    def prepared(self, compact: CompactField) -> tuple[CompactField, OccupancyGrid]:
        """The field itself, and its occupancy grid."""
        resolution = self.config.grid_resolution
        return compact, OccupancyGrid.from_field(compact, resolution, bounds=self.bounds, device=self.device)

    def render_field(
        self, field: Any, grid: OccupancyGrid | None, origins: Tensor, directions: Tensor
    ) -> dict[str, Tensor]:
        """Volume rendering over white."""
        return render_rays(field, origins, directions, grid, chunk=self.config.eval_num_rays_per_chunk)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics of one rendered view as floats, and pictures: truth beside render, depth, accumulation."""
        return self._scores(outputs, batch["image"])
