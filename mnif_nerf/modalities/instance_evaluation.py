"""Which whole instances an evaluation scores: grids and points of meshes alike."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from mnif_nerf.data.sampling.views import evenly_spaced
from mnif_nerf.latents.model import Stage1Model
from mnif_nerf.modalities.training import Evaluation, ScoredItem, known_rows


class InstanceEvaluation(Evaluation):
    """Scores a few training instances from their latents, and as many unseen ones from the latents that are found.

    The truth of an item is the store that it lies in and its index there.
    """

    @cached_property
    def unseen(self) -> Any:
        """The store of instances never trained on; None where the data has no such split."""
        return self.data.unseen(self.split)

    def chosen(self, store: Any) -> np.ndarray:
        """`[K]` int64 instances of a store that are scored."""
        return evenly_spaced(store.num_instances, self.data.settings.eval_num_instances)

    def _known(self, model: Stage1Model) -> list[tuple[int, int]]:
        """Index and row of the scored training instances that the model knows."""
        names, chosen = self.data.names, self.chosen(self.data.store).tolist()
        rows = known_rows(model, [names[i] for i in chosen])
        return [(i, row) for i, row in zip(chosen, rows) if row >= 0]

    def rows(self, model: Stage1Model) -> list[int]:
        """See `Evaluation`."""
        return [row for _, row in self._known(model)]

    def seen(self, model: Stage1Model) -> list[ScoredItem]:
        """See `Evaluation`."""
        store, table = self.data.store, model.latents.weight.detach()
        return [ScoredItem(store.names[i], table[row], (store, i)) for i, row in self._known(model)]

    def unseen_items(self, model: Stage1Model) -> list[ScoredItem]:
        """See `Evaluation`."""
        store = self.unseen
        if store is None:
            return []
        latents = self.latents_of_unseen(model)
        return [ScoredItem(store.names[i], latents[k], (store, i)) for k, i in enumerate(self.chosen(store).tolist())]
