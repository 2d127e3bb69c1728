"""Latents of radiance fields that a model was not trained on, from some of their views, its networks as they are."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.latents.encoding import encode
from mnif_nerf.latents.encoding_settings import EncodingSettings
from mnif_nerf.latents.fitting import FitConfig, fit_latents
from mnif_nerf.latents.meta import LossObjective, MetaConfig
from mnif_nerf.random import KeptSeed, generator_of
from mnif_nerf.rendering.batch import RayBatch
from mnif_nerf.rendering.radiance_losses import LossConfig, radiance_losses


class SceneRays(Protocol):
    """Where the observations come from: `mnif_nerf.data.sampling.ray_sampler.RayBatchSampler` over the given views."""

    num_scenes: int

    def draw(self, step: int) -> RayBatch:
        """The rays of fitting step `step`."""
        ...

    def fixed(self, scenes: Tensor) -> RayBatch:
        """Rays that depend on the scene alone."""
        ...


def radiance_objective(
    field: ModulatedField, data: RayBatch, losses: LossConfig, seed: int | KeptSeed | None = None
) -> LossObjective:
    """What the inner loop descends: every scene's rendering loss on given rays.

    Args:
        field: the mixture.
        data: rays of B instances.
        losses: weights and sample counts.
        seed: random seed of the samples' jitter along the rays; None samples the middles.
    """

    def losses_of(latents: Tensor, twice: bool) -> Tensor:
        jitter = None if seed is None else generator_of(seed, data.near.device)
        # One pass makes values and gradient, which is of no use where the gradient is differentiated again.
        evaluate = partial(field.evaluate, latents) if twice else field.networks(latents)
        terms = radiance_losses(evaluate, data, losses, jitter, reduce=False, head=field.spec.head)
        return torch.stack(list(terms.values())).sum(dim=0)

    return LossObjective(partial(losses_of, twice=False), partial(losses_of, twice=True))


def latents_of_scenes(
    field: ModulatedField,
    rays: SceneRays,
    training_latents: Tensor,
    settings: EncodingSettings,
    inner_loop: tuple[MetaConfig, Tensor] | None = None,
    scenes: Tensor | None = None,
) -> Tensor:
    """Latents `[K, D]` of scenes, none of which hangs on another; the field is not changed.

    Args:
        field: the trained mixture.
        rays: the observations.
        training_latents: `[N, D]`, where a fit starts and what regularises it.
        settings: steps, weights and sample counts.
        inner_loop: its settings and rates `[D]`, after meta-learning; None fits (auto-decoding).
        scenes: int64 `[K]`, which ones; all where None.

    Raises:
        MNIFError: the inner loop or the fit diverged.
    """
    losses = settings.losses()
    if inner_loop is None:
        config = FitConfig(steps=settings.fit_steps)
        return fit_latents(field, rays, training_latents, config, losses, instances=scenes)
    inner, rates = inner_loop
    return encode(
        lambda chosen: radiance_objective(field, rays.fixed(chosen), losses),
        rays.num_scenes if scenes is None else scenes,
        rates,
        inner,
        settings.encode_batch,
    )
