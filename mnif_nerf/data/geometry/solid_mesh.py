"""The boundary of the solid that a mesh of closed, overlapping pieces stands for: `solid_of_pieces`.

1. The pieces are united exactly (the library Manifold), so that what of one lies within another is gone, and with it
   its colour. Every face knows which face it was cut from. Cavities, gaps between pieces above all, are filled.
2. A piece may fold through itself, which a union does not see. Beside faces the winding number of all is taken: at the
   boundary it is 0 in front and 1 behind. Other faces, and what touches or crosses them, are cut small and
   judged again. Where such a face is nearest, signs come from winding numbers.
3. Of any mesh (`solid_of_surface`), rooms that are open to the outside by a slit alone are filled as cavities are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mnif_nerf.data.geometry.closed_pieces import ClosedPieces, close_pieces
from mnif_nerf.data.geometry.closed_rooms import faces_rooms, find_rooms, near_rooms
from mnif_nerf.data.geometry.raytrace import Surface, face_normals
from mnif_nerf.errors import MNIFError, require

MAX_FACES = 5_000_000
"""Triangles of a mesh that are accepted."""
_BESIDE = 1e-5  # how far beside a face its winding number is taken, world units
_PAIRS = 1_000_000  # of boxes compared at once
_LOOKED_AT = 20_000  # faces that are looked at, at most, before any is found wrong
_NO_AREA = 1e-11  # twice the area of a sliver, whose normal means nothing
_LOOKS = 5_000  # places looked at in folded pieces, for each unit of area
_SURE, _DOUBTFUL, _MIXED, _HIDDEN = range(4)
_SMALL_EDGE = 0.02  # faces of folded pieces are cut until no edge is longer


@dataclass(frozen=True)
class SolidMesh:
    """The boundary of a solid.

    Attributes:
        vertices: [V, 3].
        faces: int64 [F, 3], turned outwards, none inside the solid.
        source: int64 [F], the face of the surface that each was cut from.
        normals: unit [F, 3], of these faces: slivers do not know them themselves.
        sure: bool [F], whether the mesh is closed and free of overlaps around a face.
        winding: vertices and faces whose winding number is 1 or more inside the solid, and 0 or less outside.
        pieces: what it was made of, where that was any mesh.
    """

    vertices: np.ndarray
    faces: np.ndarray
    source: np.ndarray
    normals: np.ndarray
    sure: np.ndarray
    winding: tuple[np.ndarray, np.ndarray]
    pieces: ClosedPieces | None = None


def solid_of_pieces(vertices: np.ndarray, faces: np.ndarray, piece: np.ndarray, flush: bool = True) -> SolidMesh:
    """Unite pieces.

    Args:
        vertices, faces: [V, 3] and [F, 3].
        piece: int64 [F] from 0 on; the faces of each piece are closed and turned outwards.
        flush: whether faces of different pieces may lie on each other, all but exactly; to look for such walls takes
            half as long again.

    Raises:
        MNIFError: Manifold or libigl is not installed, or nothing is left.
    """
    united, corners, source, loose = _unite(vertices, faces, piece)
    winding, sides = (united, corners), (-1, 1) if flush else (-1,)
    state = _look_at_pieces(vertices, faces, piece)[source]
    if flush:
        state = np.maximum(state, _look_at_all(winding, piece[source]))
    state[loose] = _MIXED
    beside = _beside_folds(united, corners, piece[source], state >= _MIXED)
    state[beside & (state == _SURE)] = _DOUBTFUL
    whole, mixed = state <= _DOUBTFUL, state == _MIXED
    sure = state[whole] == _SURE
    if mixed.any():
        united, cut, cut_source = _cut_small(united, corners[mixed], source[mixed])
        kept = _is_outer(winding, *_middles(united, cut), sides)
        corners = np.concatenate([corners[whole], cut[kept]])
        source = np.concatenate([source[whole], cut_source[kept]])
        sure = np.concatenate([sure, np.zeros(int(kept.sum()), dtype=bool)])
    else:
        corners, source = corners[whole], source[whole]
    if not len(corners):
        raise MNIFError("nothing is inside")
    return SolidMesh(united, corners, source, face_normals(vertices, faces)[0][source], sure, winding)


def solid_of_surface(surface: Surface) -> SolidMesh:
    """The boundary of the solid that any mesh stands for (see `close_pieces`); its sources are faces of `surface`.

    Raises:
        MNIFError: no face has an area, the mesh is too large, or a library is not installed.
    """
    if len(surface.faces) > MAX_FACES:
        raise MNIFError(f"{len(surface.faces):,} triangles are more than {MAX_FACES:,}; decimate the mesh first")
    pieces = close_pieces(surface.vertices, surface.faces)
    solid = _without_rooms(solid_of_pieces(pieces.vertices, pieces.faces, pieces.piece))
    return replace(solid, source=pieces.source[solid.source], pieces=pieces)


def _without_rooms(solid: SolidMesh) -> SolidMesh:
    """Without the walls that face rooms, which then count as inside; signs near what is left of them by winding."""
    rooms = find_rooms(solid.winding, (solid.vertices, solid.faces))
    if rooms is None:
        return solid
    vertices, faces, number = _walls_outside(solid.vertices, solid.faces, rooms)
    sure = solid.sure[number] & (faces == solid.faces[number]).all(axis=1)
    winding = _walls_outside(*solid.winding, rooms)[:2]
    return SolidMesh(vertices, faces, solid.source[number], solid.normals[number], sure, winding)


def _walls_outside(
    vertices: np.ndarray, faces: np.ndarray, rooms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, and faces without those that face rooms, cut small around them; and the faces they were cut from."""
    near = near_rooms(rooms, vertices[faces])
    whole, cut = np.flatnonzero(~near), np.flatnonzero(near)
    vertices, small, number = _cut_small(vertices, faces[cut], cut)
    kept = ~faces_rooms(rooms, *_middles(vertices, small))
    return vertices, np.concatenate([faces[whole], small[kept]]), np.concatenate([whole, number[kept]])


def _unite(
    vertices: np.ndarray, faces: np.ndarray, piece: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces, the faces' sources, and which of them belong to pieces that no union can be made of."""
    manifold = require("manifold3d", "meshes")
    sound: list[object] = []
    loose: list[np.ndarray] = []
    for chosen, used, local in _each_piece(faces, piece):
        one = manifold.Manifold(
            manifold.Mesh64(
                vert_properties=np.ascontiguousarray(vertices[used], np.float64),
                tri_verts=local.astype(np.uint64),
                face_id=chosen.astype(np.uint64),
            )
        )
        if one.status() == manifold.Error.NoError and not one.is_empty():
            sound.append(one)
        else:
            loose.append(chosen)
    parts = [(vertices[faces[chosen]], chosen) for chosen in loose]
    where, corner, source = np.zeros((0, 3)), np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
    if sound:
        made = manifold.Manifold.batch_boolean(sound, manifold.OpType.Add).to_mesh64()
        where = np.asarray(made.vert_properties, np.float64)[:, :3]
        corner, source = np.asarray(made.tri_verts).astype(np.int64), np.asarray(made.face_id).astype(np.int64)
        outside = _outside(where, corner)
        corner, source = corner[outside], source[outside]
    for corners, chosen in parts:
        corner = np.concatenate([corner, len(where) + np.arange(3 * len(corners)).reshape(-1, 3)])
        where = np.concatenate([where, corners.reshape(-1, 3)])
        source = np.concatenate([source, chosen])
    return where, corner, source, np.arange(len(source)) >= len(source) - sum(len(chosen) for chosen in loose)


def _outside(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Faces that are no wall of a cavity, nor of what lies within one: bool [F]. Nobody sees them, and a field would
    spend itself on them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = faces[:, [0, 1, 1, 2]].reshape(-1, 2)
    links = coo_array((np.ones(len(edges), dtype=bool), edges.T), shape=(len(vertices),) * 2)
    shell = connected_components(links, directed=False)[1][faces[:, 0]]
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    volume = np.bincount(shell, np.einsum("fi,fi->f", a, np.cross(b, c)))
    outside = volume[shell] > 0
    if outside.all():
        return outside
    mesh = (vertices, faces[outside])
    normals, double = face_normals(vertices, faces)
    for number in np.unique(shell[outside]):
        largest = np.flatnonzero(shell == number)[[np.argmax(double[shell == number])]]
        before = vertices[faces[largest]].mean(axis=1) + _BESIDE * normals[largest]
        if winding_number(mesh, before)[0] > 0.5:
            outside &= shell != number
    return outside


def _look_at_pieces(vertices: np.ndarray, faces: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """What each face is in its own piece: `_SURE`, `_MIXED` (of the boundary in part) or `_HIDDEN`; `_DOUBTFUL` without
    an area: uint8 [F].

    A look behind the middle of each face finds the pieces that are folded; of these, several places of each face are
    looked at.
    """
    state = np.zeros(len(faces), np.uint8)
    for chosen, used, local in _each_piece(faces, piece):
        mesh = (vertices[used], local)
        looked = _some(len(chosen))
        normals, double = face_normals(mesh[0], local)
        middles, flat = mesh[0][local].mean(axis=1), double < _NO_AREA
        wrong = looked[~_is_outer(mesh, middles[looked], normals[looked], (-1,)) & ~flat[looked]]
        if len(wrong):
            state[chosen] = _look_closely(mesh, np.arange(len(chosen)), (-1,))
            state[chosen[wrong]] = np.maximum(state[chosen[wrong]], _MIXED)
        state[chosen[flat]] = _DOUBTFUL
    return state


def _look_at_all(mesh: tuple[np.ndarray, np.ndarray], piece: np.ndarray) -> np.ndarray:
    """What each face is beside the other pieces, as in `_look_at_pieces`: walls between pieces are `_HIDDEN`."""
    vertices, faces = mesh
    state = np.zeros(len(faces), np.uint8)
    looked = _some(len(faces))
    normals, double = face_normals(vertices, faces[looked])
    outer = _is_outer(mesh, vertices[faces[looked]].mean(axis=1), normals, (1,))
    wrong = looked[~outer & (double > _NO_AREA)]
    own = np.flatnonzero(np.isin(piece, piece[wrong]))
    if len(own):
        state[own] = _look_closely(mesh, own, (1,))
        state[wrong] = np.maximum(state[wrong], _MIXED)
    return state


def _look_closely(mesh: tuple[np.ndarray, np.ndarray], chosen: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """What the chosen faces are by looks at several places of each: uint8 [chosen]."""
    vertices, faces = mesh
    normals, double = face_normals(vertices, faces[chosen])
    counts = 1 + np.ceil(_LOOKS * double / 2).astype(np.int64)
    face = np.repeat(np.arange(len(chosen)), counts)
    weights = np.random.default_rng(0).dirichlet((1.0, 1.0, 1.0), len(face))
    places = np.einsum("pk,pkc->pc", weights, vertices[faces[chosen[face]]])
    share = np.bincount(face, _is_outer(mesh, places, normals[face], sides)) / counts
    found = np.where(share == 1, _SURE, np.where(share == 0, _HIDDEN, _MIXED))
    found[double < _NO_AREA] = _DOUBTFUL
    return found.astype(np.uint8)


def _some(count: int) -> np.ndarray:
    """All numbers below `count`, or of many a random share, which finds what is folded as well."""
    if count <= _LOOKED_AT:
        return np.arange(count)
    return np.random.default_rng(0).choice(count, _LOOKED_AT, replace=False)


def _each_piece(faces: np.ndarray, piece: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each piece, numbers of its faces, of its vertices, and its faces in these vertices."""
    order = np.argsort(piece, kind="stable")
    for chosen in np.split(order, np.cumsum(np.bincount(piece))[:-1]):
        if len(chosen):
            used, local = np.unique(faces[chosen], return_inverse=True)
            yield chosen, used, local.reshape(-1, 3).astype(np.int64)


def _middles(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middles and normals of faces, [F, 3] each."""
    return vertices[faces].mean(axis=1), face_normals(vertices, faces)[0]


def _is_outer(
    mesh: tuple[np.ndarray, np.ndarray], places: np.ndarray, normals: np.ndarray, sides: tuple[int, ...]
) -> np.ndarray:
    """Whether places on faces have the outside in front (side +1) and the inside behind them (side -1): bool [P]."""
    outer = np.ones(len(places), dtype=bool)
    for side in sides:
        found = winding_number(mesh, places + side * _BESIDE * normals)
        outer &= np.abs(found - (side < 0)) < 0.5
    return outer


def _beside_folds(vertices: np.ndarray, faces: np.ndarray, piece: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Which faces are wrong, or may cross or touch a wrong one of their own piece: bool [F]."""
    corners = vertices[faces]
    low, high = corners.min(axis=1) - _BESIDE, corners.max(axis=1) + _BESIDE
    beside = wrong.copy()
    for number in np.unique(piece[wrong]):
        own, bad = np.flatnonzero(piece == number), np.flatnonzero(wrong & (piece == number))
        for part in np.array_split(own, -(-len(own) * len(bad) // _PAIRS)):
            apart = (low[part, None] > high[None, bad]) | (high[part, None] < low[None, bad])
            beside[part] |= ~apart.any(axis=2).all(axis=1)
    return beside


def winding_number(mesh: tuple[np.ndarray, np.ndarray], points: np.ndarray) -> np.ndarray:
    """How often a mesh (vertices, faces) goes around points [P, 3]: [P].

    Raises:
        MNIFError: libigl is not installed.
    """
    igl = require("igl", "meshes")
    vertices, faces = np.ascontiguousarray(mesh[0], np.float64), np.ascontiguousarray(mesh[1], np.int64)
    return np.asarray(igl.fast_winding_number(vertices, faces, np.ascontiguousarray(points, np.float64)))


def _cut_small(
    vertices: np.ndarray, faces: np.ndarray, source: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Faces cut in four until their edges are short: all vertices, the old ones first, the new faces, their sources."""
    done: list[tuple[np.ndarray, np.ndarray]] = []
    while len(faces):
        corners = vertices[faces]
        longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
        long = longest > _SMALL_EDGE
        done.append((faces[~long], source[~long]))
        faces, source = faces[long], np.repeat(source[long], 4)
        middles = (corners[long] + np.roll(corners[long], -1, axis=1)) / 2
        number = len(vertices) + np.arange(3 * len(faces)).reshape(-1, 3)
        vertices = np.concatenate([vertices, middles.reshape(-1, 3)])
        (a, b, c), (ab, bc, ca) = faces.T, number.T
        faces = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], axis=1).reshape(-1, 3)
    return vertices, np.concatenate([part for part, _ in done]), np.concatenate([part for _, part in done])


def piece_numbers(sizes: Sequence[int]) -> np.ndarray:
    """The piece of every face, int64 [F], where pieces of so many faces follow each other."""
    return np.repeat(np.arange(len(sizes)), sizes)
