"""Where the grids of a data set lie, and which split each belongs to.

Accepted under a root, in this order:

    files that hold many instances               IM-NET's HDF5 (voxels); the root may be such a file itself
    {train,val,test}/                            files at any depth
    occupancy/{train,val,test}/                  likewise (voxels); `mnif-data procedural-cars` writes it
    any other folder of files, at any depth      shared out by the program: four fifths for training and a tenth each
                                                 for val and test, from 10 files on; below that all are for training
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mnif_nerf.data.readers.grid_reader import GridReader, get_reader
from mnif_nerf.data.readers.splits import GRID_SPLITS, GridSource, scene_names, share_out
from mnif_nerf.errors import MNIFError


@dataclass(frozen=True)
class GridLayout:
    """The instances of every split (in the order train, val, test), and where their packed store goes."""

    root: Path
    reader: GridReader
    splits: dict[str, tuple[GridSource, ...]]
    cache: Path

    def sources(self, split: str) -> tuple[GridSource, ...]:
        """Instances of a split.

        Raises:
            MNIFError: there is no such split.
        """
        if split not in self.splits:
            found = ", ".join(self.splits)
            raise MNIFError(f"{self.root}: no {split} split in it; name a split that is there ({found}).")
        return self.splits[split]

    def every(self) -> tuple[GridSource, ...]:
        """Instances of all splits."""
        return tuple(source for sources in self.splits.values() for source in sources)

    def files(self) -> list[Path]:
        """Every file, once."""
        return list(dict.fromkeys(source.path for source in self.every()))


def grid_splits(root: Path | str, modality: str | GridReader) -> dict[str, int]:
    """How many instances each split holds; splits that are not there are left out.

    Raises:
        MNIFError: see `locate_grids`.
    """
    return {split: len(sources) for split, sources in locate_grids(root, modality).splits.items()}


def locate_grids(root: Path | str, modality: str | GridReader) -> GridLayout:
    """Find the instances of a data set; no file is read but the row count of an HDF5.

    Args:
        root: see the module's text.
        modality: a reader, or its name.

    Raises:
        MNIFError: the folder is missing, or nothing in it can be read.
    """
    root, reader = Path(root), get_reader(modality)
    tables = reader.tables(root) if root.exists() else []
    if tables:
        return GridLayout(
            root, reader, reader.table_sources(tables), (root.parent if root.is_file() else root) / ".mnif"
        )
    if not root.is_dir():
        problem = "is a file" if root.exists() else "no such folder"
        raise MNIFError(f"{root}: {problem}; give the folder that holds {reader.expected}.")
    splits: dict[str, tuple[GridSource, ...]] = {}
    for folder in reader.folders:
        if not splits:
            splits = {split: _sources(root / folder / split, reader) for split in GRID_SPLITS}
            splits = {split: sources for split, sources in splits.items() if sources}
    if not splits:
        sources = _sources(root, reader)
        by_name = {source.name: source for source in sources}
        shares = share_out(list(by_name))
        splits = {split: tuple(by_name[name] for name in names) for split, names in shares.items()}
    if not splits:
        raise MNIFError(f"{root}: nothing in it can be read as {reader.name}s; expected {reader.expected}.")
    return GridLayout(root, reader, splits, root / ".mnif")


def _sources(folder: Path, reader: GridReader) -> tuple[GridSource, ...]:
    if not folder.is_dir():
        return ()
    files = reader.files(folder)
    return tuple(GridSource(name, path) for name, path in zip(scene_names(files, folder), files))
