"""Which cells of the scene box can hold the surface of a distance field: coarse cells first, then their parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mnif_nerf.fields.distance import TRUNCATION, TRUST, DistanceField
from mnif_nerf.rendering.occupancy import resize_cells

_COARSEST = 48  # cells whose half diagonal is below what distances are learned to, so that most are left out
_CHUNK = 1 << 14  # points evaluated together: activations stay in the processor's cache


@torch.no_grad()
def near_cells(
    field: DistanceField, resolution: int, level: float = 0.0, bounds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cells that the surface may cross, and cells inside it.

    A cell is left out where the distance at its centre, or at that of a larger cell around it, says that the surface
    is beyond its corners; distances are believed to the share `TRUST`.

    Args:
        field: the field.
        resolution: G, cells along an edge of its scene box.
        level: the distance that counts as surface, world units; below the truncation by a cell at least.
        bounds: bool `[g, g, g]` outside which nothing exists, or None.

    Returns:
        near and inside, bool `[G, G, G]` (index [x, y, z]), on the field's device. `inside` is only meant where a cell
        is not near.
    """
    device = field_device(field)
    size = _COARSEST if resolution > 1.5 * _COARSEST else resolution
    near = torch.ones(size, size, size, dtype=torch.bool, device=device)
    if bounds is not None:
        near = resize_cells(bounds.to(device), size).clone()
    inside = torch.zeros_like(near)
    while True:
        asked = near.flatten().nonzero().flatten()
        distance = distances_at(field, cell_points(asked, size, field.half_extent)) - level
        reach = math.sqrt(3.0) * field.half_extent / size / TRUST
        near.view(-1)[asked] = ~(distance.abs() >= min(reach, TRUNCATION - abs(level)))  # NaN counts as near
        inside.view(-1)[asked] = distance < 0
        finer = 2 * size if 3 * size <= resolution else resolution
        if finer == size:
            break
        near, inside = resize_cells(near, finer), nearest_cells(inside, finer)
        size = finer
    if bounds is not None:
        allowed = resize_cells(bounds.to(device), resolution)
        near, inside = near & allowed, inside & allowed
    return near, inside


def nearest_cells(cells: Tensor, resolution: int) -> Tensor:
    """A grid `[g, g, g]` at another resolution `[G, G, G]`, each cell as the one that holds its centre."""
    index = ((torch.arange(resolution, device=cells.device) + 0.5) * len(cells) / resolution).long()
    return cells[index][:, index][:, :, index]


def cell_points(index: Tensor, resolution: int, half_extent: float) -> Tensor:
    """Centres `[N, 3]` (world units) of cells with flat index `[N]` (x-major)."""
    cell = torch.stack([index // resolution**2, index // resolution % resolution, index % resolution], dim=1)
    return (cell + 0.5) * (2 * half_extent / resolution) - half_extent


@torch.no_grad()
def distances_at(field: DistanceField, points: Tensor) -> Tensor:
    """Distances `[N]` at `[N, 3]` points, some ten thousand at a time."""
    limit = 1 << 20 if points.is_cuda else _CHUNK
    return torch.cat([field.distance(part) for part in points.split(limit)])


def field_device(field: torch.nn.Module) -> torch.device:
    """The device of a field's weights; the CPU for one without any."""
    first = next(iter(field.parameters()), None)
    return torch.device("cpu") if first is None else first.device
