"""The training pipeline under nerfstudio: losses, evaluation, and what a run leaves behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from time import perf_counter
from typing import Any, Literal

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mnif_nerf.data.sampler import RayBatchSampler
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import kernel
from mnif_nerf.files import write_json
from mnif_nerf.latents.fitting import FitConfig, fit_latents
from mnif_nerf.machine import flush_denormals, tune_threads
from mnif_nerf.models.datamanager import MNIFDataManager, MNIFDataManagerConfig
from mnif_nerf.models.errors import tell_user
from mnif_nerf.models.model import MNIFModel, MNIFModelConfig
from mnif_nerf.models.views import UnseenViews, ViewList, open_unseen, pictures_of
from mnif_nerf.pipelines.leaving import finish_run, write_run_model

CONFIG_VERSION = 1


@dataclass
class MNIFTrainingPipelineConfig(VanillaPipelineConfig):
    """Auto-decoding of a data set, and the latent prior at its end."""

    _target: type = field(default_factory=lambda: MNIFTrainingPipeline)
    datamanager: MNIFDataManagerConfig = field(default_factory=MNIFDataManagerConfig)
    """The data."""
    model: MNIFModelConfig = field(default_factory=MNIFModelConfig)
    """Field, latents and losses."""
    eval_mode: Literal["heldout-views", "unseen-scenes"] = "heldout-views"
    """Evaluate held-out views of the training scenes, or scenes never seen, to which latents are fitted."""
    conditioning_views: tuple[int, ...] = (64, 104)
    """Views of an unseen scene its latent is fitted to; as many evenly spaced ones where it lacks these."""
    fit_steps: int = 300
    """Gradient steps of that fit."""
    fit_rays_per_scene: int = 128
    """Rays of each scene in one of these steps."""
    fit_samples_per_ray: int = 32
    """Samples of each of these rays; more than in training, for want of a hull."""
    train_prior: bool = True
    """Whether the latent prior is trained at the end of the run."""
    prior_steps: int = 0
    """Steps of that training; 0 chooses them from the number of scenes."""
    threads: int = 0
    """Intra-op threads on the CPU; 0 times a few steps and takes the faster setting."""
    config_version: int = CONFIG_VERSION
    """Version of this configuration's format; leave it."""


class MNIFTrainingPipeline(VanillaPipeline):
    """See the module and `VanillaPipeline`."""

    config: MNIFTrainingPipelineConfig
    datamanager: MNIFDataManager

    @tell_user
    def __init__(
        self,
        config: MNIFTrainingPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        if config.config_version != CONFIG_VERSION:
            raise MNIFError(
                f"the configuration has format {config.config_version}, this mnif_nerf reads "
                f"{CONFIG_VERSION}; use the version that wrote it, or train again."
            )
        if world_size > 1:
            raise MNIFError(
                f"training on {world_size} devices is not supported yet (the latents' gradients are sparse); "
                "use --machine.num-devices 1."
            )
        flush_denormals()
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        self.seed = torch.initial_seed() % 2**31
        self._threads_chosen = False
        self._fitted: tuple[int | None, Tensor] | None = None
        if config.eval_mode == "unseen-scenes" and test_mode != "inference" and not len(self.datamanager.eval_dataset):
            # nerfstudio evaluates nothing where the evaluation set is empty, as it is without held-out views.
            self.datamanager.eval_dataset = self.datamanager.dataset_of(self.unseen.scored)

    @property
    def model(self) -> MNIFModel:
        """The model, also where it is wrapped for several devices."""
        return super().model

    # ----------------------------------------------------------------------------------------------- training

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Losses and metrics of one step; both depend on the parameters, the seed and the step alone."""
        if not self._threads_chosen:
            self._choose_threads()
        batch = self._batch(step)
        outputs = self._model(None, batch)
        return outputs, self.model.get_loss_dict(outputs, batch), self.model.get_metrics_dict(outputs, batch)

    def _batch(self, step: int) -> dict[str, Any]:
        return {"rays": self.datamanager.draw(step), "seed": (self.seed * 1_000_003 + step) % 2**63}

    def _choose_threads(self) -> None:
        self._threads_chosen = True
        if self.model.device.type != "cpu":
            return
        if self.config.threads > 0:
            torch.set_num_threads(self.config.threads)
            kernel.set_num_threads(self.config.threads)
            return
        batch = self._batch(0)

        def gradient() -> None:
            losses = self.model(None, batch)["losses"]
            torch.stack(list(losses.values())).sum().backward()

        threads = tune_threads(gradient)
        self.model.zero_grad(set_to_none=True)
        CONSOLE.print(f"Training on {threads} thread{'s' if threads > 1 else ''}, the faster choice just now.")

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Write the model folder with every checkpoint, and train the prior after the last step."""
        callbacks = super().get_training_callbacks(attributes)
        trainer = attributes.trainer
        if trainer is None:
            return callbacks

        def at_checkpoint(step: int) -> None:
            if step > 0 and comms.is_main_process():
                write_run_model(self, trainer.base_dir, step)

        def at_end(step: int) -> None:
            if not comms.is_main_process():
                return
            try:
                finish_run(self, trainer.base_dir, step)
            except KeyboardInterrupt:
                raise SystemExit(
                    "interrupted after the last step, before the latent prior was trained: go on with "
                    f"mnif-train-prior --load-config {trainer.base_dir / 'config.yml'}."
                ) from None

        every = trainer.config.steps_per_save
        if every > 0:
            after_step = [TrainingCallbackLocation.AFTER_TRAIN_ITERATION]
            callbacks.append(TrainingCallback(after_step, tell_user(at_checkpoint), update_every_num_iters=every))
        callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], tell_user(at_end)))
        return callbacks

    @tell_user
    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint.

        Raises:
            MNIFError: it is of another version or shape, or training would go on with other instances.
        """
        super().load_pipeline(loaded_state, step)
        if self.test_mode == "val" and self.model.names != self.model.data_names:
            raise MNIFError(
                f"the checkpoint holds {len(self.model.names)} instances, and "
                f"{self.datamanager.get_datapath()} holds {len(self.model.data_names)} others; "
                "go on with the data it was trained on."
            )

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
                with self.model.rendering_latents(self._fit(step)):
                    yield self.unseen.scored, tuple(self.unseen.names)
            else:
                views = self.datamanager.evaluation_views
                known = torch.tensor([self.model.knows(int(scene)) for scene in views.scenes])
                if not bool(known.any()):
                    raise MNIFError(
                        f"{self.datamanager.get_datapath()}: the model was trained on none of its scenes; "
                        "set eval_mode: unseen-scenes in config.yml to fit latents, or evaluate on the training data."
                    )
                yield views.where(known.numpy()), self.datamanager.names
        finally:
            self.train(was_training)

    def _fit(self, step: int | None) -> Tensor:
        """Codes `[K, D]` of the unseen scenes, fitted to their conditioning views, the networks frozen."""
        if self._fitted is not None and step is not None and self._fitted[0] == step:
            return self._fitted[1]
        # Without its hull, which was carved from the views to be scored as well.
        store: Any = pictures_of(self.unseen.conditioning, len(self.unseen.names))
        rays = RayBatchSampler(
            store,
            len(self.unseen.names),
            self.config.fit_rays_per_scene,
            device=self.model.device,
            seed=self.seed,
        )
        losses = self.model.config.loss_config(self.config.fit_samples_per_ray)
        latents = self.model.latents.weight.detach()
        fitted = fit_latents(self.model.field, rays, latents, FitConfig(steps=self.config.fit_steps), losses)
        self._fitted = (step, fitted)
        return fitted

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
            write_json(Path(output_path) / "per_scene.json", {n: _means(part) for n, part in per_scene.items()})
        result = _means(rows)
        self._report(result, len(rows), step)
        if get_std:
            for name in list(result):
                values = [row[name] for row in rows]
                result[f"{name}_std"] = stdev(values) if len(values) > 1 else 0.0
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


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(row[name] for row in rows) for name in rows[0]}
