"""What stands on every line of a generation table: latents, their objects, and what metrics see of those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.views import HELD_OUT_SPLITS, UnseenViews, open_unseen, spread
from mnif_nerf.evaluation.cache import Cache, digest_of_model, digest_of_store
from mnif_nerf.evaluation.protocols import Protocol, Row
from mnif_nerf.evaluation.shapes import ShapeSet, make_shape_set
from mnif_nerf.evaluation.target import Instances, Subject
from mnif_nerf.objects.radiance import NeuralObject
from mnif_nerf.pipelines.encoding import encode_views
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.views import render_view

Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Opens a progress bar of a title and a length; entering it gives a function that advances it by one."""

SHAPES_VERSION = 1
# The orbit that radiance fields are compared from, object with object: elevation, then azimuths, degrees.
_ORBIT = (20.0, (45.0, 135.0, 225.0, 315.0))
_ORBIT_PIXELS = 64
_SAME_CAMERA = 0.02  # of the cameras' distance: how far two cameras may be apart and count as one


@dataclass
class Bench:
    """What every part of an evaluation works with.

    Attributes:
        subject: model and data.
        protocol: sizes and seed.
        cache: where long work is kept.
        stage: makes progress bars.
    """

    subject: Subject
    protocol: Protocol
    cache: Cache
    stage: Stage

    def __post_init__(self) -> None:
        self.model_digest = digest_of_model(self.subject.pipe.model)

    def key(self, **more: object) -> dict[str, object]:
        """A cache key of something made by the model."""
        return {"model": self.model_digest, "seed": self.protocol.seed, **more}


def row_latents(bench: Bench, row: Row) -> Tensor:
    """Latents `[N, D]` of a line; N is less where there are fewer training instances.

    Raises:
        MNIFError: samples of a model without a prior.
    """
    pipe, count = bench.subject.pipe, bench.protocol.num_samples
    if row.kind == "samples":
        return pipe.sample_latents(count, bench.protocol.seed, row.sampler, row.steps)
    rows = bench.subject.training_rows(count)
    return pipe.latents[torch.from_numpy(rows).to(pipe.latents.device)]


def row_objects(bench: Bench, row: Row) -> Iterator[NeuralObject]:
    """The objects of a line, decoded as they are asked for."""
    for index, latent in enumerate(row_latents(bench, row)):
        yield bench.subject.pipe.decode(latent, f"{row.name}-{index:04d}")


# ---------------------------------------------------------------------------------------------------------- shapes


def shapes_of_row(bench: Bench, row: Row, resolution: int) -> ShapeSet:
    """Cells and surface points of a line's objects."""
    protocol = bench.protocol
    if row.kind == "data":
        return shapes_of_instances(bench, bench.subject.training(protocol.num_samples, "voxel"), "training shapes")
    key = bench.key(
        row=row.name, sampler=row.sampler, steps=row.steps, count=protocol.num_samples, resolution=resolution,
        points=protocol.surface_points, version=SHAPES_VERSION,
    )  # fmt: skip
    half_extent = bench.subject.pipe.model.half_extent

    def make() -> dict[str, np.ndarray]:
        with bench.stage(f"shapes: {row.label}", protocol.num_samples) as advance:
            cells = (item.occupancy(resolution) for item in row_objects(bench, row))
            return make_shape_set(cells, protocol.surface_points, protocol.seed, half_extent, advance).to_arrays()

    return ShapeSet.from_arrays(bench.cache.get("shapes", key, make))


def shapes_of_instances(bench: Bench, instances: Instances, title: str) -> ShapeSet:
    """Cells and surface points of the data's own shapes."""
    protocol = bench.protocol
    key = {
        "stores": [digest_of_store(store.folder) for store in instances.stores],
        "rows": [list(row) for row in instances.rows],
        "points": protocol.surface_points,
        "seed": protocol.seed,
        "version": SHAPES_VERSION,
    }

    def make() -> dict[str, np.ndarray]:
        with bench.stage(title, len(instances)) as advance:
            cells = iter(instances.values())
            half_extent = bench.subject.pipe.model.half_extent
            return make_shape_set(cells, protocol.surface_points, protocol.seed, half_extent, advance).to_arrays()

    return ShapeSet.from_arrays(bench.cache.get("shapes", key, make))


# -------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one size, and how a cache knows them.

    Attributes:
        images: uint8 `[N, H, W, C]`.
        key: all that they depend on.
    """

    images: np.ndarray
    key: dict[str, object]


def pictures_of_row(bench: Bench, row: Row, references: PictureSet) -> PictureSet:
    """A line's pictures: of images themselves; of radiance fields `protocol.cameras` views of each object."""
    subject, protocol = bench.subject, bench.protocol
    if row.kind == "data":
        return _training_pictures(bench)
    key = bench.key(
        row=row.name, sampler=row.sampler, steps=row.steps, count=protocol.num_samples, cameras=protocol.cameras,
        size=list(references.images.shape[1:3]), splits=list(protocol.references), most=protocol.max_references,
    )  # fmt: skip
    if subject.modality == "radiance":
        key["views"] = [
            digest_of_store(subject.scenes(split).folder) for split in subject.choose_splits(protocol.references)
        ]

    def make() -> dict[str, np.ndarray]:
        with bench.stage(f"pictures: {row.label}", protocol.num_samples) as advance:
            pictures = []
            cameras = None if subject.modality == "image" else _reference_views(bench)
            for index, item in enumerate(row_objects(bench, row)):
                if cameras is None:
                    pictures.append(_pixels(item.image(references.images.shape[1])))  # type: ignore[attr-defined]
                else:
                    pictures += [_seen(item, *camera) for camera in cameras[index % len(cameras)]]
                advance()
        return {"images": np.stack(pictures)}

    return PictureSet(bench.cache.get("pictures", key, make)["images"], key)


def reference_pictures(bench: Bench) -> PictureSet:
    """What a line's pictures are compared with."""
    subject, protocol = bench.subject, bench.protocol
    if subject.modality == "image":
        instances = subject.references(protocol.references, protocol.max_references)
        stores = [digest_of_store(store.folder) for store in instances.stores]
        return PictureSet(
            np.stack(instances.values()), {"stores": stores, "rows": [list(row) for row in instances.rows]}
        )
    images, stores = [], []
    for split in subject.choose_splits(protocol.references):
        store = subject.scenes(split)
        stores.append(digest_of_store(store.folder))
        for scene in range(store.num_scenes):
            images += [np.array(store.images[view]) for view in _view_rows(store, scene, protocol.cameras)]
    return PictureSet(np.stack(images), {"stores": stores, "cameras": protocol.cameras})


def _training_pictures(bench: Bench) -> PictureSet:
    subject, protocol = bench.subject, bench.protocol
    if subject.modality == "image":
        instances = subject.training(protocol.num_samples)
        key = {"stores": [digest_of_store(instances.stores[0].folder)], "rows": [list(row) for row in instances.rows]}
        return PictureSet(np.stack(instances.values()), key)
    # Held-out views, where there are some: their cameras go round as those of the unseen scenes do.
    held = next((name for name in HELD_OUT_SPLITS if name in subject.splits), "train")
    store, images = subject.scenes(held), []
    for index in subject.training_rows(protocol.num_samples):
        name = subject.pipe.names[int(index)]
        if name in store.names:
            views = _view_rows(store, store.names.index(name), protocol.cameras)
            images += [np.array(store.images[view]) for view in views]
    key = {"stores": [digest_of_store(store.folder)], "cameras": protocol.cameras, "count": protocol.num_samples}
    return PictureSet(np.stack(images), key)


def training_cameras_fit(bench: Bench) -> bool:
    """Whether pictures of training scenes were taken from where those of the reference scenes were.

    Elsewhere taken ones differ by the cameras more than by what they show, and are no yardstick. Always so of images.
    """
    subject, count = bench.subject, bench.protocol.cameras
    if subject.modality == "image":
        return True
    held = next((name for name in HELD_OUT_SPLITS if name in subject.splits), "train")
    positions = []
    for split in (held, *subject.choose_splits(bench.protocol.references)):
        store = subject.scenes(split)
        views = [view for scene in range(store.num_scenes) for view in _view_rows(store, scene, count)]
        positions.append(torch.from_numpy(np.array(store.poses[views])[:, :3, 3]))
    apart = torch.cdist(positions[0], torch.cat(positions[1:]))
    nearest = torch.cat([apart.min(dim=0).values, apart.min(dim=1).values])
    return bool(nearest.median() < _SAME_CAMERA * float(positions[0].norm(dim=1).median()))


def _view_rows(store: object, scene: int, count: int) -> list[int]:
    first, last = store.view_range(scene)  # type: ignore[attr-defined]
    return (first + spread(last - first, count)).tolist()


def _reference_views(bench: Bench) -> list[list[tuple[Tensor, Intrinsics]]]:
    """Of every reference scene, the cameras of its pictures in `reference_pictures`."""
    cameras = []
    for split in bench.subject.choose_splits(bench.protocol.references):
        store = bench.subject.scenes(split)
        for scene in range(store.num_scenes):
            focal, cx, cy = (float(v) for v in store.intrinsics[scene])
            camera = Intrinsics(focal, cx, cy, store.height, store.width)
            rows = _view_rows(store, scene, bench.protocol.cameras)
            cameras.append([(torch.from_numpy(np.array(store.poses[view])), camera) for view in rows])
    return cameras


def _seen(item: NeuralObject, pose: Tensor, camera: Intrinsics) -> np.ndarray:
    rgb = render_view(item.field, pose.to(item.latent.device), camera, item.grid, item.half_extent)["rgb"]
    return np.rint(rgb.clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)


def _pixels(image: object) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


# -------------------------------------------------------------------------------------------- radiance, unseen scenes


def orbit_pictures(
    bench: Bench, objects: Iterator[NeuralObject], title: str, count: int, key: dict[str, object]
) -> np.ndarray:
    """Objects from four sides: uint8 `[N, 4 * H * W * 3]`, the same cameras for all."""

    def make() -> dict[str, np.ndarray]:
        rows = []
        with bench.stage(title, count) as advance:
            for item in objects:
                views = [np.asarray(item.render(_ORBIT[0], azimuth, _ORBIT_PIXELS)) for azimuth in _ORBIT[1]]
                rows.append(np.stack(views).reshape(-1))
                advance()
        return {"pixels": np.stack(rows)}

    return bench.cache.get("orbit", key, make)["pixels"]


def unseen_scenes(bench: Bench) -> tuple[UnseenViews, Tensor] | None:
    """Unseen scenes of radiance fields and their found latents `[K, D]`; None where the data has none."""
    subject, protocol = bench.subject, bench.protocol
    split = next((name for name in ("test", "val") if name in subject.splits), None)
    if split is None:
        return None
    unseen = open_unseen(
        subject.data, split, protocol.unseen_instances, protocol.views_per_scene, protocol.conditioning_views
    )
    key = bench.key(
        split=split, count=protocol.unseen_instances, views=list(protocol.conditioning_views),
        store=digest_of_store(unseen.scored.store.folder),
    )  # fmt: skip

    def make() -> dict[str, np.ndarray]:
        with bench.stage("latents of unseen scenes", 1) as advance:
            latents = encode_views(subject.pipe.model, unseen)
            advance()
        return {"latents": latents.cpu().numpy()}

    latents = torch.from_numpy(bench.cache.get("unseen", key, make)["latents"])
    return unseen, latents.to(subject.pipe.latents.device)
