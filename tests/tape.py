"""What stands in for a CUDA graph on a CPU: the operations of recorded work, which run again on the same tensors.

As with a graph, Python's own part of the work runs once, while it is recorded: a learning rate or a seed that it has
looked up stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class _Recording(TorchDispatchMode):
    """Writes down operations, and what those change that was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Any]]] = []
        self.changed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(function._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for each in tree_flatten(value)[0]:
                    if isinstance(each, torch.Tensor):
                        self.changed.append((each, each.clone()))
        results = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, tree_flatten(results)[0]))
        return results


class Tape:
    """A `Recorder`.

    Attributes:
        recorded: how often something was recorded.
        played: how often something was played.
    """

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def warm(self, work: Callable[[], None]) -> None:
        work()

    def wait(self) -> None:
        pass

    def record(self, work: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        recording = _Recording()
        with recording:
            work()
        for own, before in reversed(recording.changed):  # a graph does nothing while it is recorded
            own.detach().copy_(before)
        self.recorded += 1

        @torch.no_grad()
        def play() -> None:
            self.played += 1
            for function, args, kwargs, results in recording.operations:
                for own, new in zip(results, tree_flatten(function(*args, **kwargs))[0]):
                    if isinstance(own, torch.Tensor):
                        _keep(own, new)

        return play


def _keep(own: torch.Tensor, new: torch.Tensor) -> None:
    """Put a result where it was when it was recorded; a view is there already."""
    if own.is_sparse:
        _keep(own._indices(), new._indices())
        _keep(own._values(), new._values())
    elif own.data_ptr() != new.data_ptr():
        own.copy_(new)
