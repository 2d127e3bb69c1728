"""Point clouds as tables: text with or without a heading, and arrays; which columns are places, normals and colours.

A text takes some twenty times its size in memory while it is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnif_nerf.data.readers.arrays import Arrays, load_arrays
from mnif_nerf.data.readers.text import COMMENTS, has_decimal_commas, read_text, split_words
from mnif_nerf.errors import MNIFError

_PLACES = (("x", "y", "z"), ("px", "py", "pz"), ("posx", "posy", "posz"), ("easting", "northing", "elevation"))
_NORMALS = (("nx", "ny", "nz"), ("normalx", "normaly", "normalz"))
_COLORS = (("r", "g", "b"), ("red", "green", "blue"), ("rf", "gf", "bf"))
POINT_ARRAYS = ("points", "xyz", "vertices", "pos", "positions", "pc", "pointcloud", "point_cloud", "cloud")
_NORMAL_ARRAYS = ("normals", "normal")
_COLOR_ARRAYS = ("colors", "colours", "rgb", "color")


@dataclass(frozen=True)
class CloudTable:
    """A cloud as its file has it.

    Attributes:
        table: [N, 3], or [N, 6] with normals, or with three columns that may be normals.
        named: whether the file says that the last three are normals.
        colors: [N, 3] as they are, or None.
        notes: sentences on what was left out.
    """

    table: np.ndarray
    named: bool = False
    colors: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def text_table(path: Path) -> CloudTable:
    """Read a text: numbers in columns, between blanks, commas, semicolons or tabs, also with decimal commas.

    One line of words, or a comment, before the numbers names the columns; a first line with a single number counts
    the points (.pts).

    Raises:
        ValueError: no points, words among the numbers, or lines of unequal length.
        MNIFError: a heading without x, y and z.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line]
    names: list[str] = []
    rows: list[str] = []
    for number, line in enumerate(lines):
        if not line.startswith(COMMENTS) and _numbers_in(line):
            rows = [row for row in lines[number:] if not row.startswith(COMMENTS)]
            break
        words = _names(line)
        if line.startswith(COMMENTS):
            names = words if _chosen(words, _PLACES) else names
        elif names and not _chosen(words, _PLACES):
            raise ValueError(f"two lines of words before the numbers; the second: {line[:40]!r}")
        else:
            names = words
    if len(rows) > 1 and len(split_words(rows[0])) < 3 <= len(split_words(rows[1])):  # .pts: the number of points
        rows = rows[1:]
    if not rows:
        raise ValueError("no points")
    table = _numbers(rows)
    if len(names) == table.shape[1] - 1 and names[:1] != [""]:  # a table of pandas, whose first column has no name
        names = ["", *names]
    if names and len(names) == table.shape[1]:
        return _by_names(table, names, path)
    return _by_place(table)


def array_table(path: Path) -> CloudTable:
    """Read a .npy or .npz.

    `.npy`: [N, 3 or more], [1, N, 3 or more], or [3, N]. `.npz`: such an array as `points`, `xyz`, `vertices`, `pc`, or
    alone; and, perhaps, `normals` and `colors` [N, 3].

    Raises:
        ValueError: no such arrays.
        MNIFError: points of the volume with occupancies, which are no cloud of a surface.
    """
    found = load_arrays(path)
    if not isinstance(found, Arrays):
        return _by_place(found)
    with found as content:
        if "occupancies" in content.files:
            raise MNIFError(
                f"{path}: holds points of the volume with their occupancies (as Occupancy Networks' points.npz does), "
                "and no surface; give the pointcloud.npz beside it, or its mesh."
            )
        point = next((name for name in POINT_ARRAYS if name in content), None)
        if point is None and len(content.files) == 1:
            point = content.files[0]
        if point is None:
            raise ValueError(f"arrays {', '.join(content.files) or 'missing'}; expected points")
        cloud = _by_place(content[point])
        points = cloud.table[:, :3]
        parts = {}
        for role, options in (("normals", _NORMAL_ARRAYS), ("colors", _COLOR_ARRAYS)):
            name = next((name for name in options if name in content), None)
            if name is not None:
                values = content[name]
                if values.ndim != 2 or len(values) != len(points) or values.shape[1] not in (3, 4):
                    raise ValueError(f"{name} {list(values.shape)}; expected one per point, [{len(points)}, 3]")
                parts[role] = values[:, :3]
        if "normals" in parts:
            return CloudTable(np.hstack([points, parts["normals"]]), True, parts.get("colors"), cloud.notes)
        return CloudTable(cloud.table, False, parts.get("colors"), cloud.notes)


def is_cloud_shape(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape is a cloud, and not a grid."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] == 1 and 3 <= shape[2] <= 12)


def _numbers_in(line: str) -> bool:
    """Whether a line begins with a number."""
    words = split_words(line)
    try:
        float(words[0].replace(",", "."))
    except (ValueError, IndexError):
        return False
    return True


def _names(line: str) -> list[str]:
    line = line.lstrip("".join(COMMENTS) + " ")
    separator = next((mark for mark in (";", "\t", ",") if mark in line), None)
    words = [word.strip(" \"'") for word in line.split(separator)]
    return [re.sub(r"[^a-z]", "", re.sub(r"\(.*?\)|\[.*?\]", "", word.lower())) for word in words]


def _numbers(rows: list[str]) -> np.ndarray:
    commas = has_decimal_commas(rows[:1000])
    width = len(split_words(rows[0], commas))
    values = np.empty((len(rows), width))
    for number, row in enumerate(rows):
        words = split_words(row, commas)
        if len(words) != width:
            raise ValueError(f"line {row[:40]!r} has {len(words)} columns, the first one {width}")
        values[number] = [float(word) for word in words]
    return values


def _chosen(names: list[str], options: tuple[tuple[str, ...], ...]) -> list[int] | None:
    """Columns of the first option whose names are all there."""
    for option in options:
        if all(name in names for name in option):
            return [names.index(name) for name in option]
    return None


def _by_names(table: np.ndarray, names: list[str], path: Path) -> CloudTable:
    places = _chosen(names, _PLACES)
    if places is None:
        if table.shape[1] in (3, 6):
            return _by_place(table)
        raise MNIFError(f"{path}: its heading ({', '.join(names)}) names no columns x, y and z; name them so.")
    normals, colors = _chosen(names, _NORMALS), _chosen(names, _COLORS)
    used = {*places, *(normals or []), *(colors or [])}
    rest = [name or f"column {place + 1}" for place, name in enumerate(names) if place not in used]
    notes = (f"columns left out: {', '.join(rest)}.",) if rest else ()
    picked = [*places, *(normals or [])]
    return CloudTable(table[:, picked], normals is not None, None if colors is None else table[:, colors], notes)


def _by_place(table: np.ndarray) -> CloudTable:
    """Columns by what they hold: the first three are places; three of unit length after them are normals."""
    if table.ndim == 3 and is_cloud_shape(table.shape):
        table = table[0]
    notes: tuple[str, ...] = ()
    if table.ndim == 2 and table.shape[0] in (3, 6) and table.shape[1] > 12:
        table, notes = table.T, ("points were in columns, and are taken so.",)
    if table.ndim != 2 or table.shape[1] in (3, 6) or table.shape[1] < 3 or table.dtype.kind not in "uif":
        return CloudTable(table, notes=notes)
    extra = table.shape[1] - 3
    for first in range(3, table.shape[1] - 2):
        parts = table[:, first : first + 3].astype(np.float64)
        if (parts < 0).any() and (np.abs(np.linalg.norm(parts, axis=1) - 1) <= 0.05).mean() > 0.9:
            left = extra - 3
            notes = (*notes, f"{left} columns beside places and normals were left out.") if left else notes
            return CloudTable(np.hstack([table[:, :3], table[:, first : first + 3]]), notes=notes)
    return CloudTable(table[:, :3], notes=(*notes, f"{extra} columns after x, y and z were left out."))
