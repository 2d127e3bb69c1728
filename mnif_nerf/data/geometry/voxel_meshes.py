"""Meshes as solid voxels, also those that are not closed.

The method, with cells judged by their centres:

1. Vertices closer than 1e-5 become one, faces with the same corners count once (SketchUp writes both sides of a wall),
   and the mesh falls into connected pieces. A piece is closed if every edge has an even number of faces and it has a
   volume. Closed pieces are turned outwards and filled exactly, each as its
   own solid, so overlaps join and cavities within are filled.
2. For the faces left, the six axis directions vote. Along each, the surfaces around a cell are counted from the face
   of the grid up to the cell, entries against exits (where the faces of neighbours are turned the same way; where
   they are not, crossings are counted as odd or even). A cell is inside if at least four directions say so: a car
   without a floor has five.
3. Faces, of any piece, that lie at no cell filled so far are thin: sheets, or plates between two cell centres. The
   cells that they pass through are filled.
4. What faces and filled cells close off from the outside is filled too, gaps narrower than a cell being no way in.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mnif_nerf.data.geometry.cut_outs import without_cut_outs
from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.geometry.voxelise import column_crossings
from mnif_nerf.data.readers.mesh_files import read_mesh
from mnif_nerf.scene_box import HALF_EXTENT

_WELD = 1e-5
_SMALLEST_VOLUME = 1e-9
_TURNED_ALIKE = 0.98
_BLOCK = 200_000  # sampled points at a time


def voxelise_file(
    path: Path | str, resolution: int = 64, up: str = "auto", forward: str = "auto", root: Path | None = None
) -> np.ndarray:
    """Read a mesh file as `read_mesh` does (centred, bounding-box diagonal 1) and voxelise it: bool [G, G, G].

    Raises:
        MNIFError: see `read_mesh`.
    """
    return voxelise_surface(read_mesh(path, up, forward, root).surface, resolution)


def voxelise_surface(surface: Surface, resolution: int = 64) -> np.ndarray:
    """Voxelise a mesh as `voxelise_solid` does, but what its pictures cut out (leaves on cards): bool [G, G, G]."""
    surface = without_cut_outs(surface, 2 * HALF_EXTENT / resolution)
    return voxelise_solid(surface.vertices, surface.faces, resolution)


def voxelise_solid(vertices: np.ndarray, faces: np.ndarray, resolution: int = 64) -> np.ndarray:
    """Which cells a mesh fills, by the method in the module's text.

    Args:
        vertices, faces: [V, 3] float and [F, 3] int; need not be closed, nor turned outwards, nor free of overlaps.
        resolution: G, cells of the scene box along each axis.

    Returns:
        bool [G, G, G] in x, y, z order.

    Raises:
        MNIFError: `resolution` is below 1.
    """
    from scipy import ndimage

    around = np.ones((3, 3, 3), dtype=bool)
    vertices, faces = _weld(np.asarray(vertices, np.float64), np.asarray(faces, np.int64))
    if not len(faces):
        return np.zeros((resolution,) * 3, dtype=bool)
    closed, faces = _turn_closed_pieces(vertices, faces)
    solid = windings(vertices, faces[closed], resolution)[0] != 0
    if not closed.all():
        solid |= _vote(vertices, faces[~closed], resolution)
    passed = passed_cells(vertices, faces, resolution)
    thin = passed & ~ndimage.binary_dilation(solid, around)
    solid |= passed & ndimage.binary_dilation(thin, around)  # back by a cell to where they meet what is solid
    walls = solid | passed
    enclosed = ndimage.binary_fill_holes(walls) & ~walls
    return solid | enclosed | (passed & ndimage.binary_dilation(enclosed, around))


def _weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join vertices that lie together, and drop faces that have lost their area by it, or repeat another."""
    _, first, number = np.unique(np.round(vertices / _WELD), axis=0, return_index=True, return_inverse=True)
    faces = number.reshape(-1)[faces]
    flat = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 2] == faces[:, 0])
    faces = faces[~flat]
    _, kept = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return vertices[first], faces[np.sort(kept)]


def _turn_closed_pieces(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which faces belong to closed pieces (bool [F]), and the faces, those of inside-out closed pieces turned."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    links = coo_array((np.ones(len(edges), dtype=bool), edges.T), shape=(len(vertices),) * 2)
    count, piece_of_vertex = connected_components(links, directed=False)
    piece = piece_of_vertex[faces[:, 0]]
    ordered = np.sort(edges, axis=1)
    _, first, uses = np.unique(ordered[:, 0] * len(vertices) + ordered[:, 1], return_index=True, return_counts=True)
    open_edges = np.bincount(piece[first // 3], weights=uses % 2, minlength=count)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    volume = np.bincount(piece, weights=np.einsum("fi,fi->f", a, np.cross(b, c)) / 6, minlength=count)
    closed = (open_edges == 0) & (np.abs(volume) > _SMALLEST_VOLUME)
    turned = (closed & (volume < 0))[piece]
    return closed[piece], np.where(turned[:, None], faces[:, ::-1], faces)


def windings(vertices: np.ndarray, faces: np.ndarray, resolution: int) -> np.ndarray:
    """Surfaces around every cell, counted along z from below and from above: int32 [2, G, G, G]."""
    columns, first_above, signs = column_crossings(vertices, faces, resolution)
    size = (resolution, resolution, resolution + 1)
    place = np.ravel_multi_index((columns[:, 0], columns[:, 1], first_above), size)
    change = np.bincount(place, weights=signs, minlength=int(np.prod(size))).reshape(size)
    from_below = np.cumsum(change, axis=2).astype(np.int32)
    return np.stack([from_below[..., :-1], from_below[..., :-1] - from_below[..., -1:]])


def _vote(vertices: np.ndarray, faces: np.ndarray, resolution: int) -> np.ndarray:
    """Cells that at least four of the six axis directions find inside: bool [G, G, G]."""
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2) @ np.array([len(vertices), 1])
    alike = len(np.unique(edges)) >= _TURNED_ALIKE * len(edges)  # neighbours run along their edge in opposite ways
    votes = np.zeros((resolution,) * 3, dtype=np.int8)
    for turn in range(3):
        counts = windings(np.roll(vertices, turn, axis=1), faces, resolution)
        inside = (counts if alike else counts & 1) != 0
        votes += np.moveaxis(inside.sum(axis=0, dtype=np.int8), (0, 1, 2), [(k - turn) % 3 for k in range(3)])
    return votes >= 4


def passed_cells(vertices: np.ndarray, faces: np.ndarray, resolution: int) -> np.ndarray:
    """Cells that faces pass through, by points on them at most half a cell apart: bool [G, G, G]."""
    corners = (vertices[faces] + HALF_EXTENT) * (resolution / (2 * HALF_EXTENT))
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    pieces = np.maximum(np.ceil(2 * longest).astype(np.int64), 1)
    passed = np.zeros((resolution,) * 3, dtype=bool)
    for count in np.unique(pieces):
        i, j = np.divmod(np.arange((count + 1) ** 2), count + 1)
        weights = np.stack([i, j, count - i - j])[:, i + j <= count] / count
        chosen = corners[pieces == count]
        for block in np.array_split(chosen, -(-len(chosen) * weights.shape[1] // _BLOCK)):
            first, second, third = np.moveaxis(block, 1, 0)[..., None] * weights[:, None, None]
            points = np.floor(first + second + third).astype(np.int32)
            points = points.transpose(1, 0, 2).reshape(3, -1)
            inside = ((points >= 0) & (points < resolution)).all(axis=0)
            passed[tuple(points if inside.all() else points[:, inside])] = True
    return passed
