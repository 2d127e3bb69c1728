"""What the data managers of all modalities share: one instance to look at, and rays as nerfstudio's tools know them.

They are `VanillaDataManager`s because ns-render and ns-export ask for one, but share none of its loading.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from torch import Tensor
from torch.nn import Parameter

from mnif_nerf.data.sampling.views import choose_scene
from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.ranks import ranks_of_group
from mnif_nerf.modalities.grid_training import front_camera
from mnif_nerf.modalities.training import Evaluation, TrainingData
from mnif_nerf.models.base import InstanceModel
from mnif_nerf.models.dataparser import make_cameras, make_outputs
from mnif_nerf.models.errors import tell_user
from mnif_nerf.models.moved_runs import renders_data
from mnif_nerf.pipelines.run_data import StoredData, is_data
from mnif_nerf.progress import say
from mnif_nerf.rendering.cameras import cameras_around
from mnif_nerf.saved_settings import SavedSettings

_BLANK_PIXELS = 128


@dataclass
class InstanceDataManagerConfig(SavedSettings, VanillaDataManagerConfig):
    """Data of many instances, one of which is shown."""

    _target: type = field(default_factory=lambda: InstanceDataManager)
    missing: ClassVar[str] = ""
    """The sentence that says that the data of a loaded run is not there."""
    run_folder: ClassVar[Path | None] = None
    """Folder of that run."""


class BlankViews(InputDataset):
    """Cameras around an object whose pictures are not there: white ones stand for them.

    Args:
        source: what is known of the data.
        shown: index of the shown instance.
        split: "train" or another, from higher up.
    """

    def __init__(self, source: StoredData, shown: int, split: str) -> None:
        size, camera, shape = _BLANK_PIXELS, source.model.camera, (source.grid().get("shape") or ())
        if source.model.kind.has_views:
            self.poses, self.camera = cameras_around(split, size, camera["focal_over_width"], camera["radius"])
        else:
            self.poses, self.camera = front_camera(shape if len(shape) == 2 else (size, size))
        own = self.camera
        intrinsics = np.tile(np.float32([own.focal, own.cx, own.cy]), (len(self.poses), 1))
        cameras = make_cameras(self.poses.numpy(), intrinsics, own.height, own.width, np.full(len(self.poses), shown))
        paths = [Path(f"{view:06d}.png") for view in range(len(self.poses))]
        super().__init__(make_outputs(paths, cameras, source.names, shown))

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """uint8 `[H, W, 3]`."""
        return np.full((self.camera.height, self.camera.width, 3), 255, np.uint8)


def _as_option(why: str) -> str:
    return why.replace("`data`", "--data")


class InstanceDataManager(VanillaDataManager):
    """See the module; a subclass sets `train_dataset` and `eval_dataset` and then calls this constructor.

    Args:
        config: batch sizes and the data's place.
        device: where batches end up.
        test_mode: "val" while training; "test" and "inference" show one instance.
        world_size, local_rank: of distributed training.
    """

    config: InstanceDataManagerConfig
    train_dataset: InputDataset
    eval_dataset: InputDataset
    train_dataparser_outputs: DataparserOutputs
    source: TrainingData

    @tell_user
    def __init__(
        self,
        config: InstanceDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **_: Any,
    ) -> None:
        self.config = config
        self.device = device
        self.test_mode = test_mode
        self.test_split = "val" if test_mode == "val" else "test"
        self.world_size, self.local_rank = world_size, local_rank
        self.sampler = None
        self.includes_time = False
        self.exclude_batch_keys_from_device = ["image", "mask"]
        self.seed = torch.initial_seed() % 2**31
        if config.missing and config.run_folder is not None and test_mode != "val" and not self._has_data():
            self._open_without_data(config.run_folder / "model", config.missing)
        else:
            ranks = ranks_of_group(device, local_rank)
            with ranks.one_first():
                self.open()
                self.source.share = ranks.share
                if ranks.size > 1:
                    self.source.drawn_per_step()  # packs what is not packed yet
        DataManager.__init__(self)

    def open(self) -> None:
        """Set `source`, the data sets and `train_dataparser_outputs`; module state is not there yet."""
        raise NotImplementedError

    def _has_data(self) -> bool:
        """Whether the data is there after all: ns-render dataset names it by an option of its own."""
        named = self.config.data or getattr(getattr(self.config, "dataparser", None), "data", None)
        return named is not None and is_data(Path(named))

    def _open_without_data(self, model: Path, why: str) -> None:
        """Take names, grid and camera from the model folder; pictures are blank, and what reads data says why not.

        Raises:
            MNIFError: there is no model folder either, or the data's own pictures are what is asked for.
        """
        if not (model / "config.json").is_file() or renders_data(sys.argv):
            raise MNIFError(_as_option(why))
        say(f"{_as_option(why)} Until then only what needs no data works.", warning=True)
        source = StoredData(self.config, model, _as_option(why))
        parser = getattr(self.config, "dataparser", None)
        wanted = getattr(self.config, "instance", "") or getattr(parser, "scene", "")
        shown = choose_scene(source.names, str(wanted))
        self.source = source
        self.train_dataset, self.eval_dataset = (BlankViews(source, shown, split) for split in ("train", "test"))
        self.train_dataparser_outputs = self.train_dataset._dataparser_outputs

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the training instances, in the order of `scene_idx`."""
        return self.train_dataset.metadata["scene_names"]

    @property
    def shown(self) -> int:
        """Index of the instance that is shown."""
        return int(self.train_dataset.metadata["shown_scene"])

    def camera(self) -> dict[str, float]:
        """The typical camera of the shown instance: "focal_over_width", and "radius" in world units."""
        cameras = self.train_dataset.cameras
        return {
            "focal_over_width": float((cameras.fx / cameras.width).median()),
            "radius": float(cameras.camera_to_worlds[:, :3, 3].norm(dim=1).median()),
        }

    def facts(self) -> dict[str, Any]:
        """What a model folder must know of the data: fields of `StoredModel`."""
        return self.source.facts()

    def eval_losses(
        self, model: InstanceModel, evaluation: Evaluation, step: int
    ) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Outputs, losses and metrics of what `evaluation` looks at, at rays or points drawn for this step."""
        raise NotImplementedError

    def replacement_eval_dataset(self, evaluation: Evaluation) -> InputDataset:
        """What stands for `eval_dataset` where that is empty."""
        return self.eval_dataset

    def setup_train(self) -> None:
        """Prepare the drawing of rays; only while training."""
        count = self.source.drawn_per_step() if self.test_mode == "val" else self.config.train_num_rays_per_batch
        self.train_pixel_sampler = SimpleNamespace(num_rays_per_batch=count)  # type: ignore[assignment]

    def setup_eval(self) -> None:
        """Nothing: what is evaluated opens on first use."""

    @cached_property
    def eval_dataloader(self) -> FixedIndicesEvalDataloader:
        """Held-out cameras of the shown instance (ns-render spiral starts at the first)."""
        return FixedIndicesEvalDataloader(input_dataset=self.eval_dataset, device=self.device)

    def get_train_rays_per_batch(self) -> int:
        """Rays (or points) of one training step."""
        sampler: Any = self.train_pixel_sampler
        return sampler.num_rays_per_batch if sampler else self.config.train_num_rays_per_batch

    def get_eval_rays_per_batch(self) -> int:
        """Rays of one evaluation batch."""
        return self.config.eval_num_rays_per_batch

    def get_datapath(self) -> Path:
        """The data folder."""
        return Path(str(self.config.data))

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Nothing is learned here; the latents belong to the model."""
        return {}

    def next_eval_image(self, step: int) -> tuple[Any, dict[str, Any]]:
        """One evaluation view after the other: `(Cameras [1], batch)`."""
        loader = self.fixed_indices_eval_dataloader
        picked = self.eval_count % len(loader.input_dataset)
        self.eval_count += 1
        return loader.get_camera(picked)


def ray_bundle(origins: Tensor, directions: Tensor, scenes: Tensor) -> RayBundle:
    """A ray bundle `[R]` with `scene_idx` `[R, 1]`; pixel areas are not used by any field here."""
    column = torch.zeros(len(origins), 1, device=origins.device)
    return RayBundle(
        origins=origins.contiguous(),
        directions=directions,
        pixel_area=column,
        camera_indices=column.long(),
        metadata={"scene_idx": scenes.view(-1, 1)},
    )
