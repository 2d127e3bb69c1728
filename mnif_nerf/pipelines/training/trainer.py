"""nerfstudio's trainer, whose steps are `Stage1Trainer`'s, whose checkpoints are whole or absent, and whose runs end
where they said."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.misc import step_check
from nerfstudio.utils.rich_utils import CONSOLE

from mnif_nerf.errors import MNIFError, disk_errors
from mnif_nerf.files import atomic_file
from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.stage1 import Stage1Trainer
from mnif_nerf.machine import default_device_type
from mnif_nerf.models.errors import tell_user
from mnif_nerf.models.moved_runs import config_being_loaded, place_data
from mnif_nerf.pipelines.checkpoints import (
    DAMAGED,
    checkpoint_in,
    damaged_checkpoint,
    how_to_resume,
    nothing_left,
    verify_checkpoint,
    write_checkpoint,
)
from mnif_nerf.pipelines.run_checks import check_run, has_model, why_not_kept
from mnif_nerf.pipelines.time_plan import TimePlan
from mnif_nerf.pipelines.training.turns import loop_of_turns
from mnif_nerf.progress import say
from mnif_nerf.saved_settings import SavedSettings
from mnif_nerf.viewer.nerfstudio_patches import LOOPBACK, on_this_machine, require_address


def _logging() -> LoggingConfig:
    # Plain lines: nerfstudio's table moves the cursor up and would overwrite what else is printed.
    return LoggingConfig(
        steps_per_log=100, local_writer=LocalWriterConfig(enable=True, max_log_size=0), profiler="none"
    )


def _machine() -> MachineConfig:
    return MachineConfig(device_type=default_device_type())  # type: ignore[arg-type]


@dataclass
class MNIFTrainerConfig(SavedSettings, TrainerConfig):
    """As nerfstudio's, but `max_num_iterations` counts the whole run, what was before a resume included."""

    _target: type = field(default_factory=lambda: MNIFTrainer)
    machine: MachineConfig = field(default_factory=_machine)
    """Machine configuration"""
    logging: LoggingConfig = field(default_factory=_logging)
    """Logging configuration"""
    viewer: ViewerConfig = field(
        default_factory=lambda: ViewerConfig(
            num_rays_per_chunk=1 << 15, max_num_display_images=16, websocket_host=LOOPBACK
        )
    )
    """Viewer configuration"""
    _run_folder: ClassVar[Path | None] = None  # of a run that was loaded
    minutes: float = 0.0
    """Minutes that the whole run may take, evaluations and latent prior included; they choose the number of steps on
    this machine. 0 takes max_num_iterations."""

    @tell_user
    def __setattr__(self, name: str, value: Any) -> None:
        """ns-viewer puts the viewer's configuration in here, with nerfstudio's default of an open network."""
        if name == "viewer":
            require_address(on_this_machine(value))
        object.__setattr__(self, name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read a `config.yml`; one of `mnif-train` holds what only nerfstudio has as plain mappings, or not at all."""
        state = dict(state)
        for name, default in (("machine", _machine), ("logging", _logging)):
            if isinstance(state.get(name), dict):
                state[name] = dataclasses.replace(default(), **state[name])
        if state.get("vis") == "none":
            state["vis"] = "tensorboard"
        super().__setstate__(state)
        if isinstance(self.viewer, ViewerConfig):
            on_this_machine(self.viewer)
        file = config_being_loaded()
        if file is not None:
            place_data(self.pipeline.datamanager, file, super().get_base_dir())
            self.__dict__["_run_folder"] = file.parent

    def get_base_dir(self) -> Path:
        """The folder of the run; of a loaded one, that of its config.yml, wherever it was moved to."""
        return self._run_folder or super().get_base_dir()

    @tell_user
    def get_checkpoint_dir(self) -> Path:
        """The folder of the checkpoints; of a loaded run, the latest is looked over."""
        folder = super().get_checkpoint_dir()
        if self._run_folder is not None:
            verify_checkpoint(checkpoint_in(folder, self.load_step))
        return folder

    @tell_user
    def save_config(self) -> None:
        """Write config.yml where no model is in the way; the first thing that ns-train does, so mistakes are told here.

        Raises:
            MNIFError: see `check_run`; or a folder that cannot be written.
        """
        self.set_experiment_name()
        folder = self.get_base_dir()
        check_run(self, folder)
        if not has_model(folder):  # else that model's settings stay until there is a checkpoint of these
            self.write_config()
            CONSOLE.log(f"Saving config to: {folder / 'config.yml'}", markup=False)

    def write_config(self) -> None:
        """Write config.yml, whole or not at all."""
        with atomic_file(self.get_base_dir() / "config.yml") as temporary:
            temporary.write_text(yaml.dump(self), encoding="utf-8")


class MNIFTrainer(Trainer):
    """See the module."""

    config: MNIFTrainerConfig
    stage1: Stage1Trainer
    plan: TimePlan
    _trained: int | None = None  # the last step taken
    _together = 1  # steps of this turn of the loop
    _length = 0  # of the run in steps, those before a resume included
    _state = "training"
    _paused_since: float | None = None

    @property
    def training_state(self) -> Any:
        """nerfstudio's, "training", "paused" or "completed"; while it is paused, the time of a run stands still."""
        return self._state

    @training_state.setter
    def training_state(self, state: str) -> None:
        if self._paused_since is not None and self.stage1.pacer is not None:
            self.stage1.pacer.rested(time.perf_counter() - self._paused_since)
        self._paused_since = time.perf_counter() if state == "paused" else None
        self._state = state

    @tell_user
    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """As nerfstudio's; a user's mistake ends the command with one sentence."""
        given = {
            "mixed_precision": self.config.mixed_precision,
            "use_grad_scaler": self.config.use_grad_scaler,
            "gradient_accumulation_steps": self.config.gradient_accumulation_steps,
            "log_gradients": self.config.log_gradients,
        }
        unknown = [name for name, value in given.items() if value]
        if unknown:
            raise MNIFError(
                f"`{unknown[0]}` is of no use here: these methods train in float32, a whole batch at a time."
            )
        self.plan = TimePlan(self.config, say)
        try:
            with disk_errors(self.base_dir):
                super().setup(test_mode)
        except KeyboardInterrupt:  # nerfstudio would print a traceback and exit with 0
            raise SystemExit(
                "interrupted before the first step; nothing half-written was kept: run the same command again."
            ) from None

    def setup_optimizers(self) -> Optimizers:
        """The optimisers of `Stage1Trainer`, as nerfstudio knows optimisers."""
        pipeline: Any = self.pipeline
        groups = OptimizerGroups.from_settings(
            pipeline.get_param_groups(), self.config.optimizers, self.config.max_num_iterations
        )
        self.stage1 = pipeline.new_trainer(groups)
        optimizers = Optimizers(self.config.optimizers, {})
        optimizers.optimizers, optimizers.schedulers = groups.optimizers, groups.schedules
        optimizers.parameters = groups.parameters
        return optimizers

    @tell_user
    def train(self) -> None:
        """Train up to step `max_num_iterations`, of which a resumed run has some behind it, or while `minutes` last."""
        total = self._length = self.config.max_num_iterations
        self.step = max(self._start_step - 1, 0)  # what is saved if nothing is left to do
        self.config.max_num_iterations = max(total - self._start_step, 0)
        if self.config.max_num_iterations == 0:
            say(nothing_left(total))
            writer.GLOBAL_BUFFER["step"] = self.step  # nerfstudio's writer fails without a step
        else:
            self.stage1.choose_threads(self.config.pipeline.threads, say)  # type: ignore[attr-defined]
            if self.plan.active:
                self.config.max_num_iterations = sys.maxsize  # of nerfstudio's loop, which `train_iteration` ends
                self.plan.start(self.stage1, self.pipeline.datamanager.source, self._planned)  # type: ignore[attr-defined]
        try:
            with loop_of_turns(self._turns, lambda: self._together):
                super().train()
        except KeyboardInterrupt:
            if self.training_state == "completed":
                return  # the viewer was being looked at
            raise SystemExit(how_to_resume(self.checkpoint_dir, self.step)) from None
        finally:
            self.config.max_num_iterations = self.plan.kept.get("steps", total)

    def _turns(self, first: int, end: int) -> Iterator[int]:
        """The last step of every turn of nerfstudio's loop."""
        config, step = self.config, first
        stops = [each.update_every_num_iters or 0 for each in self.callbacks]
        stops += [config.logging.steps_per_log, config.steps_per_eval_batch, config.steps_per_eval_image]
        stops += [config.steps_per_eval_all_images, config.steps_per_save]
        while step < end:
            self._together = self.stage1.turn(step, end, stops)
            step += self._together
            yield step - 1

    def _planned(self, steps: int) -> None:
        """Write what was planned into the run's config.yml, and let nerfstudio report on it."""
        writer.GLOBAL_BUFFER["max_iter"] = self._length = steps
        if not has_model(self.base_dir):
            self.config.write_config()

    def _after_train(self) -> None:
        """As nerfstudio's, whose loop counts the step that it was stopped before as taken."""
        self.step = self.step if self._trained is None else self._trained
        super()._after_train()

    @tell_user
    def train_iteration(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """The steps of `Stage1Trainer` up to this one that make a turn."""
        result = self.stage1.steps(step - self._together + 1, self._together)
        for name, schedule in self.stage1.optimizers.schedules.items():
            writer.put_scalar(name=f"learning_rate/{name}", scalar=schedule.get_last_lr()[0], step=step)
        self._trained = step
        if self.stage1.pacer is not None and self.stage1.pacer.over(step):
            self.stop_training = True
        return result.loss, result.losses, result.metrics

    def _update_viewer_state(self, step: int) -> None:
        """As nerfstudio's; and rates and times wait for the next logged step, as losses do.

        Six TensorBoard scalars after every step cost more than all else that nerfstudio's loop adds to it.
        """
        super()._update_viewer_state(step)
        if not step_check(step, self.config.logging.steps_per_log, run_at_zero=True):
            kept = [event for event in writer.EVENT_STORAGE if event["write_type"] is not writer.EventType.SCALAR]
            writer.EVENT_STORAGE[:] = kept

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
            raise MNIFError(f"{file}: no such checkpoint; give a file nerfstudio_models/step-*.ckpt of a run.")
        if file is not None:
            verify_checkpoint(Path(file))
        try:
            super()._load_checkpoint()
        except DAMAGED as error:
            raise error if isinstance(error, MNIFError) else damaged_checkpoint(file, error) from error

    @tell_user
    def save_checkpoint(self, step: int) -> None:
        """Write nerfstudio's checkpoint; see `mnif_nerf.pipelines.checkpoints.write_checkpoint`.

        All ranks come here, the first writes.
        """
        pipeline: Any = self.pipeline
        why = pipeline.ranks.decide(lambda: why_not_kept(self.stage1, self.base_dir, step))
        if why:
            say(why, warning=True)
            return
        pipeline.refresh_latents()
        if not pipeline.ranks.is_first:
            return
        state = {
            "step": step,
            "pipeline": getattr(pipeline, "module", pipeline).state_dict(),
            **self.stage1.optimizers.state_dict(),
            "scalers": self.grad_scaler.state_dict(),
            **({"time_plan": self.plan.kept} if self.plan.settled else {}),
        }
        write_checkpoint(state, self.checkpoint_dir, self.config.save_only_latest_checkpoint)
        self._keep_config()

    def _keep_config(self) -> None:
        """Write config.yml beside the checkpoint; while training, nerfstudio counts the steps of this run alone."""
        left = self.config.max_num_iterations
        self.config.max_num_iterations = self._length or left
        try:
            self.config.write_config()
        finally:
            self.config.max_num_iterations = left
