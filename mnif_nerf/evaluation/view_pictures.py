"""Pictures of radiance fields: views by the cameras of the reference scenes, compared as sets and one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.views import HELD_OUT_SPLITS, UnseenViews, evenly_spaced, open_unseen
from mnif_nerf.data.stores.scene_store import PackedStore
from mnif_nerf.evaluation.cache import digest_of_store
from mnif_nerf.evaluation.generated import (
    EvaluationContext,
    NoveltySets,
    PictureSet,
    picture_key,
    row_decoder,
    row_length,
)
from mnif_nerf.evaluation.protocols import Row
from mnif_nerf.objects.stored_views import orbit_images, render_objects
from mnif_nerf.pipelines.encoding import encode_views

# The orbit that objects are compared from one by one: elevation, then azimuths, degrees.
_ORBIT = (20.0, (45.0, 135.0, 225.0, 315.0))
_ORBIT_PIXELS = 64
_SAME_CAMERA = 0.02  # of the cameras' distance: how far two cameras may be apart and count as one


class ViewPictures:
    """See `mnif_nerf.evaluation.generated.Pictures`."""

    about = ""

    def __init__(self, context: EvaluationContext) -> None:
        self.context = context
        self.per_object = context.protocol.cameras

    def references(self) -> PictureSet:
        """`protocol.cameras` pictures of every reference scene."""
        stores = self._reference_stores()
        scenes = [(store, _view_rows(store, scene, self.per_object)) for store, scene in _scenes(stores)]
        return _stored(scenes, {"stores": [digest_of_store(store.folder) for store in stores]}, self.per_object)

    def training_is_yardstick(self) -> bool:
        """Whether pictures of training scenes were taken from where those of the reference scenes were.

        Pictures from elsewhere differ by the cameras more than by what they show, and are no yardstick.
        """
        positions = []
        for store in (self._training_store(), *self._reference_stores()):
            views = [view for scene in range(store.num_scenes) for view in _view_rows(store, scene, self.per_object)]
            positions.append(torch.from_numpy(np.array(store.poses[views])[:, :3, 3]))
        apart = torch.cdist(positions[0], torch.cat(positions[1:]))
        nearest = torch.cat([apart.min(dim=0).values, apart.min(dim=1).values])
        return bool(nearest.median() < _SAME_CAMERA * float(positions[0].norm(dim=1).median()))

    def of_row(self, row: Row, references: PictureSet) -> PictureSet:
        """`protocol.cameras` views of each object, by the cameras of the reference scenes in turn."""
        context = self.context
        if row.kind == "data":
            return self._training()
        key = picture_key(context, row, references)
        key["views"] = [digest_of_store(store.folder) for store in self._reference_stores()]
        cameras = self._reference_cameras()

        decode: Callable[[int], Any] = row_decoder(context, row)

        def several(objects: Sequence[int]) -> Iterator[Tensor]:
            seen = ((decode(k), cameras[k % len(cameras)]) for k in objects)
            for views in render_objects(seen, references.size):
                yield (255 * views.clamp(0, 1)).round().to(torch.uint8)

        size = references.size
        return PictureSet(row_length(context, row), self.per_object, size, lambda k: next(several([k])), key, several)

    def for_novelty(self, rows: list[Row], references: PictureSet) -> NoveltySets | None:
        """Renders from four fixed sides, where training and unseen instances are rendered from their latents."""
        context, pipe = self.context, self.context.target.pipe
        found = unseen_scenes(context)
        if found is None:
            return None
        names, known = found[0].names, pipe.names
        train = orbit_pictures(context, pipe.instance, "training views", len(known), context.key(orbit="training"))
        key = context.key(orbit="unseen", names=list(names), views=list(context.protocol.conditioning_views))
        latents = found[1]
        unseen = orbit_pictures(context, lambda k: pipe.decode(latents[k], names[k]), "unseen views", len(names), key)
        samples, count = {}, context.protocol.num_samples
        for row in rows:
            key, decode = context.key(orbit=row.name, count=count), row_decoder(context, row)
            samples[row.name] = orbit_pictures(context, decode, f"views: {row.label}", count, key)
        return NoveltySets(train, unseen, samples)

    def _training(self) -> PictureSet:
        store, protocol, scenes = self._training_store(), self.context.protocol, []
        for index in self.context.target.training_rows(protocol.num_samples):
            name = self.context.target.pipe.names[int(index)]
            if name in store.names:
                scenes.append((store, _view_rows(store, store.names.index(name), protocol.cameras)))
        key = {"stores": [digest_of_store(store.folder)], "count": protocol.num_samples}
        return _stored(scenes, key, protocol.cameras)

    def _training_store(self) -> PackedStore:
        """Held-out views, where there are some: their cameras go round as those of the unseen scenes do."""
        target = self.context.target
        return target.scenes(next((name for name in HELD_OUT_SPLITS if name in target.splits), "train"))

    def _reference_stores(self) -> list[PackedStore]:
        target = self.context.target
        return [target.scenes(split) for split in target.choose_splits(self.context.protocol.references)]

    def _reference_cameras(self) -> list[tuple[Tensor, Tensor]]:
        """Cameras of the pictures in `references`, for every reference scene: poses `[V, 4, 4]`, lenses `[V, 3]`."""
        cameras = []
        for store, scene in _scenes(self._reference_stores()):
            rows = _view_rows(store, scene, self.per_object)
            parts = (torch.from_numpy(np.array(part[rows])) for part in (store.poses, store.intrinsics))
            cameras.append((next(parts), next(parts)))
        return cameras


def _scenes(stores: list[PackedStore]) -> list[tuple[PackedStore, int]]:
    return [(store, scene) for store in stores for scene in range(store.num_scenes)]


def _stored(scenes: list[tuple[PackedStore, list[int]]], key: dict[str, object], per_object: int) -> PictureSet:
    """Stored views of scenes, read as they are asked for."""

    def of(k: int) -> Tensor:
        store, rows = scenes[k]
        return torch.from_numpy(np.array(store.images[rows]))

    size = (scenes[0][0].height, scenes[0][0].width)
    return PictureSet(len(scenes), per_object, size, of, {**key, "cameras": per_object})


def orbit_pictures(
    context: EvaluationContext, decode: Callable[[int], Any], title: str, count: int, key: dict[str, object]
) -> np.ndarray:
    """Objects from four sides: uint8 `[N, 4 * H * W * 3]`, the same cameras for all."""

    def views(own: Sequence[int], advance: Callable[[], None]) -> Iterator[np.ndarray]:
        for pictures in orbit_images(map(decode, own), *_ORBIT, _ORBIT_PIXELS):
            yield np.stack([np.asarray(picture) for picture in pictures]).reshape(-1)
            advance()

    def make() -> dict[str, np.ndarray]:
        return {"pixels": np.stack(context.share(title, range(count), views))}

    return context.cache.get("orbit", key, make)["pixels"]


def unseen_scenes(context: EvaluationContext) -> tuple[UnseenViews, Tensor] | None:
    """Unseen scenes of radiance fields and their found latents `[K, D]`; None where the data has none."""
    target, protocol = context.target, context.protocol
    split = next((name for name in ("test", "val") if name in target.splits), None)
    if split is None:
        return None
    counts = (protocol.unseen_instances, protocol.views_per_scene)
    unseen = open_unseen(target.data, split, *counts, protocol.conditioning_views, target.pipe.model.reading)
    key = context.key(
        split=split, count=protocol.unseen_instances, views=list(protocol.conditioning_views),
        store=digest_of_store(unseen.scored.store.folder),
    )  # fmt: skip

    def found(own: Sequence[int], advance: Callable[[], None]) -> Sequence[np.ndarray]:
        some = None if len(own) == len(unseen.names) else torch.tensor(own)
        latents = encode_views(target.pipe.model, unseen, some).cpu().numpy() if len(own) else []
        for _ in own:
            advance()
        return list(latents)

    def make() -> dict[str, np.ndarray]:
        title = "latents of unseen scenes"
        return {"latents": np.stack(context.share(title, range(len(unseen.names)), found))}

    latents = torch.from_numpy(context.cache.get("unseen", key, make)["latents"])
    return unseen, latents.to(target.pipe.latents.device)


def _view_rows(store: PackedStore, scene: int, count: int) -> list[int]:
    first, last = store.view_range(scene)
    return [int(view) for view in first + evenly_spaced(last - first, count)]
