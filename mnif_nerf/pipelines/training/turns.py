"""nerfstudio's training loop, several steps at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from nerfstudio.engine import trainer as loop
from nerfstudio.utils.writer import EventName, TimeWriter


@contextlib.contextmanager
def loop_of_turns(turns: Callable[[int, int], Iterator[int]], together: Callable[[], int]) -> Iterator[None]:
    """Within the block, nerfstudio's loop takes turns of several steps.

    The loop asks `range` for the numbers of its steps. It gets those of the last steps of turns instead, so that what
    is due after a step comes after all of its turn; and it measures the time of a step, not of a turn.

    Args:
        turns: from the first step and the end of a run, the last step of every turn.
        together: steps of the turn that is taken.
    """

    class OfAStep(TimeWriter):
        def __exit__(self, *args: Any) -> None:
            if self.name == EventName.ITER_TRAIN_TIME:
                now = time.time()
                self.start: float = now - (now - self.start) / together()
            super().__exit__(*args)

    changes = {"range": turns, "TimeWriter": OfAStep}
    try:
        for name, value in changes.items():
            setattr(loop, name, value)
        yield
    finally:
        del loop.range  # type: ignore[attr-defined]
        loop.TimeWriter = TimeWriter
