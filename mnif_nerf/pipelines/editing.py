"""Editing: new objects made of old ones, by their latents or by their mixture coefficients, layer by layer.

The networks of a model are linear in the mixture coefficients, and those are affine in the latent. So where every layer
takes the same shares (which sum to 1), mixing networks, coefficients or latents is one and the same thing, and the
result has a latent. Where layers take different shares, the result may correspond to no latent: such an object carries
its coefficients instead, and says so where a latent is asked for.

What a method takes as an object is a `NeuralObject`, a latent `[D]`, or a
training instance's name or index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations.mixture import as_mixture
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.pipelines.decoder import Decoder, check_origin

if TYPE_CHECKING:
    from mnif_nerf.pipelines.model_folder import StoredModel

# Of five layers the last two: measured on the demo's cars (docs/edit.md).
_COLOR_LAYERS = 0.4
_SUM = 1e-4


class Editor(Decoder):
    """A decoder that mixes objects."""

    def mix(self, objects: Sequence[Any], weights: Sequence[Any] | Tensor, name: str = "mixture") -> NeuralObject:
        """The weighted sum of objects, with weights for all layers or for each.

        Args:
            objects: K of them.
            weights: `[K]`, or `[K, L]` with one for each layer (the first one first); they sum to 1 in every layer.
                Negative ones take away.
            name: name of the result.

        Returns:
            an object with a latent where every layer has the same weights (and all `objects` have one), else an object
            with mixture coefficients only.

        Raises:
            MNIFError: no objects, weights that do not fit them or do not sum to 1, or an object of another model.
        """
        shares = _checked_weights(self.model, objects, weights)
        same = bool((shares == shares[:, :1]).all())
        if same and all(_has_latent(item) for item in objects):
            codes = torch.stack([self.latent_of(item) for item in objects])
            return self.decode(shares[:, 0].to(codes) @ codes, name)
        alphas = torch.stack([self.coefficients(item) for item in objects])
        if alphas.shape[-1] > shares.shape[1]:  # the colours' own coefficients of the last layer
            shares = torch.cat([shares, shares[:, -1:]], dim=1)
        return self._decode_coefficients(torch.einsum("kl,kml->ml", shares.to(alphas), alphas), name)

    def mix_layers(self, a: Any, b: Any, shares: Sequence[float], name: str = "mixture") -> NeuralObject:
        """Between two objects, with a share of its own for every layer.

        Args:
            a, b: the objects.
            shares: `[L]`, how much of `b` each layer takes, the first one first: 0 is all `a`, 1 all `b`.
            name: name of the result.

        Raises:
            MNIFError: another number of shares than the networks have layers, or an object of another model.
        """
        layers = len(self.model.field.spec.learned_shapes)
        of_b = torch.as_tensor(shares, dtype=torch.float32).flatten()
        if len(of_b) != layers:
            raise MNIFError(f"{len(of_b)} shares do not fit networks of {layers} layers; give one for each layer.")
        return self.mix([a, b], torch.stack([1 - of_b, of_b]), name)

    def mix_shape_and_color(
        self, shape: Any, color: Any, layers: int | None = None, name: str = "repainted"
    ) -> NeuralObject:
        """The shape of one object with the colours of another.

        Where a part of the latent makes the colours alone (`color_latent` of the field), that part is taken from
        `color`, and the shape stays as it is to the bit. In other models the early layers are those of `shape`, the
        last ones of `color`. Nothing says that layers divide so; trained ones do to a good part. On the cars of
        `make demo` the result's solid has an IoU of 0.96 with `shape`, and four fifths of the difference in paint are
        gone (docs/edit.md).

        Args:
            shape: whose form it gets.
            color: whose colours.
            layers: how many of the last layers come from `color`, from 1 to L - 1. Fewer keep more of the shape and
                reach less of the colour. None takes the part of the latent, or, without one, two fifths of all layers.
            name: name of the result.

        Raises:
            MNIFError: a model of voxels or images, a number of layers out of range, or an object of another model.
        """
        reason = self.model.kind.no_repainting
        if reason:
            raise MNIFError(f"shape and colour cannot be mixed in this model, as {reason}; mix_layers mixes layers.")
        spec = self.model.field.spec
        if spec.color_latent and layers is None:
            return self._with_colors(shape, color, spec.color_latent, name)
        count = len(spec.learned_shapes)
        last = max(1, round(_COLOR_LAYERS * count)) if layers is None else layers
        if not 1 <= last < count:
            raise MNIFError(f"{last} layers of the colour leave no mixture of {count} layers; use 1 to {count - 1}.")
        return self.mix_layers(shape, color, [0.0] * (count - last) + [1.0] * last, name)

    def _with_colors(self, shape: Any, color: Any, numbers: int, name: str) -> NeuralObject:
        """The last `numbers` of a latent, or the colours' own coefficients, from `color`; all else from `shape`."""
        if _has_latent(shape) and _has_latent(color):
            return self.decode(torch.cat([self.latent_of(shape)[:-numbers], self.latent_of(color)[-numbers:]]), name)
        alphas = [self.coefficients(item) for item in (shape, color)]
        return self._decode_coefficients(torch.cat([alphas[0][:, :-1], alphas[1][:, -1:]], dim=1), name)

    def average(
        self, objects: Sequence[Any], weights: Sequence[float] | None = None, name: str = "average"
    ) -> NeuralObject:
        """The average of several objects.

        Args:
            objects: at least one.
            weights: one for each, of any sum above 0; equal when None.
            name: name of the result.

        Raises:
            MNIFError: no objects, weights that do not fit them or sum to 0 or less, or an object of another model.
        """
        given = torch.ones(len(objects)) if weights is None else weights
        shares = torch.as_tensor(given, dtype=torch.float32).flatten()
        if len(shares) and not float(shares.sum()) > 0:
            raise MNIFError(f"weights that sum to {float(shares.sum()):g} give no average; use positive ones.")
        return self.mix(objects, shares / shares.sum(), name)

    def analogy(self, a: Any, minus: Any, plus: Any, amount: float = 1.0, name: str = "analogy") -> NeuralObject:
        """`a + amount * (plus - minus)`: what `plus` has beyond `minus`, given to `a`.

        Args:
            a: the object to change.
            minus, plus: two objects that differ in what is wanted.
            amount: 0 leaves `a` as it is; large ones leave the space of plausible objects.
            name: name of the result.

        Raises:
            MNIFError: an amount that is no number, or an object of another model.
        """
        return self.mix([a, minus, plus], [1.0, -amount, amount], name)

    def between(self, a: Any, b: Any, share: float, name: str = "step") -> NeuralObject:
        """The object at `share` of the straight way from `a` (0) to `b` (1); the ends are exact.

        Raises:
            MNIFError: an object of another model.
        """
        if _has_latent(a) and _has_latent(b):
            return self.decode(torch.lerp(self.latent_of(a), self.latent_of(b), share), name)
        return self._decode_coefficients(torch.lerp(self.coefficients(a), self.coefficients(b), share), name)

    @torch.no_grad()
    def coefficients(self, item: Any) -> Tensor:
        """The mixture coefficients `[M, L]` of an object.

        Raises:
            MNIFError: an object of another model.
        """
        field = as_mixture(self.model.field, "mixing layer by layer")
        if _has_latent(item):
            return field.coefficients(self.latent_of(item).unsqueeze(0))[0]
        check_origin(self.model.field, item)
        return item.coefficients.to(self.latents.device)

    @torch.no_grad()
    def project(self, item: Any) -> tuple[Tensor, float]:
        """The latent whose mixture coefficients come nearest to an object's, by least squares.

        Where several come as near, it is the one nearest to the mean of the training latents.

        Returns:
            the latent `[D]`, and the share (0 to 1) of the coefficients' distance from the mean instance's that it
            leaves: 0 where it is the object itself, 1 where it is no nearer than the mean.

        Raises:
            MNIFError: an object of another model.
        """
        if _has_latent(item):
            return self.latent_of(item), 0.0
        field, latents = as_mixture(self.model.field, "a projection of mixture coefficients"), self.latents
        mean = latents.mean(0) if len(latents) else latents.new_zeros(field.spec.latent_dim)
        codes = torch.cat([mean.unsqueeze(0), mean + torch.eye(len(mean), device=mean.device)])
        alphas = field.coefficients(codes).double().flatten(1).cpu()
        slopes, wanted = (alphas[1:] - alphas[0]).T, self.coefficients(item).double().flatten().cpu() - alphas[0]
        step = torch.linalg.lstsq(slopes, wanted.unsqueeze(1), driver="gelsd").solution[:, 0]
        left = float((slopes @ step - wanted).norm() / wanted.norm().clamp(min=1e-12))
        return mean + step.to(mean), left

    def _decode_coefficients(self, alpha: Tensor, name: str) -> NeuralObject:
        return self.wrap(None, as_mixture(self.model.field, "this").collapse_coefficients(alpha), name, alpha)


def _has_latent(item: Any) -> bool:
    return not isinstance(item, NeuralObject) or item.has_latent


def _checked_weights(model: StoredModel, objects: Sequence[Any], weights: Sequence[Any] | Tensor) -> Tensor:
    """Weights `[K, L]`."""
    layers = len(model.field.spec.learned_shapes)
    if not len(objects):
        raise MNIFError("there is nothing to mix; give at least one object.")
    shares = torch.as_tensor(weights, dtype=torch.float32)
    if shares.ndim == 1:
        shares = shares.unsqueeze(1).expand(-1, layers)
    if shares.shape != (len(objects), layers):
        raise MNIFError(
            f"weights of shape {list(shares.shape)} do not fit {len(objects)} objects with {layers} layers; "
            "give one weight for each object, or one for each object and layer."
        )
    sums = shares.sum(0)
    if not torch.isfinite(shares).all() or float((sums - 1).abs().max()) > _SUM * float(shares.abs().max()):
        raise MNIFError(
            f"weights that sum to {', '.join(f'{value:.3g}' for value in sums.unique().tolist())} are no mixture; "
            "they have to sum to 1 in every layer."
        )
    return shares
