"""Cameras around a voxel shape or before an image. Imports nothing of nerfstudio."""

from __future__ import annotations

import torch
from torch import Tensor

from mnif_nerf.data.geometry.hull import HALF_EXTENT
from mnif_nerf.rendering.cameras import DEFAULT_RADIUS, Intrinsics, orbit_pose


def orbit_poses(split: str) -> Tensor:
    """Cameras `[V, 4, 4]` around a shape: eight for "train", four others, from higher up, for all else."""
    count, elevation, first = (8, 20.0, 0.0) if split == "train" else (4, 35.0, 22.5)
    return torch.stack([orbit_pose(elevation, first + 360.0 * k / count) for k in range(count)])


def front_camera(resolution: int) -> tuple[Tensor, Intrinsics]:
    """A camera `[1, 4, 4]` whose pixels are those of an image of `resolution`² on the plane x = 0."""
    focal_over_width = DEFAULT_RADIUS / (2 * HALF_EXTENT)
    return orbit_pose(0.0, 0.0)[None], Intrinsics.default(resolution, focal_over_width)
