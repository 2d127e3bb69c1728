"""nerfstudio's data manager of voxel shapes and images: points grouped by instance, and one instance to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from torch import Tensor

from mnif_nerf.data.geometry.hull import HALF_EXTENT
from mnif_nerf.data.sampling.point_sampler import PointSampler
from mnif_nerf.data.sampling.views import choose_scene, spread
from mnif_nerf.data.stores.grid_store import GridStore, grid_splits, open_grid_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.models.dataparser import make_cameras, make_outputs
from mnif_nerf.models.grid_views import front_camera, orbit_poses
from mnif_nerf.models.instance_data import InstanceDataManager, InstanceDataManagerConfig, ray_bundle
from mnif_nerf.random import stream
from mnif_nerf.rendering.batch import PointBatch
from mnif_nerf.rendering.cameras import Intrinsics, pixel_rays
from mnif_nerf.rendering.occupancy import dilate
from mnif_nerf.rendering.voxel_faces import render_cells

_MARGIN = 2  # cells beyond the union of all training shapes where a new one may still be


@dataclass
class GridDataManagerConfig(InstanceDataManagerConfig):
    """Points of several shapes, or pixels of several images, per step."""

    _target: type = field(default_factory=lambda: GridDataManager)
    dataparser: tyro.conf.Suppress[Any] = None
    modality: tyro.conf.Suppress[str] = "voxel"
    instance: str = ""
    """Instance to show: its index or its name; empty means the environment's MNIF_SCENE, or else the first."""
    resolution: int = 0
    """Cells or pixels along an edge; 0 takes what the files have (of images, 64 at most)."""
    channels: int = 0
    """Images: 1 (grey) or 3; 0 takes what the files have."""
    instances_per_step: int = 16
    """Instances per training step."""
    points_per_instance: int = 1024
    """Cells or pixels of each of them; 0 takes all."""
    surface_share: float = 0.5
    """Voxels: share of these cells that lie beside the surface."""
    reweight: bool = False
    """Voxels: whether weights make up for that share, so that the loss is the mean over all cells again."""
    jitter: bool = False
    """Images: whether points are drawn anywhere within their pixels, with interpolated colours. Without, the field is
    only right at the pixels' centres, and noise appears where it is sampled more finely."""
    encode_points: int = 4096
    """Meta-learning: cells of an instance that its latent is computed from after training; 0 takes all."""
    eval_num_instances: int = 8
    """Instances an evaluation looks at, spread evenly over the set, and as many unseen ones."""
    picture_size: int = 128
    """Voxels: pixels along an edge of the pictures of the shown shape."""


class ShownInstance(InputDataset):
    """Pictures of the shown instance, made when they are asked for: its cells' faces, or the image itself."""

    def __init__(self, outputs: DataparserOutputs, values: np.ndarray, poses: Tensor, camera: Intrinsics) -> None:
        super().__init__(outputs)
        self.values, self.poses, self.camera = values, poses, camera
        self._made: dict[int, np.ndarray] = {}

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """uint8 `[H, W, 3]`."""
        if image_idx not in self._made:
            self._made[image_idx] = self._picture(self.poses[image_idx])
        return self._made[image_idx]

    def _picture(self, pose: Tensor) -> np.ndarray:
        if self.values.dtype == np.uint8:
            return np.repeat(self.values, 3 // self.values.shape[2], axis=2)
        picture = render_cells(torch.from_numpy(self.values), pose, self.camera)
        return (255 * picture).round().byte().numpy()


class GridDataManager(InstanceDataManager):
    """See the module."""

    config: GridDataManagerConfig

    def open(self) -> None:
        """Open (and pack, where that was not done yet) the training split, and choose what is shown.

        Raises:
            MNIFError: no data was named, or it cannot be read.
        """
        if self.config.data is None:
            raise MNIFError(f"there is no data to train on; name a folder of {self.config.modality} files by --data.")
        self.config.data = Path(self.config.data)
        names = self.store.names
        shown = choose_scene(names, self.config.instance)
        self.train_dataset = self._pictures("train", shown)
        self.eval_dataset = self._pictures(self.test_split, shown)
        self.train_dataparser_outputs = self.train_dataset._dataparser_outputs
        if self.config.modality == "voxel" and self.test_mode == "val":
            self.train_dataset.metadata["bounds"] = dilate(torch.from_numpy(self.store.union()), _MARGIN)
        self.train_dataset.metadata["grid"] = {"resolution": self.store.resolution, "channels": self.store.channels}

    def _pictures(self, split: str, shown: int) -> ShownInstance:
        if self.config.modality == "voxel":
            poses, camera = orbit_poses(split), Intrinsics.default(self.config.picture_size)
        else:
            poses, camera = front_camera(self.store.resolution)
        intrinsics = np.tile(np.float32([camera.focal, camera.cx, camera.cy]), (len(poses), 1))
        cameras = make_cameras(poses.numpy(), intrinsics, camera.height, camera.width, np.full(len(poses), shown))
        paths = [Path(self.store.names[shown]) / f"{view:06d}.png" for view in range(len(poses))]
        outputs = make_outputs(paths, cameras, self.store.names, shown, HALF_EXTENT)
        return ShownInstance(outputs, self.store.values(shown), poses, camera)

    # --------------------------------------------------------------------------------------------------- grids

    @cached_property
    def store(self) -> GridStore:
        """The packed training split."""
        return self._open("train")

    @cached_property
    def unseen(self) -> GridStore | None:
        """Instances never trained on: the split val while training, test afterwards, the other where one is missing;
        None without either."""
        present = grid_splits(self.get_datapath(), self.config.modality)
        found = next((name for name in (self.test_split, "test", "val") if name in present), None)
        return None if found is None else self._open(found)

    def _open(self, split: str) -> GridStore:
        size, channels = self.config.resolution or None, self.config.channels or None
        return open_grid_store(self.get_datapath(), split, self.config.modality, size, channels)

    def evaluated(self, store: GridStore) -> np.ndarray:
        """`[K]` int64 instances of a store that evaluation looks at."""
        return spread(store.num_instances, self.config.eval_num_instances)

    def sampler_of(self, store: GridStore, instances_per_step: int = 1) -> PointSampler:
        """Points of a store, drawn as in training."""
        config = self.config
        points, share, reweight = config.points_per_instance, config.surface_share, config.reweight
        return PointSampler(store, instances_per_step, points, self.device, self.seed, share, reweight, config.jitter)

    @cached_property
    def points(self) -> PointSampler:
        """Draws the training batches; every draw depends on the seed and the step alone."""
        return self.sampler_of(self.store, self.config.instances_per_step)

    def draw(self, step: int) -> PointBatch:
        """The points of training step `step`, grouped by instance."""
        return self.points.draw(step)

    def fixed(self, instances: Tensor) -> PointBatch:
        """See `InstanceDataManager`."""
        return self.points.fixed(instances, self.config.encode_points)

    def drawn_per_step(self) -> int:
        """Points of one training step."""
        per_instance = self.points.points_per_instance or self.store.num_cells
        return self.points.instances_per_step * min(per_instance, self.store.num_cells)

    def storage(self) -> dict[str, Any]:
        """Modality, and the grid's resolution and channels."""
        return {
            "modality": self.config.modality,
            "grid": {"resolution": self.store.resolution, "channels": self.store.channels},
            "half_extent": HALF_EXTENT,
        }

    def settings(self) -> dict[str, Any]:
        """Instances and points of a step, and how the points are chosen."""
        names = ("instances_per_step", "points_per_instance", "surface_share", "reweight", "jitter", "encode_points")
        return {name: getattr(self.config, name) for name in names}

    # ------------------------------------------------------------------------------ rays, for nerfstudio's tools

    @cached_property
    def fixed_indices_eval_dataloader(self) -> FixedIndicesEvalDataloader:
        """The pictures of the shown instance that it is evaluated by."""
        return FixedIndicesEvalDataloader(input_dataset=self.eval_dataset, device=self.device)

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays `[R]` of the shown instance with `image` `[R, 3]`, new at every call (for ns-export)."""
        self.train_count += 1
        return self._random_rays(self.train_dataset, self.get_train_rays_per_batch(), self.train_count)

    def next_eval(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays `[R]` of the shown instance with `image` `[R, 3]`; the same for the same step."""
        self.eval_count += 1
        return self._random_rays(self.eval_dataset, self.get_eval_rays_per_batch(), step)

    def _random_rays(self, dataset: Any, count: int, seed: int) -> tuple[RayBundle, dict[str, Any]]:
        generator = torch.Generator().manual_seed(stream(self.seed, "evaluation rays", seed))
        every = [pixel_rays(pose, dataset.camera) for pose in dataset.poses]
        colors = torch.cat([torch.from_numpy(dataset.get_numpy_image(i)).view(-1, 3) for i in range(len(dataset))])
        picked = torch.randint(len(colors), (count,), generator=generator)
        origins, directions = (torch.cat(parts)[picked] for parts in zip(*every))
        bundle = ray_bundle(origins, directions, torch.full((count,), self.shown))
        return bundle.to(self.device), {"image": (colors[picked].float() / 255.0).to(self.device)}
