"""Pinhole cameras in the OpenCV convention (x right, y down, z forward), world z up, and where to put them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# SRN Cars: 131.25 pixels of focal length at 128 pixels of width, cameras 1.3 units from the object's centre.
DEFAULT_FOCAL_OVER_WIDTH = 131.25 / 128
DEFAULT_RADIUS = 1.3


def default_camera() -> dict[str, float]:
    """The camera of SRN Cars: focal length over image width, and distance from the object's centre."""
    return {"focal_over_width": DEFAULT_FOCAL_OVER_WIDTH, "radius": DEFAULT_RADIUS}


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera: focal length and principal point in pixels, image size in pixels."""

    focal: float
    cx: float
    cy: float
    height: int
    width: int

    @classmethod
    def default(cls, resolution: int, focal_over_width: float = DEFAULT_FOCAL_OVER_WIDTH) -> Intrinsics:
        """A square, centred camera; by default with the field of view of SRN Cars."""
        return cls(focal_over_width * resolution, resolution / 2, resolution / 2, resolution, resolution)

    @classmethod
    def centred(cls, width: int, height: int, focal: float) -> Intrinsics:
        """A camera that looks through the middle of its picture; `focal` in pixels."""
        return cls(focal, width / 2, height / 2, height, width)

    def scaled(self, factor: int) -> Intrinsics:
        """The same camera with `factor` times the pixels along each edge."""
        focal, cx, cy = factor * self.focal, factor * self.cx, factor * self.cy
        return Intrinsics(focal, cx, cy, factor * self.height, factor * self.width)


def orbit_pose(elevation: float, azimuth: float, radius: float = DEFAULT_RADIUS) -> Tensor:
    """Camera-to-world `[4, 4]` looking at the origin.

    Args:
        elevation: degrees above the ground plane, -90 to 90.
        azimuth: degrees around z, 0 on the +x axis (in front of a car), 90 on +y (its left side).
        radius: distance from the origin in world units.
    """
    e, a = math.radians(elevation), math.radians(azimuth)
    position = radius * torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    # From the azimuth alone, so that the view from straight above is defined too.
    right = torch.tensor([-math.sin(a), math.cos(a), 0.0])
    forward = -position / radius
    down = torch.linalg.cross(forward, right)
    pose = torch.eye(4)
    pose[:3] = torch.stack([right, down, forward, position], dim=1)
    return pose


def spiral_poses(count: int, turns: float = 4.0, radius: float = DEFAULT_RADIUS) -> Tensor:
    """`[count, 4, 4]` cameras on a spiral over the upper hemisphere, from the horizon up (as SRN's test views)."""
    steps = [(i + 0.5) / count for i in range(count)]
    return torch.stack([orbit_pose(math.degrees(math.asin(0.05 + 0.9 * t)), 360.0 * turns * t, radius) for t in steps])


def pixel_directions(
    pixels: Tensor, rotation: Tensor, focal: Tensor | float, cx: Tensor | float, cy: Tensor | float
) -> Tensor:
    """Unit world directions `[..., 3]` through pixel centres.

    Args:
        pixels: `[..., 2]` integer (column, row).
        rotation: camera-to-world rotations `[..., 3, 3]`.
        focal, cx, cy: in pixels, `[...]`.
    """
    x = (pixels[..., 0] + 0.5 - cx) / focal
    y = (pixels[..., 1] + 0.5 - cy) / focal
    directions = rotation[..., 0] * x.unsqueeze(-1) + rotation[..., 1] * y.unsqueeze(-1) + rotation[..., 2]
    return directions / directions.norm(dim=-1, keepdim=True)


def pixel_rays(c2w: Tensor, intrinsics: Intrinsics) -> tuple[Tensor, Tensor]:
    """Origins and unit directions `[H * W, 3]` of every pixel, row by row, of the camera `c2w` `[4, 4]`."""
    pixels = _pixels(intrinsics.height, intrinsics.width, c2w.device)
    # Numbers, and no tensors of them: a GPU would wait for those.
    directions = pixel_directions(pixels, c2w[:3, :3], intrinsics.focal, intrinsics.cx, intrinsics.cy)
    return c2w[:3, 3].expand_as(directions), directions


def view_rays(poses: Tensor, lenses: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`pixel_rays` of many cameras, one after the other: `[V * H * W, 3]` both.

    Args:
        poses: camera-to-world `[V, 4, 4]`.
        lenses: focal lengths and principal points (cx, cy) `[V, 3]` in pixels, on the device of the poses.
        size: height and width of every picture.
    """
    pixels = _pixels(*size, poses.device)
    focal, cx, cy = (lenses[:, part, None] for part in range(3))
    directions = pixel_directions(pixels, poses[:, None, :3, :3], focal, cx, cy)
    origins = poses[:, None, :3, 3].expand_as(directions)
    return origins.reshape(-1, 3), directions.reshape(-1, 3)


def _pixels(height: int, width: int, device: torch.device) -> Tensor:
    """(Column, row) `[H * W, 2]` of every pixel, row by row."""
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([columns, rows], dim=-1).view(-1, 2)


def cameras_around(
    split: str, size: int, focal_over_width: float = DEFAULT_FOCAL_OVER_WIDTH, radius: float = DEFAULT_RADIUS
) -> tuple[Tensor, Intrinsics]:
    """Poses `[V, 4, 4]` and a camera of `size` pixels that look at an object from `radius` world units: eight for the
    split "train", four others, from higher up, for all else."""
    count, elevation, first = (8, 20.0, 0.0) if split == "train" else (4, 35.0, 22.5)
    poses = [orbit_pose(elevation, first + 360.0 * k / count, radius) for k in range(count)]
    return torch.stack(poses), Intrinsics.default(size, focal_over_width)
