"""Training steps that are one launch: a step is recorded once (`recorded_step`), and then played again and again.

The first steps are taken one operation at a time. Then one is recorded, and the next one is taken both ways and
compared. A step that cannot be recorded, or comes out otherwise, is taken as ever, and a sentence says so. Where
several processes train together, all of them play or none.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from mnif_nerf.latents.recorded_step import ChangedError, RecordedStep, Trained
from mnif_nerf.latents.recording import Recorder
from mnif_nerf.latents.steps import StepResult

_WARM = 3  # steps before one is recorded: states are made, kernels chosen
_UNTIMED, _TIMED = 2, 12  # steps that are played to see how long one takes; a draw is of several
_MOST, _SECONDS = 100, 0.1  # steps, and seconds of them, that are begun at a time
_Tensors = dict[str, list[Tensor]]
# Relative, of a loss and of what a step changes: the same operations, but sums of thousands in another order, and Adam
# takes a whole step along gradients that are nothing but rounding.
_LOSS_OFF, _CHANGE_OFF = 1e-3, 0.05


class Replays:
    """Takes the steps of a trainer, played where that can be done.

    Args:
        trained: the trainer.
        recorder: records and plays.
        say: called with a sentence where steps cannot be played.

    Attributes:
        playing: whether steps are played by now.
        given_up: whether they cannot be.
    """

    def __init__(self, trained: Trained, recorder: Recorder, say: Callable[[str], None]) -> None:
        self._trained, self._recorder, self._say = trained, recorder, say
        self.playing = self.given_up = False
        self._recorded: RecordedStep | None = None
        self._warm, self._seconds = 0, 0.0
        self._total: Tensor | float = 0.0

    @property
    def most(self) -> int:
        """Steps to begin at a time: the device is busy with them while the host sees to other things."""
        return max(min(_MOST, int(_SECONDS / max(self._seconds, 1e-6))), 1) if self.playing else 1

    def seconds_of_gradient(self) -> float | None:
        """Seconds of a step that is played, but for its optimisers; nothing is changed. None where it cannot be."""
        recorded = RecordedStep(self._trained, self._recorder, 0)
        try:
            recorded.load(0)
            play = recorded.record_gradient()
            start = 0.0
            for step in range(_UNTIMED + _TIMED):
                if step == _UNTIMED:
                    self.wait()
                    start = time.perf_counter()
                recorded.load(step)
                play()
            self.wait()
            return (time.perf_counter() - start) / _TIMED
        except Exception:  # whatever torch raises; the step that is recorded in training says what it is
            return None
        finally:
            self._trained.optimizers.zero_grad()

    def wait(self) -> None:
        """Wait until the device has taken all steps."""
        self._recorder.wait()

    def steps(self, first: int, count: int) -> tuple[StepResult, Tensor]:
        """Take `count` steps from `first` on.

        Returns:
            what the last one yields, and the sum of all losses.
        """
        if self._recorded is not None and not self._recorded.fits():
            self._forget()
        self._total, result = 0.0, None
        for step in range(first, first + count):
            result = self._step(step)
        if result is None:
            assert self._recorded is not None
            result = self._recorded.result()
        self._collect()
        assert isinstance(self._total, Tensor)
        return result, self._total

    def _step(self, step: int) -> StepResult | None:
        """One step; None where what was recorded holds the result."""
        recorded = None if self.given_up else self._loaded(step)
        if recorded is None or (self._warm == _WARM and not self.playing):
            result = self._trained.plain_step(step) if recorded is None else self._compared(recorded, step)
            self._total = self._total + result.loss
            return result
        self._trained.look(step)
        if self.playing:
            recorded.play()
        else:
            recorded.warm()
            self._warm += 1
        self._trained.optimizers.advance()
        return None

    def _loaded(self, step: int) -> RecordedStep:
        if self._recorded is None:
            self._recorded = RecordedStep(self._trained, self._recorder, step)
        try:
            self._recorded.load(step)
        except ChangedError:
            self._forget()
            self._recorded = RecordedStep(self._trained, self._recorder, step)
            self._recorded.load(step)
        return self._recorded

    def _forget(self) -> None:
        """Begin anew, with the first steps."""
        self._collect()
        self._recorded, self.playing, self._warm = None, False, 0

    def _collect(self) -> None:
        if self._recorded is not None:
            self._total = self._total + self._recorded.total
            self._recorded.total.zero_()

    def _compared(self, recorded: RecordedStep, step: int) -> StepResult:
        """Record a step, and take this one; from now on steps are played where both agree."""
        self._collect()
        before: _Tensors = {}
        played: _Tensors = {}
        why = ""
        try:
            recorded.record()
        except Exception as error:  # whatever torch and its libraries raise
            why = _sentence(error)
        why = self._agreed(why)
        if not why:
            try:
                before, played = self._played(recorded, step)
            except Exception as error:
                if self._trained.ranks.size > 1:  # the others are in the middle of this step
                    raise
                why = _sentence(error)
        result = self._trained.plain_step(step)
        if not why:
            now = {**self._trained.optimizers.tensors(), "loss": [result.loss]}
            why = self._agreed(_difference(before, played, now))
        if why:
            self.given_up, self._recorded = True, None
        if why and self._trained.ranks.is_first:
            self._say(
                f"A training step cannot be played as one CUDA graph ({why}), so its operations are launched one by "
                "one, which is slower; with `cuda_graph` False nothing is tried."
            )
        self.playing = not why
        return result

    def _agreed(self, why: str) -> str:
        """Why any rank cannot play, "" where all can; and all begin as many steps at a time from now on."""
        said = self._trained.ranks.collect((why, self._seconds))
        self._seconds = max(seconds for _, seconds in said)
        return next((each for each, _ in said if each), "")

    def _played(self, recorded: RecordedStep, step: int) -> tuple[_Tensors, _Tensors]:
        """What a step that is played finds, and what it leaves; then all is as before."""
        tensors = self._trained.optimizers.tensors()
        before = _copied(tensors)
        try:
            recorded.load(step)
            recorded.play()
            played = {**_copied(tensors), "loss": [recorded.result().loss]}
            self.wait()
            start = time.perf_counter()
            recorded.play()  # the first time takes longer
            self.wait()
            self._seconds = time.perf_counter() - start
        finally:
            for name, part in tensors.items():
                for own, was in zip(part, before[name]):
                    own.detach().copy_(was)
            recorded.total.zero_()
        return before, played


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no words')[:200]}"


@torch.no_grad()
def _copied(tensors: _Tensors) -> _Tensors:
    return {name: [each.detach().clone() for each in part] for name, part in tensors.items()}


@torch.no_grad()
def _difference(before: _Tensors, played: _Tensors, now: _Tensors) -> str:
    """By how much the played step is off; "" where rounding explains it."""
    for name, part in now.items():
        starts = before.get(name) or [torch.zeros_like(each) for each in part]
        off, change = (
            float(torch.stack([(a - b).float().norm() for a, b in zip(part, others)]).norm())
            for others in (played[name], starts)
        )
        bound = (_CHANGE_OFF if name in before else _LOSS_OFF) * change
        if not off <= bound:
            return f"it is off by {off:.1e} in {name}, where a step changes {change:.1e}"
    return ""
