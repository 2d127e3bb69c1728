"""Reader of the SRN layout: `<root>/<category>_<split>/<scene>/{rgb/*.png, pose/*.txt, intrinsics.txt}`.

Poses are camera-to-world in the OpenCV convention (x right, y down, z forward), as in the files. The layout
is that of the data released with Scene Representation Networks (Sitzmann et al. 2019) and re-released by
pixelNeRF.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from mnif_nerf.data.readers.images import IMAGE_SUFFIXES, image_size
from mnif_nerf.data.readers.srn_layout import Layout, list_splits, locate, scene_folders
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

T = TypeVar("T")


@dataclass(frozen=True)
class Scene:
    """One scene: image paths [v], poses float32 [v, 4, 4], intrinsics (f, cx, cy) in pixels, image size."""

    name: str
    image_paths: list[Path]
    poses: np.ndarray
    intrinsics: tuple[float, float, float]
    height: int
    width: int


@dataclass(frozen=True)
class SplitIndex:
    """All views of one split, scene after scene.

    names [S]; image_paths [V]; poses float32 [V, 4, 4] camera-to-world, OpenCV; view_offsets int64 [S+1]
    (scene s owns views view_offsets[s] to view_offsets[s+1]); intrinsics float32 [S, 3] (f, cx, cy in pixels
    of the stored images).
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

    @property
    def num_scenes(self) -> int:
        return len(self.names)

    @property
    def num_views(self) -> int:
        return len(self.image_paths)


def read_split(root: Path | str, split: str) -> SplitIndex:
    """Index one split: every pose and intrinsics file is read and checked, images are opened one per scene.

    Raises:
        MNIFError: missing folder, other layout, no scene, unequal rgb/pose counts, missing or malformed
            intrinsics, malformed, non-finite or singular pose, unequal image sizes, cameras that look away
            from the origin.
    """
    layout = locate(root)
    name, folder = layout.folder(split)
    scenes = [read_scene(path) for path in scene_folders(folder)]
    return make_index(layout, name, folder, [scene for scene in scenes if scene is not None])


def make_index(
    layout: Layout, split: str, folder: Path, scenes: list[Scene], problems: list[str] | None = None
) -> SplitIndex:
    """Join scenes to an index; faults between scenes go to `problems`, or are raised where that is None."""
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
        intrinsics=np.array([scene.intrinsics for scene in agreeing], dtype=np.float32),
        height=first.height,
        width=first.width,
    )
    outward = _outward_cameras(index)
    if outward:
        _fault(outward, problems)
    return index


def read_scene(folder: Path, problems: list[str] | None = None) -> Scene | None:
    """Read one scene folder. Faults go to `problems` (then None is returned), or are raised if that is None.

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
    intrinsics = _attempt(lambda: _read_intrinsics(folder, height, width), problems)
    poses = np.array(rows, dtype=np.float64).reshape(-1, 4, 4)
    faults = list(pose_faults(poses))
    for view, fault in faults:
        _fault(f"{pose_files[view]}: {fault}.", problems)
    if intrinsics is None or faults:
        return None
    if intrinsics[3]:
        poses = np.linalg.inv(poses)
    return Scene(folder.name, images, poses.astype(np.float32), intrinsics[:3], height, width)


def pose_faults(poses: np.ndarray) -> Iterator[tuple[int, str]]:
    """(view, fault) for every pose of [v, 4, 4] that is not a rigid camera-to-world matrix."""
    finite = np.isfinite(poses).all((1, 2))
    safe = np.where(finite[:, None, None], poses, 0)
    rotation = safe[:, :3, :3]
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    determinant = np.linalg.det(rotation)
    last_row = np.abs(safe[:, 3] - np.array([0.0, 0.0, 0.0, 1.0])).max(1)
    for view in np.flatnonzero(~finite | (error > _ROTATION_TOLERANCE) | (determinant < 0) | (last_row > 1e-3)):
        if not finite[view]:
            yield int(view), "a number is NaN or infinite; write the camera-to-world matrix again"
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
    """All numbers of a text file, in one or several lines.

    Raises:
        MNIFError: unreadable, not numbers, or not `expected` of them.
    """
    try:
        with open(path, encoding="ascii") as file:
            numbers = [float(word) for word in file.read().split()]
    except (OSError, ValueError) as error:
        raise MNIFError(f"{path}: not a text file of numbers ({error}); write it again.") from None
    if len(numbers) != expected:
        raise MNIFError(f"{path}: {len(numbers)} numbers, expected {expected} (a 4x4 camera-to-world matrix).")
    return numbers


def parse_intrinsics(path: Path) -> tuple[float, float, float, int | None, int | None, bool]:
    """(f, cx, cy, H, W, world_to_camera) of an SRN file, or of a 3x3 or 4x4 matrix (H and W are then None).

    SRN's lines: `f cx cy 0.`, grid barycentre, near plane (often absent), scale, `H W`, and at times a last
    flag that is 1 where the pose files hold world-to-camera matrices.

    Raises:
        MNIFError: a line is missing or malformed.
    """
    try:
        lines = [[float(word) for word in line.split()] for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError) as error:
        raise MNIFError(f"{path}: not a text file of numbers ({error}); write it again.") from None
    lines = [line for line in lines if line]
    numbers = [number for line in lines for number in line]
    if len(numbers) in (9, 16) and (len(lines) == 1 or len(lines[0]) ** 2 == len(numbers)):
        matrix = np.array(numbers).reshape(round(len(numbers) ** 0.5), -1)
        if not np.isclose(matrix[0, 0], matrix[1, 1], rtol=1e-3):
            raise MNIFError(
                f"{path}: two focal lengths ({matrix[0, 0]:g}, {matrix[1, 1]:g}); resample to square pixels."
            )
        found: tuple = (float(matrix[0, 0]), float(matrix[0, 2]), float(matrix[1, 2]), None, None, False)
    else:
        sizes = [position for position, line in enumerate(lines) if position and len(line) == 2]
        if not lines or len(lines[0]) not in (3, 4) or not sizes:
            raise MNIFError(f"{path}: expected a first line 'f cx cy 0.' and a last line 'H W'; write both.")
        height, width = (int(number) for number in lines[sizes[-1]])
        flag = lines[sizes[-1] + 1 :]
        found = (*lines[0][:3], height, width, bool(flag and flag[0][0] == 1))
    if not np.isfinite(found[:3]).all() or found[0] <= 0 or (found[3] is not None and min(found[3], found[4]) <= 0):
        raise MNIFError(f"{path}: focal length and image size must be positive, finite numbers; write the file again.")
    return found  # type: ignore[return-value]


def _read_intrinsics(folder: Path, height: int, width: int) -> tuple[float, float, float, bool]:
    """(f, cx, cy, world_to_camera) in pixels of the H x W images; the file is the scene's or the split's."""
    files = [path for path in (folder / "intrinsics.txt", folder.parent / "intrinsics.txt") if path.is_file()][:1]
    files = files or sorted((folder / "intrinsics").glob("*.txt"))
    if not files:
        raise MNIFError(f"{folder}: no intrinsics.txt in it; add one with the lines 'f cx cy 0.' and 'H W'.")
    first = parse_intrinsics(files[0])
    for path in files[1:]:
        if not np.allclose(parse_intrinsics(path)[:3], first[:3], rtol=1e-4, atol=1e-3):
            raise MNIFError(f"{path}: differs from {files[0].name}; the views of a scene must share their intrinsics.")
    focal, cx, cy, stated_height, stated_width, flag = first
    if stated_height is None or stated_width is None:
        return focal, cx, cy, flag
    # SRN's own reader rescales to the images: the original cars state a size other than that of the PNGs.
    ratio = width / stated_width
    if abs(height / stated_height - ratio) > 1e-3 * ratio:
        stated = f"{stated_width}x{stated_height}"
        raise MNIFError(f"{files[0]}: states {stated} pixels, the images are {width}x{height}; make the two agree.")
    return focal * ratio, cx * ratio, cy * ratio, flag


def _pair_files(folder: Path) -> tuple[list[Path], list[Path]]:
    images, poses = (_files(folder / "rgb", IMAGE_SUFFIXES), _files(folder / "pose", (".txt",)))
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


def _outward_cameras(index: SplitIndex) -> str | None:
    away = (index.poses[:, :3, 2] * index.poses[:, :3, 3]).sum(1) > 0
    if away.mean() <= 0.5:
        return None
    return (
        f"{index.folder}: {away.sum()} of {len(away)} cameras look away from the origin; poses must be"
        " camera-to-world in the OpenCV convention (for OpenGL's, negate the second and third column)."
    )
