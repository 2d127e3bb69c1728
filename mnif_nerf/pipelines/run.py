"""A training run from its settings to its model folder, without nerfstudio: what `mnif-train` does."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnif_nerf import modalities
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_file
from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.ranks import ONE, RankLostError, Ranks
from mnif_nerf.latents.stage1 import Stage1Trainer
from mnif_nerf.latents.steps import StepResult
from mnif_nerf.machine import default_device_type, use_tf32
from mnif_nerf.modalities.training import FieldCache, means
from mnif_nerf.pipelines.checkpoints import (
    DAMAGED,
    checkpoint_in,
    damaged_checkpoint,
    how_to_resume,
    nothing_left,
    read_checkpoint,
    require_instances,
    write_checkpoint,
)
from mnif_nerf.pipelines.run_checks import check_run, has_model, why_not_kept
from mnif_nerf.pipelines.run_folder import Run, finish_run, write_run_model
from mnif_nerf.pipelines.run_settings import RunSettings, dump_settings
from mnif_nerf.pipelines.time_plan import TimePlan
from mnif_nerf.progress import Advance, progress_bar, silent

_PREFIX = "_model."  # of the model's weights in nerfstudio's checkpoints
_NOT_OURS = "device_indicator_param"  # an empty parameter of nerfstudio's base model, without a use here


class TrainingRun:
    """One run: data, model, optimisers and their loop.

    Args:
        settings: settings of the run; a name and a time are filled in where they are left out.
        say: prints a line.
        ranks: the processes that train together, all of which make this of the same settings.

    Raises:
        MNIFError: no or unreadable data, or a setting out of range.
    """

    def __init__(self, settings: RunSettings, say: Callable[[str], None] = print, ranks: Ranks = ONE) -> None:
        self.settings, self.say, self.ranks = settings, say, ranks
        if settings.data is not None:
            settings.pipeline.datamanager.data = settings.data
        settings.run_folder()
        settings.timestamp = ranks.decide(lambda: settings.timestamp)  # the clock says another one everywhere
        check_run(settings, settings.run_folder(), ranks)
        self.plan = TimePlan(settings, say)
        pipeline, machine = settings.pipeline, settings.machine
        if machine.device_type == "auto":
            machine.device_type = "cuda" if default_device_type() == "cuda" else "cpu"
        self.device = ranks.device(machine.device_type)
        use_tf32(pipeline.tf32, self.device)
        seed_everything(machine.seed)
        self.training = modalities.get(pipeline.datamanager.modality).training
        self.data = self.training.open(pipeline.datamanager, self.device, machine.seed)
        self.data.share = ranks.share
        with ranks.one_first():
            bounds = self.data.bounds()
            if ranks.size > 1:
                self.data.drawn_per_step()  # packs what is not packed yet
        self.model = self.training.build(pipeline, self.data, bounds, machine.seed).to(self.device)
        groups = self.model.parameter_groups()
        self.optimizers = OptimizerGroups.from_settings(groups, settings.optimizers, settings.max_num_iterations)
        self.trainer = Stage1Trainer(
            self.model, self.data, self.optimizers, machine.seed, pipeline.encode_batch, say, ranks
        )
        if pipeline.cuda_graph:
            self.trainer.replay(say)
        self.evaluation = self.training.evaluation(self.data, pipeline, "val")
        self.fields = FieldCache(self.training, self.model, pipeline.model, self.data.grid())
        self.folder = settings.run_folder()
        self.first_step = 0
        self._resume()
        self.last_step = max(self.first_step - 1, 0)

    # ------------------------------------------------------------------------------------------- checkpoints

    def _resume(self) -> None:
        settings = self.settings
        if settings.load_dir is not None:
            file = checkpoint_in(settings.load_dir, settings.load_step)
        elif settings.load_checkpoint is not None:
            file = settings.load_checkpoint
        else:
            return
        state = read_checkpoint(file)
        weights = {
            name.removeprefix(_PREFIX): value
            for name, value in state["pipeline"].items()
            if name.startswith(_PREFIX) and name != _PREFIX + _NOT_OURS
        }
        names = self.model.names  # of the data; loading replaces them
        try:
            self.model.load_state_dict(weights)
            self.optimizers.load_state_dict(state, settings.load_scheduler)
        except DAMAGED as error:
            raise error if isinstance(error, MNIFError) else damaged_checkpoint(file, error) from error
        require_instances(self.model.names, names, self.data.root)
        self.first_step = int(state["step"]) + 1
        self.say(f"Resuming after step {state['step']} of {file}")

    def save(self, step: int) -> None:
        """Write the checkpoint of `step`; one that nerfstudio reads as well. All ranks come here, the first writes."""
        self.trainer.refresh_latents()
        if not self.ranks.is_first:
            return
        weights: dict[str, Any] = {_PREFIX + name: value for name, value in self.model.state_dict().items()}
        weights[_PREFIX + _NOT_OURS] = torch.empty(0)
        state = {"step": step, "pipeline": weights, **self.optimizers.state_dict(), "scalers": {}}
        if self.plan.settled:
            state["time_plan"] = self.plan.kept
        write_checkpoint(state, self.settings.checkpoint_folder(), self.settings.save_only_latest_checkpoint)
        self._write_config()

    def written(self) -> Run:
        """What the run folder is made of."""
        return Run(self.model, self.data, self.settings.pipeline, self.folder, self.settings.machine.seed)

    # ---------------------------------------------------------------------------------------------- training

    def train(self) -> Path:
        """Train up to step `max_num_iterations`, or as long as `minutes` allow; write checkpoints and the model folder,
        and train the prior.

        Returns:
            the run folder.

        Raises:
            MNIFError: training diverged, the disk is full, or another rank has ended.
            SystemExit: interrupted by the user; the sentence says how to go on.
        """
        total = self.settings.max_num_iterations
        self._write_first_config()
        self.say(f"Run folder: {self.folder}")
        if self.first_step >= total:
            self.say(nothing_left(total))
        try:
            if self.first_step < total:
                self._train(total)
            why = self.why_not_kept(self.last_step)
            if why:
                raise MNIFError(why)
            self.save(self.last_step)
        except KeyboardInterrupt:
            raise SystemExit(how_to_resume(self.settings.checkpoint_folder(), self.last_step)) from None
        except (RankLostError, SystemExit) as error:  # torchrun ends the others where one has ended
            if self.ranks.size == 1:
                raise
            raise self._lost() from error
        if self.ranks.is_first:
            finish_run(self.written(), self.last_step, self.say)
        return self.folder

    def why_not_kept(self, step: int) -> str:
        """See `why_not_kept` of `run_checks`; all ranks ask, and get the same answer."""
        return self.ranks.decide(lambda: why_not_kept(self.trainer, self.folder, step))

    def _lost(self) -> MNIFError:
        after = how_to_resume(self.settings.checkpoint_folder(), self.last_step)
        return MNIFError(f"a process of this run has ended or was told to end, and so the run was {after}")

    def _write_first_config(self) -> None:
        """Write config.yml, unless a model is there, whose settings stay until there is a checkpoint of these."""
        if self.ranks.is_first and not has_model(self.folder):
            self._write_config()

    def _write_config(self) -> None:
        with atomic_file(self.folder / "config.yml") as temporary:
            temporary.write_text(dump_settings(self.settings), encoding="utf-8")

    def _train(self, total: int) -> None:
        self.trainer.choose_threads(self.settings.pipeline.threads, self.say)
        self.model.train()
        with _Reports(self, total) as reports:

            def planned(steps: int) -> None:
                self._write_first_config()
                reports.set_total(steps)

            self.plan.start(self.trainer, self.data, planned)
            self.trainer.train(self.first_step, total, reports, reports.stops())

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Mean scores of the instances that evaluation looks at; see `Evaluation.report` for the line it prints."""
        was_training = self.model.training
        self.model.eval()
        try:
            self.trainer.refresh_latents(self.evaluation.rows(self.model))
            with torch.enable_grad():  # of fits
                parts = self.evaluation.items(self.model)
            rows = {
                prefix: [self.evaluation.score(self.fields, item).metrics for item in items]
                for prefix, items in parts.items()
            }
        finally:
            self.model.train(was_training)
        self.say(f"step {step}: {self.evaluation.report(rows)}")
        return {prefix + name: value for prefix, part in rows.items() for name, value in means(part).items()}


class _Reports:
    """The progress bar, the log and what is due after a step.

    Args:
        run: whose steps are reported.
        total: length of the run.
    """

    def __init__(self, run: TrainingRun, total: int) -> None:
        self.run, self.total = run, total
        self._writer: Any = None
        self._bar = progress_bar("Training", total, shown=run.ranks.is_first)
        self._advance: Advance = silent

    def __enter__(self) -> _Reports:
        self._advance = self._bar.__enter__()
        self._advance(at=self.run.first_step)
        if self.run.ranks.is_first and self.run.settings.vis == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.run.folder))
            except ImportError:
                self.run.say("TensorBoard is not installed, so losses are only printed.")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__(None, None, None)
        if self._writer is not None:
            self._writer.close()

    def stops(self) -> tuple[int, ...]:
        """Numbers that divide the steps after which something is due."""
        settings = self.run.settings
        return settings.logging.steps_per_log, settings.steps_per_eval_all_images, settings.steps_per_save

    def set_total(self, steps: int) -> None:
        """Show another length of the run."""
        self._advance(0, total=steps)

    def __call__(self, step: int, result: StepResult) -> None:
        settings = self.run.settings
        self.run.last_step = step
        self._advance(at=step + 1)
        if self.run.ranks.is_first:
            if step % settings.logging.steps_per_log == 0:
                self._log(step, result)
            if _due(step, settings.steps_per_eval_all_images):
                self._scalars(step, self.run.evaluate(step))
        if _due(step, settings.steps_per_save):
            self._save(step)

    def _save(self, step: int) -> None:
        why = self.run.why_not_kept(step)
        if why:
            self.run.say(why)
            return
        self.run.save(step)
        if self.run.ranks.is_first:
            write_run_model(self.run.written(), step)

    def _log(self, step: int, result: StepResult) -> None:
        values = {"loss": result.loss, **result.losses, **result.metrics}
        numbers = {name: float(value) for name, value in values.items()}
        shown = f"loss {numbers['loss']:.4f}" + (f", PSNR {numbers['psnr']:.1f}" if "psnr" in numbers else "")
        self._advance(0, note=shown)
        if not sys.stderr.isatty() and step % (10 * self.run.settings.logging.steps_per_log) == 0:
            self.run.say(f"step {step}: {shown}")
        self._scalars(step, numbers)

    def _scalars(self, step: int, numbers: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, as `ns-train` does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
