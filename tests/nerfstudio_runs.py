"""Short nerfstudio runs on the tiny data set, in this process, for the test_nerfstudio_* files."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.scripts.train import train_loop
from nerfstudio.utils import writer


def tiny_config(data: Path, output: Path, steps: int = 20, name: str = "run", **changes: Any) -> Any:
    """`mnif-lite` cut down to steps of a millisecond; `changes` are attributes by dotted path."""
    config = copy.deepcopy(all_methods["mnif-lite"])
    config.output_dir, config.timestamp, config.experiment_name = output, name, "tiny"
    config.pipeline.datamanager.data = data
    config.machine.device_type = "cpu"
    config.max_num_iterations = steps
    config.pipeline.threads = 1
    config.pipeline.train_prior = False
    for group in config.optimizers.values():
        group["scheduler"] = dataclasses.replace(group["scheduler"], warmup_steps=2, max_steps=steps)
    settings = {
        "steps_per_save": 0,
        "steps_per_eval_image": 0,
        "steps_per_eval_all_images": 0,
        "pipeline.datamanager.scenes_per_step": 2,
        "pipeline.datamanager.rays_per_scene": 16,
        "pipeline.datamanager.carve_points": 8,
        "pipeline.datamanager.eval_num_scenes": 2,
        "pipeline.fit_steps": 3,
        "pipeline.fit_rays_per_scene": 16,
        "pipeline.fit_samples_per_ray": 4,
        "pipeline.model.width": 8,
        "pipeline.model.hidden_layers": 1,
        "pipeline.model.num_bases": 4,
        "pipeline.model.latent_dim": 4,
        "pipeline.model.grid_resolution": 16,
        **changes,
    }
    for path, value in settings.items():
        *parents, last = path.split(".")
        target = config
        for parent in parents:
            target = getattr(target, parent)
        assert hasattr(target, last), path
        setattr(target, last, value)
    return config


def forget_writers() -> None:
    """nerfstudio's loggers are module globals; a second run in one process must not write to the first's."""
    writer.EVENT_WRITERS.clear()
    writer.EVENT_STORAGE.clear()
    writer.GLOBAL_BUFFER.clear()


class Run:
    """One run through `ns-train`'s own function: its losses per step, its checkpoints, its folder."""

    def __init__(self, config: Any) -> None:
        from mnif_nerf.pipelines.training import MNIFTrainingPipeline

        forget_writers()
        self.losses: dict[int, float] = {}
        original = MNIFTrainingPipeline.get_train_loss_dict

        def recorded(pipeline: Any, step: int) -> Any:
            result = original(pipeline, step)
            self.losses[step] = float(sum(loss.detach() for loss in result[1].values()))
            return result

        MNIFTrainingPipeline.get_train_loss_dict = recorded  # type: ignore[method-assign]
        try:
            config.save_config()
            train_loop(0, 1, config)
        finally:
            MNIFTrainingPipeline.get_train_loss_dict = original  # type: ignore[method-assign]
            forget_writers()
        self.folder: Path = config.get_base_dir()
        self.checkpoints: Path = config.get_checkpoint_dir()

    def checkpoint(self) -> dict[str, Any]:
        """The latest checkpoint, read as cautiously as torch can."""
        latest = sorted(self.checkpoints.iterdir())[-1]
        return torch.load(latest, map_location="cpu", weights_only=True)
