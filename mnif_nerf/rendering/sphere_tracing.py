"""Rendering a distance field by sphere tracing: a ray steps as far as the distance says that nothing is (Hart 1996).

Learned distances are truncated, and here and there they grow faster than true ones. So a step is a share of what the
field says and never longer than the truncation; empty space is leapt over by a grid; and a ray that comes near a
surface still advances by a least step, which is below a pixel of a usual picture. Where the distance turns negative,
false position finds the crossing (`mnif_nerf.rendering.surface`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mnif_nerf.fields.distance import TRUNCATION, TRUST, DistanceField
from mnif_nerf.rendering.cameras import Intrinsics, pixel_rays
from mnif_nerf.rendering.near_cells import distances_at, near_cells
from mnif_nerf.rendering.surface import GRID_RESOLUTION, SurfaceGrid, render_surface

# Shares of the scene box's edge.
LEAST_STEP = 1.0 / 640
# Pixels are drawn by more rays where the picture changes by more than this from one to the next.
_BUSY = 0.02


@torch.no_grad()
def distance_grid(field: DistanceField, resolution: int = GRID_RESOLUTION, bounds: Tensor | None = None) -> SurfaceGrid:
    """Where a distance field's rays have to step, and how far they may leap elsewhere.

    Args:
        field: the field.
        resolution: G.
        bounds: bool `[g, g, g]` outside which nothing exists, or None.
    """
    near, inside = near_cells(field, resolution, bounds=bounds)
    cells = near | inside
    return SurfaceGrid(cells, torch.zeros(cells.shape, device=cells.device), field.half_extent)


def trace(
    field: DistanceField, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, grid: SurfaceGrid
) -> tuple[Tensor, Tensor, Tensor]:
    """Which rays `[R]` enter the solid, and distances `[R]` along them at the last step outside and the first inside.

    Args:
        field: the field.
        origins, directions: `[R, 3]` world units; directions of unit length.
        near, far: `[R]` where rays enter and leave the scene box.
        grid: of `distance_grid`.
    """
    least = 2 * grid.half_extent * LEAST_STEP
    cells, leap = grid.cells.flatten(), grid.leap.flatten()
    across = 2 * grid.half_extent / grid.resolution
    found = torch.zeros(len(near), dtype=torch.bool, device=near.device)
    before, after = near.clone(), near.clone()
    active, t, last = torch.arange(len(near), device=near.device), near.clone(), near.clone()
    while len(active) > 0:
        points = origins[active] + t.unsqueeze(-1) * directions[active]
        cell = grid.lookup(points)
        # A cell beside occupied ones holds nothing itself, but is left by a small step.
        step = leap[cell].clamp(min=0.25 * across)
        asked = cells[cell].nonzero().flatten()
        hit = torch.zeros_like(active, dtype=torch.bool)
        if len(asked) > 0:
            distance = distances_at(field, points[asked])
            hit[asked] = distance <= 0
            step[asked] = (TRUST * distance.clamp(max=TRUNCATION)).clamp(min=least)
        rays = active[hit]
        found[rays], after[rays], before[rays] = True, t[hit], last[hit]
        keep = ~hit & (t + step < far[active])
        active, last, t = active[keep], t[keep], (t + step)[keep]
    return found, before, after


def render_distance(
    field: DistanceField,
    origins: Tensor,
    directions: Tensor,
    grid: SurfaceGrid | None = None,
    half_extent: float | None = None,
    chunk: int = 65536,
) -> dict[str, Tensor]:
    """Where rays meet the surface, and its shaded picture in the field's colours over white.

    Arguments and outputs are those of `mnif_nerf.rendering.surface.render_surface`; a missing grid is `distance_grid`.
    """
    grid = distance_grid(field) if grid is None else grid
    return render_surface(field, origins, directions, grid, half_extent, chunk, march=trace)


@torch.no_grad()
def render_distance_view(
    field: DistanceField,
    c2w: Tensor,
    intrinsics: Intrinsics,
    grid: SurfaceGrid | None = None,
    half_extent: float | None = None,
    samples: int = 2,
) -> dict[str, Tensor]:
    """The view of camera `c2w` `[4, 4]`: `render_distance`'s outputs as `[H, W, C]`.

    Args:
        field: the field.
        c2w: camera-to-world, OpenCV axes, world units.
        intrinsics: the camera.
        grid, half_extent: as in `render_distance`.
        samples: rays along each edge of a pixel where the picture changes: `rgb` and `accumulation` are their mean;
            `depth` and `normal` stay those of the pixel's middle.
    """
    grid = distance_grid(field) if grid is None else grid
    height, width = intrinsics.height, intrinsics.width
    origins, directions = pixel_rays(c2w, intrinsics)
    out = render_distance(field, origins, directions, grid, half_extent)
    busy = _busy_pixels(out["rgb"].view(height, width, 3))
    if samples > 1 and len(busy) > 0:
        index = _fine_pixels(busy, width, samples).flatten()
        origins, directions = pixel_rays(c2w, intrinsics.scaled(samples))
        fine = render_distance(field, origins[index], directions[index], grid, half_extent)
        for name in ("rgb", "accumulation"):
            out[name][busy] = fine[name].view(len(busy), samples**2, -1).mean(dim=1)
    return {name: value.view(height, width, -1) for name, value in out.items()}


def _busy_pixels(rgb: Tensor) -> Tensor:
    """Flat index `[K]` of the pixels of `[H, W, 3]` that differ from a neighbour, or have none on one side."""
    padded = F.pad(rgb.permute(2, 0, 1)[None], (1, 1, 1, 1), value=-1.0)
    spread = F.max_pool2d(padded, 3, stride=1) + F.max_pool2d(-padded, 3, stride=1)
    return (spread[0].amax(dim=0) > _BUSY).flatten().nonzero().flatten()


def _fine_pixels(pixels: Tensor, width: int, samples: int) -> Tensor:
    """Flat index `[K, samples^2]` in the finer picture of the parts of pixels `[K]` of one that is `width` wide."""
    part = torch.arange(samples, device=pixels.device)
    rows = (pixels // width * samples)[:, None, None] + part[:, None]
    columns = (pixels % width * samples)[:, None, None] + part
    return (rows * (width * samples) + columns).flatten(1)
