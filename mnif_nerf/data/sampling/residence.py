"""Where a packed store lives while batches are drawn from it: in host memory, or on the device that trains."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.stores.shards import Rows, ShardedRows
from mnif_nerf.machine import available_memory

_MOST = 0.5  # of the memory that is free: the rest is the networks', their activations and what is rendered


def fits(device: torch.device, stored: Iterable[Tensor | Rows | HostRows | None]) -> bool:
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


class HostRows:
    """An array in shards that is indexed by tensors, as one tensor would be; what is read of it is a tensor.

    Args:
        rows: the array.
    """

    def __init__(self, rows: ShardedRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Size of all shards."""
        return self.rows.nbytes

    def __getitem__(self, key: Tensor | tuple[Tensor, ...]) -> Tensor:
        keys = key if isinstance(key, tuple) else (key,)
        return torch.from_numpy(self.rows[tuple(each.numpy() for each in keys)])

    def to(self, device: torch.device) -> Tensor:
        """All of it on a device."""
        return on_device(self.rows, device)


def host_rows(stored: Rows) -> Tensor | HostRows:
    """An array of a store in host memory, to be indexed by tensors."""
    return HostRows(stored) if isinstance(stored, ShardedRows) else torch.from_numpy(stored)


def expect_single_rows(stored: Iterable[Rows | None]) -> None:
    """Tell the system that single rows of a store are read from now on, where it is larger than the free memory.

    A page that is missing brings a megabyte with it otherwise, and drives others out: 400 runs of 3,000 bytes each were
    500 MB read from a disk, and are 3 MB. A store that fits is better read like that.
    """
    arrays = [each for each in stored if each is not None]
    free = available_memory()
    if free is None or sum(each.nbytes for each in arrays) <= free or not hasattr(mmap, "MADV_RANDOM"):
        return
    for each in arrays:
        for part in each.parts if isinstance(each, ShardedRows) else (each,):
            base: object = part
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap):
                base.madvise(mmap.MADV_RANDOM)
