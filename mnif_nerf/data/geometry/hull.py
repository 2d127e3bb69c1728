"""Visual hulls by carving: which cells of a cube may hold the object, and which pixels may see it.

A cell stays if, in every view that sees it, its projection touches the silhouette. All roundings go towards
keeping: the hull holds every cell that the object meets, and `project` marks every pixel whose ray meets a
kept cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from mnif_nerf.scene_box import HALF_EXTENT

HULL_RESOLUTION = 32
_HALF_CELL = HALF_EXTENT / HULL_RESOLUTION
_MAX_RADIUS = 40  # pixels; a cell that projects larger is too near the camera to be judged, and stays
_SEEN_REACH = 1.3  # of the nearest camera from the centre, in edges of the cube that `seen_object` carves
_COVERAGE = 0.97  # share of a silhouette that a sound hull explains; anti-aliased edge pixels may differ


@dataclass(frozen=True)
class SceneHull:
    """Result of `carve_scene`: cells bool [G, G, G] in [x, y, z] order, touching bool [V, H, W].

    `state`: "strict" (no view disagrees), "loose" (cells that a few views exclude were kept, because masks
    or poses contradict each other), or "full" (no hull explains the silhouettes: the whole cube).
    `fits`: False where an object reaches outside the cube.
    """

    cells: np.ndarray
    touching: np.ndarray
    state: Literal["strict", "loose", "full"]
    fits: bool


def cell_centres(resolution: int = HULL_RESOLUTION, half_extent: float = HALF_EXTENT) -> np.ndarray:
    """float32 [G^3, 3]; cell (i, j, k) is row (i G + j) G + k, its centre x -half + (i + 0.5) 2 half / G."""
    axis = (np.arange(resolution, dtype=np.float32) + 0.5) * (2 * half_extent / resolution) - half_extent
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def carve_scene(silhouettes: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray) -> SceneHull:
    """Carve one scene, and check the hull against the silhouettes it came from.

    Args:
        silhouettes: bool [V, H, W].
        poses: [V, 4, 4] camera-to-world, OpenCV.
        intrinsics: (f, cx, cy) in pixels, of every view [V, 3] or of all [3].
    """
    _, height, width = silhouettes.shape
    cube = np.ones((HULL_RESOLUTION,) * 3, dtype=bool)
    cells = carve(silhouettes, poses, intrinsics)
    touching = project(cells, poses, intrinsics, height, width)
    if cells.any() and _explains(touching, silhouettes):
        return SceneHull(cells, touching | silhouettes, "strict", True)
    reachable = project(cube, poses, intrinsics, height, width)
    fits = _explains(reachable, silhouettes)
    if not fits and cells.any():
        # A larger hull tells an object that reaches outside from masks and poses that contradict each other.
        # It ends well before the cameras: cells that are too near to be judged would explain anything.
        larger = carve(silhouettes, poses, intrinsics, times=2)
        distance = np.linalg.norm(cell_centres(2 * HULL_RESOLUTION, 2 * HALF_EXTENT), axis=1).reshape(larger.shape)
        larger &= distance < 0.6 * np.linalg.norm(poses[:, :3, 3], axis=1).min()
        if _explains(project(larger, poses, intrinsics, height, width, times=2), silhouettes):
            return SceneHull(cells, touching | silhouettes, "strict", fits)
    if silhouettes.any():
        votes = excluding_views(silhouettes, poses, intrinsics)
        for tolerance in range(1, len(poses) // 16 + 1):
            cells = votes <= tolerance
            touching = project(cells, poses, intrinsics, height, width)
            if cells.any() and _explains(touching, silhouettes & reachable, tolerance):
                return SceneHull(cells, touching | silhouettes, "loose", fits)
    return SceneHull(cube, reachable | silhouettes, "full", fits)


def carve(silhouettes: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray, times: int = 1) -> np.ndarray:
    """bool [G, G, G]: cells that no view excludes. A cell outside a view's image is not judged by it.

    The cube's edge is `times` that of the scene box, and G `times` HULL_RESOLUTION.
    """
    limit = _radius_limit(silhouettes, poses, intrinsics, times)
    distances = silhouette_distance(silhouettes, limit)
    centres = cell_centres(times * HULL_RESOLUTION, times * HALF_EXTENT)
    alive = np.arange(len(centres))
    for view in _spread_order(len(poses)):  # opposite views first, so that few cells are left for the others
        keep = _touches(centres[alive], poses[view], _of_view(intrinsics, view), distances[view], limit)
        alive = alive[keep]
    cells = np.zeros(len(centres), dtype=bool)
    cells[alive] = True
    return cells.reshape((times * HULL_RESOLUTION,) * 3)


def excluding_views(silhouettes: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """int [G, G, G]: how many views exclude each cell; `carve` is where this is 0."""
    limit = _radius_limit(silhouettes, poses, intrinsics)
    distances = silhouette_distance(silhouettes, limit)
    centres = cell_centres()
    votes = np.zeros(len(centres), dtype=np.int32)
    for view, distance in enumerate(distances):
        votes += ~_touches(centres, poses[view], _of_view(intrinsics, view), distance, limit)
    return votes.reshape((HULL_RESOLUTION,) * 3)


def project(
    cells: np.ndarray,
    poses: np.ndarray,
    intrinsics: np.ndarray,
    height: int,
    width: int,
    times: int = 1,
) -> np.ndarray:
    """bool [V, H, W]: every pixel whose centre ray meets a kept cell, and few others.

    Cells are drawn as squares of their projected size: points first, largest squares first, growing by one
    pixel per round, so that the work does not depend on the squares' area.

    Args:
        cells: bool [G, G, G] of a cube whose edge is `times` that of the scene box.
    """
    points = cell_centres(len(cells), times * HALF_EXTENT)[_surface(cells).reshape(-1)]
    if not len(points):
        return np.zeros((len(poses), height, width), dtype=bool)
    column, row, reach, in_front = _project_points(points, poses, intrinsics, times * HALF_EXTENT / len(cells))
    too_near = (in_front & (reach > _MAX_RADIUS)).any(1) | (~in_front).any(1)
    radius = np.floor(np.minimum(reach, _MAX_RADIUS) + 0.5).astype(np.int32)
    margin = int(radius.max()) + 1
    frames = np.zeros((len(poses), height + 2 * margin, width + 2 * margin), dtype=bool)
    inside = in_front & (np.abs(column - width / 2) < width / 2 + margin - 1)
    inside &= np.abs(row - height / 2) < height / 2 + margin - 1
    radius[~inside] = -1
    view_of = np.broadcast_to(np.arange(len(poses))[:, None], radius.shape)
    for current in range(margin - 1, -1, -1):
        chosen = radius == current
        y, x = (np.floor(axis[chosen]).astype(np.int64) + margin for axis in (row, column))
        frames[view_of[chosen], y, x] = True
        if current:
            frames = dilate(frames)
    frames[too_near] = True
    return np.ascontiguousarray(frames[:, margin:-margin, margin:-margin])


@dataclass(frozen=True)
class SeenObject:
    """What `seen_object` finds: the box [low, high] of the object in the world, and whether one object explains the
    silhouettes of (nearly) all views."""

    low: np.ndarray
    high: np.ndarray
    agrees: bool


def seen_object(
    silhouettes: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray, centre: np.ndarray
) -> SeenObject | None:
    """The object that all pictures show, wherever it is and however large; None where they show none in common.

    Carved in a cube around `centre` that nearly reaches the cameras, and only of cells that lie before every camera and
    within its picture, so that cameras that look away, or all stand at one point, agree on nothing.

    Args:
        silhouettes: bool [V, H, W], none of them empty.
        poses: [V, 4, 4] camera-to-world, OpenCV.
        intrinsics: (f, cx, cy) in pixels, [V, 3] or [3].
        centre: the point [3] that the cameras look at.
    """
    _, height, width = silhouettes.shape
    offset = np.asarray(poses[:, :3, 3], dtype=np.float64) - centre
    distance = float(np.linalg.norm(offset, axis=1).min())
    if distance < 1e-6 * max(1.0, float(np.abs(centre).max())):
        return None
    size = _SEEN_REACH * 2 * HALF_EXTENT / distance
    placed = np.array(poses, dtype=np.float32)
    placed[:, :3, 3] = offset * size
    limit = _radius_limit(silhouettes, placed, intrinsics)
    centres = cell_centres(2 * HULL_RESOLUTION, 2 * HALF_EXTENT)
    alive = np.flatnonzero(np.linalg.norm(centres, axis=1) < 2 * HALF_EXTENT)
    for view, far in zip(range(len(placed)), silhouette_distance(silhouettes, limit)):
        one = _of_view(intrinsics, view)
        column, row, _, in_front = _project_points(centres[alive], placed[view : view + 1], one, _HALF_CELL)
        within = (column >= 0) & (column < width) & (row >= 0) & (row < height) & in_front
        touches = _touches(centres[alive], placed[view], one, far, limit)
        alive = alive[within[0] & touches]
    if not len(alive):
        return None
    cells = np.zeros(len(centres), dtype=bool)
    cells[alive] = True
    touching = project(cells.reshape((2 * HULL_RESOLUTION,) * 3), placed, intrinsics, height, width, times=2)
    low, high = centres[alive].min(0) - _HALF_CELL, centres[alive].max(0) + _HALF_CELL
    agrees = _explains(touching, silhouettes, len(poses) // 16)
    return SeenObject(low / size + centre, high / size + centre, agrees)


def silhouette_distance(silhouettes: np.ndarray, limit: int = _MAX_RADIUS) -> np.ndarray:
    """uint8 [V, H+2, W+2]: chessboard distance to the silhouette, up to `limit` + 1.

    The one-pixel frame around the image counts as silhouette: what may lie outside the image is not excluded.
    """
    mask = np.pad(silhouettes, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    far = [ndimage.distance_transform_cdt(~view, "chessboard") for view in mask]
    return np.minimum(far, limit + 1).astype(np.uint8)


def dilate(mask: np.ndarray) -> np.ndarray:
    """bool [..., H, W] grown by one pixel in all eight directions; ten times as quick as SciPy's."""
    wide = mask.copy()
    wide[..., 1:] |= mask[..., :-1]
    wide[..., :-1] |= mask[..., 1:]
    tall = wide.copy()
    tall[..., 1:, :] |= wide[..., :-1, :]
    tall[..., :-1, :] |= wide[..., 1:, :]
    return tall


def _touches(
    points: np.ndarray,
    pose: np.ndarray,
    intrinsics: np.ndarray,
    distance: np.ndarray,
    limit: int,
) -> np.ndarray:
    """bool [N]: does each cell's projection touch the silhouette, or leave the view undecided?"""
    column, row, reach, in_front = _project_points(points, pose[None], intrinsics, _HALF_CELL)
    height, width = distance.shape
    x = np.clip(column[0], -1, width - 2).astype(np.int32, copy=False)
    y = np.clip(row[0], -1, height - 2).astype(np.int32, copy=False)
    # Pixels from floor(u - r) to floor(u + r) lie at most ceil(r) from floor(u).
    near = distance[np.floor(y).astype(np.int32) + 1, np.floor(x).astype(np.int32) + 1] <= np.ceil(reach[0])
    return near | ~in_front[0] | (reach[0] > limit)


def _project_points(
    points: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray, half_cell: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixel coordinates of cell centres and how far the cells reach around them.

    A cube of half size h spans e = h (|r_x| + |r_y| + |r_z|) along the camera axis r, so that a corner's
    image lies within f (e_x + e_z |X / Z|) / (Z - e_z) of the centre's, and likewise in y.

    Returns: column, row, reach (each float32 [V, N], pixels), in_front (bool [V, N]: wholly before the
    camera).
    """
    focal, cx, cy = _columns(intrinsics)
    rotation = np.asarray(poses[:, :3, :3], dtype=np.float32)
    offset = np.einsum("vkc,vk->vc", rotation, np.asarray(poses[:, :3, 3], dtype=np.float32))
    extent = half_cell * np.abs(rotation).sum(1)
    x, y, z = (points @ rotation[:, :, c].T for c in range(3))
    x, y, z = ((axis - offset[None, :, c]).T for c, axis in enumerate((x, y, z)))
    in_front = z > extent[:, 2:] + 1e-3
    inverse = 1 / np.where(in_front, z, 1)
    slope_x, slope_y = x * inverse, y * inverse
    depth = np.where(in_front, z - extent[:, 2:], 1)
    spread = np.maximum(
        extent[:, :1] + extent[:, 2:] * np.abs(slope_x), extent[:, 1:2] + extent[:, 2:] * np.abs(slope_y)
    )
    return focal * slope_x + cx, focal * slope_y + cy, focal * spread / depth, in_front


def _radius_limit(silhouettes: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray, times: int = 1) -> int:
    """Pixels that the nearest cell in any picture reaches (about: larger cells are simply not judged)."""
    focal = float(np.max(_columns(intrinsics)[0]))
    nearest = np.linalg.norm(poses[:, :3, 3], axis=1).min() - 3**0.5 * times * HALF_EXTENT
    slope = max(silhouettes.shape[1:]) / focal
    reach = focal * 3**0.5 * _HALF_CELL * (1 + slope) / max(float(nearest), 1e-3)
    return int(min(np.ceil(reach), _MAX_RADIUS))


def _of_view(intrinsics: np.ndarray, view: int) -> np.ndarray:
    return intrinsics if np.ndim(intrinsics) == 1 else intrinsics[view]


def _columns(intrinsics: np.ndarray) -> tuple[np.ndarray, ...]:
    """f, cx and cy, each float32 [V, 1] or [1, 1], of [V, 3] or [3]."""
    return tuple(np.asarray(intrinsics, dtype=np.float32).reshape(-1, 3).T[..., None])


def _surface(cells: np.ndarray) -> np.ndarray:
    """Kept cells with a face to an emptied cell or the outside: a ray meets one of them first."""
    return cells & ~ndimage.binary_erosion(cells)


def _explains(touching: np.ndarray, silhouettes: np.ndarray, exceptions: int = 0) -> bool:
    """Does the hull's projection cover (nearly) every silhouette, but for some views?"""
    pixels = silhouettes.sum((1, 2))
    covered = (silhouettes & touching).sum((1, 2))
    return int((covered < _COVERAGE * pixels).sum()) <= exceptions


def _spread_order(count: int) -> np.ndarray:
    """0..count-1, each next index far from the ones before (golden-ratio steps)."""
    return np.argsort(np.arange(count) * 0.6180339887 % 1, kind="stable")
