"""Optimiser and learning-rate settings for nerfstudio that leave checkpoints readable with
`weights_only=True`.

nerfstudio's own decaying schedules compute with numpy; their numpy scalars land in the checkpoint, which
torch >= 2.6 then refuses to read. These return Python floats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mnif_nerf.latents.table import RowAdam
from mnif_nerf.schedules import warmup_cosine


@dataclass
class WarmupCosineSchedulerConfig(SchedulerConfig):
    """Linear warm-up, then a cosine down to a fraction of the learning rate."""

    _target: type = field(default_factory=lambda: WarmupCosineScheduler)
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly."""
    max_steps: int = 0
    """Step at which the cosine ends; 0 means the run's max_num_iterations."""
    final_fraction: float = 0.03
    """What is left of the learning rate at the end."""


class WarmupCosineScheduler(Scheduler):
    """Builds the torch scheduler of `WarmupCosineSchedulerConfig`."""

    config: WarmupCosineSchedulerConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LambdaLR:
        """A `LambdaLR` whose factor is a Python float (`lr_init` is already the optimiser's rate)."""
        config = self.config
        # Read at every step: the trainer fills in max_steps = 0 once the length of the run is known.
        return LambdaLR(
            optimizer,
            lambda step: warmup_cosine(step, config.warmup_steps, config.max_steps or 1_000_000, config.final_fraction),
        )


@dataclass
class FieldAdamConfig(OptimizerConfig):
    """Adam for the basis networks and the projection, fused where the device allows it."""

    _target: type = torch.optim.Adam
    lr: float = 1e-3
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the running means of gradient and squared gradient."""

    def setup(self, params: Any) -> Optimizer:
        """The optimiser over `params`."""
        return self._target(params, lr=self.lr, eps=self.eps, betas=tuple(self.betas), fused=True)


@dataclass
class LatentAdamConfig(OptimizerConfig):
    """Adam that moves only the latent codes drawn in a step, each with its own step count."""

    _target: type = RowAdam
    lr: float = 5e-3
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the running means of gradient and squared gradient."""

    def setup(self, params: Any) -> Optimizer:
        """The optimiser over `params`."""
        return self._target(params, lr=self.lr, eps=self.eps, betas=tuple(self.betas))
