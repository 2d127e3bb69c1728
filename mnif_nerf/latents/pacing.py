"""How many steps fit into the time that is given: planned from the first steps, and again where steps become slower."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_FIRST = 0.02  # share of the time, after which the first plan is made
_LEAST_STEPS, _LATEST = 20, 0.1  # unless there are fewer steps by then; the plan is made at this share anyway
_UNTIMED = 2  # first steps, which set up caches
_LOOKS = 0.01  # share of the time between two looks at the plan
_MEMORY = 0.1  # share of the time, over which steps are averaged
_LATE, _EARLY = 0.03, 0.05  # shares of the time, by which a plan may miss its end
_GROWS = 0.8  # share of the steps, up to which a plan may grow: the learning rate rises again with it
_SAID = 0.2  # share of the steps, from which a change is told
_PAUSE = 0.25  # seconds between two steps that are no part of them: an evaluation, a checkpoint


class Pacer:
    """Plans the length of a run that has to end in time.

    The plan is made from the first steps of training themselves, and anew where the machine becomes busy or idle, so
    that the learning rate has fallen when time is up.

    Args:
        seconds: from now to the end of the last step.
        on_plan: called with the number of steps, those before a resume included, whenever it is planned.
        say: called with the number of steps and the seconds of one where that is worth telling: at first, and where the
            number has changed by a fifth.
        clock: seconds from any moment.
    """

    def __init__(
        self,
        seconds: float,
        on_plan: Callable[[int], None],
        say: Callable[[int, float], None] = lambda steps, seconds: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._budget, self._on_plan, self._say, self._clock = max(seconds, 1e-9), on_plan, say, clock
        self.steps: int | None = None
        self._start = self._last = self._looked = clock()
        self._end = self._start + self._budget
        self._done, self._said = 0, 0
        self._count, self._taken = 0.0, 0.0  # steps and seconds, older ones weighing less
        self._paused = 0.0  # seconds of evaluations and checkpoints

    def over(self, step: int) -> bool:
        """Whether a run that has taken `step` is complete."""
        return self.steps is not None and step + 1 >= self.steps

    def rested(self, seconds: float) -> None:
        """Leave out some seconds in which the user had stopped the run: it ends so much later."""
        self._start, self._last, self._looked, self._end = (
            moment + seconds for moment in (self._start, self._last, self._looked, self._end)
        )

    def forget(self) -> None:
        """Forget how long steps took until now: from here on they are taken another way."""
        self._last, self._done = self._clock(), 0
        self._count, self._taken, self._paused = 0.0, 0.0, 0.0

    def step_took(self, step: int, seconds: float, count: int = 1) -> None:
        """Take the duration of a step, in seconds, and plan again where that is due.

        Args:
            step: its number.
            seconds: how long it took.
            count: of several steps up to this one, how many took so long together.
        """
        now = self._clock()
        between = max(now - self._last - seconds, 0.0)
        if between > _PAUSE + 5 * seconds:
            self._paused += between
            between = 0.0
        self._last = now
        self._done += count
        if self._done > _UNTIMED or now - self._start > _LATEST * self._budget:
            kept = math.exp(-(seconds + between) / (_MEMORY * self._budget))
            self._count, self._taken = kept * self._count + count, kept * self._taken + seconds + between
        self._plan(step, now)

    def _plan(self, step: int, now: float) -> None:
        spent = (now - self._start) / self._budget
        if self.steps is None:
            if self._count and (spent > _LATEST or (spent > _FIRST and self._done >= _LEAST_STEPS)):
                self._take(step + 1 + max(self._left(now), 0))
            return
        if not self._count or (now - self._looked < _LOOKS * self._budget and now < self._end):
            return
        self._looked = now
        fitting = step + 1 + max(self._left(now), 0)
        off = (self.steps - fitting) * self._rate() / self._budget
        may_grow = step + 1 < _GROWS * self.steps
        if off > _LATE or (now > self._end + _LATE * self._budget) or (off < -_EARLY and may_grow):
            self._take(fitting)

    def _rate(self) -> float:
        """Seconds of a step, with its share of the pauses."""
        return self._taken / self._count + self._paused / self._done

    def _left(self, now: float) -> int:
        """Steps that fit into what is left of the time."""
        return int((self._end - now) / self._rate())

    def _take(self, steps: int) -> None:
        self.steps = steps
        self._on_plan(steps)
        if abs(steps - self._said) > _SAID * self._said:
            self._said = steps
            self._say(steps, self._rate())
