"""Where the grids of a data set lie, and which split each belongs to.

Accepted under a root, in this order:

    files that hold many instances               IM-NET's HDF5 (voxels); the root may be such a file itself
    {train,val,test}/                            files at any depth; training, valid, validation, testing, in any case
    <class>/{train,val,test}/                    likewise (ModelNet), further below
    train.lst, test.lst, ...                     lists of names (Occupancy Networks), beside or above the files
    occupancy/{train,val,test}/                  voxels; `mnif-data procedural-cars` writes it
    any other folder of files, at any depth      shared out by the program: four fifths for training and a tenth each
                                                 for val and test, from 10 files on; below that all are for training
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnif_nerf.data.readers.grid_reader import GridReader, get_reader
from mnif_nerf.data.readers.labels import folder_labels, useful
from mnif_nerf.data.readers.splits import (
    GridSource,
    every_file,
    one_of_each,
    own_splits,
    scene_names,
    share_out,
)
from mnif_nerf.errors import MNIFError
from mnif_nerf.labels import Labels

_WORDS = {
    "",
    ".txt",
    ".md",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".lst",
    ".xml",
    ".yaml",
    ".yml",
    ".log",
    ".html",
    ".pdf",
}
"""Suffixes of files that tell something about data, and need no word."""


@dataclass(frozen=True)
class GridLayout:
    """The instances of every split (in the order train, val, test), where their packed store goes, and sentences about
    what was chosen and what was left out."""

    root: Path
    reader: GridReader
    splits: dict[str, tuple[GridSource, ...]]
    cache: Path
    notes: tuple[str, ...] = ()

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

    def own_files(self) -> dict[str, Path | None]:
        """Instances of all splits by name, with their files unless these hold several."""
        return {source.name: source.path if source.row is None else None for source in self.every()}

    def labels(self, split: str, names: Sequence[str]) -> tuple[Labels | None, str]:
        """Labels of instances of a split by the folders that their files lie in, and a sentence where they nearly give
        some.

        What is no label of the data set as a whole is none of a split.
        """
        if any(source.row is not None for source in self.every()):
            return None, ""
        rows = {(name, source.name): source.path for name, sources in self.splits.items() for source in sources}
        bases = [self.root / folder for folder in self.reader.folders]
        base = next((place for place in bases if all(path.is_relative_to(place) for path in rows.values())), self.root)
        found, note = folder_labels(rows, base)
        if found is None:
            return None, note
        place = {key: k for k, key in enumerate(rows)}
        return useful(found.some(place[split, name] for name in names)), ""

    def files(self) -> list[Path]:
        """Every file, once."""
        return list(dict.fromkeys(source.path for source in self.every()))


def grid_splits(root: Path | str, modality: str | GridReader) -> dict[str, int]:
    """How many instances each split holds; splits that are not there are left out.

    Raises:
        MNIFError: see `locate_grids`.
    """
    return {split: len(sources) for split, sources in locate_grids(root, modality).splits.items()}


def locate_grids(root: Path | str, modality: str | GridReader, rank: Callable[[str], int] | None = None) -> GridLayout:
    """Find the instances of a data set; no file is read but the row count of an HDF5.

    Args:
        root: see the module's text.
        modality: a reader, or its name.
        rank: how well a kind of file suits where one instance is there in several; the reader's own by default.

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
    for folder in reader.folders:
        if (root / folder).is_dir():
            splits, notes = _found(root / folder, reader, rank or reader.rank)
            if splits:
                return GridLayout(root, reader, splits, root / ".mnif", tuple(notes))
    raise MNIFError(f"{root}: nothing in it can be read as {reader.name}s; expected {reader.expected}.")


def labels_in(layout: GridLayout | None, manifest: dict[str, Any], place: Path) -> Labels | None:
    """The labels of a packed store, from its manifest; by the folders of its files where it is older than labels.

    Raises:
        MNIFError: they are damaged.
    """
    names = manifest["names"]
    if "labels" not in manifest:
        return None if layout is None else layout.labels(str(manifest["split"]), names)[0]
    content = manifest["labels"]
    return None if content is None else Labels.from_dict(content, len(names), place)


def _found(
    folder: Path, reader: GridReader, rank: Callable[[str], int]
) -> tuple[dict[str, tuple[GridSource, ...]], list[str]]:
    """The instances of every split below a folder, and sentences about what was chosen and left out."""
    every = sorted(every_file(folder))
    files, notes = reader.sift(every)
    files, more = one_of_each(files, rank)
    notes += more
    if not files:
        return {}, []
    shares, more = own_splits(files, folder)
    notes += more
    unread = Counter(path.suffix.lower() for path in every if _is_unread(path, reader))
    if unread:
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in unread.most_common(5))
        notes.append(f"{sum(unread.values())} files are of kinds that are not read as {reader.nouns}: {kinds}.")
    if shares:
        return {split: _sources(paths, folder, split) for split, paths in shares.items()}, notes
    by_name = dict(zip(scene_names(files, folder), files))
    dealt = share_out(list(by_name))
    if len(dealt) > 1:
        notes.append("no folders of splits (train, val, test) are there: the program shares the files out.")
    return {split: tuple(GridSource(name, by_name[name]) for name in names) for split, names in dealt.items()}, notes


def _is_unread(path: Path, reader: GridReader) -> bool:
    suffix = path.suffix.lower()
    return suffix not in reader.suffixes and suffix not in reader.companions and suffix not in _WORDS


def _sources(files: list[Path], folder: Path, split: str) -> tuple[GridSource, ...]:
    """Instances of a split, named by their paths below its folder where that is directly in `folder`."""
    tops = {path.relative_to(folder).parts[0] for path in files}
    base = folder / next(iter(tops)) if len(tops) == 1 and (folder / next(iter(tops))).is_dir() else folder
    return tuple(GridSource(name, path) for name, path in zip(scene_names(files, base), files))
