"""Turning one split of grids into a folder of arrays (see `mnif_nerf.data.stores.grid_store`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.readers.grid_reader import GridReader, Read, Values
from mnif_nerf.data.readers.splits import GridSource
from mnif_nerf.data.readers.voxel_files import NoShapeError
from mnif_nerf.data.stores.packing import GrowingArray, ordered_results, pack_bits, require_space
from mnif_nerf.data.stores.shards import kept_folder, pack_shards, shard_folder, shard_ranges

_SURFACE_SHARE = 0.08  # of all cells, a guess for the space a store needs
DTYPES: dict[Values, type] = {"bits": np.uint8, "bytes": np.uint8, "floats": np.float32}


def row_shape(values: Values, facts: GridFacts) -> tuple[int, ...]:
    """Shape of one instance in a store's array."""
    return (-(-facts.num_cells // 8),) if values == "bits" else (*facts.shape, facts.channels)


def surface_cells(cells: np.ndarray) -> np.ndarray:
    """Numbers of the cells that have a neighbour of the other kind around them, diagonals included.

    Args:
        cells: bool, of any number of axes.

    Returns:
        int32 [S], sorted.
    """
    some, every = cells, cells
    for axis in range(cells.ndim):
        ahead, behind = (slice(None),) * axis + (slice(1, None),), (slice(None),) * axis + (slice(None, -1),)
        grown, shrunk = some.copy(), every.copy()
        grown[ahead] |= some[behind]
        grown[behind] |= some[ahead]
        shrunk[ahead] &= every[behind]
        shrunk[behind] &= every[ahead]
        some, every = grown, shrunk
    return np.flatnonzero(some & ~every).astype(np.int32)


def pack_row(values: Values, value: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """One instance as a store keeps it, and for bits its cells near the surface, those inside and those outside."""
    if values == "bits":
        near = surface_cells(value)
        inside = value.reshape(-1)[near]
        return pack_bits(value[None])[0], (near[inside], near[~inside])
    return value, ()


@dataclass(frozen=True)
class GridPacking:
    """How grids are brought into a store.

    Attributes:
        reader: reader of the files.
        facts: the grid that all are brought to.
        exact: whether instances of other shapes are refused.
    """

    reader: GridReader
    facts: GridFacts
    exact: bool

    @property
    def row_bytes(self) -> int:
        """About the size of an instance in a store."""
        values, facts = self.reader.values, self.facts
        near = 4 * int(_SURFACE_SHARE * facts.num_cells) if values == "bits" else 0
        return int(np.prod(row_shape(values, facts))) * np.dtype(DTYPES[values]).itemsize + near


def pack_sharded(
    how: GridPacking,
    sources: tuple[GridSource, ...],
    store: Path,
    fingerprint: str,
    advance: Callable[[int], None] = lambda instances: None,
) -> list[tuple[Path, list[str]]]:
    """Pack grids that are more than a shard, each shard a folder of `pack_grids`; those of an earlier run are kept.

    Args:
        how: how grids are packed.
        sources: the instances.
        store: where the store will be.
        fingerprint: of all that decides what is packed.
        advance: see `pack_grids`.

    Returns:
        every shard's folder, beside the store, and the names of its instances; none of a shard whose grids have no
        shape, which has no arrays either.

    Raises:
        MNIFError: see `pack_grids`.
    """
    ranges, refusals = shard_ranges(len(sources), how.row_bytes), []

    def pack(number: int, folder: Path) -> dict[str, Any]:
        own = sources[ranges[number].start : ranges[number].stop]
        try:
            return {"names": pack_grids(how, own, folder, advance)}
        except NoShapeError as error:
            refusals.append(error)
            return {"names": []}

    found = pack_shards(store, [f"{fingerprint} {each}" for each in ranges], pack)
    names = [list(content["names"]) for content in found]
    if not any(names):
        shutil.rmtree(kept_folder(store))
        raise refusals[0] if refusals else NoShapeError(f"{store}: none of its {len(sources)} grids has a shape.")
    return [(shard_folder(kept_folder(store), number), some) for number, some in enumerate(names)]


def pack_grids(
    how: GridPacking,
    sources: tuple[GridSource, ...],
    folder: Path,
    advance: Callable[[int], None] = lambda instances: None,
) -> list[str]:
    """Write <values>.npy and, for bits, surface.npy and surface_offsets.npy. Grids without a shape are left out.

    Args:
        how: how grids are packed.
        sources: the instances.
        folder: where to write.
        advance: told the number of instances done since the last call.

    Returns:
        the names of the instances that were packed, in order.

    Raises:
        MNIFError: an instance cannot be read or is of another size, none has a shape, or the disk cannot hold the
            store.
    """
    reader, bits = how.reader, how.reader.values == "bits"
    shape, dtype = row_shape(reader.values, how.facts), DTYPES[reader.values]
    require_space(folder, len(sources) * how.row_bytes, f"{len(sources)} {reader.nouns}")
    packed = GrowingArray(folder / f"{reader.values}.npy", shape, dtype)
    surface = GrowingArray(folder / "surface.npy", (), np.int32) if bits else None
    offsets, names = [0], list[str]()
    refusal: NoShapeError | None = None
    try:
        with reader.reading(how.facts, how.exact) as read:
            rows = ordered_results((_read_row, reader.values, read, source) for source in sources)
            for source, row in zip(sources, rows):
                advance(1)
                if isinstance(row, NoShapeError):
                    refusal = refusal or row
                    continue
                names.append(source.name)
                packed.append(row[0])
                if surface is not None:
                    surface.append(np.concatenate(row[1]))
                    offsets += [offsets[-1] + len(row[1][0]), offsets[-1] + sum(map(len, row[1]))]
    finally:
        packed.close()
        if surface is not None:
            surface.close()
    if refusal is not None and not names:
        raise refusal
    if bits:
        np.save(folder / "surface_offsets.npy", np.array(offsets, dtype=np.int64))
    return names


def _read_row(
    values: Values, read: Read, source: GridSource
) -> tuple[np.ndarray, tuple[np.ndarray, ...]] | NoShapeError:
    try:
        return pack_row(values, read(source))
    except NoShapeError as error:
        return error
