"""Rays through the distances of a `TracingGrid`: compiled on the CPU (_tracing_kernel.c), else by torch."""

from __future__ import annotations

import ctypes
import functools
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mnif_nerf.rendering.intervals import cell_index

if TYPE_CHECKING:
    from mnif_nerf.rendering.tracing_grid import TracingGrid

LEFT, MET, CUT, ASKS = range(4)
"""What became of a ray: it left the scene box; it met the surface; it began inside; or the field must be asked."""

_VERSION = 1
_REFINEMENTS = 6
_UNASKED = 8  # steps on a GPU before its host asks which rays go on
FREE, SOLID = -1, -2  # coarse cells without a brick: where nothing is, and where all is inside
PARTS = 4  # of a brick, along each axis


class Rays(NamedTuple):
    """R rays: origins and unit directions `[R, 3]`, where they begin and end `[R]`, and where each was one step
    before and is now `[R]`, all float32, contiguous and in world units. A march changes the last two."""

    origins: Tensor
    directions: Tensor
    start: Tensor
    end: Tensor
    last: Tensor
    now: Tensor

    def chosen(self, index: Tensor) -> Rays:
        """Copies of the rays with index `[K]`."""
        return Rays(*(part[index] for part in self))


class _Grid(ctypes.Structure):
    """Mirror of `struct grid` in _tracing_kernel.c."""

    _fields_ = [
        ("cells", ctypes.c_int64),
        ("half_extent", ctypes.c_float),
        ("least", ctypes.c_float),
        ("index", ctypes.c_void_p),
        ("leap", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("rough", ctypes.c_void_p),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_tracing_kernel" + suffix)
        try:
            library = ctypes.CDLL(str(path))
            if library.mnif_tracing_version() != _VERSION:
                continue
        except (OSError, AttributeError):
            continue
        library.mnif_tracing_march.restype = None
        library.mnif_tracing_march.argtypes = [ctypes.POINTER(_Grid), ctypes.c_int64, *[ctypes.c_void_p] * 7]
        return library
    return None


def march(grid: TracingGrid, rays: Rays, least: float) -> Tensor:
    """Let every ray step until something becomes of it: `rays.now` is then where, and the output `[R]` (uint8) what.

    Args:
        grid: the distances.
        rays: changed in place.
        least: the shortest step, world units.
    """
    on_cpu = all(part.device.type == "cpu" and part.dtype == torch.float32 for part in rays)
    library = _library() if on_cpu and os.environ.get("MNIF_KERNEL") != "torch" else None
    if library is None:
        return _march(grid, rays, least, _UNASKED if rays.now.is_cuda else 1)
    state = torch.empty(len(rays.now), dtype=torch.uint8)
    given = _Grid(grid.resolution, grid.half_extent, least)
    held = (grid.index, grid.leap.contiguous(), grid.steps, grid.rough)
    given.index, given.leap, given.steps, given.rough = (part.data_ptr() for part in held)
    inputs = [part.contiguous() for part in rays[:4]]
    assert rays.last.is_contiguous()
    assert rays.now.is_contiguous()
    pointers = [part.data_ptr() for part in (*inputs, rays.last, rays.now, state)]
    library.mnif_tracing_march(ctypes.byref(given), len(state), *pointers)
    return state


def _march(grid: TracingGrid, rays: Rays, least: float, unasked: int = 1) -> Tensor:
    """`march` by torch, which asks after so many steps which rays go on."""
    state = torch.full(rays.now.shape, LEFT, dtype=torch.uint8, device=rays.now.device)
    active = (rays.now < rays.end).nonzero().flatten()
    tiny = 1e-4 * grid.half_extent / grid.resolution
    while len(active) > 0:
        some = rays.chosen(active)
        last, t, became = some.last, some.now, state[active]
        on = torch.ones_like(became, dtype=torch.bool)
        for _ in range(unasked):
            step, rough, cell = _steps(grid, some.origins + t.unsqueeze(-1) * some.directions)
            free = step.isinf()
            met = on & ~rough & (step <= 0)
            became = torch.where(met, torch.where(t > some.start, MET, CUT), became)
            became = torch.where(on & rough, ASKS, became)
            step = torch.where(step > least, step, least)
            away = torch.maximum(
                grid.leap.flatten()[cell], _way_out(grid, some.origins, some.directions, t, cell) + tiny
            )
            step = torch.where(free, away, step)
            goes = on & ~(rough | met)
            last, t = torch.where(goes, t, last), torch.where(goes, t + step, t)
            on = goes & (t < some.end)
        rays.last[active], rays.now[active], state[active] = last, t, became.to(torch.uint8)
        active = active[on.nonzero().flatten()]
    met = (state == MET).nonzero().flatten()
    rays.now[met] = _crossing(grid, rays.chosen(met))
    return state


def _steps(grid: TracingGrid, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Safe steps `[N]` at points `[N, 3]` (infinite in free cells), whether the cell is rough, and the coarse cell."""
    count = grid.resolution
    cell = cell_index(points, count, grid.half_extent)
    brick = grid.index[cell].long()
    whole = torch.stack([cell // count**2, cell // count % count, cell % count], dim=-1)
    place = (points + grid.half_extent) * (count / (2 * grid.half_extent)) - whole
    place = (place * PARTS).clamp(0.0, float(PARTS))
    part = place.long().clamp(max=PARTS - 1)
    place = place - part
    held = brick.clamp(min=0)
    if len(grid.steps) == 0:
        values, rough = torch.ones_like(points[:, 0]), torch.zeros_like(brick, dtype=torch.bool)
    else:
        rough = (grid.rough[held, part[:, 0], part[:, 1], part[:, 2]] > 0) & (brick >= 0)
        corners = [
            grid.steps[held, part[:, 0] + a, part[:, 1] + b, part[:, 2] + c]
            for a in (0, 1) for b in (0, 1) for c in (0, 1)
        ]  # fmt: skip
        for axis in (2, 1, 0):
            share = place[:, axis]
            corners = [low + share * (high - low) for low, high in zip(corners[::2], corners[1::2])]
        values = corners[0]
    values = torch.where(brick == FREE, torch.inf, values)
    return torch.where(brick == SOLID, -2 * grid.half_extent / count, values), rough, cell


def _way_out(grid: TracingGrid, origins: Tensor, directions: Tensor, t: Tensor, cell: Tensor) -> Tensor:
    """How far rays `[N]` go on until each has left its coarse cell."""
    count = grid.resolution
    whole = torch.stack([cell // count**2, cell // count % count, cell % count], dim=-1)
    side = (whole + (directions > 0)) * (2 * grid.half_extent / count) - grid.half_extent
    way = torch.where(directions == 0, torch.inf, (side - origins) / directions - t.unsqueeze(-1))
    return way.amin(dim=-1).clamp(min=0.0)


def _crossing(grid: TracingGrid, rays: Rays) -> Tensor:
    """Where the grid's distance is zero `[N]` between `last` (outside) and `now` (inside), by false position."""

    def step(t: Tensor) -> Tensor:
        return _steps(grid, rays.origins + t.unsqueeze(-1) * rays.directions)[0]

    low, high = rays.last, rays.now
    outside, inside = step(low), step(high)
    outside = torch.where(outside.isinf(), high - low, outside)
    last = torch.zeros_like(outside)
    for _ in range(_REFINEMENTS):
        middle = low + (high - low) * outside / (outside - inside)
        found = step(middle)
        found = torch.where(found.isinf(), high - middle, found)
        positive = found > 0
        halved_in = torch.where(last > 0, 0.5 * inside, inside)
        halved_out = torch.where(last < 0, 0.5 * outside, outside)
        low, high = torch.where(positive, middle, low), torch.where(positive, high, middle)
        outside, inside = torch.where(positive, found, halved_out), torch.where(positive, halved_in, found)
        last = torch.where(positive, 1.0, -1.0)
    return torch.where(outside - inside > 0, low + (high - low) * outside / (outside - inside), high)
