"""What was found out about mesh files in a run that may be stopped: which can be read, and which have changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnif_nerf.data.generate.writer import MANIFEST
from mnif_nerf.data.readers.mesh_notes import MeshNote
from mnif_nerf.errors import MNIFError, disk_errors
from mnif_nerf.files import read_json

RECORD = ".meshes_read.jsonl"  # in the data set's folder


@dataclass(frozen=True)
class MeshRead:
    """One file as it was read.

    Attributes:
        size: bytes.
        mtime_ns: when the file was last written.
        axes: (up, forward) as asked for.
        reason: why it cannot be used, or None.
        notes: what of it could not be used.
        used: files beside it that were read, relative to the folder of the meshes.
    """

    size: int
    mtime_ns: int
    axes: tuple[str, str]
    reason: str | None = None
    notes: tuple[MeshNote, ...] = ()
    used: tuple[str, ...] = ()

    @classmethod
    def now(cls, path: Path, axes: tuple[str, str]) -> MeshRead:
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, axes)

    def is_of(self, other: MeshRead) -> bool:
        """Whether it is the same file, read along the same axes."""
        return (self.size, self.mtime_ns, self.axes) == (other.size, other.mtime_ns, other.axes)


class MeshRecord:
    """A file of one JSON line per mesh, appended as each is read: a killed run loses its last line at most.

    Args:
        output: the data set's folder. A folder that holds something else is left alone: nothing is written there.
        input: the folder of the meshes, which lines are relative to.
        axes: (up, forward) as asked for.
    """

    def __init__(self, output: Path, input: Path, axes: tuple[str, str]) -> None:
        self.path, self.input, self.axes = output / RECORD, input, axes
        self._is_ours = not output.exists() or _is_from_meshes(output) or _is_empty(output)
        self.lines = dict(self._read())

    def _read(self) -> Iterator[tuple[str, MeshRead]]:
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found = json.loads(line)
                up, forward = found["axes"]
                notes = tuple(MeshNote(kind, what) for kind, what in found["notes"])
                known = (found["size"], found["mtime_ns"], (up, forward), found["reason"], notes)
                yield found["file"], MeshRead(*known, tuple(found["used"]))
            except (ValueError, KeyError, TypeError):  # cut off when the run was killed
                continue

    def _name(self, path: Path) -> str:
        return path.relative_to(self.input).as_posix()

    def of(self, path: Path) -> MeshRead | None:
        """What is known of a file as it is now, or None."""
        known = self.lines.get(self._name(path))
        return known if known is not None and known.is_of(MeshRead.now(path, self.axes)) else None

    def changed(self, paths: Sequence[Path]) -> list[Path]:
        """Those that were read before and have another size, date or axes now."""
        return [path for path in paths if self._name(path) in self.lines and self.of(path) is None]

    def note(self, path: Path, reason: str | None, notes: Sequence[MeshNote] = (), used: Sequence[Path] = ()) -> None:
        """Append a file that was just read.

        Raises:
            MNIFError: the disk cannot hold the line.
        """
        now = MeshRead.now(path, self.axes)
        root = Path(os.path.abspath(self.input))
        beside = tuple(item.relative_to(root).as_posix() for item in used if item.is_relative_to(root))
        self.lines[self._name(path)] = MeshRead(now.size, now.mtime_ns, now.axes, reason, tuple(notes), beside)
        if not self._is_ours:
            return
        line: dict[str, object] = {"file": self._name(path), "size": now.size, "mtime_ns": now.mtime_ns}
        line |= {"axes": now.axes, "notes": [(note.kind, note.what) for note in notes], "used": beside}
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._is_cut() + json.dumps({**line, "reason": reason}) + "\n")

    def _is_cut(self) -> bool:
        """Whether the file ends within a line."""
        if not self.path.stat().st_size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) != b"\n"

    def forget(self) -> None:
        """Remove the file, and the folder where it was made for nothing else."""
        if self._is_ours and not (self.path.parent / MANIFEST).exists():
            self.path.unlink(missing_ok=True)
            if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()


def _is_from_meshes(folder: Path) -> bool:
    try:
        found = read_json(folder / MANIFEST)
    except (MNIFError, OSError):
        return False
    return isinstance(found, dict) and str(found.get("kind")).startswith("from-meshes")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and all(entry.name.startswith(".") for entry in folder.iterdir())
