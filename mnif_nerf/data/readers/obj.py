"""Reading Wavefront .obj with its materials into coloured triangles."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.readers.mesh_notes import FOUND_ELSEWHERE, LACKS_MATERIALS, NOT_DRAWN, NOT_USED
from mnif_nerf.data.readers.mesh_pieces import UNCOLOURED, with_corners
from mnif_nerf.data.readers.mesh_surroundings import Surroundings
from mnif_nerf.data.readers.mtl import MtlMaterial, decode_text, read_mtl

_NO_SURFACE = ("l", "p", "curv", "curv2", "surf")


@dataclass
class _Lines:
    """What the lines of a file say."""

    vertices: list[str] = field(default_factory=list)
    coordinates: list[str] = field(default_factory=list)
    faces: dict[str, list[list[tuple[int, int]]]] = field(default_factory=dict)  # by material: corners (v, vt or -1)
    libraries: list[str] = field(default_factory=list)
    other: bool = False


def read_obj(path: Path, beside: Surroundings) -> list[Surface]:
    """The pieces of a file, one for each material, in its own axes; what could not be used is noted in `beside`.

    Raises:
        ValueError: damaged.
    """
    lines = _split(decode_text(path.read_bytes()))
    if lines.other:
        beside.note(NOT_DRAWN)
    if not lines.faces:
        return []
    vertices, tints = _vertices(lines.vertices)
    coordinates = _table(lines.coordinates, 2)
    materials = _materials(lines, beside)
    used = [materials[name] for name in lines.faces if name in materials]
    opaque = bool(used) and len(used) == len(lines.faces) and all(material.alpha < 0.01 for material in used)
    if opaque:  # exporters that write the one for the other
        beside.note(NOT_USED, "transparency by which nothing would be seen")
    pieces = []
    for name, polygons in lines.faces.items():
        corners = _triangles(polygons)
        if len(corners):
            piece = _piece(corners, vertices, tints, coordinates)
            pieces.append(_colored(piece, materials.get(name), beside, opaque, tints is not None))
    return pieces


def _split(text: str) -> _Lines:
    found, material = _Lines(), ""
    faces: list[list[tuple[int, int]]] = []
    for line in text.split("\n"):
        word, _, rest = line.strip().replace("\t", " ").partition(" ")
        if word == "v":
            found.vertices.append(rest)
        elif word == "vt":
            found.coordinates.append(rest)
        elif word == "f":
            corners = [
                _corner(token, len(found.vertices), len(found.coordinates)) for token in rest.split("#")[0].split()
            ]
            if len(corners) < 3:
                found.other = True
                continue
            if not faces:
                faces = found.faces.setdefault(material, [])
            faces.append(corners)
        elif word == "usemtl":
            material = rest.strip()
            faces = found.faces.get(material, [])
        elif word.lower() == "mtllib":
            found.libraries.append(rest.strip())
        elif word in _NO_SURFACE:
            found.other = True
    return found


def _corner(token: str, num_vertices: int, num_coordinates: int) -> tuple[int, int]:
    """Numbers from 0 on of a corner's position and texture coordinate, -1 for none."""
    parts = token.split("/")
    vertex = int(parts[0])
    vertex = vertex - 1 if vertex > 0 else vertex + num_vertices
    if vertex < 0 or not parts[0]:
        raise ValueError("a face names a vertex that is not there")
    if len(parts) < 2 or not parts[1]:
        return vertex, -1
    where = int(parts[1])
    return vertex, max(where - 1 if where > 0 else where + num_coordinates, -1)


def _table(rows: list[str], width: int) -> np.ndarray:
    """Numbers [N, width]; what a row has not is 0, what it has more is left out."""
    found = np.zeros((len(rows), width))
    for index, row in enumerate(rows):
        values = row.split()[:width]
        found[index, : len(values)] = [float(value) for value in values]
    return found


def _vertices(rows: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions [V, 3] and colours [V, 3], grey where a vertex has none; None where none has one."""
    split = [row.split("#")[0].split() for row in rows]
    counts = {len(row) for row in split}
    if split and min(counts) < 3:
        raise ValueError("a vertex with fewer than three numbers")
    positions = np.array([[float(value) for value in row[:3]] for row in split]).reshape(-1, 3)
    if not split or max(counts) < 6:
        return positions, None
    tints = np.array([[float(value) for value in row[-3:]] if len(row) > 5 else [np.nan] * 3 for row in split])
    tints = tints / 255.0 if np.nanmax(tints) > 1.0 else tints
    return positions, np.where(np.isfinite(tints), np.clip(tints, 0.0, 1.0), UNCOLOURED)


def _triangles(polygons: list[list[tuple[int, int]]]) -> np.ndarray:
    """Corners int64 [F, 3, 2] of fans over the polygons."""
    fans = [(face[0], face[k], face[k + 1]) for face in polygons for k in range(1, len(face) - 1)]
    return np.array(fans, np.int64).reshape(-1, 3, 2)


def _piece(corners: np.ndarray, vertices: np.ndarray, tints: np.ndarray | None, coordinates: np.ndarray) -> Surface:
    """Triangles with their vertices' colours, or grey; `uv` where all corners have coordinates."""
    faces, where = corners[..., 0], corners[..., 1]
    if faces.max() >= len(vertices):
        raise ValueError("a face names a vertex that is not there")
    used, local = np.unique(faces, return_inverse=True)
    faces = local.reshape(faces.shape)
    colors = np.full((len(faces), 3, 3), UNCOLOURED) if tints is None else tints[used][faces]
    whole = where.min() >= 0 and where.max() < len(coordinates)
    return Surface(vertices[used], faces, colors, coordinates[where] if whole else None)


def _colored(piece: Surface, material: MtlMaterial | None, beside: Surroundings, opaque: bool, tinted: bool) -> Surface:
    uv, piece.uv = piece.uv, None
    if material is None:
        return piece
    alpha = 1.0 if opaque else material.alpha
    pixels = material.pixels(beside)
    if pixels is not None and uv is None:
        beside.note(NOT_USED, "a picture for which it has no texture coordinates")
        pixels = None
    placed = material.picture or material.mask
    if pixels is not None and placed is not None and uv is not None:
        # With a picture, .mtl files often hold a black or grey diffuse colour that nobody multiplies.
        color = np.ones(3) if material.picture is not None or material.color is None else material.color
        piece.corner_colors = np.broadcast_to(color, piece.corner_colors.shape)
        piece = with_corners(piece, uv * placed.scale + placed.offset, pixels, placed.wrap)
    elif material.color is not None and not tinted:
        piece.corner_colors = np.broadcast_to(material.color, piece.corner_colors.shape)
    if alpha < 1.0 or (pixels is not None and pixels.shape[2] == 4):
        piece.corner_alpha = np.full(piece.faces.shape, alpha)
        piece.cutoff = np.full(len(piece.faces), 0.0 if alpha < 1.0 else 0.5)
    return piece


def _materials(lines: _Lines, beside: Surroundings) -> dict[str, MtlMaterial]:
    """The materials that faces name; libraries and materials that are missing are noted."""
    found: dict[str, MtlMaterial] = {}
    wanted = [name for name in lines.faces if name]
    if not wanted:
        return found
    missing = False
    for line in lines.libraries or [beside.path.with_suffix(".mtl").name]:
        # A name with blanks, or several names.
        whole = beside.find(line.strip('"'), elsewhere=True)
        files = [whole] if whole is not None else [beside.find(name, elsewhere=True) for name in line.split()]
        if None in files and (own := beside.find(beside.path.with_suffix(".mtl").name)) is not None:
            beside.note(FOUND_ELSEWHERE, line)  # both were renamed
            files = [own]
        missing |= None in files and bool(lines.libraries)
        for file in files:
            try:
                found.update(read_mtl(file) if file is not None else {})
            except OSError as error:
                beside.note(LACKS_MATERIALS, f"{file}: {error.strerror}")
        if None in files and lines.libraries:
            beside.note(LACKS_MATERIALS, f"{line}: missing")
    plain = {name.casefold(): material for name, material in found.items()}
    named = {name: found.get(name, plain.get(name.casefold())) for name in wanted}
    lacking = [name for name, material in named.items() if material is None]
    if lacking and not missing:
        beside.note(LACKS_MATERIALS, f"none called {', '.join(lacking[:3])}{', ...' * (len(lacking) > 3)}")
    return {name: material for name, material in named.items() if material is not None}
