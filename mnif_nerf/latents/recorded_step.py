"""One training step as it is recorded: draw, losses, gradients and optimisers, and all that they read.

Where several processes train together, it is recorded in two parts: what comes before their gradients are averaged, and
what comes after. Between them the processes talk as they do in any step.

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
from mnif_nerf.latents.ranks import Ranks
from mnif_nerf.latents.recording import Recorder, Work
from mnif_nerf.latents.steps import BatchSource, StepResult
from mnif_nerf.random import KeptSeed, stream
from mnif_nerf.rendering.batch import DeviceDraw, of_share


class Trained(Protocol):
    """Whose steps are recorded: `mnif_nerf.latents.stage1.Stage1Trainer`."""

    seed: int
    optimizers: OptimizerGroups
    ranks: Ranks

    @property
    def model(self) -> nn.Module:
        """Maps a batch and a seed to what `Stage1Task.losses` returns."""

    @property
    def source(self) -> BatchSource:
        """Source of the batches."""

    def plain_step(self, step: int) -> StepResult:
        """One step, which is not recorded."""

    def of_whole_batch(self, outputs: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and metrics of all ranks' parts together, and the gradients likewise."""

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
        self._batch = of_share(dataclasses.replace(drawn, **copied), drawn.share)

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
        self._own: list[Tensor | None] = []  # gradients of this rank's part, where the first recording leaves them
        self._kept: dict[int, Tensor] = {}  # sparse ones of all parts, where the second recording finds them
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

    def _differentiate(self) -> None:
        """Losses and gradients of this rank's part."""
        self.trained.optimizers.zero_grad()
        outputs = self.trained.model(self._batch.batch(), self._seed)
        functools.reduce(torch.add, outputs["losses"].values()).backward()
        # Without their graph, which would hold on to the stream that it was made on.
        losses = {name: value.detach() for name, value in outputs["losses"].items()}
        self._outputs = {"losses": losses, **{name: outputs[name].detach() for name in outputs if name == "psnr"}}
        self._own = [each.grad for each in self._parameters()]

    def _exchange(self) -> None:
        """Losses and gradients of the whole batch."""
        for each, own in zip(self._parameters(), self._own):
            each.grad = own
        losses, metrics = self.trained.of_whole_batch(self._outputs)
        if self.trained.ranks.size > 1:
            self._keep_sparse()
        self._names = list(losses), list(metrics)
        numbers = [functools.reduce(torch.add, losses.values()), *losses.values(), *metrics.values()]
        self._numbers = torch.stack([each.detach() for each in numbers])
        self.total.add_(self._numbers[0])

    def _keep_sparse(self) -> None:
        """Put the gathered gradients, which are new tensors, where those of the first time are."""
        for number, each in enumerate(self._parameters()):
            if each.grad is not None and each.grad.is_sparse:
                kept = self._kept.setdefault(number, each.grad)
                if kept is not each.grad:
                    kept._indices().copy_(each.grad._indices())
                    kept._values().copy_(each.grad._values())
                each.grad = kept

    def _update(self) -> None:
        with self.trained.optimizers.rates_from(self._rates):
            self.trained.optimizers.update()

    def _parameters(self) -> list[nn.Parameter]:
        return [each for group in self.trained.optimizers.parameters.values() for each in group]

    def _work(self) -> None:
        """The step of a process that trains alone."""
        self._differentiate()
        self._exchange()
        self._update()

    def warm(self) -> None:
        """Take the step that was loaded one operation at a time."""
        if self.trained.ranks.size == 1:
            self.recorder.warm(self._work)
            return
        self.recorder.warm(self._differentiate)
        self._exchange()
        self.recorder.warm(self._update)

    def record(self) -> None:
        """Record a step, without taking it. What was loaded has to be loaded again. Ranks do not meet in here.

        Raises:
            Exception: of any kind: it cannot be recorded.
        """
        self._batch.record(self.recorder)
        self._seed.restart(0)
        if self.trained.ranks.size == 1:
            self._play = self.recorder.record(self._work, self._seed.generators)
        else:
            self._play = self._record_parts()
        self._recorded_with = self._state()

    def record_gradient(self) -> Work:
        """What takes loss and gradients of the step that is loaded, and nothing else, by a recording.

        Raises:
            Exception: of any kind: it cannot be recorded.
        """
        self.recorder.warm(self._differentiate)
        self._batch.record(self.recorder)
        self._seed.restart(0)
        return self.recorder.record(self._differentiate, self._seed.generators)

    def _record_parts(self) -> Work:
        differentiate = self.recorder.record(self._differentiate, self._seed.generators)
        for number, each in enumerate(self._parameters()):
            each.grad = self._kept.get(number, self._own[number])
        update = self.recorder.record(self._update, [])

        def play() -> None:
            differentiate()
            self._exchange()
            update()

        return play

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
