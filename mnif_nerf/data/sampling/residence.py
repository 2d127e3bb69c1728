"""Where a packed store lives while batches are drawn from it: in host memory, or on the device that trains."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_MOST = 0.5  # of the memory that is free: the rest is the networks', their activations and what is rendered


def fits(device: torch.device, stored: Iterable[Tensor | None]) -> bool:
    """Whether tensors fit on a CUDA device beside what trains there; false of other devices, which gain nothing."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(each.nbytes for each in stored if each is not None) <= _MOST * free
