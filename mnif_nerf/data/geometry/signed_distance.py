"""Signed distance, nearest face and random points of a solid whose boundary is a closed mesh without overlaps.

The distance comes from libigl's bounding-volume tree. The sign comes from the nearest face where the nearest point lies
within it, and from the angle-weighted pseudonormal of its edge or corner elsewhere (Baerentzen and Aanaes 2005); where
that is nearly at right angles to the way to the point, from the winding number. Winding numbers alone would take five
times as long.
"""

from __future__ import annotations

import functools

import numpy as np

from mnif_nerf.data.geometry.raytrace import face_normals
from mnif_nerf.data.geometry.solid_mesh import SolidMesh, winding_number
from mnif_nerf.data.geometry.surface_colors import barycentric
from mnif_nerf.errors import require

_AT_ONCE = 1 << 18  # points of one call of libigl, which bounds memory
_ON_EDGE = 1e-6  # a barycentric weight below which the nearest point lies on an edge
_DOUBTFUL = 0.3  # cosine between a pseudonormal and the way to the point


class SignedDistance:
    """Signed distances to the boundary of a solid; building it costs milliseconds.

    Args:
        solid: its boundary.

    Raises:
        MNIFError: libigl is not installed.
    """

    def __init__(self, solid: SolidMesh) -> None:
        self._igl = require("igl", "meshes")
        self.solid = solid
        self.vertices = np.ascontiguousarray(solid.vertices, np.float64)
        self.faces = np.ascontiguousarray(solid.faces, np.int64)
        self.normals = solid.normals
        self.areas = face_normals(self.vertices, self.faces)[1] / 2

    def sample(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points [count, 3] drawn evenly over the surface, and their faces int64 [count]."""
        sums = np.cumsum(self.areas)
        face = np.minimum(np.searchsorted(sums, generator.random(count) * sums[-1]), len(sums) - 1)
        weights = generator.random((count, 2))
        beyond = weights.sum(axis=1) > 1
        weights[beyond] = 1 - weights[beyond]
        corners = self.vertices[self.faces]
        along = corners[:, 1:] - corners[:, :1]
        return corners[face, 0] + np.einsum("pk,pkc->pc", weights, along[face]), face

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Signed distances [P], positive outside, the nearest face int64 [P] and the nearest point [P, 3].

        Args:
            points: [P, 3], in any order.
        """
        order = np.argsort(_morton(points), kind="stable")  # neighbours one after the other: twice as fast
        distance, face, nearest = np.empty(len(points)), np.empty(len(points), np.int64), np.empty((len(points), 3))
        for first in range(0, len(points), _AT_ONCE):
            part = order[first : first + _AT_ONCE]
            asked = np.ascontiguousarray(points[part], np.float64)
            squared, found, closest = self._igl.point_mesh_squared_distance(asked, self.vertices, self.faces)
            distance[part] = np.sqrt(squared) * self._signs(asked, found, closest)
            face[part], nearest[part] = found, closest
        return distance, face, nearest

    def _signs(self, points: np.ndarray, face: np.ndarray, nearest: np.ndarray) -> np.ndarray:
        """+1 outside, -1 inside, [P]."""
        weights = barycentric(self.vertices[self.faces[face]], nearest)
        on_edge = weights < _ON_EDGE
        corners, normals = on_edge.sum(axis=1), self.normals[face]
        edge, corner = corners == 1, corners >= 2
        # Edge k of a face lies opposite corner k.
        normals[edge] = self._edge_normals[face[edge], on_edge[edge].argmax(axis=1)]
        normals[corner] = self._vertex_normals[self.faces[face[corner], weights[corner].argmax(axis=1)]]
        way = points - nearest
        along = np.einsum("pi,pi->p", way, normals)
        signs = np.where(along < 0, -1.0, 1.0)
        doubtful = (corners > 0) & (np.abs(along) < _DOUBTFUL * np.linalg.norm(way, axis=1))
        doubtful |= ~self.solid.sure[face] | ((corners > 0) & self._at_rim[face])
        if doubtful.any():
            signs[doubtful] = np.where(winding_number(self.solid.winding, points[doubtful]) > 0.5, -1.0, 1.0)
        return signs

    @functools.cached_property
    def _edge_normals(self) -> np.ndarray:
        """[F, 3, 3]: unit normals of the edges opposite each corner."""
        ends = np.sort(self.faces[:, [[1, 2], [2, 0], [0, 1]]], axis=2).reshape(-1, 2)
        _, number = np.unique(ends[:, 0] * len(self.vertices) + ends[:, 1], return_inverse=True)
        number = number.reshape(-1)
        return _unit(_sums(number, np.repeat(self.normals, 3, axis=0)))[number].reshape(-1, 3, 3)

    @functools.cached_property
    def _at_rim(self) -> np.ndarray:
        """Which faces have a corner on an edge that is not shared by two sure faces: bool [F]."""
        sure = self.faces[self.solid.sure]
        ends = np.sort(sure[:, [[1, 2], [2, 0], [0, 1]]], axis=2).reshape(-1, 2)
        _, first, uses = np.unique(ends @ [len(self.vertices), 1], return_index=True, return_counts=True)
        at_rim = np.zeros(len(self.vertices), dtype=bool)
        at_rim[ends[first[uses != 2]]] = True
        return np.asarray(at_rim[self.faces].any(axis=1))

    @functools.cached_property
    def _vertex_normals(self) -> np.ndarray:
        """[V, 3]: unit normals of the vertices, their faces weighted by the angle."""
        corners = self.vertices[self.faces]
        ahead, behind = np.roll(corners, -1, axis=1) - corners, np.roll(corners, 1, axis=1) - corners
        cosines = np.einsum("fkc,fkc->fk", _unit(ahead), _unit(behind))
        angles = np.arccos(np.clip(cosines, -1.0, 1.0))
        weighted = (angles[..., None] * self.normals[:, None]).reshape(-1, 3)
        return _unit(_sums(self.faces.reshape(-1), weighted, len(self.vertices)))


def _sums(number: np.ndarray, values: np.ndarray, count: int = 0) -> np.ndarray:
    """Sums [count, 3] of the values [N, 3] that share a number."""
    return np.stack([np.bincount(number, values[:, k], minlength=count) for k in range(3)], axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30))


def _morton(points: np.ndarray) -> np.ndarray:
    """Places [P] along a curve that keeps neighbours together."""
    low, high = points.min(axis=0, initial=0.0), points.max(axis=0, initial=1e-9)
    cells = ((points - low) * (1023 / np.maximum(high - low, 1e-9))).astype(np.int64)
    spread = np.arange(1024)
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        spread = (spread | spread << shift) & mask
    return np.asarray(spread[cells[:, 0]] | spread[cells[:, 1]] << 1 | spread[cells[:, 2]] << 2)
