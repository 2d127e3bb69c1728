"""How badly signed distances and colours explain pictures: rays that end softly at the surface.

A ray's samples are compared in pairs: between two of them the surface is met with the probability that distance falls
from positive to negative there (as in NeuS, Wang et al. 2021), however far apart they are. So a few samples do, and
where a ray passes by, how near it comes still says which way the outline has to move.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mnif_nerf.fields.heads import color_from_raw, distance_from_raw
from mnif_nerf.rendering.batch import RayBatch
from mnif_nerf.rendering.radiance_losses import LossConfig, sample_distances, sample_offsets
from mnif_nerf.scene_box import HALF_EXTENT

# The surface's softness: a share of the space between samples, and at least this (world units).
_SOFT_SHARE, _SOFT_LEAST = 0.35, 0.004
_MASK_WEIGHT = 0.3
_CARVE_LENGTH = 0.03  # world units: how far a distance may be wrong, at most, for what it costs
# Fields hold paint, pictures paint in some light: each ray takes the light between these that suits it best.
_DARKEST, _BRIGHTEST = 0.5, 1.15


def surface_losses(
    evaluate: Callable[[Tensor], Tensor],
    batch: RayBatch,
    config: LossConfig,
    generator: torch.Generator | None = None,
    *,
    head: str,
) -> Tensor:
    """Losses `[B]` of B instances on R rays each: colours in any light, the silhouette, and what it rules out.

    Args:
        evaluate: maps feature-major points `[B, 3, N]` (field coordinates: the scene box is [-1, 1]^3) to raw values
            `[B, 4 or 1, N]` of a field of signed distance.
        batch: the rays.
        config: samples per ray, and whether silhouettes and carve points count.
        generator: of the samples' jitter.
        head: what the raw values mean.
    """
    t = sample_distances(batch, sample_offsets(batch, config.samples_per_ray, generator))
    count, rays, samples = t.shape
    origins, directions = batch.origins.transpose(1, 2), batch.directions.transpose(1, 2)
    points = (origins.unsqueeze(-1) + directions.unsqueeze(-1) * t.unsqueeze(1)).reshape(count, 3, rays * samples)
    carved = batch.carve_points.shape[1] if config.carve_weight > 0 else 0
    if carved:
        points = torch.cat([points, batch.carve_points.transpose(1, 2)], dim=2)
    raw = evaluate(points / HALF_EXTENT)
    distance = distance_from_raw(raw[:, -1])
    soft = (_SOFT_SHARE * (batch.far - batch.near) / samples).clamp(min=_SOFT_LEAST).unsqueeze(-1)
    weights = _weights(torch.sigmoid(distance[:, : rays * samples].view(count, rays, samples) / soft))
    seen = weights.sum(dim=-1)
    loss = distance.new_zeros(count)
    if raw.shape[1] > 1:
        colors = color_from_raw(raw[:, :3, : rays * samples], head).view(count, 3, rays, samples)
        paint = (weights.unsqueeze(1) * 0.5 * (colors[..., 1:] + colors[..., :-1])).sum(dim=-1)
        loss = loss + _in_any_light(paint, seen, batch.rgb.transpose(1, 2)).mean(dim=1)
    if config.mask_weight > 0:
        loss = loss + _MASK_WEIGHT * (seen - batch.mask).square().mean(dim=1)
    if carved:
        inside = -distance[:, rays * samples :] / _CARVE_LENGTH
        loss = loss + config.carve_weight * inside.clamp(0.0, 1.0).mean(dim=1)
    return loss


def _weights(outside: Tensor) -> Tensor:
    """What share of a ray ends between samples `[..., S - 1]`, by how surely each `[..., S]` is outside."""
    ends = ((outside[..., :-1] - outside[..., 1:]) / outside[..., :-1].clamp(min=1e-6)).clamp(0.0, 1.0)
    goes_on = torch.cumprod(1.0 - ends + 1e-7, dim=-1)
    before = torch.cat([torch.ones_like(goes_on[..., :1]), goes_on[..., :-1]], dim=-1)
    return before * ends


def _in_any_light(paint: Tensor, seen: Tensor, picture: Tensor) -> Tensor:
    """Squared error `[B, R]` on white, in the best light, of `paint` `[B, 3, R]` that covers `seen` `[B, R]`."""
    white = (1.0 - seen).unsqueeze(1)
    with torch.no_grad():
        fitting = ((picture - white) * paint).sum(dim=1) / paint.square().sum(dim=1).clamp(min=1e-6)
        light = fitting.clamp(_DARKEST, _BRIGHTEST).unsqueeze(1)
    return (light * paint + white - picture).square().mean(dim=1)
