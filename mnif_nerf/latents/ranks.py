"""Several processes that train one model or share other work: ranks of torch.distributed, as torchrun and nerfstudio
start them.

Each rank takes its part of a batch of all of them (`mnif_nerf.random.Share`). After the backward pass, gradients of
networks are averaged, and those of latents, which are sparse, are gathered: a few rows of numbers per step. So every
rank holds the same networks, the same latents and the same states of optimisers, which are those of one process with a
batch as large as all parts together. A checkpoint, which the first rank writes, says nothing of how many there were.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.random import Share

Answer = TypeVar("Answer")
Item = TypeVar("Item")

_TIMEOUT = datetime.timedelta(minutes=30)  # while the first rank packs data or evaluates, the others wait
_TOLD = "mnif/told"  # counts who wanted to say why the run ends


class RankLostError(MNIFError):
    """Another process of the run has ended, so this one cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """Who this process is among those that train together. By default it is alone, and nothing here does anything.

    Attributes:
        number: of this process, from 0; the first one writes and speaks for all.
        size: how many there are.
        local: number of this process on its machine.
        store: what they tell each other without the devices; None where somebody else has brought them together.
    """

    number: int = 0
    size: int = 1
    local: int = 0
    store: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.number == 0

    @property
    def share(self) -> Share:
        """The part of every batch that is this one's."""
        return Share(self.number, self.size)

    def device(self, kind: str) -> torch.device:
        """The device of this process: of "cuda", that of its number on the machine where it is not alone."""
        return torch.device(kind, self.local) if kind == "cuda" and self.size > 1 else torch.device(kind)

    def average(self, parameters: Iterable[Tensor], values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make the gradients those of the whole batch, whose loss is the mean of the losses of the parts.

        Args:
            parameters: with or without gradients, dense or sparse: the same on all ranks.
            values: scalars without a graph.

        Returns:
            Their means.

        Raises:
            RankLostError: see there.
        """
        if self.size == 1:
            return values
        learned = [each for each in parameters if each.grad is not None]
        dense = [each.grad for each in learned if not each.grad.is_sparse]
        flat = torch.cat([*(each.reshape(-1) for each in dense), torch.stack(list(values.values()))])
        with _together():
            dist.all_reduce(flat)
        parts = (flat / self.size).split([*(each.numel() for each in dense), len(values)])
        for own, mean in zip(dense, parts):
            own.copy_(mean.view_as(own))
        for each in learned:
            if each.grad.is_sparse:
                each.grad = self._gathered(each.grad)
        return dict(zip(values, parts[-1].unbind()))

    def _gathered(self, gradient: Tensor) -> Tensor:
        """The sparse gradient of all parts, in their order."""
        rows, values = gradient._indices(), gradient._values() / self.size  # one process would not have coalesced yet
        rows, values = self.gather(rows[0])[None], self.gather(values)
        return torch.sparse_coo_tensor(rows, values, gradient.shape, check_invariants=False)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows `[K, ...]` of all ranks, K being the same for each: `[size * K, ...]`.

        Raises:
            RankLostError: see there.
        """
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        with _together():
            dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def compute_rows(self, rows: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """`compute(rows)` `[N, ...]` for rows `[N]` that do not hang on each other; each rank computes some of them."""
        if self.size == 1:
            return compute(rows)
        each = -(-len(rows) // self.size)
        own = rows[torch.arange(self.number * each, (self.number + 1) * each).clamp(max=len(rows) - 1)]
        return self.gather(compute(own))[: len(rows)]

    def spread(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Iterable[Answer]]) -> list[Answer]:
        """What `work` makes of each item, in their order: each rank has every `size`-th of them, and all get all.

        Args:
            items: the same on all ranks; none hangs on another.
            work: makes one answer of each of some items; what it gives must be able to be pickled.

        Raises:
            RankLostError: see there.
        """
        if self.size == 1:
            return list(work(items))
        parts = self.collect(list(work(items[self.number :: self.size])))
        return [parts[k % self.size][k // self.size] for k in range(len(items))]

    def collect(self, own: Answer) -> list[Answer]:
        """What each rank has, in their order.

        Raises:
            RankLostError: see there.
        """
        if self.size == 1:
            return [own]
        parts: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(parts, own)
        return parts

    def decide(self, question: Callable[[], Answer]) -> Answer:
        """The first rank's answer; the others, who do not ask, wait for it.

        Raises:
            RankLostError: see there.
        """
        if self.size == 1:
            return question()
        answer: list[Any] = [question() if self.is_first else None]
        with _together():
            dist.broadcast_object_list(answer, 0)
        return answer[0]  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def one_first(self) -> Iterator[None]:
        """A block that one process of each machine enters before the others, as it may leave files for them."""
        if self.local != 0:
            self._wait()
        yield
        if self.local == 0:
            self._wait()

    def _wait(self) -> None:
        self.decide(lambda: None)

    def may_tell(self) -> bool:
        """Whether this one shall say why the run ends: true for the first that asks. The others end of the same."""
        if self.store is None:
            return self.is_first
        try:
            return bool(self.store.add(_TOLD, 1) == 1)
        except RuntimeError:  # who kept the store is gone
            return True


ONE = Ranks()
"""A process that trains alone."""


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """What is done by all ranks or by none."""
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's have no class of their own in common
        raise RankLostError("another process of this run has ended or does not answer.") from error


def is_rank() -> bool:
    """Whether torchrun, or what sets the same variables, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def ranks_of_group(device: torch.device | str, local: int) -> Ranks:
    """The ranks of a process group that somebody else (nerfstudio) has made; `local` counts on this machine."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ONE
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(local)
    return Ranks(dist.get_rank(), dist.get_world_size(), local)


@contextlib.contextmanager
def started_ranks(device_type: str) -> Iterator[Ranks]:
    """Join the processes that torchrun has started; `ONE` where it has not.

    Args:
        device_type: "cuda" (NCCL; each process takes the device of its number on the machine) or "cpu" (gloo).

    Raises:
        MNIFError: more processes than devices, or the others cannot be reached.
    """
    if not is_rank():
        yield ONE
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device_type == "cuda":
        if local >= torch.cuda.device_count():
            raise MNIFError(
                f"{os.environ.get('LOCAL_WORLD_SIZE', 'several')} processes, but this machine has "
                f"{torch.cuda.device_count()} CUDA devices; start one process per device."
            )
        torch.cuda.set_device(local)
    with _together():
        store, number, size = next(dist.rendezvous("env://", timeout=_TIMEOUT))
        backend = "nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_TIMEOUT)
    yield Ranks(number, size, local, store)
    dist.destroy_process_group()  # not where something went wrong: others may be gone
