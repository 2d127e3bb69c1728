"""The baseline of `meta_step.py`: a plain re-statement of the authors' meta-learning step (CAVIA with Meta-SGD).

Written from a description of their release, not from its code. Codes start near zero and take three steps down the
mean squared error over the whole batch, all of them on the same points; each step is scaled by one learned rate per
dimension, kept in [0, 1]. The error after them is differentiated through the steps (second order), the gradient's
norm is clipped at 1, and AdamW with rate 1e-4 and no decay moves bases, projection and rates. The bases are stacked
and mixed by broadcast-and-sum (`recipe.RecipeField`), anew for every evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from recipe import RecipeConfig, RecipeField
from torch import Tensor, nn

from mnif_nerf.fields.modulations.mixture import MixtureField

SHAPENET_S = RecipeConfig(
    in_features=3, out_features=1, width=64, hidden_layers=4, num_bases=256, latent_dim=512, w0=50.0, final_sine=True
)
"""The paper's small model of 64^3 voxels."""


@dataclass(frozen=True)
class MetaRecipeConfig:
    """What the release sets, beside the field's shape."""

    inner_steps: int = 3
    inner_lr: float = 1.0
    first_order: bool = False
    start_std: float = 1e-4
    rate_low: float = 0.005
    rate_high: float = 0.1
    lr: float = 1e-4
    clip: float = 1.0


class MetaRecipe:
    """One meta-learning step after the other.

    Args:
        field: shape of the field.
        config: the rest.
        device, dtype: where everything lives, and as what.
        seed: of field, rates and the codes' starts.
    """

    def __init__(
        self,
        field: RecipeConfig = SHAPENET_S,
        config: MetaRecipeConfig | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(seed)
        self.config = config or MetaRecipeConfig()
        self.field = RecipeField(field).to(device, dtype)
        low, high = self.config.rate_low, self.config.rate_high
        self.rates = nn.Parameter((low + (high - low) * torch.rand(field.latent_dim)).to(device, dtype))
        self.parameters = [*self.field.parameters(), self.rates]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.config.lr, weight_decay=0.0)

    def error(self, latents: Tensor, points: Tensor, targets: Tensor) -> Tensor:
        """Mean over batch, points and channels of the squared error."""
        return (self.field(latents, points) - targets).square().mean()

    def gradient(self, points: Tensor, targets: Tensor) -> Tensor:
        """Fill all gradients; returns the error after the inner steps.

        Args:
            points: `[B, N, in]`.
            targets: `[B, N, out]`.
        """
        config = self.config
        start = config.start_std * torch.randn(len(points), len(self.rates)).to(self.rates)
        latents = start.requires_grad_()
        for _ in range(config.inner_steps):
            error = self.error(latents, points, targets)
            (gradient,) = torch.autograd.grad(error, latents, create_graph=not config.first_order)
            latents = latents - config.inner_lr * (self.rates.clamp(0.0, 1.0) * gradient)
        error = self.error(latents, points, targets)
        self.optimizer.zero_grad()
        error.backward()
        return error.detach()

    def step(self, points: Tensor, targets: Tensor) -> Tensor:
        """One training step; returns the error."""
        error = self.gradient(points, targets)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        return error

    @torch.no_grad()
    def copy_from(self, ours: MixtureField, rates: Tensor) -> None:
        """Take over a mixture field of ours and rates `[D]`."""
        for (out, fan_in), rows, weight, bias in zip(
            ours.spec.shapes, ours.bases, self.field.weights, self.field.biases
        ):
            weight.copy_(rows[:, : out * fan_in].view_as(weight))
            bias.copy_(rows[:, out * fan_in :])
        self.field.projection.load_state_dict(ours.projection.state_dict())
        self.rates.copy_(rates)
