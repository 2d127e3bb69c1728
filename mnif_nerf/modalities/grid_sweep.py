"""Voxels and pictures as a sweep over model sizes sees them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.point_sampler import PointSampler
from mnif_nerf.data.stores.grid_store import GridStore
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.modalities.grid_settings import GridDataSettings
from mnif_nerf.modalities.grid_training import GridData
from mnif_nerf.modalities.sweeping import SweepSplit
from mnif_nerf.rendering.batch import PointBatch
from mnif_nerf.rendering.grids import cell_coordinates

if TYPE_CHECKING:
    from mnif_nerf.modalities.base import Modality


class GridSplit(SweepSplit):
    """See `SweepSplit`."""

    store: GridStore

    def __init__(self, store: GridStore, kind: Modality) -> None:
        super().__init__(store, kind, store.shape)

    @property
    def grid(self) -> dict[str, Any]:
        """See `SweepSplit`."""
        return self.store.facts.to_dict()

    def first(self, count: int) -> GridSplit:
        """See `SweepSplit`."""
        return GridSplit(dataclasses.replace(self.store, names=self.store.names[:count]), self.kind)

    def data(self, instances_per_step: int, points: int, seed: int) -> GridData:
        """See `SweepSplit`."""
        data = GridData(GridDataSettings(instances_per_step=instances_per_step, points_per_instance=points), seed=seed)
        data.store = self.store
        return data

    def fixed(self, points: int, seed: int, salt: int) -> PointBatch:
        """See `SweepSplit`."""
        return PointSampler(self.store, len(self), points, seed=seed).fixed(torch.arange(len(self)), points, salt)

    def near(self, count: int, seed: int) -> Tensor:
        """Centres of cells; of shapes, of those beside a surface that some instance has."""
        if self.store.has_surface:
            cells = np.unique(np.concatenate([self.store.surface(index) for index in range(len(self))]))
        else:
            cells = np.arange(self.store.num_cells)
        order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:count]
        return cell_coordinates(torch.from_numpy(cells)[order].long(), self.shape)

    def scores(self, field: ModulatedField, latents: Tensor) -> dict[str, float]:
        """See `SweepSplit`: over all cells."""
        return self.kind.unit_scores(self.decode(field, latents), self.truth()[: len(latents)])

    def truth(self) -> Tensor:
        """See `SweepSplit`."""
        return 0.5 * (torch.from_numpy(self.store.all_targets(np.arange(len(self)))) + 1.0)

    def _content(self) -> np.ndarray:
        return self.store.packed[: len(self)]
