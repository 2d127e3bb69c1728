"""Stores cut into shards, each below a size, that open as one; large data is packed and resumed shard by shard.

    <store>/manifest.json        as of any store, and "shards": how many instances lie in each
    <store>/shard-00000/         the arrays that a store has, of the first instances
    <store>/shard-00001/ ...     of those that follow

A store that is small enough has no shards, and its arrays beside its manifest. Shards that are finished wait in
`.<store>.shards` beside it until all are.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mnif_nerf.data.stores.cache import map_array
from mnif_nerf.data.stores.manifest import read_manifest, write_manifest
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_folder, recover_folder

SHARD_BYTES = 2**32
"""Size of a shard at most, but for single instances that are larger."""
_FORMAT = "mnif_nerf shard"


class ShardedRows:
    """An array `[N, ...]` whose rows lie in several arrays, one after the other; what is read of it is an array.

    It is indexed as an array would be by a number, by a slice, or by integer arrays for the first axes, as in
    `rows[instances[:, None], places]`. Only the rows asked for are read.

    Args:
        parts: `[N_k, ...]` each; at least one.

    Attributes:
        starts: first row of each part, and the end of the last: int64 [parts + 1].
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.shape: tuple[int, ...] = (int(self.starts[-1]), *parts[0].shape[1:])
        self.dtype: np.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size of all parts."""
        return sum(part.nbytes for part in self.parts)

    def view(self, dtype: type) -> ShardedRows:
        """The same bytes as another type of the same size."""
        return ShardedRows([part.view(dtype) for part in self.parts])

    def reshape(self, *shape: int) -> ShardedRows:
        """The same rows in another shape."""
        assert shape[0] == len(self)
        return ShardedRows([part.reshape(len(part), *shape[1:]) for part in self.parts])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.parts).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(first, slice):
            others = (slice(None), *rest)
            return self._slice(first)[others]
        first = np.asarray(first)
        if first.dtype == bool or not np.issubdtype(first.dtype, np.integer):
            raise IndexError("rows are named by integers or a slice")
        wrapped = np.where(first < 0, first + len(self), first)
        if wrapped.size and not (wrapped.min() >= 0 and wrapped.max() < len(self)):
            raise IndexError(f"a row that is not among {len(self)}")
        part = np.searchsorted(self.starts, wrapped, side="right") - 1
        row = wrapped - self.starts[part]
        if first.ndim == 0:
            place = (int(row), *rest)
            return self.parts[int(part)][place]
        if first.size == len(first):  # [B] or [B, 1]: each row of the result lies in one shard
            return self._gather(part.reshape(-1), row, rest)
        row, *rest = np.broadcast_arrays(row, *rest)
        flat = (np.broadcast_to(part, row.shape).reshape(-1), row.reshape(-1), [each.reshape(-1) for each in rest])
        return self._gather(*flat).reshape(*row.shape, *self.shape[1 + len(rest) :])

    def _gather(self, part: np.ndarray, row: np.ndarray, rest: Sequence[Any]) -> np.ndarray:
        """`[B, ...]`, each row from its shard `part` `[B]`."""
        shards = np.unique(part)
        if len(shards) <= 1:
            place = (row, *rest)
            return self.parts[shards[0] if len(shards) else 0][place]
        found: np.ndarray | None = None
        for shard in shards:
            chosen = np.flatnonzero(part == shard)
            own = (each[chosen] if np.ndim(each) == row.ndim and len(each) == len(row) else each for each in rest)
            place = (row[chosen], *own)
            values = self.parts[shard][place]
            if found is None:
                found = np.empty((len(part), *values.shape[1:]), self.dtype)
            found[chosen] = values
        assert found is not None
        return found

    def _slice(self, wanted: slice) -> np.ndarray:
        first, last, step = wanted.indices(len(self))
        if step != 1:
            return self[np.arange(first, last, step)]
        ranges = [(max(first - start, 0), max(last - start, 0)) for start in self.starts[:-1].tolist()]
        found = [part[low:high] for part, (low, high) in zip(self.parts, ranges) if low < min(high, len(part))]
        return found[0] if len(found) == 1 else np.concatenate([self.parts[0][:0], *found])


Rows: TypeAlias = "np.ndarray | ShardedRows"
"""An array of a store, whether it lies in one file or in several."""


def shard_ranges(count: int, row_bytes: int, shard_bytes: int | None = None) -> list[range]:
    """The instances of each shard: as equal as may be; one range where all fit into one.

    Args:
        count: instances.
        row_bytes: of one instance.
        shard_bytes: of a shard at most; `SHARD_BYTES` by default.
    """
    most = max(1, (shard_bytes or SHARD_BYTES) // max(1, row_bytes))
    shards = max(1, -(-count // most))
    ends = [count * number // shards for number in range(shards + 1)]
    return [range(first, last) for first, last in itertools.pairwise(ends)]


def shard_folder(store: Path, number: int) -> Path:
    """Where a shard lies in a store."""
    return store / f"shard-{number:05d}"


def kept_folder(store: Path) -> Path:
    """Where finished shards wait for the others."""
    return store.parent / f".{store.name}.shards"


def pack_shards(store: Path, keys: Sequence[str], pack: Callable[[int, Path], dict[str, Any]]) -> list[dict[str, Any]]:
    """Pack one shard after the other, each whole or not at all; those of an earlier run are kept as they are.

    Args:
        store: the store that they are for.
        keys: what decides the content of each shard; one with another key is packed again.
        pack: writes shard number k into an empty folder, and returns what is to be known of it, JSON-ready, with the
            "names" of its instances. One without instances needs no arrays.

    Returns:
        what `pack` returned of each shard. They wait in `kept_folder`.

    Raises:
        MNIFError: a full disk, or whatever `pack` raises.
    """
    found = []
    for number, key in enumerate(keys):
        place = shard_folder(kept_folder(store), number)
        content = _finished(place, key)
        if content is None:
            with atomic_folder(place, replace=True) as temporary:
                content = pack(number, temporary)
                write_manifest(temporary, {"format": _FORMAT, "key": key, **content})
        found.append(content)
    return found


def _finished(place: Path, key: str) -> dict[str, Any] | None:
    recover_folder(place)
    try:
        manifest = read_manifest(place)
        return manifest if manifest["key"] == key else None
    except (MNIFError, KeyError):  # none yet, or damaged: it is packed again
        return None


def move_shards(store: Path, count: int, folder: Path) -> None:
    """Move the finished shards of a store into the folder that becomes it."""
    kept = kept_folder(store)
    for number in range(count):
        os.replace(shard_folder(kept, number), shard_folder(folder, number))
    shutil.rmtree(kept, ignore_errors=True)


def map_rows(
    folder: Path, name: str, sizes: Sequence[int] | None, shape: tuple[int, ...], dtype: type = np.uint8
) -> Rows:
    """Map an array `[N, ...]` of a store.

    Args:
        folder: of the store.
        name: of the .npy file.
        sizes: rows in each shard, of which some may have none; None of a store without shards.
        shape: of the whole array.
        dtype: of the whole array.

    Raises:
        ValueError, OSError: damaged.
    """
    # As plain arrays over the maps: indexing a memmap object costs more than the reading does.
    if sizes is None:
        return np.asarray(map_array(folder / name, shape, dtype))
    if sum(sizes) != shape[0] or min(sizes, default=-1) < 0:
        raise ValueError("shards differ from the manifest")
    parts = [
        np.asarray(map_array(shard_folder(folder, number) / name, (size, *shape[1:]), dtype))
        for number, size in enumerate(sizes)
        if size
    ]
    return ShardedRows(parts) if len(parts) > 1 else parts[0]
