"""What a model, a store and an object know of the grids they were made from: shape, channels and units."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.limits import is_number

_MOST_VALUES = 2**36  # of a grid: 4096 cells along each axis of a cube
_DTYPE = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|[<>|=]?[biuf][1248]")


@dataclass(frozen=True)
class GridFacts:
    """The grid of a data set; every instance has the same.

    Attributes:
        shape: cells per axis, in the order of the field's coordinates; of pictures (rows, columns).
        channels: numbers per cell.
        low, high: what the field's values -1 and +1 stand for, in the data's own units.
        rate: samples per second, of sounds.
        dtype: dtype of the numbers in the data's files ("int16"), where files are to be written back in it.
    """

    shape: tuple[int, ...]
    channels: int = 1
    low: float = -1.0
    high: float = 1.0
    rate: int | None = None
    dtype: str | None = None

    @property
    def dims(self) -> int:
        """Axes of a grid, which are the field's coordinates."""
        return len(self.shape)

    @property
    def num_cells(self) -> int:
        """Cells of one grid."""
        return math.prod(self.shape)

    @property
    def resolution(self) -> int:
        """Cells along the longest edge."""
        return max(self.shape)

    def scaled(self, resolution: int) -> tuple[int, ...]:
        """The shape of the same proportions whose longest edge has `resolution` cells."""
        return scaled_shape(self.shape, resolution)

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it. The units, rate and dtype are left out where they say nothing."""
        stored: dict[str, Any] = {"resolution": self.resolution, "channels": self.channels, "shape": list(self.shape)}
        if (self.low, self.high) != (-1.0, 1.0):
            stored |= {"low": self.low, "high": self.high}
        for name in ("rate", "dtype"):
            if getattr(self, name) is not None:
                stored[name] = getattr(self, name)
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], dims: int, place: object = "grid") -> GridFacts:
        """Read back `to_dict`. Without a "shape", as in older files, the grid is a square or cube of "resolution".

        Raises:
            MNIFError: a value is missing or out of range, or a key is not known; the sentence begins with `place`.
        """
        known = {"resolution", "channels", "shape", "low", "high", "rate", "dtype"}
        unknown = sorted(set(stored) - known)
        if unknown:
            raise MNIFError(f"{place}: {', '.join(unknown)} is not known; a newer version may have written it.")
        shape = stored.get("shape")
        shape = [stored.get("resolution")] * dims if shape is None else shape
        counts = [*shape, stored.get("channels", 1)] if isinstance(shape, (list, tuple)) else []
        whole = all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= _MOST_VALUES for n in counts)
        fits = whole and len(counts) == dims + 1 and math.prod(counts) <= _MOST_VALUES
        edge = stored.get("resolution", max(shape) if fits else None)
        if not fits or isinstance(edge, bool) or edge != max(shape):
            raise MNIFError(f"{place}: {dict(stored)} does not describe a grid of {dims} axes; write it again.")
        low, high = (stored.get(name, value) for name, value in (("low", -1.0), ("high", 1.0)))
        if not (is_number(low) and is_number(high) and low < high):
            raise MNIFError(f"{place}: values from {low} to {high} are not a range; write it again.")
        rate, dtype = stored.get("rate"), stored.get("dtype")
        if not (rate is None or (is_number(rate) and rate > 0)) or not _is_dtype(dtype):
            raise MNIFError(f"{place}: a rate of {rate!r} and values of type {dtype!r}; write it again.")
        return cls(tuple(shape), counts[-1], float(low), float(high), rate, dtype)


def scaled_shape(shape: Sequence[int], resolution: int) -> tuple[int, ...]:
    """The shape of the same proportions whose longest edge has `resolution` cells; every edge has at least one."""
    longest = max(shape)
    return tuple(max(1, (2 * n * resolution + longest) // (2 * longest)) for n in shape)


def _is_dtype(stored: Any) -> bool:
    return stored is None or (isinstance(stored, str) and _DTYPE.fullmatch(stored) is not None)
