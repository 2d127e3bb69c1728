"""What stands on every line of a generation table: latents, their objects, and what metrics see of those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.evaluation.cache import Cache, digest_of_model, digest_of_store
from mnif_nerf.evaluation.protocols import EvaluationProtocol, Row
from mnif_nerf.evaluation.shapes import CellShapes, ShapeMaker, ShapeSet, make_shape_set, shape_seed
from mnif_nerf.evaluation.surface_shapes import SurfaceShapes
from mnif_nerf.evaluation.target import Instances, ModelAndData
from mnif_nerf.labels import Wish
from mnif_nerf.objects.base import NeuralObject

Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Opens a progress bar of a title and a length; entering it gives a function that advances it by one."""

SHAPES_VERSION = 2


@dataclass
class EvaluationContext:
    """What every part of an evaluation works with.

    Attributes:
        target: model and data.
        protocol: sizes and seed.
        cache: where long work is kept.
        stage: makes progress bars.
    """

    target: ModelAndData
    protocol: EvaluationProtocol
    cache: Cache
    stage: Stage

    def __post_init__(self) -> None:
        self.model_digest = digest_of_model(self.target.pipe.model)

    @property
    def device(self) -> torch.device | None:
        """The CUDA device that the model is on; None where the processor computes."""
        device = self.target.pipe.latents.device
        return device if device.type == "cuda" else None

    def key(self, **more: object) -> dict[str, object]:
        """A cache key of something made by the model."""
        return {"model": self.model_digest, "seed": self.protocol.seed, **more}


def row_latents(context: EvaluationContext, row: Row) -> Tensor:
    """Latents `[N, D]` of a line; N is less where there are fewer training instances.

    Raises:
        MNIFError: samples of a model without a prior.
    """
    pipe, count = context.target.pipe, row.count or context.protocol.num_samples
    if row.kind == "samples":
        wish = Wish(dict(row.asked), row.guidance) if row.asked else None
        return pipe.sample_latents(count, context.protocol.seed, row.sampler, row.steps, typical=1.0, wish=wish)
    rows = context.target.training_rows(count)
    return pipe.latents[torch.from_numpy(rows).to(pipe.latents.device)]


def row_length(context: EvaluationContext, row: Row) -> int:
    """How many `row_latents` has."""
    count = row.count or context.protocol.num_samples
    return count if row.kind == "samples" else len(context.target.training_rows(count))


def row_objects(context: EvaluationContext, row: Row) -> Iterator[NeuralObject]:
    """The objects of a line, decoded as they are asked for."""
    for index, latent in enumerate(row_latents(context, row)):
        yield context.target.pipe.decode(latent, f"{row.name}-{index:04d}")


# ---------------------------------------------------------------------------------------------------------- shapes


def shape_maker(context: EvaluationContext, resolution: int = 0, points: int | None = None) -> ShapeMaker:
    """What makes shapes of this model's data and objects.

    Args:
        context: with the protocol.
        resolution: of objects whose data are cells.
        points: per shape; by default the protocol's.
    """
    target = context.target
    points = context.protocol.surface_points if points is None else points
    stored = target.stored_surface_points
    return CellShapes(points, resolution) if stored is None else SurfaceShapes(target.kind, points, stored)


def shapes_of_row(context: EvaluationContext, row: Row, resolution: int) -> ShapeSet:
    """Cells and surface points of a line's objects."""
    protocol = context.protocol
    if row.kind == "data":
        return shapes_of_instances(
            context, context.target.training(protocol.num_samples, solids=True), "training shapes"
        )
    maker, count = shape_maker(context, resolution), row.count or protocol.num_samples
    key = context.key(
        row=row.name, sampler=row.sampler, steps=row.steps, count=count, version=SHAPES_VERSION, **maker.facts
    )

    def make() -> dict[str, np.ndarray]:
        with context.stage(f"shapes: {row.label}", count) as advance:
            items = enumerate(row_objects(context, row))
            shapes = (maker.of_object(item, shape_seed(protocol.seed, index)) for index, item in items)
            return make_shape_set(shapes, advance).to_arrays()

    return ShapeSet.from_arrays(context.cache.get("shapes", key, make))


def shapes_of_instances(
    context: EvaluationContext, instances: Instances, title: str, points: int | None = None
) -> ShapeSet:
    """Cells and surface points of the data's own shapes.

    Args:
        context: with the protocol.
        instances: of voxels, or of points of meshes.
        title: title of the progress bar.
        points: per shape; by default the protocol's. Cells are compared without any.
    """
    maker, seed = shape_maker(context, points=points), context.protocol.seed
    key = {
        "stores": [digest_of_store(store.folder) for store in instances.stores],
        "rows": [list(row) for row in instances.rows],
        "seed": seed,
        "version": SHAPES_VERSION,
        **maker.facts,
    }

    def make() -> dict[str, np.ndarray]:
        with context.stage(title, len(instances)) as advance:
            shapes = (maker.of_data(values, shape_seed(seed, k)) for k, values in enumerate(instances.each()))
            return make_shape_set(shapes, advance).to_arrays()

    return ShapeSet.from_arrays(context.cache.get("shapes", key, make))


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one size, some of each object, made as they are asked for.

    Attributes:
        objects: how many.
        per_object: pictures of each, at most.
        size: height and width.
        of: pictures uint8 `[V, H, W, C]` of object k, on whichever device they were made.
        key: all that they depend on.
    """

    objects: int
    per_object: int
    size: tuple[int, int]
    of: Callable[[int], Tensor]
    key: dict[str, object]

    @classmethod
    def given(cls, images: np.ndarray, per_object: int, key: dict[str, object]) -> PictureSet:
        """Of pictures that are there: uint8 `[N * per_object, H, W, C]`."""
        values = torch.from_numpy(np.ascontiguousarray(images))
        parts = values.split(per_object)
        return cls(len(parts), per_object, (images.shape[1], images.shape[2]), lambda k: parts[k], key)


class Pictures(Protocol):
    """What is compared of a model's objects as pictures.

    Attributes:
        per_object: pictures of each.
        about: how they are made, where that has to be said.
    """

    per_object: int
    about: str

    def references(self) -> PictureSet:
        """What the pictures of every line are compared with."""

    def training_is_yardstick(self) -> bool:
        """Whether the pictures of the training data are taken as those of the references are."""

    def of_row(self, row: Row, references: PictureSet) -> PictureSet:
        """A line's pictures."""

    def for_novelty(self, rows: list[Row], references: PictureSet) -> NoveltySets | None:
        """Pictures that are comparable one by one; None where nothing unseen is there to compare with."""


@dataclass(frozen=True)
class NoveltySets:
    """Flat pictures uint8 `[N, P]`: of training instances, of unseen ones, and of the samples of each line by name."""

    train: np.ndarray
    unseen: np.ndarray
    samples: dict[str, np.ndarray]


def picture_key(context: EvaluationContext, row: Row, references: PictureSet) -> dict[str, object]:
    """What a line's pictures depend on."""
    protocol = context.protocol
    return context.key(
        row=row.name, sampler=row.sampler, steps=row.steps, count=protocol.num_samples, cameras=protocol.cameras,
        size=list(references.size), splits=list(protocol.references), most=protocol.max_references,
    )  # fmt: skip


def unseen_splits(context: EvaluationContext) -> tuple[str, ...]:
    """Splits of the data that no model is trained on."""
    return tuple(name for name in ("val", "test") if name in context.target.splits)
