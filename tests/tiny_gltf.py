"""Small glTF files made by hand, for tests of their reader."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image

RED, GREEN = (220, 20, 20), (20, 200, 20)
BOX = trimesh.creation.box((1, 1, 1))
BOX.unmerge_vertices()
UV = np.tile(np.float32([[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]), (12, 1))
TYPES = {"f4": 5126, "u4": 5125, "u2": 5123, "i2": 5122, "u1": 5121, "i1": 5120}


def png(color: tuple[int, ...] | np.ndarray, kind: str = "PNG") -> bytes:
    pixels = np.asarray(color, np.uint8)
    out = io.BytesIO()
    Image.fromarray(np.broadcast_to(pixels, (4, 4, len(pixels))) if pixels.ndim == 1 else pixels).save(out, kind)
    return out.getvalue()


class Gltf:
    """A small glTF file, made by hand."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}
        self.blob = b""

    def add(self, kind: str, **entry: Any) -> int:
        self.tree.setdefault(kind, []).append(entry)
        return len(self.tree[kind]) - 1

    def view(self, content: bytes, **more: Any) -> int:
        self.blob += b"\0" * (-len(self.blob) % 4)
        self.blob += content
        return self.add(
            "bufferViews", buffer=0, byteOffset=len(self.blob) - len(content), byteLength=len(content), **more
        )

    def array(self, values: np.ndarray, normalized: bool = False, **more: Any) -> int:
        values = np.asarray(values)
        width = values.shape[1] if values.ndim == 2 else 1
        kind = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}[width]
        number = TYPES[values.dtype.str[1:]]
        padded = values.astype(values.dtype.newbyteorder("<"))
        size = padded.dtype.itemsize * width
        stride = {} if size % 4 == 0 else {"byteStride": size + -size % 4}
        content = (
            b"".join(row.tobytes().ljust(size + -size % 4, b"\0") for row in padded) if stride else padded.tobytes()
        )
        more |= {"normalized": True} if normalized else {}
        view = self.view(content, **stride)
        return self.add("accessors", bufferView=view, componentType=number, count=len(values), type=kind, **more)

    def box(self, material: dict[str, Any] | None = None, vertices: Any = None, **attributes: int) -> int:
        points = np.asarray(BOX.vertices if vertices is None else vertices, np.float32)
        named = {"POSITION": self.array(points), **attributes}
        primitive: dict[str, Any] = {"attributes": named}
        if material is not None:
            primitive["material"] = self.add("materials", **material)
        return self.add("meshes", primitives=[primitive])

    def node(self, root: bool = True, **entry: Any) -> int:
        index = self.add("nodes", **entry)
        if root:
            self.tree["scenes"][0]["nodes"].append(index)
        return index

    def texture(self, content: bytes, **more: Any) -> dict[str, Any]:
        source = self.add("images", bufferView=self.view(content), mimeType="image/png")
        return {"index": self.add("textures", source=source), **more}

    def write(self, path: Path) -> Path:
        self.tree["buffers"] = [{"byteLength": len(self.blob)}]
        text = json.dumps(self.tree).encode()
        text += b" " * (-len(text) % 4)
        blob = self.blob + b"\0" * (-len(self.blob) % 4)
        head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(blob))
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
        path.write_bytes(head + chunks)
        return path
