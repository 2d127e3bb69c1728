"""What the numbers of a voxel grid say: which cells are inside, or that they are no occupancy at all.

Occupancy is 0 outside and 1 inside (or 255, or another single number), or a share of the cell in between. Distances,
logits and densities are refused with their range: their signs and levels differ from program to program, and taking
them for occupancies would teach the outside of the shapes.
"""

from __future__ import annotations

import itertools

import numpy as np

from mnif_nerf.errors import MNIFError

_SLACK = 1e-3  # beyond [0, 1], by rounding
_BETWEEN = 0.5  # of the cells; even small grids of smoothed shapes have fewer between inside and outside


def inside_cells(array: np.ndarray, name: object) -> np.ndarray:
    """Bool cells from bool or numbers, of the same shape.

    Bytes that reach 128 are shares of 255; other whole numbers from 0 on are labels, of which 0 is outside; -1 and 1
    are outside and inside.

    Raises:
        ValueError: neither bool nor real numbers.
        MNIFError: NaN or infinite, or numbers that are no occupancy; the sentence begins with `name`.
    """
    if array.dtype == bool or array.size == 0:
        return array.astype(bool, copy=False)
    if array.dtype.kind not in "uif":
        raise ValueError(f"elements of type {array.dtype}")
    if array.dtype.kind == "f":
        return _shares(array, name)
    low, high = int(array.min()), int(array.max())
    if array.dtype == np.uint8 and _are_packed(array):
        raise MNIFError(
            f"{name}: bytes {list(array.shape)} of values in between are probably eight cells each, packed; write "
            "np.unpackbits(grid, axis) along the short axis."
        )
    if array.dtype == np.uint8 and high >= 128:
        return array >= 128
    if low < 0 and not (low == -1 and high == 1 and not (array == 0).any()):
        raise MNIFError(
            f"{name}: holds whole numbers from {low} to {high}, so it is no occupancy; write 0 for cells outside and "
            "1 for cells inside."
        )
    return array > 0


def _are_packed(array: np.ndarray) -> bool:
    """Whether bytes look like eight cells each: one axis is an eighth of the others, and values lie in between."""
    edges = sorted(n for n in array.shape if n > 1)
    cubic = len(edges) == 3 and edges[1] == edges[2] == 8 * edges[0]
    return cubic and bool(((array > 1) & (array < 255)).any())


def all_corners_inside(cells: np.ndarray) -> bool:
    """Whether all corners of a grid are inside, as where 1 stands for empty."""
    return all(bool(cells[corner]) for corner in itertools.product((0, -1), repeat=cells.ndim))


def corners_note(names: list[str], count: int) -> str:
    """The sentence on grids with `all_corners_inside`, of `count` in all."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{len(names)} of {count} shapes have all corners of their grid inside ({', '.join(names[:3])}{more}): where 1 "
        "stands for empty, write 1 - grid."
    )


def _shares(array: np.ndarray, name: object) -> np.ndarray:
    if not np.isfinite(array).all():
        raise MNIFError(f"{name}: a cell is NaN or infinite; write the grid again.")
    low, high = float(array.min()), float(array.max())
    if low < -_SLACK or high > 1 + _SLACK:
        raise MNIFError(
            f"{name}: holds numbers from {low:.4g} to {high:.4g}, so it is no occupancy (0 outside, 1 inside); "
            f"{_guess(array, low)}."
        )
    between = float(((array > 0.05) & (array < 0.95)).mean())
    if between > _BETWEEN:
        raise MNIFError(
            f"{name}: {between:.0%} of its cells are neither 0 nor 1 (numbers from {low:.4g} to {high:.4g}), so these "
            "are probably distances or densities, and no occupancy; write 1 for the cells inside and 0 for the others."
        )
    return array > 0.5


def _guess(array: np.ndarray, low: float) -> str:
    if low >= -_SLACK:
        return (
            "if these are densities or distances without a sign, write which cells are inside as 1 and the others as 0"
        )
    corners = [float(array[corner]) for corner in itertools.product((0, -1), repeat=array.ndim)]
    if min(corners) > 0:
        return "its corners are positive, so these are signed distances, negative inside: write grid < 0"
    if max(corners) < 0:
        return "its corners are negative, so these are logits or distances, positive inside: write grid > 0"
    return "write which cells are inside, for example grid < 0 of signed distances that are negative inside"
