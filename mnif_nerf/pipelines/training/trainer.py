"""nerfstudio's trainer, with checkpoints that are whole or absent, and runs that end where they said."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.misc import step_check
from nerfstudio.utils.rich_utils import CONSOLE
from torch import save

from mnif_nerf.errors import MNIFError, disk_errors
from mnif_nerf.machine import denormals_flushed
from mnif_nerf.models.errors import tell_user
from mnif_nerf.models.schedulers import WarmupCosineSchedulerConfig

_CHECKPOINT = re.compile(r"^step-(\d{9})\.ckpt$")


@dataclass
class MNIFTrainerConfig(TrainerConfig):
    """As nerfstudio's, but `max_num_iterations` counts the whole run, what was before a resume included."""

    _target: type = field(default_factory=lambda: MNIFTrainer)


class MNIFTrainer(Trainer):
    """See the module."""

    config: MNIFTrainerConfig

    @tell_user
    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """As nerfstudio's; a user's mistake ends the command with one sentence."""
        try:
            super().setup(test_mode)
        except KeyboardInterrupt:  # nerfstudio would print a traceback and exit with 0
            raise SystemExit(
                "interrupted before the first step; nothing half-written was kept: run the same command again."
            ) from None

    def setup_optimizers(self) -> Optimizers:
        """Optimisers whose schedules of length 0 last for the whole run."""
        groups = {}
        for name, group in self.config.optimizers.items():
            scheduler = group.get("scheduler")
            if isinstance(scheduler, WarmupCosineSchedulerConfig) and scheduler.max_steps == 0:
                scheduler = dataclasses.replace(scheduler, max_steps=self.config.max_num_iterations)
            groups[name] = {**group, "scheduler": scheduler}
        return Optimizers(groups, self.pipeline.get_param_groups())

    @tell_user
    def train(self) -> None:
        """Train up to step `max_num_iterations`, of which a resumed run has some behind it."""
        total = self.config.max_num_iterations
        self.step = max(self._start_step - 1, 0)  # what is saved if nothing is left to do
        self.config.max_num_iterations = max(total - self._start_step, 0)
        if self.config.max_num_iterations == 0:
            CONSOLE.print(f"The run has its {total} steps; --max-num-iterations N goes on to step N.")
            writer.GLOBAL_BUFFER["step"] = self.step  # nerfstudio's writer fails without a step
        try:
            super().train()
        except KeyboardInterrupt:
            if self.training_state == "completed":
                return  # the viewer was being looked at
            raise SystemExit(self._how_to_resume()) from None
        finally:
            self.config.max_num_iterations = total

    @denormals_flushed()
    def train_iteration(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """One step; what it returns is only logged, so it keeps no graph."""
        loss, losses, metrics = super().train_iteration(step)
        return loss.detach(), {name: value.detach() for name, value in losses.items()}, metrics

    def _update_viewer_state(self, step: int) -> None:
        """As nerfstudio's; and rates and times wait for the next logged step, as losses do.

        Six TensorBoard scalars after every step cost more than all else that nerfstudio's loop adds to it.
        """
        super()._update_viewer_state(step)
        if not step_check(step, self.config.logging.steps_per_log, run_at_zero=True):
            kept = [event for event in writer.EVENT_STORAGE if event["write_type"] is not writer.EventType.SCALAR]
            writer.EVENT_STORAGE[:] = kept

    def _how_to_resume(self) -> str:
        kept = latest_checkpoint(self.checkpoint_dir)
        if kept is None:
            return f"interrupted at step {self.step}, before the first checkpoint; nothing was kept."
        return (
            f"interrupted at step {self.step}; {kept} is kept: go on from there with the same command and "
            f"--load-dir {self.checkpoint_dir}."
        )

    @tell_user
    def _load_checkpoint(self) -> None:
        """Load the checkpoint the user named.

        Raises:
            MNIFError: there is none, it cannot be read, or it does not fit the configuration.
        """
        folder, file = self.config.load_dir, self.config.load_checkpoint
        if folder is not None:
            file = checkpoint_in(Path(folder), self.config.load_step)
        elif file is not None and not Path(file).is_file():
            raise MNIFError(f"{file}: no such checkpoint.")
        try:
            super()._load_checkpoint()
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, KeyError, ValueError) as error:
            if isinstance(error, MNIFError):
                raise
            reason = str(error).split("\n", 1)[0]
            raise MNIFError(
                f"{file}: cannot be loaded ({reason}); it is damaged or of another configuration or version."
            ) from error

    @check_main_thread
    @tell_user
    def save_checkpoint(self, step: int) -> None:
        """Write nerfstudio's checkpoint beside its place and move it there, then drop older ones.

        Killed at any moment, the run keeps the last whole checkpoint.
        """
        pipeline: Any = self.pipeline
        pipeline.refresh_latents()
        state = {
            "step": step,
            "pipeline": getattr(pipeline, "module", pipeline).state_dict(),
            "optimizers": _states(self.optimizers.optimizers),
            "schedulers": _states(self.optimizers.schedulers),
            "scalers": self.grad_scaler.state_dict(),
        }
        target = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        # Not in the checkpoint folder: nerfstudio takes every file in there for a checkpoint.
        temporary = self.base_dir / ".checkpoint.tmp"
        with disk_errors(target):
            self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
            try:
                # An open file: where torch opens one itself, a full disk becomes a RuntimeError.
                with open(temporary, "wb") as file:
                    save(state, file)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("*.ckpt"):
                if other != target:
                    other.unlink(missing_ok=True)


def _states(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, if there is one."""
    if not folder.is_dir():
        return None
    found = sorted(path for path in folder.iterdir() if _CHECKPOINT.match(path.name))
    return found[-1] if found else None


def checkpoint_in(folder: Path, step: int | None) -> Path:
    """The checkpoint of `step`, or the latest.

    Raises:
        MNIFError: there is none.
    """
    found = latest_checkpoint(folder) if step is None else folder / f"step-{step:09d}.ckpt"
    if found is None or not found.is_file():
        raise MNIFError(
            f"{folder}: no checkpoint{'' if step is None else f' of step {step}'} in it; give the folder "
            "nerfstudio_models of a run."
        )
    return found
