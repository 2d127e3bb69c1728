"""Camera paths that nerfstudio's viewer exports (Render tab, "Generate Command"), read without nerfstudio.

The file has `camera_path`, a list with one camera per frame: `camera_to_world`, 16 numbers row by row in nerfstudio's
(OpenGL) convention of x right, y up, z backward, and `fov`, the vertical field of view in degrees. The tenfold scale
of the viewer's own scene is already taken out, and our scenes enter nerfstudio unscaled, so positions are world units.
Beside the list stand `render_width`, `render_height`, `fps`, `seconds`, `camera_type`, and what the viewer needs to
open the path again (`keyframes`, `default_fov`, ...), which is not read here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.files import read_json
from mnif_nerf.limits import is_number
from mnif_nerf.names import shown
from mnif_nerf.rendering.cameras import Intrinsics

_REMEDY = "export the path again in the viewer's Render tab"
_MOST = 1e6  # pixels along an edge, seconds or frames per second
_SQUARE_TOLERANCE = 1e-2  # of a rotation's product with its transpose


@dataclass(frozen=True)
class CameraPath:
    """Cameras of the frames of a video.

    Attributes:
        poses: `[F, 4, 4]` camera-to-world in the OpenCV convention, world units.
        fovs: F vertical fields of view, degrees.
        width, height: pixels that the path was made for.
        fps: frames per second, at least 1.
        cropped: whether the viewer cropped the scene when it wrote the path.
    """

    poses: Tensor
    fovs: tuple[float, ...]
    width: int
    height: int
    fps: int
    cropped: bool = False

    def __len__(self) -> int:
        return len(self.fovs)

    def intrinsics(self, frame: int, width: int, height: int) -> Intrinsics:
        """The camera of a frame, for pictures of any size; the vertical field of view stays."""
        return Intrinsics.centred(width, height, 0.5 * height / math.tan(math.radians(self.fovs[frame]) / 2))


def read_camera_path(path: Path | str) -> CameraPath:
    """Read a camera path of nerfstudio's viewer.

    Raises:
        MNIFError: no such file, one that is no camera path or is damaged, or cameras that are not perspective.
    """
    content = read_json(path)
    cameras = content.get("camera_path") if isinstance(content, dict) else None
    if not isinstance(cameras, list):
        raise MNIFError(f"{path}: holds no camera path (an entry camera_path); {_REMEDY}.")
    if not cameras:
        raise MNIFError(f"{path}: the camera path has no frames; add keyframes in the viewer's Render tab.")
    kind = str(content.get("camera_type", "perspective")).lower()
    if kind != "perspective":
        raise MNIFError(f"{path}: its cameras are of the type {kind}; only perspective ones can be rendered here.")
    width, height = (_positive(content, name, path) for name in ("render_width", "render_height"))
    poses, fovs = zip(*(_camera(camera, frame, path) for frame, camera in enumerate(cameras)))
    return CameraPath(
        torch.stack(poses),
        tuple(fovs),
        max(1, round(width)),
        max(1, round(height)),
        _frame_rate(content, len(cameras), path),
        bool(content.get("crop")),
    )


def _frame_rate(content: dict[str, Any], frames: int, path: Path | str) -> int:
    """Frames per second: as nerfstudio's renderer counts them, so that the video lasts as long as the path says."""
    if content.get("seconds"):
        return max(1, round(min(_MOST, frames / _positive(content, "seconds", path))))
    return max(1, round(_positive(content, "fps", path))) if "fps" in content else 24


def _camera(camera: Any, frame: int, path: Path | str) -> tuple[Tensor, float]:
    """Pose (OpenCV) and field of view of one frame."""
    where = f"{path}: frame {frame}"
    if not isinstance(camera, dict) or "camera_to_world" not in camera or "fov" not in camera:
        raise MNIFError(f"{where} lacks camera_to_world or fov; {_REMEDY}.")
    try:
        pose = torch.tensor(camera["camera_to_world"], dtype=torch.float32).flatten()
        fov = float(camera["fov"])
    except (TypeError, ValueError, OverflowError, RuntimeError):  # torch's of numbers without measure
        raise MNIFError(f"{where} has a camera_to_world or fov that is not made of numbers; {_REMEDY}.") from None
    if pose.numel() != 16 or not torch.isfinite(pose).all():
        raise MNIFError(f"{where}: camera_to_world has to be 16 finite numbers (a 4x4 matrix); {_REMEDY}.")
    pose = pose.view(4, 4)
    rotation = pose[:3, :3]
    is_rotation = torch.allclose(rotation @ rotation.T, torch.eye(3), atol=_SQUARE_TOLERANCE)
    if not is_rotation or float(torch.linalg.det(rotation)) < 0:
        raise MNIFError(f"{where}: camera_to_world is no rotation and position; {_REMEDY}.")
    if not 0 < fov < 180:
        raise MNIFError(f"{where}: a field of view of {fov:g} degrees; it has to lie between 0 and 180.")
    return pose @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])), fov


def _positive(content: dict[str, Any], name: str, path: Path | str) -> float:
    value: Any = content.get(name)
    if not (is_number(value) and 0 < value <= _MOST):
        raise MNIFError(
            f"{path}: {name} is {shown(value)}, expected a number above 0 and at most {_MOST:,.0f}; {_REMEDY}."
        )
    return float(value)
