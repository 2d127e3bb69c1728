"""Any triangles as closed pieces that are turned outwards, so that what they enclose is a solid: `close_pieces`.

1. Vertices closer than 1e-5 become one; faces without area, and all but one of faces that lie on each other, are left
   out (doubled meshes, two-sided cards).
2. Faces that share an edge with one other each are one piece. Neighbours are turned the same way.
3. A piece that is open is closed by fans from the middle of each of its rims, in the colours of the rim. Where hardly
   anything lies between the two, the piece is a sheet (a leaf, a curtain): it is thickened to 0.01 of the diagonal
   instead, which is about what a field can hold.
4. Pieces that are inside out are turned. So cavities are filled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mnif_nerf.data.geometry.raytrace import face_normals
from mnif_nerf.errors import MNIFError, require

SHEET_THICKNESS = 0.01
"""What sheets are thickened to, world units."""
_WELD = 1e-5
_THIN = 0.004  # an open piece with less volume for each unit of its area is a sheet
_FLAT = 1e-4  # the same of a closed piece


@dataclass(frozen=True)
class ClosedPieces:
    """Triangles of closed pieces.

    Attributes:
        vertices: [V, 3].
        faces: int64 [F, 3]; the sum of the faces of a piece has no rim.
        source: int64 [F], the face of the mesh that each belongs to; of a fan, one at the rim.
        piece: int64 [F], from 0 on.
        num_closed, num_capped, num_sheets, num_turned: pieces that came closed, were closed, were thickened, and of all
            these, turned.
    """

    vertices: np.ndarray
    faces: np.ndarray
    source: np.ndarray
    piece: np.ndarray
    num_closed: int
    num_capped: int
    num_sheets: int
    num_turned: int


def close_pieces(vertices: np.ndarray, faces: np.ndarray) -> ClosedPieces:
    """Close, thicken and turn the pieces of a mesh; see the module's text.

    Args:
        vertices, faces: [V, 3], world units (the diagonal is 1), and [F, 3].

    Raises:
        MNIFError: no face has an area, or libigl is not installed.
    """
    vertices, faces, source = _clean(np.asarray(vertices, np.float64), np.asarray(faces, np.int64))
    if not len(faces):
        raise MNIFError("no face has an area")
    piece = _pieces(vertices, faces)
    faces = _turn_alike(faces, piece)
    rim, owner = _rims(vertices, faces)
    count = int(piece.max()) + 1
    caps, cap_owner, all_vertices = _fans(vertices, rim, owner, piece)
    area = np.bincount(piece, face_normals(vertices, faces)[1] / 2, count)
    volume = _volumes(vertices, faces, piece, count) + _volumes(all_vertices, caps, piece[cap_owner], count)
    is_open = np.bincount(piece[owner], minlength=count) > 0
    sheet = np.abs(volume) < np.where(is_open, _THIN, _FLAT) * area
    turned = ~sheet & (volume < 0)
    kept, capped = ~sheet[piece], ~sheet[piece[cap_owner]]
    parts = [
        (faces[kept], source[kept], piece[kept]),
        (caps[capped], source[cap_owner[capped]], piece[cap_owner[capped]]),
    ]
    if sheet.any():
        chosen, at_rim = np.flatnonzero(~kept), sheet[piece[owner]]
        plates, plate_owner, all_vertices = _plates(all_vertices, faces, chosen, rim[at_rim], owner[at_rim])
        parts.append((plates, source[plate_owner], piece[plate_owner]))
    joined, sources, pieces = (np.concatenate([part[k] for part in parts]) for k in range(3))
    joined = np.where(turned[pieces][:, None], joined[:, ::-1], joined)
    return ClosedPieces(
        all_vertices,
        joined,
        sources,
        pieces,
        num_closed=int((~is_open & ~sheet).sum()),
        num_capped=int((is_open & ~sheet).sum()),
        num_sheets=int(sheet.sum()),
        num_turned=int(turned.sum()),
    )


def _clean(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join vertices that lie together; faces with an area, one of those that lie on each other; and their numbers."""
    _, first, number = np.unique(np.round(vertices / _WELD), axis=0, return_index=True, return_inverse=True)
    vertices, faces = vertices[first], number.reshape(-1)[faces]
    flat = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 2] == faces[:, 0])
    flat |= face_normals(vertices, faces)[1] < 1e-12
    kept = np.flatnonzero(~flat)
    ordered = np.sort(faces[kept], axis=1)
    _, once = np.unique(ordered @ _radix(vertices), return_index=True)
    kept = kept[np.sort(once)]
    return vertices, faces[kept], kept


def _radix(vertices: np.ndarray) -> np.ndarray:
    """Factors that make one number of three vertex numbers (up to two million exactly; beyond, collisions are rare)."""
    count = np.int64(len(vertices))
    with np.errstate(over="ignore"):
        return np.array([count * count, count, 1], dtype=np.int64)


def _edges(faces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the edges [3 F] (edge k of a face goes from corner k to the next): numbers of the pair of ends, and +1 or -1
    for the way."""
    starts, ends = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    return low * count + high, np.where(starts < ends, 1, -1)


def _pieces(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The piece of every face, int64 [F]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    key, _ = _edges(faces, len(vertices))
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(key[order]) != 0])
    pairs = starts[np.diff(np.r_[starts, len(order)]) == 2]
    one, other = order[pairs] // 3, order[pairs + 1] // 3
    links = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(faces),) * 2)
    return connected_components(links, directed=False)[1].astype(np.int64)


def _turn_alike(faces: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Faces with the neighbours of a piece turned the same way."""
    key, way = _edges(faces, int(faces.max()) + 1)
    _, number, uses = np.unique(key, return_inverse=True, return_counts=True)
    unlike = (np.abs(np.bincount(number.reshape(-1), way)) == 2) & (uses == 2)
    wrong = np.unique(np.repeat(piece, 3)[unlike[number.reshape(-1)]])
    if not len(wrong):
        return faces
    igl = require("igl", "meshes")
    chosen = np.isin(piece, wrong)
    turned = faces.copy()
    turned[chosen] = igl.bfs_orient(np.ascontiguousarray(faces[chosen]))[0]
    return turned


def _rims(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directed edges [R, 2] that no other face of the mesh runs along the other way, and their faces [R].

    Every edge of three or more faces counts as a rim of each: pieces end there.
    """
    key, way = _edges(faces, len(vertices))
    _, number, uses = np.unique(key, return_inverse=True, return_counts=True)
    number = number.reshape(-1)
    paired = (np.bincount(number, way) == 0) & (uses == 2)
    at_rim = np.flatnonzero(~paired[number])
    starts, ends = faces.reshape(-1)[at_rim], np.roll(faces, -1, axis=1).reshape(-1)[at_rim]
    return np.stack([starts, ends], axis=1), at_rim // 3


def _fans(
    vertices: np.ndarray, rim: np.ndarray, owner: np.ndarray, piece: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles [R, 3] that close the rims of each piece, the faces that they belong to [R], and all vertices, with the
    middles of the rims at the end."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # A vertex of two pieces is two here: rims of different pieces are closed on their own.
    ends = piece[owner][:, None] * len(vertices) + rim
    _, local = np.unique(ends, return_inverse=True)
    local = local.reshape(-1, 2)
    if not len(local):
        return np.zeros((0, 3), np.int64), owner, vertices
    links = coo_array((np.ones(len(local), dtype=bool), local.T), shape=(int(local.max()) + 1,) * 2)
    count, of_vertex = connected_components(links, directed=False)
    loop = of_vertex[local[:, 0]]
    lengths = np.linalg.norm(vertices[rim[:, 1]] - vertices[rim[:, 0]], axis=1)
    middles = vertices[rim].mean(axis=1) * lengths[:, None]
    total = np.maximum(np.bincount(loop, lengths, count), 1e-30)
    centres = np.stack([np.bincount(loop, middles[:, k], count) / total for k in range(3)], axis=1)
    caps = np.stack([rim[:, 1], rim[:, 0], len(vertices) + loop], axis=1)
    return caps, owner, np.concatenate([vertices, centres])


def _volumes(vertices: np.ndarray, faces: np.ndarray, piece: np.ndarray, count: int) -> np.ndarray:
    """What the faces of each piece add to its volume: [count]."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.bincount(piece, np.einsum("fi,fi->f", a, np.cross(b, c)) / 6, count)


def _plates(
    vertices: np.ndarray, faces: np.ndarray, chosen: np.ndarray, rim: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chosen faces as plates with both sides and walls at the rims: triangles, the faces that they belong to, and
    all vertices, the plates' own at the end."""
    sheet = faces[chosen]
    used, local = np.unique(sheet, return_inverse=True)
    local = local.reshape(-1, 3)
    normals, double = face_normals(vertices, sheet)
    weighted = np.repeat(normals * double[:, None], 3, axis=0)
    summed = np.stack([np.bincount(local.reshape(-1), weighted[:, k], len(used)) for k in range(3)], axis=1)
    away = summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-30) * (SHEET_THICKNESS / 2)
    top, bottom = len(vertices) + local, len(vertices) + len(used) + local[:, ::-1]
    above = len(vertices) + np.asarray(np.searchsorted(used, rim))
    start, end = above[:, 0], above[:, 1]
    below = len(used)
    walls = [np.stack([end, start, start + below], axis=1), np.stack([end, start + below, end + below], axis=1)]
    everything = np.concatenate([vertices, vertices[used] + away, vertices[used] - away])
    return np.concatenate([top, bottom, *walls]), np.concatenate([chosen, chosen, owner, owner]), everything
