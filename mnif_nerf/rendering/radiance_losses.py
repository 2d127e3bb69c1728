"""The training step's maths: sample rays, evaluate the field, compare with the images.

Works on anything that maps feature-major points `[B, 3, N]` to raw values `[B, 4, N]`; of `Networks` that the compiled
kernel takes, it does all in one pass, values and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mnif_nerf.fields import ray_loss
from mnif_nerf.fields.evaluate import Networks
from mnif_nerf.fields.heads import color_from_raw, density_from_raw
from mnif_nerf.fields.losses import RayLoss
from mnif_nerf.rendering.batch import RayBatch
from mnif_nerf.rendering.volume import ray_weights


@dataclass(frozen=True)
class LossConfig:
    """Weights and sample counts of the radiance losses.

    Attributes:
        samples_per_ray: S, jittered, inside the hull.
        mask_weight: squared error of the accumulation against the silhouette.
        carve_weight: opacity of points outside the hull, over `carve_length`.
        carve_length: world units of travel at which a carve point's opacity is measured.
    """

    samples_per_ray: int = 8
    mask_weight: float = 0.02
    carve_weight: float = 0.1
    carve_length: float = 0.1


def sample_offsets(batch: RayBatch, samples: int, generator: torch.Generator | None) -> Tensor:
    """Where each of S samples lies in its bin, `[B, R, S]` in [0, 1): jittered, given a generator; else the middles."""
    shape = (*batch.near.shape, samples)
    if generator is None:
        return batch.near.new_full((), 0.5).expand(shape)
    return batch.share.draw(partial(torch.rand, generator=generator, device=generator.device), shape).to(
        batch.near.device
    )


def sample_distances(batch: RayBatch, offsets: Tensor) -> Tensor:
    """Distances `[B, R, S]`, one in each of S equal bins of a batch's [near, far], at `sample_offsets`."""
    near, far, samples = batch.near, batch.far, offsets.shape[-1]
    bins = torch.arange(samples, device=near.device, dtype=near.dtype) + offsets
    return near.unsqueeze(-1) + bins * ((far - near) / samples).unsqueeze(-1)


def render_batch(
    evaluate: Callable[[Tensor], Tensor],
    batch: RayBatch,
    offsets: Tensor,
    extra_points: Tensor | None = None,
    *,
    head: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render the rays of B instances.

    Args:
        evaluate: maps feature-major points `[B, 3, N]` to raw values `[B, 4, N]`.
        batch: R rays of each instance.
        offsets: of the S samples of each ray, see `sample_offsets`.
        extra_points: `[B, C, 3]` evaluated in the same pass.
        head: what the raw values mean (`FieldSpec.head`). It has no default, because a field rendered with another
            head than its own gives a wrong picture without an error.

    Returns:
        rgb `[B, 3, R]` over white (beyond [0, 1] only where the head's colours are), accumulation `[B, R]`, density
        `[B, C]` at the extra points.
    """
    t = sample_distances(batch, offsets)
    count, rays, samples = t.shape
    origins, directions = batch.origins.transpose(1, 2), batch.directions.transpose(1, 2)
    points = (origins.unsqueeze(-1) + directions.unsqueeze(-1) * t.unsqueeze(1)).reshape(count, 3, rays * samples)
    if extra_points is not None:
        points = torch.cat([points, extra_points.transpose(1, 2)], dim=2)
    raw = evaluate(points)
    density = density_from_raw(raw[:, 3], head)
    spacing = ((batch.far - batch.near) / samples).unsqueeze(-1)
    weights = ray_weights(density[:, : rays * samples].view(count, rays, samples) * spacing)
    colors = color_from_raw(raw[:, :3, : rays * samples], head).view(count, 3, rays, samples)
    accumulation = weights.sum(dim=-1)
    rgb = (weights.unsqueeze(1) * colors).sum(dim=-1) + (1.0 - accumulation).unsqueeze(1)
    return rgb, accumulation, density[:, rays * samples :]


def radiance_losses(
    evaluate: Callable[[Tensor], Tensor],
    batch: RayBatch,
    config: LossConfig,
    generator: torch.Generator | None = None,
    reduce: bool = True,
    *,
    head: str,
) -> dict[str, Tensor]:
    """Losses of one step, each already weighted: their sum is what is minimised.

    Every term is a sum over instances of a mean over rays, divided by B, so that a latent code's gradient does not
    depend on how many rays it was given.

    Args:
        evaluate, generator, head: as in `render_batch`.
        batch: R rays of each of B instances.
        config: weights and sample counts.
        reduce: False leaves every term as the losses `[B]` of the instances, whose mean it is otherwise.

    Returns:
        `rgb` (mean squared error), `mask` and `carve` (where their weight and data are there).
    """
    offsets = sample_offsets(batch, config.samples_per_ray, generator)
    loss = _ray_loss(batch, config, offsets, 1.0 / len(batch.instances) if reduce else 1.0)
    if head == "radiance" and isinstance(evaluate, Networks) and ray_loss.compiled(evaluate.form, evaluate.flat, loss):
        form = evaluate.form

        def reference(flat: Sequence[Tensor]) -> Tensor:
            return _terms(Networks(form, flat), batch, config, offsets, head)

        terms = ray_loss.ray_losses(form, evaluate.flat, loss, reference)
    else:
        terms = _terms(evaluate, batch, config, offsets, head)
    values = (terms.mean(dim=0) if reduce else terms).unbind(-1)
    return {name: value for name, value, there in zip(("rgb", "mask", "carve"), values, loss.terms) if there}


def _ray_loss(batch: RayBatch, config: LossConfig, offsets: Tensor, share: float) -> RayLoss:
    carve_points = batch.carve_points[:, : None if config.carve_weight > 0 else 0]
    return RayLoss(
        batch.origins.contiguous(),
        batch.directions.contiguous(),
        batch.near.contiguous(),
        batch.far.contiguous(),
        offsets.contiguous(),
        batch.rgb.contiguous(),
        batch.mask.contiguous(),
        carve_points.contiguous(),
        config.mask_weight,
        config.carve_weight,
        config.carve_length,
        share,
    )


def _terms(
    evaluate: Callable[[Tensor], Tensor], batch: RayBatch, config: LossConfig, offsets: Tensor, head: str
) -> Tensor:
    """All three losses `[B, 3]` by torch; those without a weight or data are 0."""
    carve = batch.carve_points if config.carve_weight > 0 and batch.carve_points.shape[1] > 0 else None
    rgb, accumulation, outside = render_batch(evaluate, batch, offsets, carve, head=head)
    color = (rgb - batch.rgb.transpose(1, 2)).square().flatten(1).mean(dim=1)
    mask = blocked = torch.zeros_like(color)
    if config.mask_weight > 0:
        mask = config.mask_weight * (accumulation - batch.mask).square().mean(dim=1)
    if carve is not None:
        blocked = config.carve_weight * (1.0 - torch.exp(-config.carve_length * outside)).mean(dim=1)
    return torch.stack([color, mask, blocked], dim=1)
