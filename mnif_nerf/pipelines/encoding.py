"""Latents of voxel grids, pictures and scenes that a model was not trained on, its networks as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.point_sampler import PointSampler
from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.sampling.views import UnseenViews, pictures_of
from mnif_nerf.data.stores.grid_store import GridStore, store_of
from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.encoding import GridAdaptation, latents_of_grids
from mnif_nerf.latents.meta import MetaConfig
from mnif_nerf.latents.scenes import latents_of_scenes
from mnif_nerf.rendering.radiance_losses import LossConfig

if TYPE_CHECKING:
    from mnif_nerf.pipelines.model_folder import StoredModel

DEFAULT_POINTS = 4096
# Of radiance fields: as in training's own evaluation.
_RAYS_PER_SCENE, _SAMPLES_PER_RAY = 128, 32


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
    instances = torch.arange(store.num_instances) if instances is None else instances
    return latents_of_grids(
        model.field, sampler, instances, GridAdaptation(_inner_loop(model), model.rates, model.latents, points)
    )


def encode_views(model: StoredModel, unseen: UnseenViews, fit_steps: int = 300) -> Tensor:
    """Latents `[K, D]` of scenes, from their conditioning views.

    Args:
        model: of radiance fields.
        unseen: the scenes; what is scored of them is not looked at.
        fit_steps: of a fit (auto-decoding).

    Raises:
        MNIFError: as `encode_store`.
    """
    # Without hulls: those were carved from the views to be scored as well.
    pictures: Any = pictures_of(unseen.conditioning, len(unseen.names))
    sampler = RayBatchSampler(pictures, len(unseen.names), _RAYS_PER_SCENE, device=model.latents.device)
    weights = {name: model.training[name] for name in ("mask_weight", "carve_weight") if name in model.training}
    losses, config = LossConfig(samples_per_ray=_SAMPLES_PER_RAY, **weights), _inner_loop(model)
    inner_loop = None
    if config is not None:
        assert model.rates is not None
        inner_loop = (config, model.rates)
    return latents_of_scenes(model.field, sampler, model.latents, losses, inner_loop, fit_steps)


def _inner_loop(model: StoredModel) -> MetaConfig | None:
    """Settings of the inner loop, or None where latents are fitted."""
    if model.adaptation["method"] == "meta-learning":
        return MetaConfig(int(model.adaptation["inner_steps"]), float(model.adaptation["inner_lr"]))
    if not len(model.latents):
        raise MNIFError("this model came without the latents of training instances, which a fit starts from.")
    return None


def _checked_store(model: StoredModel, values: Sequence[np.ndarray]) -> GridStore:
    if not model.kind.is_grid:
        raise MNIFError("this model is of radiance fields; voxel grids and pictures fit models of voxels and images.")
    if not values:
        raise MNIFError("there is nothing to encode; give at least one grid or picture.")
    store = store_of(values, model.modality)
    if store.channels != model.field.spec.out_features:
        raise MNIFError(
            f"pictures of {store.channels} channels do not fit this model, which has {model.field.spec.out_features}."
        )
    return store
