"""Real values on grids of 1 to 4 axes as training data: .npy, .npz and .wav files.

Sounds and series have 1 axis, maps 2, volumes 3, volumes over time 4. All files of a data set have one shape. A .wav
file of several channels is [samples, channels]; in arrays the last axis counts channels only where the user says how
many there are. Values keep their units: the lowest and the highest of the data set become -1 and +1 in training and
are kept, so that samples are written in the same units again.
"""

from __future__ import annotations

import contextlib
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.readers.arrays import load_arrays
from mnif_nerf.data.readers.grid_reader import (
    GridReader,
    Read,
    Size,
    blocks,
    cells_text,
    check_size,
    coarse_shape,
    plain_reading,
    register,
)
from mnif_nerf.data.readers.splits import GridSource
from mnif_nerf.errors import MNIFError, first_line

SIGNAL_SUFFIXES = (".npy", ".npz", ".wav")
MOST_AXES = 4
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class Signal:
    """One file: float32 `[*shape, C]`, its samples per second (.wav), and the type of its numbers."""

    values: np.ndarray
    rate: int | None
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells per axis."""
        return self.values.shape[:-1]


def read_signal(path: Path | str, channels: int | None = None) -> Signal:
    """Read a file, see the module's text.

    Args:
        path: .npy, .npz (with a single array) or .wav.
        channels: entries of the last axis, where that is one of channels; None or 1 where there is no such axis, but
            for .wav files, which say themselves.

    Raises:
        MNIFError: unreadable, complex or no numbers, NaN or infinite, another number of axes or channels.
    """
    path, rate = Path(path), None
    try:
        if path.suffix.lower() == ".wav":
            rate, array = _read_wav(path)
        else:
            array = _read_array(path)
    except _READ_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise MNIFError(f"{path}: cannot be read as a signal ({reason}); write it again.") from None
    if array.dtype.kind not in "buif":
        raise MNIFError(f"{path}: holds numbers of type {array.dtype}; signals are real-valued.")
    dtype = str(array.dtype)
    if rate is not None and array.ndim == 1 and channels in (None, 1):
        array = array[:, None]
    elif rate is None and channels in (None, 1):
        array = array[..., None]
    if channels not in (None, array.shape[-1] if array.ndim > 1 else 1):
        raise MNIFError(
            f"{path}: an array of {cells_text(array.shape)}, but the last axis should be {channels} channels."
        )
    if not 1 <= array.ndim - 1 <= MOST_AXES or array.size == 0:
        raise MNIFError(f"{path}: an array of {array.ndim - 1} axes, or empty; signals have 1 to {MOST_AXES} axes.")
    values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise MNIFError(f"{path}: a value is NaN or infinite; fill the gaps, or leave the file out.")
    return Signal(values, rate, dtype)


class SignalReader(GridReader):
    """Real values: float32 [*shape, C] in their own units."""

    name, values, nouns = "signal", "floats", "signals"
    expected = f"{', '.join(SIGNAL_SUFFIXES)} files of one shape, in train/, val/ and test/ or all together"
    suffixes = SIGNAL_SUFFIXES

    def settle(self, sources: Sequence[GridSource], size: Size, channels: int | None) -> GridFacts:
        """The shape that all files have, or a coarser one, and the range of all values; every file is read."""
        check_size(size)
        first: Signal | None = None
        low, high, rates, types = np.inf, -np.inf, set(), set()
        for source in sources:
            signal = read_signal(source.path, channels)
            first = first or signal
            if signal.values.shape != first.values.shape:
                raise MNIFError(
                    f"{source}: {_described(signal)}, but {sources[0]} has {_described(first)}; cut or resample them "
                    "to one shape."
                )
            low, high = min(low, float(signal.values.min())), max(high, float(signal.values.max()))
            rates.add(signal.rate)
            types.add(signal.dtype)
        assert first is not None
        if not low < high:
            raise MNIFError(f"{sources[0].path.parent}: every value is {low:g}, so there is nothing to learn.")
        shape = first.shape if size is None else coarse_shape(first.shape, size, sources[0])
        rate = rates.pop() if len(rates) == 1 else None
        if rate is not None:
            rate = rate * shape[0] // first.shape[0]
        dtype = types.pop() if len(types) == 1 else ""
        kept = dtype if np.dtype(dtype or "f4").kind in "ui" else None
        return GridFacts(shape, first.values.shape[-1], low, high, rate, kept)

    def reading(self, facts: GridFacts, exact: bool) -> contextlib.AbstractContextManager[Read]:
        """A coarser grid has the means of its blocks."""
        return plain_reading(lambda source: _as_asked(source, facts))

    def check(self, value: np.ndarray, name: str) -> None:
        """Finite numbers [*shape, C]."""
        if value.dtype.kind not in "buif" or not 2 <= value.ndim <= MOST_AXES + 1 or not np.isfinite(value).all():
            raise MNIFError(f"{name}: {value.dtype} {list(value.shape)}; expected finite numbers [*shape, channels].")


def _described(signal: Signal) -> str:
    channels = signal.values.shape[-1]
    return f"{cells_text(signal.shape)} values" + (f" of {channels} channels" if channels > 1 else "")


def _as_asked(source: GridSource, facts: GridFacts) -> np.ndarray:
    signal = read_signal(source.path, facts.channels if facts.channels > 1 else None)
    if signal.values.shape[-1] != facts.channels:
        raise MNIFError(f"{source}: {signal.values.shape[-1]} channels, expected {facts.channels}.")
    if signal.shape == facts.shape:
        return signal.values
    split = [n for pair in zip(facts.shape, blocks(signal.shape, facts.shape, source)) for n in pair]
    means = signal.values.reshape(*split, facts.channels).mean(axis=tuple(range(1, len(split), 2)), dtype=np.float64)
    return means.astype(np.float32)


def _read_array(path: Path) -> np.ndarray:
    found = load_arrays(path)
    if isinstance(found, np.ndarray):
        return found
    with found:
        if len(found.files) != 1:
            raise ValueError(f"arrays {', '.join(sorted(found.files)) or 'missing'}; expected a single one")
        return found[found.files[0]]


def _check_wav(path: Path) -> None:
    """Compare the sizes that the parts of a sound name with the file: scipy allocates what they say.

    Raises:
        ValueError: a part is larger than the file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        order: Literal["little", "big"] = "big" if file.read(12)[:4] == b"RIFX" else "little"
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[4:], order)
            if file.tell() + length > size:
                raise ValueError(f"its part {head[:4]!r} says {length} bytes, and {size - file.tell()} are left")
            file.seek(length + length % 2, 1)


def _read_wav(path: Path) -> tuple[int, np.ndarray]:
    from scipy.io import wavfile

    _check_wav(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that hold no samples
        try:
            rate, array = wavfile.read(path)
        except OSError:
            raise
        except Exception as error:  # damage shows in errors of all kinds there
            raise ValueError(f"{first_line(error)}") from None
    return int(rate), array


READER = register(SignalReader())
