"""Stage 1 of radiance fields: rays grouped by instance, and views to score."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.readers.srn_layout import list_splits, scene_folders
from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.sampling.views import TrainingViews, UnseenViews, ViewList, open_unseen
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.meta import LossObjective
from mnif_nerf.latents.model import Stage1Model
from mnif_nerf.latents.scenes import radiance_objective
from mnif_nerf.metrics.views import ViewScores
from mnif_nerf.modalities.radiance_settings import RadianceModelSettings, RadiancePipelineSettings, SceneDataSettings
from mnif_nerf.modalities.training import (
    Evaluation,
    FieldCache,
    ModalityTraining,
    ScoredItem,
    Scores,
    TrainingData,
    known_rows,
    means,
)
from mnif_nerf.random import KeptSeed
from mnif_nerf.rendering.batch import DeviceDraw, RayBatch
from mnif_nerf.rendering.cameras import Intrinsics, pixel_rays
from mnif_nerf.rendering.occupancy import OccupancyGrid, dilate
from mnif_nerf.rendering.radiance_losses import LossConfig, radiance_losses
from mnif_nerf.rendering.views import render_rays


@dataclass(frozen=True)
class RadianceTask:
    """The losses of rendered rays.

    Attributes:
        config: weights and sample counts.
    """

    config: LossConfig

    def losses(self, field: ModulatedField, latents: Tensor, batch: RayBatch, generator: torch.Generator) -> dict:
        """See `Stage1Task`; the PSNR is that of the drawn rays."""
        losses = radiance_losses(field.networks(latents), batch, self.config, generator, head=field.spec.head)
        return {"losses": losses, "psnr": -10.0 * torch.log10(losses["rgb"].detach())}

    def objective(self, field: ModulatedField, batch: RayBatch, seed: int | KeptSeed | None = None) -> LossObjective:
        """See `Stage1Task`; the seed is that of the samples' jitter, None samples the middles of the bins."""
        return radiance_objective(field, batch, self.config, seed)


class SceneData(TrainingData):
    """Posed pictures in the SRN layout; see `TrainingData`."""

    settings: SceneDataSettings

    @property
    def root(self) -> Path:
        """See `TrainingData`."""
        return Path(self.settings.data if self.settings.data is not None else self.settings.dataparser.data)

    @property
    def heldout_per_scene(self) -> int:
        """Views of every training scene that are held out where no split holds them."""
        return self.settings.dataparser.heldout_views_per_scene

    @cached_property
    def views(self) -> TrainingViews:
        """The packed training split and its held-out views; opened (and built where absent) on first use."""
        return TrainingViews(self.root, self.heldout_per_scene, self.settings.dataparser.reading)

    listed: tuple[str, ...] | None = None
    """Names that are known without the store: who only looks at one scene shall not have to open (and build) it."""

    @property
    def names(self) -> tuple[str, ...]:
        """See `TrainingData`."""
        return tuple(self.views.train.names) if self.listed is None else self.listed

    def instance_files(self) -> dict[str, Path | None]:
        """See `TrainingData`."""
        folders = (folder for place in list_splits(self.root).values() for folder in scene_folders(place))
        return {folder.name: None for folder in folders}

    def bounds(self) -> Tensor | None:
        """Union of all visual hulls, grown by one cell: bool `[G, G, G]` ([x, y, z]); None without hulls."""
        union = self.views.train.hull_union()
        return None if union is None else dilate(torch.from_numpy(union))

    def sampler(self, rays: int, carve_points: int) -> RayBatchSampler:
        """Draws rays of the views that are trained on."""
        trained = torch.from_numpy(self.views.trained)
        scenes = min(self.settings.scenes_per_step, self.most_of_step(self.views.train.num_scenes))
        return RayBatchSampler(self.views.train, scenes, rays, carve_points, self.device, self.seed, trained)

    @cached_property
    def rays(self) -> RayBatchSampler:
        """Draws the training batches."""
        return self.sampler(self.settings.rays_per_scene, self.settings.carve_points).reside()

    @cached_property
    def _encoded_rays(self) -> RayBatchSampler:
        rays = self.settings.encode_rays_per_scene
        return self.sampler(rays, rays if self.settings.carve_points else 0).reside(beside=self.rays)

    def draw(self, step: int) -> RayBatch:
        """See `TrainingData`."""
        return self.rays.draw(step, self.share)

    def device_draw(self) -> DeviceDraw | None:
        """See `TrainingData`."""
        return self.rays.device_draw(self.share)

    def fixed(self, instances: Tensor) -> RayBatch:
        """See `TrainingData`."""
        return self._encoded_rays.fixed(instances)

    def drawn_per_step(self) -> int:
        """Rays of one training step."""
        return self.rays.scenes_per_step * self.rays.rays_per_scene

    def facts(self) -> dict[str, Any]:
        """Typical camera of the training views."""
        store = self.views.train
        return {
            "camera": {
                "focal_over_width": float(np.median(store.intrinsics[:, 0])) / store.width,
                "radius": float(np.median(np.linalg.norm(store.poses[:, :3, 3], axis=1))),
            },
        }

    def stored(self) -> dict[str, Any]:
        """Scenes, rays and carve points of a step, how many views are held out, and how cameras are read."""
        kept = {name: getattr(self.settings, name) for name in ("scenes_per_step", "rays_per_scene", "carve_points")}
        reading = self.settings.dataparser.reading.to_dict()
        return {**kept, "heldout_views_per_scene": self.heldout_per_scene, **reading}

    @cached_property
    def evaluation_views(self) -> ViewList:
        """Held-out views of a few training scenes.

        Raises:
            MNIFError: no view is held out.
        """
        views = self.views.evaluation(self.settings.eval_num_scenes, self.settings.eval_views_per_scene)
        if len(views) == 0:
            raise MNIFError(
                f"{self.root}: no view is held out, so there is nothing to evaluate; add a split train_val or set "
                "`heldout_views_per_scene` to 1 or more."
            )
        return views


class ViewEvaluation(Evaluation):
    """Scores held-out views of training scenes, or views of scenes never seen; see `Evaluation`."""

    data: SceneData
    settings: RadiancePipelineSettings

    def __init__(self, data: SceneData, settings: RadiancePipelineSettings, split: str = "val") -> None:
        super().__init__(data, settings, split)
        self.on_unseen = settings.eval_mode == "unseen-scenes"
        self.compare = ViewScores(settings.model.lpips)

    @cached_property
    def unseen(self) -> UnseenViews:
        """Scenes never trained on."""
        config, conditioning = self.data.settings, tuple(self.settings.conditioning_views)
        counts, reading = (config.eval_num_scenes, config.eval_views_per_scene), config.dataparser.reading
        return open_unseen(self.data.root, self.split, *counts, conditioning, reading)

    def find_unseen(self, model: Stage1Model) -> Tensor:
        """See `Evaluation`: from the conditioning views."""
        return self.encoder(model).views(self.unseen)

    def views(self, model: Stage1Model) -> tuple[ViewList, tuple[str, ...], Tensor]:
        """The views to score, the names of their scenes, and the latents `[K, D]` that `views.scenes` counts along.

        Raises:
            MNIFError: the model was trained on none of the scenes.
        """
        if self.on_unseen:
            return self.unseen.scored, tuple(self.unseen.names), self.latents_of_unseen(model)
        views = self.data.evaluation_views
        scenes, place = np.unique(views.scenes, return_inverse=True)
        names = tuple(self.data.names[scene] for scene in scenes)
        rows = np.asarray(known_rows(model, names))
        known = rows[place] >= 0
        if not known.any():
            raise MNIFError(
                f"{self.data.root}: the model was trained on none of its scenes; set eval_mode: unseen-scenes in "
                "config.yml to fit latents, or evaluate on the training data."
            )
        latents = model.latents.weight.detach()[torch.from_numpy(rows.clip(min=0))]
        return ViewList(views.store, views.views, place).where(known), names, latents

    def rows(self, model: Stage1Model) -> list[int]:
        """See `Evaluation`."""
        if self.on_unseen:
            return []
        names, scenes = self.data.names, np.unique(self.data.evaluation_views.scenes)
        return sorted(set(known_rows(model, [names[scene] for scene in scenes])) - {-1})

    def seen(self, model: Stage1Model) -> list[ScoredItem]:
        """See `Evaluation`: one item for every view, of unseen scenes where those are asked for."""
        views, names, latents = self.views(model)
        scenes = views.scenes.tolist()
        return [ScoredItem(names[s], latents[s], (views, index)) for index, s in enumerate(scenes)]

    @torch.no_grad()
    def score(self, fields: FieldCache, item: ScoredItem, with_pictures: bool = False) -> Scores:
        """PSNR, SSIM and, where wanted, LPIPS of one view, and how fast it was rendered."""
        views, index = item.truth
        store, picture = views.store, views.views[index]
        device = item.latent.device
        focal, cx, cy = (float(value) for value in views.intrinsics[index])
        camera = Intrinsics(focal, cx, cy, store.height, store.width)
        rays = pixel_rays(torch.from_numpy(np.array(store.poses[picture])).to(device), camera)
        prepared = fields(item.latent)
        start = perf_counter()
        out = fields.training.render(prepared[0], prepared[1], *rays, fields.settings)
        seconds = perf_counter() - start
        out = {name: value.view(store.height, store.width, -1) for name, value in out.items()}
        truth = torch.from_numpy(np.array(store.images[picture])).to(device).float() / 255.0
        metrics, pictures = self.compare(out, truth)
        pixels = store.height * store.width
        return Scores({**metrics, "num_rays_per_sec": pixels / seconds, "fps": 1.0 / seconds}, pictures)

    def report(self, rows: dict[str, list[dict[str, float]]]) -> str:
        """See `Evaluation`."""
        part = rows[""]
        what = "views of unseen scenes" if self.on_unseen else "held-out views"
        mean = means(part)
        numbers = ", ".join(f"{name.upper()} {mean[name]:.3f}" for name in ("psnr", "ssim", "lpips") if name in mean)
        return f"{numbers} over {len(part)} {what}"


class RadianceTraining(ModalityTraining):
    """See `ModalityTraining`."""

    pipeline_settings = RadiancePipelineSettings
    data_settings = SceneDataSettings
    model_settings = RadianceModelSettings

    def open(self, settings: SceneDataSettings, device: torch.device | str = "cpu", seed: int = 0) -> SceneData:
        """See `ModalityTraining`."""
        return SceneData(settings, device, seed)

    def field_spec(self, model: RadianceModelSettings, grid: dict[str, Any] | None) -> FieldSpec:
        """Three coordinates in, three colours and a density out."""
        return model.field_spec()

    def task(self, model: RadianceModelSettings) -> RadianceTask:
        """See `ModalityTraining`."""
        return RadianceTask(model.loss_config())

    def evaluation(self, data: Any, settings: Any, split: str = "val") -> ViewEvaluation:
        """See `ModalityTraining`."""
        return ViewEvaluation(data, settings, split)

    def prepare(
        self, compact: CompactField, bounds: Tensor, model: Any, grid: Any
    ) -> tuple[CompactField, OccupancyGrid]:
        """The field itself, and its occupancy grid."""
        return compact, OccupancyGrid.from_field(compact, model.grid_resolution, bounds=bounds, device=bounds.device)

    def render(
        self, field: Any, grid: OccupancyGrid | None, origins: Tensor, directions: Tensor, model: Any
    ) -> dict[str, Tensor]:
        """Volume rendering over white."""
        return render_rays(field, origins, directions, grid, chunk=model.rays_per_chunk(origins.is_cuda))
