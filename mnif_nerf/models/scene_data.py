"""nerfstudio's data manager over the packed store: training rays grouped by instance, and one scene to look
at.

Images stay uint8 in the memory-mapped store, and commands that only show something read one scene's files and
open no store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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

from mnif_nerf.data.geometry.hull import HALF_EXTENT
from mnif_nerf.data.readers.images import composite_white, read_image
from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.sampling.views import TrainingViews, ViewList
from mnif_nerf.errors import MNIFError
from mnif_nerf.models.dataparser import SrnDataParserConfig, make_cameras, make_outputs
from mnif_nerf.models.instance_data import InstanceDataManager, InstanceDataManagerConfig, ray_bundle
from mnif_nerf.random import stream
from mnif_nerf.rendering.batch import RayBatch
from mnif_nerf.rendering.cameras import pixel_directions
from mnif_nerf.rendering.occupancy import dilate


@dataclass
class MNIFDataManagerConfig(InstanceDataManagerConfig):
    """Rays of several instances per step, from a data set in the SRN layout."""

    _target: type = field(default_factory=lambda: MNIFDataManager)
    dataparser: SrnDataParserConfig = field(default_factory=SrnDataParserConfig)
    """Where the data is, and which scene is shown."""
    scenes_per_step: int = 16
    """Instances per training step."""
    rays_per_scene: int = 64
    """Rays of each of them."""
    carve_points: int = 64
    """Points outside the hull of each of them, where density is pushed to zero."""
    encode_rays_per_scene: int = 256
    """Rays of an instance that its latent is computed from, and as many carve points (meta-learning only)."""
    eval_num_scenes: int = 8
    """Instances an evaluation looks at, spread evenly over the set."""
    eval_views_per_scene: int = 2
    """Held-out views of each of them."""


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

    def open(self) -> None:
        """Read the shown scene; while training, also where objects can be."""
        config = self.config
        if config.data is not None:
            config.dataparser.data = Path(config.data)
        config.data = Path(config.dataparser.data)
        self.dataparser = config.dataparser.setup()
        self.train_dataparser_outputs = self.dataparser.get_dataparser_outputs("train")
        self.train_dataset = SceneImages(self.train_dataparser_outputs)
        self.eval_dataset = SceneImages(self.dataparser.get_dataparser_outputs(self.test_split))
        if self.test_mode == "val":
            self.train_dataset.metadata["bounds"] = self.bounds()

    @cached_property
    def views(self) -> TrainingViews:
        """The packed training split and its held-out views; opened (and built where absent) on first use."""
        return TrainingViews(Path(self.config.dataparser.data), self.config.dataparser.heldout_views_per_scene)

    def bounds(self) -> Tensor | None:
        """Union of all visual hulls, grown by one cell: bool `[G, G, G]` ([x, y, z]); None without hulls."""
        union = self.views.train.hull_union()
        return None if union is None else dilate(torch.from_numpy(union))

    def drawn_per_step(self) -> int:
        """Rays of one training step."""
        return self.rays.scenes_per_step * self.rays.rays_per_scene

    @cached_property
    def rays(self) -> RayBatchSampler:
        """Draws the training batches; every draw depends on the seed and the step alone."""
        return self._sampler(self.config.rays_per_scene, self.config.carve_points)

    @cached_property
    def _encoded_rays(self) -> RayBatchSampler:
        rays = self.config.encode_rays_per_scene
        return self._sampler(rays, rays if self.config.carve_points else 0)

    def _sampler(self, rays: int, carve_points: int) -> RayBatchSampler:
        trained = torch.from_numpy(self.views.trained)
        scenes = self.config.scenes_per_step
        return RayBatchSampler(self.views.train, scenes, rays, carve_points, self.device, self.seed, trained)

    def draw(self, step: int) -> RayBatch:
        """The rays of training step `step`, grouped by instance."""
        return self.rays.draw(step)

    def fixed(self, instances: Tensor) -> RayBatch:
        """See `InstanceDataManager`."""
        return self._encoded_rays.fixed(instances)

    def storage(self) -> dict[str, Any]:
        """Scene box and typical camera (in test modes that of the shown scene, for which no store is opened)."""
        if self.test_mode != "val":
            return {"half_extent": HALF_EXTENT, "camera": self.camera()}
        store = self.views.train
        return {
            "half_extent": store.half_extent,
            "camera": {
                "focal_over_width": float(np.median(store.intrinsics[:, 0])) / store.width,
                "radius": float(np.median(np.linalg.norm(store.poses[:, :3, 3], axis=1))),
            },
        }

    def settings(self) -> dict[str, Any]:
        """Scenes, rays and carve points of a step."""
        return {name: getattr(self.config, name) for name in ("scenes_per_step", "rays_per_scene", "carve_points")}

    @cached_property
    def evaluation_views(self) -> ViewList:
        """Held-out views of a few training scenes.

        Raises:
            MNIFError: no view is held out.
        """
        views = self.views.evaluation(self.config.eval_num_scenes, self.config.eval_views_per_scene)
        if len(views) == 0:
            raise MNIFError(
                f"{self.config.data}: no view is held out, so there is nothing to evaluate; add a split "
                "train_val or set --pipeline.datamanager.dataparser.heldout-views-per-scene to 1 or more."
            )
        return views

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
        return self.loader_of(self.evaluation_views)

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays as nerfstudio's tools know them, flattened to `[B * R]`, with `image` `[B * R, 3]`.

        The training pipeline uses `draw` instead. In test modes all rays are of the shown scene, and new at
        every call (ns-export asks for step 0 again and again).
        """
        self.train_count += 1
        if self.test_mode != "val":
            count = self.get_train_rays_per_batch()
            return self.random_rays(self.views.training(self.shown), count, self.train_count)
        rays = self.draw(step)
        scenes = rays.scenes.repeat_interleave(rays.rgb.shape[1])
        bundle = ray_bundle(rays.origins.flatten(0, 1), rays.directions.flatten(0, 1), scenes)
        bundle.nears, bundle.fars = rays.near.reshape(-1, 1), rays.far.reshape(-1, 1)
        return bundle, {"image": rays.rgb.flatten(0, 1)}

    def next_eval(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Random rays of the evaluation views with `image` `[R, 3]`; the same for the same step."""
        self.eval_count += 1
        return self.random_rays(self.evaluation_views, self.get_eval_rays_per_batch(), step)

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
