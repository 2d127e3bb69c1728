"""Rays grouped by instance: what a sampler hands to the training step."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class RayBatch:
    """Rays of B instances, R each.

    Attributes:
        scenes: `[B]` int64, indices of the instances in the store.
        origins, directions: `[B, R, 3]` world units; directions of unit length.
        near, far: `[B, R]` distances between which the ray can meet the object.
        rgb: `[B, R, 3]` in [0, 1], over the white background.
        mask: `[B, R]` 1 on the object's silhouette, 0 on the background. All ones without silhouettes: a background
            that is not white has to be painted, so every ray ends somewhere.
        carve_points: `[B, C, 3]` points inside the scene box and outside the hull (C may be 0).
    """

    scenes: Tensor
    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor
    rgb: Tensor
    mask: Tensor
    carve_points: Tensor

    def to(self, device: torch.device | str) -> RayBatch:
        """The same batch on another device."""
        return RayBatch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def __getitem__(self, rows: slice) -> RayBatch:
        return RayBatch(*(getattr(self, f.name)[rows] for f in fields(self)))
