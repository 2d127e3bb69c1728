"""Reader of the SRN layout: `<root>/<category>_<split>/<scene>/{rgb/*.png, pose/*.txt, intrinsics.txt}`.

Poses are camera-to-world in the OpenCV convention (x right, y down, z forward), as in the files. The layout
is that of the data released with Scene Representation Networks (Sitzmann et al. 2019) and re-released by
pixelNeRF.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from mnif_nerf.data.readers.images import IMAGE_SUFFIXES, image_size
from mnif_nerf.data.readers.scene_reading import (
    USUAL,
    PoseKind,
    SceneReading,
    at_one_point,
    camera_to_world,
    intrinsics_fault,
    pose_fault,
)
from mnif_nerf.data.readers.srn_layout import Layout, list_splits, locate, scene_folders
from mnif_nerf.data.readers.text import number_lines
from mnif_nerf.errors import MNIFError

__all__ = [
    "Scene",
    "SplitIndex",
    "list_splits",
    "make_index",
    "parse_intrinsics",
    "pose_faults",
    "read_scene",
    "read_split",
]
_ROTATION_TOLERANCE = 1e-2
_FARTHEST = 1e9  # of a number in a pose, whose squares float32 holds

T = TypeVar("T")


@dataclass(frozen=True)
class Scene:
    """One scene: image paths [v], poses float32 [v, 4, 4], intrinsics (f, cx, cy) in pixels of the first picture, image
    size, what the pose files were taken for, and the intrinsics of every picture, float32 [v, 3]."""

    name: str
    image_paths: list[Path]
    poses: np.ndarray
    intrinsics: tuple[float, float, float]
    height: int
    width: int
    kind: PoseKind
    lenses: np.ndarray


@dataclass(frozen=True)
class SplitIndex:
    """All views of one split, scene after scene.

    names [S]; image_paths [V]; poses float32 [V, 4, 4] camera-to-world, OpenCV; view_offsets int64 [S+1]
    (scene s owns views view_offsets[s] to view_offsets[s+1]); intrinsics float32 [V, 3] (f, cx, cy in pixels
    of the stored images); kind, what the pose files were taken for, and whether the user said so.
    """

    root: Path
    category: str
    split: str
    folder: Path
    names: tuple[str, ...]
    image_paths: list[Path]
    poses: np.ndarray
    view_offsets: np.ndarray
    intrinsics: np.ndarray
    height: int
    width: int
    kind: PoseKind = "c2w"
    kind_is_given: bool = False

    @property
    def num_scenes(self) -> int:
        return len(self.names)

    @property
    def num_views(self) -> int:
        return len(self.image_paths)


def read_split(root: Path | str, split: str, reading: SceneReading = USUAL) -> SplitIndex:
    """Index one split: every pose and intrinsics file is read and checked, images are opened one per scene.

    Args:
        root: the data set.
        split: its name.
        reading: what the user says about the cameras' files; its scale is applied unless it is "auto".

    Raises:
        MNIFError: missing folder, other layout, no scene, unequal rgb/pose counts, missing or malformed
            intrinsics, or such as no camera has, malformed, non-finite or singular pose, unequal image sizes, cameras
            that stand at one point or look away from the origin.
    """
    layout = locate(root)
    name, folder = layout.folder(split)
    scenes = [read_scene(path, reading=reading) for path in scene_folders(folder)]
    found = [scene for scene in scenes if scene is not None]
    index = make_index(layout, name, folder, found, placed=reading.scale == "auto")
    return replace(index, kind_is_given=reading.poses != "auto")


def make_index(
    layout: Layout,
    split: str,
    folder: Path,
    scenes: list[Scene],
    problems: list[str] | None = None,
    placed: bool = False,
) -> SplitIndex:
    """Join scenes to an index; faults between scenes go to `problems`, or are raised where that is None.

    Args:
        placed: whether the cameras are still to be moved, so that they need not look at the origin.
    """
    first = scenes[0]
    agreeing = []
    for scene in scenes:
        if (scene.height, scene.width) == (first.height, first.width):
            agreeing.append(scene)
            continue
        sizes = f"{scene.width}x{scene.height} pixels, expected {first.width}x{first.height} like {first.name}"
        _fault(f"{scene.image_paths[0]}: {sizes}; resize one of them.", problems)
    poses = np.concatenate([scene.poses for scene in agreeing])
    index = SplitIndex(
        root=layout.root,
        category=layout.category,
        split=split,
        folder=folder,
        names=tuple(scene.name for scene in agreeing),
        image_paths=[path for scene in agreeing for path in scene.image_paths],
        poses=poses,
        view_offsets=np.cumsum([0, *(len(scene.image_paths) for scene in agreeing)], dtype=np.int64),
        intrinsics=np.concatenate([scene.lenses for scene in agreeing]),
        height=first.height,
        width=first.width,
        kind=first.kind,
    )
    for fault in _camera_faults(index, placed):
        _fault(fault, problems)
    return index


def read_scene(folder: Path, problems: list[str] | None = None, reading: SceneReading = USUAL) -> Scene | None:
    """Read one scene folder. Faults go to `problems` (then None is returned), or are raised if that is None.

    `reading` is what the user says about the files; its scale is applied unless it is "auto".

    Raises:
        MNIFError: with `problems=None`, the first fault of this scene.
    """
    pairs = _attempt(lambda: _pair_files(folder), problems)
    if pairs is None:
        return None
    images, pose_files = pairs
    rows = [_attempt(partial(read_matrix, path, 16), problems) for path in pose_files]
    size = _attempt(lambda: image_size(images[0]), problems)
    if size is None or any(numbers is None for numbers in rows):
        return None
    height, width = size
    names = [image.stem for image in images]
    cameras = _attempt(lambda: _read_intrinsics(folder, names, (height, width), reading), problems)
    poses = np.array(rows, dtype=np.float64).reshape(-1, 4, 4)
    faults = list(pose_faults(poses))
    for view, fault in faults:
        _fault(f"{pose_files[view]}: {fault}.", problems)
    if cameras is None or faults:
        return None
    lenses, flagged = cameras
    first = (float(lenses[0, 0]), float(lenses[0, 1]), float(lenses[0, 2]))
    kind: PoseKind = reading.poses if reading.poses != "auto" else "w2c" if flagged else "c2w"
    poses = camera_to_world(poses, kind)
    if reading.scale != "auto":
        poses[:, :3, 3] *= reading.scale
    return Scene(folder.name, images, poses.astype(np.float32), first, height, width, kind, lenses)


def pose_faults(poses: np.ndarray) -> Iterator[tuple[int, str]]:
    """(view, fault) for every pose of [v, 4, 4] that is not a rigid camera-to-world matrix."""
    finite = (np.abs(poses) < _FARTHEST).all((1, 2))  # NaN compares as false
    safe = np.where(finite[:, None, None], poses, 0)
    rotation = safe[:, :3, :3]
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    determinant = np.linalg.det(rotation)
    last_row = np.abs(safe[:, 3] - np.array([0.0, 0.0, 0.0, 1.0])).max(1)
    for view in np.flatnonzero(~finite | (error > _ROTATION_TOLERANCE) | (determinant < 0) | (last_row > 1e-3)):
        if not finite[view]:
            yield (
                int(view),
                "a number is NaN or infinite, or beyond 1e9; write the camera-to-world matrix again",
            )
        elif abs(determinant[view]) < 1e-3:
            yield int(view), "the matrix is singular; write the camera-to-world matrix again"
        elif error[view] > _ROTATION_TOLERANCE:
            yield (
                int(view),
                f"the upper-left 3x3 is no rotation (off by {error[view]:.2g}); remove scale or shear",
            )
        elif determinant[view] < 0:
            yield int(view), "the upper-left 3x3 mirrors space (determinant -1); flip one axis back"
        else:
            yield int(view), "the last row is not 0 0 0 1; the translation belongs in the last column"


def read_matrix(path: Path, expected: int) -> list[float]:
    """All numbers of a text file, in one or several lines; of a pose, the last row may lack.

    Raises:
        MNIFError: unreadable, not numbers, or not `expected` of them.
    """
    try:  # plain numbers first, since there are a hundred thousand such files
        numbers = [float(word) for word in path.read_bytes().split()]
    except (OSError, ValueError):
        numbers = [number for line in number_lines(path) for number in line]
    if expected == 16 and len(numbers) == 12:
        return [*numbers, 0.0, 0.0, 0.0, 1.0]
    if len(numbers) != expected:
        raise MNIFError(f"{path}: {len(numbers)} numbers, expected {expected} (a 4x4 camera-to-world matrix).")
    return numbers


def parse_intrinsics(path: Path) -> tuple[float, float, float, int | None, int | None, bool]:
    """(f, cx, cy, H, W, world_to_camera) of an SRN file, of `fx fy cx cy`, or of a 3x3 or 4x4 matrix.

    SRN's lines: `f cx cy 0.`, grid barycentre, near plane (often absent), scale, `H W`, and at times a last
    flag that is 1 where the pose files hold world-to-camera matrices. A fourth number other than 0 in the first line
    says that it holds `fx fy cx cy`; `H W` may be absent then, as in matrices, and is None.

    Raises:
        MNIFError: a line is missing or malformed.
    """
    lines = number_lines(path)
    numbers = [number for line in lines for number in line]
    first = lines[0] if lines else []
    sizes = [position for position, line in enumerate(lines) if position and len(line) == 2]
    height = width = None
    flagged = False
    if len(numbers) in (9, 16) and (len(lines) == 1 or len(first) ** 2 == len(numbers)):
        matrix = np.array(numbers).reshape(round(len(numbers) ** 0.5), -1)
        focals, centre = (matrix[0, 0], matrix[1, 1]), (matrix[0, 2], matrix[1, 2])
    else:
        four = len(first) == 4 and first[3] != 0
        if len(first) not in (3, 4) or not (sizes or (four and len(lines) == 1)):
            raise MNIFError(f"{path}: expected a first line 'f cx cy 0.' and a last line 'H W'; write both.")
        focals = (first[0], first[1]) if four else (first[0], first[0])
        centre = (first[2], first[3]) if four else (first[1], first[2])
        if sizes:
            height, width = lines[sizes[-1]]
            flag = lines[sizes[-1] + 1 :]
            flagged = bool(flag and flag[0][0] == 1)
    stated = [number for number in (*focals, *centre, height, width) if number is not None]
    if not np.isfinite(stated).all() or min(focals) <= 0 or min(stated[4:], default=1) < 1:
        raise MNIFError(f"{path}: focal length and image size must be positive, finite numbers; write the file again.")
    if not np.isclose(*focals, rtol=1e-3):
        raise MNIFError(f"{path}: two focal lengths ({focals[0]:g}, {focals[1]:g}); resample to square pixels.")
    size = (None if height is None else int(height), None if width is None else int(width))
    return float(focals[0]), float(centre[0]), float(centre[1]), *size, flagged


def _read_intrinsics(
    folder: Path, names: list[str], size: tuple[int, int], reading: SceneReading
) -> tuple[np.ndarray, bool]:
    """(f, cx, cy) float32 [v, 3] in pixels of pictures of `size` (H, W), and whether poses are world-to-camera.

    The file is the scene's or the split's, or a folder intrinsics/ has one for every picture, by its name.
    """
    shared = [path for path in (folder / "intrinsics.txt", folder.parent / "intrinsics.txt") if path.is_file()][:1]
    if shared:
        found, flagged = _camera(shared[0], size, reading)
        return np.tile(np.float32(found), (len(names), 1)), flagged
    own = {path.stem: path for path in _files(folder / "intrinsics", (".txt",))}
    if not own:
        raise MNIFError(f"{folder}: no intrinsics.txt in it; add one with the lines 'f cx cy 0.' and 'H W'.")
    if len(own) == 1:
        own = dict.fromkeys(names, next(iter(own.values())))
    missing = [name for name in names if name not in own]
    if missing:
        where = folder / "intrinsics"
        raise MNIFError(f"{where}: no {missing[0]}.txt in it, but a picture of that name; add the file.")
    cameras = [_camera(own[name], size, reading) for name in names]
    return np.array([camera for camera, _ in cameras], dtype=np.float32), cameras[0][1]


def _camera(path: Path, size: tuple[int, int], reading: SceneReading) -> tuple[tuple[float, float, float], bool]:
    """(f, cx, cy) of a file in pixels of pictures of `size` (H, W), and its flag.

    Raises:
        MNIFError: malformed, for pictures of other proportions, or no camera has such intrinsics.
    """
    (height, width), (focal, cx, cy, stated_height, stated_width, flag) = size, parse_intrinsics(path)
    ratio = 1.0
    if reading.intrinsics == "normalised":
        focal, cx, cy = focal * width, cx * width, cy * height
    elif stated_height is not None and stated_width is not None:
        # SRN's own reader rescales to the images: the original cars state a size other than that of the PNGs.
        ratio = width / stated_width
        if abs(height / stated_height - ratio) > 1e-3 * ratio:
            stated = f"{stated_width}x{stated_height}"
            raise MNIFError(f"{path}: states {stated} pixels, the images are {width}x{height}; make the two agree.")
    fault = intrinsics_fault(focal, cx, cy, round(height / ratio), round(width / ratio))
    if fault:
        raise MNIFError(f"{path}: {fault}.")
    return (focal * ratio, cx * ratio, cy * ratio), flag


def _pair_files(folder: Path) -> tuple[list[Path], list[Path]]:
    images, poses = (_files(folder / "rgb", IMAGE_SUFFIXES), _files(folder / "pose", (".txt",)))
    if images and not poses and (folder / "pose").is_dir():
        others = sorted({path.suffix or path.name for path in (folder / "pose").iterdir() if path.name[:1] != "."})
        if others:
            raise MNIFError(
                f"{folder}: no .txt in pose/ (only {others[0]}); write each camera-to-world matrix as a text of 16 "
                "numbers."
            )
    if len(images) != len(poses):
        raise MNIFError(
            f"{folder}: {len(images)} images in rgb/ but {len(poses)} poses in pose/; each needs the other."
        )
    if not images:
        raise MNIFError(f"{folder}: no images in rgb/; add views or remove the scene.")
    for image, pose in zip(images, poses):
        if image.stem != pose.stem:
            raise MNIFError(f"{image}: no {image.stem}.txt in pose/ (found {pose.name}); name both alike.")
    return images, poses


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of `folder` by suffix, in the order of their numbers, else of their names."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and e.name.lower().endswith(suffixes)]
    numbered = all(os.path.splitext(name)[0].isdigit() for name in names)
    names.sort(key=(lambda name: (int(os.path.splitext(name)[0]), name)) if numbered else None)
    return [folder / name for name in names]


def _attempt(call: Callable[[], T], problems: list[str] | None) -> T | None:
    """`call()`; its MNIFError goes to `problems` (then None is returned), or is raised if that is None."""
    try:
        return call()
    except MNIFError as error:
        if problems is None:
            raise
        problems.append(str(error))
        return None


def _fault(message: str, problems: list[str] | None) -> None:
    if problems is None:
        raise MNIFError(message)
    problems.append(message)


def _camera_faults(index: SplitIndex, placed: bool) -> Iterator[str]:
    """What is wrong with the places and directions of the cameras of a split."""
    offsets = index.view_offsets
    scenes = [index.poses[first:last] for first, last in itertools.pairwise(offsets)]
    still = [name for name, poses in zip(index.names, scenes) if at_one_point(poses)]
    if still:
        where = f"{index.folder}, {still[0]}" + (f" and {len(still) - 1} more scenes" if len(still) > 1 else "")
        yield f"{where}: {pose_fault(scenes[index.names.index(still[0])], index.kind)}."
        return
    fault = None if placed else pose_fault(index.poses, index.kind)
    if fault:
        yield f"{index.folder}: {fault}."
