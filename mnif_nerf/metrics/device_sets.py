"""Scores of many halves of two sets on a device: what `mnif_nerf.metrics.sets.bootstrap` asks for large matrices."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

Half = tuple[np.ndarray, np.ndarray]
"""Rows of generated items and of reference items."""


def scores_of_halves(matrices: tuple[np.ndarray, ...], halves: Iterable[Half], device: torch.device) -> np.ndarray:
    """MMD, COV, 1-NNA and its halves of each pair of subsets: `[S, 5]` float64, as `sets.SCORES` names them.

    Nothing waits for the device but the copy of the result.

    Args:
        matrices: float64, generated x reference, generated x generated, reference x reference.
        halves: S of them, of equal numbers of items.
        device: where they are gathered.
    """
    between, generated, reference = (torch.from_numpy(matrix).to(device) for matrix in matrices)
    found = []
    for made, real in halves:
        rows, columns = (torch.from_numpy(part).to(device, non_blocking=True) for part in (made, real))
        found.append(
            _scores(between[rows][:, columns], _nearest_other(generated, rows), _nearest_other(reference, columns))
        )
    return torch.stack(found).cpu().numpy()


def _scores(between: Tensor, own_made: Tensor, own_real: Tensor) -> Tensor:
    """`[5]`, from distances between both, and of each item to the nearest other of its own set."""
    to_real, to_made = between.amin(dim=1), between.amin(dim=0)
    count = between.shape[1]
    # Of equally near references the first is covered.
    place = torch.arange(count, device=between.device)
    nearest = torch.where(between == to_real[:, None], place, count).amin(dim=1)
    covered = torch.zeros(count, dtype=torch.float64, device=between.device).index_fill_(0, nearest, 1.0)
    real, fake = _right(own_real, to_made), _right(own_made, to_real)
    return torch.stack([to_made.mean(), covered.mean(), 0.5 * (real + fake), real, fake])


def _nearest_other(matrix: Tensor, rows: Tensor) -> Tensor:
    others = matrix[rows][:, rows]
    others.fill_diagonal_(torch.inf)
    return others.amin(dim=1)


def _right(own: Tensor, other: Tensor) -> Tensor:
    tie = (own == other) & (own > 0)
    return ((own < other) + 0.5 * tie).mean(dtype=torch.float64)
