"""SIREN multilayer perceptrons as plain tensors: layer shapes, initialisation, and evaluation of a batch of them.

Everything here is *feature-major*: a batch of B networks maps points `[B, in, N]` to values `[B, out, N]`, because
`W @ h` then reads and writes contiguous rows and runs faster on a CPU than the usual `h @ W^T`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def layer_shapes(in_features: int, width: int, hidden_layers: int, out_features: int) -> list[tuple[int, int]]:
    """`(out, in)` of every linear layer: input layer, `hidden_layers` of width x width, output layer.

    The authors' "L4" is `hidden_layers=4`, hence six linear layers (notes of the release, section 1.1).
    """
    sizes = [in_features] + [width] * (hidden_layers + 1) + [out_features]
    return list(zip(sizes[1:], sizes[:-1]))


def num_parameters(shapes: Sequence[tuple[int, int]]) -> int:
    """Weights and biases of one network of these `(out, in)` layers."""
    return sum(out * fan_in + out for out, fan_in in shapes)


def init_layer(
    count: int, out_features: int, in_features: int, first: bool, w0: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw `count` independent SIREN layers (Sitzmann et al. 2020, section 3.2).

    Weights are uniform in +-1/fan_in for the first layer and +-sqrt(6/fan_in)/w0 for the others, so that every
    pre-activation `w0 * (W h)` of a hidden layer has unit variance. Biases are uniform in +-1/sqrt(fan_in).

    Returns:
        weights `[count, out, in]` and biases `[count, out]`.
    """
    bound = 1.0 / in_features if first else math.sqrt(6.0 / in_features) / w0
    weight = torch.empty(count, out_features, in_features).uniform_(-bound, bound, generator=generator)
    bias_bound = 1.0 / math.sqrt(in_features)
    bias = torch.empty(count, out_features).uniform_(-bias_bound, bias_bound, generator=generator)
    return weight, bias


def siren_forward(
    weights: Sequence[Tensor], biases: Sequence[Tensor], points: Tensor, final_sine: bool = False
) -> Tensor:
    """Evaluate B networks whose sine frequency w0 is already multiplied into weights and biases.

    Args:
        weights: one `[B, out, in]` per layer.
        biases: one `[B, out, 1]` per layer.
        points: `[B, in, N]`.
        final_sine: whether the output layer is a sine too (images and voxels in the paper; linear for radiance).

    Returns:
        `[B, out, N]`.
    """
    hidden = points
    last = len(weights) - 1
    for layer, (weight, bias) in enumerate(zip(weights, biases)):
        hidden = torch.baddbmm(bias, weight, hidden)
        if layer < last or final_sine:
            hidden = torch.sin(hidden)
    return hidden
