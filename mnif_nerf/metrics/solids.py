"""Sets of solids, compared by the cells that they fill."""

from __future__ import annotations

import numpy as np

from mnif_nerf.metrics.clouds import one_minus_iou
from mnif_nerf.metrics.sets import Distances, set_scores


def solid_set_scores(made: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """1-NNA with its halves, and COV, on 1 - IoU (`mnif_nerf.metrics.sets`).

    Args:
        made, real: bool `[S, cells]` each.
    """
    scores = set_scores(Distances(one_minus_iou(made, real), one_minus_iou(made, made), one_minus_iou(real, real)))
    return {name: scores[name] for name in ("1nna", "1nna_real", "1nna_fake", "cov")}
