"""Short nerfstudio runs on tiny data sets, in this process, for the test_nerfstudio_* files."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.scripts.train import train_loop
from nerfstudio.utils import writer
from PIL import Image

# What makes steps of a millisecond of each method.
_RADIANCE = {
    "pipeline.datamanager.scenes_per_step": 2,
    "pipeline.datamanager.rays_per_scene": 16,
    "pipeline.datamanager.carve_points": 8,
    "pipeline.datamanager.encode_rays_per_scene": 32,
    "pipeline.datamanager.eval_num_scenes": 2,
    "pipeline.fit_rays_per_scene": 16,
    "pipeline.fit_samples_per_ray": 4,
    "pipeline.model.grid_resolution": 16,
}
_GRID = {
    "pipeline.datamanager.instances_per_step": 4,
    "pipeline.datamanager.points_per_instance": 64,
    "pipeline.datamanager.encode_points": 128,
    "pipeline.datamanager.eval_num_instances": 2,
    "pipeline.datamanager.picture_size": 16,
    "pipeline.fit_points": 64,
    "pipeline.inner_lr": 1 / 32,
}
_SETTINGS = {
    "mnif-lite": _RADIANCE,
    "mnif-voxel-lite": {**_GRID, "pipeline.model.grid_resolution": 16, "pipeline.model.head": "signed"},
    "mnif-image-lite": _GRID,
}


def tiny_config(
    data: Path, output: Path, steps: int = 20, name: str = "run", method: str = "mnif-lite", **changes: Any
) -> Any:
    """A method cut down to steps of a millisecond; `changes` are attributes by dotted path."""
    config = copy.deepcopy(all_methods[method])
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
        "pipeline.fit_steps": 3,
        "pipeline.model.width": 8,
        "pipeline.model.hidden_layers": 1,
        "pipeline.model.num_bases": 4,
        "pipeline.model.latent_dim": 4,
        **_SETTINGS[method],
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


def write_tiny_shapes(root: Path, counts: dict[str, int], resolution: int = 12) -> Path:
    """Boxes of random sizes as .npy voxel grids, `<root>/<split>/shape000.npy`."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        for index in range(count):
            low, high = (
                generator.integers(1, resolution // 3, 3),
                generator.integers(resolution // 2, resolution - 1, 3),
            )
            cells = np.zeros((resolution,) * 3, dtype=bool)
            cells[tuple(slice(a, b) for a, b in zip(low, high))] = True
            np.save(root / split / f"shape{index:03d}.npy", cells)
    return root


def write_tiny_pictures(root: Path, counts: dict[str, int], resolution: int = 12, channels: int = 3) -> Path:
    """Gradients of random colours as .png, `<root>/<split>/picture000.png`."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 1, resolution)[:, None, None] * np.linspace(1, 0.3, resolution)[None, :, None]
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        for index in range(count):
            first, last = generator.integers(0, 256, (2, channels))
            picture = (first + ramp * (last - first)).astype(np.uint8)
            Image.fromarray(picture[..., 0] if channels == 1 else picture).save(
                root / split / f"picture{index:03d}.png"
            )
    return root


def same(first: Any, second: Any) -> bool:
    """Whether two parts of checkpoints are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second))
    return first == second


def forget_writers() -> None:
    """nerfstudio's loggers are module globals; a second run in one process must not write to the first's."""
    writer.EVENT_WRITERS.clear()
    writer.EVENT_STORAGE.clear()
    writer.GLOBAL_BUFFER.clear()


class Run:
    """One run through `ns-train`'s own function: its losses per step, its checkpoints, its folder."""

    def __init__(self, config: Any) -> None:
        from mnif_nerf.latents.stage1 import Stage1Trainer

        forget_writers()
        self.losses: dict[int, float] = {}
        original = Stage1Trainer.step

        def recorded(trainer: Any, step: int) -> Any:
            result = original(trainer, step)
            self.losses[step] = float(result.loss)
            return result

        Stage1Trainer.step = recorded  # type: ignore[method-assign]
        try:
            config.save_config()
            train_loop(0, 1, config)
        finally:
            Stage1Trainer.step = original  # type: ignore[method-assign]
            forget_writers()
        self.folder: Path = config.get_base_dir()
        self.checkpoints: Path = config.get_checkpoint_dir()

    def checkpoint(self) -> dict[str, Any]:
        """The latest checkpoint, read as cautiously as torch can."""
        latest = sorted(self.checkpoints.iterdir())[-1]
        return torch.load(latest, map_location="cpu", weights_only=True)
