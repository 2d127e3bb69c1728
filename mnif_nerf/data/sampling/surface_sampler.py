"""Batches of points with signed distance and colour, grouped by instance, drawn from a packed store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.epochs import InstanceDraws
from mnif_nerf.data.sampling.prefetch import Prefetcher
from mnif_nerf.data.sampling.residence import expect_single_rows, fits
from mnif_nerf.data.sampling.resident_points import ResidentSurfaces, random_numbers
from mnif_nerf.data.stores.surface_store import SurfaceStore
from mnif_nerf.errors import MNIFError
from mnif_nerf.random import WHOLE, Share
from mnif_nerf.rendering.batch import DeviceDraw, PointBatch, of_share


@dataclass(frozen=True)
class KindShares:
    """Which share of a batch's points is of each kind (see `SurfacePoints`); they need not sum to 1.

    Attributes:
        uniform, wide, near, surface: 0 or more each.
    """

    uniform: float = 0.30
    wide: float = 0.25
    near: float = 0.45
    surface: float = 0.0

    def counts(self, points: int) -> tuple[int, int, int, int]:
        """How many of `points` are of each kind."""
        shares = np.array([self.uniform, self.wide, self.near, self.surface])
        ends = np.round(np.cumsum(shares) / shares.sum() * points).astype(int)
        uniform, wide, near, surface = np.diff(ends, prepend=0).tolist()
        return uniform, wide, near, surface


class SurfaceSampler:
    """Draws `PointBatch`es: points in field coordinates [-1, 1]; targets are colours in [0, 1], where the store has
    them, and, last, the signed distance in world units, positive outside.

    Args:
        store: one split.
        instances_per_step: B.
        points_per_instance: N; 0, or as many as the store has, takes all in order.
        device: where batches end up. The store itself stays in (memory-mapped) host memory until `reside`.
        seed: draws with the same seed and step are equal.
        shares: of the kinds of points.

    Raises:
        MNIFError: a batch larger than the data, or a setting that makes no sense.
    """

    def __init__(
        self,
        store: SurfaceStore,
        instances_per_step: int,
        points_per_instance: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        shares: KindShares = KindShares(),
    ) -> None:
        self._draws = InstanceDraws(store, instances_per_step, points_per_instance, seed)
        by_kind = (shares.uniform, shares.wide, shares.near, shares.surface)
        if min(by_kind) < 0 or sum(by_kind) <= 0:
            raise MNIFError(f"shares of points {by_kind}: must be 0 or more each, and one above 0.")
        for share, count, kind in zip(by_kind, store.counts.by_kind, ("uniform", "wide", "near", "surface")):
            if share > 0 and not count:
                raise MNIFError(f"{store.root}: has no {kind} points to draw; set their share to 0.")
        self.store = store
        self.instances_per_step, self.points_per_instance = instances_per_step, points_per_instance
        self.device = torch.device(device)
        self.shares = shares
        self._resident: ResidentSurfaces | None = None
        self._ahead: Prefetcher[PointBatch] | None = None

    def reside(self, resident: bool | None = None) -> SurfaceSampler:
        """Move the store to the device, see `PointSampler.reside`."""
        stored = ResidentSurfaces.stored(self.store)
        if fits(self.device, stored) if resident is None else resident:
            self._resident = ResidentSurfaces(self.store, self.device)
            self._draws.on(self.device)
            return self
        expect_single_rows(stored)
        return self.draw_ahead() if self.device.type == "cuda" else self

    def draw_ahead(self) -> SurfaceSampler:
        """See `PointSampler.draw_ahead`."""
        self._ahead = Prefetcher(self._on_host, self.device)
        return self

    def draw(self, step: int, share: Share = WHOLE) -> PointBatch:
        """The batch of training step `step` (0, 1, 2, ...), or a part of it: see `InstanceDraws.of_step`."""
        draw = self.device_draw(share)
        if draw is not None:
            batch: PointBatch = draw.draw(step)
            return batch
        return self._on_host(step, share).to(self.device) if self._ahead is None else self._ahead(step, share)

    def _on_host(self, step: int, share: Share) -> PointBatch:
        instances, generator = self._draws.of_step(step, share)
        if self._takes_all(self.points_per_instance):
            return of_share(self._all(instances), share)
        places = self._places(len(instances), self.points_per_instance, generator, share)
        return of_share(self._batch(instances, places), share)

    def device_draw(self, share: Share = WHOLE) -> DeviceDraw | None:
        """How `draw` does it on the device; None where the store lives elsewhere."""
        if self._resident is None:
            return None

        def make(instances: Tensor, generator: torch.Generator) -> PointBatch:
            return self._on_device(instances, self.points_per_instance, random_numbers([generator], share))

        return self._draws.on_device(share, make)

    def fixed(self, instances: Tensor, count: int, salt: int = 0) -> PointBatch:
        """Points that depend on the instance, the seed and `salt` only, never on the rest of the batch.

        Args:
            instances: `[B]` int64.
            count: N, with the meaning of `points_per_instance`.
            salt: other numbers give other points.
        """
        if self._resident is not None:
            numbers = list(self._draws.of_instances_on(self.device, instances, salt))
            return self._on_device(instances.to(self.device), count, random_numbers(numbers))
        instances = instances.cpu()
        if self._takes_all(count):
            return self._all(instances).to(self.device)
        generators = self._draws.of_instances(instances, salt)
        places = np.concatenate([self._places(1, count, each) for each in generators])
        return self._batch(instances, places).to(self.device)

    def _on_device(self, instances: Tensor, count: int, draw: Callable[..., Tensor]) -> PointBatch:
        assert self._resident is not None
        if self._takes_all(count):
            places = torch.arange(self.store.num_points, device=self.device).expand(len(instances), -1)
        else:
            places = self._resident.runs(draw, len(instances), self.shares.counts(count))
        return self._resident.batch(instances, places)

    def _takes_all(self, count: int) -> bool:
        return count == 0 or count >= self.store.num_points

    def _places(self, rows: int, count: int, generator: np.random.Generator, share: Share = WHOLE) -> np.ndarray:
        """Numbers of points int64 [rows, count], kind after kind.

        Within a kind they follow each other from a random one on: the store holds them in random order, and what lies
        together is read fast.
        """
        found, first = [], 0
        for stored, wanted in zip(self.store.counts.by_kind, self.shares.counts(count)):
            if wanted:
                start = share.draw(partial(generator.integers, 0, stored), (rows, 1))
                found.append(first + (start + np.arange(wanted)) % stored)
            first += stored
        return np.concatenate(found, axis=1)

    def _all(self, instances: Tensor) -> PointBatch:
        places = np.arange(self.store.num_points)
        return self._batch(instances, np.broadcast_to(places, (len(instances), len(places))))

    def _batch(self, instances: Tensor, places: np.ndarray) -> PointBatch:
        coordinates, targets = self.store.targets(instances.numpy(), places)
        return PointBatch(instances, torch.from_numpy(coordinates), torch.from_numpy(targets))
