"""Points of meshes as a sweep over model sizes sees them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.geometry.point_cells import cells_of_points
from mnif_nerf.data.geometry.surface_points import HALF_EXTENT, from_lattice
from mnif_nerf.data.sampling.surface_sampler import KindShares, SurfaceSampler
from mnif_nerf.data.stores.surface_store import SurfaceStore
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.metrics.surfaces import surface_scores
from mnif_nerf.modalities.sdf_settings import SurfaceDataSettings
from mnif_nerf.modalities.sdf_training import SurfaceData
from mnif_nerf.modalities.sweeping import SweepSplit
from mnif_nerf.modalities.training import means
from mnif_nerf.rendering.batch import PointBatch

if TYPE_CHECKING:
    from mnif_nerf.modalities.base import Modality


class SurfaceSplit(SweepSplit):
    """See `SweepSplit`.

    Args:
        store: points of meshes.
        kind: their modality.
        resolution: of the grid that sets are compared on.
    """

    store: SurfaceStore

    def __init__(self, store: SurfaceStore, kind: Modality, resolution: int) -> None:
        super().__init__(store, kind, (resolution,) * 3)

    @property
    def facts(self) -> dict[str, Any]:
        """See `SweepSplit`; with the points of an instance."""
        return {**super().facts, "points": self.store.num_points}

    @property
    def grid(self) -> dict[str, Any]:
        """See `SweepSplit`."""
        return {"channels": self.store.channels}

    def first(self, count: int) -> SurfaceSplit:
        """See `SweepSplit`."""
        store = dataclasses.replace(self.store, names=self.store.names[:count])
        return SurfaceSplit(store, self.kind, self.shape[0])

    def data(self, instances_per_step: int, points: int, seed: int) -> SurfaceData:
        """See `SweepSplit`."""
        settings = SurfaceDataSettings(instances_per_step=instances_per_step, points_per_instance=points)
        data = SurfaceData(settings, seed=seed)
        data.store = self.store
        return data

    def fixed(self, points: int, seed: int, salt: int) -> PointBatch:
        """See `SweepSplit`: of all kinds, as in training."""
        usual = SurfaceDataSettings()
        shares = KindShares(usual.uniform_share, usual.wide_share, usual.near_share, usual.on_surface_share)
        sampler = SurfaceSampler(self.store, len(self), points, seed=seed, shares=shares)
        return sampler.fixed(torch.arange(len(self)), points, salt)

    def near(self, count: int, seed: int) -> Tensor:
        """Points on the surfaces of random instances."""
        generator = np.random.default_rng(seed)
        instances = generator.integers(len(self), size=count)
        on_surface = generator.integers(self.store.counts.surface, size=count)
        places = self.store.places[instances, self.store.num_points - self.store.counts.surface + on_surface]
        return torch.from_numpy(np.ascontiguousarray(from_lattice(places).T / np.float32(HALF_EXTENT)))

    def scores(self, field: ModulatedField, latents: Tensor) -> dict[str, float]:
        """See `SweepSplit`: at the points, as a training's evaluation has them."""
        fields = (field.collapse(latent) for latent in latents)
        return means([surface_scores(compact, self.store.points(index)) for index, compact in enumerate(fields)])

    def truth(self) -> Tensor:
        """See `SweepSplit`: 1 where the centre of a cell is inside."""
        cells = [cells_of_points(self.store.points(index), self.shape[0]).reshape(1, -1) for index in range(len(self))]
        return torch.from_numpy(np.stack(cells)).float()

    def _content(self) -> np.ndarray:
        return self.store.distances[: len(self)]
