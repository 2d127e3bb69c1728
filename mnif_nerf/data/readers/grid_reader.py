"""What a kind of grid files has to offer: finding them, settling on one shape, and reading one instance.

A reader has the name of the modality that trains on what it reads. To add one, subclass `GridReader` in a module of
its own and name that module in `_MODULES`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mnif_nerf.data.grid_facts import GridFacts, scaled_shape
from mnif_nerf.data.readers.splits import GridSource
from mnif_nerf.errors import MNIFError

Values = Literal["bits", "bytes", "floats"]
Read = Callable[[GridSource], np.ndarray]
Size = int | tuple[int, ...] | None

_MODULES = ("mnif_nerf.data.readers.voxels", "mnif_nerf.data.readers.pictures", "mnif_nerf.data.readers.signals")
_READERS: dict[str, GridReader] = {}


class GridReader(ABC):
    """One kind of grids.

    Attributes:
        name: name of the modality.
        values: how a store keeps a cell: "bits" (inside or not), "bytes" (0 to 255 per channel) or "floats".
        nouns: what messages call several instances.
        expected: the files, for messages.
        suffixes: that the files end in, lower case.
        companions: suffixes of files that belong to those (textures), or say something about them, and need no word.
        folders: below the data's root, where the folders of the splits may be.
        changes: a word for each change in what is read from the same files, so that older stores are packed again.
    """

    name: ClassVar[str]
    values: ClassVar[Values]
    nouns: ClassVar[str]
    expected: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    companions: ClassVar[tuple[str, ...]] = ()
    folders: ClassVar[tuple[str, ...]] = ("",)
    changes: ClassVar[tuple[str, ...]] = ()

    def sift(self, files: Sequence[Path]) -> tuple[list[Path], list[str]]:
        """The files of instances among `files`, and sentences about those that this reader leaves out."""
        return [path for path in files if path.name.lower().endswith(self.suffixes)], []

    def rank(self, kind: str) -> int:
        """How well a kind of file suits where one instance is there in several; 0 is best."""
        return next((place for place, suffix in enumerate(self.suffixes) if kind.endswith(suffix)), len(self.suffixes))

    def tables(self, root: Path) -> list[Path]:
        """Files that hold many instances each and say themselves which split they are of."""
        return []

    def table_sources(self, tables: list[Path]) -> dict[str, tuple[GridSource, ...]]:
        """The instances of every split in `tables`."""
        raise NotImplementedError

    @abstractmethod
    def settle(self, sources: Sequence[GridSource], size: Size, channels: int | None) -> GridFacts:
        """The grid that all instances are brought to.

        Args:
            sources: every instance of the data set, of all splits.
            size: cells along the longest edge, or the exact shape; None takes what the files have.
            channels: None takes what the files have.

        Raises:
            MNIFError: an unreadable file, unequal sizes, or a size that cannot be had.
        """

    def notes(self, sources: Sequence[GridSource], channels: int | None, facts: GridFacts) -> list[str]:
        """Sentences for the user about what `settle` decided (`facts`) for files of a split that differ."""
        return []

    @abstractmethod
    def reading(self, facts: GridFacts, exact: bool) -> contextlib.AbstractContextManager[Read]:
        """A context in which instances are read, by several threads, each as `facts` says.

        What is read is bool `[*shape]` (bits), uint8 `[*shape, C]` (bytes) or float32 `[*shape, C]` (floats) in the
        data's own units.

        Args:
            facts: what `settle` found.
            exact: whether an instance of another shape is refused, or brought to it.
        """

    @abstractmethod
    def check(self, value: np.ndarray, name: str) -> None:
        """Refuse an array that a store in memory cannot hold.

        Raises:
            MNIFError: another number of axes or type, or nothing to learn in it.
        """


def register(reader: GridReader) -> GridReader:
    """Make a reader known under its name."""
    _READERS[reader.name] = reader
    return reader


def get_reader(name: str | GridReader) -> GridReader:
    """The reader of this name.

    Raises:
        MNIFError: there is none.
    """
    if isinstance(name, GridReader):
        return name
    for module in _MODULES if name not in _READERS else ():
        import_module(module)
    if name not in _READERS:
        raise MNIFError(f"modality {name!r}: grids are read for {', '.join(sorted(_READERS))}.")
    return _READERS[name]


def check_size(size: Size) -> None:
    """Refuse sizes below 1.

    Raises:
        MNIFError: with the number.
    """
    if size is not None and min((size,) if isinstance(size, int) else size) < 1:
        raise MNIFError(f"`resolution` is {size}; ask for 1 or more.")


def blocks(shape: Sequence[int], wanted: Sequence[int], name: object) -> tuple[int, ...]:
    """Cells of a finer grid per axis that make one of a coarser grid.

    Raises:
        MNIFError: they are not one whole number.
    """
    whole = len(shape) == len(wanted) and all(w >= 1 and n % w == 0 for n, w in zip(shape, wanted))
    if not whole or len({n // w for n, w in zip(shape, wanted)}) > 1:
        raise MNIFError(
            f"{name}: a grid of {cells_text(shape)} cells cannot be brought to {cells_text(wanted)}; ask for "
            f"{cells_text(shape)}, or for a `resolution` that divides it."
        )
    return tuple(n // w for n, w in zip(shape, wanted))


def coarse_shape(shape: Sequence[int], size: int | tuple[int, ...], name: object) -> tuple[int, ...]:
    """The shape that a `resolution` asks for, reached by whole blocks of cells.

    Raises:
        MNIFError: it does not divide the shape.
    """
    wanted = scaled_shape(shape, size) if isinstance(size, int) else tuple(size)
    blocks(shape, wanted, name)
    return wanted


def cells_text(shape: Sequence[int]) -> str:
    """16^3, or 16 x 16 x 8."""
    if len(shape) > 1 and len(set(shape)) == 1:
        return f"{shape[0]}^{len(shape)}"
    return " x ".join(str(n) for n in shape)


@contextlib.contextmanager
def plain_reading(read: Read) -> Iterator[Read]:
    """A `reading` that keeps nothing open."""
    yield read
