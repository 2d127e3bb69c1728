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
from mnif_nerf.latents.encoding import GridAdaptation, latents_of_grids
from mnif_nerf.latents.meta import MetaConfig

if TYPE_CHECKING:
    from mnif_nerf.pipelines.model_folder import StoredModel

DEFAULT_POINTS = 4096


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
    return encode_store(model, _checked_store(model, values), points=points)


def encode_store(
    model: StoredModel, store: GridStore, instances: Tensor | None = None, points: int | None = None
) -> Tensor:
    """Latents `[K, D]` of instances of a store of grids, found as `encode_grids` does.

    Args:
        model: of voxels or images.
        store: of the same modality and channels.
        instances: `[K]` int64; all when None.
        points: as in `encode_grids`.

    Raises:
        MNIFError: an inner loop that diverges, or a model that is neither meta-learned nor has latents of training
            instances.
    """
    # Points as in training: which there are, and what they weigh, is part of the loss that is descended.
    share, reweight = model.training.get("surface_share", 0.5), model.training.get("reweight", False)
    points = int(model.training.get("encode_points", DEFAULT_POINTS)) if points is None else points
    sampler = PointSampler(store, 1, points, model.latents.device, surface_share=share, reweight=reweight)
    meta = None
    if model.adaptation["method"] == "meta-learning":
        meta = MetaConfig(int(model.adaptation["inner_steps"]), float(model.adaptation["inner_lr"]))
    elif not len(model.latents):
        raise MNIFError("this model came without the latents of training instances, which a fit starts from.")
    instances = torch.arange(store.num_instances) if instances is None else instances
    return latents_of_grids(model.field, sampler, instances, GridAdaptation(meta, model.rates, model.latents, points))


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
