"""Dual contouring (Ju et al. 2002) on the cells of a marching-cubes mesh: corners on edges and tips, not cut off.

Every patch of triangles that marching cubes puts into one cell becomes a corner, placed where the surface's tangent
planes at the patch's crossings meet; every crossing becomes a quadrangle of the four patches around it. A cell with two
patches has two corners (Nielson 2004), so that the result is closed where marching cubes' mesh is. No library at hand
does this on values of our own: PyMCubes, scikit-image, libigl's wheels and trimesh have marching cubes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A direction in which the normals of a patch spread less than this share of the most is taken as flat. Lower follows
# the ripples of learned fields, higher loses blunt edges.
_FLAT = 0.05
_BEYOND = 0.1  # of a cell, how far a corner may leave its cell
_SHORTER = 0.02  # of a cell's length less in a diagonal counts as much as this in a cosine


@dataclass(frozen=True)
class Crossings:
    """A marching-cubes mesh, and the surface at its vertices. The unit is a cell of the grid.

    Attributes:
        vertices: `[V, 3]`, each on an edge of the grid, so that two of its coordinates are whole numbers.
        faces: int `[F, 3]`.
        outward: `[V]`, 1 where the solid ends along the grid's edge in its positive direction, else -1.
        points: `[V, 3]` on the surface, near the vertices.
        normals: `[V, 3]` of the surface there, outward, of unit length.
    """

    vertices: np.ndarray
    faces: np.ndarray
    outward: np.ndarray
    points: np.ndarray
    normals: np.ndarray


@dataclass(frozen=True)
class _Patches:
    """Which vertex `[I]` meets which patch `[I]`; the patch of each triangle `[F]`; the cell of each patch `[P, 3]`."""

    vertex: np.ndarray
    patch: np.ndarray
    of_face: np.ndarray
    cell: np.ndarray


def dual_mesh(crossings: Crossings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The dual of a closed marching-cubes mesh.

    Returns:
        corners `[P, 3]`, outward triangles int `[T, 3]`, and whether each corner lies on an edge or tip, bool `[P]`.
    """
    patches = _patches(crossings)
    corners, sharp = _corners(crossings, patches)
    quads = _quads(crossings, patches)
    split = _doubled_edges(crossings.faces, patches.of_face)
    if not split:
        return corners, _halves(quads, corners, crossings.normals), sharp
    polygons = {v: quads[v].tolist() for line in split for v in line[:2]}
    for k, (v1, v2, a, b) in enumerate(split):
        for vertex in (v1, v2):
            _insert(polygons[vertex], a, b, len(corners) + k)
    whole = np.setdiff1d(np.arange(len(quads)), list(polygons))
    halves = _halves(quads[whole], corners, crossings.normals[whole])
    triangles = np.concatenate([halves, _fans(list(polygons.values()), len(corners))])
    middles = np.array([corners[[a, b]].mean(axis=0) for _, _, a, b in split])
    return np.concatenate([corners, middles]), triangles, np.append(sharp, np.zeros(len(split), dtype=bool))


def _patches(crossings: Crossings) -> _Patches:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces, stride = crossings.faces, len(crossings.vertices)
    cell = np.floor(crossings.vertices[faces].mean(axis=1)).astype(np.int64)
    cell -= cell.min(axis=0)
    size = cell.max(axis=0) + 1
    number = (cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2]
    known, meeting = np.unique((number[:, None] * stride + faces).flatten(), return_inverse=True)
    a, b, c = meeting.reshape(-1, 3).T
    links = coo_matrix((np.ones(2 * len(a)), (np.concatenate([a, b]), np.concatenate([b, c]))), shape=(len(known),) * 2)
    count, patch = connected_components(links, directed=False)
    where = np.zeros((count, 3), dtype=np.int64)
    where[patch[a]] = np.floor(crossings.vertices[faces].mean(axis=1))
    return _Patches(known % stride, patch, patch[a], where)


def _corners(crossings: Crossings, patches: _Patches) -> tuple[np.ndarray, np.ndarray]:
    """The place of each patch's corner `[P, 3]`, and whether it lies on an edge or tip `[P]`."""
    points, normals, count = crossings.points, crossings.normals, len(patches.cell)

    def total(values: np.ndarray) -> np.ndarray:
        flat = values.reshape(len(values), -1)[patches.vertex]
        sums = [np.bincount(patches.patch, weights=column, minlength=count) for column in flat.T]
        return np.stack(sums, axis=1).reshape(count, *values.shape[1:])

    center = total(points) / np.bincount(patches.patch, minlength=count)[:, None]
    planes = total(normals[:, :, None] * normals[:, None, :])
    heights = total(normals * (normals * points).sum(1, keepdims=True)) - np.einsum("pij,pj->pi", planes, center)
    size, axes = np.linalg.eigh(planes)
    bent = size > _FLAT * size[:, -1:]
    inverse = np.where(bent, 1.0 / np.maximum(size, 1e-12), 0.0)
    corners = center + np.einsum("pij,pj,pkj,pk->pi", axes, inverse, axes, heights)
    return np.clip(corners, patches.cell - _BEYOND, patches.cell + 1 + _BEYOND), bent.sum(axis=1) > 1


def _quads(crossings: Crossings, patches: _Patches) -> np.ndarray:
    """The four patches `[V, 4]` around every vertex, counter-clockwise as seen from outside."""
    vertices = crossings.vertices
    along = np.abs(vertices - np.rint(vertices)).argmax(axis=1)
    vertex, rows = patches.vertex, np.arange(len(patches.vertex))
    across = [(along[vertex] + k) % 3 for k in (1, 2)]
    start = np.rint(vertices).astype(np.int64)[vertex]
    # Which of the four cells around the grid's edge: the lower (0) or the higher (1) one along two axes.
    u, v = (patches.cell[patches.patch][rows, axis] - start[rows, axis] + 1 for axis in across)
    quads = np.empty((len(vertices), 4), dtype=np.int64)
    quads[vertex, np.array([[0, 3], [1, 2]])[u, v]] = patches.patch
    return np.where(crossings.outward[:, None] > 0, quads, quads[:, ::-1])


def _doubled_edges(faces: np.ndarray, patch: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Pairs of patches that meet along two lines of one side of their cells: both quadrangles of the second line, and
    the patches. Their edge would belong to four triangles."""
    ends = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    face = np.repeat(np.arange(len(faces)), 3)
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    ends, face = ends[order], face[order]
    # A closed mesh has every edge twice; now they lie one behind the other.
    pair = np.sort(patch[face].reshape(-1, 2), axis=1)
    line = np.concatenate([ends[::2], pair], axis=1)[pair[:, 0] != pair[:, 1]]
    _, first = np.unique(line[:, 2:], axis=0, return_index=True)
    again = np.setdiff1d(np.arange(len(line)), first)
    return [tuple(int(value) for value in line[k]) for k in again]  # type: ignore[misc]


def _insert(polygon: list[int], a: int, b: int, middle: int) -> None:
    """Put a corner between the neighbours a and b of a polygon."""
    for k in range(len(polygon)):
        if {polygon[k], polygon[(k + 1) % len(polygon)]} == {a, b}:
            polygon.insert(k + 1, middle)
            return


def _halves(quads: np.ndarray, corners: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Triangles `[2 Q, 3]` of quadrangles `[Q, 4]`, along the diagonal that follows the surface's normals `[Q, 3]`."""
    ways = [quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 2, 3), quads[:, [1, 2, 3, 1, 3, 0]].reshape(-1, 2, 3)]
    scores = []
    for way in ways:
        a, b, c = (corners[way[:, :, k]] for k in range(3))
        across = np.cross(b - a, c - a)
        cosine = (across * normals[:, None]).sum(-1) / np.maximum(np.linalg.norm(across, axis=-1), 1e-12)
        scores.append(cosine.min(axis=1) - _SHORTER * np.linalg.norm(c[:, 0] - a[:, 0], axis=-1))
    first = (scores[0] >= scores[1])[:, None, None]
    return np.where(first, ways[0], ways[1]).reshape(-1, 3)


def _fans(polygons: list[list[int]], corners: int) -> np.ndarray:
    """Triangles of polygons, around an inserted corner (number `corners` or above)."""
    triangles = []
    for polygon in polygons:
        start = next(k for k, corner in enumerate(polygon) if corner >= corners)
        turned = polygon[start:] + polygon[:start]
        triangles += [[turned[0], turned[k], turned[k + 1]] for k in range(1, len(turned) - 1)]
    return np.array(triangles, dtype=np.int64).reshape(-1, 3)
