"""Latents of grids, meshes' points and scenes that a model was not trained on, its networks as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.sampling.views import UnseenViews
from mnif_nerf.data.stores.grid_store import GridStore, store_of
from mnif_nerf.data.stores.surface_store import SurfaceStore
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.encoding import Encoder

if TYPE_CHECKING:
    from mnif_nerf.pipelines.model_folder import StoredModel


def encode_grids(model: StoredModel, values: Sequence[np.ndarray], points: int | None = None) -> Tensor:
    """Latents `[K, D]` of K grids: by the inner loop where the model was meta-learned, else by a fit.

    Args:
        model: a model of voxels or images.
        values: voxels bool `[G, G, G]`, or pictures uint8 `[H, W, C]` (of four channels, straight colours and alpha, as
            files have them), of any resolution but all of one.
        points: number of points of each grid that the inner loop sees; 0 for all, None for as many as in training.

    Raises:
        MNIFError: a model of neither, grids of another kind or shape, an inner loop that diverges, or a model that is
            neither meta-learned nor has latents of training instances.
    """
    return encode_store(model, _checked_store(model, values), points=points)


def encode_store(
    model: StoredModel, store: GridStore, instances: Tensor | None = None, points: int | None = None
) -> Tensor:
    """Latents `[K, D]` of instances of a store of grids, found as `encode_grids` does.

    Args:
        model: a model of voxels or images.
        store: a store of the same modality and channels.
        instances: `[K]` int64; all when None.
        points: as in `encode_grids`.

    Raises:
        MNIFError: an inner loop that diverges, or a model that is neither meta-learned nor has latents of training
            instances.
    """
    encoder = _encoder(model)
    if points is not None:
        encoder = replace(encoder, settings=replace(encoder.settings, encode_points=points))
    return encoder.grids(store, instances)


def encode_surfaces(model: StoredModel, store: SurfaceStore, instances: Tensor | None = None) -> Tensor:
    """Latents `[K, D]` of objects of a store of points with signed distances.

    Args:
        model: a model of signed distances.
        store: of the same channels.
        instances: `[K]` int64; all when None.

    Raises:
        MNIFError: as `encode_store`.
    """
    return _encoder(model).surfaces(store, instances)


def encode_instances(model: StoredModel, store: GridStore | SurfaceStore, instances: Tensor | None = None) -> Tensor:
    """`encode_store` or `encode_surfaces`, whichever the store is for."""
    if isinstance(store, SurfaceStore):
        return encode_surfaces(model, store, instances)
    return encode_store(model, store, instances)


def encode_views(model: StoredModel, unseen: UnseenViews, scenes: Tensor | None = None) -> Tensor:
    """Latents `[K, D]` of scenes, from their conditioning views; each is found for itself.

    Args:
        model: a model of radiance fields.
        unseen: the scenes; what is scored of them is not looked at.
        scenes: `[K]` int64, which of them; all when None.

    Raises:
        MNIFError: as `encode_store`.
    """
    return _encoder(model).views(unseen, scenes)


def _encoder(model: StoredModel) -> Encoder:
    if model.inner_loop is None and not len(model.latents):
        raise MNIFError("this model came without the latents of training instances, which a fit starts from.")
    return Encoder(model.field, model.latents, model.inner_loop, model.rates, model.encoding)


def _checked_store(model: StoredModel, values: Sequence[np.ndarray]) -> GridStore:
    if not model.kind.is_grid:
        raise MNIFError(
            f"this model is of {model.kind.card.what}, and `encode` takes voxel grids and pictures for models of "
            "those; use `fit` here, which takes meshes, voxels, point clouds and posed pictures."
        )
    if not values:
        raise MNIFError("there is nothing to encode; give at least one grid or picture.")
    grid = None if model.grid is None else GridFacts.from_dict(model.grid, model.field.spec.in_features)
    store = store_of([model.kind.as_stored(np.asarray(value)) for value in values], model.modality, grid)
    if store.channels != model.field.spec.out_features:
        raise MNIFError(
            f"pictures of {store.channels} channels do not fit this model, which has {model.field.spec.out_features}."
        )
    return store
