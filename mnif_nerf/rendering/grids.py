"""Regular grids in field coordinates: samples (n = 1), pixels (2), voxels (3), voxels over time (4).

Cells are squares, cubes and so on: the longest axis spans [-1, 1], and a shorter one as much less as it has fewer
cells, centred. Cell i on an axis of G_a cells has its centre at (i + 0.5) * 2 / G - G_a / G, G being the most cells on
any axis. Cells are numbered in C order, the last axis fastest: a pixel (row, column) is row * W + column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def cell_coordinates(index: Tensor, shape: Sequence[int]) -> Tensor:
    """Centres of cells, feature-major.

    Args:
        index: `[..., N]` int64, numbers of cells.
        shape: cells per axis, n axes.

    Returns:
        `[..., n, N]` in [-1, 1].
    """
    longest, rest, axes = max(shape), index, []
    for count in reversed(shape):
        # Numbers, and no tensor of them: a GPU would wait for it.
        axes.append((rest % count + 0.5) * (2.0 / longest) - count / longest)
        rest = rest // count
    return torch.stack(axes[::-1], dim=-2)


def cell_centres(shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Centres of all cells: `[n, cells]` in [-1, 1]."""
    return cell_coordinates(torch.arange(math.prod(shape), device=device), shape)


def in_cube(cells: Tensor) -> Tensor:
    """Bool cells of a box, as cells of the cube of its longest edge that it lies centred in.

    Where the box's cells lie half a cell off the cube's, a cell is set if it overlaps a set one.

    Args:
        cells: `[X, Y, Z]` bool.

    Returns:
        `[G, G, G]` bool, G the longest edge; the same tensor where it is a cube.
    """
    size = max(cells.shape)
    for axis, count in enumerate(cells.shape):
        if count == size:
            continue
        low, odd = divmod(size - count, 2)
        wide = torch.zeros(*cells.shape[:axis], size, *cells.shape[axis + 1 :], dtype=torch.bool, device=cells.device)
        wide.narrow(axis, low, count).logical_or_(cells)
        if odd:
            wide.narrow(axis, low + 1, count).logical_or_(cells)
        cells = wide
    return cells
