"""nerfstudio's data manager of grids and surfaces: points grouped by instance, and one instance to look at."""

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

from mnif_nerf import modalities
from mnif_nerf.data.sampling.views import choose_scene
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.grid_settings import GridDataSettings
from mnif_nerf.modalities.grid_training import GridData, GridTraining
from mnif_nerf.modalities.sdf_training import SurfaceData, SurfaceTraining
from mnif_nerf.modalities.training import Evaluation
from mnif_nerf.models.base import InstanceModel
from mnif_nerf.models.dataparser import make_cameras, make_outputs
from mnif_nerf.models.instance_data import InstanceDataManager, InstanceDataManagerConfig, ray_bundle
from mnif_nerf.random import stream
from mnif_nerf.rendering.cameras import Intrinsics, pixel_rays


@dataclass
class GridDataManagerConfig(GridDataSettings, InstanceDataManagerConfig):
    """Points of several instances per step."""

    _target: type = field(default_factory=lambda: GridDataManager)
    dataparser: tyro.conf.Suppress[Any] = None


PointData = GridData | SurfaceData


class ShownInstance(InputDataset):
    """Pictures of the shown instance, made when they are asked for.

    Args:
        outputs: cameras and names.
        source: where the instance lies.
        shown: its index.
        view: poses `[V, 4, 4]` and the camera of the pictures.
    """

    def __init__(
        self, outputs: DataparserOutputs, source: PointData, shown: int, view: tuple[Tensor, Intrinsics]
    ) -> None:
        super().__init__(outputs)
        self.poses, self.camera = view
        self.source, self.shown = source, shown
        self._made: dict[int, np.ndarray] = {}

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """uint8 `[H, W, 3]`."""
        if image_idx not in self._made:
            training: Any = training_of(self.source)
            pose = self.poses[image_idx]
            self._made[image_idx] = training.picture_of(self.source.store, self.shown, pose, self.camera)
        return self._made[image_idx]


def training_of(source: PointData) -> GridTraining | SurfaceTraining:
    """The modality's side of training for this data."""
    training = modalities.get(source.settings.modality).training
    assert isinstance(training, (GridTraining, SurfaceTraining))
    return training


class GridDataManager(InstanceDataManager):
    """See the module."""

    config: GridDataManagerConfig
    source: PointData

    def open(self) -> None:
        """Open (and pack, where that was not done yet) the training split, and choose what is shown.

        Raises:
            MNIFError: no data was named, or it cannot be read.
        """
        if self.config.data is not None:
            self.config.data = Path(self.config.data)
        source = modalities.get(self.config.modality).training.open(self.config, self.device, self.seed)
        assert isinstance(source, (GridData, SurfaceData))
        self.source = source
        shown = choose_scene(source.names, self.config.instance)
        self.train_dataset = self._pictures("train", shown)
        self.eval_dataset = self._pictures(self.test_split, shown)
        self.train_dataparser_outputs = self.train_dataset._dataparser_outputs

    def _pictures(self, split: str, shown: int) -> ShownInstance:
        store: Any = self.source.store  # of the kind that its own training takes
        training = training_of(self.source)
        poses, camera = training.cameras(store, split, self.config.picture_size)
        intrinsics = np.tile(np.float32([camera.focal, camera.cx, camera.cy]), (len(poses), 1))
        cameras = make_cameras(poses.numpy(), intrinsics, camera.height, camera.width, np.full(len(poses), shown))
        paths = [Path(store.names[shown]) / f"{view:06d}.png" for view in range(len(poses))]
        return ShownInstance(make_outputs(paths, cameras, store.names, shown), self.source, shown, (poses, camera))

    @torch.no_grad()
    def eval_losses(
        self, model: InstanceModel, evaluation: Evaluation, step: int
    ) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """See `InstanceDataManager`: the loss of the evaluated training instances at points drawn for this step."""
        stage1, items = model.stage1, evaluation.seen(model.stage1)
        if not items:
            raise MNIFError(f"{self.get_datapath()}: the model was trained on none of its instances.")
        instances = torch.tensor([item.truth[1] for item in items])
        batch = self.source.points.fixed(instances, self.config.points_per_instance, salt=step + 1)
        latents = torch.stack([item.latent for item in items])
        outputs = stage1.task.losses(stage1.field, latents, batch, torch.Generator())
        return outputs, outputs["losses"], {"psnr": outputs["psnr"]} if "psnr" in outputs else {}

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
