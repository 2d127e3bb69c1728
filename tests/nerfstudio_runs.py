"""Short nerfstudio runs on tiny data sets, in this process, for the test_nerfstudio_* files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.scripts.train import train_loop
from nerfstudio.utils import writer
from tiny_runs import cut_down


def tiny_config(
    data: Path, output: Path, steps: int = 20, name: str = "run", method: str = "mnif-lite", **changes: Any
) -> Any:
    """A method cut down to steps of a millisecond; `changes` are attributes by dotted path."""
    config = copy.deepcopy(all_methods[method])
    config.output_dir, config.timestamp, config.experiment_name = output, name, "tiny"
    config.pipeline.datamanager.data = data
    config.steps_per_eval_image = 0
    return cut_down(config, method, steps, changes)


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
    """One run through `ns-train`'s own function: losses of the last step of every turn, checkpoints, folder."""

    def __init__(self, config: Any) -> None:
        from mnif_nerf.latents.stage1 import Stage1Trainer

        forget_writers()
        self.losses: dict[int, float] = {}
        original = Stage1Trainer.steps

        def recorded(trainer: Any, first: int, count: int) -> Any:
            result = original(trainer, first, count)
            self.losses[first + count - 1] = float(result.loss)
            return result

        Stage1Trainer.steps = recorded  # type: ignore[method-assign]
        try:
            config.save_config()
            train_loop(0, 1, config)
        finally:
            Stage1Trainer.steps = original  # type: ignore[method-assign]
            forget_writers()
        self.folder: Path = config.get_base_dir()
        self.checkpoints: Path = config.get_checkpoint_dir()

    def checkpoint(self) -> dict[str, Any]:
        """The latest checkpoint, read as cautiously as torch can."""
        latest = sorted(self.checkpoints.iterdir())[-1]
        return torch.load(latest, map_location="cpu", weights_only=True)
