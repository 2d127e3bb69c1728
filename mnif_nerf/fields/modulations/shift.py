"""Shift modulation: one shared network whose hidden biases a latent shifts (Functa, Dupont et al. 2022).

W_l is shared, and b_l(z) = b_l + s_l(z) with s a linear map of the latent code, in every layer that an activation
follows. It has few parameters; what differs between instances is only where activations are cut.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mnif_nerf.fields.modulations.base import ModulatedField


class ShiftField(ModulatedField):
    """One network, and the projection from a latent code to the shifts of its hidden layers.

    Attributes:
        shared: one parameter `[out * in + out]` per learned layer.
        projection: `nn.Linear(D, sum of the hidden layers' widths)` without a bias: a zero latent shifts nothing.
    """

    def init(self, generator: torch.Generator | None) -> None:
        """See `ModulatedField`."""
        self.shared = nn.ParameterList(nn.Parameter(layer[0]) for layer in self.init_layers(1, generator))
        self.projection = self.unbiased_projection(sum(self._widths), generator)

    @property
    def _widths(self) -> list[int]:
        return [out for out, _ in self.spec.learned_shapes[:-1]]

    def weights(self, latents: Tensor) -> list[Tensor]:
        """See `ModulatedField`."""
        shifts = self.project(latents).split(self._widths, dim=1)
        flat = [(gain * layer).expand(len(latents), -1) for gain, layer in zip(self.gains, self.shared)]
        for layer, shift in enumerate(shifts):
            matrix, bias = flat[layer].split([flat[layer].shape[1] - shift.shape[1], shift.shape[1]], dim=1)
            flat[layer] = torch.cat([matrix, bias + shift], dim=1)
        return flat
