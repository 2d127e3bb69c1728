"""A base-colour picture from a field: what each texel of an atlas shows, asked of the field where the texel lies.

The surface of a decimated mesh is not the field's. Each texel is therefore carried along the smooth normal to the
surface before decimation, and asked for its colour there: few triangles carry the detail of the field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import trimesh
from PIL import Image

from mnif_nerf.errors import require
from mnif_nerf.export.atlas import Atlas

Colors = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""sRGB colours `[N, 3]` in [0, 1] of points `[N, 3]` and their outward normals `[N, 3]`."""

_REACH = 1.5  # of a texel: as far beyond a chart's edge a texel is asked of the field, for bilinear filters to read
_AT_ONCE = 1 << 20  # texels, or pairs of a triangle and a texel near it, that are looked at together
_AGREE = 0.3  # the cosine between a texel's normal and that of the surface it may be carried to
# How far a texel may be carried: farther than decimation has moved any vertex, and a share of the object's diagonal.
_FARTHER, _SHARE = 1.5, 0.002
_NEIGHBOURS = 8
_PROBES = 20_000  # vertices that are asked how far they were moved


@dataclass(frozen=True)
class Texels:
    """The texels of a picture that show something.

    Attributes:
        row, column: int `[T]`.
        face: int `[T]`, the triangle that each lies on, or near where it lies beyond a chart's edge.
        weights: float32 `[T, 3]`, barycentric coordinates there; of the nearest point of the triangle beyond an edge.
    """

    row: np.ndarray
    column: np.ndarray
    face: np.ndarray
    weights: np.ndarray


def bake(mesh: trimesh.Trimesh, atlas: Atlas, detail: trimesh.Trimesh, colors: Colors) -> Image.Image:
    """The base-colour picture (sRGB) of a mesh.

    Every texel has a colour: texels outside of the charts take that of the nearest inside, so that neither bilinear
    filters nor mipmaps mix in a background.

    Args:
        mesh: what is to be painted, in the library's axes, world units.
        atlas: of that mesh.
        detail: the surface before decimation, in the same axes; the mesh itself where it was not decimated.
        colors: of the object, see `Colors`.

    Raises:
        MNIFError: libigl or embreex is not installed, and the mesh was decimated.
    """
    texels = rasterise(atlas)
    carrier = None if detail is mesh else Carrier(mesh, detail)
    vertices, vertex_normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
    picture = np.zeros((atlas.size, atlas.size, 3), np.uint8)
    seen = np.zeros((atlas.size, atlas.size), bool)
    for first in range(0, len(texels.face), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        corners = atlas.vertices[atlas.faces[texels.face[part]]]
        points = np.einsum("tk,tkc->tc", texels.weights[part], vertices[corners])
        normals = _unit(np.einsum("tk,tkc->tc", texels.weights[part], vertex_normals[corners]))
        if carrier is not None:
            points, normals = carrier.carry(points, normals)
        values = np.rint(255 * np.clip(colors(points, normals), 0, 1))
        picture[texels.row[part], texels.column[part]] = values.astype(np.uint8)
        seen[texels.row[part], texels.column[part]] = True
    return Image.fromarray(spread(picture, seen))


def rasterise(atlas: Atlas) -> Texels:
    """Which triangle each texel shows: the one that its centre lies in, or the nearest within `_REACH` texels."""
    size = atlas.size
    corners = atlas.uv[atlas.faces] * size - 0.5  # in texels, where centres are whole numbers
    low = np.clip(np.ceil(corners.min(1) - _REACH).astype(np.int64), 0, size - 1)
    high = np.clip(np.floor(corners.max(1) + _REACH).astype(np.int64), 0, size - 1)
    width, height = (high - low + 1).T
    lines, heights = _edge_lines(corners)
    best = np.full(size * size, _REACH**2, np.float32)
    owner = np.full(size * size, -1, np.int32)
    weights = np.zeros((size * size, 3), np.float32)
    batch = np.cumsum(width * height) // _AT_ONCE
    for number in np.unique(batch):
        faces = np.flatnonzero(batch == number)
        count = (width * height)[faces]
        face = np.repeat(faces, count)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        column, row = low[face, 0] + within % width[face], low[face, 1] + within // width[face]
        beyond = [lines[face, k, 0] * column + lines[face, k, 1] * row + lines[face, k, 2] for k in range(3)]
        near = np.flatnonzero(np.minimum(np.minimum(beyond[0], beyond[1]), beyond[2]) > -_REACH)
        face, place = face[near], row[near] * size + column[near]
        share = np.stack([values[near] for values in beyond], axis=1) / heights[face]
        distance = np.zeros(len(face))
        outside = np.flatnonzero(~(share >= 0).all(axis=1))
        centres = np.stack([column[near[outside]], row[near[outside]]], axis=1)
        distance[outside], share[outside] = _nearest_on_edges(centres, corners[face[outside]])
        better = np.flatnonzero(distance < best[place])
        better = better[np.argsort(-distance[better], kind="stable")]  # of several, the nearest is written last
        place = place[better]
        best[place], owner[place], weights[place] = distance[better], face[better], share[better]
    place = np.flatnonzero(owner >= 0)
    return Texels(place // size, place % size, owner[place], weights[place])


class Carrier:
    """Carries points of a decimated mesh to the surface before decimation.

    Args:
        mesh, detail: after and before, in the same axes.

    Raises:
        MNIFError: libigl or embreex is not installed.
    """

    def __init__(self, mesh: trimesh.Trimesh, detail: trimesh.Trimesh) -> None:
        from scipy.spatial import cKDTree

        scenes, meshes = (require(f"embreex.{name}", "meshes") for name in ("rtcore_scene", "mesh_construction"))
        self._scene = scenes.EmbreeScene(robust=True)
        self.vertices, self.faces = np.asarray(detail.vertices), np.asarray(detail.faces)
        self.normals = np.asarray(detail.vertex_normals)
        self._mesh = meshes.TriangleMesh(
            self._scene, self.vertices.astype(np.float32), np.ascontiguousarray(self.faces, np.int32)
        )
        self._tree = cKDTree(self.vertices)
        self.reach = _FARTHER * _distance(mesh, detail) + _SHARE * float(mesh.scale)
        self._start = 1e-4 * float(detail.scale)

    def carry(self, points: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points `[N, 3]` with outward normals `[N, 3]` come to lie, and the outward normals there.

        Along the normal, in or out, to the nearest place that faces the same way and is not farther than decimation
        has moved the surface. What meets nothing goes to the nearest vertex, of the nearest few the first that faces
        the same way.
        """
        distance = np.full(len(points), np.inf)
        found, turned = points.copy(), normals.copy()
        for way in (1.0, -1.0):
            hit, smooth, length = self._cast(points, way * normals)
            better = (length < distance[hit]) & (np.einsum("tc,tc->t", smooth, normals[hit]) > _AGREE)
            chosen = hit[better]
            distance[chosen], turned[chosen] = length[better], smooth[better]
            found[chosen] = points[chosen] + way * length[better, None] * normals[chosen]
        lost = np.flatnonzero(np.isinf(distance))
        if len(lost):
            nearest = self._tree.query(points[lost], k=min(_NEIGHBOURS, len(self.vertices)))[1].reshape(len(lost), -1)
            agrees = np.einsum("tkc,tc->tk", self.normals[nearest], normals[lost]) > _AGREE
            vertex = np.take_along_axis(nearest, agrees.argmax(1)[:, None], axis=1)[:, 0]
            found[lost], turned[lost] = self.vertices[vertex], self.normals[vertex]
        return found, turned

    def _cast(self, points: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rays that meet the surface within reach: which, smooth normals there, and how far along."""
        # From a little behind, for points that are on the surface.
        origins = np.ascontiguousarray(points - self._start * directions, dtype=np.float32)
        hits = self._scene.run(origins, np.ascontiguousarray(directions, dtype=np.float32), output=True)
        length = hits["tfar"] - self._start
        hit = np.flatnonzero((hits["primID"] >= 0) & (length <= self.reach))
        u, v = hits["u"][hit], hits["v"][hit]
        corners = self.normals[self.faces[hits["primID"][hit]]]
        smooth = _unit(np.einsum("tk,tkc->tc", np.stack([1 - u - v, u, v], axis=1), corners))
        return hit, smooth, length[hit].astype(np.float64)


def spread(picture: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The picture `[N, N, 3]` in which texels that were not `seen` `[N, N]` take the colour of the nearest that was."""
    from scipy.ndimage import distance_transform_edt

    if seen.all() or not seen.any():
        return picture
    row, column = distance_transform_edt(~seen, return_distances=False, return_indices=True)
    return picture[row, column]


def _edge_lines(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of triangles `[F, 3, 2]`: lines `[F, 3, 3]` (a, b, c) so that a x + b y + c is how far a point is from the edge
    opposite of corner k, positive inside; and how far that corner is, `[F, 3]`, at least 1e-9."""
    start, end = np.roll(corners, -1, axis=1), np.roll(corners, -2, axis=1)
    edges = end - start
    normals = np.stack([-edges[..., 1], edges[..., 0]], axis=-1)
    normals /= np.maximum(np.linalg.norm(edges, axis=-1, keepdims=True), 1e-12)
    heights = np.einsum("fkc,fkc->fk", normals, corners - start)
    normals *= np.where(heights < 0, -1.0, 1.0)[..., None]
    lines = np.concatenate([normals, -np.einsum("fkc,fkc->fk", normals, start)[..., None]], axis=-1)
    return lines, np.maximum(np.abs(heights), 1e-9)


def _nearest_on_edges(points: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances `[N]` of points `[N, 2]` from the edges of triangles `[N, 3, 2]`; where they are, as weights
    `[N, 3]`."""
    edges = np.roll(corners, -1, axis=1) - corners  # from corner k to k + 1
    to_point = points[:, None] - corners
    length = np.maximum(np.einsum("nkc,nkc->nk", edges, edges), 1e-20)
    along = np.clip(np.einsum("nkc,nkc->nk", to_point, edges) / length, 0, 1)
    away = to_point - along[..., None] * edges
    squared = np.einsum("nkc,nkc->nk", away, away)
    edge, rows = squared.argmin(axis=1), np.arange(len(points))
    weights = np.zeros(along.shape)
    weights[rows, edge] = 1 - along[rows, edge]
    weights[rows, (edge + 1) % 3] = along[rows, edge]
    return squared[rows, edge], weights


def _distance(mesh: trimesh.Trimesh, detail: trimesh.Trimesh) -> float:
    """The greatest distance of vertices of the surface before decimation from the mesh after it."""
    igl = require("igl", "meshes")
    vertices = np.asarray(detail.vertices, np.float64)
    vertices = np.ascontiguousarray(vertices[:: max(1, len(vertices) // _PROBES)])
    corners = np.ascontiguousarray(mesh.vertices, np.float64), np.ascontiguousarray(mesh.faces, np.int64)
    return float(np.sqrt(igl.point_mesh_squared_distance(vertices, *corners)[0].max()))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
