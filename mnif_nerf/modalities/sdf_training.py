"""Stage 1 of coloured solids: signed distance and colour at points of meshes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.surface_sampler import KindShares, SurfaceSampler
from mnif_nerf.data.stores.surface_store import SurfaceStore, open_surface_store, surface_files, surface_splits
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.distance import DistanceField
from mnif_nerf.fields.losses import DistanceLoss
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.labels import Labels
from mnif_nerf.latents.meta import PointObjective
from mnif_nerf.latents.model import Stage1Model
from mnif_nerf.metrics.surfaces import surface_scores
from mnif_nerf.modalities.instance_evaluation import InstanceEvaluation
from mnif_nerf.modalities.sdf_settings import SurfaceDataSettings, SurfaceModelSettings, SurfacePipelineSettings
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
from mnif_nerf.rendering.cameras import Intrinsics, cameras_around, orbit_pose
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.sphere_tracing import render_distance, render_distance_view
from mnif_nerf.rendering.splats import render_points
from mnif_nerf.rendering.tracing_grid import RESOLUTION, TracingGrid, distance_grid


@dataclass(frozen=True)
class SurfaceTask:
    """The loss of distances and colours at points.

    Attributes:
        distance: its lengths and weights.
    """

    distance: DistanceLoss

    def losses(self, field: ModulatedField, latents: Tensor, batch: PointBatch, generator: torch.Generator) -> dict:
        """See `Stage1Task`."""
        return {"losses": {"sdf": self.objective(field, batch).losses(latents).mean()}}

    def objective(self, field: ModulatedField, batch: PointBatch, seed: int | KeptSeed | None = None) -> PointObjective:
        """See `Stage1Task`; nothing in it is random."""
        return PointObjective(field, batch, self.distance)


class SurfaceData(TrainingData):
    """Packed points of meshes; see `TrainingData`."""

    settings: SurfaceDataSettings

    @cached_property
    def store(self) -> SurfaceStore:
        """The training split, packed where that was not done yet."""
        return self.open("train")

    def open(self, split: str) -> SurfaceStore:
        """A split."""
        return open_surface_store(self.root, split)

    def unseen(self, split: str) -> SurfaceStore | None:
        """Objects never trained on: the split `split`, else the other one; None without either."""
        present = surface_splits(self.root)
        found = next((name for name in (split, "test", "val") if name in present), None)
        return None if found is None else self.open(found)

    @property
    def names(self) -> tuple[str, ...]:
        """See `TrainingData`."""
        return tuple(self.store.names)

    def stored_labels(self) -> Labels | None:
        """See `TrainingData`."""
        return self.store.labels

    def instance_files(self) -> dict[str, Path | None]:
        """See `TrainingData`."""
        return surface_files(self.root)

    @cached_property
    def points(self) -> SurfaceSampler:
        """Draws the training batches."""
        config = self.settings
        instances, points = self.points_of_step(self.store.num_instances)
        shares = KindShares(config.uniform_share, config.wide_share, config.near_share, config.on_surface_share)
        return SurfaceSampler(self.store, instances, points, self.device, self.seed, shares).reside()

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
        return self.points.instances_per_step * self.points.points_per_instance

    def bounds(self) -> Tensor | None:
        """None: where there is nothing, the distance says so."""
        return None

    def grid(self) -> dict[str, Any]:
        """The channels of the field: the distance alone, or three colours too."""
        return {"channels": 4 if self.store.has_color else 1}

    def facts(self) -> dict[str, Any]:
        """The modality."""
        return {"modality": self.settings.modality}

    def stored(self) -> dict[str, Any]:
        """Objects and points of a step."""
        names = (
            "instances_per_step", "points_per_instance", "encode_points", "uniform_share", "wide_share", "near_share",
            "on_surface_share",
        )  # fmt: skip
        return {name: getattr(self.settings, name) for name in names}


class SurfaceEvaluation(InstanceEvaluation):
    """Reconstruction at the data's points: of a few training objects from their latents, and of as many unseen ones
    from the latents that a fit or the inner loop finds."""

    data: SurfaceData
    settings: SurfacePipelineSettings

    def __init__(self, data: Any, settings: Any, split: str, training: SurfaceTraining) -> None:
        super().__init__(data, settings, split)
        self.training = training

    def find_unseen(self, model: Stage1Model) -> Tensor:
        """See `Evaluation`."""
        assert self.unseen is not None
        return self.encoder(model).surfaces(self.unseen, torch.from_numpy(self.chosen(self.unseen)))

    @torch.no_grad()
    def score(self, fields: FieldCache, item: ScoredItem, with_pictures: bool = False) -> Scores:
        """ "iou" at the uniform points, "color" in dB and "distance" (world units) on the surface; the picture shows
        the data's points beside the reconstruction."""
        store, instance = item.truth
        metrics = surface_scores(fields.collapse(item.latent), store.points(instance))
        if not with_pictures:
            return Scores(metrics)
        size = self.data.settings.picture_size
        return Scores(metrics, {"img": self.training.comparison(fields, item.latent, store, instance, size)})

    def report(self, rows: dict[str, list[dict[str, float]]]) -> str:
        """One line, such as: IoU 0.981, colour 25.3 dB, distance 0.0008 over 8 training objects; unseen: ..."""
        parts = []
        for prefix, part in rows.items():
            mean = means(part)
            numbers = [f"IoU {mean['iou']:.3f}"]
            if "color" in mean:
                numbers.append(f"colour {mean['color']:.1f} dB")
            numbers.append(f"distance {mean['distance']:.4f}")
            start, end = ("unseen: ", "") if prefix else ("", " training objects")
            parts.append(f"{start}{', '.join(numbers)} over {len(part)}{end}")
        return "; ".join(parts)


class SurfaceTraining(ModalityTraining):
    """See `ModalityTraining`."""

    pipeline_settings = SurfacePipelineSettings
    data_settings = SurfaceDataSettings
    model_settings = SurfaceModelSettings

    def open(self, settings: SurfaceDataSettings, device: torch.device | str = "cpu", seed: int = 0) -> SurfaceData:
        """See `ModalityTraining`."""
        if settings.data is None:
            raise MNIFError("there is no data to train on; name a folder of meshes, or of their points, by `data`.")
        return SurfaceData(settings, device, seed)

    def field_spec(self, model: SurfaceModelSettings, grid: dict[str, Any] | None) -> FieldSpec:
        """Three coordinates in; colours, where there are any, and the distance out."""
        channels = 4 if grid is None else grid["channels"]
        colors = round(model.color_share * model.latent_dim) if channels > 1 else 0
        return model.field_spec(in_features=3, out_features=channels, head="sdf", color_latent=colors)

    def task(self, model: SurfaceModelSettings) -> SurfaceTask:
        """See `ModalityTraining`."""
        return SurfaceTask(model.distance_loss())

    def evaluation(self, data: Any, settings: Any, split: str = "val") -> SurfaceEvaluation:
        """See `ModalityTraining`."""
        return SurfaceEvaluation(data, settings, split, self)

    def prepare(
        self, compact: CompactField, bounds: Tensor, model: Any, grid: Any
    ) -> tuple[DistanceField, TracingGrid]:
        """The solid, and the grid that its rays leap over empty space by."""
        shape = DistanceField(compact)
        return shape, distance_grid(shape, min(model.grid_resolution, RESOLUTION), bounds)

    def render(
        self, field: Any, grid: OccupancyGrid | None, origins: Tensor, directions: Tensor, model: Any
    ) -> dict[str, Tensor]:
        """The shaded surface in its colours, over white."""
        assert grid is None or isinstance(grid, TracingGrid)
        return render_distance(field, origins, directions, grid, chunk=model.rays_per_chunk(origins.is_cuda))

    @torch.no_grad()
    def comparison(self, fields: FieldCache, latent: Tensor, store: SurfaceStore, instance: int, size: int) -> Tensor:
        """The data's points beside the surface of the latent: `[size, 2 * size, 3]` in [0, 1]."""
        pose, camera = orbit_pose(20.0, 45.0), Intrinsics.default(size)
        shape, grid = fields(latent)
        rendered = render_distance_view(shape, pose.to(latent.device), camera, grid)["rgb"].cpu()
        return torch.cat([self._splats(store, instance, pose, camera), rendered], dim=1)

    def cameras(self, store: SurfaceStore, split: str, size: int) -> tuple[Tensor, Intrinsics]:
        """Cameras around an object: eight for "train", four others, from higher up, for all else."""
        return cameras_around(split, size)

    def picture_of(self, store: SurfaceStore, instance: int, pose: Tensor, camera: Intrinsics) -> np.ndarray:
        """What such a camera sees of an object's points: uint8 `[H, W, 3]`."""
        return (255 * self._splats(store, instance, pose, camera)).round().byte().numpy()

    def _splats(self, store: SurfaceStore, instance: int, pose: Tensor, camera: Intrinsics) -> Tensor:
        return render_points(store.points(instance).to_be_seen(), pose, camera, smooth=True)
