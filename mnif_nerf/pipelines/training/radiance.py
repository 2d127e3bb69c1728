"""The training pipeline of radiance fields under nerfstudio, and its evaluation: see `pipelines.training.base`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.sampling.views import UnseenViews, ViewList, open_unseen, pictures_of
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import write_json
from mnif_nerf.latents.scenes import latents_of_scenes
from mnif_nerf.models.errors import tell_user
from mnif_nerf.models.radiance import MNIFModel, MNIFModelConfig
from mnif_nerf.models.scene_data import MNIFDataManager, MNIFDataManagerConfig
from mnif_nerf.pipelines.training.base import InstancePipeline, InstancePipelineConfig, means


@dataclass
class MNIFTrainingPipelineConfig(InstancePipelineConfig):
    """Radiance fields of a data set, and the latent prior at its end."""

    _target: type = field(default_factory=lambda: MNIFTrainingPipeline)
    datamanager: MNIFDataManagerConfig = field(default_factory=MNIFDataManagerConfig)
    """The data."""
    model: MNIFModelConfig = field(default_factory=MNIFModelConfig)
    """Field, latents and losses."""
    eval_mode: Literal["heldout-views", "unseen-scenes"] = "heldout-views"
    """Evaluate held-out views of the training scenes, or scenes never seen, to which latents are fitted."""
    conditioning_views: tuple[int, ...] = (64, 104)
    """Views of an unseen scene its latent is fitted to; as many evenly spaced ones where it lacks these."""
    fit_rays_per_scene: int = 128
    """Rays of each scene in one of these steps."""
    fit_samples_per_ray: int = 32
    """Samples of each of these rays; more than in training, for want of a hull."""


class MNIFTrainingPipeline(InstancePipeline):
    """See the module."""

    config: MNIFTrainingPipelineConfig
    datamanager: MNIFDataManager
    model: MNIFModel

    @tell_user
    def __init__(self, config: MNIFTrainingPipelineConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if config.eval_mode == "unseen-scenes" and self.test_mode != "inference" and not self.datamanager.eval_dataset:
            # nerfstudio evaluates nothing where the evaluation set is empty, as it is without held-out views.
            self.datamanager.eval_dataset = self.datamanager.dataset_of(self.unseen.scored)

    # --------------------------------------------------------------------------------------------- evaluation

    @cached_property
    def unseen(self) -> UnseenViews:
        """Scenes never trained on: from the split val while training, from test afterwards."""
        data = self.datamanager.config
        split = "val" if self.test_mode == "val" else "test"
        return open_unseen(
            self.datamanager.get_datapath(),
            split,
            data.eval_num_scenes,
            data.eval_views_per_scene,
            tuple(self.config.conditioning_views),
        )

    @contextmanager
    def _evaluation(self, step: int | None) -> Iterator[tuple[ViewList, tuple[str, ...]]]:
        """The views to score and their scenes' names; within it, `scene_idx` finds the right latents."""
        was_training = self.training
        self.eval()
        try:
            if self.config.eval_mode == "unseen-scenes":
                with self.model.rendering_latents(self.latents_of_unseen(step)):
                    yield self.unseen.scored, tuple(self.unseen.names)
            else:
                views = self.datamanager.evaluation_views
                known = torch.tensor([self.model.knows(int(scene)) for scene in views.scenes])
                if not bool(known.any()):
                    raise MNIFError(
                        f"{self.datamanager.get_datapath()}: the model was trained on none of its scenes; "
                        "set eval_mode: unseen-scenes in config.yml to fit latents, or evaluate on the training data."
                    )
                views = views.where(known.numpy())
                self.refresh_latents(sorted(set(views.scenes.tolist())))
                yield views, self.datamanager.names
        finally:
            self.train(was_training)

    def find_unseen(self) -> Tensor:
        """Codes `[K, D]` of the unseen scenes, from their conditioning views."""
        # Without its hull, which was carved from the views to be scored as well.
        store: Any = pictures_of(self.unseen.conditioning, len(self.unseen.names))
        count, rays = len(self.unseen.names), self.config.fit_rays_per_scene
        sampler = RayBatchSampler(store, count, rays, device=self.model.device, seed=self.seed)
        losses = self.model.config.loss_config(self.config.fit_samples_per_ray)
        inner_loop = None if self.model.meta is None else (self.model.meta, self.model.inner_rates().detach())
        latents = self.model.latents.weight.detach()
        return latents_of_scenes(self.model.field, sampler, latents, losses, inner_loop, self.config.fit_steps)

    @tell_user
    def get_eval_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Mean squared error of random rays of the views to score."""
        with self._evaluation(step) as (views, _):
            bundle, batch = self.datamanager.random_rays(views, self.datamanager.get_eval_rays_per_batch(), step)
            outputs = self.model(bundle)
            return (
                outputs,
                self.model.get_loss_dict(outputs, batch),
                self.model.get_metrics_dict(outputs, batch),
            )

    @tell_user
    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Metrics and pictures of one of the views to score, another at every call."""
        with self._evaluation(step) as (views, names):
            loader = self.datamanager.loader_of(views, names)
            self.datamanager.eval_count += 1
            camera, batch = loader.get_camera((self.datamanager.eval_count - 1) % len(views))
            outputs = self.model.get_outputs_for_camera(camera)
            metrics, images = self.model.get_image_metrics_and_images(outputs, batch)
        return {**metrics, "num_rays": int(camera.height) * int(camera.width)}, images

    @tell_user
    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """Mean metrics over all views to score.

        Args:
            step: of training.
            output_path: folder for the pictures and `per_scene.json`.
            get_std: whether "<metric>_std" stands beside every mean.

        Raises:
            MNIFError: there is nothing to score.
        """
        with self._evaluation(step) as (views, names):
            rows = [
                self._score(camera, batch, index, output_path)
                for index, (camera, batch) in enumerate(self.datamanager.loader_of(views, names))
            ]
        if output_path is not None:
            per_scene: dict[str, list[dict[str, float]]] = defaultdict(list)
            for row, scene in zip(rows, views.scenes):
                per_scene[names[int(scene)]].append(row)
            write_json(Path(output_path) / "per_scene.json", {n: means(part) for n, part in per_scene.items()})
        result = means(rows, get_std)
        self._report(result, len(rows), step)
        return result

    def _report(self, result: dict[str, float], count: int, step: int | None) -> None:
        what = "views of unseen scenes" if self.config.eval_mode == "unseen-scenes" else "held-out views"
        numbers = ", ".join(
            f"{name.upper()} {result[name]:.3f}" for name in ("psnr", "ssim", "lpips") if name in result
        )
        CONSOLE.print(f"{'' if step is None else f'step {step}: '}{numbers} over {count} {what}")

    def _score(self, camera: Any, batch: dict[str, Any], index: int, output_path: Path | None) -> dict[str, float]:
        start = perf_counter()
        outputs = self.model.get_outputs_for_camera(camera)
        seconds = perf_counter() - start
        metrics, images = self.model.get_image_metrics_and_images(outputs, batch)
        if output_path is not None:
            from torchvision.utils import save_image

            Path(output_path).mkdir(parents=True, exist_ok=True)
            for name, image in images.items():
                save_image(image.permute(2, 0, 1).cpu(), Path(output_path) / f"eval_{name}_{index:04d}.png")
        pixels = int(camera.height) * int(camera.width)
        return {**metrics, "num_rays_per_sec": pixels / seconds, "fps": 1.0 / seconds}
