"""The boundary of the solid that a mesh of closed, overlapping pieces stands for: `solid_of_pieces`.

1. The pieces are united exactly (the library Manifold), so that what of one lies within another is gone, and with it
   its colour. Every face knows which face it was cut from.
2. A piece may fold through itself, which a union does not see. Beside each face the winding number of all is taken: a
   face of the boundary has none on its outer side. Other faces, and what touches or crosses them, are cut small and
   judged again. Where such a face is nearest, signs come from winding numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnif_nerf.data.geometry.raytrace import face_normals
from mnif_nerf.errors import MNIFError, require

_BESIDE = 1e-5  # how far beside a face its winding number is taken, world units
_PAIRS = 1_000_000  # of boxes compared at once
_SMALL_EDGE = 0.02  # faces of folded pieces are cut until no edge is longer


@dataclass(frozen=True)
class SolidMesh:
    """The boundary of a solid.

    Attributes:
        vertices: [V, 3].
        faces: int64 [F, 3], turned outwards, none inside the solid.
        source: int64 [F], the face of the surface that each was cut from.
        sure: bool [F], whether the mesh is closed and free of overlaps around a face.
        winding: vertices and faces whose winding number is 1 or more inside the solid, and 0 or less outside.
    """

    vertices: np.ndarray
    faces: np.ndarray
    source: np.ndarray
    sure: np.ndarray
    winding: tuple[np.ndarray, np.ndarray]


def solid_of_pieces(vertices: np.ndarray, faces: np.ndarray, piece: np.ndarray) -> SolidMesh:
    """Unite pieces.

    Args:
        vertices, faces: [V, 3] and [F, 3].
        piece: int64 [F] from 0 on; the faces of each piece are closed and turned outwards.

    Raises:
        MNIFError: Manifold or libigl is not installed, or nothing is left.
    """
    united, corners, source, loose = _unite(vertices, faces, piece)
    winding = (united, corners)
    outer = _is_outer(united, corners, winding)
    sure = ~_beside_folds(united, corners, piece[source], ~outer) & ~loose
    if not sure.all():
        united, cut, cut_source = _cut_small(united, corners[~sure], source[~sure])
        kept = _is_outer(united, cut, winding)
        corners = np.concatenate([corners[sure], cut[kept]])
        source = np.concatenate([source[sure], cut_source[kept]])
        sure = np.arange(len(corners)) < sure.sum()
    if not len(corners):
        raise MNIFError("nothing is inside")
    return SolidMesh(united, corners, source, sure, winding)


def _unite(
    vertices: np.ndarray, faces: np.ndarray, piece: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces, the faces' sources, and which of them belong to pieces that no union can be made of."""
    manifold = require("manifold3d", "meshes")
    order = np.argsort(piece, kind="stable")
    ends = np.cumsum(np.bincount(piece))
    sound: list[object] = []
    loose: list[np.ndarray] = []
    for chosen in np.split(order, ends[:-1]):
        used, local = np.unique(faces[chosen], return_inverse=True)
        one = manifold.Manifold(
            manifold.Mesh64(
                vert_properties=np.ascontiguousarray(vertices[used], np.float64),
                tri_verts=local.reshape(-1, 3).astype(np.uint64),
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
    for corners, chosen in parts:
        corner = np.concatenate([corner, len(where) + np.arange(3 * len(corners)).reshape(-1, 3)])
        where = np.concatenate([where, corners.reshape(-1, 3)])
        source = np.concatenate([source, chosen])
    return where, corner, source, np.arange(len(source)) >= len(source) - sum(len(chosen) for chosen in loose)


def _is_outer(vertices: np.ndarray, faces: np.ndarray, winding: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Which faces have the outside on their outer side, and the inside on the other: bool [F]."""
    normals, _ = face_normals(vertices, faces)
    beside = vertices[faces].mean(axis=1) + _BESIDE * normals
    return np.abs(winding_number(winding, beside)) < 0.5


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
