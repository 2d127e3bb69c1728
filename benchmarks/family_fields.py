"""Mixtures of other networks than the paper's SIREN, for `families.py` to compare with it.

"siren"         the paper's: reads coordinates; layers are sines
"siren, wider"  the same with about as many numbers per instance as "grid-siren"
"grid-siren"    reads also where a point lies in a coarse lattice. It gives the point its interpolation weights at the
                nodes; first-layer weights times these are a latent grid, interpolated at the point. So every neuron
                of the first layer has a grid of its own, mixed with that layer, and the compiled kernel runs it all.
"fourier-relu"  sines and cosines of fixed random directions (Tancik et al. 2020) in the place of the first layer; the
                other layers are rectified (ReLU)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.mixture import FieldSpec, MixtureField
from mnif_nerf.fields.siren import layer_shapes, siren_forward_rows, split_rows

FAMILIES = ("siren", "siren, wider", "grid-siren", "fourier-relu")
# Nodes of the lattice along an edge, by the number of coordinates: 64 nodes in all.
NODES = {2: 8, 3: 4}
# Standard deviation, in radians, of what one node adds to the first layer's phases at the start.
GRID_SPREAD = 0.1
# What w0 is to sines: initial weights are divided by it, mixed ones multiplied, so it is only a rate of learning.
# Of 1, 3, 10 and 30, 3 learned fastest.
RELU_GAIN = 3.0


@dataclass(frozen=True)
class FamilySpec(FieldSpec):
    """A field's specification with its family.

    Attributes:
        family: "siren", "grid-siren" or "fourier-relu".
        frequency: spread of the Fourier features: with w0 here, they are drawn like a SIREN's first layer of that w0.
    """

    family: str = "siren"
    frequency: float = 30.0

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """`(out, in)` of every linear layer of one basis network."""
        if self.family == "fourier-relu":
            return layer_shapes(2 * self.width, self.width, self.hidden_layers - 1, self.out_features)
        nodes = NODES[self.in_features] ** self.in_features if self.family == "grid-siren" else 0
        return layer_shapes(self.in_features + nodes, self.width, self.hidden_layers, self.out_features)

    @property
    def reach(self) -> float:
        """Points lie in [-reach, reach]: radiance fields are asked in world units."""
        return 0.5 if self.head == "radiance" else 1.0


def family_spec(spec: FieldSpec, family: str, factor: float = 1.0) -> FamilySpec:
    """The specification of a family that is otherwise like `spec`.

    Args:
        spec: of the SIREN.
        family: one of `FAMILIES`.
        factor: on the frequency of Fourier features, which is else that of the SIREN's first layer.
    """
    shape = spec.to_dict()
    if family == "fourier-relu":
        return FamilySpec(**{**shape, "w0": RELU_GAIN}, family=family, frequency=factor * spec.w0)
    if family == "siren, wider":
        wanted = FamilySpec(**shape, family="grid-siren").parameters_per_instance
        widths = (dataclasses.replace(spec, width=width) for width in count(spec.width))
        return FamilySpec(**next(wide for wide in widths if wide.parameters_per_instance >= wanted).to_dict())
    return FamilySpec(**shape, family=family)


class FamilyField(MixtureField):
    """A mixture of networks of any family; `spec` and `seed` as of `MixtureField`."""

    spec: FamilySpec

    def __init__(self, spec: FamilySpec, seed: int) -> None:
        super().__init__(spec, seed)
        generator = torch.Generator().manual_seed(seed)
        unit = torch.empty(spec.width, spec.in_features).uniform_(-1.0, 1.0, generator=generator)
        self.register_buffer("frequencies", spec.frequency / spec.in_features * unit)
        with torch.no_grad():
            self._start(*split_rows(list(self.bases), spec.shapes))

    frequencies: Tensor

    def _start(self, weights: list[Tensor], biases: list[Tensor]) -> None:
        """Bring the first layer, drawn as a SIREN's of so many inputs, to the spread that its family asks for.

        The weights of the others have it: a SIREN's, but for the factor w0, are those of He et al. 2015 for
        rectified ones.
        """
        fan_in = self.spec.shapes[0][1]
        if self.spec.family == "grid-siren":
            weights[0][:, :, : self.spec.in_features] *= fan_in / self.spec.in_features
            weights[0][:, :, self.spec.in_features :] *= math.sqrt(3.0) * GRID_SPREAD / self.spec.w0 * fan_in
            biases[0] *= math.sqrt(fan_in / self.spec.in_features)
        elif self.spec.family == "fourier-relu":
            weights[0] *= math.sqrt(6.0 / fan_in) / RELU_GAIN * fan_in
            for bias in biases:
                bias /= RELU_GAIN

    def inputs(self, points: Tensor) -> Tensor:
        """What the first layer reads, `[..., features, N]`, of points `[..., in, N]`."""
        return inputs(self.spec, self.frequencies, points)

    def evaluate(self, latents: Tensor, points: Tensor) -> Tensor:
        """See `MixtureField`."""
        return run(self.spec, self.mix_rows(latents), self.inputs(points))

    @torch.no_grad()
    def collapse(self, latent: Tensor) -> FamilyNetwork:
        """See `MixtureField`."""
        return FamilyNetwork(super().collapse(latent), self.spec, self.frequencies)


class FamilyNetwork(CompactField):
    """The small network of one instance."""

    def __init__(self, network: CompactField, spec: FamilySpec, frequencies: Tensor) -> None:
        super().__init__(list(network.weights), list(network.biases), network.final_sine, network.head)
        self.spec = spec
        rows = [torch.cat([w.flatten(), b]).unsqueeze(0) for w, b in zip(network.weights, network.biases)]
        self.rows = torch.nn.ParameterList(torch.nn.Parameter(row, requires_grad=False) for row in rows)
        self.register_buffer("frequencies", frequencies.clone())

    frequencies: Tensor

    def evaluate(self, points: Tensor) -> Tensor:
        """See `CompactField`."""
        return run(self.spec, list(self.rows), inputs(self.spec, self.frequencies, points).unsqueeze(0))[0]


def inputs(spec: FamilySpec, frequencies: Tensor, points: Tensor) -> Tensor:
    """What the first layer reads, `[..., features, N]`, of points `[..., in, N]`."""
    if spec.family == "fourier-relu":
        phases = frequencies.to(points.dtype) @ points
        return torch.cat([phases.sin(), phases.cos()], dim=-2)
    return torch.cat([points, lattice_weights(points / spec.reach)], dim=-2) if spec.family == "grid-siren" else points


def lattice_weights(points: Tensor) -> Tensor:
    """(Multi)linear interpolation weights `[..., G^d, N]` of points `[..., d, N]` at the nodes of a lattice over
    [-1, 1]^d, the last axis fastest; outside it goes on as at its border.
    """
    dims = points.shape[-2]
    size = NODES[dims]
    nodes = torch.arange(size, dtype=points.dtype, device=points.device).unsqueeze(1)
    place = ((points + 1.0) * (0.5 * (size - 1))).clamp(0.0, size - 1.0)
    hats = (1.0 - (place.unsqueeze(-2) - nodes).abs()).clamp(min=0.0)  # [..., d, G, N]
    weights = hats[..., 0, :, :]
    for axis in range(1, dims):
        weights = (weights.unsqueeze(-2) * hats[..., axis, :, :].unsqueeze(-3)).flatten(-3, -2)
    return weights


def run(spec: FamilySpec, rows: Sequence[Tensor], hidden: Tensor) -> Tensor:
    """Values `[B, out, N]` of networks given as rows, which read `hidden` `[B, features, N]`."""
    final_sine = spec.final_activation == "sine"
    if spec.family != "fourier-relu":
        return siren_forward_rows(rows, spec.shapes, hidden, final_sine)
    for layer, (weight, bias) in enumerate(zip(*split_rows(rows, spec.shapes))):
        hidden = torch.baddbmm(bias, weight, hidden if layer == 0 else torch.relu(hidden))
    return torch.sin(hidden) if final_sine else hidden
