"""A trained model as something that makes objects of latents; what editing, fitting and videos build on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.fields.modulations.mixture import as_mixture
from mnif_nerf.labels import Label, Wish, checked_label
from mnif_nerf.latents.rarity import TYPICAL, Rarity, less_rare
from mnif_nerf.objects.base import NeuralObject, ObjectFacts
from mnif_nerf.random import stream

if TYPE_CHECKING:
    from mnif_nerf.modalities import Modality
    from mnif_nerf.pipelines.model_folder import StoredModel
    from mnif_nerf.priors.prior import LatentPrior

# A network is another model's where it differs by more than this share of its largest weight; rounding is 1e-6.
_SAME = 1e-3


class Decoder:
    """A model, its training instances by name, and the objects of latents.

    Args:
        model: what a model folder holds, on the device to work on.
    """

    def __init__(self, model: StoredModel) -> None:
        self.model = model

    @property
    def kind(self) -> Modality:
        """The model's modality."""
        return self.model.kind

    @property
    def modality(self) -> str:
        """What the model is of: "radiance", "voxel" or "image"."""
        return self.model.modality

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the training instances."""
        return self.model.names

    @property
    def latents(self) -> Tensor:
        """Latents `[N, D]` of the training instances."""
        return self.model.latents

    @property
    def prior(self) -> LatentPrior | None:
        """The latent prior, or None until it is trained."""
        return self.model.prior

    def sample_latents(
        self,
        num_samples: int = 1,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
        typical: float = TYPICAL,
        wish: Wish | None = None,
    ) -> Tensor:
        """Latents `[num_samples, D]` from the prior; the arguments are those of `MNIFPipeline.__call__`, whose label
        and guidance are a wish here."""
        if num_samples < 1:
            raise MNIFError(f"`num_samples` {num_samples} leaves nothing to do; ask for at least 1.")
        prior = self._need_prior()

        def draw(count: int, attempt: int) -> Tensor:
            own = seed if attempt == 0 else stream(seed, "typical", attempt)
            return prior.sample(count, own, sampler, steps, temperature, wish=wish)

        return less_rare(draw, num_samples, self.rarity_among(wish), typical)

    def rarity_among(self, wish: Wish | None) -> Rarity:
        """How rare latents are among those of the training instances that have the label that is wished for."""
        label = {} if wish is None else self.label_of(wish)
        if not label or self.model.labels is None:
            return self.rarity
        return Rarity(self.model.latents, self.model.labels.rows_with(label))

    def label_of(self, wish: Wish) -> Label:
        """The label that is wished for, with values as training has seen them.

        Raises:
            MNIFError: the prior knows no labels, or not these; the sentence lists those that it knows.
        """
        return checked_label(wish.label, self._need_prior().attributes)

    @cached_property
    def rarity(self) -> Rarity:
        """How rare latents are among those of the training instances."""
        return Rarity(self.model.latents)

    def decode(self, latent: Tensor | Sequence[float], name: str = "object") -> NeuralObject:
        """The object of a latent `[D]`, of the class that fits the model's modality.

        Raises:
            MNIFError: a latent of another size, or with NaNs.
        """
        code = torch.as_tensor(latent, dtype=torch.float32, device=self.model.latents.device)
        if not torch.isfinite(code).all():
            raise MNIFError(f"{name}: the latent has NaN or infinite numbers; it cannot be decoded.")
        return self.wrap(code, self.model.field.collapse(code), name)

    def wrap(
        self, latent: Tensor | None, field: CompactField, name: str, coefficients: Tensor | None = None
    ) -> NeuralObject:
        """A collapsed field as an object of this model, with its scene box, bounds and camera."""
        model, dims = self.model, self.model.field.spec.in_features
        grid = None if model.grid is None else GridFacts.from_dict(model.grid, dims, name)
        facts = ObjectFacts(model.cells, model.half_extent, model.camera, grid)
        return self.kind.object_class(latent, field, name, facts, coefficients)

    def instance(self, name_or_index: str | int) -> NeuralObject:
        """A training instance, by name or by index.

        Raises:
            MNIFError: no such instance (the nearest names are suggested).
        """
        index = self._instance_index(name_or_index)
        item = self.decode(self.model.latents[index], self.model.names[index])
        item.label = {} if self.model.labels is None else self.model.labels.of(index)
        return item

    def _need_prior(self) -> LatentPrior:
        if self.model.prior is None:
            raise MNIFError(
                "this model has no latent prior yet, so it cannot sample; train one with "
                "mnif-train-prior --load-config."
            )
        return self.model.prior

    def _instance_index(self, name_or_index: str | int) -> int:
        names = self.model.names
        if not names:
            raise MNIFError("this model came without the latents of training instances; draw samples instead.")
        if isinstance(name_or_index, int):
            if not -len(names) <= name_or_index < len(names):
                raise MNIFError(f"instance {name_or_index} does not exist; there are {len(names)}, numbered from 0.")
            return name_or_index % len(names)
        if name_or_index in names:
            return names.index(name_or_index)
        if name_or_index.isdecimal():
            return self._instance_index(int(name_or_index))
        close = difflib.get_close_matches(name_or_index, names, n=3, cutoff=0.0)
        raise MNIFError(f"instance {name_or_index!r} is not in this model; did you mean {' or '.join(close)}?")

    def latent_of(self, end: Any) -> Tensor:
        """The latent `[D]` of a `NeuralObject`, a latent, or a training instance's name or index.

        Raises:
            MNIFError: no such instance, a latent of another size, an object of another model, or one that was mixed
                layer by layer (`project` has the latent that comes nearest).
        """
        latents = self.model.latents
        if isinstance(end, (str, int)):
            return latents[self._instance_index(end)]
        # An object read from a file may lie on another device, and come from another model.
        code = end.latent if isinstance(end, NeuralObject) else end
        code = torch.as_tensor(code, dtype=torch.float32, device=latents.device)
        if code.shape != latents.shape[1:]:
            raise MNIFError(
                f"a latent of shape {list(code.shape)} does not fit this model, "
                f"which takes {latents.shape[1]} numbers; use a latent of the same model."
            )
        if isinstance(end, NeuralObject):
            check_origin(self.model.field, end)
        return code


def check_origin(field: ModulatedField, item: NeuralObject) -> None:
    """Refuse an object whose network is not what this model makes of its latent or coefficients.

    Raises:
        MNIFError: the object comes from another model.
    """
    if not isinstance(item.field, CompactField):
        return  # an analytic stand-in, which has no weights to compare
    device = next(field.parameters()).device
    if item.has_latent:
        own = field.collapse(item.latent.to(device, torch.float32))
    elif item.coefficients is not None:
        own = as_mixture(field, f"{item.name}, which has no latent,").collapse_coefficients(
            item.coefficients.to(device)
        )
    else:
        raise MNIFError(f"{item.name}: has neither a latent nor mixture coefficients; it cannot be edited.")
    for mine, other in zip([*own.weights, *own.biases], [*item.field.weights, *item.field.biases]):
        fits = mine.shape == other.shape
        if not fits or float((mine - other.to(device)).abs().max()) > _SAME * float(mine.abs().max()) + 1e-6:
            raise MNIFError(f"{item.name}: comes from another model than this one; use objects of the same model.")
