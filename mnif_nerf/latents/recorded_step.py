"""One training step as it is recorded: draw, losses, gradients and optimisers, and all that they read.

What differs from step to step lies in tensors that stay where they are (the batch, the learning rates) and in the seeds
of generators. They are filled in before a step is played; nothing waits for the device.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.recording import Recorder, Work
from mnif_nerf.latents.steps import BatchSource, StepResult
from mnif_nerf.random import KeptSeed, stream
from mnif_nerf.rendering.batch import DeviceDraw


class Trained(Protocol):
    """Whose steps are recorded: `mnif_nerf.latents.stage1.Stage1Trainer`."""

    seed: int
    optimizers: OptimizerGroups

    @property
    def model(self) -> nn.Module:
        """Maps a batch and a seed to what `Stage1Task.losses` returns."""

    @property
    def source(self) -> BatchSource:
        """Source of the batches."""

    def plain_step(self, step: int) -> StepResult:
        """One step, which is not recorded."""

    def look(self, step: int) -> None:
        """Watch what is to be watched before this step."""


class ChangedError(Exception):
    """A batch is of another shape than those before."""


class HostBatch:
    """Batches that are drawn as ever, and copied to where a recorded step looks for them.

    Args:
        source: draws them.
        step: whose batch is of the shape of all.
    """

    def __init__(self, source: BatchSource, step: int) -> None:
        self._source = source
        drawn = source.draw(step)
        copied = {name: value.clone() for name, value in _tensors(drawn).items()}
        self._batch = dataclasses.replace(drawn, **copied)

    def load(self, step: int) -> None:
        """Copy the batch of a step.

        Raises:
            ChangedError: see there.
        """
        own, drawn = _tensors(self._batch), _tensors(self._source.draw(step))
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in drawn.items()}:
            raise ChangedError
        for name, value in own.items():
            value.copy_(drawn[name], non_blocking=True)

    def batch(self) -> Any:
        """The batch that was loaded; this is recorded."""
        return self._batch

    def record(self, recorder: Recorder) -> None:
        """Nothing: these are drawn by the host."""

    def fits(self) -> bool:
        """Whether the source still draws so."""
        return self._source.device_draw() is None


class DeviceBatch:
    """Batches that the device draws, by a recording of their own: that of several steps at a time.

    Args:
        source: whose batches these are.
        draw: how they are drawn.
        recorder: records it.
    """

    def __init__(self, source: BatchSource, draw: DeviceDraw, recorder: Recorder) -> None:
        self._source, self._draw = source, draw
        self._instances = draw.instances(0).clone()
        device = self._instances.device
        self._seed, self._first = KeptSeed(device), torch.zeros((), dtype=torch.long, device=device)
        self._number = -1  # of the draw that is there
        self._again: Work = functools.partial(recorder.warm, self._make)

    def _make(self) -> None:
        self._drawn = self._draw.make(self._instances, self._seed.generator())

    def load(self, step: int) -> None:
        """Draw the batch of a step, unless it was drawn with the one before."""
        number, place = divmod(step, self._draw.together)
        if number != self._number:
            self._instances.copy_(self._draw.instances(number))
            self._seed.restart(self._draw.seed(number))
            self._again()
            self._number = number
        if self._draw.together > 1:
            self._first.fill_(place * self._instances.shape[1])

    def batch(self) -> Any:
        """The batch that was loaded; this is recorded."""
        if self._draw.together == 1:
            return self._drawn
        return self._drawn[self._first + torch.arange(self._instances.shape[1], device=self._first.device)]

    def record(self, recorder: Recorder) -> None:
        """Record the draw; what was drawn is lost."""
        self._seed.restart(0)
        self._again, self._number = recorder.record(self._make, self._seed.generators), -1

    def fits(self) -> bool:
        """Whether the source still draws so."""
        draw = self._source.device_draw()
        return draw is not None and draw.sampler is self._draw.sampler


class RecordedStep:
    """A step of a trainer.

    Args:
        trained: the trainer.
        recorder: records the step.
        step: one of the steps that are to be taken.

    Attributes:
        total: sum of the losses of all steps since somebody has set it to 0.
    """

    def __init__(self, trained: Trained, recorder: Recorder, step: int) -> None:
        self.trained, self.recorder = trained, recorder
        device = next(trained.model.parameters()).device
        draw = trained.source.device_draw()
        self._batch: HostBatch | DeviceBatch = (
            HostBatch(trained.source, step) if draw is None else DeviceBatch(trained.source, draw, recorder)
        )
        self._seed = KeptSeed(device)
        self._rates = {name: torch.zeros((), device=device) for name in trained.optimizers.optimizers}
        self._filled: dict[str, float] = {}
        self.total = torch.zeros((), device=device)
        self._names: tuple[list[str], list[str]] = ([], [])
        self._play: Work | None = None
        self._recorded_with: tuple[Any, ...] = ()

    def load(self, step: int) -> None:
        """Fill in all that is this step's own.

        Raises:
            ChangedError: see there.
        """
        self._batch.load(step)
        self._seed.restart(stream(self.trained.seed, "jitter", step))
        for name, rate in self.trained.optimizers.rates().items():
            if self._filled.get(name) != rate:
                self._filled[name] = rate
                self._rates[name].fill_(rate)

    def _work(self) -> None:
        optimizers = self.trained.optimizers
        optimizers.zero_grad()
        outputs = self.trained.model(self._batch.batch(), self._seed)
        losses = outputs["losses"]
        loss = functools.reduce(torch.add, losses.values())
        loss.backward()
        with optimizers.rates_from(self._rates):
            optimizers.update()
        metrics = [name for name in outputs if name == "psnr"]
        self._names = list(losses), metrics
        numbers = [loss, *losses.values(), *(outputs[name] for name in metrics)]
        self._numbers = torch.stack([each.detach() for each in numbers])
        self.total.add_(self._numbers[0])

    def warm(self) -> None:
        """Take the step that was loaded one operation at a time."""
        self.recorder.warm(self._work)

    def record(self) -> None:
        """Record a step, without taking it. What was loaded has to be loaded again.

        Raises:
            Exception: of any kind: it cannot be recorded.
        """
        self._batch.record(self.recorder)
        self._seed.restart(0)
        self._play = self.recorder.record(self._work, self._seed.generators)
        self._recorded_with = self._state()

    def play(self) -> None:
        """Take the step that was loaded by the recording."""
        assert self._play is not None
        self._play()

    def fits(self) -> bool:
        """Whether what was recorded is still what a step would do, with everything where it was."""
        return self._play is None or (self._batch.fits() and self._recorded_with == self._state())

    def _state(self) -> tuple[Any, ...]:
        optimizers, model = self.trained.optimizers, self.trained.model
        places = tuple(each.data_ptr() for part in optimizers.tensors().values() for each in part)
        limits = tuple(optimizers.max_norms.values())
        return model.training, torch.backends.cuda.matmul.allow_tf32, limits, places

    def result(self) -> StepResult:
        """Of the last step."""
        loss, *rest = self._numbers.clone().unbind()
        losses, metrics = self._names
        return StepResult(loss, dict(zip(losses, rest)), dict(zip(metrics, rest[len(losses) :])))


def _tensors(batch: Any) -> dict[str, Tensor]:
    found = ((each.name, getattr(batch, each.name)) for each in dataclasses.fields(batch))
    return {name: value for name, value in found if isinstance(value, Tensor)}
