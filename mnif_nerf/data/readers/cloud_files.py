"""Reading point clouds: .ply and .obj without faces, .npy, .npz, and text (.xyz, .txt, .pts, .csv)."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mnif_nerf.data.readers.cloud_tables import CloudTable, array_table, text_table
from mnif_nerf.data.readers.mesh_files import quiet_trimesh
from mnif_nerf.errors import MNIFError

CLOUD_SUFFIXES = (".xyz", ".txt", ".pts", ".csv", ".ply", ".obj", ".npy", ".npz", ".asc", ".tsv", ".xyzn", ".xyzrgb")
FEWEST = 10
"""Points below which there is no shape to speak of."""
_READ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    IndexError,
    NotImplementedError,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class PointCloud:
    """Points on a surface.

    Attributes:
        points: [N, 3]; float64 as read (georeferenced coordinates are large), float32 once in the scene box.
        normals: unit length, float32 [N, 3], that point outwards, or None.
        notes: sentences on what was left out of the file.
        colors: sRGB in [0, 1], float32 [N, 3], or None.
    """

    points: np.ndarray
    normals: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    colors: np.ndarray | None = None


def read_cloud(path: Path | str) -> PointCloud:
    """Read a point cloud with its normals, where the file has them.

    Arrays and texts are read as `cloud_tables` says: headings name the columns; what is left out becomes a note. Six
    columns without names are points and colours as often as normals: they count as normals where nine tenths have about
    unit length and some a negative part, else they are left out with a note.

    Raises:
        MNIFError: missing, unreadable or too few points, NaN or infinite ones, or another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise MNIFError(f"{path}: no such file.")
    suffix = path.suffix.lower()
    try:
        if suffix in (".npy", ".npz"):
            found = array_table(path)
        elif suffix in (".ply", ".obj"):
            table, colors = _mesh_table(path)
            found = CloudTable(table, True, colors)
        elif suffix in CLOUD_SUFFIXES:
            found = text_table(path)
        else:
            raise MNIFError(f"{path}: unknown kind of point cloud {suffix!r}; use one of {', '.join(CLOUD_SUFFIXES)}.")
    except MNIFError:
        raise
    except _READ_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise MNIFError(f"{path}: cannot be read as a point cloud ({reason}); write it again.") from None
    cloud = checked_cloud(found.table, path, named=found.named)
    cloud = replace(cloud, notes=(*cloud.notes, *found.notes))
    if found.colors is None:
        return cloud
    return replace(cloud, colors=_unit_colors(found.colors[np.isfinite(found.table[:, :3]).all(axis=1)]))


def checked_cloud(table: np.ndarray, name: object, named: bool = False) -> PointCloud:
    """A cloud from an array [N, 3], or [N, 6] with normals; points without finite numbers are left out.

    Args:
        table: the array; points keep float64.
        name: begins the sentences.
        named: whether the file calls the last three columns normals; else their lengths have to be about 1.

    Raises:
        MNIFError: another shape, only NaN or infinite points, or too few; the sentence begins with `name`.
    """
    table = np.asarray(table)
    if table.ndim != 2 or table.shape[1] not in (3, 6):
        raise MNIFError(
            f"{name}: an array of shape {list(table.shape)}; expected points [N, 3], or [N, 6] with normals."
        )
    table = table.astype(np.float64)
    finite = np.isfinite(table[:, :3]).all(axis=1)
    if len(table) and not finite.any():
        raise MNIFError(f"{name}: all {len(table)} points are NaN or infinite; write the cloud again.")
    if finite.mean() < 0.5:
        raise MNIFError(
            f"{name}: {int((~finite).sum())} of {len(table)} points are NaN or infinite; clean the cloud first."
        )
    table = table[finite]
    if len(table) < FEWEST:
        raise MNIFError(f"{name}: {len(table)} points; a fit needs {FEWEST} or more.")
    points = np.ascontiguousarray(table[:, :3])
    if table.shape[1] == 3:
        return PointCloud(points)
    length = np.linalg.norm(table[:, 3:], axis=1, keepdims=True)
    good = length > 1e-6 if named else np.abs(length - 1) <= 0.1
    colored = not named and bool((table[:, 3:] >= 0).all())  # normals of a shape point to all sides
    if not np.isfinite(length).all() or good.mean() < 0.9 or colored:
        why = "the normals are zero or not finite" if named else "the last three of six columns are no unit normals"
        return PointCloud(points, None, (f"{why}{'' if named else ' (colours?)'}: they were left out.",))
    return PointCloud(points, (table[:, 3:] / np.maximum(length, 1e-6)).astype(np.float32))


def _unit_colors(colors: np.ndarray) -> np.ndarray:
    """Colours [N, 3 or more] of bytes, or in [0, 1], as float32 [N, 3] in [0, 1]."""
    colors = np.asarray(colors)
    scale = 1.0 if colors.dtype.kind == "f" and np.nanmax(colors, initial=0.0) <= 1.0 else 255.0
    return np.clip(np.nan_to_num(colors[:, :3] / scale), 0.0, 1.0).astype(np.float32)


def _mesh_table(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    import trimesh

    try:
        with quiet_trimesh():
            loaded = trimesh.load(str(path), process=False)
    except Exception as error:  # every loader raises what it likes
        raise ValueError(str(error)) from None
    parts = list(loaded.geometry.values()) if isinstance(loaded, trimesh.Scene) else [loaded]
    points = [np.asarray(part.vertices) for part in parts if len(getattr(part, "vertices", ()))]
    if not points:
        raise ValueError("no points")
    raw = getattr(parts[0], "metadata", {}).get("_ply_raw", {}).get("vertex", {}).get("data")
    # trimesh drops a cloud's normals; a binary file's data is a structured array, a text file's a dictionary.
    fields = set(raw if isinstance(raw, dict) else getattr(getattr(raw, "dtype", None), "names", None) or ())
    if len(points) == 1 and {"nx", "ny", "nz"} <= fields:
        normals = np.stack([np.asarray(raw[axis], np.float64).reshape(-1) for axis in ("nx", "ny", "nz")], axis=1)
        return np.hstack([points[0], normals]), _own_colors(parts[0])
    return np.concatenate(points), _own_colors(parts[0]) if len(points) == 1 else None


def _own_colors(part: Any) -> np.ndarray | None:
    """Colours of the points of a trimesh cloud, where its file has any."""
    colors = np.asarray(getattr(part, "colors", None) if hasattr(part, "colors") else None)
    return colors if colors.ndim == 2 and len(colors) == len(part.vertices) else None
