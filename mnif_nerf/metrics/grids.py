"""Reconstruction quality of voxel grids. All functions take the cells of an instance along the last axis."""

from __future__ import annotations

import torch
from torch import Tensor


def iou(cells: Tensor, reference: Tensor) -> Tensor:
    """Intersection over union of the occupied cells.

    Args:
        cells, reference: `[..., N]` bool.

    Returns:
        `[...]` in [0, 1], float32; 1 where both are empty, 0 where one of them is.
    """
    both = (cells & reference).sum(dim=-1)
    either = (cells | reference).sum(dim=-1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def accuracy(cells: Tensor, reference: Tensor) -> Tensor:
    """Share of cells that agree, empty ones included.

    Args:
        cells, reference: `[..., N]` bool.

    Returns:
        `[...]` in [0, 1], float32; 1 where both are empty.
    """
    return (cells == reference).float().mean(dim=-1)


def occupancy_psnr(occupancy: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of occupancies, as the paper gives it for shapes.

    Args:
        occupancy: `[..., N]` in [0, 1], as `mnif_nerf.fields.heads.occupancy_from_raw` yields it.
        reference: `[..., N]` bool, or 0 and 1.

    Returns:
        `[...]` in dB, one for each instance (the paper's is their mean); infinity where both are equal, empty
        grids included.
    """
    return -10.0 * torch.log10((occupancy - reference.to(occupancy.dtype)).square().mean(dim=-1))
