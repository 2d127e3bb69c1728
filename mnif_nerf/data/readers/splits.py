"""Instances as files: finding them, naming them, and sharing them out over train, val and test."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnif_nerf.data.readers.text import read_text
from mnif_nerf.errors import MNIFError

GRID_SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What folders of splits are called, in lower case, and which split each is."""
_LONGEST_LIST = 64 << 20  # bytes
_INNER_KINDS = (".solid", ".surface", ".filled", ".hollow", ".shell", ".vox", ".voxels")
_CLUTTER = {
    "@eadir", "@recycle", "#recycle", "#snapshot", "__macosx", "lost+found", "$recycle.bin", "thumbs.db", "desktop.ini",
    "system volume information", "__pycache__",
}  # fmt: skip
SMALLEST_SHARED = 10
"""From so many files on, a folder without split folders is shared out."""
SMALLEST_SPLIT = 4
"""From so many names on, `split_names` gives every split that is asked for at least one."""


@dataclass(frozen=True)
class GridSource:
    """One instance: its name, its file, and its row where the file holds many."""

    name: str
    path: Path
    row: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.row is None else f"{self.path}, row {self.row}"


def is_clutter(name: str) -> bool:
    """Whether a file or folder is hidden, or something that systems put among users' files: thumbnails of file servers,
    macOS's copies of attributes, Windows' caches and bins."""
    return name.startswith(".") or name.casefold() in _CLUTTER


def find_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below a folder that end in one of `suffixes` (lower case), sorted; clutter is left out (`is_clutter`)."""
    return sorted(path for path in every_file(folder) if path.name.lower().endswith(suffixes))


def every_file(folder: Path) -> Iterator[Path]:
    """Files below a folder but for clutter, each once: links to folders are followed unless they lead back."""
    seen = set()
    for current, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was read, or to a parent
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_clutter(name))
        yield from (path for name in names if not is_clutter(name) and (path := Path(current, name)).is_file())


def split_of(path: Path, root: Path) -> str | None:
    """The split that a folder between `root` and a file names; None where none does."""
    return next((found for part in path.relative_to(root).parts[:-1] if (found := SPLIT_NAMES.get(part.lower()))), None)


def own_splits(files: Sequence[Path], root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The splits that an archive comes with, and a sentence about files that belong to none.

    In this order: folders in `root` that are called as splits are; such folders further below (one for every class, as
    in ModelNet), where there are two splits at least and they hold most of the files; lists such as train.lst and
    test.txt of names (ShapeNet, Occupancy Networks), where they name most of the files.

    Returns:
        splits in the order train, val, test, all empty where the archive has none; and notes.
    """
    tops = {path: path.relative_to(root).parts[0].lower() for path in files if path.parent != root}
    direct = [path for path, top in tops.items() if top in SPLIT_NAMES]
    if len({SPLIT_NAMES[tops[path]] for path in direct}) < 2 and 2 * len(direct) < len(files):
        direct = []  # a class may be called train
    found = {path: split_of(path, root) for path in (direct or files)}
    splits: dict[str, list[Path]] = {name: [] for name in GRID_SPLITS}
    named = {path: split for path, split in found.items() if split}
    if not direct and (len(set(named.values())) < 2 or len(named) < 0.5 * len(files)):
        named = _listed_splits(files, root)
        if len(set(named.values())) < 2 or len(named) < 0.5 * len(files):
            return {}, []
    for path, split in named.items():
        splits[split].append(path)
    others = [path for path in files if path not in named]
    notes = []
    if others:
        first = others[0].relative_to(root)
        notes.append(f"{len(others)} files belong to no split and are left out ({first}{', ...' * (len(others) > 1)}).")
    return {split: paths for split, paths in splits.items() if paths}, notes


def _listed_splits(files: Sequence[Path], root: Path) -> dict[Path, str]:
    """Splits by lists of names beside the data: a name is a file's, or that of a folder it lies in."""
    named: dict[tuple[Path, str], str] = {}
    for folder in {root, *(root / path.relative_to(root).parts[0] for path in files if path.parent != root)}:
        for listing in sorted((*folder.glob("*.lst"), *folder.glob("*.txt"))) if folder.is_dir() else ():
            split = SPLIT_NAMES.get(listing.stem.lower().removesuffix("_files").removesuffix("_split"))
            if split is None or is_clutter(listing.name) or listing.stat().st_size > _LONGEST_LIST:
                continue
            for line in read_text(listing).splitlines():
                words = line.replace("\\", "/").split()
                if words:
                    named[folder, words[0].rstrip("/").rsplit("/", 1)[-1].casefold()] = split
    found = {}
    for path in files if named else ():
        for folder in (root, root / path.relative_to(root).parts[0]):
            keys = (path.name, path.stem, path.name.split(".")[0], *path.relative_to(root).parts[:-1])
            split = next((named[folder, key.casefold()] for key in keys if (folder, key.casefold()) in named), None)
            if split is not None:
                found[path] = split
    return found


def one_of_each(files: Sequence[Path], rank: Callable[[str], int]) -> tuple[list[Path], list[str]]:
    """One file for every shape: files of a folder that differ only in their suffixes are one.

    One kind is taken for all shapes that have it: the one that most have, of several the one that `rank` puts first;
    shapes that lack it are taken in the best kind that they have.

    Args:
        files: the files.
        rank: how well a kind, a suffix such as ".obj" or ".solid.binvox", suits; 0 is best.

    Returns:
        the files taken, in their order, and a sentence where others were left out.
    """
    groups: dict[tuple[Path, str], dict[str, Path]] = {}
    kept: list[Path] = []
    for path in files:
        stem, kind = _stem_and_kind(path.name)
        other = groups.setdefault((path.parent, stem), {}).setdefault(kind, path)
        if other != path:  # names that differ in case alone
            kept.append(path)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        return list(files), []
    counts = Counter(kind for group in groups.values() for kind in group)
    best = min(counts, key=lambda kind: (-counts[kind], rank(kind), kind))
    for group in groups.values():
        kept.append(group[best if best in group else min(group, key=rank)])
    taken = set(kept)
    example = ", ".join(sorted(path.name for path in several[0].values()))
    others = sum(1 for group in groups.values() if best not in group)
    rest = f"; {others} have none and are taken from other files" if others else ""
    return [path for path in files if path in taken], [
        f"{len(several)} instances are there as several files ({example}): those ending in {best} are taken{rest}."
    ]


def _stem_and_kind(name: str) -> tuple[str, str]:
    """ "model.solid.binvox" is ("model", ".solid.binvox"); other dots belong to the stem."""
    stem, suffix = os.path.splitext(name.lower())
    inner, word = os.path.splitext(stem)
    return (inner, word + suffix) if inner and word in _INNER_KINDS else (stem, suffix)


def share_out(names: Sequence[str]) -> dict[str, list[str]]:
    """Splits of instances that come without: all for training below 10, else a tenth each for val and test."""
    if len(names) < SMALLEST_SHARED:
        return {"train": sorted(names)} if names else {}
    shares = split_names(sorted(names), 0.1, 0.1, seed=0)
    return {split: shares[split] for split in GRID_SPLITS if split in shares}


def scene_names(files: list[Path], root: Path) -> list[str]:
    """A folder name for each file: its stem, or, if stems repeat, its path below `root`, then its suffix."""

    def named(level: int, path: Path) -> str:
        relative = path.relative_to(root)
        long = "-".join(relative.with_suffix("").parts)
        return clean_name((path.stem, long, f"{long}-{relative.suffix[1:]}")[level])

    names = [named(0, path) for path in files]
    for level in (1, 2):
        repeated = Counter(name.casefold() for name in names)
        names = [named(level, p) if repeated[n.casefold()] > 1 else n for n, p in zip(names, files)]
    taken: Counter[str] = Counter()
    for index, name in enumerate(names):
        while taken[name.casefold()]:
            taken[names[index].casefold()] += 1
            name = f"{names[index]}-{taken[names[index].casefold()]}"
        taken[name.casefold()] += 1
        names[index] = name
    return names


def split_names(names: list[str], val_fraction: float, test_fraction: float, seed: int) -> dict[str, list[str]]:
    """Share out scenes: {"train": [...], "val": [...], "test": [...]}, empty splits left out.

    Raises:
        MNIFError: nothing would be left for training.
    """
    counts = []
    for fraction in (val_fraction, test_fraction):
        least = 1 if fraction > 0 and len(names) >= SMALLEST_SPLIT else 0
        counts.append(max(least, round(fraction * len(names))) if len(names) >= SMALLEST_SPLIT else 0)
    num_val, num_test = counts
    if num_val + num_test >= len(names):
        raise MNIFError(
            f"`val_fraction` {val_fraction} and `test_fraction` {test_fraction}: leave none of {len(names)} "
            "meshes for training; choose smaller fractions."
        )
    order = [names[i] for i in np.random.default_rng([seed, 3]).permutation(len(names))]
    shares = {
        "train": sorted(order[num_val + num_test :]),
        "val": sorted(order[:num_val]),
        "test": sorted(order[num_val : num_val + num_test]),
    }
    return {split: members for split, members in shares.items() if members}


def clean_name(name: str) -> str:
    """A name that is a plain folder on every system."""
    return re.sub(r"[^\w.\-]+", "_", name).strip("._") or "mesh"
