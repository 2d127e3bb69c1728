"""Writing data sets in the SRN layout: scene folders that are whole or absent, and a note on their making."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mnif_nerf.data.geometry.raytrace import Camera
from mnif_nerf.data.readers.arrays import load_arrays
from mnif_nerf.errors import MNIFError, disk_errors
from mnif_nerf.files import atomic_file, atomic_folder, read_json, write_json
from mnif_nerf.limits import MOST_SEED, require_count
from mnif_nerf.scene_box import HALF_EXTENT

MANIFEST = "dataset.json"
FORMAT_VERSION = 1


def write_scene(folder: Path | str, images: np.ndarray, poses: np.ndarray, camera: Camera) -> None:
    """Write one scene folder (rgb/*.png, pose/*.txt, intrinsics.txt) that appears only when it is whole.

    Args:
        folder: `<root>/<category>_<split>/<scene>`; must not exist.
        images: uint8 [V, H, W, 4] with straight alpha, or [V, H, W, 3].
        poses: [V, 4, 4] camera-to-world, OpenCV.
        camera: focal length and principal point in pixels, height and width; the same for all views.

    Raises:
        MNIFError: unequal counts, pictures of another size than the camera's, folder exists, disk full.
    """
    images, poses = np.asarray(images), np.asarray(poses)
    if len(images) != len(poses) or not len(images):
        raise MNIFError(f"{folder}: {len(images)} images and {len(poses)} poses; give one pose per image.")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:3] != (camera.height, camera.width):
        raise MNIFError(
            f"{folder}: images of shape {images.shape} and type {images.dtype}; "
            f"expected uint8 [V, {camera.height}, {camera.width}, 3 or 4]."
        )
    with atomic_folder(folder) as temporary:
        (temporary / "rgb").mkdir()
        (temporary / "pose").mkdir()
        for view, (image, pose) in enumerate(zip(images, poses)):
            Image.fromarray(image).save(temporary / "rgb" / f"{view:06d}.png", compress_level=4)
            numbers = " ".join(f"{number:.9g}" for number in np.asarray(pose, np.float64).reshape(16))
            (temporary / "pose" / f"{view:06d}.txt").write_text(numbers + "\n", encoding="ascii")
        # The four lines of SRN's own files: intrinsics, grid barycentre, scale, picture size.
        lines = [f"{camera.focal:.9g} {camera.cx:.9g} {camera.cy:.9g} 0.", "0. 0. 0.", "1."]
        lines.append(f"{camera.height} {camera.width}")
        (temporary / "intrinsics.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


def write_occupancy(path: Path | str, cells: np.ndarray) -> None:
    """Write bool cells [G, G, G] (x, y, z order) as .npz with `packed`, `resolution` and `half_extent`.

    `packed` holds eight cells a byte, the first in the lowest bit.

    Raises:
        MNIFError: the disk is full.
    """
    with atomic_file(path) as temporary:
        packed = np.packbits(np.asarray(cells, bool).reshape(-1), bitorder="little")
        np.savez_compressed(
            temporary, packed=packed, resolution=np.int64(cells.shape[0]), half_extent=np.float64(HALF_EXTENT)
        )


def read_occupancy(path: Path | str) -> np.ndarray:
    """Read what `write_occupancy` wrote: bool [G, G, G] in x, y, z order.

    Raises:
        MNIFError: the file is missing or holds something else.
    """
    try:
        found = load_arrays(path)
        if isinstance(found, np.ndarray):
            raise ValueError("a single array")
        with found as file:
            size, packed = int(file["resolution"]), file["packed"]
            if size < 1 or len(packed) != -(-(size**3) // 8):
                raise ValueError(f"{len(packed)} bytes of bits for a grid of {size}^3")
            bits = np.unpackbits(packed, count=size**3, bitorder="little")
            return bits.astype(bool).reshape(size, size, size)
    except (OSError, ValueError, KeyError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        raise MNIFError(f"{path}: not an occupancy file ({error}); write it again.") from None


def claim_output(output: Path | str, kind: str, settings: dict[str, Any]) -> bool:
    """Make `output` ours for these settings, or recognise that it already is.

    Args:
        output: the data set's folder.
        kind: which command makes it.
        settings: JSON values that decide what will be in it.

    Returns:
        True where an earlier run with equal settings finished.

    Raises:
        MNIFError: the folder holds something else, or was made with other settings; or a seed below 0.
    """
    output = Path(output)
    require_count("`seed`", settings.get("seed", 0), 0, MOST_SEED)
    manifest = output / MANIFEST
    if manifest.is_file():
        found = read_json(manifest)
        if not isinstance(found, dict) or found.get("kind") != kind or found.get("format_version") != FORMAT_VERSION:
            raise MNIFError(f"{manifest}: written by another command or version; choose another `output`.")
        old = found.get("settings")
        old = old if isinstance(old, dict) else {}
        settings = json.loads(json.dumps(settings))  # tuples are lists in a file
        changed = [name for name in settings if old.get(name) != settings[name]]
        if changed:
            name = changed[0]
            raise MNIFError(
                f"{manifest}: made with {name} {old.get(name)!r}, asked for {settings[name]!r}; "
                "choose another `output` or remove the folder first."
            )
        return bool(found.get("complete"))
    if output.exists() and not output.is_dir():
        raise MNIFError(f"{output}: is a file, not a folder; choose another `output`.")
    if output.is_dir() and any(entry.name[0] != "." for entry in output.iterdir()):
        raise MNIFError(f"{output}: not empty and without {MANIFEST}; choose another `output` or empty it first.")
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    write_manifest(output, kind, settings, complete=False)
    return False


def write_manifest(output: Path | str, kind: str, settings: dict[str, Any], complete: bool, **more: Any) -> None:
    """Write `dataset.json`: what made the data set, with which settings, and whether all of it is there."""
    content = {"format": "mnif_nerf dataset", "format_version": FORMAT_VERSION, "kind": kind}
    write_json(Path(output) / MANIFEST, {**content, "complete": complete, "settings": settings, **more})


def write_splits(output: Path, sizes: Mapping[str, int], order: np.ndarray, write: Callable[[int, Path], None]) -> None:
    """Write rows into one folder for each split; a split appears whole, and one that is there is kept.

    Args:
        output: the folder of the splits.
        sizes: rows of each split.
        order: int `[N]`, the rows, of which each split takes the next ones.
        write: writes one row into a folder.
    """
    first = 0
    for split, count in sizes.items():
        rows = np.sort(order[first : first + count])
        first += count
        if (output / split).exists():  # appeared whole, in a run that was interrupted later
            continue
        with atomic_folder(output / split) as temporary:
            for row in rows:
                write(int(row), temporary)
