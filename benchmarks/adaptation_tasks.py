"""What `adaptation.py` learns, one class per modality: data, batches of training, observations, scores.

Every task has a mixture `field`, the number of instances of its splits `counts` {"train", "unseen"}, and

    draw(step)                 instances [B] and the objective of a training step
    observed(split)            a function of instances [B]: the objective on all that is known of them
    fitting(codes, step)       losses [S] of all unseen instances, on fresh points or rays
    score(split, latents)      metrics of the first instances of a split, `latents` [N, D]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.generate.car_design import SPLIT_CODES, body_type, sample_car
from mnif_nerf.data.generate.digits import make_digits
from mnif_nerf.data.generate.procedural import car_occupancy, make_procedural_cars
from mnif_nerf.data.generate.settings import CarCounts, ViewCounts
from mnif_nerf.data.generate.writer import write_occupancy
from mnif_nerf.data.sampling.point_sampler import PointSampler
from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.stores.grid_store import GridStore, open_grid_store
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.fields.heads import occupancy_from_raw
from mnif_nerf.fields.modulations import build_field
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.meta import LossObjective, PointObjective
from mnif_nerf.metrics.grids import accuracy, iou, occupancy_psnr
from mnif_nerf.metrics.images import psnr
from mnif_nerf.rendering.batch import PointBatch, RayBatch
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.grids import cell_centres
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.radiance_losses import LossConfig, radiance_losses
from mnif_nerf.rendering.views import render_view

Objective = PointObjective | LossObjective


@dataclass(frozen=True)
class Settings:
    """A modality's field, data and training: those of the `-lite` methods while voxels and images learned by
    meta-learning.

    Attributes:
        field: networks and modulation.
        metric: what the table shows.
        resolution: of grids or pictures.
        train, unseen: instances.
        batch: instances per step.
        points: per instance and step (radiance: rays).
        observed: points (rays) of an instance that the inner loop sees once training is over.
        field_lr, latent_lr: Adam's rates of the networks, and of the latent table.
        rates_lr, inner_lr: Adam's rate of the Meta-SGD rates, and the factor on them.
        fit_steps, fit_lr: of fitting an unseen instance's latent in auto-decoding; the rate in standard deviations of
            the training latents.
        scored: instances of each split that are scored.
    """

    field: FieldSpec
    metric: str
    resolution: int
    train: int
    unseen: int
    batch: int
    points: int
    observed: int
    field_lr: float = 1e-3
    latent_lr: float = 5e-3
    rates_lr: float = 1e-3
    inner_lr: float = 1.0
    fit_steps: int = 300
    fit_lr: float = 0.2
    scored: int = 16


SETTINGS = {
    "voxel": Settings(
        FieldSpec(3, 1, 48, 3, 32, 64, head="logit"),
        metric="iou", resolution=64, train=128, unseen=16, batch=16, points=1024, observed=4096,
    ),
    "image": Settings(
        FieldSpec(2, 1, 32, 2, 32, 32, w0=6.0, head="signed"),
        metric="psnr", resolution=8, train=1500, unseen=200, batch=64, points=0, observed=0, scored=200,
    ),
    "radiance": Settings(
        common.MNIF_LITE.spec,
        metric="psnr", resolution=48, train=64, unseen=8, batch=16, points=64, observed=512, scored=8,
        inner_lr=1 / 32,
    ),
}  # fmt: skip


def small(settings: Settings) -> Settings:
    """The same for a quick look: tiny networks, grids and batches."""
    field = dataclasses.replace(settings.field, width=12, hidden_layers=1, num_bases=4, latent_dim=3)
    return dataclasses.replace(
        settings, field=field, resolution=min(settings.resolution, 12), train=4, unseen=2, batch=2,
        points=min(settings.points, 32), observed=min(settings.observed, 64), fit_steps=3, scored=2,
    )  # fmt: skip


class GridTask:
    """Voxels or pictures.

    Args:
        modality: "voxel" or "image".
        settings: of it.
        data: from `make_data`.
        device, seed: of networks and draws.
    """

    def __init__(self, modality: str, settings: Settings, data: Path, device: str, seed: int) -> None:
        self.settings, self.device = settings, torch.device(device)
        self.field = build_field(settings.field, seed).to(self.device)
        self.stores, self.samplers = {}, {}
        for split, name in (("train", "train"), ("unseen", "test")):
            store = _first(open_grid_store(data, name, modality, progress=False), getattr(settings, split))
            batch = settings.batch if split == "train" else store.num_instances
            self.stores[split] = store
            self.samplers[split] = PointSampler(store, batch, settings.points, device, seed)
        self.counts = {split: store.num_instances for split, store in self.stores.items()}

    def _objective(self, batch: PointBatch) -> PointObjective:
        return PointObjective(self.field, batch)

    def draw(self, step: int) -> tuple[Tensor, Objective]:
        """See the module."""
        batch = self.samplers["train"].draw(step)
        return batch.instances, self._objective(batch)

    def observed(self, split: str) -> Callable[[Tensor], Objective]:
        """See the module."""
        sampler = self.samplers[split]
        return lambda instances: self._objective(sampler.fixed(instances, self.settings.observed))

    def fitting(self, codes: Tensor, step: int) -> Tensor:
        """See the module."""
        everyone = torch.arange(self.counts["unseen"])
        batch = self.samplers["unseen"].fixed(everyone, self.settings.points, salt=1 + step)
        return self._objective(batch).losses(codes)

    @torch.no_grad()
    def score(self, split: str, latents: Tensor) -> dict[str, float]:
        """See the module."""
        store = self.stores[split]
        found: dict[str, list[float]] = {}
        centres = cell_centres(store.shape, self.device)
        for instance in range(min(self.settings.scored, store.num_instances)):
            values = self.field.collapse(latents[instance]).to(self.device).evaluate(centres)
            truth = torch.from_numpy(store.all_targets(np.array([instance])))[0].to(self.device)
            if store.modality == "voxel":
                occupancy = occupancy_from_raw(values[0], self.settings.field.head)
                cells, inside = occupancy > 0.5, truth[0] > 0
                scores = {
                    "iou": iou(cells, inside),
                    "accuracy": accuracy(cells, inside),
                    "psnr": occupancy_psnr(occupancy, inside),
                }
            else:
                scores = {"psnr": psnr(((values + 1) / 2).clamp(0, 1), (truth + 1) / 2)}
            for name, value in scores.items():
                found.setdefault(name, []).append(float(value))
        return {name: fmean(values) for name, values in found.items()}


class RadianceTask:
    """Procedural cars from pictures; arguments as of `GridTask`. Unseen cars show every other view."""

    def __init__(self, modality: str, settings: Settings, data: Path, device: str, seed: int) -> None:
        self.settings, self.device, self.seed = settings, torch.device(device), seed
        self.field = build_field(settings.field, seed).to(self.device)
        self.stores = {split: open_store(data, name, progress=False) for split, name in _RADIANCE_SPLITS.items()}
        self.counts = {split: self.stores[split].num_scenes for split in ("train", "unseen")}
        self.shown = {"train": None, "unseen": torch.arange(self.stores["unseen"].num_views) % 2 == 0}
        self.sampler = self._sampler("train", settings.batch, settings.points)
        self.fitted = self._sampler("unseen", self.counts["unseen"], settings.points)
        self.losses = LossConfig()
        self.bounds = common.hull_union(self.stores["train"])

    def _sampler(self, split: str, batch: int, rays: int) -> RayBatchSampler:
        return RayBatchSampler(self.stores[split], batch, rays, rays, self.device, self.seed, self.shown[split])

    def _losses(self, batch: RayBatch, seed: int, codes: Tensor) -> Tensor:
        # A generator of its own for every evaluation: the inner steps see the same samples.
        generator = torch.Generator().manual_seed(seed)
        evaluate = partial(self.field.evaluate, codes)
        terms = radiance_losses(evaluate, batch, self.losses, generator, reduce=False, head=self.field.spec.head)
        return torch.stack(list(terms.values())).sum(dim=0)

    def draw(self, step: int) -> tuple[Tensor, Objective]:
        """See the module."""
        batch = self.sampler.draw(step)
        return batch.instances, LossObjective(partial(self._losses, batch, step))

    def observed(self, split: str) -> Callable[[Tensor], Objective]:
        """See the module."""
        everyone = _in_order(self._sampler(split, self.counts[split], self.settings.observed).draw(0))

        def objective(instances: Tensor) -> Objective:
            batch = everyone[int(instances[0]) : int(instances[-1]) + 1]
            return LossObjective(partial(self._losses, batch, self.seed))

        return objective

    def fitting(self, codes: Tensor, step: int) -> Tensor:
        """See the module."""
        return self._losses(_in_order(self.fitted.draw(step)), step, codes)

    @torch.no_grad()
    def score(self, split: str, latents: Tensor) -> dict[str, float]:
        """Held-out views of training cars, or the views of unseen cars that were not shown."""
        store, scores = self.stores["heldout" if split == "train" else split], []
        for scene in range(min(self.settings.scored, store.num_scenes)):
            field = self.field.collapse(latents[scene]).to(self.device)
            grid = OccupancyGrid.from_field(
                field, common.MNIF_LITE.grid_resolution, bounds=self.bounds, device=self.device
            )
            focal, cx, cy = (float(value) for value in store.intrinsics[store.view_range(scene)[0]])
            camera = Intrinsics(focal, cx, cy, store.height, store.width)
            first, last = store.view_range(scene)
            shown = self.shown[split]
            for view in range(first, last):
                if shown is None or not shown[view]:
                    pose = torch.from_numpy(store.poses[view]).to(self.device)
                    truth = torch.from_numpy(store.images[view]).to(self.device).float() / 255
                    scores.append(float(psnr(render_view(field, pose, camera, grid)["rgb"], truth)))
        return {"psnr": fmean(scores)}


_RADIANCE_SPLITS = {"train": "train", "heldout": "train_val", "unseen": "test"}
TASKS: dict[str, Any] = {"voxel": GridTask, "image": GridTask, "radiance": RadianceTask}


def _in_order(batch: RayBatch) -> RayBatch:
    """A batch that holds every instance once, sorted by instance."""
    order = batch.instances.argsort()
    return RayBatch(*(getattr(batch, entry.name)[order] for entry in dataclasses.fields(batch)))


def _first(store: GridStore, count: int) -> GridStore:
    """A store of the first `count` instances; samplers and scores look no further."""
    return dataclasses.replace(store, names=store.names[:count])


def make_data(modality: str, settings: Settings, folder: Path, seed: int) -> Path:
    """Write the data of a modality where it is absent, and pack it."""
    if modality == "image":
        data = make_digits(folder / "digits")
    else:
        name = f"{modality}_cars_{settings.train}_{settings.unseen}x{settings.resolution}_seed{seed}"
        data = folder / name
        if modality == "radiance":
            counts = CarCounts(settings.train, 0, settings.unseen, seed)
            views = ViewCounts(16, 2, 16, settings.resolution)
            make_procedural_cars(data, counts, views, occupancy=False, progress=False)
            for split in _RADIANCE_SPLITS.values():
                open_store(data, split, progress=False)
            return data
        for split, count in (("train", settings.train), ("test", settings.unseen)):
            for index in range(count):
                path = data / split / f"{index:04d}.npz"
                if not path.exists():
                    car = sample_car((seed, SPLIT_CODES[split], index), body_type(seed, split, index))
                    write_occupancy(path, car_occupancy(car, settings.resolution))
    for split in ("train", "test"):
        open_grid_store(data, split, modality, progress=False)
    return data
