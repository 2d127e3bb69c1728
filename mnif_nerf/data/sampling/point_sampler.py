"""Point batches grouped by instance, drawn from a packed store of voxel grids or pictures.

Points are centres of cells. Of a picture they are spread evenly over it. Of a shape, a share lies in the cells near
the surface, the others are spread over the whole grid: what a network gets wrong is the surface, and of a 64^3 car
only one cell in twenty-five lies near it. The loss of such a batch is not the mean over the grid; it weighs the surface
higher. With `reweight`, weights undo that: surface points and others then count as much as there are such cells.

Spread evenly means: the row of candidates is cut into as many equal stretches as points are wanted, and one place is
drawn from each. Every cell comes as often as any other, with less luck than in independent draws. The points of an
instance are therefore sorted, near ones first: a part of them is no fair sample.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.epochs import InstanceShuffle
from mnif_nerf.data.stores.grid_store import GridStore
from mnif_nerf.errors import MNIFError
from mnif_nerf.rendering.batch import PointBatch
from mnif_nerf.rendering.grids import cell_centres, cell_coordinates


class PointSampler:
    """Draws `PointBatch`es from a store.

    Args:
        store: one split of voxels or pictures.
        instances_per_step: B.
        points_per_instance: N; 0, or as many as there are cells, takes every cell in order.
        device: where batches end up. The store itself stays in (memory-mapped) host memory.
        seed: draws with the same seed and step are equal.
        surface_share: share of the points that are drawn from the cells near the surface; voxels only.
        reweight: give the points weights that make the weighted mean an unbiased estimate of the mean over all cells.
        jitter: draw the points of pictures anywhere within their pixels, with colours interpolated between the four
            pixels around (`draw` alone, not `fixed`). A field that is only ever asked at the centres swings freely
            in between, which shows at higher resolutions.

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
        surface_share: float = 0.5,
        reweight: bool = False,
        jitter: bool = False,
    ) -> None:
        if instances_per_step < 1 or points_per_instance < 0:
            raise MNIFError("instances per step must be at least 1, points per instance at least 0 (0 takes all).")
        if instances_per_step > store.num_instances:
            raise MNIFError(
                f"{store.root}: {instances_per_step} instances per step, but the {store.split} split has"
                f" {store.num_instances}; lower the instances per step to {store.num_instances} or less"
                f" (--pipeline.datamanager.instances-per-step {store.num_instances})."
            )
        if not 0 <= surface_share <= 1:
            raise MNIFError(f"surface share {surface_share}: must be between 0 and 1.")
        if reweight and surface_share == 1:
            raise MNIFError("a surface share of 1 leaves no other points to weigh; lower it or do not reweight.")
        self.store = store
        self.instances_per_step = instances_per_step
        self.points_per_instance = points_per_instance
        self.device = torch.device(device)
        self.seed = seed
        self.surface_share = surface_share if store.surface_cells is not None else 0.0
        self.reweight = reweight and self.surface_share > 0
        self.jitter = jitter and store.modality == "image"
        self._shuffle = InstanceShuffle(store.num_instances, seed)
        self._centres: Tensor | None = None

    def draw(self, step: int) -> PointBatch:
        """The batch of training step `step` (0, 1, 2, ...): a function of seed and step alone.

        Instances come from an endless shuffle (`InstanceShuffle`).
        """
        instances = self._shuffle.take(step * self.instances_per_step, self.instances_per_step)
        everything = self._takes_all(self.points_per_instance)
        if everything and not self.jitter:
            return self._all(instances)
        generator = np.random.default_rng([self.seed, 1, step])
        if everything:
            cells = np.broadcast_to(np.arange(self.store.num_cells), (len(instances), self.store.num_cells))
        else:
            cells = self._near(instances.numpy(), self.points_per_instance, generator)
        return self._jittered(instances, cells, generator) if self.jitter else self._batch(instances, cells)

    def fixed(self, instances: Tensor, points: int, salt: int = 0) -> PointBatch:
        """Points that depend on the instance, the seed and `salt` only, never on the rest of the batch.

        Args:
            instances: `[B]` int64.
            points: N, with the meaning of `points_per_instance`.
            salt: other numbers give other points.
        """
        instances = instances.cpu()
        if self._takes_all(points):
            return self._all(instances)
        drawn = []
        for instance in instances.numpy():
            generator = np.random.default_rng([self.seed, 2, salt, int(instance)])
            drawn.append(self._near(instance[None], points, generator))
        return self._batch(instances, np.concatenate(drawn))

    def _takes_all(self, points: int) -> bool:
        return points == 0 or points >= self.store.num_cells

    def _all(self, instances: Tensor) -> PointBatch:
        """Every cell, in order; the points are one expanded view."""
        if self._centres is None:
            self._centres = cell_centres(self.store.resolution, self.store.dims, self.device)
        targets = torch.from_numpy(self.store.all_targets(instances.numpy())).contiguous()
        centres = self._centres.expand(len(instances), -1, -1)
        return PointBatch(instances.to(self.device), centres, targets.to(self.device))

    def _near(self, instances: np.ndarray, points: int, generator: np.random.Generator) -> np.ndarray:
        """Cells int64 [B, points], those near the surface first."""
        near = self._num_near(points)
        uniform = _spread(generator, len(instances), points - near, self.store.num_cells)
        if not near:
            return uniform
        assert self.store.surface_cells is not None
        assert self.store.surface_offsets is not None
        first, end = self.store.surface_offsets[instances], self.store.surface_offsets[instances + 1]
        places = first[:, None] + _spread(generator, len(instances), near, (end - first)[:, None])
        return np.concatenate([self.store.surface_cells[places], uniform], axis=1, dtype=np.int64)

    def _num_near(self, points: int) -> int:
        return round(self.surface_share * points)

    def _batch(self, instances: Tensor, cells: np.ndarray) -> PointBatch:
        targets = torch.from_numpy(self.store.targets(instances.numpy(), cells))
        points = cell_coordinates(torch.from_numpy(cells), self.store.resolution, self.store.dims)
        weights = torch.from_numpy(self._weights(instances.numpy(), cells)) if self.reweight else None
        return PointBatch(instances, points, targets, weights).to(self.device)

    def _jittered(self, instances: Tensor, cells: np.ndarray, generator: np.random.Generator) -> PointBatch:
        """Points of pictures anywhere within the given pixels, and what lies there by bilinear interpolation."""
        size, rows = self.store.resolution, instances.numpy()
        pixel = np.stack([cells // size, cells % size])  # [2, B, N]
        place = pixel + generator.uniform(-0.5, 0.5, pixel.shape)
        low = np.floor(place)
        share, corner = (place - low).astype(np.float32), low.astype(np.int64)
        targets = np.zeros((len(rows), self.store.channels, cells.shape[1]), dtype=np.float32)
        for down in (0, 1):
            for right in (0, 1):
                row, column = np.clip(corner[0] + down, 0, size - 1), np.clip(corner[1] + right, 0, size - 1)
                weight = (share[0] if down else 1 - share[0]) * (share[1] if right else 1 - share[1])
                targets += weight[:, None] * self.store.targets(rows, row * size + column)
        points = ((place + 0.5) * (2.0 / size) - 1.0).transpose(1, 0, 2).astype(np.float32)
        return PointBatch(instances, torch.from_numpy(points), torch.from_numpy(targets)).to(self.device)

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


def _spread(generator: np.random.Generator, rows: int, points: int, candidates: int | np.ndarray) -> np.ndarray:
    """One place from each of `points` equal stretches of 0 ... candidates - 1: int64 [rows, points], sorted."""
    places = (np.arange(points) + generator.random((rows, points))) * (candidates / max(points, 1))
    return np.minimum(places.astype(np.int64), candidates - 1)
