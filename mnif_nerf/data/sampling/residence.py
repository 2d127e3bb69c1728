"""Where a packed store lives while batches are drawn from it: in host memory, or on the device that trains."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.stores.shards import Rows, ShardedRows

_MOST = 0.5  # of the memory that is free: the rest is the networks', their activations and what is rendered


def fits(device: torch.device, stored: Iterable[Tensor | Rows | None]) -> bool:
    """Whether arrays fit on a CUDA device beside what trains there; false of other devices, which gain nothing."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(each.nbytes for each in stored if each is not None) <= _MOST * free


def on_device(stored: Rows, device: torch.device) -> Tensor:
    """An array of a store on a device; of one in shards, no more than the shards is ever in host memory."""
    if not isinstance(stored, ShardedRows):
        return torch.from_numpy(np.asarray(stored)).to(device)
    kind = torch.from_numpy(stored.parts[0][:0]).dtype
    found, first = torch.empty(stored.shape, dtype=kind, device=device), 0
    for part in stored.parts:
        found[first : first + len(part)] = torch.from_numpy(part)
        first += len(part)
    return found
