"""The shape of a field: its networks, and how latents make them. Saved with every model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import families
from mnif_nerf.fields.heads import HEADS
from mnif_nerf.fields.network import NetworkForm, layer_shapes, num_parameters
from mnif_nerf.limits import is_number
from mnif_nerf.names import shown

_MOST, _MOST_LAYERS = 10_000_000, 1000  # of a width or a number of bases, and of layers or channels
_MOST_W0 = 1e6  # beyond it, sines of single precision are noise
_REFERENCE = 64  # width, latent size and number of bases at which units are 1 or near it

MODULATIONS = ("mixture", "shift", "low-rank")

_CHOICES = {
    "coefficients": ("layer-wise", "network-wise"),
    "init": ("corrected", "authors"),
    "parametrization": ("plain", "scaled", "centred"),
    "final_activation": ("linear", "sine"),
    "head": HEADS,
    "family": tuple(families.FAMILIES),
    "modulation": MODULATIONS,
}


@dataclass(frozen=True)
class FieldSpec:
    """Shape of a field. The defaults are the paper's SRN Cars S (radiance) configuration.

    Attributes:
        in_features: coordinates per point (3 for radiance).
        out_features: channels per point (4 for radiance: red, green, blue, density; all raw).
        width: hidden width of the small networks.
        hidden_layers: width x width layers after the first one; the network has two linear layers more.
        num_bases: M, the basis networks of a mixture.
        latent_dim: D.
        w0: sine frequency of every layer; of "fourier-relu" the bandwidth of its first layer.
        coefficients: of a mixture: "layer-wise" (one per basis and layer) or "network-wise" (one per basis).
        init: initialisation of a mixture: "corrected" keeps the spread of the initial output independent of M;
            "authors" averages unscaled bases, whose mean has weights 1/sqrt(M) too small.
        parametrization: "scaled" measures parameters in units of what their size asks for, so that the same learning
            rates suit fields of any width, number of bases and latent size (`weight_units`, `latent_unit`,
            `ModulatedField.unit`); "centred" does, too, and makes a mixture a mean network and deviations from it;
            "plain" does neither.
        final_activation: "linear" (radiance, logits) or "sine" (values in [-1, 1]).
        head: what the raw values mean, see `mnif_nerf.fields.heads`.
        family: family of the small networks, see `mnif_nerf.fields.families`.
        modulation: how a latent makes the small network, see `mnif_nerf.fields.modulations`.
        rank: rank of the weights' change by a "low-rank" modulation.
        fourier_features: random directions of "fourier-relu", which gives each a sine and a cosine; 0: as many as the
            width.
        color_latent: of a mixture with layer-wise coefficients whose last output is the shape and whose others are
            colours: so many of the last numbers of a latent make the colours, by mixture coefficients of their own for
            the last layer, and nothing else; 0: everything depends on all numbers.
    """

    in_features: int = 3
    out_features: int = 4
    width: int = 64
    hidden_layers: int = 4
    num_bases: int = 256
    latent_dim: int = 128
    w0: float = 30.0
    coefficients: str = "layer-wise"
    init: str = "corrected"
    final_activation: str = "linear"
    head: str = "radiance"
    family: str = "siren"
    modulation: str = "mixture"
    rank: int = 8
    fourier_features: int = 0
    parametrization: str = "plain"
    color_latent: int = 0

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "width", "num_bases", "latent_dim", "rank"):
            self._require(name, 1, "at least 1", _MOST_LAYERS if name in ("in_features", "out_features") else _MOST)
        for name in ("hidden_layers", "fourier_features", "color_latent"):
            self._require(name, 0, "0 or more", _MOST_LAYERS if name == "hidden_layers" else _MOST)
        if not (is_number(self.w0) and 0 < self.w0 <= _MOST_W0):
            raise MNIFError(
                f"`w0` of the field is {shown(self.w0, 60)}; it must be above 0 and at most {_MOST_W0:,.0f} (the "
                "paper uses 30)."
            )
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise MNIFError(
                    f"`{name}` of the field is {shown(repr(value), 60)}; choose one of {', '.join(allowed)}."
                )

        if self.color_latent and (self.modulation != "mixture" or self.coefficients != "layer-wise"):
            raise MNIFError(
                "`color_latent` of the field needs a mixture with layer-wise coefficients; set it to 0 for another."
            )
        if self.color_latent >= self.latent_dim or (self.color_latent and self.out_features < 2):
            raise MNIFError(
                f"`color_latent` of the field is {self.color_latent}, with latents of {self.latent_dim} numbers and "
                f"{self.out_features} outputs; it must be smaller than the latent, and have colours beside the shape."
            )
        if self.modulation == "shift" and len(self.learned_shapes) < 2:
            raise MNIFError(
                "`modulation` of the field is 'shift', and this network has no learned hidden layer to shift; set "
                "`hidden_layers` to 1 or more."
            )

    def _require(self, name: str, least: int, words: str, most: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise MNIFError(f"`{name}` of the field is {shown(value, 60)}; it must be {words}.")
        if value > most:
            raise MNIFError(f"`{name}` of the field is {value:,}; it must be {most:,} at most.")

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """`(out, in)` of every linear layer of one small network."""
        shapes = layer_shapes(self.in_features, self.width, self.hidden_layers, self.out_features)
        if families.get(self.family).fixed_first:
            features = 2 * (self.fourier_features or self.width)
            # The features stand in the place of the first layer's outputs.
            shapes[0] = (features, self.in_features)
            shapes[1] = (shapes[1][0], features)
        return shapes

    @property
    def learned_shapes(self) -> list[tuple[int, int]]:
        """Those of the layers that are learned and modulated: all, but for a family whose first layer is fixed."""
        return self.shapes[1:] if families.get(self.family).fixed_first else self.shapes

    @property
    def form(self) -> NetworkForm:
        """What all small networks of the field have in common."""
        return NetworkForm(tuple(self.shapes), self.final_activation == "sine", self.family, self.w0)

    @property
    def parameters_per_instance(self) -> int:
        """Parameters of the collapsed network of one instance."""
        return num_parameters(self.shapes)

    @property
    def num_coefficients(self) -> int:
        """L of a mixture's coefficients `[M, L]`: one for each layer, and one more for the colours' rows of the last
        layer where a part of the latent is theirs alone."""
        return len(self.learned_shapes) + (self.color_latent > 0)

    @property
    def num_parameters(self) -> int:
        """Numbers in the whole field: basis networks or the shared one, and the projection of latents."""
        layers = self.learned_shapes
        if self.modulation == "mixture":
            per_basis = self.num_coefficients if self.coefficients == "layer-wise" else 1
            return self.num_bases * (num_parameters(layers) + (self.latent_dim + 1) * per_basis)
        if self.modulation == "shift":
            return num_parameters(layers) + self.latent_dim * sum(out for out, _ in layers[:-1])
        sides = sum(out + fan_in + 1 for out, fan_in in layers)
        columns = sum(fan_in + 1 for _, fan_in in layers)
        return num_parameters(layers) + self.rank * (self.latent_dim * sides + columns)

    @property
    def weight_units(self) -> list[float]:
        """Units of the weights of each learned layer, which are parameters times units.

        An Adam step moves every weight by one learning rate times its unit, and so an output by up to that times the
        inputs. All but "plain" divides by the inputs of layers that follow another one (as maximal-update
        parametrisation does, Yang et al. 2021), with 1 at 64 inputs.
        """
        shapes = self.learned_shapes
        if self.parametrization == "plain":
            return [1.0] * len(shapes)
        # Coordinates, the inputs of a learned first layer, stay the same few for every width.
        follows = [len(shapes) < len(self.shapes), *(True for _ in shapes[1:])]
        return [_REFERENCE / fan_in if behind else 1.0 for behind, (_, fan_in) in zip(follows, shapes)]

    @property
    def latent_unit(self) -> float:
        """What latents are multiplied by before they are projected: 64/D but for "plain" fields, since a step of all of
        the projection adds up over the D numbers of a latent."""
        return 1.0 if self.parametrization == "plain" else _REFERENCE / self.latent_dim

    def to_dict(self) -> dict[str, Any]:
        """The specification as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FieldSpec:
        """Read back `to_dict`; what older versions did not write has its default.

        Raises:
            MNIFError: a key this version does not know, or a value out of range.
        """
        if not isinstance(values, dict):
            raise MNIFError(f"field specification {values!r} is no list of names and values; train the model again.")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise MNIFError(f"field specification has unknown keys {unknown}; it was written by another version.")
        return cls(**values)
