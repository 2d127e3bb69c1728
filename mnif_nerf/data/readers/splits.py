"""Instances as files: finding them, naming them, and sharing them out over train, val and test."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
