"""Volume rendering: densities and colours along rays to pixels (NeRF's quadrature, Mildenhall et al. 2020, eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def ray_weights(optical_depth: Tensor) -> Tensor:
    """Share of the light that each sample contributes: T_i (1 - exp(-tau_i)), T_i = exp(-sum_{j<i} tau_j).

    Args:
        optical_depth: `[..., S]` density times interval length, >= 0, front to back.

    Returns:
        `[..., S]`, each in [0, 1], summing to at most 1. What is missing to 1 is background.
    """
    through = torch.exp(-optical_depth.cumsum(dim=-1))
    before = torch.cat([torch.ones_like(through[..., :1]), through[..., :-1]], dim=-1)
    return before - through


def composite(weights: Tensor, colors: Tensor, background: float = 1.0) -> tuple[Tensor, Tensor]:
    """Blend samples over a uniform background.

    Args:
        weights: `[..., S]` from `ray_weights`.
        colors: `[..., S, 3]`.
        background: grey level behind everything (1 = white).

    Returns:
        colours `[..., 3]` and accumulation (opacity) `[..., 1]`.
    """
    accumulation = weights.sum(dim=-1, keepdim=True)
    return (weights.unsqueeze(-1) * colors).sum(dim=-2) + (1.0 - accumulation) * background, accumulation
