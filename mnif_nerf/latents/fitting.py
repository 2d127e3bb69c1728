"""Fitting latent codes to observations the model never saw, with every network frozen (test-time auto-decoding)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.latents.table import RowAdam
from mnif_nerf.machine import denormals_flushed
from mnif_nerf.rendering.batch import RayBatch, picked
from mnif_nerf.rendering.radiance_losses import LossConfig, radiance_losses


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
        lr: learning rate of the codes at the start, in standard deviations of the training codes; it decays to a tenth
            along a cosine. The scale of latents means nothing, and differs twentyfold between models.
        prior_weight: weight of the squared distance to the training codes' mean, in their standard deviations,
            which keeps a fit from few views near what the model knows.
        seed: random seed of the depth jitter.
    """

    steps: int = 300
    lr: float = 0.2
    prior_weight: float = 1e-3
    seed: int = 0


@denormals_flushed()
def fit(
    loss: Callable[[Tensor, int], Tensor],
    num_instances: int,
    training_latents: Tensor,
    config: FitConfig | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Tensor:
    """Find codes `[S, D]` of small loss by gradient steps from the mean of the training codes.

    Args:
        loss: codes `[S, D]` and the step's number to the losses `[S]` of the instances, each depending on its own
            code only. The caller sees to it that nothing else takes a gradient (`frozen`).
        num_instances: S.
        training_latents: `[N, D]`, for the starting point (their mean) and the spread of the prior.
        config: steps, rate, regularisation.
        on_step: called with the step's number and mean loss.

    Raises:
        MNIFError: the fit diverged.
    """
    config = config or FitConfig()
    mean, std = training_latents.mean(dim=0), training_latents.std(dim=0, correction=0).clamp(min=1e-6)
    codes = torch.nn.Parameter(mean.expand(num_instances, -1).clone())
    # One rate for all coordinates, of which some hardly vary in training and must stay small.
    rate = config.lr * float(std.square().mean().sqrt())
    optimizer = RowAdam([codes], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.steps, 1), rate / 10)
    with torch.enable_grad():
        for step in range(config.steps):
            penalty = ((codes - mean) / std).square().mean(dim=1)
            # Sum over instances, so that a code's step does not depend on how many are fitted together.
            total = (loss(codes, step) + config.prior_weight * penalty).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(step, float(total.detach()) / num_instances)
    fitted = codes.detach()
    if not bool(torch.isfinite(fitted).all()):
        raise MNIFError(f"fitting latents diverged at learning rate {config.lr}; use a smaller one.")
    return fitted


def fit_latents(
    field: ModulatedField,
    rays: RaySource,
    training_latents: Tensor,
    config: FitConfig | None = None,
    losses: LossConfig | None = None,
    on_step: Callable[[int, float], None] | None = None,
    instances: Tensor | None = None,
) -> Tensor:
    """Find the codes `[K, D]` that explain the rays of new instances; the field is not changed.

    What is random is drawn for all of a source's instances, so the codes of some are those that all would have got.

    Args:
        field: the trained mixture.
        rays: observations; `rays.draw(step).instances` are all its S instances, in any order.
        training_latents: `[N, D]`, for the starting point (their mean) and the spread of the prior.
        config: steps, rate, regularisation, seed.
        losses: rendering and loss settings.
        on_step: called with the step's number and loss.
        instances: int64 `[K]`, which of them; all S where None.

    Raises:
        MNIFError: the fit diverged.
    """
    config, settings = config or FitConfig(), losses or LossConfig()
    generator = torch.Generator().manual_seed(config.seed)
    number = rays.num_scenes if instances is None else len(instances)
    wanted = None if instances is None else instances.to(training_latents.device)

    def loss(codes: Tensor, step: int) -> Tensor:
        batch = rays.draw(step)
        if wanted is not None:
            batch = picked(batch, batch.instances.argsort()[wanted])
            batch.instances = torch.arange(number, device=codes.device)
        networks = field.networks(codes[batch.instances])
        terms = radiance_losses(networks, batch, settings, generator, reduce=False, head=field.spec.head)
        return codes.new_zeros(len(codes)).index_add(0, batch.instances, torch.stack(list(terms.values())).sum(dim=0))

    with frozen(field):
        return fit(loss, number, training_latents, config, on_step)


@contextmanager
def frozen(field: torch.nn.Module) -> Iterator[None]:
    """Within the block, the parameters of `field` take no gradient."""
    parameters = [parameter for parameter in field.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
