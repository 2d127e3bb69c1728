"""Signed distances of filled cells by the exact distance transform."""

from __future__ import annotations

import numpy as np


def cell_distances(cells: np.ndarray) -> np.ndarray:
    """Distances of cells' centres from the surface, in cells, positive inside: float64, shaped as `cells`.

    The surface lies midway between the centres of filled and empty cells: distances are those to the nearest centre of
    the other kind, less half a cell.

    Args:
        cells: bool, of any number of axes, some True; what is outside of the grid is not known to be empty.
    """
    from scipy import ndimage

    outside, inside = ndimage.distance_transform_edt(~cells), ndimage.distance_transform_edt(cells)
    return np.where(cells, inside - 0.5, 0.5 - outside)
