"""Low-rank modulation: one shared network whose weights a latent scales, by a matrix of low rank.

W_l(z) = W_l * 2 sigmoid(U_l(z) V_l(z)^T), entry by entry, with U and V of rank R linear in the latent code: the
factorised multiplicative modulation of Skorokhodov et al. 2021 (INR-GAN), which VC-INR (Schwarz et al. 2023) uses for
latents of neural fields. The bias is one more column of the matrix. A zero latent has U = 0 and so leaves W as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mnif_nerf.fields.modulations.base import ModulatedField


class LowRankField(ModulatedField):
    """One network, and the projection from a latent code to the factors U and V of every layer.

    Attributes:
        shared: one parameter `[out * in + out]` per learned layer.
        factors: V at the zero latent, one `[in + 1, R]` per learned layer. They are not zero, without which U and V
            would keep each other at zero.
        projection: `nn.Linear(D, sum of (out + in + 1) * R)` without a bias.
    """

    def init(self, generator: torch.Generator | None) -> None:
        """See `ModulatedField`."""
        spec = self.spec
        self.shared = nn.ParameterList(nn.Parameter(layer[0]) for layer in self.init_layers(1, generator))
        # Then the exponents of a latent of unit variance have about unit variance.
        scale = spec.rank**-0.5
        self.factors = nn.ParameterList(
            nn.Parameter(scale * torch.randn(fan_in + 1, spec.rank, generator=generator))
            for _, fan_in in spec.learned_shapes
        )
        self.projection = self.unbiased_projection(spec.rank * sum(map(sum, self._sides)), generator)

    @property
    def _sides(self) -> list[tuple[int, int]]:
        return [(out, fan_in + 1) for out, fan_in in self.spec.learned_shapes]

    def weights(self, latents: Tensor) -> list[Tensor]:
        """See `ModulatedField`."""
        rank, count = self.spec.rank, len(latents)
        parts = iter(self.project(latents).split([rank * n for side in self._sides for n in side], dim=1))
        flat = []
        for gain, layer, start, (out, columns) in zip(self.gains, self.shared, self.factors, self._sides):
            left, right = next(parts).view(count, out, rank), next(parts).view(count, columns, rank)
            scale = 2.0 * torch.sigmoid(left @ (start + rank**-0.5 * right).transpose(1, 2))
            fan_in = columns - 1
            spread = torch.cat([scale[:, :, :fan_in].flatten(1), scale[:, :, fan_in]], dim=1)
            flat.append(gain * layer * spread)
        return flat
