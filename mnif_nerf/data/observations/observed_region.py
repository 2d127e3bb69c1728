"""Which part of an observation counts as seen: a half of the scene box or of a picture, a box, a mask; and what that
leaves to fit to, as points with targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnif_nerf.data.geometry.hull import cell_centres
from mnif_nerf.data.observations.files import read_mask
from mnif_nerf.data.readers.cloud_files import PointCloud
from mnif_nerf.errors import MNIFError

HALVES = {"front": (0, 1), "back": (0, -1), "left": (1, 1), "right": (1, -1), "top": (2, 1), "bottom": (2, -1)}
"""Axis and sign of the half of the scene box that was seen: x forward, y left, z up."""
_PICTURE_HALVES = {"top": (0, -1), "bottom": (0, 1), "left": (1, -1), "right": (1, 1)}

_BAND = 0.012  # world units between a scanned point and the points that lie before and behind it
_FILL = 24  # cells along an edge of the grid that tells whole scans from partial ones
_NEIGHBOURS = 12


@dataclass(frozen=True)
class Region:
    """What was seen.

    Attributes:
        half: a key of `HALVES`.
        box: `(x0, y0, z0, x1, y1, z1)` in the scene box's coordinates.
        mask: a file of cells or pixels, see `mnif_nerf.data.observations.files.read_mask`.
    """

    half: str | None = None
    box: tuple[float, ...] | None = None
    mask: Path | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.half, self.box, self.mask)) > 1:
            raise MNIFError("`half`, `box` and `mask` exclude one another; give one of them.")
        if self.half is not None and self.half not in HALVES:
            raise MNIFError(f"`half` {self.half}: unknown; choose one of {', '.join(HALVES)}.")
        if self.box is not None:
            low, high = self.box[:3], self.box[3:]
            if len(self.box) != 6 or not all(a < b for a, b in zip(low, high)):
                raise MNIFError(
                    f"`box` {' '.join(map(str, self.box))}: expected x0 y0 z0 x1 y1 z1 with x0 < x1 and so on."
                )

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.half is None and self.box is None and self.mask is None

    def cells(self, resolution: int) -> np.ndarray:
        """Seen cells of a grid: bool [G, G, G].

        Raises:
            MNIFError: a mask that cannot be read or is of another size.
        """
        if self.mask is not None:
            return read_mask(self.mask, (resolution,) * 3)
        return self.contains(cell_centres(resolution)).reshape((resolution,) * 3)

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which of the points [N, 3] were seen: bool [N].

        Raises:
            MNIFError: a mask, which is of cells.
        """
        if self.mask is not None:
            raise MNIFError("`mask` is for voxels and pictures; use `box` or `half` here.")
        if self.half is not None:
            axis, sign = HALVES[self.half]
            return np.asarray(sign * points[:, axis] > 0)
        if self.box is not None:
            return np.asarray(((points >= self.box[:3]) & (points <= self.box[3:])).all(axis=1))
        return np.ones(len(points), dtype=bool)

    def pixels(self, shape: tuple[int, int]) -> np.ndarray:
        """Seen pixels of a picture: bool [H, W].

        Raises:
            MNIFError: a box, or a half that pictures do not have.
        """
        if self.mask is not None:
            return read_mask(self.mask, shape)
        if self.box is not None:
            raise MNIFError("`box` is for shapes in space; for a picture give `half` or `mask`.")
        seen = np.ones(shape, dtype=bool)
        if self.half is not None:
            if self.half not in _PICTURE_HALVES:
                raise MNIFError(f"`half` {self.half}: a picture has {', '.join(_PICTURE_HALVES)}.")
            axis, sign = _PICTURE_HALVES[self.half]
            place = np.arange(shape[axis]) - (shape[axis] - 1) / 2
            seen &= (sign * place > 0)[:, None] if axis == 0 else (sign * place > 0)[None, :]
        return seen


@dataclass(frozen=True)
class SolidPoints:
    """Points float32 [N, 3] in the scene box with targets float32 [N]: -1 outside, +1 inside, 0 on the surface.

    `near` are at the surface, `far` anywhere else; either may be empty.
    """

    near: np.ndarray
    near_targets: np.ndarray
    far: np.ndarray
    far_targets: np.ndarray


def points_of_cells(
    values: np.ndarray, known: np.ndarray, shell_only: bool = False, targets: np.ndarray | None = None
) -> SolidPoints:
    """Centres of the known cells of a grid, those near the surface apart.

    A cell is near the surface if one of the known cells among the 26 around it is of the other kind.

    Args:
        values, known: bool [G, G, G].
        shell_only: leave out the cells deep inside, which a radiance field never learned.
        targets: float32 [G, G, G], what a field should say at the cells; by default -1 outside and +1 inside.
    """
    from scipy import ndimage

    around = np.ones((3, 3, 3), dtype=bool)
    inside, outside = values & known, ~values & known
    near = (inside & ndimage.binary_dilation(outside, around)) | (outside & ndimage.binary_dilation(inside, around))
    far = known & ~near
    if shell_only:
        far &= outside
    sides = np.where(values, np.float32(1), np.float32(-1)) if targets is None else targets
    centres, targets = cell_centres(len(values)), sides.reshape(-1)
    first, second = near.reshape(-1), far.reshape(-1)
    return SolidPoints(centres[first], targets[first], centres[second], targets[second])


def points_of_scan(cloud: PointCloud, scanner: np.ndarray | None = None, seed: int = 0) -> tuple[SolidPoints, bool]:
    """What a point cloud says about inside and outside.

    On every point lies the surface; a little before it (along its normal) is outside, a little behind it inside.
    Normals that are not there are estimated from the neighbours and turned towards the scanner, or away from the
    middle of the scene box. What lies between the scanner and a point is outside. A cloud that encloses a volume is
    whole: then all that it encloses is inside, and all else outside.

    Args:
        cloud: at least 10 points.
        scanner: `[3]`, or None.
        seed: random seed of the places along the scanner's rays.

    Returns:
        the points, and whether the cloud is whole.
    """
    points = cloud.points
    normals = estimate_normals(points, scanner) if cloud.normals is None else cloud.normals
    before, behind = points + _BAND * normals, points - _BAND * normals
    targets = np.repeat(np.float32([0, -1, 1]), len(points))
    free, whole = np.zeros((0, 3), dtype=np.float32), enclosed_cells(points)
    far, far_targets = free, np.zeros(0, dtype=np.float32)
    if whole is not None:
        inside, outside = whole
        centres = cell_centres(_FILL)
        far = np.concatenate([centres[inside.reshape(-1)], centres[outside.reshape(-1)]])
        far_targets = np.repeat(np.float32([1, -1]), [int(inside.sum()), int(outside.sum())])
    elif scanner is not None:
        generator = np.random.default_rng([seed, 5])
        way = generator.uniform(0.0, 1.0, (4, len(points), 1))
        ray = scanner - points
        stop = 2 * _BAND / np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-6)
        far = (points + (stop + (1 - stop) * way) * ray).reshape(-1, 3)
        far = far[(np.abs(far) <= 0.5).all(axis=1)].astype(np.float32)
        far_targets = np.full(len(far), -1, dtype=np.float32)
    near = np.concatenate([points, before, behind]).astype(np.float32)
    return SolidPoints(near, targets, far, far_targets), whole is not None


def estimate_normals(points: np.ndarray, scanner: np.ndarray | None = None) -> np.ndarray:
    """Unit normals float32 [N, 3] of points [N, 3]: the direction in which their neighbours spread least.

    They are turned towards the scanner, or, without one, away from the scene box's middle.
    """
    from scipy.spatial import cKDTree

    _, rows = cKDTree(points).query(points, k=min(_NEIGHBOURS, len(points)))
    local = points[rows] - points[rows].mean(axis=1, keepdims=True)
    _, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", local, local))
    normals = axes[:, :, 0]
    towards = points if scanner is None else scanner - points
    turned = np.where((normals * towards).sum(axis=1, keepdims=True) < 0, -normals, normals)
    return np.asarray(turned, dtype=np.float32)


def enclosed_cells(points: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Cells certainly inside and certainly outside a whole scan, bool [24, 24, 24] each; None where it is not whole."""
    from scipy import ndimage

    place = np.clip(((points + 0.5) * _FILL).astype(np.int64), 0, _FILL - 1)
    passed = np.zeros((_FILL,) * 3, dtype=bool)
    passed[tuple(place.T)] = True
    shell = ndimage.binary_dilation(passed, np.ones((3, 3, 3), dtype=bool))  # sparse points leave gaps of a cell
    filled = ndimage.binary_fill_holes(shell)
    inside = filled & ~shell
    # A few cells caught between two sheets are no volume.
    if inside.sum() < 0.05 * passed.sum():
        return None
    return inside, ~filled
