"""Which instances a training step visits, and what the samplers of whole instances share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.random import WHOLE, Share, stream
from mnif_nerf.rendering.batch import DeviceDraw, PointBatch, of_share


class InstanceShuffle:
    """An endless shuffle: one permutation of all instances per epoch, so each is visited equally often.

    Several threads may take from it at once.

    Args:
        count: number of instances.
        seed: shuffles of the same seed are equal.
        device: where the numbers end up.
    """

    def __init__(self, count: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.count, self.seed, self.device = count, seed, torch.device(device)
        self._orders: tuple[tuple[int, Tensor], ...] = ()  # the last two: threads draw on both sides of an end

    def take(self, first: int, number: int) -> Tensor:
        """Visits number `first` ... `first + number`: int64 `[number]`.

        The result depends on the arguments alone. A range that straddles two epochs may hold an instance twice.
        """
        parts = []
        while number > 0:
            epoch, place = divmod(first, self.count)
            parts.append(self._order(epoch)[place : place + number])
            first, number = first + len(parts[-1]), number - len(parts[-1])
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        orders = self._orders
        known = next((order for number, order in orders if number == epoch), None)
        if known is not None:
            return known
        generator = torch.Generator().manual_seed(stream(self.seed, "epoch", epoch))
        order = torch.randperm(self.count, generator=generator)
        if self.device.type == "cuda":
            order = order.pin_memory()  # or the host would wait for the device
        order = order.to(self.device, non_blocking=True)
        self._orders = ((epoch, order), *orders[:1])
        return order


class InstanceStore(Protocol):
    """A split of whole instances: `GridStore` and `SurfaceStore` of `mnif_nerf.data.stores`."""

    @property
    def root(self) -> Path:
        """The data folder."""

    @property
    def split(self) -> str:
        """Name of the split."""

    @property
    def num_instances(self) -> int:
        """Instances."""


class InstanceDraws:
    """The instances of every step, and the random numbers that their points are drawn by.

    Args:
        store: one split.
        instances_per_step: B.
        points_per_instance: N, 0 for all.
        seed: draws with the same seed and step are equal.

    Raises:
        MNIFError: a batch larger than the data, or a number below what makes sense.
    """

    def __init__(self, store: InstanceStore, instances_per_step: int, points_per_instance: int, seed: int) -> None:
        if instances_per_step < 1 or points_per_instance < 0:
            raise MNIFError("instances per step must be at least 1, points per instance at least 0 (0 takes all).")
        if instances_per_step > store.num_instances:
            raise MNIFError(
                f"{store.root}: {instances_per_step} instances per step, but the {store.split} split has"
                f" {store.num_instances}; lower the instances per step to {store.num_instances} or less"
                f" (`instances_per_step` {store.num_instances})."
            )
        self.instances_per_step, self.seed = instances_per_step, seed
        self._shuffle = InstanceShuffle(store.num_instances, seed)

    def of_step(self, step: int, share: Share = WHOLE) -> tuple[Tensor, np.random.Generator]:
        """Instances int64 `[B]` of training step `step`, from an endless shuffle (`InstanceShuffle`), and a generator:
        a function of seed and step alone.

        Of a share, they are its own B instances of a batch of `share.of` times as many.
        """
        return self._instances(step, share), np.random.default_rng([self.seed, 1, step])

    def _instances(self, step: int, share: Share) -> Tensor:
        first = (step * share.of + share.part) * self.instances_per_step
        return self._shuffle.take(first, self.instances_per_step)

    def on(self, device: torch.device) -> None:
        """Keep the order of instances on this device, for `on_device`."""
        self._shuffle = InstanceShuffle(self._shuffle.count, self.seed, device)

    def on_device(self, share: Share, make: Callable[[Tensor, torch.Generator], PointBatch]) -> DeviceDraw:
        """As `of_step`, on a device that `on` has named: the same instances, and its own random numbers.

        Args:
            share: the part that is drawn.
            make: the batch of instances `[B]`, by a generator.
        """
        return DeviceDraw(
            self,
            1,
            lambda step: self._instances(step, share)[None],
            lambda step: stream(self.seed, "points", step),
            lambda instances, generator: of_share(make(instances[0], generator), share),
        )

    def of_instances_on(self, device: torch.device, instances: Tensor, salt: int) -> Iterator[torch.Generator]:
        """As `of_instances`, with generators of a device."""
        for number in instances.tolist():
            yield torch.Generator(device).manual_seed(stream(self.seed, "fixed points", salt, number))

    def of_instances(self, instances: Tensor, salt: int) -> Iterator[np.random.Generator]:
        """A generator for each of some instances `[K]`: a function of the instance, the seed and `salt` alone."""
        return (np.random.default_rng([self.seed, 2, salt, int(number)]) for number in instances)
