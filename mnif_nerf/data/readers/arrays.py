"""Reading .npy and .npz files from strangers: what a header asks for is compared with the file before it is allocated.

A .npy takes as much memory as its file. An array of an .npz takes at most `MOST_INFLATED` times the size of the file
(deflate cannot do more), and is refused where that exceeds the free memory.
"""

from __future__ import annotations

import contextlib
import math
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from mnif_nerf.errors import first_line
from mnif_nerf.machine import available_memory

MOST_INFLATED = 1100
"""Bytes of an array for each byte of the archive that holds it."""
# numpy evaluates headers, and Python 3.11 mistakes threads that do so at once for a recursion without end.
_one_header = threading.Lock()
_MAGIC = b"\x93NUMPY"
_ZIP = b"PK"


class Arrays:
    """The arrays of an .npz, each read when it is asked for; a context that closes the file."""

    def __init__(self, path: Path) -> None:
        self._size = path.stat().st_size
        with _value_errors("the archive"):
            self._zip = zipfile.ZipFile(path)
        entries = {info.filename: info for info in self._zip.infolist()}
        self._entries = {name.removesuffix(".npy"): info for name, info in entries.items() if name.endswith(".npy")}
        self.files = list(self._entries)

    def __enter__(self) -> Arrays:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __getitem__(self, name: str) -> np.ndarray:
        info = self._entries[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name}: compressed in a way that numpy does not write")
        if info.compress_size > self._size or info.file_size > MOST_INFLATED * (info.compress_size + 64):
            raise ValueError(f"{name}: {info.file_size} bytes, which cannot be in this file")
        with _value_errors(name), self._zip.open(info) as stream:
            return _read_array(stream, info.file_size, name)


def load_arrays(path: Path | str) -> np.ndarray | Arrays:
    """What `numpy.load(path, allow_pickle=False)` gives, with the sizes checked first.

    Raises:
        OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile: as numpy does; ValueError also where a
            header asks for more than the file or the memory holds.
    """
    path = Path(path)
    with open(path, "rb") as file:
        magic = file.read(len(_MAGIC))
        file.seek(0)
        if magic.startswith(_ZIP):
            return Arrays(path)
        if magic != _MAGIC:
            raise ValueError("neither .npy nor .npz")
        with _value_errors("the array"):
            return _read_array(file, path.stat().st_size, "the array")


@contextlib.contextmanager
def _value_errors(name: str) -> Iterator[None]:
    """Damage shows in errors of many kinds: numpy tokenises and evaluates headers, and zips may claim passwords."""
    try:
        yield
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile):
        raise
    except Exception as error:
        raise ValueError(f"{name}: cannot be read ({first_line(error)})") from None


def require_memory(needed: int, name: str) -> None:
    """Refuse an array that the free memory cannot hold.

    Raises:
        ValueError: with what it takes and what is free.
    """
    free = available_memory()
    if free is not None and needed > 0.8 * free:
        raise ValueError(f"{name} takes {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free")


def _read_array(stream: IO[bytes], size: int, name: str) -> np.ndarray:
    """An array whose header says no more than the bytes there are.

    Raises:
        ValueError: no such header, Python objects, or more than there is.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"{name}: version {version} of the format is not known")
    # Version 3 differs from 2 by the encoding of field names, and structured arrays are refused below.
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with _one_header:
        shape, columns_first, dtype = read(stream)
    if dtype.hasobject or dtype.names is not None:
        raise ValueError(f"{name}: holds objects or records, and not plain numbers")
    if any(n < 0 for n in shape):
        raise ValueError(f"{name}: shape {list(shape)}")
    needed = math.prod(shape) * dtype.itemsize
    if needed > size:
        raise ValueError(f"{name}: says {list(shape)} of {dtype}, {needed} bytes, and there are {size}")
    require_memory(needed, name)
    values = np.empty(math.prod(shape), dtype)
    filled, content = 0, memoryview(values.view(np.uint8)) if needed else memoryview(b"")
    while filled < needed:
        count = stream.readinto(content[filled:])  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"{name}: ends after {filled} of {needed} bytes")
        filled += count
    return values.reshape(shape, order="F" if columns_first else "C")
