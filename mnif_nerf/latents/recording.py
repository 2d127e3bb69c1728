"""Work on a device that is recorded once and then played again and again: CUDA graphs.

What is recorded has to read its input from tensors that stay where they are, must not make the device wait, and draws
random numbers from generators that are named when it is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

Work = Callable[[], None]


class Recorder(Protocol):
    """Records work, and plays it."""

    def warm(self, work: Work) -> None:
        """Do the work, as it will be recorded: whatever is made or measured at a first time is made here."""
        ...

    def record(self, work: Work, generators: Sequence[torch.Generator]) -> Work:
        """What does the work again; whether it is also done while it is recorded is left open.

        Args:
            work: what to record.
            generators: all that it draws from. A seed that one of them is given counts from the next time on.

        Raises:
            Exception: of any kind: it cannot be recorded.
        """
        ...

    def wait(self) -> None:
        """Wait until the device has done all."""
        ...


class CudaGraphs:
    """Records CUDA graphs, each with memory of its own.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # work is recorded on another stream than the usual one

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def warm(self, work: Work) -> None:
        """See `Recorder`."""
        with self._aside():
            work()

    def record(self, work: Work, generators: Sequence[torch.Generator]) -> Work:
        """See `Recorder`; nothing is done while it is recorded."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # Batches may be drawn ahead by other threads, whose pinning of memory is no part of the graph.
        mode = "thread_local"
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self._stream, capture_error_mode=mode):
            work()
        return graph.replay

    def wait(self) -> None:
        """See `Recorder`."""
        torch.cuda.synchronize(self.device)


class Again:
    """Does the work anew each time: what stands in for a graph where there are none, in tests and measurements."""

    def warm(self, work: Work) -> None:
        """See `Recorder`."""
        work()

    def record(self, work: Work, generators: Sequence[torch.Generator]) -> Work:
        """See `Recorder`."""
        return work

    def wait(self) -> None:
        """See `Recorder`."""
