"""Which instances a training step visits."""

from __future__ import annotations

import torch
from torch import Tensor

from mnif_nerf.random import stream


class InstanceShuffle:
    """An endless shuffle: one permutation of all instances per epoch, so each is visited equally often.

    Args:
        count: number of instances.
        seed: shuffles of the same seed are equal.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._epoch_order: tuple[int, Tensor] | None = None

    def take(self, first: int, number: int) -> Tensor:
        """Visits number `first` ... `first + number`: int64 `[number]`.

        The result depends on the arguments alone. A range that straddles two epochs may hold an instance twice.
        """
        position = torch.arange(first, first + number)
        epochs, places = position // self.count, position % self.count
        instances = torch.empty_like(position)
        for epoch in epochs.unique().tolist():
            if self._epoch_order is None or self._epoch_order[0] != epoch:
                generator = torch.Generator().manual_seed(stream(self.seed, "epoch", epoch))
                self._epoch_order = (epoch, torch.randperm(self.count, generator=generator))
            chosen = epochs == epoch
            instances[chosen] = self._epoch_order[1][places[chosen]]
        return instances
