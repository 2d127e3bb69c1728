"""Latents of voxel grids and pictures that a model was not trained on, its networks as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.grid_store import GridStore, store_of
from mnif_nerf.data.points import PointSampler
from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.encoding import encode
from mnif_nerf.latents.fitting import GRID_FIT_LR, FitConfig, fit, frozen
from mnif_nerf.latents.meta import MetaConfig, PointObjective

if TYPE_CHECKING:
    from mnif_nerf.pipelines.model_folder import StoredModel

DEFAULT_POINTS = 4096
_FIT_POINTS = 1024  # of each of a fit's many steps


def encode_grids(model: StoredModel, values: Sequence[np.ndarray], points: int | None = None) -> Tensor:
    """Latents `[K, D]` of K grids: by the inner loop where the model was meta-learned, else by a fit.

    Args:
        model: of voxels or images.
        values: voxels bool `[G, G, G]`, or pictures uint8 `[H, W, C]`, of any resolution but all of one.
        points: of each grid that the inner loop sees; 0 for all, None for as many as in training.

    Raises:
        MNIFError: a radiance model, grids of another kind or shape, an inner loop that diverges, or a model that is
            neither meta-learned nor has latents of training instances.
    """
    store = _checked_store(model, values)
    # Points as in training: which there are, and what they weigh, is part of the loss that is descended.
    share, reweight = model.training.get("surface_share", 0.5), model.training.get("reweight", False)
    points = int(model.training.get("encode_points", DEFAULT_POINTS)) if points is None else points
    sampler = PointSampler(store, 1, points, model.latents.device, surface_share=share, reweight=reweight)
    if model.adaptation["method"] == "meta-learning":
        assert model.rates is not None
        config = MetaConfig(int(model.adaptation["inner_steps"]), float(model.adaptation["inner_lr"]))
        return encode(
            lambda chosen: PointObjective(model.field, sampler.fixed(chosen, points)), len(values), model.rates, config
        )
    if not len(model.latents):
        raise MNIFError("this model came without the latents of training instances, which a fit starts from.")
    everyone = torch.arange(len(values))

    def loss(codes: Tensor, step: int) -> Tensor:
        return PointObjective(model.field, sampler.fixed(everyone, _FIT_POINTS, salt=step)).losses(codes)

    with frozen(model.field):
        return fit(loss, len(values), model.latents, FitConfig(lr=GRID_FIT_LR))


def _checked_store(model: StoredModel, values: Sequence[np.ndarray]) -> GridStore:
    if model.modality == "radiance":
        raise MNIFError("this model is of radiance fields; voxel grids and pictures fit models of voxels and images.")
    if not values:
        raise MNIFError("there is nothing to encode; give at least one grid or picture.")
    store = store_of(values, model.modality)
    if store.channels != model.field.spec.out_features:
        raise MNIFError(
            f"pictures of {store.channels} channels do not fit this model, which has {model.field.spec.out_features}."
        )
    return store
