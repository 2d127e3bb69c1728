"""Colours of .ply and binary .stl files that trimesh reads wrongly, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np

_NAMES = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))


def ply_colors(mesh: Any) -> np.ndarray | None:
    """Colours [F, 3, 3] in [0, 1] at the corners of a trimesh mesh that was a .ply, None where it has none.

    Floats above 1 count from 0 to 255, whole numbers above 255 to the largest of 16 or 32 bits.
    """
    raw = (getattr(mesh, "metadata", None) or {}).get("_ply_raw", {})
    for element, count in (("vertex", len(mesh.vertices)), ("face", len(mesh.faces))):
        data = raw.get(element, {}).get("data")
        # A binary file's data is a structured array, a text file's a dictionary.
        fields = set(data if isinstance(data, dict) else getattr(getattr(data, "dtype", None), "names", None) or ())
        for names in _NAMES:
            if not fields.issuperset(names):
                continue
            stored = np.stack([np.asarray(data[name]).reshape(-1) for name in names], axis=1)
            if len(stored) != count:  # polygons that were cut into triangles
                return None
            values = np.nan_to_num(stored.astype(np.float64))
            values = np.clip(values / _largest(stored, values), 0.0, 1.0)
            return values[mesh.faces] if element == "vertex" else np.repeat(values[:, None], 3, axis=1)
    return None


def _largest(stored: np.ndarray, values: np.ndarray) -> float:
    top = float(values.max(initial=0.0))
    if stored.dtype.kind == "f":
        return 1.0 if top <= 1.0 else 255.0
    return 255.0 if top <= 255 else 65535.0 if top <= 65535 else float(2**32 - 1)


def stl_colors(mesh: Any, head: bytes) -> np.ndarray | None:
    """Colours [F, 3, 3] in [0, 1] of a binary .stl, None where it has none.

    Args:
        mesh: as trimesh read it.
        head: the file's first 80 bytes. With `COLOR=` it is of Materialise Magics (red in the lowest bits, the whole
            object's colour where the highest bit is set), else of VisCAM (blue in the lowest, where it is set).
    """
    bits = mesh.face_attributes.get("stl") if hasattr(mesh, "face_attributes") else None
    if bits is None or len(bits) != len(mesh.faces):
        return None
    bits = np.asarray(bits).reshape(-1).astype(np.int64)
    parts = np.stack([bits & 31, bits >> 5 & 31, bits >> 10 & 31], axis=1) / 31.0
    marked = (bits & 0x8000) != 0
    place = head.find(b"COLOR=")
    if place >= 0 and len(head) >= place + 10:
        whole = np.frombuffer(head[place + 6 : place + 9], np.uint8) / 255.0
        colors = np.where(marked[:, None], whole, parts)
    elif marked.all():
        colors = parts[:, ::-1]
    else:
        return None
    return np.repeat(colors[:, None], 3, axis=1)
