"""What the reader of meshes could not use, or used otherwise than the file says: notes, counted over a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mnif_nerf.names import listed

LACKS_PICTURE = "lack a picture, and have their material's colour instead"
LACKS_MATERIALS = "lack their file of materials, and are grey there"
FOUND_ELSEWHERE = "name a file where there is none; another one nearby was taken"
LEFT_OUT = "hold parts that are left out"
NOT_DRAWN = "hold points, lines or curves, which have no surface"
LARGE_SHEET = "hold a flat piece much larger than all else, so that the object is small in its pictures"
ONE_SCENE = "hold several scenes, of which one is read"
NOT_USED = "use what is not read"
NO_COLOR = "have no colour at all, and are grey"
COLOR_NOTES = (LACKS_PICTURE, LACKS_MATERIALS, FOUND_ELSEWHERE, NO_COLOR)
"""Of no matter to shapes alone."""


@dataclass(frozen=True)
class MeshNote:
    """One thing about one mesh.

    Attributes:
        kind: one of the sentences above, which follows "5 meshes".
        what: the thing itself (a picture's name, say), or nothing.
    """

    kind: str
    what: str = ""

    def __str__(self) -> str:
        said = self.kind
        for plural, single in (("lack ", "lacks "), ("name ", "names "), ("hold ", "holds "), ("use ", "uses ")):
            if said.startswith(plural):
                said = single + said.removeprefix(plural)
        if said.startswith("have "):
            said = "has " + said.removeprefix("have ")
        said = said.replace("their", "its").replace(", and have ", ", and has ").replace(", and are ", ", and is ")
        return f"{said} ({self.what})" if self.what else said


def table(notes: Sequence[tuple[str, Iterable[MeshNote]]], shown: int = 4) -> list[str]:
    """Lines "3 of 12 meshes ...: car (a.png), ...", one for each kind of note.

    Args:
        notes: of each mesh, its name and its notes.
        shown: meshes that a line names.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name, own in notes:
        for note in own:
            things = found.setdefault(note.kind, {}).setdefault(name, [])
            if note.what and note.what not in things:
                things.append(note.what)
    lines = []
    for kind, meshes in found.items():
        named = [name + (f" ({listed(things, 3)})" if things else "") for name, things in meshes.items()]
        lines.append(f"{len(meshes)} of {len(notes)} meshes {kind}: {listed(named, shown)}")
    return lines
