"""Reader of nerfstudio's (and Blender's) transforms.json: pictures of one object with their cameras.

Poses there are camera-to-world in OpenGL's convention (x right, y up, z backwards), world z up; here they become
OpenCV's (x right, y down, z forward). Distortion is not undone: coefficients that matter are refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mnif_nerf.data.readers.images import IMAGE_SUFFIXES, image_size
from mnif_nerf.data.readers.scene_reading import at_one_point, intrinsics_fault
from mnif_nerf.data.readers.srn import pose_faults
from mnif_nerf.data.readers.text import read_text
from mnif_nerf.errors import MNIFError, first_line
from mnif_nerf.names import shown

NAME = "transforms.json"
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "RADIAL", "SIMPLE_RADIAL", "PERSPECTIVE")
_LISTED = 3  # missing files named in a sentence


def read_transforms(path: Path) -> tuple[list[Path], np.ndarray, np.ndarray, tuple[int, int]]:
    """Pictures and cameras.

    Args:
        path: transforms.json, or the folder that holds it.

    Returns:
        the pictures' paths [V]; poses float32 [V, 4, 4] camera-to-world, OpenCV axes; intrinsics float32 [V, 3]
        (f, cx, cy in pixels of the pictures); and their size (H, W).

    Raises:
        MNIFError: not such a file, missing or unreadable pictures, cameras without a focal length, with distortion
            or oblong pixels, or matrices that are no poses.
    """
    path = path / NAME if path.is_dir() else path
    content = _read(path)
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise MNIFError(f"{path}: has no list of frames; write it again (nerfstudio: ns-process-data).")
    images = [_image(path, frame) for frame in frames]
    missing = [image for image in images if not _is_file(image)]
    if missing:
        names = ", ".join(shown(image) for image in missing[:_LISTED])
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise MNIFError(
            f"{path}: {len(missing)} of its {len(images)} pictures are missing ({names}{more}); copy them there, or "
            "take their frames out."
        )
    poses = _poses(path, frames)
    size = image_size(images[0])
    for frame in frames:
        _refuse_lens(path, {**content, **frame})
    if at_one_point(poses):
        raise MNIFError(
            f"{path}: all {len(poses)} cameras stand at one point or on one line, so these are probably "
            "world-to-camera matrices; write their inverses as transform_matrix."
        )
    intrinsics = [_intrinsics(path, {**content, **frame}, size) for frame in frames]
    return images, poses, np.array(intrinsics, dtype=np.float32), size


def _read(path: Path) -> Any:
    """The content of the file; a byte-order mark does no harm."""
    text = read_text(path)
    try:
        # Numbers beyond what numpy holds become floats, infinity included, which are refused where they stand.
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits))
    except (ValueError, RecursionError) as error:
        raise MNIFError(f"{path}: not valid JSON ({first_line(error)}); write it again.") from None


def _refuse_lens(path: Path, values: dict[str, Any]) -> None:
    """Refuse cameras that do not project as a pinhole does.

    Raises:
        MNIFError: with their model.
    """
    model = str(values.get("camera_model") or "PINHOLE").upper()
    if values.get("is_fisheye") and "FISHEYE" not in model:
        model = "OPENCV_FISHEYE"
    if model not in _PINHOLES:
        raise MNIFError(
            f"{path}: cameras of model {shown(model, 40)}, but only pinhole cameras are read ({', '.join(_PINHOLES)}); "
            "undistort or reproject the pictures first (COLMAP: image_undistorter)."
        )


def _image(path: Path, frame: dict[str, Any]) -> Path:
    named = frame.get("file_path")
    if not isinstance(named, str) or not named:
        raise MNIFError(f"{path}: a frame has no file_path; write the file again.")
    if "\\" in named and not _is_file(path.parent / named):  # written on Windows
        named = named.replace("\\", "/")
    image = path.parent / named
    if not image.name:
        raise MNIFError(f"{path}: a frame's file_path {shown(named)!r} names no picture; write the file again.")
    if image.suffix.lower() in IMAGE_SUFFIXES:
        return image
    with_suffix = image.with_name(image.name + ".png")  # Blender's files leave the suffix out
    known = image.suffix.lower() in Image.registered_extensions() or _is_file(image)
    if known and not _is_file(with_suffix):
        raise MNIFError(
            f"{path}: {shown(named)}: pictures of kind {image.suffix or 'unknown'!r} are not read; convert them to "
            "PNG or JPEG and change file_path."
        )
    return with_suffix


def _is_file(path: Path) -> bool:
    """Whether there is such a file; of a name that no file system takes, there is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _poses(path: Path, frames: list[dict[str, Any]]) -> np.ndarray:
    try:
        poses = np.array([frame["transform_matrix"] for frame in frames], dtype=np.float64)
        if poses.shape == (len(frames), 3, 4):
            poses = np.concatenate([poses, np.tile([[[0.0, 0.0, 0.0, 1.0]]], (len(frames), 1, 1))], axis=1)
        if poses.shape != (len(frames), 4, 4):
            raise ValueError(f"shape {poses.shape[1:]}")
    except (KeyError, TypeError, ValueError, OverflowError):
        raise MNIFError(
            f"{path}: a frame has no transform_matrix of 4x4 numbers; pictures without poses cannot be used together "
            "(fit one of them alone: its pose is searched)."
        ) from None
    for view, fault in pose_faults(poses):
        raise MNIFError(f"{path}: frame {view}, transform_matrix: {fault}.")
    return (poses * np.array([1.0, -1.0, -1.0, 1.0])).astype(np.float32)


def _intrinsics(path: Path, values: dict[str, Any], size: tuple[int, int]) -> tuple[float, float, float]:
    """(f, cx, cy) in pixels of pictures of `size` (H, W)."""
    height, width = size
    try:
        for name in _DISTORTION:
            if abs(float(values.get(name) or 0.0)) > 1e-3:
                raise MNIFError(
                    f"{path}: cameras with distortion ({name} {shown(values[name], 40)}); undistort the pictures first "
                    "(COLMAP: image_undistorter)."
                )
        stated = float(values.get("w") or width)
        if values.get("fl_x"):
            focal = float(values["fl_x"])
        elif values.get("camera_angle_x"):
            focal = 0.5 * stated / math.tan(0.5 * float(values["camera_angle_x"]))
        else:
            raise MNIFError(f"{path}: says neither fl_x nor camera_angle_x; add the focal length.")
        other = float(values.get("fl_y") or focal)
        if abs(other - focal) > 0.01 * focal:
            raise MNIFError(f"{path}: two focal lengths ({focal:g}, {other:g}); resample to square pixels.")
        scale = width / stated
        cx = scale * float(values["cx"]) if "cx" in values else width / 2
        cy = scale * float(values["cy"]) if "cy" in values else height / 2
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        if isinstance(error, MNIFError):
            raise
        reason = shown(error, 80)
        raise MNIFError(f"{path}: a camera's numbers cannot be read ({reason}); write the file again.") from None
    if not focal > 0 or not all(map(math.isfinite, (focal, scale, cx, cy))) or scale <= 0:
        raise MNIFError(f"{path}: a focal length of {focal}; camera numbers must be positive and finite.")
    fault = intrinsics_fault(focal * scale, cx, cy, height, width)
    if fault:
        raise MNIFError(f"{path}: {fault.split(';')[0]}; write fl_x, cx and cy in pixels, with w and h.")
    return focal * scale, cx, cy
