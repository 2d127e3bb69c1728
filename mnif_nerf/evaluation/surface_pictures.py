"""Pictures of data that are points of meshes, and of a model's surfaces: both drawn as coloured points."""

from __future__ import annotations

import hashlib

import numpy as np

from mnif_nerf.evaluation.generated import (
    EvaluationContext,
    NoveltySets,
    PictureSet,
    shapes_of_instances,
    shapes_of_row,
    unseen_splits,
)
from mnif_nerf.evaluation.protocols import Row
from mnif_nerf.evaluation.shapes import ShapeSet
from mnif_nerf.evaluation.surface_shapes import RESOLUTION, VIEWS


class SurfacePictures:
    """See `mnif_nerf.evaluation.generated.Pictures`."""

    per_object = VIEWS
    about = (
        "Either side is drawn from the same places as some thousand points of its surface, in their colours and shaded "
        "by their normals, so that data and samples differ by nothing else."
    )

    def __init__(self, context: EvaluationContext) -> None:
        self.context = context
        self._rows: dict[str, ShapeSet] = {}

    def references(self) -> PictureSet:
        """All reference instances."""
        protocol = self.context.protocol
        instances = self.context.target.references(protocol.references, protocol.max_references, solids=True)
        return given_pictures(shapes_of_instances(self.context, instances, "reference shapes"))

    def training_is_yardstick(self) -> bool:
        """Always."""
        return True

    def of_row(self, row: Row, references: PictureSet) -> PictureSet:
        """The objects of a line."""
        return given_pictures(self._of_row(row))

    def for_novelty(self, rows: list[Row], references: PictureSet) -> NoveltySets | None:
        """All pictures of an instance side by side."""
        target, protocol = self.context.target, self.context.protocol
        trained = "train" in protocol.references
        splits = unseen_splits(self.context) if trained else protocol.references
        if not splits:
            return None
        everyone = target.training(len(target.pipe.names), solids=True)
        others = target.references(splits, protocol.max_references, solids=True)
        train = shapes_of_instances(self.context, everyone, "training shapes", points=0)
        # The references themselves are there already, with points.
        unseen = shapes_of_instances(self.context, others, "unseen shapes", points=0 if trained else None)
        return NoveltySets(_flat(train), _flat(unseen), {row.name: _flat(self._of_row(row)) for row in rows})

    def _of_row(self, row: Row) -> ShapeSet:
        if row.name not in self._rows:
            self._rows[row.name] = shapes_of_row(self.context, row, RESOLUTION)
        return self._rows[row.name]


def given_pictures(shapes: ShapeSet) -> PictureSet:
    """The pictures that shapes come with."""
    assert shapes.pictures is not None
    images = shapes.pictures.reshape(-1, *shapes.pictures.shape[2:])
    key: dict[str, object] = {"pictures": hashlib.sha256(images.tobytes()).hexdigest()[:20]}
    return PictureSet.given(images, shapes.pictures.shape[1], key)


def _flat(shapes: ShapeSet) -> np.ndarray:
    assert shapes.pictures is not None
    return shapes.pictures.reshape(len(shapes), -1)
