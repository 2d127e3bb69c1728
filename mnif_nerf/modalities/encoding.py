"""Latents of instances that a model was not trained on: the one way that training's evaluation, mnif-eval, the
Python API and fits go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.data.sampling.point_sampler import PointChoice, PointSampler
from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.sampling.surface_sampler import KindShares, SurfaceSampler
from mnif_nerf.data.sampling.views import UnseenViews, pictures_of
from mnif_nerf.data.stores.grid_store import GridStore
from mnif_nerf.data.stores.surface_store import SurfaceStore
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.latents.encoding import GridAdaptation, latents_of_grids
from mnif_nerf.latents.encoding_settings import EncodingSettings
from mnif_nerf.latents.meta import MetaConfig
from mnif_nerf.latents.scenes import latents_of_scenes


@dataclass(frozen=True)
class Encoder:
    """A trained field, frozen, and how latents are found for it.

    Attributes:
        field: with its networks as they are.
        training_latents: `[N, D]`, where a fit starts and what regularises it.
        meta: settings of the inner loop; None fits (auto-decoding).
        rates: `[D]`, of the inner loop.
        settings: points, rays, steps and weights.
    """

    field: ModulatedField
    training_latents: Tensor
    meta: MetaConfig | None
    rates: Tensor | None
    settings: EncodingSettings

    def grids(self, store: GridStore, instances: Tensor | None = None) -> Tensor:
        """Latents `[K, D]` of instances `[K]` int64 of a store; of all where None.

        Raises:
            MNIFError: the inner loop or the fit diverged.
        """
        settings = self.settings
        # Points as in training: which there are, and what they weigh, is part of the loss that is descended.
        choice = PointChoice(
            settings.surface_share, settings.reweight, settings.jitter, settings.cut_cells, settings.unit_cells
        )
        sampler = PointSampler(store, 1, settings.encode_points, self.training_latents.device, choice=choice)
        instances = torch.arange(store.num_instances) if instances is None else instances
        how = GridAdaptation(self.meta, self.rates, self.training_latents, settings)
        return latents_of_grids(self.field, sampler, instances, how)

    def surfaces(self, store: SurfaceStore, instances: Tensor | None = None) -> Tensor:
        """Latents `[K, D]` of objects `[K]` int64 of a store of surfaces; of all where None.

        Raises:
            MNIFError: the inner loop or the fit diverged.
        """
        settings = self.settings
        shares = KindShares(settings.uniform_share, settings.wide_share, settings.near_share, settings.on_surface_share)
        sampler = SurfaceSampler(store, 1, settings.encode_points, self.training_latents.device, shares=shares)
        instances = torch.arange(store.num_instances) if instances is None else instances
        how = GridAdaptation(self.meta, self.rates, self.training_latents, settings)
        return latents_of_grids(self.field, sampler, instances, how)

    def views(self, unseen: UnseenViews, scenes: Tensor | None = None) -> Tensor:
        """Latents `[K, D]` of scenes `[K]` int64, of all where None, from their conditioning views; the views to be
        scored are not looked at.

        Raises:
            MNIFError: the inner loop or the fit diverged.
        """
        # Without hulls: those were carved from the views to be scored as well.
        pictures: Any = pictures_of(unseen.conditioning, len(unseen.names))
        device, rays = self.training_latents.device, self.settings.fit_rays_per_scene
        sampler = RayBatchSampler(pictures, len(unseen.names), rays, device=device)
        inner_loop = None
        if self.meta is not None:
            assert self.rates is not None
            inner_loop = (self.meta, self.rates)
        return latents_of_scenes(self.field, sampler, self.training_latents, self.settings, inner_loop, scenes)
