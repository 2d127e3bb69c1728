"""Point batches grouped by instance, drawn from a packed store of grids.

Points are centres of cells. Where a store knows the cells near surfaces, a share of the points lies in those: a
network gets the surface wrong, and only one cell in twenty-five of a 64^3 car lies near it. At least a third of them
are inside: around a leg that is one cell thick few near cells are, and networks would rather leave it out. The loss of
such a batch is not the mean over the grid; it weighs the surface, and thin parts, higher. With `reweight` near cells
are drawn as they come, and weights undo the share: surface points and others then count as much as there are such
cells. All other points are drawn over the whole grid.

Sampling is stratified: the row of candidates is cut into as many equal strata as points are wanted, and one cell is
drawn from each. The points of an instance are therefore sorted, near ones first, and a prefix is biased towards near
points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.epochs import InstanceDraws
from mnif_nerf.data.sampling.prefetch import Prefetcher
from mnif_nerf.data.sampling.residence import expect_single_rows, fits
from mnif_nerf.data.sampling.resident_points import ResidentGrids, near_places, random_numbers, stratified
from mnif_nerf.data.stores.grid_distances import CUT, GridDistances
from mnif_nerf.data.stores.grid_store import GridStore
from mnif_nerf.errors import MNIFError
from mnif_nerf.random import WHOLE, Share
from mnif_nerf.rendering.batch import DeviceDraw, PointBatch, of_share
from mnif_nerf.rendering.grids import cell_centres, cell_coordinates


@dataclass(frozen=True)
class PointChoice:
    """How the points of an instance are chosen.

    Attributes:
        surface_share: share of the points that are drawn from the cells near the surface, where there are such.
        reweight: give the points weights that make the weighted mean an unbiased estimate of the mean over all cells.
        jitter: draw points anywhere within their cells, with values interpolated between the cells around (`draw`
            alone, not `fixed`; not for cells that are just inside or not). A field that is only ever trained at the
            centres is sharper there; in between, its sine frequency alone keeps it from swinging.
        cut_cells: of solids: targets are signed distances in half cells, cut at this many cells (0.5 to 4). Half a
            cell leaves -1 outside and +1 inside.
        unit_cells: cells along the longest edge of the grid whose cells are meant, which a field was trained on; 0 for
            the store's own.
    """

    surface_share: float = 0.5
    reweight: bool = False
    jitter: bool = False
    cut_cells: float = 0.5
    unit_cells: int = 0


class PointSampler:
    """Draws `PointBatch`es from a store.

    Args:
        store: one split of grids.
        instances_per_step: B.
        points_per_instance: N; 0, or as many as there are cells, takes every cell in order.
        device: where batches end up. The store itself stays in (memory-mapped) host memory until `reside`.
        seed: draws with the same seed and step are equal.
        choice: how points are chosen.

    Raises:
        MNIFError: a batch larger than the data, or a setting that makes no sense.
    """

    def __init__(
        self,
        store: GridStore,
        instances_per_step: int,
        points_per_instance: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        choice: PointChoice = PointChoice(),
    ) -> None:
        surface_share = choice.surface_share
        self._draws = InstanceDraws(store, instances_per_step, points_per_instance, seed)
        if not 0 <= surface_share <= 1:
            raise MNIFError(f"surface share {surface_share}: must be between 0 and 1.")
        if choice.reweight and surface_share == 1:
            raise MNIFError("a surface share of 1 leaves no other points to weigh; lower it or do not reweight.")
        if not 0.5 <= choice.cut_cells <= CUT:
            raise MNIFError(f"cut_cells {choice.cut_cells}: must be between half a cell and {CUT:g} cells.")
        self.store = store
        solids = store.values_kind == "bits" and choice.cut_cells > 0.5
        self._unit = 2 * (choice.unit_cells or store.resolution) / store.resolution  # half cells in one of the store's
        self.cut = min(2 * choice.cut_cells, CUT * self._unit) if solids else 1.0
        self._distances = GridDistances(store) if solids else None
        self.instances_per_step = instances_per_step
        self.points_per_instance = points_per_instance
        self.device = torch.device(device)
        self.surface_share = surface_share if store.has_surface else 0.0
        self.reweight = choice.reweight and self.surface_share > 0
        self.jitter = choice.jitter and store.values_kind != "bits"
        self._centres: Tensor | None = None
        self._resident: ResidentGrids | None = None
        self._ahead: Prefetcher[PointBatch] | None = None

    def reside(self, resident: bool | None = None) -> PointSampler:
        """Move the store to the device, where all is drawn from now on, and nothing makes the device wait.

        The points are others then, of the same distribution.

        Args:
            resident: whether to; None asks if it fits.

        Returns:
            this sampler.
        """
        stored = ResidentGrids.stored(self.store, self._distances)
        if fits(self.device, stored) if resident is None else resident:
            self._resident = ResidentGrids(self.store, self._distances, self.device)
            self._draws.on(self.device)
            return self
        expect_single_rows(stored)
        return self.draw_ahead() if self.device.type == "cuda" else self

    def draw_ahead(self) -> PointSampler:
        """Draw the same batches in background threads from now on, before they are asked for (`Prefetcher`)."""
        self._all_centres(0)  # which all threads share
        self._ahead = Prefetcher(self._on_host, self.device)
        return self

    def draw(self, step: int, share: Share = WHOLE) -> PointBatch:
        """The batch of training step `step` (0, 1, 2, ...), or a part of it: see `InstanceDraws.of_step`."""
        draw = self.device_draw(share)
        if draw is not None:
            batch: PointBatch = draw.draw(step)
            return batch
        return self._on_host(step, share).to(self.device) if self._ahead is None else self._ahead(step, share)

    def device_draw(self, share: Share = WHOLE) -> DeviceDraw | None:
        """How `draw` does it on the device; None where the store lives elsewhere."""
        if self._resident is None:
            return None

        def make(instances: Tensor, generator: torch.Generator) -> PointBatch:
            numbers = random_numbers([generator], share)
            return self._on_device(instances, self.points_per_instance, numbers, self.jitter)

        return self._draws.on_device(share, make)

    def _on_host(self, step: int, share: Share) -> PointBatch:
        return of_share(self._of_step(step, share), share)

    def _of_step(self, step: int, share: Share) -> PointBatch:
        """The batch of a step in host memory, but for centres that all instances share."""
        instances, generator = self._draws.of_step(step, share)
        everything = self._takes_all(self.points_per_instance)
        if everything and not self.jitter:
            return self._all(instances)
        if everything:
            cells = np.broadcast_to(np.arange(self.store.num_cells), (len(instances), self.store.num_cells))
        else:
            cells = self._near(instances.numpy(), self.points_per_instance, generator, share)
        return self._jittered(instances, cells, generator, share) if self.jitter else self._batch(instances, cells)

    def fixed(self, instances: Tensor, points: int, salt: int = 0) -> PointBatch:
        """Points that depend on the instance, the seed and `salt` only, never on the rest of the batch.

        Args:
            instances: `[B]` int64.
            points: N, with the meaning of `points_per_instance`.
            salt: other numbers give other points.
        """
        if self._resident is not None:
            numbers = list(self._draws.of_instances_on(self.device, instances, salt))
            return self._on_device(instances.to(self.device), points, random_numbers(numbers), jitter=False)
        instances = instances.cpu()
        if self._takes_all(points):
            return self._all(instances).to(self.device)
        drawn = []
        for instance, generator in zip(instances.numpy(), self._draws.of_instances(instances, salt)):
            drawn.append(self._near(instance[None], points, generator))
        return self._batch(instances, np.concatenate(drawn)).to(self.device)

    def _on_device(self, instances: Tensor, points: int, draw: Callable[..., Tensor], jitter: bool) -> PointBatch:
        """What the methods below do by numpy, where the store lives on the device."""
        store, everything = self._resident, self._takes_all(points)
        assert store is not None
        near = 0 if everything else self._num_near(points)
        if everything:
            cells = torch.arange(self.store.num_cells, device=self.device).expand(len(instances), -1)
        else:
            cells = stratified(draw(len(instances), points - near), self.store.num_cells)
            if near:
                close = store.near(instances, draw(len(instances), near), as_they_come=self.reweight)
                cells = torch.cat([close, cells], dim=1)
        if jitter:
            moved = draw(len(self.store.shape), *cells.shape) - 0.5
            return PointBatch(instances, *store.between(instances, cells, moved))
        targets = store.values(instances, cells)
        if self._distances is not None:
            targets = (self._unit * targets).clamp(-self.cut, self.cut)
        where = self._all_centres(len(instances)) if everything else cell_coordinates(cells, self.store.shape)
        weights = store.weights(instances, cells, near) if self.reweight and not everything else None
        return PointBatch(instances, where, targets, weights, self.cut)

    def _takes_all(self, points: int) -> bool:
        return points == 0 or points >= self.store.num_cells

    def _all(self, instances: Tensor) -> PointBatch:
        """Every cell, in order; the points are one expanded view."""
        targets = torch.from_numpy(self._targets(instances.numpy())).contiguous()
        centres = self._all_centres(len(instances))
        return PointBatch(instances, centres, targets, cut=self.cut)

    def _all_centres(self, count: int) -> Tensor:
        if self._centres is None:
            self._centres = cell_centres(self.store.shape, self.device)
        return self._centres.expand(count, -1, -1)

    def _targets(self, instances: np.ndarray, cells: np.ndarray | None = None) -> np.ndarray:
        """What the field should say at cells [B, N], or at all: float32 [B, C, N]."""
        if self._distances is None:
            return self.store.all_targets(instances) if cells is None else self.store.targets(instances, cells)
        known = self._distances.everywhere(instances) if cells is None else self._distances.at(instances, cells)
        return np.clip(np.float32(self._unit) * known, -self.cut, self.cut)

    def _near(
        self, instances: np.ndarray, points: int, generator: np.random.Generator, share: Share = WHOLE
    ) -> np.ndarray:
        """Cells int64 [B, points], those near the surface first."""
        near = self._num_near(points)
        draw = partial(share.draw, generator.random)
        within = torch.from_numpy(draw((len(instances), points - near)))
        uniform: np.ndarray = stratified(within, self.store.num_cells).numpy()
        if not near:
            return uniform
        assert self.store.surface_cells is not None
        assert self.store.surface_offsets is not None
        offsets, within = (
            torch.from_numpy(each) for each in (self.store.surface_offsets, draw((len(instances), near)))
        )
        places = near_places(offsets, torch.from_numpy(instances), within, as_they_come=self.reweight)
        return np.concatenate([self.store.surface_cells[places.numpy()], uniform], axis=1, dtype=np.int64)

    def _num_near(self, points: int) -> int:
        return round(self.surface_share * points)

    def _batch(self, instances: Tensor, cells: np.ndarray) -> PointBatch:
        targets = torch.from_numpy(self._targets(instances.numpy(), cells))
        points = cell_coordinates(torch.from_numpy(cells), self.store.shape)
        weights = torch.from_numpy(self._weights(instances.numpy(), cells)) if self.reweight else None
        return PointBatch(instances, points, targets, weights, self.cut)

    def _jittered(
        self, instances: Tensor, cells: np.ndarray, generator: np.random.Generator, share: Share
    ) -> PointBatch:
        """Points anywhere within the given cells, and the values there by multilinear interpolation."""
        shape, rows = self.store.shape, instances.numpy()
        size = np.array(shape).reshape(-1, 1, 1)
        moved = share.draw(partial(generator.uniform, -0.5, 0.5), (len(shape), *cells.shape), axis=1)
        place = np.stack(np.unravel_index(cells, shape)) + moved
        low = np.floor(place)
        above, corner = (place - low).astype(np.float32), low.astype(np.int64)
        targets = np.zeros((len(rows), self.store.channels, cells.shape[1]), dtype=np.float32)
        for ahead in itertools.product((0, 1), repeat=len(shape)):
            beside = np.clip(corner + np.array(ahead).reshape(-1, 1, 1), 0, size - 1)
            weight = math.prod(above[axis] if up else 1 - above[axis] for axis, up in enumerate(ahead))
            targets += weight[:, None] * self.store.targets(
                rows, np.asarray(np.ravel_multi_index(tuple(beside), shape))
            )
        longest = max(shape)
        points = ((place + 0.5) * (2.0 / longest) - size / longest).transpose(1, 0, 2).astype(np.float32)
        return PointBatch(instances, torch.from_numpy(points), torch.from_numpy(targets))

    def _weights(self, instances: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """float32 [B, N] of mean 1: the points of each kind, near or not, share what the cells of that kind weigh."""
        total, count = self.store.num_cells, cells.shape[1]
        is_near = np.ones(cells.shape, dtype=bool)
        first = self._num_near(count)
        weights = np.ones(cells.shape, dtype=np.float32)
        for row, instance in enumerate(instances):
            surface = self.store.surface(int(instance))
            others = cells[row, first:]
            place = np.minimum(np.searchsorted(surface, others), len(surface) - 1)
            is_near[row, first:] = surface[place] == others
            drawn, share = int(is_near[row].sum()), len(surface) / total
            if 0 < drawn < count:
                weights[row] = np.where(is_near[row], share * count / drawn, (1 - share) * count / (count - drawn))
        return weights
