"""Points of grids and of meshes, drawn on the device that trains: what their samplers do by numpy elsewhere, but for
`stratified` and `near_places`, which serve both.

Nothing here makes a device wait. The random numbers are torch's, so the points are others than those of the host, of
the same distribution.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.residence import on_device
from mnif_nerf.data.stores.grid_distances import CUT
from mnif_nerf.random import WHOLE, Share
from mnif_nerf.rendering.batch import PointBatch

if TYPE_CHECKING:
    from mnif_nerf.data.stores.grid_distances import GridDistances
    from mnif_nerf.data.stores.grid_store import GridStore
    from mnif_nerf.data.stores.shards import Rows
    from mnif_nerf.data.stores.surface_store import SurfaceStore

_FEWER_INSIDE = 2.0  # of the cells near a surface, so many times as many are drawn outside as inside at most


def random_numbers(generators: Sequence[torch.Generator], share: Share = WHOLE) -> Callable[..., Tensor]:
    """A function that draws numbers in [0, 1) of a shape, float64 `[..., B, N]`.

    Args:
        generators: one for a whole batch, or one for each of its rows.
        share: the part of the batch that is drawn.
    """

    def draw(*shape: int) -> Tensor:
        rows = shape[-2] // len(generators)
        own = (*shape[:-2], rows, shape[-1])
        # Single precision would leave gaps between the cells of large grids.
        makes = (partial(torch.rand, generator=g, device=g.device, dtype=torch.float64) for g in generators)
        return torch.cat([share.draw(make, own, axis=len(own) - 2) for make in makes], dim=-2)

    return draw


def stratified(within: Tensor, candidates: int) -> Tensor:
    """One place from each of N equal stretches of 0 ... candidates - 1: int64 `[B, N]`, sorted.

    Args:
        within: `[B, N]` in [0, 1), where in its stretch each is.
        candidates: how many there are.
    """
    points = within.shape[-1]
    places = (torch.arange(points, device=within.device) + within) * (candidates / max(points, 1))
    return places.long().clamp(max=candidates - 1)


def near_places(offsets: Tensor, instances: Tensor, within: Tensor, as_they_come: bool) -> Tensor:
    """Where cells near the surface stand in a store, one from each of N equal stretches: int64 `[B, N]`, those inside
    first.

    Args:
        offsets: the store's `surface_offsets`.
        instances: `[B]`.
        within: float64 `[B, N]` in [0, 1), where in its stretch each is.
        as_they_come: whether all are drawn equally often, however few are inside.
    """
    first, middle, end = (offsets[2 * instances + part, None] for part in range(3))
    inside, outside = (middle - first).double(), (end - middle).double()
    often = (outside / inside.clamp(min=1) / _FEWER_INSIDE).clamp(min=1)
    often = torch.ones_like(often) if as_they_come else often
    count = within.shape[1]
    place = (torch.arange(count, device=within.device) + within) * ((often * inside + outside) / count)
    place = torch.where(place < often * inside, place / often, place - (often - 1) * inside)
    return (first + torch.minimum(place.long(), end - first - 1)).clamp(min=0)


class ResidentGrids:
    """A store of grids on a device.

    Args:
        store: the store.
        distances: of its solids, where those are the targets.
        device: where it lives.
    """

    def __init__(self, store: GridStore, distances: GridDistances | None, device: torch.device) -> None:
        self.store, self.device = store, device
        packed = store.packed if distances is None else distances.packed
        self._values = on_device(packed, device).view(store.num_instances, -1)
        self._distances = distances is not None
        if store.surface_cells is not None and store.surface_offsets is not None:
            self._offsets = torch.from_numpy(store.surface_offsets.astype(np.int64)).to(device)
            self._surface = on_device(store.surface_cells, device)

    @staticmethod
    def stored(store: GridStore, distances: GridDistances | None) -> list[Rows]:
        """What has to fit on a device."""
        packed = store.packed if distances is None else distances.packed
        return [packed, *([] if store.surface_cells is None else [store.surface_cells])]

    def values(self, instances: Tensor, cells: Tensor) -> Tensor:
        """What a store's `targets` are, or distances in cells: float32 `[B, C, N]`.

        Args:
            instances: `[B]`.
            cells: `[B, N]`.
        """
        rows = instances[:, None]
        if self._distances:
            return self._values[rows, cells][:, None].float() * (CUT / 127)
        facts, kind = self.store.facts, self.store.values_kind
        if kind == "bits":
            bits = (self._values[rows, cells >> 3] >> (cells & 7).to(torch.uint8)) & 1
            return 2.0 * bits[:, None].float() - 1.0
        found = self._values.view(len(self._values), -1, self.store.channels)[rows, cells].transpose(1, 2).float()
        if kind == "bytes":
            return found * (2.0 / 255.0) - 1.0
        return (found - facts.low) * (2.0 / (facts.high - facts.low)) - 1.0

    def between(self, instances: Tensor, cells: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Points within cells and the values there by multilinear interpolation: float32 `[B, n, N]` and `[B, C, N]`.

        Args:
            instances: `[B]`.
            cells: `[B, N]`.
            moved: `[n, B, N]` in [-0.5, 0.5), cells from the centre.
        """
        shape, targets = self.store.shape, torch.zeros((), device=self.device)
        axes = []
        for axis in range(len(shape)):
            axes.append(cells // math.prod(shape[axis + 1 :]) % shape[axis] + moved[axis])
        low = [place.floor() for place in axes]
        above = [(place - below).float() for place, below in zip(axes, low)]
        for ahead in itertools.product((0, 1), repeat=len(shape)):
            beside, weight = torch.zeros_like(cells), torch.ones_like(above[0])
            for axis, up in enumerate(ahead):
                beside = beside * shape[axis] + (low[axis].long() + up).clamp(0, shape[axis] - 1)
                weight = weight * (above[axis] if up else 1 - above[axis])
            targets = targets + weight[:, None] * self.values(instances, beside)
        longest = max(shape)
        points = [((p + 0.5) * (2.0 / longest) - size / longest).float() for p, size in zip(axes, shape)]
        return torch.stack(points, dim=1), targets

    def near(self, instances: Tensor, within: Tensor, as_they_come: bool) -> Tensor:
        """Cells near the surface int64 `[B, N]`; see `near_places`."""
        return self._surface[near_places(self._offsets, instances, within, as_they_come)].long()

    @functools.cached_property
    def _keys(self) -> Tensor:
        """Number of each cell near a surface, counted over all instances, and sorted, so that one search is enough."""
        parts = torch.arange(len(self._offsets) - 1, device=self.device) // 2
        owner = parts.repeat_interleave(self._offsets.diff(), output_size=len(self._surface))
        return (owner * self.store.num_cells + self._surface).sort().values

    def weights(self, instances: Tensor, cells: Tensor, near: int) -> Tensor:
        """float32 `[B, N]` of mean 1; see `PointSampler`. The first `near` cells were drawn near the surface."""
        keys = instances[:, None] * self.store.num_cells + cells
        place = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        is_near = self._keys[place] == keys
        is_near[:, :near] = True
        count, drawn = cells.shape[1], is_near.sum(dim=1, keepdim=True).float()
        share = (self._offsets[2 * instances + 2] - self._offsets[2 * instances])[:, None] / self.store.num_cells
        weights = torch.where(is_near, share * count / drawn, (1 - share) * count / (count - drawn))
        return torch.where((drawn > 0) & (drawn < count), weights, torch.ones_like(weights)).float()


class ResidentSurfaces:
    """A store of points of meshes on a device.

    Args:
        store: the store.
        device: where it lives.
    """

    def __init__(self, store: SurfaceStore, device: torch.device) -> None:
        self.store, self.device = store, device
        self._places, self._distances, *colors = (on_device(each, device) for each in self.stored(store))
        self._colors = colors[0] if colors else None

    @staticmethod
    def stored(store: SurfaceStore) -> list[Rows]:
        """Places (as int16, for torch does little with uint16), distances and, where there are some, colours."""
        return [store.places.view(np.int16), store.distances, *([] if store.colors is None else [store.colors])]

    def batch(self, instances: Tensor, places: Tensor) -> PointBatch:
        """Points number `places` `[B, N]` of instances `[B]`; see `SurfaceStore.targets`."""
        rows = instances[:, None]
        lattice = self._places[rows, places].transpose(1, 2).int() & 0xFFFF
        targets = [self._distances[rows, places].float()[:, None]]
        if self._colors is not None:
            targets.insert(0, self._colors[rows, places].transpose(1, 2).float() * (1 / 255))
        return PointBatch(instances, lattice.float() * (2 / 65535) - 1.0, torch.cat(targets, dim=1))

    def runs(self, draw: Callable[..., Tensor], rows: int, counts: Sequence[int]) -> Tensor:
        """Numbers of points int64 `[B, N]`, so many of each kind, which follow each other from a random one on."""
        found, first = [], 0
        for stored, wanted in zip(self.store.counts.by_kind, counts):
            if wanted:
                start = (draw(rows, 1) * stored).long()
                found.append(first + (start + torch.arange(wanted, device=self.device)) % stored)
            first += stored
        return torch.cat(found, dim=1)
