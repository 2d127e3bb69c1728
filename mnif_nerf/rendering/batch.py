"""Rays or points grouped by instance: what a sampler hands to the training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from mnif_nerf.random import WHOLE, PickedRows, Share

Batch = TypeVar("Batch", "RayBatch", "PointBatch")


@dataclass
class RayBatch:
    """Rays of B instances, R each.

    Attributes:
        instances: `[B]` int64, indices of the instances in the store.
        origins, directions: `[B, R, 3]` world units; directions of unit length.
        near, far: `[B, R]` distances between which the ray can meet the object.
        rgb: `[B, R, 3]` in [0, 1], over the white background.
        mask: `[B, R]` 1 on the object's silhouette, 0 on the background. All ones without silhouettes: a background
            that is not white has to be painted, so every ray ends somewhere.
        carve_points: `[B, C, 3]` points inside the scene box and outside the hull (C may be 0).
        share: which part of a larger batch these instances are, where several processes train together.
    """

    instances: Tensor
    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor
    rgb: Tensor
    mask: Tensor
    carve_points: Tensor
    share = WHOLE  # no field: nothing that is handled row by row

    def to(self, device: torch.device | str) -> RayBatch:
        """The same batch on another device."""
        return changed(self, lambda value: value.to(device, non_blocking=True))

    def __getitem__(self, rows: slice | Tensor) -> RayBatch:
        return changed(self, lambda value: value[rows])


@dataclass
class PointBatch:
    """Points of B instances, N each, with what the field should say there.

    Attributes:
        instances: `[B]` int64, indices of the instances in the store.
        points: `[B, in, N]` field coordinates in [-1, 1], feature-major; an expanded view where all share them.
        targets: `[B, out, N]`.
        weights: `[B, N]`, of mean 1 for every instance, or None where all points weigh the same.
        cut: of solids, the distance that targets are cut at, in half cells: 1 where they only say which side is.
        share: see `RayBatch`.
    """

    instances: Tensor
    points: Tensor
    targets: Tensor
    weights: Tensor | None = None
    cut: float = 1.0
    share = WHOLE

    def to(self, device: torch.device | str) -> PointBatch:
        """The same batch on another device."""
        return changed(self, lambda value: value.to(device, non_blocking=True))

    def __getitem__(self, rows: slice | Tensor) -> PointBatch:
        return changed(self, lambda value: value[rows])


@dataclass(frozen=True)
class DeviceDraw:
    """How batches are drawn where the store lives on the device: by tensor operations alone, which can be recorded.

    Attributes:
        sampler: who draws them.
        together: batches of steps that follow each other, drawn at a time: draw n is that of the steps from
            `together * n` on.
        instances: int64 `[together, B]` of draw n, on the device.
        seed: of draw n.
        make: from those instances and a generator of that seed, the batch `[together * B]`.
    """

    sampler: Any
    together: int
    instances: Callable[[int], Tensor]
    seed: Callable[[int], int]
    make: Callable[[Tensor, torch.Generator], Any]

    def draw(self, number: int) -> Any:
        """Draw n."""
        instances = self.instances(number)
        return self.make(instances, torch.Generator(instances.device).manual_seed(self.seed(number)))


def changed(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor changed."""
    values = (getattr(batch, f.name) for f in fields(batch))
    made = type(batch)(*(change(value) if isinstance(value, Tensor) else value for value in values))
    return of_share(made, batch.share)


def of_share(batch: Batch, share: Share) -> Batch:
    """The batch, which is marked as that part of a larger one."""
    if share != WHOLE:
        batch.share = share
    return batch


def picked(batch: Batch, rows: Tensor) -> Batch:
    """Rows int64 `[K]` of a whole batch; what is random for them is what the whole batch would have drawn."""
    return of_share(batch[rows], PickedRows(rows=rows, count=len(batch.instances)))


def joined(batches: Sequence[RayBatch]) -> RayBatch:
    """Batches of as many rays per instance, one after the other."""
    return RayBatch(*(torch.cat([getattr(batch, f.name) for batch in batches]) for f in fields(RayBatch)))
