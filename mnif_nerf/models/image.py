"""nerfstudio's model of images: a field over the plane, trained on pixels, shown as a picture hanging in the world."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.fields.compact import CompactField
from mnif_nerf.metrics.images import psnr, ssim
from mnif_nerf.models.base import InstanceModelConfig
from mnif_nerf.models.grid_model import GridModel
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.plane import render_image, render_plane

_HIGHEST_W0 = 30.0
_W0_PER_PIXEL = 0.75


@dataclass
class ImageModelConfig(InstanceModelConfig):
    """Images. The defaults are the paper's CelebA-HQ S shape."""

    _target: type = field(default_factory=lambda: ImageModel)
    latent_dim: int = 1024
    """Size of a latent code."""
    w0: float = 0.0
    """Sine frequency; 0 chooses it from the pictures' resolution (3/4 of it, 30 at most): a higher one lets the field
    swing between the pixels, which shows as noise where it is sampled more finely."""

    final_activation: Literal["linear", "sine"] = "linear"
    """What the last layer ends in. With a sine, as in the paper, colours beyond black and white wrap around; on the
    digits, second-order meta-learning then broke down for two seeds of five, and for none without it."""

    def sine_frequency(self, resolution: int) -> float:
        """See `w0`."""
        return self.w0 or min(_HIGHEST_W0, _W0_PER_PIXEL * resolution)

    def ends(self, channels: int) -> dict[str, Any]:
        """Two coordinates in, one or three colours out, -1 black and 1 white."""
        return {
            "in_features": 2,
            "out_features": channels,
            "final_activation": self.final_activation,
            "head": "signed",
        }


class ImageModel(GridModel):
    """See the module."""

    config: ImageModelConfig

    def prepared(self, compact: CompactField) -> tuple[CompactField, None]:
        """The field itself; a plane needs no grid."""
        return compact, None

    def render_field(
        self, field: Any, grid: OccupancyGrid | None, origins: Tensor, directions: Tensor
    ) -> dict[str, Tensor]:
        """The picture on the plane x = 0, over white; a viewer's crop box does not cut it."""
        return render_plane(field, origins, directions)

    def score(self, latent: Tensor, values: np.ndarray) -> dict[str, float]:
        """How well a latent `[D]` gives back a picture uint8 `[H, H, C]`: "psnr" and, from 3 pixels on, "ssim"."""
        rendered = render_image(self.field.collapse(latent).to(self.device), len(values)).cpu()
        truth = torch.from_numpy(values).float() / 255.0
        metrics = {"psnr": float(psnr(rendered, truth))}
        return {**metrics, "ssim": float(ssim(rendered, truth))} if len(values) >= 3 else metrics

    def comparison(self, latent: Tensor, values: np.ndarray, size: int) -> Tensor:
        """The given picture beside the latent's: `[H, 2 * H, 3]` in [0, 1]; `size` is of no meaning here."""
        rendered = render_image(self.collapsed(latent)[0], len(values)).cpu()
        return torch.cat([torch.from_numpy(values).float() / 255.0, rendered], dim=1).expand(-1, -1, 3)
