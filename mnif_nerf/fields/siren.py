"""SIREN multilayer perceptrons as plain tensors: layer shapes, initialisation, and evaluation of a batch of them.

Everything here is *feature-major*: a batch of B networks maps points `[B, in, N]` to values `[B, out, N]`, because
`W @ h` then reads and writes contiguous rows and runs faster on a CPU than the usual `h @ W^T`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mnif_nerf.fields import kernel


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
    count: int,
    out_features: int,
    in_features: int,
    first: bool,
    w0: float,
    generator: torch.Generator | None = None,
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

    On the CPU in float32 the compiled kernel does it, where points need no gradient (see `kernel`); for all else,
    and within `kernel.reference_only()`, `siren_forward_reference` does it.

    Args:
        weights: one `[B, out, in]` per layer.
        biases: one `[B, out, 1]` per layer.
        points: `[B, in, N]`.
        final_sine: whether the output layer is a sine too (images and voxels in the paper; linear for radiance).

    Returns:
        `[B, out, N]`.
    """
    params = [*weights, *biases]
    if kernel.usable(params, points):
        shapes = [(weight.shape[1], weight.shape[2]) for weight in weights if weight.ndim == 3]
        expected = [(len(points), *shape) for shape in shapes] + [(len(points), out, 1) for out, _ in shapes]
        if [tuple(param.shape) for param in params] == expected and _chained(shapes, points):
            return kernel.run((points.shape[1], *(out for out, _ in shapes)), final_sine, params, points)
    return siren_forward_reference(weights, biases, points, final_sine)


def siren_forward_rows(
    rows: Sequence[Tensor], shapes: Sequence[tuple[int, int]], points: Tensor, final_sine: bool = False
) -> Tensor:
    """`siren_forward` of networks given as one row `[B, out * in + out]` per layer: weights, then biases.

    Faster in training than weights and biases apart, because their gradients need not be put together again.

    Args:
        rows: one per layer, as `MixtureField.mix_rows` yields them.
        shapes: `(out, in)` of every layer.
        points: `[B, in, N]`.
        final_sine: as in `siren_forward`.
    """
    if kernel.usable(rows, points) and _chained(shapes, points):
        expected = [(len(points), num_parameters([shape])) for shape in shapes]
        if [tuple(row.shape) for row in rows] == expected:
            return kernel.run((points.shape[1], *(out for out, _ in shapes)), final_sine, rows, points)
    return siren_forward_reference(*split_rows(rows, shapes), points, final_sine)


def _chained(shapes: Sequence[tuple[int, int]], points: Tensor) -> bool:
    """Whether these layers follow on one another and on the points, and are as many as the kernel takes."""
    ends = [points.shape[1] if points.ndim == 3 else -1, *(out for out, _ in shapes)]
    return 2 <= len(shapes) <= kernel.MAX_LAYERS and all(fan_in == end for (_, fan_in), end in zip(shapes, ends))


def split_rows(rows: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights `[B, out, in]` and biases `[B, out, 1]`, as views of rows `[B, out * in + out]`."""
    weights = [row[:, : out * fan_in].view(-1, out, fan_in) for row, (out, fan_in) in zip(rows, shapes)]
    biases = [row[:, out * fan_in :].unsqueeze(-1) for row, (out, fan_in) in zip(rows, shapes)]
    return weights, biases


def siren_forward_reference(
    weights: Sequence[Tensor], biases: Sequence[Tensor], points: Tensor, final_sine: bool = False
) -> Tensor:
    """`siren_forward` in plain torch: any device and type, and as differentiable as torch is."""
    hidden = points
    last = len(weights) - 1
    for layer, (weight, bias) in enumerate(zip(weights, biases)):
        hidden = torch.baddbmm(bias, weight, hidden)
        if layer < last or final_sine:
            hidden = torch.sin(hidden)
    return hidden
