"""Rooms that a mesh closes off but for a slit: `find_rooms`. The load bay of a van between whose doors a hair of air is
left, or a bin whose lid does not touch, are cavities to everybody who looks at them, and no cavities to topology.
"""

from __future__ import annotations

import numpy as np

from mnif_nerf.data.geometry.voxel_meshes import passed_cells, windings
from mnif_nerf.scene_box import HALF_EXTENT

_CELLS = 96  # gaps narrower than a cell, 1 % of the diagonal, are no way in
_DEPTH = 0.03  # how far from the walls a room goes at least, world units; what is less is a crevice
_FRONT = 2  # cells in front of a wall that are looked at


Mesh = tuple[np.ndarray, np.ndarray]


def find_rooms(closed: Mesh, walls: Mesh) -> np.ndarray | None:
    """Cells of rooms, where there are any.

    Args:
        closed: vertices [V, 3], world units, and faces [F, 3] of closed pieces that are turned outwards.
        walls: vertices and faces between inside and outside.

    Returns:
        bool [G, G, G] in x, y, z order over the scene box, or None.
    """
    from scipy import ndimage

    filled = (windings(*closed, _CELLS)[0] > 0) | passed_cells(*walls, _CELLS)
    label, count = ndimage.label(np.pad(~filled, 1, constant_values=True))
    if count == 1:
        return None
    rooms = ((label > 0) & (label != label[0, 0, 0]))[1:-1, 1:-1, 1:-1]
    # Nothing of them is at the side of the box, so what is around them is all that their depth asks for.
    cells = np.argwhere(rooms)
    there = tuple(slice(low - 1, high + 2) for low, high in zip(cells.min(axis=0), cells.max(axis=0)))
    label, count = ndimage.label(rooms[there])
    depth = ndimage.maximum(ndimage.distance_transform_edt(rooms[there]), label, np.arange(1, count + 1))
    deep = np.flatnonzero(np.asarray(depth) >= _DEPTH * _CELLS / (2 * HALF_EXTENT)) + 1
    if not len(deep):
        return None
    found = np.zeros_like(rooms)
    found[there] = np.isin(label, deep)
    return found


def near_rooms(rooms: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Which faces could be walls of rooms, or lie in them, by the boxes around both: bool [F].

    Args:
        rooms: of `find_rooms`.
        corners: [F, 3, 3].
    """
    cells = np.argwhere(rooms)
    low, high = (_places(cell, len(rooms)) for cell in (cells.min(axis=0) - _FRONT, cells.max(axis=0) + 1 + _FRONT))
    return np.asarray(((corners.min(axis=1) <= high) & (corners.max(axis=1) >= low)).all(axis=1))


def faces_rooms(rooms: np.ndarray, middles: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Which small faces have a room in front of them: bool [F].

    Args:
        rooms: of `find_rooms`.
        middles, normals: [F, 3] each.
    """
    from scipy import ndimage

    size = len(rooms)
    # Into corners, too, where the wall opposite is nearer than the look goes; walls seen from outside are farther.
    wide = ndimage.binary_dilation(rooms, np.ones((3, 3, 3), dtype=bool))
    front = middles + normals * (_FRONT * 2 * HALF_EXTENT / size)
    cells = np.floor((front + HALF_EXTENT) * (size / (2 * HALF_EXTENT))).astype(np.int64)
    return np.asarray(wide[tuple(np.clip(cells, 0, size - 1).T)])


def _places(cells: np.ndarray, size: int) -> np.ndarray:
    """World coordinates of corners of cells."""
    return np.asarray(cells * (2 * HALF_EXTENT / size) - HALF_EXTENT)
