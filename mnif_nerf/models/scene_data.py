"""nerfstudio's data manager over the packed store: training rays grouped by instance, and one scene to look
at.

Images stay uint8 in the memory-mapped store, and commands that only show something read one scene's files and
open no store.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from torch import Tensor

from mnif_nerf.data.readers.images import composite_white, read_image
from mnif_nerf.data.sampling.views import ViewList
from mnif_nerf.modalities.radiance_settings import SceneDataSettings, SceneSource
from mnif_nerf.modalities.radiance_training import SceneData, ViewEvaluation
from mnif_nerf.modalities.training import Evaluation
from mnif_nerf.models.base import InstanceModel
from mnif_nerf.models.dataparser import SrnDataParser, SrnDataParserConfig, make_cameras, make_outputs
from mnif_nerf.models.instance_data import InstanceDataManager, InstanceDataManagerConfig, ray_bundle
from mnif_nerf.random import stream
from mnif_nerf.rendering.cameras import pixel_directions


@dataclass
class MNIFDataManagerConfig(SceneDataSettings, InstanceDataManagerConfig):
    """Rays of several instances per step, from a data set in the SRN layout."""

    _target: type = field(default_factory=lambda: MNIFDataManager)


class SceneImages(InputDataset):
    """Pictures of the shown scene, read from its files and composited on white."""

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """uint8 `[H, W, 3]`."""
        camera = self.cameras[image_idx]
        path = self._dataparser_outputs.image_filenames[image_idx]
        return composite_white(read_image(path, int(camera.height), int(camera.width)))


class StoredImages(InputDataset):
    """Pictures of several scenes, from the packed store."""

    def __init__(self, outputs: DataparserOutputs, views: ViewList) -> None:
        super().__init__(outputs)
        self.views = views

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """uint8 `[H, W, 3]`."""
        return np.array(self.views.store.images[self.views.views[image_idx]])


class MNIFDataManager(InstanceDataManager):
    """See the module; "test" and "inference" show one scene and open no store before it is asked for."""

    config: MNIFDataManagerConfig
    source: SceneData

    def open(self) -> None:
        """Read the shown scene; see `InstanceDataManager`."""
        config = self.config
        if config.data is not None:
            config.dataparser.data = Path(config.data)
        config.data = Path(config.dataparser.data)
        source = config.dataparser
        values = {entry.name: getattr(source, entry.name) for entry in fields(SceneSource)}
        self.dataparser = SrnDataParser(SrnDataParserConfig(**values))
        self.source = SceneData(config, self.device, self.seed)
        if self.test_mode == "val":  # the store, which training needs anyway, knows which instances are blank
            self.dataparser.packed = self.source.names
        self.train_dataparser_outputs = self.dataparser.get_dataparser_outputs("train")
        self.train_dataset = SceneImages(self.train_dataparser_outputs)
        self.eval_dataset = SceneImages(self.dataparser.get_dataparser_outputs(self.test_split))
        if self.test_mode != "val":
            self.source.listed = self.names

    def facts(self) -> dict[str, Any]:
        """See `InstanceDataManager`; in test modes the camera is that of the shown scene, for which no store is
        opened."""
        return self.source.facts() if self.test_mode == "val" or self.config.missing else {"camera": self.camera()}

    def eval_losses(
        self, model: InstanceModel, evaluation: Evaluation, step: int
    ) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """See `InstanceDataManager`: the mean squared error of random rays of the views to score."""
        assert isinstance(evaluation, ViewEvaluation)
        views, _, latents = evaluation.views(model.stage1)
        bundle, batch = self.random_rays(views, self.get_eval_rays_per_batch(), step)
        with model.rendering_latents(latents):
            outputs = model(bundle)
        return outputs, model.get_loss_dict(outputs, batch), model.get_metrics_dict(outputs, batch)

    def replacement_eval_dataset(self, evaluation: Evaluation) -> InputDataset:
        """The views of unseen scenes, where those are to be scored."""
        assert isinstance(evaluation, ViewEvaluation)
        return self.dataset_of(evaluation.unseen.scored) if evaluation.on_unseen else self.eval_dataset

    def dataset_of(self, views: ViewList, names: tuple[str, ...] | None = None) -> StoredImages:
        """A data set of stored pictures, whose cameras carry `views.scenes` as `scene_idx`."""
        store = views.store
        cameras = make_cameras(store.poses[views.views], views.intrinsics, store.height, store.width, views.scenes)
        paths = [Path(f"{name}.png") for name in views.names]
        return StoredImages(make_outputs(paths, cameras, names or self.names, 0), views)

    def loader_of(self, views: ViewList, names: tuple[str, ...] | None = None) -> FixedIndicesEvalDataloader:
        """Yields `(camera, batch)` for every picture of `views` in order."""
        return FixedIndicesEvalDataloader(input_dataset=self.dataset_of(views, names), device=self.device)

    @cached_property
    def fixed_indices_eval_dataloader(self) -> FixedIndicesEvalDataloader:
        """The evaluation views in order: what ns-eval and steps_per_eval_all_images average over."""
        return self.loader_of(self.source.evaluation_views)

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays as nerfstudio's tools know them, flattened to `[B * R]`, with `image` `[B * R, 3]`.

        The training pipeline uses `draw` instead. In test modes all rays are of the shown scene, and new at
        every call (ns-export asks for step 0 again and again).
        """
        self.train_count += 1
        if self.test_mode != "val":
            count = self.get_train_rays_per_batch()
            return self.random_rays(self.source.views.training(self.shown), count, self.train_count)
        rays = self.source.draw(step)
        scenes = rays.instances.repeat_interleave(rays.rgb.shape[1])
        bundle = ray_bundle(rays.origins.flatten(0, 1), rays.directions.flatten(0, 1), scenes)
        bundle.nears, bundle.fars = rays.near.reshape(-1, 1), rays.far.reshape(-1, 1)
        return bundle, {"image": rays.rgb.flatten(0, 1)}

    def next_eval(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Random rays of the evaluation views with `image` `[R, 3]`; the same for the same step."""
        self.eval_count += 1
        return self.random_rays(self.source.evaluation_views, self.get_eval_rays_per_batch(), step)

    def random_rays(self, views: ViewList, count: int, seed: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays of `count` random pixels of `views`, and their colours `image` `[count, 3]`, by seed."""
        store = views.store
        generator = torch.Generator().manual_seed(stream(self.seed, "evaluation rays", seed))
        picked = torch.randint(len(views), (count,), generator=generator).numpy()
        pixel = torch.randint(store.height * store.width, (count,), generator=generator)
        column, row = pixel % store.width, pixel // store.width
        pose = torch.from_numpy(store.poses[views.views[picked]])
        focal, cx, cy = torch.from_numpy(np.ascontiguousarray(views.intrinsics[picked])).T
        directions = pixel_directions(torch.stack([column, row], dim=-1), pose[:, :3, :3], focal, cx, cy)
        color = store.images[views.views[picked], row.numpy(), column.numpy()]
        bundle = ray_bundle(pose[:, :3, 3], directions, torch.from_numpy(views.scenes[picked]))
        return bundle.to(self.device), {"image": (torch.from_numpy(color).float() / 255.0).to(self.device)}
