"""Where the grids of a data set lie, voxels or pictures, and which split each belongs to.

Accepted under a root, in this order:

    *.hdf5, *.h5                                 IM-NET's layout (voxels); the root may be such a file itself
    {train,val,test}/                            files at any depth
    occupancy/{train,val,test}/                  likewise (voxels); `mnif-data procedural-cars` writes it
    any other folder of files, at any depth      shared out by the program: four fifths for training and a tenth each
                                                 for val and test, from 10 files on; below that all are for training
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mnif_nerf.data.generate.meshes import scene_names, split_names
from mnif_nerf.data.readers.mesh_files import MESH_SUFFIXES
from mnif_nerf.data.readers.voxel_files import VOXEL_SUFFIXES
from mnif_nerf.errors import MNIFError

GRID_SPLITS = ("train", "val", "test")
HDF5_SUFFIXES = (".hdf5", ".h5")
SMALLEST_SHARED = 10
"""From so many files on, a folder without split folders is shared out."""


@dataclass(frozen=True)
class GridSource:
    """One instance: its name, its file, and its row where the file holds many."""

    name: str
    path: Path
    row: int | None = None


@dataclass(frozen=True)
class GridLayout:
    """The instances of every split (in the order train, val, test), and where their packed store goes."""

    root: Path
    modality: str
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

    def files(self) -> list[Path]:
        """Every file, once."""
        return list(dict.fromkeys(source.path for sources in self.splits.values() for source in sources))


def grid_splits(root: Path | str, modality: str) -> dict[str, int]:
    """How many instances each split holds; splits that are not there are left out.

    Raises:
        MNIFError: see `locate_grids`.
    """
    return {split: len(sources) for split, sources in locate_grids(root, modality).splits.items()}


def locate_grids(root: Path | str, modality: str) -> GridLayout:
    """Find the instances of a data set; no file is read but the row count of an HDF5.

    Args:
        root: see the module's text.
        modality: "voxel" or "image".

    Raises:
        MNIFError: the folder is missing, or nothing in it can be read as this modality.
    """
    root = Path(root)
    if modality not in ("voxel", "image"):
        raise MNIFError(f'modality {modality!r}: grids are "voxel" or "image".')
    if root.is_file() and root.suffix.lower() in HDF5_SUFFIXES and modality == "voxel":
        return GridLayout(root, modality, _hdf5_splits([root]), root.parent / ".mnif")
    if not root.is_dir():
        problem = "is a file" if root.exists() else "no such folder"
        raise MNIFError(f"{root}: {problem}; give the folder that holds {_EXPECTED[modality]}.")
    if modality == "voxel":
        tables = sorted(path for path in root.iterdir() if path.suffix.lower() in HDF5_SUFFIXES and path.is_file())
        if tables:
            return GridLayout(root, modality, _hdf5_splits(tables), root / ".mnif")
    splits: dict[str, tuple[GridSource, ...]] = {}
    for parent in (root, root / "occupancy") if modality == "voxel" else (root,):
        if not splits:
            splits = {split: _sources(parent / split, modality) for split in GRID_SPLITS}
            splits = {split: sources for split, sources in splits.items() if sources}
    if not splits:
        sources = _sources(root, modality)
        shares = share_out([source.name for source in sources])
        by_name = {source.name: source for source in sources}
        splits = {split: tuple(by_name[name] for name in names) for split, names in shares.items()}
    if not splits:
        raise MNIFError(f"{root}: nothing in it can be read as {modality}s; expected {_EXPECTED[modality]}.")
    return GridLayout(root, modality, splits, root / ".mnif")


def share_out(names: Sequence[str]) -> dict[str, list[str]]:
    """Splits of instances that come without: all for training below 10, else a tenth each for val and test."""
    if len(names) < SMALLEST_SHARED:
        return {"train": sorted(names)} if names else {}
    shares = split_names(sorted(names), 0.1, 0.1, seed=0)
    return {split: shares[split] for split in GRID_SPLITS if split in shares}


def find_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below a folder that end in one of `suffixes` (lower case), sorted; hidden ones are left out."""
    found = []
    for current, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        if len(Path(current).relative_to(folder).parts) > 6:  # a link to a parent folder would never end
            folders.clear()
        here = [name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
        found += [path for name in here if (path := Path(current, name)).is_file()]
    return sorted(found)


_EXPECTED = {
    "voxel": f"{', '.join(VOXEL_SUFFIXES)} or mesh files, in train/, val/ and test/ or all together, or IM-NET's HDF5",
    "image": "PNG or JPEG files, in train/, val/ and test/ or all together",
}


def _sources(folder: Path, modality: str) -> tuple[GridSource, ...]:
    if not folder.is_dir():
        return ()
    if modality == "image":
        from mnif_nerf.data.readers.picture_files import find_pictures

        files = find_pictures(folder)
    else:
        files = find_files(folder, VOXEL_SUFFIXES + MESH_SUFFIXES)
    return tuple(GridSource(name, path) for name, path in zip(scene_names(files, folder), files))


def _hdf5_splits(tables: list[Path]) -> dict[str, tuple[GridSource, ...]]:
    from mnif_nerf.data.readers.imnet import hdf5_sources

    return hdf5_sources(tables)
