"""Densities of a collapsed field on a grid, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.heads import greatest_density
from mnif_nerf.fields.solid import surface_level
from mnif_nerf.machine import check_memory
from mnif_nerf.rendering.occupancy import OccupancyGrid, RadianceField, resize_cells

COARSE_RESOLUTION = 64
CHUNK = 1 << 14  # activations of this many points stay in the processor's cache
# A skipped coarse cell has less than this share of the surface level at its own and all neighbours' centres.
_IGNORE = 0.02


def level_of(field: RadianceField, half_extent: float = 0.5) -> float:
    """The density of this field's surface: `surface_level`, or half of the most that its head can give if that is less.

    The authors' density ends at 10, below the 22.2 of `surface_level`: theirs is 5.
    """
    return min(surface_level(half_extent), 0.5 * greatest_density(getattr(field, "head", "radiance")))


def density_grid(
    field: RadianceField,
    resolution: int,
    half_extent: float = 0.5,
    cells: Tensor | None = None,
    chunk: int = CHUNK,
    level: float | None = None,
    skip_empty: bool = True,
) -> Tensor:
    """Densities at the centres of a grid's cells; cell (i, j, k) is centred at -h + (i + 0.5) * 2h / G.

    Where the grid is at least twice `COARSE_RESOLUTION`, a coarse pass finds the cells whose surroundings
    are all nearly empty (below 2 % of `level`) and leaves them at 0: 256^3 gets several times quicker.

    Args:
        field: with `density(points [N, 3]) -> [N]`.
        resolution: G.
        half_extent: h, half the edge of the box, in world units.
        cells: bool `[C, C, C]` over the same box; outside them the density is taken as 0, as in rendering.
        chunk: points per query, which bounds the memory beyond the grid itself.
        level: the surface density that `nearly empty` refers to; `level_of` when None.
        skip_empty: whether that coarse pass is made; without it every cell is evaluated.

    Returns:
        float32 `[G, G, G]` on the CPU, indexed [x, y, z].

    Raises:
        MNIFError: the resolution is below 2 or cannot fit in memory, or the field gives NaN or infinite
            densities.
    """
    check_resolution(resolution, bytes_per_cell=5)
    active = None if cells is None else _as_bool_cells(cells)
    if skip_empty and resolution >= 2 * COARSE_RESOLUTION:
        threshold = _IGNORE * (level_of(field, half_extent) if level is None else level)
        coarse = OccupancyGrid.from_field(
            field, COARSE_RESOLUTION, half_extent, threshold, active, field_device(field), chunk
        )
        active = coarse.cells.cpu()
    return _query(field, resolution, half_extent, active, chunk)


def _as_bool_cells(cells: Tensor) -> Tensor:
    cells = torch.as_tensor(cells).to("cpu", torch.bool)
    if cells.ndim != 3 or len(set(cells.shape)) != 1:
        raise MNIFError(f"cells of shape {list(cells.shape)} are not a cube; expected [C, C, C].")
    return cells


@torch.no_grad()
def _query(field: RadianceField, resolution: int, half_extent: float, active: Tensor | None, chunk: int) -> Tensor:
    """Densities `[G, G, G]`, computed slab by slab along x and only inside `active` `[C, C, C]`."""
    device = field_device(field)
    chunk = max(chunk, 1 << 19) if device.type == "cuda" else chunk
    axis = (torch.arange(resolution, dtype=torch.float32) + 0.5) * (2 * half_extent / resolution) - half_extent
    values = torch.zeros(resolution, resolution, resolution)
    slab = max(1, min(resolution, chunk // resolution**2))
    inside = None if active is None else resize_cells(active, resolution)
    for first in range(0, resolution, slab):
        last = min(first + slab, resolution)
        if inside is None:
            index = torch.arange((last - first) * resolution**2)
        else:
            index = inside[first:last].flatten().nonzero()[:, 0]
        plane = values[first:last].view(-1)
        for part in index.split(chunk):
            x, yz = part // resolution**2 + first, part % resolution**2
            points = torch.stack([axis[x], axis[yz // resolution], axis[yz % resolution]], dim=1)
            plane[part] = field.density(points.to(device)).float().cpu()
    if not torch.isfinite(values).all():
        raise MNIFError("the field gives NaN or infinite densities; its weights are damaged, so train it again.")
    return values


def field_device(field: object) -> torch.device:
    """The device a field's parameters live on; the CPU for a field without any."""
    parameters: Callable | None = getattr(field, "parameters", None)
    first = next(iter(parameters()), None) if parameters is not None else None
    return torch.device("cpu") if first is None else first.device


def check_resolution(resolution: int, bytes_per_cell: int) -> None:
    """Refuse a grid that is too small to mean anything or too large for this machine's free memory.

    Raises:
        MNIFError: with the largest resolution that fits.
    """
    if resolution < 2:
        raise MNIFError(f"`resolution` {resolution} is too small for a grid; use at least 2 (128 is usual).")
    check_memory(resolution, bytes_per_cell, dimensions=3)
