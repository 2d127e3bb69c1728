"""Settings of the optimisers and learning-rate schedules of stage 1.

They answer to nerfstudio's `Optimizers` as well (`lr`, `max_norm`, `setup`, `get_scheduler`). Schedules return Python
floats: nerfstudio's own compute with numpy, whose scalars torch refuses to read back from a checkpoint with
`weights_only=True`. torch is imported when something is built, so that a `--help` does not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mnif_nerf.saved_settings import SavedSettings
from mnif_nerf.schedules import warmup_cosine

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


@dataclass
class WarmupCosineSchedulerConfig(SavedSettings):
    """Linear warm-up, then a cosine down to a fraction of the learning rate."""

    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly."""
    max_steps: int = 0
    """Step at which the cosine ends; 0 means the run's max_num_iterations."""
    final_fraction: float = 0.03
    """What is left of the learning rate at the end."""

    def setup(self) -> WarmupCosineSchedulerConfig:
        """Itself: nerfstudio builds schedulers in two steps."""
        return self

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LambdaLR:
        """The schedule of `optimizer`, whose rate is `lr_init`."""
        from torch.optim.lr_scheduler import LambdaLR

        # Read at every step: the length of a run may change while it trains.
        return LambdaLR(
            optimizer,
            lambda step: warmup_cosine(step, self.warmup_steps, self.max_steps or 1_000_000, self.final_fraction),
        )


@dataclass
class FieldAdamConfig(SavedSettings):
    """Adam for the networks, fused where the device allows it."""

    lr: float = 1e-3
    """The learning rate to use."""
    eps: float = 1e-8
    """The epsilon value to use."""
    max_norm: float | None = None
    """The max norm to use for gradient clipping."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the running means of gradient and squared gradient."""

    def setup(self, params: Any) -> Optimizer:
        """The optimiser over `params`."""
        from torch.optim import Adam

        return Adam(params, lr=self.lr, eps=self.eps, betas=tuple(self.betas), fused=True)


@dataclass
class LatentAdamConfig(SavedSettings):
    """Adam that moves only the latent codes drawn in a step, each with its own step count."""

    lr: float = 5e-3
    """The learning rate to use."""
    eps: float = 1e-8
    """The epsilon value to use."""
    max_norm: float | None = None
    """The max norm to use for gradient clipping."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the running means of gradient and squared gradient."""

    def setup(self, params: Any) -> Optimizer:
        """The optimiser over `params`."""
        from mnif_nerf.latents.table import RowAdam

        return RowAdam(params, lr=self.lr, eps=self.eps, betas=self.betas)


def optimizer_settings(
    field_lr: float,
    projection_lr: float,
    latent_lr: float,
    warmup_steps: int,
    rates_lr: float = 1e-3,
    final_fraction: float = 0.03,
    **adam: Any,
) -> dict[str, dict[str, Any]]:
    """One optimiser each for bases, projection, latents and inner rates: their gradients differ by orders of magnitude.

    A run has latents or inner rates to optimise, by its adaptation; the settings of the other are left unused.

    Args:
        field_lr, projection_lr, latent_lr, rates_lr: learning rates of the four groups.
        warmup_steps, final_fraction: of `WarmupCosineSchedulerConfig`.
        adam: further settings of `FieldAdamConfig`.
    """
    settings: dict[str, Any] = {
        "fields": FieldAdamConfig(lr=field_lr, **adam),
        "projection": FieldAdamConfig(lr=projection_lr, **adam),
        "latents": LatentAdamConfig(lr=latent_lr),
        "inner_rates": FieldAdamConfig(lr=rates_lr, **adam),
    }
    return {
        name: {
            "optimizer": optimizer,
            "scheduler": WarmupCosineSchedulerConfig(warmup_steps=warmup_steps, final_fraction=final_fraction),
        }
        for name, optimizer in settings.items()
    }
