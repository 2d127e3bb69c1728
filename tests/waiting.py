"""Counts what would make a GPU's host wait, on whatever device the work is done."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::lift_fresh", "aten::unique")


class Waits(TorchDispatchMode):
    """Names of operations that waited: numbers that are read out, sizes that hang on values, constants sent over."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        masks = [each for part in args[1:] if isinstance(part, (list, tuple)) for each in part]
        by_mask = name.startswith("aten::index") and any(getattr(m, "dtype", None) == torch.bool for m in masks)
        if by_mask or name.startswith(_WAITS):
            self.names.append(name)
        return function(*args, **(kwargs or {}))
