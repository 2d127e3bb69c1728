"""What a sweep over model sizes asks of a split of data: batches, points, scores, and sets of instances as values."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.modalities.training import TrainingData
from mnif_nerf.rendering.batch import PointBatch
from mnif_nerf.rendering.grids import cell_centres

if TYPE_CHECKING:
    from mnif_nerf.modalities.base import Modality


class SweepSplit(ABC):
    """One split of a data set.

    Args:
        store: where the instances lie.
        kind: their modality.
        shape: cells along each axis of the grid that instances are compared on.
    """

    def __init__(self, store: Any, kind: Modality, shape: tuple[int, ...]) -> None:
        self.store, self.kind, self.shape = store, kind, shape

    def __len__(self) -> int:
        return int(self.store.num_instances)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the instances."""
        return tuple(self.store.names)

    @property
    def facts(self) -> dict[str, Any]:
        """What splits of one data set have in common, JSON-ready."""
        return {"modality": self.kind.name, "resolution": max(self.shape), "channels": self.store.channels}

    @property
    def fingerprint(self) -> str:
        """Number of the instances, and a checksum of what is known of them."""
        return f"{len(self)} instances, crc32 {zlib.crc32(np.ascontiguousarray(self._content()).data):08x}"

    @property
    @abstractmethod
    def grid(self) -> dict[str, Any]:
        """See `TrainingData.grid`."""

    @abstractmethod
    def first(self, count: int) -> SweepSplit:
        """The first `count` instances alone; nothing looks further."""

    @abstractmethod
    def data(self, instances_per_step: int, points: int, seed: int) -> TrainingData:
        """What training batches are drawn from."""

    @abstractmethod
    def fixed(self, points: int, seed: int, salt: int) -> PointBatch:
        """Points of all instances, a function of the arguments alone."""

    @abstractmethod
    def near(self, count: int, seed: int) -> Tensor:
        """Points `[in, N]` (field coordinates) where instances differ, N at most `count`."""

    @abstractmethod
    def scores(self, field: ModulatedField, latents: Tensor) -> dict[str, float]:
        """Mean scores of the first instances, given back from latents `[B, D]`."""

    @abstractmethod
    def truth(self) -> Tensor:
        """Values `[N, C, cells]` in [0, 1] of the instances on the grid."""

    @abstractmethod
    def _content(self) -> np.ndarray:
        """What is known of the instances, for a checksum."""

    @torch.no_grad()
    def decode(self, field: ModulatedField, latents: Tensor) -> Tensor:
        """Such values `[B, C, cells]` of latents `[B, D]`."""
        centres = cell_centres(self.shape)
        raw = torch.stack([field.collapse(latent).evaluate(centres) for latent in latents])
        return self.kind.unit_values(raw, field.spec.head)

    def set_scores(self, made: Tensor, real: Tensor) -> dict[str, float]:
        """Scores of two sets of one size, `[S, C, cells]` each: see `Modality.set_scores`."""
        return self.kind.set_scores(made, real, (made.shape[1], *self.shape))

    def check_fits(self, unseen: SweepSplit) -> None:
        """Refuse unseen instances of another kind.

        Raises:
            MNIFError: with what differs.
        """
        theirs = unseen.facts
        for name, value in self.facts.items():
            if theirs.get(name) != value:
                raise MNIFError(
                    f"{unseen.store.root}: unseen instances have {name} {theirs.get(name)}, the training ones {value}; "
                    "sweep over data of one kind."
                )
