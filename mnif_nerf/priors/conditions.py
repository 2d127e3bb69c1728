"""Labels as conditions of the latent prior: their encoding, the denoiser that is told them, and guidance.

Every attribute is embedded: a class by a row of a table, a number by its place among those of training. What is not
known has an embedding of its own, the null. Training drops labels now and then, so that one network knows the
distribution with and without them, and guidance can go from the one beyond the other (Ho and Salimans 2022, arXiv
2207.12598).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mnif_nerf.errors import MNIFError
from mnif_nerf.files import from_description
from mnif_nerf.labels import MOST_ATTRIBUTES, MOST_CLASSES, Attribute, Labels, Value
from mnif_nerf.limits import require_count
from mnif_nerf.names import shown
from mnif_nerf.priors.denoiser import Denoiser, DenoiserSpec

WAVES = (0.5, 1.0, 2.0)  # radians per deviation of a number's features
_START = 0.1  # deviation of the initial embeddings


def encode_label(label: Mapping[str, Value], attributes: Sequence[Attribute]) -> list[float]:
    """One number for every attribute: that of the class, or the number in deviations from its mean; NaN is the null."""
    return [_encode(label.get(attribute.name), attribute) for attribute in attributes]


def encode_labels(labels: Labels, attributes: Sequence[Attribute]) -> Tensor:
    """`encode_label` of N instances: float32 `[N, A]`."""
    return torch.tensor([encode_label(labels.of(row), attributes) for row in range(len(labels))])


@dataclass(frozen=True)
class Conditions:
    """What training examples are told.

    Attributes:
        attributes: of the labels.
        values: `[N, A]`, see `encode_label`.
        dropout: share of the examples whose labels are dropped, see `LabelDropout`.
    """

    attributes: tuple[Attribute, ...]
    values: Tensor
    dropout: float

    @classmethod
    def of(cls, labels: Labels, dropout: float) -> Conditions:
        """Those of N instances."""
        attributes = labels.attributes()
        return cls(attributes, encode_labels(labels, attributes), dropout)


def _encode(value: Value | None, attribute: Attribute) -> float:
    if value is None:
        return math.nan
    if attribute.is_numeric:
        return (float(value) - attribute.mean) / attribute.deviation
    return float(attribute.classes.index(str(value)))


@dataclass(frozen=True)
class ConditionalSpec(DenoiserSpec):
    """Size of a denoiser with conditions.

    Attributes:
        classes: of every attribute how many there are; 0 is a number.
    """

    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.classes, (tuple, list)) or not 1 <= len(self.classes) <= MOST_ATTRIBUTES:
            raise MNIFError(f"denoiser: classes {shown(self.classes)}, expected a number for each attribute.")
        for count in self.classes:
            require_count("`classes` of the denoiser", count, 0, MOST_CLASSES)
        object.__setattr__(self, "classes", tuple(self.classes))
        DenoiserSpec(**{name: getattr(self, name) for name in DenoiserSpec.__dataclass_fields__})

    @classmethod
    def of(cls, plain: DenoiserSpec, attributes: Sequence[Attribute]) -> ConditionalSpec:
        """The same size, with the conditions of some attributes."""
        return cls(**asdict(plain), classes=tuple(len(attribute.classes) for attribute in attributes))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ConditionalSpec:
        """The inverse of `to_dict`.

        Raises:
            MNIFError: a key is unknown, or one without a default is missing.
        """
        return from_description(cls, content, "denoiser", "train the prior again")


class ConditionalDenoiser(Denoiser):
    """A denoiser that is told labels beside the time."""

    spec: ConditionalSpec

    def __init__(self, spec: ConditionalSpec) -> None:
        super().__init__(spec)
        features = spec.time_features
        self.tables = nn.ModuleList(nn.Embedding(count + 1, features) for count in spec.classes)
        self.numbers = nn.ModuleList(nn.Linear(1 + 2 * len(WAVES), features) for count in spec.classes if count == 0)
        for table in self.tables:
            nn.init.normal_(table.weight, std=_START)

    def forward(self, noisy: Tensor, timesteps: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Predict from noisy latents.

        Args:
            noisy: `[B, K]` latents at diffusion time t.
            timesteps: `[B]` or scalar.
            conditions: `[B, A]`, see `encode_label`; None is nothing but nulls.

        Returns:
            `[B, K]`.
        """
        if conditions is None:
            conditions = noisy.new_full((len(noisy), len(self.spec.classes)), math.nan)
        return self._predict(noisy, self._embedded(noisy, timesteps) + self.embed(conditions))

    def embed(self, conditions: Tensor) -> Tensor:
        """Sum of the embeddings of conditions `[B, A]`: `[B, time features]`."""
        total = conditions.new_zeros(len(conditions), self.spec.time_features)
        numbers = iter(self.numbers)
        for column, (count, table) in enumerate(zip(self.spec.classes, self.tables)):
            value = conditions[:, column]
            unknown = value.isnan()
            # The last row is the null; a number's table has no other.
            row = torch.where(unknown, count, value.nan_to_num() if count else 0)
            known = table(row.long())
            if not count:
                shown_number = next(numbers)(_features(value.nan_to_num()))
                known = torch.where(unknown[:, None], known, shown_number)
            total = total + known
        return total


def _features(value: Tensor) -> Tensor:
    waves = value[:, None] * torch.tensor(WAVES, device=value.device)
    return torch.cat((value[:, None], waves.sin(), waves.cos()), dim=1)


class LabelDropout:
    """Makes nulls of labels in training: of all attributes of an example together, and of each alone.

    Args:
        share: probability of either.
        seed: of its own generator, so that nothing else that is random depends on it.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.generator = share, torch.Generator().manual_seed(seed)

    def __call__(self, conditions: Tensor) -> Tensor:
        """Conditions `[B, A]` with some of them NaN."""
        count, attributes = conditions.shape
        every = torch.rand((count, 1), generator=self.generator) < self.share
        each = torch.rand((count, attributes), generator=self.generator) < self.share
        return conditions.masked_fill(every | (each & (attributes > 1)), math.nan)


class Guided:
    """A denoiser that is told what is asked for: see `mnif_nerf.priors.schedulers.Denoises`.

    Args:
        denoiser: with conditions.
        condition: `[A]`, see `encode_label`.
        guidance: 0 leaves the condition out, 1 takes it, more goes beyond it.
    """

    def __init__(self, denoiser: ConditionalDenoiser, condition: Sequence[float], guidance: float) -> None:
        self.denoiser, self.guidance = denoiser, guidance
        self.condition = torch.tensor(list(condition))

    def __call__(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """`[n, K]`, of the denoiser's prediction type."""
        # Every prediction type is linear in the noise once the noisy latent is given, so all are guided alike.
        if self.guidance == 0 or bool(self.condition.isnan().all()):
            return self.denoiser(noisy, timesteps)
        told = self.denoiser(noisy, timesteps, self.condition.to(noisy).expand(len(noisy), -1))
        if self.guidance == 1:
            return told
        return torch.lerp(self.denoiser(noisy, timesteps), told, self.guidance)
