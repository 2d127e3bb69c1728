"""Occupancy grid of a collapsed field: where a ray needs samples, and where nothing behind is visible any more."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mnif_nerf.rendering.intervals import cell_index


class RadianceField(Protocol):
    """What rendering and export need of a field: `CompactField` has it, and so can an analytic test object."""

    def radiance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colours `[N, 3]` (composited, then clamped to [0, 1]) and densities `[N]` >= 0 at points `[N, 3]`."""
        ...

    def density(self, points: Tensor) -> Tensor:
        """Densities `[N]` >= 0 at points `[N, 3]`."""
        ...


def grid_points(resolution: int, half_extent: float, device: torch.device | str = "cpu") -> Tensor:
    """Cell centres `[G^3, 3]` of a grid over the cube, x-major (index (i * G + j) * G + k)."""
    axis = (torch.arange(resolution, device=device) + 0.5) * (2 * half_extent / resolution) - half_extent
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)


def dilate(cells: Tensor, steps: int = 1) -> Tensor:
    """Grow a bool grid `[G, G, G]` by `steps` cells in every direction, diagonals included."""
    size = 2 * steps + 1
    return F.max_pool3d(cells[None, None].float(), size, stride=1, padding=steps)[0, 0] > 0.5


def resize_cells(cells: Tensor, resolution: int) -> Tensor:
    """A bool grid at another resolution, conservative: a cell is set if it overlaps a set cell."""
    old = len(cells)
    if old == resolution:
        return cells
    index = torch.arange(resolution, device=cells.device)
    first = index * old // resolution
    last = ((index + 1) * old - 1) // resolution
    out = cells
    for axis in range(3):
        wide = int((last - first).max()) + 1
        picks = torch.stack([torch.minimum(first + k, last) for k in range(wide)])
        out = torch.stack([out.index_select(axis, pick) for pick in picks]).any(dim=0)
    return out


class OccupancyGrid:
    """Which cells of the scene box hold density, and a lower bound of it.

    Args:
        cells: `[G, G, G]` bool, index [x, y, z]: cells that a ray must sample.
        least_density: `[G, G, G]` a density the field does not fall below in the cell, used to stop rays early.
        half_extent: half the edge of the cube the grid covers.
    """

    def __init__(self, cells: Tensor, least_density: Tensor, half_extent: float = 0.5) -> None:
        self.cells = cells
        self.least_density = least_density
        self.half_extent = half_extent
        self.resolution = len(cells)

    @classmethod
    @torch.no_grad()
    def from_field(
        cls,
        field: RadianceField,
        resolution: int = 48,
        half_extent: float = 0.5,
        threshold: float = 1.0,
        bounds: Tensor | None = None,
        device: torch.device | str = "cpu",
        chunk: int = 32768,
    ) -> OccupancyGrid:
        """Sample the field at cell centres; occupied cells are those above `threshold`, grown by one cell.

        Args:
            field: the collapsed field.
            resolution: G.
            half_extent: half the edge of the scene box.
            threshold: density in 1/world unit. A cell of 1/48 unit that stays below a threshold of 1 is at most
                2 % opaque.
            bounds: optional `[g, g, g]` bool of any resolution: nothing exists outside it (the training hulls' union).
            device: where the field lives.
            chunk: points per evaluation.
        """
        shape = (resolution,) * 3
        allowed = torch.ones(shape, dtype=torch.bool, device=device)
        if bounds is not None:
            allowed = resize_cells(bounds.to(device), resolution)
        points = grid_points(resolution, half_extent, device)
        density = torch.zeros(len(points), device=device)
        wanted = allowed.flatten().nonzero().flatten()
        for part in wanted.split(chunk):
            density[part] = field.density(points[part])
        density = density.view(shape)
        least = -F.max_pool3d(-density[None, None], 3, stride=1, padding=1)[0, 0]
        return cls(dilate(density > threshold) & allowed, least, half_extent)

    def tight_box(self) -> tuple[Tensor, Tensor] | None:
        """Lowest and highest corner `[3]` of the occupied cells, or None where the grid is empty."""
        return self._tight_box

    @cached_property
    def corners(self) -> Tensor:
        """Lowest and highest corner `[2, 3]` of the occupied cells; the highest is the lower one where there are none.
        Nothing waits for a GPU."""
        place = torch.arange(self.resolution, device=self.cells.device)
        low, high = [], []
        for axis in range(3):
            others = [a for a in range(3) if a != axis]
            used = self.cells.any(dim=others[1]).any(dim=others[0])
            low.append(torch.where(used, place, self.resolution).amin())
            high.append(torch.where(used, place + 1, 0).amax())
        corners = torch.stack([torch.stack(low), torch.stack(high)])
        # In double precision, as the faces of cells are not numbers of single precision.
        return (corners.double() * (2 * self.half_extent / self.resolution) - self.half_extent).float()

    @cached_property
    def _tight_box(self) -> tuple[Tensor, Tensor] | None:
        lowest, highest = self.corners
        return (lowest, highest) if bool(highest[0] > lowest[0]) else None

    def lookup(self, points: Tensor) -> Tensor:
        """Flat cell index `[...]` of points `[..., 3]`."""
        return cell_index(points, self.resolution, self.half_extent)
