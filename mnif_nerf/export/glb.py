"""A GLB writer whose colours look the same in every conforming viewer, as vertex colours or as a picture.

trimesh's own writer keeps 8-bit vertex colours, too coarse for dark paint in linear light, and names no material, for
which viewers assume full metal and draw the object nearly black.
"""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import trimesh

_NEUTRAL = (0.5, 0.54, 0.6)  # linear light: the grey that pictures of solids have, for meshes without colours
_FLOAT, _UINT32, _VERTICES, _INDICES = 5126, 5125, 34962, 34963  # glTF's numbers of component types and targets
# Bilinear, with mipmaps, never repeating: what a baked atlas is padded for.
_SAMPLER = {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}


def linear_from_srgb(values: np.ndarray) -> np.ndarray:
    """Decode sRGB values in [0, 1] to linear light (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def png_of(mesh: trimesh.Trimesh) -> bytes:
    """The base-colour picture of a textured mesh as PNG."""
    buffer = io.BytesIO()
    mesh.visual.material.baseColorTexture.save(buffer, "png")
    return buffer.getvalue()


def unit_normals(mesh: trimesh.Trimesh) -> np.ndarray:
    """Vertex normals float32 `[V, 3]` of unit length, without exception."""
    normals = np.array(mesh.vertex_normals, dtype=np.float32)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    # A vertex whose triangles cancel has no normal, but glTF wants unit length: up is as good as any.
    return np.where(lengths > 1e-6, normals / np.maximum(lengths, 1e-6), np.float32([0, 1, 0]))


class _Buffer:
    """The one binary buffer of a GLB file, with the views and accessors into it."""

    def __init__(self) -> None:
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []
        self.blob = b""

    def add_view(self, content: bytes, **view: Any) -> int:
        """Append bytes, aligned to four; returns the number of their view."""
        self.blob += b"\0" * (-len(self.blob) % 4)
        self.views.append({"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(content), **view})
        self.blob += content
        return len(self.views) - 1

    def add(self, array: np.ndarray, target: int, **accessor: Any) -> int:
        """Append an array; returns the number of its accessor."""
        view = self.add_view(np.ascontiguousarray(array).tobytes(), target=target)
        self.accessors.append({"bufferView": view, "count": len(array), **accessor})
        return len(self.accessors) - 1


def glb_bytes(mesh: trimesh.Trimesh) -> bytes:
    """One mesh (y up) as binary glTF 2.0 with normals, float colours or a picture, and a rough, non-metal material."""
    buffer = _Buffer()
    positions = np.asarray(mesh.vertices, dtype=np.float32)
    bounds = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    floats = {"target": _VERTICES, "componentType": _FLOAT}
    attributes = {
        "POSITION": buffer.add(positions, type="VEC3", **floats, **bounds),
        "NORMAL": buffer.add(unit_normals(mesh), type="VEC3", **floats),
    }
    kind = mesh.visual.kind
    if kind == "vertex":
        srgb = np.asarray(mesh.visual.vertex_colors[:, :3]) / 255.0
        attributes["COLOR_0"] = buffer.add(linear_from_srgb(srgb).astype(np.float32), type="VEC3", **floats)
    elif kind == "texture":
        # trimesh counts v upwards from the bottom of the picture, glTF downwards from its top.
        uv = np.asarray(mesh.visual.uv, dtype=np.float32) * np.float32([1, -1]) + np.float32([0, 1])
        attributes["TEXCOORD_0"] = buffer.add(uv, type="VEC2", **floats)
    index = np.asarray(mesh.faces, dtype=np.uint32).reshape(-1)
    indices = buffer.add(index, _INDICES, componentType=_UINT32, type="SCALAR")
    primitive = {"attributes": attributes, "indices": indices, "material": 0, "mode": 4}
    tree = {
        "asset": {"version": "2.0", "generator": "mnif_nerf"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"name": "object", "primitives": [primitive], "extras": _json_ready(mesh.metadata)}],
        **_material(mesh, kind, buffer),
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.blob) + -len(buffer.blob) % 4}],
    }
    return _glb_container(json.dumps(tree).encode(), buffer.blob)


def _material(mesh: trimesh.Trimesh, kind: str | None, buffer: _Buffer) -> dict[str, Any]:
    """The material, and the picture where there is one."""
    surface: dict[str, Any] = {"metallicFactor": 0, "roughnessFactor": 1}
    if kind != "texture":
        surface["baseColorFactor"] = [1, 1, 1, 1] if kind == "vertex" else [*_NEUTRAL, 1]
        return {"materials": [{"name": "vertex colours" if kind else "neutral", "pbrMetallicRoughness": surface}]}
    surface["baseColorTexture"] = {"index": 0}
    picture = {"bufferView": buffer.add_view(png_of(mesh)), "mimeType": "image/png", "name": "base colour"}
    return {
        "materials": [{"name": "baked", "pbrMetallicRoughness": surface}],
        "textures": [{"sampler": 0, "source": 0}],
        "samplers": [dict(_SAMPLER)],
        "images": [picture],
    }


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


def _json_ready(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if isinstance(value, (str, int, float, bool))}
