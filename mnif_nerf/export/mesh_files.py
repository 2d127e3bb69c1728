"""Mesh files: axes, formats, and a GLB writer whose colours look the same in every conforming viewer.

All files are written with y up and +z forward, as glTF asks: (x, y, z) of this library becomes (y, z, x), a
rotation.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_file

MESH_FORMATS = ("glb", "ply", "obj", "stl")
_NEUTRAL = (0.5, 0.54, 0.6)  # linear light: the grey that pictures of solids have, for meshes without colours


class ExportMesh(trimesh.Trimesh):
    """A `trimesh.Trimesh` whose `export` to a GLB, PLY, OBJ or STL path is `write_mesh`."""

    def export(self, file_obj: Any = None, file_type: str | None = None, **kwargs: Any) -> Any:
        """As `trimesh.Trimesh.export`; a path with one of `MESH_FORMATS` goes through `write_mesh`."""
        if isinstance(file_obj, (str, Path)) and not kwargs:
            path = Path(file_obj)
            if file_type in (None, path.suffix[1:].lower()) and path.suffix[1:].lower() in MESH_FORMATS:
                return write_mesh(self, path)
        return super().export(file_obj, file_type, **kwargs)


def to_export_axes(mesh: trimesh.Trimesh) -> ExportMesh:
    """The mesh turned from the library's axes (z up, +x forward) to glTF's (y up, +z forward).

    A mesh already turned (`metadata["axes"] == "y-up"`) comes back as it is, so turning twice does no harm.
    """
    if mesh.metadata.get("axes") == "y-up":
        return mesh
    turned = ExportMesh(np.asarray(mesh.vertices)[:, [1, 2, 0]], np.asarray(mesh.faces).copy(), process=False)
    turned.metadata.update(mesh.metadata, axes="y-up")
    if mesh.visual.kind == "vertex":
        turned.visual = trimesh.visual.ColorVisuals(turned, vertex_colors=mesh.visual.vertex_colors.copy())
    return turned


def write_mesh(mesh: trimesh.Trimesh, path: Path | str) -> Path:
    """Write a mesh as .glb, .ply, .obj or .stl with y up and +z forward, atomically.

    Vertex colours go into GLB, PLY and OBJ; STL has none. In GLB they are linear (what glTF defines COLOR_0
    to be), so three.js, Blender and the like show the field's colours; PLY and OBJ keep the sRGB values.

    Args:
        mesh: in the library's axes, or in glTF's where `metadata["axes"]` says "y-up".
        path: the suffix chooses the format.

    Raises:
        MNIFError: an unknown suffix, an empty mesh, NaNs, or a folder that cannot be written.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in MESH_FORMATS:
        raise MNIFError(f"{path}: unknown mesh format {path.suffix!r}; use one of {', '.join(MESH_FORMATS)}.")
    if len(mesh.faces) == 0:
        raise MNIFError(f"{path}: the mesh has no triangles; lower the level or train for longer.")
    if not np.isfinite(mesh.vertices).all():
        raise MNIFError(f"{path}: the mesh has NaN or infinite vertices; export it again from a sound model.")
    turned = to_export_axes(mesh)
    if kind == "glb":
        content = _glb_bytes(turned)
    else:
        content = trimesh.Trimesh.export(turned, file_type=kind)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def linear_from_srgb(values: np.ndarray) -> np.ndarray:
    """Decode sRGB values in [0, 1] to linear light (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _glb_bytes(mesh: trimesh.Trimesh) -> bytes:
    """One mesh as binary glTF 2.0 with float colours and a rough, non-metal material.

    trimesh's own writer keeps 8-bit colours, too coarse for dark paint in linear light, and names no
    material, for which viewers assume full metal and draw the object nearly black.
    """
    index = np.asarray(mesh.faces, dtype=np.uint32).reshape(-1)
    attributes = {
        "POSITION": np.asarray(mesh.vertices, dtype=np.float32),
        "NORMAL": _unit_normals(mesh),
    }
    if mesh.visual.kind == "vertex":
        srgb = np.asarray(mesh.visual.vertex_colors[:, :3]) / 255.0
        attributes["COLOR_0"] = linear_from_srgb(srgb).astype(np.float32)
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    blobs: list[bytes] = []

    def add(array: np.ndarray, target: int, **accessor: Any) -> int:
        offset = sum(len(blob) for blob in blobs)
        blobs.append(np.ascontiguousarray(array).tobytes())
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(blobs[-1]), "target": target})
        accessors.append({"bufferView": len(views) - 1, "count": len(array), **accessor})
        return len(accessors) - 1

    numbers = {}
    for name, array in attributes.items():
        bounds = {"min": array.min(0).tolist(), "max": array.max(0).tolist()} if name == "POSITION" else {}
        numbers[name] = add(array, 34962, componentType=5126, type="VEC3", **bounds)
    indices = add(index, 34963, componentType=5125, type="SCALAR")
    primitive = {"attributes": numbers, "indices": indices, "material": 0, "mode": 4}
    base = [1, 1, 1, 1] if "COLOR_0" in attributes else [*_NEUTRAL, 1]
    material = {
        "name": "radiance" if "COLOR_0" in attributes else "neutral",
        "pbrMetallicRoughness": {"baseColorFactor": base, "metallicFactor": 0, "roughnessFactor": 1},
    }
    tree = {
        "asset": {"version": "2.0", "generator": "mnif_nerf"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"name": "object", "primitives": [primitive], "extras": _json_ready(mesh.metadata)}],
        "materials": [material],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": sum(len(blob) for blob in blobs)}],
    }
    return _glb_container(json.dumps(tree).encode(), b"".join(blobs))


def _glb_container(text: bytes, binary: bytes) -> bytes:
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    total = 12 + 8 + len(text) + 8 + len(binary)
    header = struct.pack("<4sII", b"glTF", 2, total)
    return b"".join(
        [
            header,
            struct.pack("<I4s", len(text), b"JSON"),
            text,
            struct.pack("<I4s", len(binary), b"BIN\0"),
            binary,
        ]
    )


def _unit_normals(mesh: trimesh.Trimesh) -> np.ndarray:
    normals = np.array(mesh.vertex_normals, dtype=np.float32)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    # A vertex whose triangles cancel has no normal, but glTF wants unit length: up is as good as any.
    return np.where(lengths > 1e-6, normals / np.maximum(lengths, 1e-6), np.float32([0, 1, 0]))


def _json_ready(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if isinstance(value, (str, int, float, bool))}
