"""Points of many instances as arrays on disk, and of one as a file of its own until all are there."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnif_nerf.data.geometry.surface_points import ON_SURFACE, PointCounts, SurfacePoints, to_lattice
from mnif_nerf.data.stores.cache import files_fingerprint
from mnif_nerf.data.stores.packing import GrowingArray, require_space
from mnif_nerf.data.stores.shards import move_shards, pack_shards, shard_ranges
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_file

BYTES_PER_POINT = 11
"""Of a coloured point, without normals."""
_NORMAL_SCALE = 127
_GREY = 166


def encode(points: SurfacePoints) -> dict[str, np.ndarray]:
    """One instance as a store keeps it: "points" uint16 [P, 3], "distance" float16 [P], "normals" int8 [S, 3] of the
    points on the surface, and "color" uint8 [P, 3] where there is colour."""
    normals = points.normals[points.kind == ON_SURFACE]
    arrays = {
        "points": to_lattice(points.points),
        "distance": points.distance.astype(np.float16),
        "normals": np.round(np.nan_to_num(normals) * _NORMAL_SCALE).astype(np.int8),
    }
    if points.color is not None:
        arrays["color"] = np.round(points.color * 255).astype(np.uint8)
    return arrays


def decode_normals(normals: np.ndarray) -> np.ndarray:
    """int8 [..., 3] to float32 unit vectors [..., 3]."""
    vectors = normals.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(1e-6))


def write_part(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write one instance, whole or not at all.

    Raises:
        MNIFError: the disk is full.
    """
    with atomic_file(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]


def read_part(path: Path) -> dict[str, np.ndarray] | None:
    """What `write_part` wrote; None where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def read_facts(path: Path) -> tuple[list[int], bool]:
    """The numbers "facts" of a part (empty where there are none, or it is damaged), and whether it has colours."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["facts"].tolist() if "facts" in file.files else [], "color" in file.files
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return [], True


def pack_parts(
    parts: dict[str, Path], folder: Path, store: Path, counts: PointCounts, has_color: bool
) -> dict[str, Any]:
    """Pack instances, by name, each a file of `write_part`, into the arrays of a store; many of them shard by shard.

    Args:
        parts: files by name.
        folder: where the arrays go: an empty folder, which is to become the store.
        store: where the store will be. Shards that are finished wait beside it, also for another run.
        counts: points of each.
        has_color: whether colours are known.

    Returns:
        what the manifest says of shards.

    Raises:
        MNIFError: a file is missing or damaged, or the disk cannot hold the store.
    """
    row = BYTES_PER_POINT * counts.total + 3 * counts.surface
    require_space(folder, len(parts) * row, f"{len(parts)} objects")
    names, ranges = list(parts), shard_ranges(len(parts), row)
    if len(ranges) == 1:
        _append(list(parts.values()), folder, counts, has_color)
        return {}
    some = [{name: parts[name] for name in names[each.start : each.stop]} for each in ranges]
    keys = [files_fingerprint(((name, path.stat()) for name, path in own.items()), counts, has_color) for own in some]

    def pack(number: int, place: Path) -> dict[str, Any]:
        _append(list(some[number].values()), place, counts, has_color)
        return {"names": list(some[number])}

    pack_shards(store, keys, pack)
    move_shards(store, len(ranges), folder)
    return {"shards": [len(each) for each in ranges]}


def _append(parts: Sequence[Path], folder: Path, counts: PointCounts, has_color: bool) -> None:
    files = {
        name: GrowingArray(folder / f"{name}.array", shape, dtype) for name, shape, dtype in rows(counts, has_color)
    }
    try:
        for path in parts:
            arrays = read_part(path)
            if arrays is not None and has_color:  # voxels among coloured meshes
                arrays.setdefault("color", np.full((counts.total, 3), _GREY, np.uint8))
            if arrays is None or any(name not in arrays for name in files):
                path.unlink(missing_ok=True)
                raise MNIFError(f"{path}: is damaged and was removed; run the same command again.")
            for name, file in files.items():
                file.append(arrays[name][None])
    finally:
        for file in files.values():
            file.close()


def rows(counts: PointCounts, has_color: bool) -> list[tuple[str, tuple[int, ...], type]]:
    """Name, shape and type of a row of each array of a store."""
    found: list[tuple[str, tuple[int, ...], type]] = [
        ("points", (counts.total, 3), np.uint16),
        ("distance", (counts.total,), np.float16),
        ("normals", (counts.surface, 3), np.int8),
    ]
    return [*found, ("color", (counts.total, 3), np.uint8)] if has_color else found


def parts_folder(place: Path, split: str) -> Path:
    """Where the instances of a split lie, each a file, until they are packed."""
    return place / f".{split}.parts"


def remove_parts(folder: Path) -> None:
    """Remove the files of single instances, which a store holds now."""
    shutil.rmtree(folder, ignore_errors=True)
