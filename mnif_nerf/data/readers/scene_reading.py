"""How the cameras of posed pictures are to be read, where files follow another convention than ours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mnif_nerf.errors import MNIFError

PoseKind = Literal["auto", "c2w", "w2c", "c2w-gl", "w2c-gl"]
IntrinsicsKind = Literal["auto", "pixels", "normalised"]
POSE_KINDS: tuple[PoseKind, ...] = ("auto", "c2w", "w2c", "c2w-gl", "w2c-gl")
_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
ONE_PLACE = 1e-3
"""Cameras that lie nearer together than this share of their distance from the origin stand at one point."""
SHORTEST, LONGEST = 0.3, 100.0
"""Focal lengths, in image widths: no rectilinear lens is shorter, and no camera that tells depth is longer."""
_AROUND = 0.5  # of the cameras have to look away before it is a fault


@dataclass(frozen=True)
class SceneReading:
    """What a user says about a data set whose files follow another convention.

    Attributes:
        poses: what the pose files hold: "c2w" (camera-to-world, OpenCV's axes), "w2c" (world-to-camera), or either
            with OpenGL's axes ("c2w-gl", "w2c-gl"). "auto" is camera-to-world but where intrinsics.txt has SRN's flag
            of world-to-camera matrices.
        intrinsics: "pixels", or "normalised" where focal length and principal point are shares of the picture's
            width and height. "auto" is pixels.
        scale: factor of the scene: what the camera positions are multiplied by. "auto" moves and scales the whole
            data set so that its objects fill the scene box.
    """

    poses: PoseKind = "auto"
    intrinsics: IntrinsicsKind = "auto"
    scale: Literal["auto"] | float = 1.0

    def __post_init__(self) -> None:
        if self.poses not in POSE_KINDS:
            raise MNIFError(f"`poses` is {self.poses!r}; choose one of {', '.join(POSE_KINDS)}.")
        if self.intrinsics not in ("auto", "pixels", "normalised"):
            raise MNIFError(f"`intrinsics` is {self.intrinsics!r}; choose auto, pixels or normalised.")
        number = self.scale if isinstance(self.scale, (int, float)) and not isinstance(self.scale, bool) else None
        if self.scale != "auto" and (number is None or not math.isfinite(number) or number <= 0):
            raise MNIFError(f"`scale` is {self.scale}; give a positive number, or auto.")

    @property
    def is_usual(self) -> bool:
        """Whether files are read as they are."""
        return self == SceneReading()

    def to_dict(self) -> dict[str, Any]:
        """What differs from the usual, as a model folder keeps it."""
        usual = SceneReading()
        return {name: value for name, value in vars(self).items() if value != getattr(usual, name)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> SceneReading:
        """Read back `to_dict`, from a dictionary that may hold more."""
        return cls(**{name: stored[name] for name in ("poses", "intrinsics", "scale") if name in stored})


USUAL = SceneReading()


@dataclass(frozen=True)
class Placement:
    """Where a data set is put: positions p become (p - centre) * scale."""

    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0

    def apply(self, poses: np.ndarray) -> np.ndarray:
        """Camera-to-world matrices [V, 4, 4] once the scene has been moved."""
        moved = np.array(poses, dtype=np.float64)
        moved[:, :3, 3] = (moved[:, :3, 3] - np.asarray(self.centre)) * self.scale
        return moved.astype(np.float32)


def camera_to_world(matrices: np.ndarray, kind: PoseKind, flagged: bool = False) -> np.ndarray:
    """Camera-to-world matrices [V, 4, 4] with OpenCV's axes, from what the files hold.

    Args:
        matrices: rigid, [V, 4, 4].
        kind: what they are.
        flagged: whether the file of the intrinsics says that they are world-to-camera; for "auto".
    """
    if kind == "auto":
        kind = "w2c" if flagged else "c2w"
    if kind.startswith("w2c"):
        matrices = np.linalg.inv(matrices)
    return matrices @ _OPENGL if kind.endswith("-gl") else matrices


def file_matrices(poses: np.ndarray, kind: PoseKind) -> np.ndarray:
    """Inverse of `camera_to_world`: what files of this kind hold."""
    matrices = np.asarray(poses, dtype=np.float64)
    matrices = matrices @ _OPENGL if kind.endswith("-gl") else matrices
    return np.linalg.inv(matrices) if kind.startswith("w2c") else matrices


def looked_at(poses: np.ndarray) -> np.ndarray:
    """The point [3] nearest to all optical axes of camera-to-world matrices [V, 4, 4]."""
    directions, positions = (np.asarray(poses[:, :3, k], dtype=np.float64) for k in (2, 3))
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    matrix, right = across.sum(axis=0), np.einsum("vij,vj->i", across, positions)
    return np.asarray(np.linalg.lstsq(matrix, right, rcond=1e-6)[0])


def at_one_point(poses: np.ndarray) -> bool:
    """Whether three or more cameras all stand at one point, or on one line through the origin while they are turned to
    all sides, as world-to-camera matrices do that are taken for camera-to-world."""
    if len(poses) < 3:
        return False
    positions = np.asarray(poses[:, :3, 3], dtype=np.float64)
    middle = positions.mean(axis=0)
    away = max(float(np.linalg.norm(positions, axis=1).max()), 1e-9)
    if np.linalg.norm(positions - middle, axis=1).max() < ONE_PLACE * away:
        return True
    _, spread, lines = np.linalg.svd(positions - middle, full_matrices=False)
    on_line = spread[1] < 0.1 * spread[0] and abs(lines[0] @ middle) > 0.99 * np.linalg.norm(middle)
    turned = (np.einsum("vij,ij->v", poses[:, :3, :3], poses[0, :3, :3]) - 1) / 2  # cosines of the turns in between
    return bool(on_line and turned.min() < 0.5)


def share_outward(poses: np.ndarray, centre: np.ndarray | None = None) -> float:
    """Share of the cameras [V, 4, 4] that look away from a point (the origin by default)."""
    offset = poses[:, :3, 3] - (0.0 if centre is None else centre)
    return float(((poses[:, :3, 2] * offset).sum(1) > 0).mean())


def pose_fault(poses: np.ndarray, kind: PoseKind = "c2w") -> str | None:
    """What is wrong with the directions and places of the cameras [V, 4, 4] of a scene or a data set, and what mends
    it; None where nothing is.

    Args:
        poses: camera-to-world, OpenCV, as they were read.
        kind: what the files were taken for.
    """
    count = len(poses)
    if at_one_point(poses):
        options = _sound_kinds(poses, kind)
        likely = ", so these are probably world-to-camera matrices" if options[:1] and "w2c" in options[0] else ""
        mend = f"`poses` {options[0]} reads them so" if options else "write camera-to-world matrices"
        return f"all {count} cameras of a scene stand at one point or on one line{likely}; {mend}"
    outward = share_outward(poses)
    if outward <= _AROUND:
        return None
    centre = looked_at(poses)
    if share_outward(poses, centre) <= _AROUND:
        place = ", ".join(f"{x:.3g}" for x in centre)
        return f"the cameras look at ({place}), not at the origin; `scale` auto moves the scene there"
    options = _sound_kinds(poses, kind)
    mend = " or ".join(f"`poses` {kind}" for kind in options[:2]) or "write them again"
    return (
        f"{round(outward * count)} of {count} cameras look away from the origin; poses must be camera-to-world in "
        f"the OpenCV convention (x right, y down, z forward). As they seem to follow another one, read them with {mend}"
    )


def _sound_kinds(poses: np.ndarray, kind: PoseKind) -> list[PoseKind]:
    """Readings of the same files whose cameras stand apart and look inwards, the likeliest first."""
    others = other_readings(poses, kind)
    return [name for name, other in others if not at_one_point(other) and share_outward(other) <= 0.25]


def other_readings(poses: np.ndarray, kind: PoseKind) -> list[tuple[PoseKind, np.ndarray]]:
    """What the cameras would be, had their files been taken for something else than `kind`."""
    matrices = file_matrices(poses, kind)
    order: tuple[PoseKind, ...] = ("c2w", "w2c", "c2w-gl", "w2c-gl")
    return [(name, camera_to_world(matrices, name)) for name in order if name != kind]


def intrinsics_fault(focal: float, cx: float, cy: float, height: int, width: int) -> str | None:
    """What is wrong with a camera of a picture H x W (pixels), and what mends it; None where nothing is."""
    if 0 < focal <= 20 and abs(cx) <= 1 and abs(cy) <= 1 and min(height, width) > 4:
        return (
            f"a focal length of {focal:.4g} and a principal point ({cx:.4g}, {cy:.4g}) for pictures of "
            f"{width}x{height} pixels are shares of the picture, not pixels; `intrinsics` normalised reads them so"
        )
    if not SHORTEST * width <= focal <= LONGEST * width:
        return (
            f"a focal length of {focal:.6g} pixels for pictures {width} pixels wide, which no lens has "
            f"({SHORTEST:g} to {LONGEST:g} widths); write 'f cx cy 0.' in pixels of the pictures as they are"
        )
    if not (0 < cx < width and 0 < cy < height):
        return (
            f"the principal point ({cx:.6g}, {cy:.6g}) lies outside the pictures of {width}x{height} pixels; write "
            "f cx cy 0 in pixels (or fx fy cx cy), for the pictures as they are"
        )
    return None
