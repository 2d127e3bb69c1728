"""Reading observations: what a file or folder is, and its content in the scene box."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mnif_nerf.data.observations.observations import (
    MOST_PIXELS,
    Cells,
    Kind,
    MeshShape,
    Observation,
    Photo,
    Picture,
    Placement,
    PosedViews,
    Scan,
)
from mnif_nerf.data.readers.arrays import load_arrays
from mnif_nerf.data.readers.cloud_files import CLOUD_SUFFIXES, PointCloud, read_cloud
from mnif_nerf.data.readers.cloud_tables import POINT_ARRAYS, is_cloud_shape
from mnif_nerf.data.readers.images import (
    IMAGE_SUFFIXES,
    READ_ERRORS,
    composite_white,
    image_size,
    inspect_background,
    open_picture,
    read_image,
    silhouette,
    unreadable,
)
from mnif_nerf.data.readers.mesh_files import MESH_SUFFIXES, read_mesh
from mnif_nerf.data.readers.picture_files import read_picture
from mnif_nerf.data.readers.scene_reading import at_one_point
from mnif_nerf.data.readers.srn import read_scene
from mnif_nerf.data.readers.transforms_json import NAME as TRANSFORMS
from mnif_nerf.data.readers.transforms_json import read_transforms
from mnif_nerf.data.readers.voxel_files import VOXEL_SUFFIXES, read_voxels, require_cube, require_shape
from mnif_nerf.data.readers.voxel_values import inside_cells
from mnif_nerf.errors import MNIFError

_NUMPY_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error, zipfile.BadZipFile)

PLACED: tuple[Kind, ...] = ("views", "mesh", "cloud")
"""What has coordinates of its own; voxels and pictures are as they are."""


def detect_kind(path: Path, picture: Kind = "image") -> Kind:
    """What a file or folder is, by its name and content.

    Args:
        path: what the user gave.
        picture: what a single picture is to the model: a photo of an object, or an instance itself.

    Raises:
        MNIFError: nothing there, a folder without poses, or a suffix that nothing reads.
    """
    if path.is_dir():
        if (path / TRANSFORMS).is_file() or (path / "rgb").is_dir() or (path / "pose").is_dir():
            return "views"
        pictures = [item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES]
        if pictures:
            raise MNIFError(
                f"{path}: {len(pictures)} pictures without poses; add a {TRANSFORMS} (nerfstudio's) or the folders "
                "rgb/ and pose/ (SRN), or give a single picture, whose pose is then searched."
            )
        raise MNIFError(f"{path}: neither an SRN scene (rgb/, pose/, intrinsics.txt) nor a folder with {TRANSFORMS}.")
    if not path.exists():
        raise MNIFError(f"{path}: no such file or folder.")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return "views"
    if suffix in IMAGE_SUFFIXES:
        return picture
    if suffix in (".npy", ".npz"):
        return "cloud" if _is_cloud_array(path) else "voxels"
    if suffix in VOXEL_SUFFIXES:
        return "voxels"
    if suffix in (".ply", ".obj"):
        return "mesh" if _has_faces(path) else "cloud"
    if suffix in MESH_SUFFIXES:
        return "mesh"
    if suffix in CLOUD_SUFFIXES:
        return "cloud"
    every = sorted({*IMAGE_SUFFIXES, *VOXEL_SUFFIXES, *MESH_SUFFIXES, *CLOUD_SUFFIXES, ".json"})
    raise MNIFError(f"{path}: unknown suffix {suffix!r}; a fit reads {', '.join(every)}, and scene folders.")


def read_observation(
    path: Path | str,
    kind: Kind,
    placement: Placement | None = None,
    radius: float = 1.3,
    grid: dict[str, Any] | None = None,
    scanner: tuple[float, float, float] | None = None,
) -> Observation:
    """Read what `detect_kind` found.

    Args:
        path: file or folder.
        kind: how to read it.
        placement: where it goes; of views, meshes and clouds.
        radius: distance of cameras that `normalise` aims at.
        grid: "resolution" and "channels" of a model of images.
        scanner: where a point cloud was scanned from, in the file's coordinates; it is placed like the points.

    Raises:
        MNIFError: unreadable, empty, or not of this kind; a scanner or a placement for another kind, or a scanner at
            no finite place.
    """
    path, placement = Path(path), placement or Placement()
    if not path.exists():
        raise MNIFError(f"{path}: no such file or folder.")
    if scanner is not None and kind != "cloud":
        raise MNIFError("`scanner` is for point clouds; leave it out here.")
    if scanner is not None and not np.isfinite(scanner).all():
        raise MNIFError(f"`scanner` {' '.join(map(str, scanner))}: must be three finite numbers.")
    if kind not in PLACED and placement != Placement():
        raise MNIFError(
            "`up`, `forward`, `centre`, `scale` and `normalise` place views, meshes and clouds; leave them out here."
        )
    if kind == "views":
        return _placed_views(read_views(path), placement, radius)
    if kind == "photo":
        return read_photo(path)
    if kind == "mesh":
        return _read_mesh(path, placement)
    if kind == "voxels":
        return read_cells(path)
    if kind == "cloud":
        return _placed_scan(read_cloud(path), placement, path, scanner)
    found = grid or {"resolution": 64, "channels": 3}
    size = tuple(found.get("shape") or (found["resolution"],) * 2)
    return Picture(read_picture(path, size, int(found["channels"])))


def read_views(path: Path) -> PosedViews:
    """Posed pictures of an SRN scene folder or of a transforms.json, reduced to `MOST_PIXELS` one by one.

    Raises:
        MNIFError: missing pictures or poses, pictures of different sizes, unreadable files.
    """
    if path.is_file() or (path / TRANSFORMS).is_file():
        paths, poses, intrinsics, (height, width) = read_transforms(path)
    else:
        scene = read_scene(path)
        assert scene is not None
        paths, poses, height, width = scene.image_paths, scene.poses, scene.height, scene.width
        if at_one_point(poses):
            raise MNIFError(
                f"{path}: all {len(poses)} cameras stand at one point or on one line, so these are probably "
                "world-to-camera matrices; add a line 1 after H W in intrinsics.txt, or write their inverses."
            )
        intrinsics = scene.lenses
    for item in paths:  # all headers first: a picture of another size is told before anything is decoded
        other = image_size(item)
        if other != (height, width):
            raise MNIFError(
                f"{item}: {other[1]}x{other[0]} pixels, but {paths[0].name} has {width}x{height}; the pictures of a "
                "scene must be of one size, so resize one of them."
            )
    background = inspect_background(paths, height, width)
    images, masks = [], []
    for item in paths:
        pixels = read_image(item, height, width)
        image, mask = _reduced(composite_white(pixels), silhouette(pixels, background) if background.white else None)
        images.append(image)
        masks.append(mask)
    stack, names = np.stack(images), tuple(item.name for item in paths)
    outlines = np.stack([mask for mask in masks if mask is not None]) if background.white else None
    return PosedViews(stack, outlines, poses, intrinsics * np.float32(stack.shape[2] / width), names)


def _reduced(image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Image uint8 [H, W, 3] and mask bool [H, W] at `MOST_PIXELS` along the longer edge, or as they are."""
    height, width = image.shape[:2]
    factor = MOST_PIXELS / max(height, width)
    if factor >= 1:
        return image, mask
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    if mask is not None:
        mask = np.asarray(Image.fromarray(np.uint8(255) * mask).resize(size, Image.Resampling.BOX)) > 127
    return image, mask


def read_photo(path: Path) -> Photo:
    """A picture of an object, reduced to `MOST_PIXELS`; its outline where the background is white or transparent.

    Raises:
        MNIFError: unreadable, or nothing but background.
    """
    height, width = image_size(path)
    background = inspect_background([path], height, width)
    pixels = _upright(path, read_image(path, height, width))
    image, mask = composite_white(pixels), silhouette(pixels, background) if background.white else None
    if mask is not None and not mask.any():
        raise MNIFError(f"{path}: shows nothing but its background; give a picture of an object.")
    return Photo(*_reduced(image, mask))


def _upright(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Pixels turned as the file's EXIF orientation says: telephones store pictures as the sensor lies."""
    try:
        with open_picture(path) as opened:
            orientation = opened.getexif().get(ExifTags.Base.Orientation)
    except READ_ERRORS as error:
        raise unreadable(path, error) from None
    if orientation is None:
        return pixels
    picture = Image.fromarray(pixels)
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


def read_cells(path: Path) -> Cells:
    """Voxels, boxes filled up to cubes. Cells that are NaN in an array of floats (.npy, .npz with one) are unknown.

    Raises:
        MNIFError: unreadable, a box that lacks an odd number of cells, all unknown, or all cells alike.
    """
    if path.suffix.lower() in (".npy", ".npz"):
        values = _float_array(path)
        if values is not None and values.ndim == 3 and len(set(values.shape)) == 1 and np.isnan(values).any():
            known = ~np.isnan(values)
            if not known.any():
                raise MNIFError(f"{path}: every cell is unknown (NaN); there is nothing to fit to.")
            inside = inside_cells(np.where(known, values, 0), path)
            if not inside.any():
                raise MNIFError(f"{path}: no known cell is inside, so there is no shape in it; see more of it.")
            return Cells(inside, known)
    values = read_voxels(path)
    missing = [max(values.shape) - count for count in values.shape]
    if not any(count % 2 for count in missing):  # a box lies in the middle of the scene box
        values = np.pad(values, [(count // 2, count // 2) for count in missing])
    require_cube(values, path)
    require_shape(values, path)
    return Cells(values)


def read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Which cells or pixels were observed: bool of `shape`, from .npy, .npz, .binvox, or (of pictures) PNG or JPEG.

    Raises:
        MNIFError: unreadable, or of another size.
    """
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        try:
            with open_picture(path) as opened:
                mask = np.asarray(opened.convert("L")) > 127
        except READ_ERRORS as error:
            raise unreadable(path, error) from None
    elif len(shape) == 2 and suffix == ".npy":
        try:
            values = load_arrays(path)
            if not isinstance(values, np.ndarray):
                raise ValueError("an archive")
            mask = values if values.dtype == bool else values > 0.5
        except _NUMPY_ERRORS as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else "damaged, or not an array of numbers"
            raise MNIFError(f"{path}: cannot be read as a mask ({reason}); write it again.") from None
    else:
        mask = read_voxels(path)
    if mask.shape != shape:
        raise MNIFError(f"{path}: a mask of {list(mask.shape)}, expected {list(shape)} like the observation.")
    return mask


def _read_mesh(path: Path, placement: Placement) -> MeshShape:
    content = read_mesh(path, placement.up or "auto", placement.forward or "auto")
    surface = content.surface
    # Vertices that no face uses are no part of the shape, wherever they lie.
    used, corners = np.unique(surface.faces, return_inverse=True)
    surface.vertices, surface.faces = surface.vertices[used], corners.reshape(-1, 3)
    if placement.normalise == "no":
        # Back to the file's size and place: what was centred is found from the file's own vertices.
        low, high = content.low, content.high
        diagonal, turn = float(np.linalg.norm(high - low)), placement.turn(path.suffix.lower())
        original = (surface.vertices @ turn) * diagonal + (low + high) / 2
        surface.vertices = placement.move(original, turn)
    else:
        surface.vertices = (surface.vertices - np.asarray(placement.centre)) * placement.scale
    outside = np.abs(surface.vertices).max()
    if outside > 0.5 + 1e-6:
        raise MNIFError(
            f"{path}: reaches {outside:.3g} from the origin, beyond the scene box (half extent 0.5); use `normalise` "
            "yes or a smaller `scale`."
        )
    return MeshShape(surface, tuple(f"the mesh {note}." for note in content.notes))


def _placed_views(views: PosedViews, placement: Placement, radius: float) -> PosedViews:
    turn = placement.turn("")
    poses = views.poses.astype(np.float64)
    rotation, position = turn @ poses[:, :3, :3], placement.move(poses[:, :3, 3], turn)
    if placement.normalise == "yes":
        position = position - _looked_at(rotation[:, :, 2], position)
        position = position * (radius / max(float(np.linalg.norm(position, axis=1).mean()), 1e-9))
    placed = np.tile(np.eye(4), (len(poses), 1, 1))
    placed[:, :3, :3], placed[:, :3, 3] = rotation, position
    if (rotation[:, :, 2] * position).sum(axis=1).mean() > 0:
        raise MNIFError(
            "the cameras look away from the origin, where the object should be; use `normalise` yes, or `centre`, and "
            "check that poses are camera-to-world."
        )
    return replace(views, poses=placed.astype(np.float32))


def _looked_at(directions: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The point [3] nearest to all optical axes."""
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    matrix, right = across.sum(axis=0), np.einsum("vij,vj->i", across, positions)
    return np.asarray(np.linalg.lstsq(matrix, right, rcond=1e-6)[0])


def _placed_scan(
    cloud: PointCloud, placement: Placement, path: Path, scanner: tuple[float, float, float] | None
) -> Scan:
    """Cloud and scanner in the scene box, by one and the same placement; float32 from there on."""
    turn = placement.turn(path.suffix.lower() if placement.up or placement.forward else "")
    points = placement.move(cloud.points, turn)
    place = None if scanner is None else placement.move(np.asarray(scanner, dtype=np.float64), turn)
    if placement.normalise == "yes":
        low, high = points.min(axis=0), points.max(axis=0)
        middle, diagonal = (low + high) / 2, max(float(np.linalg.norm(high - low)), 1e-9)
        points = (points - middle) / diagonal
        place = None if place is None else (place - middle) / diagonal
    beyond = (np.abs(points) > 0.5).any(axis=1).mean()
    if beyond > 0.05:
        raise MNIFError(
            f"{path}: {beyond:.0%} of its points lie outside the scene box (half extent 0.5 around the origin); use "
            "`normalise` yes where the scan is whole, else `centre` and `scale`."
        )
    kept = (np.abs(points) <= 0.5).all(axis=1)
    normals = None if cloud.normals is None else (cloud.normals @ turn.T)[kept].astype(np.float32)
    colors = None if cloud.colors is None else cloud.colors[kept]
    placed = PointCloud(points[kept].astype(np.float32), normals, cloud.notes, colors)
    return Scan(placed, None if place is None else place.astype(np.float32))


def _float_array(path: Path) -> np.ndarray | None:
    """The array of a .npy, or the only one of an .npz, if it is of floats."""
    try:
        content = load_arrays(path)
        if isinstance(content, np.ndarray):
            found = content
        else:
            with content:
                if len(content.files) != 1:
                    return None
                found = content[content.files[0]]
        return found if found.dtype.kind == "f" else None
    except _NUMPY_ERRORS:
        return None  # the reader of this kind has the sentence


def _is_cloud_array(path: Path) -> bool:
    try:
        content = load_arrays(path)
        if isinstance(content, np.ndarray):
            return is_cloud_shape(content.shape)
        with content:
            alone = content.files[0] if len(content.files) == 1 else None
            return any(name in POINT_ARRAYS for name in content.files) or (
                alone is not None and is_cloud_shape(content[alone].shape)
            )
    except _NUMPY_ERRORS:
        return False


def _has_faces(path: Path) -> bool:
    """Whether a .ply or .obj holds a mesh: a look at its first line of faces."""
    try:
        with open(path, "rb") as file:
            for line in file:
                words = line.split()
                if path.suffix.lower() == ".obj" and words[:1] == [b"f"]:
                    return True
                if words[:2] == [b"element", b"face"]:
                    return int(words[2]) > 0
                if words[:1] == [b"end_header"]:
                    return False
    except (OSError, ValueError, IndexError) as error:
        raise MNIFError(
            f"{path}: cannot be read as a mesh or point cloud ({type(error).__name__}); write it again."
        ) from None
    return False
