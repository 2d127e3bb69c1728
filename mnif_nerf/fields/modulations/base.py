"""What every modulation is: latent codes to the flat weights of small networks, and those evaluated or collapsed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import families
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.evaluate import Networks
from mnif_nerf.fields.network import split_flat
from mnif_nerf.fields.spec import FieldSpec

# The projection's outputs times this are shifts (in radians, of sines) and factors of low-rank changes, so that
# learning rates made for mixture coefficients, whose size is about one hundredth, fit here too.
_GAIN = 10.0
_SCALED_GAIN = 1.4


class ModulatedField(nn.Module):
    """A family of small networks, one for each latent code. Modulations implement `init` and `weights`.

    Attributes:
        first_layer: flat weights of a first layer that is drawn once and never learned, of families that have one.
    """

    first_layer: Tensor

    def __init__(self, spec: FieldSpec, seed: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.form = spec.form
        self.family = families.get(spec.family)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        if self.family.fixed_first:
            count = spec.fourier_features or spec.width
            features = families.fourier_features(count, spec.in_features, spec.w0, generator)
            self.register_buffer("first_layer", features)
        self.init(generator)

    def init(self, generator: torch.Generator | None) -> None:
        """Make and initialise the parameters."""
        raise NotImplementedError

    def weights(self, latents: Tensor) -> list[Tensor]:
        """Flat weights `[B, out * in + out]` of the learned layers, with the family's `gains` multiplied in."""
        raise NotImplementedError

    @property
    def unit(self) -> float:
        """What a latent says (coefficients, shifts, factors) is the projection's outputs times this; of all but
        "plain" fields it makes learning rates carry over from one size to another."""
        return _GAIN if self.spec.parametrization == "plain" else _SCALED_GAIN

    def unbiased_projection(self, outputs: int, generator: torch.Generator | None) -> nn.Linear:
        """A projection without a bias, so that a zero latent says 0 and one of unit variance numbers of about 1."""
        spec = self.spec
        projection = nn.Linear(spec.latent_dim, outputs, bias=False)
        with torch.no_grad():
            projection.weight.normal_(generator=generator).div_(
                self.unit * spec.latent_unit * math.sqrt(spec.latent_dim)
            )
        return projection

    def project(self, latents: Tensor) -> Tensor:
        """What latents `[B, D]` say, `[B, K]`: coefficients, shifts or factors."""
        inner, outer = self.spec.latent_unit, self.unit
        said: Tensor = self.projection(latents if inner == 1.0 else inner * latents)
        return said if outer == 1.0 else outer * said

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the optimiser that they want: "fields" (of networks) and "projection" (of latents)."""
        projection = [part for name, part in self.named_parameters() if name.startswith("projection.")]
        return {
            "fields": [part for name, part in self.named_parameters() if not name.startswith("projection.")],
            "projection": projection,
        }

    @property
    def gains(self) -> list[float]:
        """Factors from parameters to the flat weights of each learned layer: the family's gain (of layers that an
        activation follows) times the parametrisation's unit."""
        units = self.spec.weight_units
        last = len(units) if self.form.final_sine else len(units) - 1
        family = self.family.gain(self.spec.w0)
        return [unit * (family if layer < last else 1.0) for layer, unit in enumerate(units)]

    def init_layers(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        """Parameters `[count, out * in + out]` of each learned layer of `count` independent networks: flat weights
        without the `gains`."""
        fixed = len(self.form.shapes) - len(self.spec.learned_shapes)
        return [
            self.family.init_layer(count, shape, layer + fixed == 0, self.spec.w0, generator) / unit
            for layer, (shape, unit) in enumerate(zip(self.spec.learned_shapes, self.spec.weight_units))
        ]

    def flat_weights(self, latents: Tensor) -> list[Tensor]:
        """The small networks of latent codes `[B, D]`: one `[B, out * in + out]` per layer (ready for `evaluate`)."""
        return self.with_first_layer(self.weights(latents))

    def with_first_layer(self, learned: list[Tensor]) -> list[Tensor]:
        """The same layers after the fixed first one, of a family that has one."""
        return [self.first_layer.expand(len(learned[0]), -1), *learned] if self.family.fixed_first else learned

    def networks(self, latents: Tensor) -> Networks:
        """The small networks of latent codes `[B, D]`, a function of points."""
        return Networks(self.form, self.flat_weights(latents))

    def evaluate(self, latents: Tensor, points: Tensor) -> Tensor:
        """Raw values `[B, out, N]` at feature-major points `[B, in, N]` of the instances `latents` `[B, D]`."""
        return self.networks(latents)(points)

    def forward(self, latents: Tensor, points: Tensor) -> Tensor:
        """Raw values `[B, N, out]` at points `[B, N, in]` of the instances `latents` `[B, D]`."""
        return self.evaluate(latents, points.transpose(1, 2)).transpose(1, 2)

    @torch.no_grad()
    def collapse(self, latent: Tensor) -> CompactField:
        """The small network of one latent code `[D]`, which needs this field no more.

        Raises:
            MNIFError: the latent has another size than this field's.
        """
        if latent.shape != (self.spec.latent_dim,):
            raise MNIFError(
                f"a latent of shape {list(latent.shape)} does not fit this field, "
                f"which takes {self.spec.latent_dim} numbers; use a latent of the same model."
            )
        return self.as_compact(self.flat_weights(latent.unsqueeze(0)))

    def as_compact(self, flat: list[Tensor]) -> CompactField:
        """The one network `[1, out * in + out]` per layer, alone."""
        weights, biases = split_flat(flat, self.form.shapes)
        form = self.form
        return CompactField(
            [weight[0] for weight in weights],
            [bias[0, :, 0] for bias in biases],
            form.final_sine,
            self.spec.head,
            form.family,
            form.w0,
        )
