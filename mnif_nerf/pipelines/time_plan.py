"""`--minutes`: what a run does with the time it is given. `mnif-train` and nerfstudio's trainer share it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.model import Stage1Model
from mnif_nerf.latents.pacing import Pacer
from mnif_nerf.latents.stage1 import Stage1Trainer
from mnif_nerf.modalities.training import TrainingData
from mnif_nerf.pipelines import preset
from mnif_nerf.pipelines.checkpoints import checkpoint_in, time_plan_in
from mnif_nerf.pipelines.methods import METHODS, POINTS
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.training import Noising, PriorConfig, default_steps

_LEAST_TRAINING = 0.5  # share of the time that steps get at least, whatever else a run needs
_MOST_PRIOR = 0.25  # share of the time that the prior gets at most, unless its steps are given
_LEAST_PRIOR = 500  # steps of the prior, however short the time
_MARGIN = 0.01  # share of the time for the last checkpoint and the model folder
_PROBE, _PROBE_UNTIMED = 24, 4  # steps of a prior by which its speed is found


class TimePlan:
    """The time of a run, counted from here on, and what it is used for.

    What is planned stands in the run's config.yml and in its checkpoints; a resumed run keeps it.

    Args:
        settings: `RunSettings`, or nerfstudio's configuration, which has the same names; what is planned is put in.
        say: prints a line.

    Attributes:
        kept: "minutes", "steps", "prior_steps" and "points" (of an instance in a step; 0 as set) of the plan, for the
            checkpoints; without "steps" until they are planned. "preset": what it chose. Empty where there is no plan.

    Raises:
        MNIFError: minutes that are none, or a number of steps beside them; or a run to go on with that has no plan.
    """

    def __init__(self, settings: Any, say: Callable[[str], None]) -> None:
        self.settings, self.say = settings, say
        self.minutes, self._started = float(settings.minutes), time.perf_counter()
        self._method = METHODS.get(settings.method_name)
        self._own_steps = None if self._method is None else self._method.settings.max_num_iterations
        self._require()
        self.kept: dict[str, Any] = {}
        self._told = False
        if not self._resume() and settings.pipeline.preset == "auto":
            self.kept["preset"] = preset.choose(settings, self.minutes, say)
            self._own_steps = settings.max_num_iterations

    @property
    def active(self) -> bool:
        """Whether the number of steps is still to be found."""
        return self.minutes > 0

    @property
    def settled(self) -> bool:
        """Whether there is something to keep in checkpoints."""
        return "steps" in self.kept or (bool(self.kept) and not self.active)

    def _require(self) -> None:
        steps = self.settings.max_num_iterations
        if not math.isfinite(self.minutes) or self.minutes < 0:
            raise MNIFError(
                f"`minutes` is {self.minutes:g}; give the minutes that the run may take, or 0 for the length that "
                "`max_num_iterations` says."
            )
        if self.minutes > 0 and self._own_steps is not None and steps != self._own_steps:
            raise MNIFError(
                f"`minutes` {self.minutes:g} and `max_num_iterations` {steps} both say how long the run is; leave "
                "one out."
            )

    def _resume(self) -> bool:
        """Take over what was planned when the run to go on with began, unless another number of steps is given.

        Returns:
            whether there is a run to go on with.
        """
        settings = self.settings
        if settings.load_dir is not None:
            file = checkpoint_in(Path(settings.load_dir), settings.load_step)
        elif settings.load_checkpoint is not None and Path(settings.load_checkpoint).is_file():
            file = Path(settings.load_checkpoint)
        else:
            return False
        plan = time_plan_in(file) or {}
        if "preset" in plan:
            preset.restore(settings, plan["preset"])
            self.kept = {"preset": plan["preset"]}
            self._own_steps = plan["preset"].get("max_num_iterations", self._own_steps)
        if "steps" not in plan:
            if self.minutes > 0:
                raise MNIFError(
                    f"{file}: the number of steps of this run was given when it began, so `minutes` cannot choose it; "
                    "leave that out, or give another number by `max_num_iterations`."
                )
            return True
        self.minutes = settings.minutes = 0.0
        self.kept = dict(plan)
        settings.pipeline.prior_steps = settings.pipeline.prior_steps or plan["prior_steps"]
        if plan["points"] and self._has_own_points():
            settings.pipeline.datamanager.points_per_instance = plan["points"]
        if settings.max_num_iterations not in (self._own_steps, plan["steps"]):
            self.say(f"The run goes on to step {settings.max_num_iterations} instead of the planned {plan['steps']}.")
            self.kept["steps"] = settings.max_num_iterations
            return True
        settings.max_num_iterations = plan["steps"]
        self.say(f"The run goes on to step {plan['steps']}, as planned for {plan['minutes']:g} minutes when it began.")
        return True

    def _has_own_points(self) -> bool:
        """Whether a step takes as many points as its method says."""
        if self._method is None:
            return False
        own, used = (run.pipeline.datamanager for run in (self._method.settings, self.settings))
        names = ("instances_per_step", "points_per_instance")
        return all(getattr(used, name, None) == getattr(own, name, None) for name in names)

    # --------------------------------------------------------------------------------------------------- planning

    def start(self, trainer: Stage1Trainer, data: TrainingData, on_plan: Callable[[int], None]) -> None:
        """Begin to train against the clock.

        Args:
            trainer: whose steps are counted; its schedules follow.
            data: what it draws from.
            on_plan: called with the number of steps whenever it is planned, when the settings have it already.
        """
        if not self.active:
            return
        total = 60 * self.minutes
        prior = self._prior_seconds(trainer.model, total)
        spent = time.perf_counter() - self._started
        needed = spent + prior + _encoding_seconds(trainer) + _MARGIN * total
        seconds, start = max(total - needed, _LEAST_TRAINING * total), time.perf_counter()
        if seconds + needed > 1.05 * total:
            self.say(
                f"Opening the data took {spent:.0f} s and the latent prior needs {prior:.0f} s, so the run takes about "
                f"{(seconds + needed) / 60:.1f} minutes instead of {self.minutes:g}; the next run needs no packing."
            )

        points = self._fewer_points(trainer, data, seconds)
        self.kept |= {"minutes": self.minutes, "prior_steps": self.settings.pipeline.prior_steps, "points": points}

        def planned(steps: int) -> None:
            trainer.optimizers.set_length(steps)
            self.settings.max_num_iterations, self.settings.minutes = steps, 0.0
            self.kept["steps"] = steps
            on_plan(steps)

        seconds -= time.perf_counter() - start
        trainer.pacer = Pacer(seconds, planned, lambda steps, per: self._tell(steps, per, prior))

    def _tell(self, steps: int, per_step: float, prior: float) -> None:
        if not self._told:
            name, own = "the small form" if "preset" in self.kept else self.settings.method_name, self._own_steps
            text = f"{self.minutes:g} minutes: a step takes {_duration(per_step)} here, so training has {steps:,} steps"
            text += "" if own is None else f" ({name} has {own:,} by default)"
            if points := self.kept["points"]:
                text += f" of {points:,} points an instance, fewer than by default, which is better in so short a time"
            self.say(text + (f"; {prior:.0f} s are kept for the latent prior." if prior else "."))
            if self._own_steps is not None and steps < self._own_steps / 10:
                self.say("That is short: expect blurred results, or give more minutes, or use a smaller method.")
        else:
            self.say(f"Steps take {_duration(per_step)} now: the run ends at step {steps:,}, in time.")
        self._told = True

    def _fewer_points(self, trainer: Stage1Trainer, data: TrainingData, seconds: float) -> int:
        """Take fewer points in a step where the time is short, the method says so, and the user has not chosen them.

        Returns:
            their number for an instance; 0 where it stays.
        """
        rungs = [rung for rung in (self._method.rungs if self._method else ()) if POINTS in rung.settings]
        if not rungs or not self._has_own_points():
            return 0
        steps = int(seconds / trainer.seconds_of_step())
        points = next((rung.settings[POINTS] for rung in rungs if rung.suits(len(data.names), steps)), 0)
        if points:
            data.take_points(points)
        return int(points)

    def _prior_seconds(self, model: Stage1Model, total: float) -> float:
        """What the latent prior will take; where it would take too much of the time, its steps are cut."""
        settings, (count, dim) = self.settings.pipeline, model.latents.weight.shape
        if not settings.train_prior or count < 2:
            return 0.0
        fixed, per_step = prior_speed(count, dim, settings.prior_variance)
        steps = settings.prior_steps or default_steps(count)
        fitting = max(int((_MOST_PRIOR * total - fixed) / per_step), min(_LEAST_PRIOR, steps))
        if not settings.prior_steps and fitting < steps:
            self.say(
                f"The latent prior gets {fitting:,} steps instead of {steps:,}, which would take "
                f"{steps * per_step:.0f} s; mnif-train-prior trains it again at any time."
            )
            settings.prior_steps = steps = fitting
        return fixed + steps * per_step


def prior_speed(count: int, dim: int, variance: float) -> tuple[float, float]:
    """Seconds that a prior of `count` latents of `dim` numbers takes here: those of no step, and those of each."""
    clock, times = time.perf_counter, []
    latents = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
    config = PriorConfig(steps=_PROBE, explained_variance=variance)
    Noising(config.prediction, config.num_train_timesteps)  # imports the library of schedules, which takes its time
    start = clock()
    LatentPrior.fit(latents, config, progress=False, on_step=lambda step, loss: times.append(clock()))
    took = clock() - start
    per_step = (times[-1] - times[_PROBE_UNTIMED - 1]) / (_PROBE - _PROBE_UNTIMED)
    return max(took - _PROBE * per_step, 0.0), per_step


@torch.no_grad()
def _encoding_seconds(trainer: Stage1Trainer) -> float:
    """What it takes at the end to compute the latents of all training instances, where they are computed."""
    model = trainer.model
    if model.meta is None:
        return 0.0
    rows, start = torch.arange(min(trainer.encode_batch, len(model.names))), time.perf_counter()
    model.encode(lambda chosen: model.objective(trainer.source.fixed(chosen)), rows, trainer.encode_batch)
    return (time.perf_counter() - start) * len(model.names) / len(rows)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
