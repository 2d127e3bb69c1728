"""Objects of signal models: real values on a grid of 1 to 4 axes, written back in the units of the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.density import field_device
from mnif_nerf.export.signals import signal_picture, write_signal
from mnif_nerf.machine import check_memory
from mnif_nerf.objects.base import NeuralObject, check_pixels
from mnif_nerf.rendering.grids import cell_coordinates

if TYPE_CHECKING:
    from PIL import Image

_CHUNK = 1 << 16  # points evaluated together
_BYTES_PER_VALUE = 64


class NeuralSignal(NeuralObject):
    """A sound, a series, a map or a volume. Its field can be sampled at any resolution.

    The arguments are those of `NeuralObject`; its facts must have the `grid` of the training data.
    """

    modality: ClassVar[str] = "signal"

    @property
    def grid_facts(self) -> GridFacts:
        """Shape and units of the training data.

        Raises:
            MNIFError: the object was made without them.
        """
        if self.facts.grid is None:
            raise MNIFError(f"{self.name}: does not know the grid it was trained on; give `facts` with a `grid`.")
        return self.facts.grid

    @torch.no_grad()
    def values(self, shape: int | Sequence[int] | None = None) -> np.ndarray:
        """Sample the field at the centres of a grid's cells.

        Args:
            shape: cells per axis, or along the longest edge; the training data's when None.

        Returns:
            float32 `[*shape]`, or `[*shape, C]` of several channels, in the data's own units.

        Raises:
            MNIFError: another number of axes, an edge without cells, or too many for the memory.
        """
        grid = self.grid_facts
        wanted = self._shape(shape)
        total = int(np.prod([int(n) for n in wanted]))
        check_memory(total, _BYTES_PER_VALUE * grid.channels, dimensions=1)
        numbers = torch.arange(total, device=field_device(self.field)).split(_CHUNK)
        parts = [self.field.evaluate(cell_coordinates(part, wanted)).T.cpu() for part in numbers]
        units = grid.low + (torch.cat(parts).double() + 1) * (0.5 * (grid.high - grid.low))
        found = units.float().numpy().reshape(*wanted, grid.channels)
        return found[..., 0] if grid.channels == 1 else found

    def save_as(self, path: Path | str, shape: int | Sequence[int] | None = None) -> Path:
        """Write the values as .npy, .wav (of one axis) or .png (a line, a map, or slices), atomically.

        Data of whole numbers (16-bit sounds, CT) are rounded and written as such in .npy and .wav.

        Args:
            path: the suffix chooses the format.
            shape: as in `values`; a .wav of another length keeps its duration.

        Raises:
            MNIFError: an unknown suffix, a .wav of several axes, or a folder that cannot be written.
        """
        grid = self.grid_facts
        wanted = self._shape(shape)
        rate = None if grid.rate is None else grid.rate * wanted[0] / grid.shape[0]
        return write_signal(self.values(wanted), Path(path), len(wanted), rate, grid.dtype)

    def save_values(self, stem: Path) -> list[Path]:
        """Write the values as .npy, and as .wav where the data had a sampling rate."""
        suffixes = (".npy",) if self.grid_facts.rate is None else (".npy", ".wav")
        return [self.save_as(stem.with_name(stem.name + suffix)) for suffix in suffixes]

    def picture(self, resolution: int = 256) -> Image.Image:
        """A line of one axis; a map of two; of more, slices through the middle; see `NeuralObject`."""
        check_pixels(resolution)
        grid = self.grid_facts
        shape: Any = grid.scaled(max(grid.resolution, min(resolution, 2 * grid.resolution))) if grid.dims < 3 else None
        return signal_picture(self.values(shape), grid.dims, resolution, (grid.low, grid.high))

    def _shape(self, shape: int | Sequence[int] | None) -> tuple[int, ...]:
        grid = self.grid_facts
        wanted = grid.shape if shape is None else grid.scaled(shape) if isinstance(shape, int) else tuple(shape)
        if len(wanted) != grid.dims or min(wanted) < 1:
            raise MNIFError(
                f"{self.name}: `shape` is {shape}; ask for {grid.dims} numbers of 1 or more, one for each axis."
            )
        return wanted
