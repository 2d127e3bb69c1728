"""What a batch of small networks is: its form (layers and activations), and its flat weights.

The *flat weights* of B networks are one tensor `[B, out * in + out]` per layer: the weight matrix row by row, then the
bias. Everything is *feature-major*: points are `[B, in, N]` and values `[B, out, N]`, because `W @ h` then reads and
writes contiguous rows and runs faster on a CPU than the usual `h @ W^T`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NetworkForm:
    """What all networks of a batch have in common; together with flat weights it is a function.

    Attributes:
        shapes: `(out, in)` of every linear layer.
        final_sine: whether the output layer is a sine (images and voxels in the paper; linear for radiance).
        family: which activations, see `mnif_nerf.fields.families`.
        w0: the sine frequency, for families that cannot multiply all of it into the weights.
    """

    shapes: tuple[tuple[int, int], ...]
    final_sine: bool = False
    family: str = "siren"
    w0: float = 30.0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features before and after every layer."""
        return (self.shapes[0][1], *(out for out, _ in self.shapes))


def layer_shapes(in_features: int, width: int, hidden_layers: int, out_features: int) -> list[tuple[int, int]]:
    """`(out, in)` of every linear layer: input layer, `hidden_layers` of width x width, output layer.

    The authors' "L4" is `hidden_layers=4`, hence six linear layers (notes of the release, section 1.1).
    """
    sizes = [in_features] + [width] * (hidden_layers + 1) + [out_features]
    return list(zip(sizes[1:], sizes[:-1]))


def num_parameters(shapes: Sequence[tuple[int, int]]) -> int:
    """Weights and biases of one network of these `(out, in)` layers."""
    return sum(out * fan_in + out for out, fan_in in shapes)


def split_flat(flat: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights `[B, out, in]` and biases `[B, out, 1]`, as views of flat weights `[B, out * in + out]`."""
    weights = [row[:, : out * fan_in].view(-1, out, fan_in) for row, (out, fan_in) in zip(flat, shapes)]
    biases = [row[:, out * fan_in :].unsqueeze(-1) for row, (out, fan_in) in zip(flat, shapes)]
    return weights, biases


def join_flat(weight: Tensor, bias: Tensor) -> Tensor:
    """Flat weights `[B, out * in + out]` of one layer's weights `[B, out, in]` and biases `[B, out]`."""
    return torch.cat([weight.flatten(1), bias], dim=1)
