"""The mixture of basis networks: latent code -> mixture coefficients -> one small network per instance.

Paper (arXiv 2310.19464), section 3: W_l(z) = sum_m alpha_{m,l}(z) W_{m,l}, the same for the biases, with
alpha(z) a linear projection of the latent code. Mixing is one matrix product per layer, `alpha_l [B, M] @ bases_l
[M, P_l]`, which never materialises the B x M x P tensor of the authors' broadcast-and-sum.

"centred" fields span the same small networks by other bases. Where all coefficients lie around 1/M, the gradients of
all bases point where that of their mean does, and Adam, which divides each by its own size, moves them together: the
mean network learns, differences between bases hardly. So the first basis is the mean network itself, with a coefficient
around 1, and the others are deviations from it, with coefficients around 0, whose gradients are their own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.modulations.base import ModulatedField

# "scaled" and "centred" fields: makes learning rates near those of networks fit the projection.
_GAIN = 50.0
# "centred" fields: how much faster deviations learn than the mean network; measured: 1, 2, 4 and 8.
_DEVIATION_RATE = 4.0


def as_mixture(field: ModulatedField, what: str) -> MixtureField:
    """The field, where it is a mixture.

    Args:
        field: a field of any modulation.
        what: what needs a mixture, to begin a sentence with.

    Raises:
        MNIFError: the field has another modulation.
    """
    if not isinstance(field, MixtureField):
        raise MNIFError(
            f"{what} needs a mixture of basis networks, and this model's `modulation` is {field.spec.modulation!r}; "
            "train one with the modulation 'mixture'."
        )
    return field


class MixtureField(ModulatedField):
    """M basis networks, and the projection from a latent code to their mixture coefficients.

    Attributes:
        bases: one parameter `[M, out * in + out]` per learned layer: flat weights, one basis per row.
        projection: `nn.Linear(D, M * L)` (layer-wise) or `nn.Linear(D, M)`; `project` makes coefficients of it. Its
            bias starts at their mean, 1/M, so that the zero latent is the plain average of the bases; of "centred"
            fields at 0, so that it is the first basis.
    """

    _reach: Tensor
    _factors: Tensor
    _mean: Tensor

    def init(self, generator: torch.Generator | None) -> None:
        """See `ModulatedField`."""
        spec = self.spec
        # The mean of M independent layers has 1/sqrt(M) of their spread: scaling each by sqrt(M) restores it.
        scale = math.sqrt(spec.num_bases) if spec.init == "corrected" else 1.0
        layers = [scale * layer for layer in self.init_layers(spec.num_bases, generator)]
        if self._centred:
            self.register_buffer("_factors", self._rates(), persistent=False)
            self.register_buffer("_mean", torch.eye(spec.num_bases, 1), persistent=False)
            layers = [layer / self._factors for layer in layers]
        self.bases = nn.ParameterList(nn.Parameter(layer) for layer in layers)
        self.projection = nn.Linear(spec.latent_dim, spec.num_bases * self._coefficients_per_basis)
        with torch.no_grad():
            self.projection.bias.fill_(0.0 if self._centred else 1.0 / spec.num_bases / self.unit)
            if spec.init == "corrected":
                # A unit-variance latent then moves each coefficient by about its own mean, 1/M.
                self.projection.weight.normal_(generator=generator).div_(math.sqrt(spec.latent_dim) * spec.num_bases)
            else:
                bound = 1.0 / math.sqrt(spec.latent_dim)
                self.projection.weight.uniform_(-bound, bound, generator=generator)
            self.projection.weight.div_(self.unit * spec.latent_unit)
            if spec.color_latent:
                self.register_buffer("_reach", self._reaching(), persistent=False)
                self.projection.weight.mul_(self._reach)

    @property
    def unit(self) -> float:
        """See `ModulatedField`. Where M coefficients, of bases whose spread is sqrt(M), move along a gradient, the
        weights move by M^1.5 times as much."""
        return 1.0 if self.spec.parametrization == "plain" else _GAIN / self.spec.num_bases**1.5

    @property
    def _centred(self) -> bool:
        return self.spec.parametrization == "centred"

    def _rates(self) -> Tensor:
        """Of "centred" fields, what bases are divided by and their coefficients multiplied with, `[M, 1]`: a step moves
        the small network by so much more. The mean network starts as one network does."""
        first = math.sqrt(self.spec.num_bases)
        return torch.tensor([first] + (self.spec.num_bases - 1) * [_DEVIATION_RATE]).unsqueeze(1)

    @property
    def _coefficients_per_basis(self) -> int:
        return self.spec.num_coefficients if self.spec.coefficients == "layer-wise" else 1

    def _reaching(self) -> Tensor:
        """Which numbers of a latent reach which coefficients, a part the colours' alone: 1 or 0, `[M * L, D]`."""
        spec = self.spec
        reach = torch.zeros(spec.num_bases, spec.num_coefficients, spec.latent_dim)
        reach[:, :-1, : -spec.color_latent] = 1.0
        reach[:, -1, -spec.color_latent :] = 1.0
        return reach.flatten(0, 1)

    def project(self, latents: Tensor) -> Tensor:
        """See `ModulatedField`."""
        if not self.spec.color_latent:
            return super().project(latents)
        weight = self.projection.weight * self._reach
        return self.unit * functional.linear(self.spec.latent_unit * latents, weight, self.projection.bias)

    def coefficients(self, latents: Tensor) -> Tensor:
        """Mixture coefficients `[B, M, L]` of latent codes `[B, D]` (network-wise: the same for every layer)."""
        alpha = self.project(latents).view(len(latents), self.spec.num_bases, self._coefficients_per_basis)
        if self._centred:
            alpha = torch.addcmul(self._mean, alpha, self._factors)
        return alpha.expand(-1, -1, self.spec.num_coefficients)

    def weights(self, latents: Tensor) -> list[Tensor]:
        """See `ModulatedField`."""
        return self._mixed(self.coefficients(latents))

    def _mixed(self, alpha: Tensor) -> list[Tensor]:
        shares = alpha.unbind(2)
        mixed = [(share * gain) @ bases for share, gain, bases in zip(shares, self.gains, self.bases)]
        if self.spec.color_latent:
            # The last output is the shape; the rows above it, and their biases, are mixed by the colours' coefficients.
            outputs, inputs = self.spec.learned_shapes[-1]
            colors = (shares[-1] * self.gains[-1]) @ self.bases[-1]
            shape_row, shape_bias = (outputs - 1) * inputs, outputs * inputs + outputs - 1
            mixed[-1] = torch.cat(
                [
                    colors[:, :shape_row],
                    mixed[-1][:, shape_row : outputs * inputs],
                    colors[:, outputs * inputs : shape_bias],
                    mixed[-1][:, shape_bias:],
                ],
                dim=1,
            )
        return mixed

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Which coefficients mix the flat weights of all learned layers, one after another: how many numbers in a row,
        and the column of `project`'s `[M, columns]` that is theirs. For programs that mix by themselves."""
        sizes = [out * (inputs + 1) for out, inputs in self.spec.learned_shapes]
        runs = [(size, layer if self._coefficients_per_basis > 1 else 0) for layer, size in enumerate(sizes)]
        if self.spec.color_latent:  # see `_mixed`
            (outputs, inputs), shape = self.spec.learned_shapes[-1], len(sizes) - 1
            colors = outputs - 1
            runs[-1:] = [(colors * inputs, shape + 1), (inputs, shape), (colors, shape + 1), (1, shape)]
        return runs

    @property
    def affine_projection(self) -> tuple[Tensor, Tensor]:
        """`project` as a matrix `[M * columns, D]` and an offset `[M * columns]`, with all units multiplied in."""
        weight = self.projection.weight * self._reach if self.spec.color_latent else self.projection.weight
        weight, bias = self.unit * self.spec.latent_unit * weight, self.unit * self.projection.bias
        if self._centred:
            rows = len(bias) // self.spec.num_bases
            factors = self._factors.repeat_interleave(rows, dim=0)
            weight, bias = factors * weight, factors[:, 0] * bias + self._mean[:, 0].repeat_interleave(rows)
        return weight, bias

    @torch.no_grad()
    def collapse_coefficients(self, alpha: Tensor) -> CompactField:
        """The small network of mixture coefficients `[M, L]`, which may correspond to no latent.

        Raises:
            MNIFError: coefficients of another size than this field's.
        """
        expected = (self.spec.num_bases, self.spec.num_coefficients)
        if alpha.shape != expected:
            raise MNIFError(
                f"mixture coefficients of shape {list(alpha.shape)} do not fit this field, which takes "
                f"{list(expected)} (bases, layers); use those of the same model."
            )
        return self.as_compact(self.with_first_layer(self._mixed(alpha.unsqueeze(0))))
