"""Stage 1 of signals on regular grids (voxels, images, arrays): points of cells, and whole instances to score."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.geometry.hull import HALF_EXTENT
from mnif_nerf.data.sampling.point_sampler import PointChoice, PointSampler
from mnif_nerf.data.stores.grid_layout import locate_grids
from mnif_nerf.data.stores.grid_store import GridStore, grid_splits, open_grid_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.labels import Labels
from mnif_nerf.latents.meta import PointObjective
from mnif_nerf.latents.model import Stage1Model
from mnif_nerf.modalities.grid_settings import GridDataSettings, GridPipelineSettings
from mnif_nerf.modalities.instance_evaluation import InstanceEvaluation
from mnif_nerf.modalities.training import (
    FieldCache,
    ModalityTraining,
    ScoredItem,
    Scores,
    TrainingData,
    means,
)
from mnif_nerf.random import KeptSeed
from mnif_nerf.rendering.batch import DeviceDraw, PointBatch
from mnif_nerf.rendering.cameras import DEFAULT_RADIUS, Intrinsics, orbit_pose
from mnif_nerf.rendering.grids import in_cube
from mnif_nerf.rendering.occupancy import dilate

_MARGIN = 2  # cells beyond the union of all training shapes where a new one may still be

_HIGHEST_W0, _W0_PER_CELL = 30.0, 0.75


class GridTask:
    """The loss at points: see `PointObjective`."""

    def losses(self, field: ModulatedField, latents: Tensor, batch: PointBatch, generator: torch.Generator) -> dict:
        """See `Stage1Task`; the PSNR is that of the drawn points (of shapes, many of them near the surface)."""
        objective = PointObjective(field, batch)
        loss = objective.losses(latents).mean()
        if objective.kind != "mse":
            return {"losses": {objective.kind: loss}}
        return {"losses": {"mse": loss}, "psnr": -10.0 * torch.log10(loss.detach() / 4.0)}

    def objective(self, field: ModulatedField, batch: PointBatch, seed: int | KeptSeed | None = None) -> PointObjective:
        """See `Stage1Task`; nothing in it is random."""
        return PointObjective(field, batch)


class GridData(TrainingData):
    """Packed grids; see `TrainingData`."""

    settings: GridDataSettings

    @cached_property
    def store(self) -> GridStore:
        """The training split, packed where that was not done yet."""
        return self.open("train")

    def open(self, split: str) -> GridStore:
        """A split at the resolution of the run."""
        size, channels = self.settings.resolution or None, self.settings.channels or None
        return open_grid_store(self.root, split, self.settings.modality, size, channels)

    def unseen(self, split: str) -> GridStore | None:
        """Instances never trained on: the split `split`, else the other one; None without either."""
        present = grid_splits(self.root, self.settings.modality)
        found = next((name for name in (split, "test", "val") if name in present), None)
        return None if found is None else self.open(found)

    @property
    def names(self) -> tuple[str, ...]:
        """See `TrainingData`."""
        return self.store.names

    def stored_labels(self) -> Labels | None:
        """See `TrainingData`."""
        return self.store.labels

    def instance_files(self) -> dict[str, Path | None]:
        """See `TrainingData`."""
        return locate_grids(self.root, self.settings.modality).own_files()

    def sampler(self, store: GridStore, per_step: tuple[int, int] | None = None) -> PointSampler:
        """Points of a store, drawn as in training; `per_step` are instances and points of each, by default of one."""
        config = self.settings
        instances, points = per_step or (1, config.points_per_instance)
        choice = PointChoice(config.surface_share, config.reweight, config.jitter, config.cut_cells)
        return PointSampler(store, instances, points, self.device, self.seed, choice)

    @cached_property
    def points(self) -> PointSampler:
        """Draws the training batches."""
        return self.sampler(self.store, self.points_of_step(self.store.num_instances)).reside()

    def draw(self, step: int) -> PointBatch:
        """See `TrainingData`."""
        return self.points.draw(step, self.share)

    def device_draw(self) -> DeviceDraw | None:
        """See `TrainingData`."""
        return self.points.device_draw(self.share)

    def fixed(self, instances: Tensor) -> PointBatch:
        """See `TrainingData`."""
        return self.points.fixed(instances, self.settings.encode_points)

    def drawn_per_step(self) -> int:
        """Points of one training step."""
        per_instance = self.points.points_per_instance or self.store.num_cells
        return self.points.instances_per_step * min(per_instance, self.store.num_cells)

    def bounds(self) -> Tensor | None:
        """The union of all shapes with a margin; None of grids without a surface."""
        if not self.store.has_surface:
            return None
        box = in_cube(torch.ones(self.store.shape, dtype=torch.bool))
        return dilate(in_cube(torch.from_numpy(self.store.union())), _MARGIN) & box

    def grid(self) -> dict[str, Any]:
        """See `TrainingData`."""
        return self.store.facts.to_dict()

    def facts(self) -> dict[str, Any]:
        """Modality and grid."""
        return {"modality": self.settings.modality, "grid": self.grid()}

    def stored(self) -> dict[str, Any]:
        """Instances and points of a step, and how the points are chosen."""
        names = (
            "instances_per_step", "points_per_instance", "surface_share", "cut_cells", "reweight", "jitter",
            "encode_points",
        )  # fmt: skip
        return {**{name: getattr(self.settings, name) for name in names}, "unit_cells": self.store.resolution}


class GridEvaluation(InstanceEvaluation):
    """Reconstruction over whole grids: of a few training instances from their latents, and of as many unseen ones
    from the latents that the inner loop (meta-learning) or a fit (auto-decoding) finds."""

    data: GridData
    settings: GridPipelineSettings

    def __init__(self, data: Any, settings: Any, split: str, training: GridTraining) -> None:
        super().__init__(data, settings, split)
        self.training = training

    def find_unseen(self, model: Stage1Model) -> Tensor:
        """See `Evaluation`."""
        assert self.unseen is not None
        return self.encoder(model).grids(self.unseen, torch.from_numpy(self.chosen(self.unseen)))

    @torch.no_grad()
    def score(self, fields: FieldCache, item: ScoredItem, with_pictures: bool = False) -> Scores:
        """See `Evaluation`; the picture shows the truth beside the reconstruction."""
        store, instance = item.truth
        values = store.values(instance)
        metrics = self.training.score(fields, item.latent, store, values)
        if not with_pictures:
            return Scores(metrics)
        size = self.data.settings.picture_size
        return Scores(metrics, {"img": self.training.comparison(fields, item.latent, store, values, size)})

    def report(self, rows: dict[str, list[dict[str, float]]]) -> str:
        """One line, such as: PSNR 21.3, IOU 0.912, ACCURACY 0.993 over 8 training shapes; unseen: ..."""
        parts = []
        for prefix, part in rows.items():
            numbers = ", ".join(
                f"{name.upper()} {value:.1f}" if name == "psnr" else f"{name.upper()} {value:.3f}"
                for name, value in means(part).items()
            )
            start, end = ("unseen: ", "") if prefix else ("", f" training {self.training.nouns}")
            parts.append(f"{start}{numbers} over {len(part)}{end}")
        return "; ".join(parts)


class GridTraining(ModalityTraining):
    """What voxels, images and arrays share; see `ModalityTraining`.

    Attributes:
        nouns: what a message calls several instances.
    """

    pipeline_settings = GridPipelineSettings
    data_settings = GridDataSettings
    nouns: ClassVar[str]

    def open(self, settings: GridDataSettings, device: torch.device | str = "cpu", seed: int = 0) -> GridData:
        """See `ModalityTraining`."""
        if settings.data is None:
            raise MNIFError(f"there is no data to train on; name a folder of {self.nouns} by `data`.")
        return GridData(settings, device, seed)

    def task(self, model: Any) -> GridTask:
        """See `ModalityTraining`."""
        return GridTask()

    def evaluation(self, data: Any, settings: Any, split: str = "val") -> GridEvaluation:
        """See `ModalityTraining`."""
        return GridEvaluation(data, settings, split, self)

    @abstractmethod
    def field_spec(self, model: Any, grid: dict[str, Any] | None) -> FieldSpec:
        """See `ModalityTraining`."""

    @abstractmethod
    def score(self, fields: FieldCache, latent: Tensor, store: GridStore, values: np.ndarray) -> dict[str, float]:
        """How well a latent `[D]` gives back an instance.

        Args:
            fields: fields of the model.
            latent: `[D]`.
            store: where the instance lies.
            values: values of the instance, as `GridStore.values` has them.
        """

    @abstractmethod
    def comparison(self, fields: FieldCache, latent: Tensor, store: GridStore, values: np.ndarray, size: int) -> Tensor:
        """The instance beside its reconstruction, `[H, W, 3]` in [0, 1]; `size` pixels high where it has no size of
        its own."""

    @abstractmethod
    def cameras(self, store: GridStore, split: str, size: int) -> tuple[Tensor, Intrinsics]:
        """Poses `[V, 4, 4]` and the camera by which nerfstudio's tools look at an instance."""

    def picture_of(self, store: GridStore, instance: int, pose: Tensor, camera: Intrinsics) -> np.ndarray:
        """What such a camera sees of an instance of a store: uint8 `[H, W, 3]`."""
        return self.picture(store, store.values(instance), pose, camera)

    @abstractmethod
    def picture(self, store: GridStore, values: np.ndarray, pose: Tensor, camera: Intrinsics) -> np.ndarray:
        """What such a camera sees of an instance: uint8 `[H, W, 3]`."""


def sine_frequency(asked: float, resolution: int) -> float:
    """w0 of a field of pictures or signals: what is asked for, or, for 0, three quarters of the cells along the longest
    axis, 30 at most. A higher one lets the field swing between the cells."""
    return asked or min(_HIGHEST_W0, _W0_PER_CELL * resolution)


def front_camera(shape: tuple[int, ...]) -> tuple[Tensor, Intrinsics]:
    """A camera `[1, 4, 4]` whose pixels are those of a picture of (rows, columns) on the plane x = 0, the longest
    edge one unit long."""
    height, width = shape
    focal = DEFAULT_RADIUS / (2 * HALF_EXTENT) * max(height, width)
    return orbit_pose(0.0, 0.0)[None], Intrinsics(focal, width / 2, height / 2, height, width)
