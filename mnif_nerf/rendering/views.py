"""Rendering a collapsed field: rays and whole views, with empty and hidden space skipped.

Samples lie on a fixed grid of distances along each ray (`step` apart, counted from where the ray enters the scene
box). With an occupancy grid, the same samples are taken where the grid says that something is there and still
visible; all others are left out. So the skipped render equals the dense one up to what the left-out samples held.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mnif_nerf.machine import chunk_memory
from mnif_nerf.rendering.cameras import Intrinsics, pixel_rays, view_rays
from mnif_nerf.rendering.intervals import box_interval
from mnif_nerf.rendering.occupancy import OccupancyGrid, RadianceField
from mnif_nerf.rendering.volume import composite, ray_weights

DEFAULT_STEP = 1.0 / 64  # finer steps gain less than 0.1 dB on the demo's held-out views (docs/benchmarks.md)
_CHUNK_ON_CPU = 16384  # rays
_BYTES_PER_SAMPLE = 96  # of place, cell, density, colour and what is between them
_HIDDEN = 6.0  # optical depth at which 0.25 % of the light is left: below one grey level of 255


@torch.no_grad()
def render_rays(
    field: RadianceField,
    origins: Tensor,
    directions: Tensor,
    grid: OccupancyGrid | None = None,
    half_extent: float = 0.5,
    step: float = DEFAULT_STEP,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Render rays over a white background.

    On a GPU the host waits for it once, twice in every chunk, and once more for a new grid.

    Args:
        field: the collapsed field.
        origins, directions: `[R, 3]` world units; directions of unit length.
        grid: occupancy of the field; None samples the whole scene box.
        half_extent: half the edge of the scene box.
        step: distance between samples, world units.
        chunk: rays handled together, which bounds the memory; by default 16,384 on a processor, and as many as the
            free memory of a GPU allows.

    Returns:
        `rgb` `[R, 3]` in [0, 1], `depth` `[R, 1]` (expected distance along the ray; the background counts as the
        far side of the box) and `accumulation` `[R, 1]` in [0, 1].
    """
    out = {
        "rgb": origins.new_ones(len(origins), 3),
        "depth": origins.new_zeros(len(origins), 1),
        "accumulation": origins.new_zeros(len(origins), 1),
    }
    near, far = box_interval(origins, directions, half_extent)
    out["depth"][:, 0] = torch.maximum(far, near)
    start, end = _sampled_interval(origins, directions, near, far, grid)
    every = Rays(origins, directions, near, far, start, end)
    chunk = chunk or rays_together(origins.device, half_extent, step)
    for rays in (end > start).nonzero().flatten().split(chunk):
        if len(rays) == 0:
            continue
        part = render_chunk(
            lambda points, *_: _evaluate(field, points), Rays(*(values[rays] for values in every)), grid, step
        )
        for name, value in part.items():
            out[name][rays] = value
    return out


def rays_together(device: torch.device, half_extent: float, step: float) -> int:
    """Rays handled together."""
    if device.type != "cuda":
        return _CHUNK_ON_CPU
    samples = math.ceil(2 * math.sqrt(3.0) * half_extent / step) + 1
    return max(_CHUNK_ON_CPU, chunk_memory(device) // (samples * _BYTES_PER_SAMPLE))


def _sampled_interval(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, grid: OccupancyGrid | None
) -> tuple[Tensor, Tensor]:
    """The stretch of each ray inside the box of the occupied cells (the scene box without a grid)."""
    if grid is None:
        return near, far
    box = grid.tight_box()
    if box is None:
        return near, near
    center, half = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    # The interval of a box is that of a cube after scaling each axis; distances along the ray do not change.
    tight_near, tight_far = box_interval((origins - center) / half, directions / half, 1.0)
    return torch.maximum(near, tight_near), torch.minimum(far, tight_far)


Values = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class Cells(Protocol):
    """Which cells hold density, and a lower bound of it: `OccupancyGrid`."""

    cells: Tensor
    least_density: Tensor

    def lookup(self, points: Tensor) -> Tensor:
        """Index `[R, S]` of the cells of R rays' points `[R, S, 3]` among all, flattened."""


class Rays(NamedTuple):
    """R rays: `[R, 3]` origins and directions, `[R]` where each enters and leaves the box and the occupied cells."""

    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor
    start: Tensor
    end: Tensor


def render_chunk(values: Values, rays: Rays, grid: Cells | None, step: float) -> dict[str, Tensor]:
    """Render rays together: `rgb` `[R, 3]`, `depth` and `accumulation` `[R, 1]`.

    All rays share one number of samples, that of the longest. Samples in empty cells, and those behind cells that
    certainly stop the light, are not evaluated.

    Args:
        values: colours `[N, 3]` and densities `[N]` at points `[N, 3]`, told where these stand among the R x S samples
            (int64 `[N]`), and S.
        rays: the rays.
        grid: where something is; None evaluates all.
        step: distance between samples, world units.
    """
    origins, directions, near, far, start, end = rays
    first = ((start - near) / step).floor()
    count = max(int(((end - near) / step - first).max().ceil()), 1)
    index = first.unsqueeze(-1) + torch.arange(count, device=near.device)
    t = near.unsqueeze(-1) + (index + 0.5) * step
    wanted = t < end.unsqueeze(-1)
    points = origins.unsqueeze(1) + t.unsqueeze(-1) * directions.unsqueeze(1)
    if grid is not None:
        cells = grid.lookup(points)
        blocked = (grid.least_density.flatten()[cells] * step).cumsum(dim=-1)
        hidden = torch.cat([torch.zeros_like(blocked[:, :1]), blocked[:, :-1]], dim=-1) > _HIDDEN
        wanted &= grid.cells.flatten()[cells] & ~hidden
    asked = wanted.flatten().nonzero().flatten()  # once: a GPU's host waits for their number
    colors, densities = values(points.view(-1, 3)[asked], asked, count)
    density = torch.zeros_like(t)
    color = torch.zeros(*t.shape, 3, device=t.device)
    density.view(-1)[asked], color.view(-1, 3)[asked] = densities, colors
    weights = ray_weights(density * step)
    rgb, accumulation = composite(weights, color)
    depth = (weights * t).sum(dim=-1, keepdim=True) + (1.0 - accumulation) * far.unsqueeze(-1)
    return {"rgb": rgb.clamp(0, 1), "depth": depth, "accumulation": accumulation.clamp(0, 1)}


def points_together(device: torch.device) -> int:
    """Points to evaluate at a time; on a processor a few thousand keep the activations in its cache."""
    return 1 << 20 if device.type == "cuda" else 8192


def _evaluate(field: RadianceField, points: Tensor) -> tuple[Tensor, Tensor]:
    """Field values at `[N, 3]` points."""
    if len(points) == 0:
        return points.new_zeros(0, 3), points.new_zeros(0)
    parts = [field.radiance(part) for part in points.split(points_together(points.device))]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


@torch.no_grad()
def render_views(
    field: RadianceField, poses: Tensor, lenses: Tensor, size: tuple[int, int], grid: OccupancyGrid | None = None
) -> dict[str, Tensor]:
    """Many views of one field, their rays together: `render_rays`' outputs as `[V, H, W, C]`.

    Args:
        field: the collapsed field.
        poses: camera-to-world `[V, 4, 4]`, on the field's device.
        lenses: focal lengths and principal points (cx, cy) `[V, 3]` in pixels.
        size: height and width of every picture.
        grid: occupancy of the field; None samples the whole scene box.
    """
    out = render_rays(field, *view_rays(poses, lenses, size), grid)
    return {name: value.view(len(poses), *size, -1) for name, value in out.items()}


@torch.no_grad()
def render_view(
    field: RadianceField,
    c2w: Tensor,
    intrinsics: Intrinsics,
    grid: OccupancyGrid | None = None,
    half_extent: float = 0.5,
    step: float = DEFAULT_STEP,
) -> dict[str, Tensor]:
    """Render the view of camera `c2w` `[4, 4]`: `render_rays`' outputs as `[H, W, C]`."""
    origins, directions = pixel_rays(c2w, intrinsics)
    out = render_rays(field, origins, directions, grid, half_extent, step)
    return {name: value.view(intrinsics.height, intrinsics.width, -1) for name, value in out.items()}
