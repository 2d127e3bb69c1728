"""Fitting latent codes to observations the model never saw, with every network frozen (test-time auto-decoding)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.mixture import MixtureField
from mnif_nerf.latents.table import LatentTable, RowAdam
from mnif_nerf.rendering.batch import RayBatch
from mnif_nerf.rendering.training import LossConfig, radiance_losses


class RaySource(Protocol):
    """Where the observations come from: `RayBatchSampler` restricted to the conditioning views."""

    num_scenes: int

    def draw(self, step: int) -> RayBatch:
        """The rays of fitting step `step`."""
        ...


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit.

    Attributes:
        steps: gradient steps.
        lr: learning rate of the codes at the start; it decays to a tenth along a cosine.
        prior_weight: weight of the squared distance to the training codes' mean, in their standard deviations,
            which keeps a fit from few views near what the model knows.
        seed: of the depth jitter.
    """

    steps: int = 300
    lr: float = 2e-2
    prior_weight: float = 1e-3
    seed: int = 0


def fit_latents(
    field: MixtureField,
    rays: RaySource,
    training_latents: Tensor,
    config: FitConfig | None = None,
    losses: LossConfig | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Tensor:
    """Find the codes `[S, D]` that explain the rays of S new instances; the field is not changed.

    Args:
        field: the trained mixture.
        rays: observations; `rays.draw(step).scenes` index the S instances.
        training_latents: `[N, D]`, for the starting point (their mean) and the spread of the prior.
        config: steps, rate, regularisation, seed.
        losses: rendering and loss settings.
        on_step: called with the step's number and loss.

    Raises:
        MNIFError: the fit diverged.
    """
    config, losses = config or FitConfig(), losses or LossConfig()
    device = training_latents.device
    mean, std = training_latents.mean(dim=0), training_latents.std(dim=0, correction=0).clamp(min=1e-6)
    table = LatentTable(rays.num_scenes, training_latents.shape[1]).to(device)
    with torch.no_grad():
        table.weight.copy_(mean)
    optimizer = RowAdam(table.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.steps, 1), config.lr / 10)
    generator = torch.Generator().manual_seed(config.seed)
    with _Frozen(field.parameters()), torch.enable_grad():
        for step in range(config.steps):
            batch = rays.draw(step)
            codes = table(batch.scenes)
            terms = radiance_losses(partial(field.evaluate, codes), batch, losses, generator)
            penalty = ((codes - mean) / std).square().mean()
            # Sum over instances, so that a code's step does not depend on how many are fitted together.
            loss = len(codes) * (torch.stack(list(terms.values())).sum() + config.prior_weight * penalty)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(step, float(loss.detach()) / len(codes))
    fitted = table.weight.detach()
    if not bool(torch.isfinite(fitted).all()):
        raise MNIFError(f"fitting latents diverged at learning rate {config.lr}; use a smaller one.")
    return fitted


class _Frozen:
    """Within the block, these parameters take no gradient."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(True)
