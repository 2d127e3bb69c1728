"""Regular grids in field coordinates [-1, 1]^n: pixels (n = 2) and voxels (n = 3).

Cell i of G has its centre at (i + 0.5) * 2 / G - 1. Cells are numbered in C order, the last axis fastest: a pixel
(row, column) is row * G + column, a voxel [x, y, z] is (x * G + y) * G + z.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cell_coordinates(index: Tensor, resolution: int, dims: int) -> Tensor:
    """Centres of cells, feature-major.

    Args:
        index: `[..., N]` int64, numbers of cells.
        resolution: G, cells along an edge.
        dims: n.

    Returns:
        `[..., n, N]` in [-1, 1].
    """
    axes = [index // resolution ** (dims - 1 - axis) % resolution for axis in range(dims)]
    return (torch.stack(axes, dim=-2).float() + 0.5) * (2.0 / resolution) - 1.0


def cell_centres(resolution: int, dims: int, device: torch.device | str | None = None) -> Tensor:
    """Centres of all cells: `[n, G^n]` in [-1, 1]."""
    return cell_coordinates(torch.arange(resolution**dims, device=device), resolution, dims)
