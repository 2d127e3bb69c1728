"""Pictures of models of pictures, compared as they are, or on white where they have alpha."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.evaluation.cache import digest_of_store
from mnif_nerf.evaluation.generated import (
    EvaluationContext,
    NoveltySets,
    PictureSet,
    picture_key,
    row_decoder,
    row_length,
    unseen_splits,
)
from mnif_nerf.evaluation.protocols import Row
from mnif_nerf.evaluation.target import Instances
from mnif_nerf.rendering.alpha import over_white


class GridPictures:
    """See `mnif_nerf.evaluation.generated.Pictures`."""

    per_object = 1
    about = ""

    def __init__(self, context: EvaluationContext) -> None:
        self.context = context

    def references(self) -> PictureSet:
        """All reference instances."""
        protocol = self.context.protocol
        return _given(self.context.target.references(protocol.references, protocol.max_references))

    def training_is_yardstick(self) -> bool:
        """Always."""
        return True

    def of_row(self, row: Row, references: PictureSet) -> PictureSet:
        """One picture of each object, of the references' size."""
        context = self.context
        if row.kind == "data":
            return _given(context.target.training(context.protocol.num_samples))
        images, key = self._of_row(row, references)
        return PictureSet.given(images, 1, key)

    def _of_row(self, row: Row, references: PictureSet) -> tuple[np.ndarray, dict[str, object]]:
        context = self.context
        key = picture_key(context, row, references)

        def make() -> dict[str, np.ndarray]:
            decode: Callable[[int], Any] = row_decoder(context, row)
            edge = max(references.size)
            pictures = context.share_each(
                f"pictures: {row.label}", range(row_length(context, row)), lambda k: over_white(decode(k).pixels(edge))
            )
            return {"images": np.stack(pictures)}

        return context.cache.get("pictures", key, make)["images"], key

    def for_novelty(self, rows: list[Row], references: PictureSet) -> NoveltySets | None:
        """The pictures themselves."""
        target, protocol = self.context.target, self.context.protocol
        splits = unseen_splits(self.context) if "train" in protocol.references else protocol.references
        if not splits:
            return None
        return NoveltySets(
            _flat(_seen(target.training(len(target.pipe.names)))),
            _flat(_seen(target.references(splits, protocol.max_references))),
            {row.name: _flat(self._of_row(row, references)[0]) for row in rows},
        )


def _given(instances: Instances) -> PictureSet:
    stores = [digest_of_store(store.folder) for store in instances.stores]
    key: dict[str, object] = {"stores": stores, "rows": [list(row) for row in instances.rows]}

    def of(k: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(over_white(instances.value(k))))[None]

    height, width = of(0).shape[1:3]
    return PictureSet(len(instances), 1, (height, width), of, key)


def _seen(instances: Instances) -> np.ndarray:
    return np.stack([over_white(values) for values in instances.each()])


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)
