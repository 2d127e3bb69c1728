"""What stands on every line of a generation table: latents, their objects, and what metrics see of those."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.evaluation.cache import Cache, digest_of_model, digest_of_store
from mnif_nerf.evaluation.protocols import EvaluationProtocol, Row
from mnif_nerf.evaluation.shapes import CellShapes, ShapeMaker, ShapeSet, make_shape_set, packed, shape_seed
from mnif_nerf.evaluation.surface_shapes import SurfaceShapes
from mnif_nerf.evaluation.target import Instances, ModelAndData
from mnif_nerf.labels import Wish
from mnif_nerf.latents.ranks import ONE, Ranks
from mnif_nerf.objects.base import NeuralObject

Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Opens a progress bar of a title and a length; entering it gives a function that advances it by one."""

SHAPES_VERSION = 2

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass
class EvaluationContext:
    """What every part of an evaluation works with.

    Attributes:
        target: model and data.
        protocol: sizes and seed.
        cache: where long work is kept.
        stage: makes progress bars.
        ranks: the processes that measure together; all take the same way through an evaluation.
    """

    target: ModelAndData
    protocol: EvaluationProtocol
    cache: Cache
    stage: Stage
    ranks: Ranks = ONE

    def __post_init__(self) -> None:
        self.model_digest = digest_of_model(self.target.pipe.model)

    @property
    def device(self) -> torch.device | None:
        """The CUDA device that the model is on; None where the processor computes."""
        device = self.target.pipe.latents.device
        return device if device.type == "cuda" else None

    def share(
        self,
        title: str,
        items: Sequence[Item],
        work: Callable[[Sequence[Item], Callable[[], None]], Iterable[Answer]],
    ) -> list[Answer]:
        """What becomes of each item, with a bar: all processes take their share of them, and get all.

        Args:
            title: of the bar.
            items: the same for all processes.
            work: makes one answer of each of some items, and advances the bar.
        """

        def own(some: Sequence[Item]) -> list[Answer]:
            with self.stage(title, len(some)) as advance:
                return list(work(some, advance))

        return self.ranks.spread(items, own)

    def share_each(self, title: str, items: Sequence[Item], work: Callable[[Item], Answer]) -> list[Answer]:
        """`share` of what is made item by item."""

        def own(some: Sequence[Item], advance: Callable[[], None]) -> Iterator[Answer]:
            for item in some:
                yield work(item)
                advance()

        return self.share(title, items, own)

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


def row_decoder(context: EvaluationContext, row: Row) -> Callable[[int], NeuralObject]:
    """What gives object k of a line; latents are drawn when the first is asked for."""

    @functools.cache
    def latents() -> Tensor:
        return row_latents(context, row)

    return lambda k: context.target.pipe.decode(latents()[k], f"{row.name}-{k:04d}")


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
        decode = row_decoder(context, row)
        rows = range(row_length(context, row))

        def shape(k: int) -> ShapeSet:
            return packed(maker.of_object(decode(k), shape_seed(protocol.seed, k)))

        shapes = context.share_each(f"shapes: {row.label}", rows, shape)
        return make_shape_set(shapes).to_arrays()

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
        def shape(k: int) -> ShapeSet:
            return packed(maker.of_data(instances.value(k), shape_seed(seed, k)))

        shapes = context.share_each(title, range(len(instances)), shape)
        return make_shape_set(shapes).to_arrays()

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
        several: `of` some objects, one after the other, where they are made together.
    """

    objects: int
    per_object: int
    size: tuple[int, int]
    of: Callable[[int], Tensor]
    key: dict[str, object]
    several: Callable[[Sequence[int]], Iterator[Tensor]] | None = None

    def each(self, objects: Sequence[int]) -> Iterator[Tensor]:
        """The pictures of some objects, one after the other."""
        return map(self.of, objects) if self.several is None else self.several(objects)

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
