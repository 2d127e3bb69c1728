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
from mnif_nerf.rendering.grid_march import ASKS, CUT, MET, PARTS, Rays, march
from mnif_nerf.rendering.near_cells import distances_at
from mnif_nerf.rendering.surface import Hits, refine_crossing, render_surface
from mnif_nerf.rendering.tracing_grid import TracingGrid, distance_grid

# Shares of the scene box's edge.
LEAST_STEP = 1.0 / 640
_AHEAD = 4
_CHUNK = 1 << 11  # points whose slopes are found together: activations stay in the processor's cache
# Pixels are drawn by more rays where the picture changes by more than this from one to the next.
_BUSY = 0.02
# Cosine between ray and surface below which the field's slope does not say where they meet.
_GRAZING = 0.1
# Of a part's edge: a distance of a hit beyond which the grid is not believed.
_DEEP = 0.15
# The slope of a distance is 1, and less between two surfaces.
_STEEP = 0.5
_ENTRY_SAMPLES = 13


def find_on_surface(
    field: DistanceField, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, grid: TracingGrid
) -> Hits:
    """Where R rays `[R, 3]` that cross the scene box from `near` to `far` `[R]` meet the surface.

    The crossing is found by the grid's distances, in rough parts by the field's; then the field says at each how far
    the surface still is, how it lies and what colour it has.
    """
    index, depth, is_cut = trace(field, origins, directions, near, far, grid)
    if len(index) == 0:
        return Hits(index, depth, is_cut, origins[:0], None)
    d = directions[index]
    part = 2 * grid.half_extent / (grid.resolution * PARTS)
    distance, slope, paint = surface_at(field, origins[index] + depth.unsqueeze(-1) * d)
    fall = -(slope * d).sum(dim=-1)
    # In a shell two parts thick, what is linear between corners may place a hit beyond the shell's middle, from where
    # the other side is nearer. There the field says where the ray goes in.
    steep = slope.norm(dim=-1)
    deep = (fall <= _GRAZING * steep) | (distance.abs() > _DEEP * part) | (steep < _STEEP)
    doubtful = (deep & ~is_cut).nonzero().flatten()
    if len(doubtful) > 0:
        depth = depth.clone()
        depth[doubtful] = _entry(field, origins[index[doubtful]], d[doubtful], depth[doubtful], part)
        again = surface_at(field, origins[index[doubtful]] + depth[doubtful].unsqueeze(-1) * d[doubtful])
        distance[doubtful], slope[doubtful], paint[doubtful] = again
        fall = -(slope * d).sum(dim=-1)
    # One step of Newton's, where the ray does not graze the surface.
    nearer = torch.where(fall > _GRAZING * slope.norm(dim=-1), distance / fall, torch.zeros_like(fall))
    depth = torch.where(is_cut, depth, depth + nearer.clamp(-part, part))
    return Hits(index, depth, is_cut, F.normalize(slope, dim=-1, eps=1e-9), paint if field.has_color else None)


def _entry(field: DistanceField, origins: Tensor, directions: Tensor, depth: Tensor, part: float) -> Tensor:
    """Where rays `[K, 3]` enter the solid by the field's own distances, near `depth` `[K]`; there where they do not."""
    times = depth.unsqueeze(-1) + part * torch.linspace(-2.0, 1.0, _ENTRY_SAMPLES, device=depth.device)
    points = origins.unsqueeze(1) + times.unsqueeze(-1) * directions.unsqueeze(1)
    inside = distances_at(field, points.view(-1, 3)).view(times.shape) <= 0
    enters = inside[:, 1:] & ~inside[:, :-1]
    found = enters.any(dim=1).nonzero().flatten()
    first = enters[found].int().argmax(dim=1, keepdim=True)
    last, now = times[found].gather(1, first)[:, 0], times[found].gather(1, first + 1)[:, 0]
    out = depth.clone()
    out[found] = refine_crossing(field, origins[found], directions[found], last, now)[0]
    return out


def trace(
    field: DistanceField, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, grid: TracingGrid
) -> tuple[Tensor, Tensor, Tensor]:
    """Index `[H]` of the rays that enter the solid, distances `[H]` along them, and where the box cuts it (bool).

    Args:
        field: the field.
        origins, directions: `[R, 3]` world units; directions of unit length.
        near, far: `[R]` where rays enter and leave the scene box.
        grid: of `distance_grid`.
    """
    least = 2 * grid.half_extent * LEAST_STEP
    index = torch.arange(len(near), device=near.device)
    rays = Rays(origins, directions, near, far, near.clone(), near.clone())
    ahead = torch.arange(_AHEAD, device=near.device, dtype=near.dtype)
    met, told = [], []  # by the grid, and by the field itself
    while len(index) > 0:
        state = march(grid, rays, least)
        hit = ((state == MET) | (state == CUT)).nonzero().flatten()
        met.append((index[hit], rays.now[hit], state[hit] == CUT))
        asked = (state == ASKS).nonzero().flatten()
        index, rays = index[asked], rays.chosen(asked)
        if len(index) == 0:
            break
        # Some steps ahead at once, as rays that graze thin parts take many.
        times = rays.now.unsqueeze(-1) + least * ahead
        points = rays.origins.unsqueeze(1) + times.unsqueeze(-1) * rays.directions.unsqueeze(1)
        distance = distances_at(field, points.view(-1, 3)).view(times.shape)
        inside = (distance <= 0) & (times < rays.end.unsqueeze(-1))
        first, on = inside.int().argmax(dim=-1, keepdim=True), ~inside.any(dim=-1)
        entered = times.gather(1, first)[:, 0]
        hit, on = (~on).nonzero().flatten(), on.nonzero().flatten()
        last = torch.where(first[:, 0] > 0, entered - least, rays.last)
        told.append((index[hit], last[hit], entered[hit]))
        index, rays, end = index[on], rays.chosen(on), times[on, -1]
        rays.last.copy_(end)
        rays.now.copy_(end + (TRUST * distance[on, -1].clamp(max=TRUNCATION)).clamp(min=least))
    if any(len(part[0]) for part in told):
        index, last, now = (torch.cat(parts) for parts in zip(*told))
        met.append((index, *refine_crossing(field, origins[index], directions[index], last, now)))
    found, depth, is_cut = (torch.cat(parts) for parts in zip(*met))
    return found, depth, is_cut


def render_distance(
    field: DistanceField,
    origins: Tensor,
    directions: Tensor,
    grid: TracingGrid | None = None,
    half_extent: float | None = None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Where rays meet the surface, and its shaded picture in the field's colours over white.

    Arguments and outputs are those of `mnif_nerf.rendering.surface.render_surface`; a missing grid is `distance_grid`.
    """
    grid = distance_grid(field) if grid is None else grid
    return render_surface(field, origins, directions, grid, half_extent, chunk, find=find_on_surface)


@torch.no_grad()
def render_distance_view(
    field: DistanceField,
    c2w: Tensor,
    intrinsics: Intrinsics,
    grid: TracingGrid | None = None,
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


def surface_at(field: DistanceField, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances `[N]`, slopes `[N, 3]` and colours `[N, 3]` at points `[N, 3]`, few enough together for the cache."""
    parts = [field.surface(part) for part in points.split(1 << 18 if points.is_cuda else _CHUNK)]
    distance, slope, color = zip(*parts)
    return torch.cat(distance), torch.cat(slope), torch.cat(color)
