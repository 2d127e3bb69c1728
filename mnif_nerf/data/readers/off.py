"""Reading .off with the colours of its vertices or faces."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.readers.mesh_notes import NOT_DRAWN
from mnif_nerf.data.readers.mesh_pieces import UNCOLOURED
from mnif_nerf.data.readers.mesh_surroundings import Surroundings
from mnif_nerf.data.readers.mtl import decode_text

_HEAD = re.compile(r"(?:\s*#[^\n]*\n)*\s*(ST)?(C)?(N)?(4)?OFF\s*", re.IGNORECASE)


def read_off(path: Path, beside: Surroundings) -> list[Surface]:
    """The only piece of a file; ModelNet's headings without a line's end (`OFF490 518 0`) are put up with.

    Raises:
        ValueError: damaged, or binary.
    """
    text = decode_text(path.read_bytes())
    head = _HEAD.match(text)
    if head is None or text[head.end() : head.end() + 6].upper() == "BINARY":
        raise ValueError("no OFF file in text")
    rows = [line.split("#")[0].split() for line in text[head.end() :].split("\n")]
    rows = [row for row in rows if row]
    num_vertices, num_faces = (int(word) for word in rows[0][:2])
    if not 0 <= num_vertices <= len(rows) - 1 or not 0 <= num_faces <= len(rows) - 1 - num_vertices:
        raise ValueError("cut off")
    first = 1 + num_vertices
    places = np.array([[float(word) for word in row[:3]] for row in rows[1:first]]).reshape(-1, 3)
    faces, colors = _faces(rows[first : first + num_faces])
    if not len(faces):
        if num_vertices:
            beside.note(NOT_DRAWN)
        return []
    if faces.min() < 0 or faces.max() >= num_vertices:
        raise ValueError("a face names a vertex that is not there")
    plain = head[1] is None and head[3] is None and head[4] is None
    if head[2] or (plain and _has_colors(rows[1:first])):
        start = 3 + (head[4] is not None) + 3 * (head[3] is not None)
        tints = np.array([[float(word) for word in row[start : start + 3]] for row in rows[1:first]])
        colors = _unit(tints.reshape(num_vertices, 3), tints)[faces]
    return [Surface(places, faces, colors)]


def _has_colors(rows: list[list[str]]) -> bool:
    """Whether the rows of vertices of a file that does not say so hold colours: four numbers after the place, or three
    bytes."""
    width = {len(row) for row in rows}
    if width == {7}:
        return True
    return width == {6} and all(word.isdigit() and int(word) < 256 for row in rows for word in row[3:])


def _faces(rows: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Triangles int64 [F, 3], in fans, and their corners' colours [F, 3, 3]."""
    faces: list[tuple[int, int, int]] = []
    words: list[list[str]] = []
    for row in rows:
        count = int(row[0])
        corners = [int(word) for word in row[1 : 1 + count]]
        if count < 0 or len(corners) < count:
            raise ValueError("a face with too few numbers")
        for k in range(1, count - 1):
            faces.append((corners[0], corners[k], corners[k + 1]))
            words.append(row[1 + count : 4 + count])
    colors = np.full((len(faces), 3), UNCOLOURED)
    own = np.array([len(word) == 3 for word in words], dtype=bool)  # a single number is that of a colour map
    if own.any():
        values = np.array([[float(item) for item in word] for word in words if len(word) == 3])
        colors[own] = _unit(values, values)
    return np.array(faces, np.int64).reshape(-1, 3), np.repeat(colors[:, None], 3, axis=1)


def _unit(values: np.ndarray, all_values: np.ndarray) -> np.ndarray:
    """Colours in [0, 1], from bytes where one is above 1."""
    return np.clip(np.nan_to_num(values / (255.0 if np.nanmax(all_values) > 1.0 else 1.0)), 0.0, 1.0)
