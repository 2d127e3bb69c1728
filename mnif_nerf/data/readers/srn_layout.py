"""Where the splits of an SRN data set lie, and what to say about a folder that is none."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mnif_nerf.data.readers.images import IMAGE_SUFFIXES
from mnif_nerf.data.readers.splits import SPLIT_NAMES, is_clutter
from mnif_nerf.errors import MNIFError

SPLITS = ("train", "val", "test", "train_val", "train_test")
_NAMES = {**SPLIT_NAMES, "train_val": "train_val", "train_test": "train_test"}
_SPLIT_FOLDER = re.compile(
    rf"^(?:(?P<category>.+?)[_\-. ])?(?P<split>{'|'.join(sorted(_NAMES, key=len, reverse=True))})$", re.IGNORECASE
)
_EXPECTED = "<category>_train/<scene>/ with rgb/, pose/ and intrinsics.txt"


@dataclass(frozen=True)
class Layout:
    """Where a data set's splits lie: `splits` maps "train", ... to folders; `cache` is where stores go."""

    root: Path
    category: str
    splits: dict[str, Path]
    cache: Path

    def folder(self, split: str) -> tuple[str, Path]:
        """The folder of `split`; "train_val" also finds "train_test" (both are new views of training scenes).

        Raises:
            MNIFError: the data set has no such split.
        """
        for name in (split, "train_test") if split == "train_val" else (split,):
            if name in self.splits:
                return name, self.splits[name]
        found = ", ".join(self.splits)
        raise MNIFError(f"{self.root}: no {self.category}_{split} folder in it; name a split that is there ({found}).")


def list_splits(root: Path | str) -> dict[str, Path]:
    """Splits of a data set and their folders.

    Raises:
        MNIFError: see `locate`.
    """
    return locate(root).splits


def locate(root: Path | str) -> Layout:
    """Find the splits under `root`.

    Accepted: a folder of `<category>_<split>` folders, also one level down; folders that have the bare name of a split
    (the category is then the root's name); one such folder itself (then it is the only split); a folder of scenes
    under any other name (taken as "train"); and, where several categories share a folder, `<folder>/<category>`, which
    need not exist. Splits may be called train or training; val, valid, validation or dev; test or testing; in any case.

    Raises:
        MNIFError: the folder is missing, holds another layout, several categories, or two folders of one split.
    """
    root = Path(root)
    cache = root / ".mnif"
    empty = not _visible_folders(root)
    siblings = _split_folders(root.parent).get(root.name, {}) if empty and root.name else {}
    if siblings:
        return Layout(root, root.name, siblings, root.parent / ".mnif" / root.name)
    if not root.is_dir():
        raise MNIFError(f"{root}: no such folder; give the folder that holds {_EXPECTED}.")
    categories = _split_folders(root)
    if not categories:
        layout = _root_is_split(root)
        if layout is not None:
            return layout
        children = _visible_folders(root)
        categories = _split_folders(children[0]) if len(children) == 1 else {}
    if len(categories) > 1:
        first = min(categories)
        raise MNIFError(
            f"{root}: several categories in it ({', '.join(sorted(categories))}); name one, for example {root / first}."
        )
    if not categories:
        raise MNIFError(f"{root}: not in the SRN layout: expected {_EXPECTED}, found {_what_is_there(root)}.")
    category, splits = next(iter(categories.items()))
    return Layout(root, category, splits, cache)


def scene_folders(folder: Path) -> list[Path]:
    """Scenes of a split folder, sorted by name; descends once or twice where the archive nests (chairs).

    Raises:
        MNIFError: no scene in it.
    """
    scenes = _find_scenes(folder)
    if scenes:
        return scenes
    raise MNIFError(f"{folder}: no scene in it; expected folders that hold rgb/, pose/ and intrinsics.txt.")


def strange_folders(folder: Path) -> list[Path]:
    """Folders among the scenes of a split that are no scenes: they hold neither rgb/ nor pose/, and are left out."""
    scenes = _find_scenes(folder)
    return sorted(set(_visible_folders(scenes[0].parent)) - set(scenes)) if scenes else []


def folders_beside(layout: Layout) -> list[Path]:
    """Folders of scenes beside the splits whose names say of no split which they are; they are left out."""
    folders = {folder.parent for folder in layout.splits.values() if folder != layout.root}
    beside = {child for parent in folders for child in _visible_folders(parent)} - set(layout.splits.values())
    return sorted(child for child in beside if not _SPLIT_FOLDER.match(child.name) and _find_scenes(child))


def _find_scenes(folder: Path) -> list[Path]:
    """Scene folders in `folder`, or in the only folder in it, or in the only one in that."""
    for _ in range(3):
        children = _visible_folders(folder)
        scenes = [child for child in children if _is_scene(child)]
        if scenes or len(children) != 1:
            return scenes
        folder = children[0]
    return []


def _visible_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    try:
        with os.scandir(root) as entries:
            return sorted(root / e.name for e in entries if e.is_dir() and not is_clutter(e.name))
    except PermissionError:
        raise MNIFError(f"{root}: no permission to list this folder; change its mode or copy the data.") from None


def _is_scene(folder: Path) -> bool:
    return (folder / "rgb").is_dir() or (folder / "pose").is_dir()


def _split_folders(root: Path) -> dict[str, dict[str, Path]]:
    """category -> split -> folder, splits in the order of SPLITS.

    Raises:
        MNIFError: two folders are one split.
    """
    named: dict[str, str] = {}  # categories by their names without regard to case
    bare: list[tuple[str, Path]] = []
    found: dict[str, dict[str, Path]] = {}
    for folder in _visible_folders(root):
        match = _SPLIT_FOLDER.match(folder.name)
        usual = match is not None and bool(match["category"]) and folder.name.endswith(f"_{match['split']}")
        if match is None or _is_scene(folder) or not (usual or _find_scenes(folder)):
            continue
        split = _NAMES[match["split"].lower()]
        if match["category"]:
            category = named.setdefault(match["category"].casefold(), match["category"])
            _add(found.setdefault(category, {}), split, folder)
        else:
            bare.append((split, folder))
    alone = next(iter(found)) if len(found) == 1 else root.resolve().name
    for split, folder in bare:
        _add(found.setdefault(alone, {}), split, folder)
    return {name: {s: splits[s] for s in SPLITS if s in splits} for name, splits in found.items()}


def _add(splits: dict[str, Path], split: str, folder: Path) -> None:
    """Note the folder of a split.

    Raises:
        MNIFError: there is another one.
    """
    other = splits.setdefault(split, folder)
    if other != folder:
        raise MNIFError(f"{folder.parent}: {other.name} and {folder.name} are both its {split} split; remove one.")


def _root_is_split(root: Path) -> Layout | None:
    name = root.resolve().name
    match = _SPLIT_FOLDER.match(name)
    if not (_find_scenes(root) if match else any(_is_scene(child) for child in _visible_folders(root))):
        return None
    split = _NAMES[match["split"].lower()] if match else "train"
    category = (match["category"] if match else name) or root.resolve().parent.name
    return Layout(root, category, {split: root}, root / ".mnif")


def _what_is_there(root: Path) -> str:
    names = sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith("."))
    lower = [name.lower() for name in names]
    if _is_scene(root):
        return "one scene; give the folder two levels up"
    if any(name.startswith("transforms") and name.endswith(".json") for name in lower):
        return (
            "a transforms.json (pictures of one scene, with cameras), which mnif-fit reads; many scenes of one kind "
            "are needed here"
        )
    if "sparse" in lower:
        return (
            "COLMAP's cameras of one scene; many scenes of one kind are needed here, and mnif-fit reads the "
            "transforms.json that ns-process-data makes of it"
        )
    if any(name.endswith((".zip", ".tar", ".tgz", ".tar.gz")) for name in lower):
        return "an archive; unpack it first"
    if any(name.endswith((".glb", ".gltf", ".obj", ".ply", ".off", ".stl")) for name in lower):
        return "meshes; render them with `mnif-data from-meshes` first"
    pictures = sum(name.endswith(IMAGE_SUFFIXES) for name in lower)
    if pictures:
        return f"{pictures} images without poses"
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{shown}, and nothing that is read as shapes, pictures or signals" if shown else "an empty folder"
