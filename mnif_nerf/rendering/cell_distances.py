"""Signed distances of filled cells by the exact distance transform."""

from __future__ import annotations

import numpy as np


def cell_distances(inside: np.ndarray, cell: float = 1.0) -> np.ndarray:
    """Signed distances (positive outside) of the centres of cells from the border of a set of cells.

    The border lies midway between the centres of filled and empty cells: distances are those to the nearest centre of
    the other kind, less half a cell. Beyond the grid all is empty.

    Args:
        inside: bool, of any number of axes.
        cell: edge of a cell, in any unit.

    Returns:
        float32, shaped as `inside`, in that unit.
    """
    from scipy import ndimage

    if not inside.any():
        return np.full(inside.shape, np.float32(np.hypot(*inside.shape[:2]) * cell))
    padded = np.pad(inside, 1)
    found = ndimage.distance_transform_edt(~padded) - ndimage.distance_transform_edt(padded)
    found -= 0.5 * np.sign(found)
    return np.asarray(found[(slice(1, -1),) * inside.ndim] * cell, dtype=np.float32)
