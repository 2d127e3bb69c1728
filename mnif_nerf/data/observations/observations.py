"""What a latent can be fitted to: posed pictures, one picture, a mesh, voxels, a point cloud (read elsewhere).

Everything ends up in the scene box: the cube of half extent 0.5 around the origin, z up, +x forward, +y left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.readers.cloud_files import PointCloud, checked_cloud
from mnif_nerf.data.readers.mesh_files import MESH_SUFFIXES, frame
from mnif_nerf.data.readers.voxel_files import require_shape
from mnif_nerf.errors import MNIFError
from mnif_nerf.rendering.alpha import premultiplied

Kind = Literal["views", "photo", "mesh", "voxels", "cloud", "image"]
MOST_PIXELS = 128
"""Pictures for radiance fields are reduced to this many pixels along their longer edge: a fit gains no more."""


@dataclass(frozen=True)
class PosedViews:
    """Pictures of one object with their cameras, on white.

    images uint8 [V, H, W, 3]; silhouettes bool [V, H, W], or None where the background is neither white nor
    transparent; poses float32 [V, 4, 4] camera-to-world, OpenCV; intrinsics float32 [V, 3] (f, cx, cy in pixels).
    """

    images: np.ndarray
    silhouettes: np.ndarray | None
    poses: np.ndarray
    intrinsics: np.ndarray
    names: tuple[str, ...]

    def take(self, views: np.ndarray) -> PosedViews:
        """Those views, in that order."""
        masks = None if self.silhouettes is None else self.silhouettes[views]
        names = tuple(self.names[int(view)] for view in views)
        return PosedViews(self.images[views], masks, self.poses[views], self.intrinsics[views], names)


@dataclass(frozen=True)
class Photo:
    """One picture whose camera is not known: image uint8 [H, W, 3] on white; silhouette bool [H, W] or None."""

    image: np.ndarray
    silhouette: np.ndarray | None


@dataclass(frozen=True)
class Cells:
    """Voxels bool [G, G, G], index [x, y, z]; `known` bool [G, G, G] says which were observed, None all."""

    values: np.ndarray
    known: np.ndarray | None = None


@dataclass(frozen=True)
class MeshShape:
    """A mesh with its colours, in the scene box; `notes`: sentences on what of its file could not be used."""

    surface: Surface
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """A point cloud in the scene box; `scanner` [3] is where it was scanned from, or None."""

    cloud: PointCloud
    scanner: np.ndarray | None = None


@dataclass(frozen=True)
class Picture:
    """Pixels uint8 [H, W, C], with alpha as `mnif_nerf.rendering.alpha` has it; `known` bool [H, W] says which were
    observed, None all."""

    pixels: np.ndarray
    known: np.ndarray | None = None


Observation = PosedViews | Photo | Cells | MeshShape | Scan | Picture


@dataclass(frozen=True)
class Placement:
    """How a file's coordinates become the scene box's: x' = scale * turn (x - centre).

    Attributes:
        up, forward: axes of the file, as in `mnif_nerf.data.readers.mesh_files.frame`; None: meshes by their suffix,
            all else z and +x.
        centre: `(x, y, z)` in the file's coordinates that becomes the origin.
        scale: factor.
        normalise: "yes" centres and scales (a mesh or cloud to a bounding-box diagonal of 1, cameras to the model's
            distance around the point that they look at), "no" leaves it out, "auto" is yes for meshes alone.
    """

    up: str | None = None
    forward: str | None = None
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0
    normalise: Literal["auto", "yes", "no"] = "auto"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise MNIFError(f"`scale` {self.scale}: must be a positive number.")
        if not np.isfinite(self.centre).all():
            raise MNIFError(f"`centre` {self.centre}: must be finite numbers.")

    def turn(self, suffix: str) -> np.ndarray:
        """Rotation [3, 3] from the file's axes to ours."""
        if suffix not in MESH_SUFFIXES and self.up is None and self.forward is None:
            return np.eye(3)
        return frame(suffix, self.up or "auto", self.forward or "auto")

    def move(self, points: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """Points [..., 3] in the scene box's coordinates."""
        return ((points - np.asarray(self.centre)) * self.scale) @ turn.T


def as_observation(value: Any) -> Observation:
    """An observation from an array: voxels bool or float [G, G, G], a picture uint8 [H, W, C] (of four
    channels, straight colours and alpha), points [N, 3 or 6].

    Raises:
        MNIFError: another shape or type.
    """
    if isinstance(value, Observation):
        return value
    array = np.asarray(value)
    if array.ndim == 3 and len(set(array.shape)) == 1 and array.dtype.kind in "bf":
        known = None if array.dtype == bool or not np.isnan(array).any() else ~np.isnan(array)
        cells = array if array.dtype == bool else np.nan_to_num(array) > 0.5
        require_shape(cells, "voxels")
        return Cells(cells, known)
    if array.ndim == 3 and array.dtype == np.uint8:
        return Picture(premultiplied(array))
    if array.ndim == 2 and array.dtype.kind == "f":
        cloud = checked_cloud(array, "points")
        return Scan(replace(cloud, points=cloud.points.astype(np.float32)))
    raise MNIFError(
        f"an array of shape {list(array.shape)} and type {array.dtype} is no observation; give voxels bool [G, G, G], "
        "a picture uint8 [H, W, C], points float [N, 3], or a path."
    )
