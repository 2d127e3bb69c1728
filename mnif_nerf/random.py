"""Seeds of independent random streams: one for every purpose and step of a run; and parts of what is drawn from them.

Where several processes train together, each has its part of every batch. It draws the random numbers of the whole
batch and keeps those of its own rows, so that together they see what one process would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the commands' help does not wait for it
    import torch


def stream(seed: int, name: str, *numbers: int) -> int:
    """The seed of the random stream `name` of a run: 0 to 2^63 - 1, for `torch.Generator.manual_seed` or numpy.

    Streams of different names or numbers are independent (numpy's `SeedSequence`), where sums and products of a seed
    and a step meet: the jitter of one step was the choice of rays of another.

    Args:
        seed: random seed of the run, at least 0.
        name: what the stream is for, such as "jitter"; two purposes never share one.
        numbers: step, epoch or instance, at least 0 each.

    Example:
        >>> stream(0, "jitter", 7) == stream(0, "rays", 7)
        False
    """
    import numpy as np

    # The length keeps (1, 0) and (1,) apart: SeedSequence pads with zeros.
    words = np.random.SeedSequence((seed, purpose_number(name), len(numbers), *numbers)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def purpose_number(name: str) -> int:
    """What stands for a stream's name among the numbers that seed it: 0 to 2^64 - 1, in every Python process the same
    (`hash` is not)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


class KeptSeed:
    """A seed that is another one in every step, with generators that stay: work that was recorded once, and is played
    again, goes on to draw from the generators that it was recorded with (`mnif_nerf.latents.recording`).

    Args:
        device: of the numbers.

    Attributes:
        generators: those that were asked for so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generators: list[torch.Generator] = []
        self._seed, self._given = 0, 0

    def restart(self, seed: int) -> None:
        """Let all generators begin the numbers of a seed, and give them out again in the same order."""
        self._seed, self._given = seed, 0
        for each in self.generators:
            each.manual_seed(seed)

    def generator(self) -> torch.Generator:
        """One that nobody has had since the last `restart`; it stands at the beginning."""
        if self._given == len(self.generators):
            import torch

            self.generators.append(torch.Generator(self.device).manual_seed(self._seed))
        self._given += 1
        return self.generators[self._given - 1]


def generator_of(seed: int | KeptSeed, device: torch.device) -> torch.Generator:
    """A generator of a device, at the beginning of a seed's numbers."""
    if isinstance(seed, KeptSeed):
        return seed.generator()
    import torch

    return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class Share:
    """One of several equal parts of every batch, which follow each other.

    Attributes:
        part: which one, from 0.
        of: how many there are.
    """

    part: int = 0
    of: int = 1

    def draw(self, draw: Callable[[tuple[int, ...]], Any], shape: tuple[int, ...], axis: int = 0) -> Any:
        """Random numbers of this part: those of the whole batch are drawn, and the others dropped.

        Args:
            draw: makes a tensor or an array of a shape.
            shape: of this part.
            axis: along which parts follow each other.

        Example:
            >>> Share(1, 2).draw(lambda shape: list(range(shape[0])), (3,))
            [3, 4, 5]
        """
        rows = shape[axis]
        drawn = draw((*shape[:axis], self.of * rows, *shape[axis + 1 :]))
        if self.of == 1:
            return drawn
        own = slice(self.part * rows, (self.part + 1) * rows)
        return drawn[(slice(None),) * axis + (own,)] if axis else drawn[own]


WHOLE = Share()
"""All of a batch, as a single process has it."""


@dataclass(frozen=True, eq=False)
class PickedRows(Share):
    """Some rows of a batch, in whichever order.

    Attributes:
        rows: int64 `[K]`, which ones, on the device of what is drawn for.
        count: how many rows the batch has.
    """

    rows: torch.Tensor | None = None
    count: int = 0

    def draw(self, draw: Callable[[tuple[int, ...]], Any], shape: tuple[int, ...], axis: int = 0) -> Any:
        """See `Share.draw`; rows follow each other along the first axis alone."""
        assert self.rows is not None
        assert axis == 0
        return draw((self.count, *shape[1:])).to(self.rows.device)[self.rows]
