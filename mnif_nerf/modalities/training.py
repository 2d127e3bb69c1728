"""What stage 1 asks of a modality: its settings, its data, its losses, and how a run is scored and looked at.

One `ModalityTraining` per modality; nerfstudio's classes and `mnif-train` both work on it alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, isfinite, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar

import torch
from torch import Tensor

from mnif_nerf.data.readers.labels import find_table, table_labels
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.labels import Labels
from mnif_nerf.latents.encoding_settings import EncodingSettings
from mnif_nerf.latents.model import Stage1Model, Stage1Task
from mnif_nerf.modalities.encoding import Encoder
from mnif_nerf.modalities.settings import CONFIG_VERSION, DataSettings, ModelSettings, PipelineSettings
from mnif_nerf.random import WHOLE, Share
from mnif_nerf.rendering.batch import DeviceDraw
from mnif_nerf.rendering.occupancy import OccupancyGrid

_KEPT_FIELDS = 16  # collapsed fields kept at a time: the instances of one evaluation


class TrainingData(ABC):
    """The data of a run: its training split, opened on first use.

    Args:
        settings: where it is, and how batches are drawn.
        device: where batches end up.
        seed: random seed of the draws.
    """

    def __init__(self, settings: Any, device: torch.device | str = "cpu", seed: int = 0) -> None:
        self.settings, self.device, self.seed = settings, device, seed

    share: Share = WHOLE
    """The part of every training batch that is drawn here, where several processes train together."""

    @property
    def root(self) -> Path:
        """The data folder."""
        return Path(str(self.settings.data))

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the training instances."""

    @cached_property
    def labels(self) -> Labels | None:
        """Labels of the training instances, in the order of `names`; None where there are none.

        Raises:
            MNIFError: a table of labels that does not fit the data.
        """
        if self.settings.labels == "none":
            return None
        table = find_table(self.root, self.settings.labels)
        if table is None:
            return self.stored_labels()
        return table_labels(table, self.instance_files(), self.root, self.names)

    def stored_labels(self) -> Labels | None:
        """Those that the packed training split holds, in the order of `names`."""
        return None

    @abstractmethod
    def instance_files(self) -> dict[str, Path | None]:
        """Instances of all splits by name, each with its file where it has one of its own."""

    @abstractmethod
    def draw(self, step: int) -> Any:
        """The batch of a training step, or `share` of it, grouped by instance: a function of seed and step alone."""

    @abstractmethod
    def device_draw(self) -> DeviceDraw | None:
        """How `draw` does it where the data lives on the device; None elsewhere."""

    @abstractmethod
    def fixed(self, instances: Tensor) -> Any:
        """What the latents of these training instances `[B]` are computed from: the same for an instance whatever
        else is in the batch, and whenever it is asked for."""

    @abstractmethod
    def drawn_per_step(self) -> int:
        """Rays or points of one training step."""

    def points_of_step(self, available: int) -> tuple[int, int]:
        """Instances of a step, and points of each (0 is all), where so many instances are available.

        Data of fewer than a step asks for gives all, and more points of each; a printed sentence says so.
        """
        instances, points = self.settings.instances_per_step, self.settings.points_per_instance
        most, together = self.most_of_step(available), self.share.of
        if instances <= most:
            return instances, points
        more = ceil(instances * points / most)
        per_point = f", and {more:,} points of each instead of {points:,}" if points else ""
        print(
            f"{self.root}: {available} training instances, where a step of this method takes {instances * together}:"
            f" every step takes {'all' if most * together == available else most * together} of them{per_point}.",
            flush=True,
        )
        return most, more

    def most_of_step(self, available: int) -> int:
        """Instances of a step at most, where so many are available and each process takes as many as the others.

        Raises:
            MNIFError: there are fewer than processes.
        """
        if available < self.share.of:
            raise MNIFError(
                f"{self.root}: {available} training instances cannot be shared by {self.share.of} processes; start"
                f" {available} at most."
            )
        return available // self.share.of

    def take_points(self, points: int) -> None:
        """Draw another number of points of each instance from now on, where data is drawn by points."""
        self.settings.points_per_instance = points
        self.__dict__.pop("points", None)  # the sampler, which is made anew

    @abstractmethod
    def bounds(self) -> Tensor | None:
        """Where objects can be: bool `[G, G, G]`, or None where that is not known."""

    def grid(self) -> dict[str, Any] | None:
        """Shape and channels of the data where it is a grid; None where it is not."""
        return None

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the model folder must know of the data: fields of `StoredModel`."""

    @abstractmethod
    def stored(self) -> dict[str, Any]:
        """Settings of the draws, for the model folder."""


@dataclass(frozen=True)
class ScoredItem:
    """One thing to score: a view of an instance, or a whole instance.

    Attributes:
        instance: its name.
        latent: `[D]` to reconstruct it with.
        truth: whatever the modality compares with.
    """

    instance: str
    latent: Tensor
    truth: Any


@dataclass
class Scores:
    """Metrics and, where wanted, pictures `[H, W, 3]` in [0, 1] of one item."""

    metrics: dict[str, float]
    pictures: dict[str, Tensor] = field(default_factory=dict)


class Evaluation(ABC):
    """Scores a model while it is trained, and a finished run.

    Args:
        data: data of the run.
        settings: settings of the run.
        split: split of unseen instances: "val" while training, "test" afterwards; the other where one is missing.
    """

    def __init__(self, data: Any, settings: Any, split: str = "val") -> None:
        self.data, self.settings, self.split = data, settings, split
        self._found: tuple[int, Tensor] | None = None

    @abstractmethod
    def rows(self, model: Stage1Model) -> list[int]:
        """Rows of the training latents that are scored: those that have to be up to date before."""

    @abstractmethod
    def seen(self, model: Stage1Model) -> list[ScoredItem]:
        """What is scored without a prefix, in most cases of training instances; may be empty.

        Raises:
            MNIFError: there is nothing to score.
        """

    def unseen_items(self, model: Stage1Model) -> list[ScoredItem]:
        """What is scored beside it, of unseen instances; their latents are found, which takes a while."""
        return []

    def items(self, model: Stage1Model) -> dict[str, list[ScoredItem]]:
        """What is scored, by the prefix of its metrics: "" for `seen`, "unseen_" for `unseen_items`.

        Raises:
            MNIFError: there is nothing to score.
        """
        parts = {"": self.seen(model), "unseen_": self.unseen_items(model)}
        found = {prefix: items for prefix, items in parts.items() if items}
        if not found:
            raise MNIFError(
                f"{self.data.root}: the model was trained on none of its instances, and it has no split val or test; "
                "evaluate on the training data."
            )
        return found

    @abstractmethod
    def score(self, fields: FieldCache, item: ScoredItem, with_pictures: bool = False) -> Scores:
        """Score one item."""

    @abstractmethod
    def report(self, rows: dict[str, list[dict[str, float]]]) -> str:
        """One line that sums up the scores of all items, such as "PSNR 21.3 over 16 held-out views"."""

    @abstractmethod
    def find_unseen(self, model: Stage1Model) -> Tensor:
        """Latents `[K, D]` of the unseen instances, the networks frozen."""

    def encoder(self, model: Stage1Model) -> Encoder:
        """What finds them, with the settings that the model folder will have."""
        stored = {**self.data.stored(), **self.settings.model.stored(), **self.settings.stored()}
        rates = None if model.meta is None else model.inner_rates().detach()
        latents = model.latents.weight.detach()
        return Encoder(model.field, latents, model.meta, rates, EncodingSettings.from_training(stored))

    def latents_of_unseen(self, model: Stage1Model) -> Tensor:
        """`find_unseen`, once for every state of the weights."""
        if self._found is None or self._found[0] != model.version:
            self._found = (model.version, self.find_unseen(model))
        return self._found[1]


def known_rows(model: Stage1Model, names: Iterable[str]) -> list[int]:
    """The row of every name in the model's latents; -1 where it was not trained on."""
    wanted = dict.fromkeys(names := list(names))
    position = {name: row for row, name in enumerate(model.names) if name in wanted}
    return [position.get(name, -1) for name in names]


class ModalityTraining(ABC):
    """One modality's side of stage 1.

    Attributes:
        pipeline_settings, data_settings, model_settings: classes of its settings.
    """

    pipeline_settings: ClassVar[type[PipelineSettings]]
    data_settings: ClassVar[type[DataSettings]]
    model_settings: ClassVar[type[ModelSettings]]

    @abstractmethod
    def open(self, settings: Any, device: torch.device | str = "cpu", seed: int = 0) -> TrainingData:
        """The data of a run.

        Raises:
            MNIFError: no data was named, or it cannot be read.
        """

    @abstractmethod
    def field_spec(self, model: Any, grid: dict[str, Any] | None) -> FieldSpec:
        """The field for this data.

        Args:
            model: settings of the model.
            grid: `TrainingData.grid`.

        Raises:
            MNIFError: a value out of range.
        """

    @abstractmethod
    def task(self, model: Any) -> Stage1Task:
        """The losses."""

    @abstractmethod
    def evaluation(self, data: TrainingData, settings: Any, split: str = "val") -> Evaluation:
        """What scores a run."""

    @abstractmethod
    def prepare(
        self, compact: CompactField, bounds: Tensor, model: Any, grid: dict[str, Any] | None
    ) -> tuple[Any, OccupancyGrid | None]:
        """A collapsed field ready to render, and its occupancy grid (None where rendering needs none).

        Args:
            compact: the field.
            bounds: bool `[G, G, G]`, where objects can be.
            model: settings of the model.
            grid: `TrainingData.grid`.
        """

    @abstractmethod
    def render(
        self, field: Any, grid: OccupancyGrid | None, origins: Tensor, directions: Tensor, model: Any
    ) -> dict[str, Tensor]:
        """`rgb` `[R, 3]`, `depth` and `accumulation` `[R, 1]` of rays `[R, 3]` for the viewer.

        Args:
            field, grid: of `prepare`.
            origins, directions: world units, unit length.
            model: settings of the model.
        """

    def build(
        self, settings: PipelineSettings, data: TrainingData, bounds: Tensor | None = None, seed: int = 0
    ) -> Stage1Model:
        """The model of a run, with initial weights from `seed`.

        Args:
            settings: settings of the run.
            data: data of the run.
            bounds: bounds of the data, where they matter (they open its store).
            seed: random seed of the initial weights.

        Raises:
            MNIFError: a value out of range, or settings of another version.
        """
        if settings.config_version != CONFIG_VERSION:
            raise MNIFError(
                f"the configuration has format {settings.config_version}, this mnif_nerf reads {CONFIG_VERSION}; use "
                "the version that wrote it, or train again."
            )
        model = settings.model
        spec = self.field_spec(model, data.grid())
        return Stage1Model(spec, data.names, self.task(model), model.latents(), settings.meta(), bounds, seed)


class FieldCache:
    """Collapsed fields, ready to render, kept until the networks change.

    Args:
        training: the modality's training half.
        model: whose latents are collapsed.
        settings: settings of the model.
        grid: `TrainingData.grid`.
    """

    def __init__(
        self, training: ModalityTraining, model: Stage1Model, settings: Any, grid: dict[str, Any] | None = None
    ) -> None:
        self.training, self.model, self.settings, self.grid = training, model, settings, grid
        self._kept: OrderedDict[bytes, tuple[Any, OccupancyGrid | None]] = OrderedDict()
        self._last: tuple[bytes, CompactField] | None = None
        self._version = -1

    @torch.no_grad()
    def __call__(self, latent: Tensor) -> tuple[Any, OccupancyGrid | None]:
        """The field of a latent code `[D]` and its occupancy grid; see `ModalityTraining.prepare`."""
        self._refresh()
        key = latent.cpu().numpy().tobytes()
        kept = self._kept.get(key)
        if kept is None:
            kept = self.training.prepare(self.collapse(latent), self.model.bounds, self.settings, self.grid)
            self._kept[key] = kept
            while len(self._kept) > _KEPT_FIELDS:
                self._kept.popitem(last=False)
        return kept

    @torch.no_grad()
    def collapse(self, latent: Tensor) -> CompactField:
        """The field of a latent code `[D]` alone; the last one is kept, as what is scored is often drawn next."""
        self._refresh()
        key = latent.cpu().numpy().tobytes()
        if self._last is None or self._last[0] != key:
            self._last = (key, self.model.field.collapse(latent).to(latent.device))
        return self._last[1]

    def _refresh(self) -> None:
        if self._version != self.model.version:
            self.clear()
            self._version = self.model.version

    def clear(self) -> None:
        """Forget all: the weights were changed by somebody else."""
        self._kept.clear()
        self._last = None


def means(rows: list[dict[str, float]], with_std: bool = False) -> dict[str, float]:
    """Mean of every metric over `rows`, beside it "<metric>_std" where wanted (NaN where a value is infinite)."""
    result = {name: fmean(row[name] for row in rows) for name in rows[0]}
    for name in list(result) if with_std else ():
        values = [row[name] for row in rows]
        finite = all(map(isfinite, values))  # a perfect picture has an infinite PSNR
        result[f"{name}_std"] = (stdev(values) if len(values) > 1 else 0.0) if finite else nan
    return result
