"""Samplers without diffusion, kept for comparison: a Gaussian, and mixtures of two near latents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mnif_nerf.priors.schedulers import draw_noise

BASELINES: tuple[str, ...] = ("gaussian", "interpolation")


def near_neighbours(points: Tensor, count: int) -> Tensor:
    """Indices [N, min(count, N - 1)] of the nearest other points of each of `points` [N, K]."""
    distances = torch.cdist(points, points)
    distances.fill_diagonal_(math.inf)
    return distances.topk(min(count, len(points) - 1), largest=False).indices


def sample_gaussian(whitened: Tensor, streams: Sequence[torch.Generator], temperature: float = 1.0) -> Tensor:
    """Draw from the Gaussian with the mean and covariance of `whitened` [N, K].

    Args:
        whitened: training latents, N >= 2.
        streams: one random generator per sample.
        temperature: factor on the distance from the mean.

    Returns:
        [len(streams), K].
    """
    mean = whitened.mean(0)
    _, singular, directions = torch.linalg.svd((whitened - mean).cpu().double(), full_matrices=False)
    factor = (singular[:, None] * directions / math.sqrt(len(whitened) - 1)).float().to(whitened.device)
    noise = draw_noise(streams, whitened.shape[1])[:, : len(factor)].to(whitened.device)
    return mean + temperature * noise @ factor


def sample_interpolations(
    whitened: Tensor, streams: Sequence[torch.Generator], temperature: float = 1.0, neighbours: int = 8
) -> Tensor:
    """Mix a random training latent with one of its nearest: `lerp(a, b, t)`, t uniform in [.3, .7].

    Args:
        whitened: [N, K] training latents, N >= 2.
        streams: one random generator per sample.
        temperature: factor on the distance of the mixture from the mean of the data.
        neighbours: how many nearest latents the partner is drawn from.

    Returns:
        [len(streams), K].
    """
    near = near_neighbours(whitened, neighbours)
    rows = []
    for stream in streams:
        first = int(torch.randint(len(whitened), (1,), generator=stream))
        second = int(near[first, int(torch.randint(near.shape[1], (1,), generator=stream))])
        share = 0.3 + 0.4 * float(torch.rand(1, generator=stream))
        rows.append(torch.lerp(whitened[first], whitened[second], share))
    mean = whitened.mean(0)
    return mean + temperature * (torch.stack(rows) - mean)
