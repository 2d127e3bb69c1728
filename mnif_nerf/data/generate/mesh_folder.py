"""What a folder of meshes holds: the meshes, what they need, and all else, so that nothing goes unmentioned."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mnif_nerf.data.readers.mesh_files import MESH_SUFFIXES
from mnif_nerf.errors import MNIFError

OTHER_MESHES = (
    *(".fbx", ".blend", ".dae", ".usd", ".usda", ".usdc", ".usdz", ".3mf", ".3ds", ".x3d", ".wrl", ".vrml", ".abc"),
    *(".max", ".ma", ".mb", ".c4d", ".skp", ".lwo", ".lws", ".x", ".md2", ".md3", ".md5mesh", ".mdl", ".vox", ".ctm"),
    *(".msh", ".vtk", ".vtp", ".stp", ".step", ".igs", ".iges", ".brep", ".fcstd", ".sldprt", ".amf", ".dxf", ".dwg"),
    *(".ifc", ".3dm", ".ac", ".ase", ".nff", ".b3d", ".xgl", ".zgl", ".cob", ".irr", ".ogex", ".m3d", ".splat", ".vrm"),
)
"""Kinds of meshes that are not read."""
ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zae", ".unitypackage")
_SKIPPED_FOLDERS = ("__MACOSX", "@eaDir", "lost+found")
_SHOWN = 6


@dataclass
class MeshFolder:
    """The files below a folder, sorted.

    Attributes:
        root: the folder.
        meshes: files of the kinds that are read.
        others: all other files but hidden ones.
        hidden: how many are hidden, or lie in hidden folders or those of file servers.
        closed: folders that cannot be looked into.
    """

    root: Path
    meshes: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    hidden: int = 0
    closed: list[Path] = field(default_factory=list)

    def mentions(self, used: Iterable[str]) -> list[str]:
        """Lines on the files that are no meshes, and that no mesh has used.

        Args:
            used: files that meshes were read with, relative to the root.
        """
        known = set(used)
        rest = [path for path in self.others if self._name(path) not in known]
        unread = [path for path in rest if path.name.lower().endswith(OTHER_MESHES)]
        packed = [path for path in rest if path not in unread and path.name.lower().endswith(ARCHIVES)]
        plain = [path for path in rest if path not in unread and path not in packed]
        lines = []
        if unread:
            lines.append(
                f"{_count(unread, 'file')} of kinds that are not read: {self._listed(unread)}; open them in Blender "
                "and export them as .glb"
            )
        if packed:
            lines.append(f"{_count(packed, 'archive')} not looked into: {self._listed(packed)}; unpack them")
        if plain:
            kinds = Counter(path.suffix.lower() or "without a suffix" for path in plain)
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
            more = f" and {len(kinds) - 8} more kinds" if len(kinds) > 8 else ""
            lines.append(f"{_count(plain, 'other file')} that no mesh names: {told}{more} ({self._listed(plain, 3)})")
        if self.hidden:
            lines.append(f"{self.hidden} hidden file{'s' * (self.hidden != 1)}, not looked at")
        if self.closed:
            lines.append(f"{_count(self.closed, 'folder')} that cannot be opened: {self._listed(self.closed)}")
        return lines

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _listed(self, paths: Sequence[Path], shown: int = _SHOWN) -> str:
        more = f" and {len(paths) - shown} more" if len(paths) > shown else ""
        return ", ".join(self._name(path) for path in paths[:shown]) + more


def list_folder(root: Path, output: Path | None = None) -> MeshFolder:
    """Look through a folder and all below it; what lies below `output` is left out.

    Raises:
        MNIFError: no such folder.
    """
    if not root.is_dir():
        problem = "is a file" if root.exists() else "no such folder"
        raise MNIFError(f"{root}: {problem}; give the folder that holds your meshes.")
    found, seen = MeshFolder(root), set()
    ours = None if output is None or output == root else output.resolve()

    def closed(error: OSError) -> None:
        found.closed.append(Path(str(error.filename)))

    for current, folders, names in os.walk(root, onerror=closed, followlinks=True):
        here = Path(current)
        real = here.resolve()
        if real in seen or (ours is not None and real.is_relative_to(ours)):
            folders.clear()  # a link to a folder that was seen, or what is being made
            continue
        seen.add(real)
        folders.sort()
        hidden = any(_is_hidden(part) for part in here.relative_to(root).parts)
        for name in sorted(names):
            path = here / name
            if hidden or _is_hidden(name):
                found.hidden += 1
            elif path.suffix.lower() in MESH_SUFFIXES and path.is_file():
                found.meshes.append(path)
            else:
                found.others.append(path)
    found.meshes.sort()
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED_FOLDERS


def _count(items: Sequence[object], word: str) -> str:
    return f"{len(items)} {word}{'s' * (len(items) != 1)}"
