"""Network families: which activations the small networks have, and how their layers start.

"siren"         sines (Sitzmann et al. 2020): the paper's, and the only one that the compiled kernel runs
"finer"         sines whose frequency grows with their argument, sin(w0 (|x| + 1) x) (Liu et al. 2024)
"fourier-relu"  sines of fixed random directions, then rectified layers (Tancik et al. 2020)

A family is what `FAMILIES` holds under its name; add one there. Its constants are multiplied into the flat weights
(`gain`), so that a collapsed network is plain layers and the name of its family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.network import NetworkForm, join_flat, split_flat

# Initial weights of rectified layers are divided by it and used ones multiplied, so it is a learning rate: of 1, 3, 10
# and 30, 3 learned fastest.
_RELU_GAIN = 3.0
# FINER's first biases are uniform in +- this: they spread the neurons over frequencies from w0 to (1 + 2 * this) * w0.
_FINER_BIAS = 1.0

Activation = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Family:
    """A kind of small network.

    Attributes:
        first: what follows the first layer: of pre-activations and w0.
        hidden: what follows the other layers but the last.
        fixed_first: whether the first layer is drawn once, saved with the model, and neither learned nor modulated.
        w0_gain: the factor w0 (True) or `_RELU_GAIN` (False), multiplied into every layer that an activation follows.
        first_bias: half the range of the first layer's initial biases; None: 1/sqrt(fan_in).
    """

    first: Activation
    hidden: Activation
    fixed_first: bool = False
    w0_gain: bool = True
    first_bias: float | None = None

    def gain(self, w0: float) -> float:
        """The factor in the flat weights of layers that an activation follows."""
        return w0 if self.w0_gain else _RELU_GAIN

    def init_layer(
        self, count: int, shape: tuple[int, int], first: bool, w0: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Flat weights `[count, out * in + out]` of independent layers, without the gain.

        With the gain, every pre-activation of a hidden layer has about unit variance in a sine family (Sitzmann et
        al. 2020, section 3.2), and keeps the variance of the layer before in a rectified one (He et al. 2015).
        Weights are uniform in +-1/fan_in (first layer of sines) or +-sqrt(6/fan_in)/gain; biases in
        +-1/sqrt(fan_in), of rectified layers divided by the gain.
        """
        (out, fan_in), gain = shape, self.gain(w0)
        bound = 1.0 / fan_in if first and self.w0_gain else math.sqrt(6.0 / fan_in) / gain
        weight = torch.empty(count, out, fan_in).uniform_(-bound, bound, generator=generator)
        bias_bound = 1.0 / math.sqrt(fan_in) / (1.0 if self.w0_gain else gain)
        if first and self.first_bias is not None:
            bias_bound = self.first_bias
        bias = torch.empty(count, out).uniform_(-bias_bound, bias_bound, generator=generator)
        return join_flat(weight, bias)


def _sine(x: Tensor, w0: float) -> Tensor:
    return torch.sin(x)


def _rectified(x: Tensor, w0: float) -> Tensor:
    return torch.relu(x)


def _chirp(x: Tensor, w0: float) -> Tensor:
    return torch.sin(x * (1.0 + x.abs() / w0))  # x holds a factor w0 already


FAMILIES: dict[str, Family] = {
    "siren": Family(_sine, _sine),
    "finer": Family(_chirp, _chirp, first_bias=_FINER_BIAS),
    "fourier-relu": Family(_sine, _rectified, fixed_first=True, w0_gain=False),
}


def get(name: str) -> Family:
    """The family of that name.

    Raises:
        MNIFError: there is none.
    """
    if name not in FAMILIES:
        raise MNIFError(f"network family {name!r} is not known here; choose one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def fourier_features(count: int, in_features: int, w0: float, generator: torch.Generator | None = None) -> Tensor:
    """The flat first layer `[2 * count * (in + 1)]` that gives sines and cosines of `count` random directions.

    Directions are drawn like a SIREN's first layer of the same w0, uniformly in +-w0/in, so that w0 sets the bandwidth
    in every family.
    """
    bound = w0 / in_features
    directions = torch.empty(count, in_features).uniform_(-bound, bound, generator=generator)
    phases = torch.cat([torch.zeros(count), torch.full((count,), 0.5 * math.pi)])  # cos(x) = sin(x + pi/2)
    return torch.cat([directions.repeat(2, 1).flatten(), phases])


def forward_reference(form: NetworkForm, flat: Sequence[Tensor], points: Tensor) -> Tensor:
    """Values `[B, out, N]` at `points` `[B, in, N]` in plain torch: any device and type, as differentiable as torch."""
    return forward_layers(form, *split_flat(flat, form.shapes), points)


def forward_layers(form: NetworkForm, weights: Sequence[Tensor], biases: Sequence[Tensor], points: Tensor) -> Tensor:
    """The same of weights `[B, out, in]` and biases `[B, out, 1]`."""
    family, hidden, last = get(form.family), points, len(form.shapes) - 1
    for layer, (weight, bias) in enumerate(zip(weights, biases)):
        hidden = torch.baddbmm(bias, weight, hidden)
        if layer < last:
            hidden = (family.hidden if layer else family.first)(hidden, form.w0)
    return torch.sin(hidden) if form.final_sine else hidden
