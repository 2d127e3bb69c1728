"""The mixture of basis networks: latent code -> mixture coefficients -> one small SIREN per instance.

Paper (arXiv 2310.19464), section 3: W_l(z) = sum_m alpha_{m,l}(z) W_{m,l}, the same for the biases, with
alpha(z) a linear projection of the latent code. Mixing is one matrix product per layer, `alpha_l [B, M] @ bases_l
[M, P_l]`, which never materialises the B x M x P tensor of the authors' broadcast-and-sum.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.heads import HEADS, color_from_raw, density_from_raw
from mnif_nerf.fields.siren import init_layer, layer_shapes, num_parameters, siren_forward_rows, split_rows

_CHOICES = {
    "coefficients": ("layer-wise", "network-wise"),
    "init": ("corrected", "authors"),
    "final_activation": ("linear", "sine"),
    "head": HEADS,
}


@dataclass(frozen=True)
class FieldSpec:
    """Shape of a mixture field. The defaults are the paper's SRN Cars S (radiance) configuration.

    Attributes:
        in_features: coordinates per point (3 for radiance).
        out_features: channels per point (4 for radiance: red, green, blue, density; all raw).
        width: hidden width of every basis network.
        hidden_layers: width x width layers after the first one; the network has two linear layers more.
        num_bases: M.
        latent_dim: D.
        w0: sine frequency of every layer.
        coefficients: "layer-wise" (one per basis and layer) or "network-wise" (one per basis).
        init: "corrected" keeps the spread of the initial output independent of M; "authors" averages
            unscaled bases, whose mean has weights 1/sqrt(M) too small.
        final_activation: "linear" (radiance, logits) or "sine" (values in [-1, 1]).
        head: what the raw values mean, see `mnif_nerf.fields.heads`.
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

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "width", "num_bases", "latent_dim"):
            if getattr(self, name) < 1:
                raise MNIFError(f"field {name} is {getattr(self, name)}; it must be at least 1.")
        if self.hidden_layers < 0:
            raise MNIFError(f"field hidden_layers is {self.hidden_layers}; it must be 0 or more.")
        if not (math.isfinite(self.w0) and self.w0 > 0):
            raise MNIFError(f"field w0 is {self.w0}; it must be a positive number (the paper uses 30).")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise MNIFError(f"field {name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """`(out, in)` of every linear layer of one basis network."""
        return layer_shapes(self.in_features, self.width, self.hidden_layers, self.out_features)

    @property
    def parameters_per_instance(self) -> int:
        """Parameters of the collapsed network of one instance."""
        return num_parameters(self.shapes)

    def to_dict(self) -> dict[str, Any]:
        """The specification as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FieldSpec:
        """Read back `to_dict`.

        Raises:
            MNIFError: a key this version does not know, or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise MNIFError(f"field specification has unknown keys {unknown}; it was written by another version.")
        return cls(**values)


class MixtureField(nn.Module):
    """M basis networks, and the projection from a latent code to their mixture coefficients.

    Attributes:
        bases: one parameter `[M, out * in + out]` per layer; a row is a weight matrix (row-major) and its bias.
        projection: `nn.Linear(D, M * L)` (layer-wise) or `nn.Linear(D, M)`; its bias starts at 1/M, so that the
            zero latent is the plain average of the bases.
    """

    def __init__(self, spec: FieldSpec, seed: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        # The mean of M independent layers has 1/sqrt(M) of their spread: scaling each by sqrt(M) restores SIREN's.
        scale = math.sqrt(spec.num_bases) if spec.init == "corrected" else 1.0
        rows = []
        for layer, (out, fan_in) in enumerate(spec.shapes):
            weight, bias = init_layer(spec.num_bases, out, fan_in, layer == 0, spec.w0, generator)
            rows.append(nn.Parameter(scale * torch.cat([weight.flatten(1), bias], dim=1)))
        self.bases = nn.ParameterList(rows)
        self.projection = nn.Linear(spec.latent_dim, spec.num_bases * self._coefficients_per_basis)
        self._init_projection(generator)

    @property
    def _coefficients_per_basis(self) -> int:
        return len(self.spec.shapes) if self.spec.coefficients == "layer-wise" else 1

    def _init_projection(self, generator: torch.Generator | None) -> None:
        spec = self.spec
        with torch.no_grad():
            self.projection.bias.fill_(1.0 / spec.num_bases)
            if spec.init == "corrected":
                # A unit-variance latent then moves each coefficient by about its own mean, 1/M.
                self.projection.weight.normal_(generator=generator).div_(math.sqrt(spec.latent_dim) * spec.num_bases)
            else:
                bound = 1.0 / math.sqrt(spec.latent_dim)
                self.projection.weight.uniform_(-bound, bound, generator=generator)

    def coefficients(self, latents: Tensor) -> Tensor:
        """Mixture coefficients `[B, M, L]` of latent codes `[B, D]` (network-wise: the same for every layer)."""
        alpha = self.projection(latents).view(len(latents), self.spec.num_bases, self._coefficients_per_basis)
        return alpha.expand(-1, -1, len(self.spec.shapes))

    def mix(self, latents: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Mixed networks of B latent codes, with w0 multiplied in (ready for `siren_forward`).

        Args:
            latents: `[B, D]`.

        Returns:
            weights, one `[B, out, in]` per layer, and biases, one `[B, out, 1]` per layer.
        """
        return split_rows(self.mix_rows(latents), self.spec.shapes)

    def mix_rows(self, latents: Tensor) -> list[Tensor]:
        """What `mix` yields, as one row `[B, out * in + out]` per layer (ready for `siren_forward_rows`)."""
        return self.mix_coefficients(self.coefficients(latents))

    def mix_coefficients(self, alpha: Tensor) -> list[Tensor]:
        """`mix_rows` of mixture coefficients `[B, M, L]`, which no latent need give."""
        last = len(self.bases) - 1
        mixed = []
        for layer, rows in enumerate(self.bases):
            sine = layer < last or self.spec.final_activation == "sine"
            mixed.append((alpha[:, :, layer] * (self.spec.w0 if sine else 1.0)) @ rows)
        return mixed

    def evaluate(self, latents: Tensor, points: Tensor) -> Tensor:
        """Raw values `[B, out, N]` at feature-major points `[B, in, N]` of the instances `latents` `[B, D]`."""
        sine = self.spec.final_activation == "sine"
        return siren_forward_rows(self.mix_rows(latents), self.spec.shapes, points, sine)

    def forward(self, latents: Tensor, points: Tensor) -> Tensor:
        """Raw values `[B, N, out]` at points `[B, N, in]` of the instances `latents` `[B, D]`."""
        return self.evaluate(latents, points.transpose(1, 2)).transpose(1, 2)

    def radiance(self, latents: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colours `[B, N, 3]` in [0, 1] and densities `[B, N]` >= 0 at points `[B, N, 3]`."""
        raw = self.forward(latents, points)
        return color_from_raw(raw[..., :3], self.spec.head), density_from_raw(raw[..., 3], self.spec.head)

    @torch.no_grad()
    def collapse(self, latent: Tensor) -> CompactField:
        """The small network of one latent code `[D]`; it holds no bases and equals the mixture.

        Raises:
            MNIFError: the latent has another size than this field's.
        """
        if latent.shape != (self.spec.latent_dim,):
            raise MNIFError(
                f"a latent of shape {list(latent.shape)} does not fit this field, "
                f"which takes {self.spec.latent_dim} numbers; use a latent of the same model."
            )
        return self.collapse_coefficients(self.coefficients(latent.unsqueeze(0))[0])

    @torch.no_grad()
    def collapse_coefficients(self, alpha: Tensor) -> CompactField:
        """The small network of mixture coefficients `[M, L]`, which no latent need give.

        Raises:
            MNIFError: coefficients of another size than this field's.
        """
        expected = (self.spec.num_bases, len(self.spec.shapes))
        if alpha.shape != expected:
            raise MNIFError(
                f"mixture coefficients of shape {list(alpha.shape)} do not fit this field, which takes "
                f"{list(expected)} (bases, layers); use those of the same model."
            )
        weights, biases = split_rows(self.mix_coefficients(alpha.unsqueeze(0)), self.spec.shapes)
        return CompactField(
            [weight[0] for weight in weights],
            [bias[0, :, 0] for bias in biases],
            final_sine=self.spec.final_activation == "sine",
            head=self.spec.head,
        )
