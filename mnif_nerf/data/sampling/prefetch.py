"""Batches of host memory that are there before they are asked for: drawn in background threads, copied ahead.

It serves devices that hold the networks and not the data. A batch is a function of the seed and of its number, so
what the training sees does not depend on how far ahead, or by how many threads, it was drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from typing import Generic

import torch
from torch import Tensor

from mnif_nerf.machine import denormals_flushed, num_cores
from mnif_nerf.random import WHOLE, Share
from mnif_nerf.rendering.batch import Batch, changed

_MOST_THREADS = 4


class Prefetcher(Generic[Batch]):
    """Calls `draw` ahead of time; `self(number, share)` is `draw(number, share)` on the device.

    Numbers may come in any order. Those that follow the last one are drawn ahead, so a run that counts up waits for
    the first batch alone, unless it is faster than the threads.

    Args:
        draw: makes batch `number` of a share in host memory; called from several threads at once, and a function of its
            arguments alone.
        device: where batches end up. For CUDA they are put into pinned memory, and the next one is copied on a stream
            of its own while the device works at this one.
        threads: that draw; None takes a few.
    """

    def __init__(
        self, draw: Callable[[int, Share], Batch], device: torch.device | str, threads: int | None = None
    ) -> None:
        self._draw: Callable[[int, Share], Batch] = draw
        self.device = torch.device(device)
        threads = threads or min(_MOST_THREADS, num_cores())
        self.ahead = 2 * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="draws")  # ends with this object, or with Python
        self._drawn: dict[tuple[int, Share], Future[Batch]] = {}
        self._sent: tuple[tuple[int, Share], Batch, torch.cuda.Event] | None = None
        self._copies: torch.cuda.Stream | None = None

    def __call__(self, number: int, share: Share = WHOLE) -> Batch:
        """Batch `number` of a share, on the device.

        Raises:
            Exception: whatever `draw` raises for it.
        """
        wanted = [(each, share) for each in range(number, number + self.ahead + 1)]
        for key in self._drawn.keys() - set(wanted):
            self._drawn.pop(key).cancel()
        for key in wanted:
            if key not in self._drawn:
                self._drawn[key] = self._pool.submit(_drawn, self._draw, key, self.device)
        batch = self._arrived(wanted[0])
        if self.device.type == "cuda":
            self._send(wanted[1])
        return batch

    def _arrived(self, key: tuple[int, Share]) -> Batch:
        """A batch on the device; nothing but its drawing is waited for."""
        drawn, sent = self._drawn.pop(key), self._sent
        if sent is None or sent[0] != key:
            return drawn.result().to(self.device)
        _, batch, copied = sent
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        for value in _tensors(batch):
            value.record_stream(stream)  # or its memory would be given away while kernels of this stream read it
        return batch

    def _send(self, key: tuple[int, Share]) -> None:
        """Begin to copy a batch, if it is drawn: from this thread, for no other one talks to the device."""
        drawn = self._drawn[key]
        self._sent = None
        if not drawn.done() or drawn.exception() is not None:
            return
        if self._copies is None:
            self._copies = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._copies):
            batch, copied = drawn.result().to(self.device), torch.cuda.Event()
            copied.record(self._copies)
        self._sent = (key, batch, copied)


def _drawn(draw: Callable[[int, Share], Batch], key: tuple[int, Share], device: torch.device) -> Batch:
    with denormals_flushed():  # as a training step draws
        batch = draw(*key)
    if device.type != "cuda":
        return batch
    with torch.cuda.device(device):  # a thread's own is the first one, where pinning would begin a context
        return changed(batch, lambda value: value if value.is_cuda else value.pin_memory())


def _tensors(batch: Batch) -> list[Tensor]:
    values = (getattr(batch, each.name) for each in fields(batch))
    return [value for value in values if isinstance(value, Tensor)]
