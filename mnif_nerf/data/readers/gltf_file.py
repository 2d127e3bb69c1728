"""The container of a glTF 2.0 file: its tree, its buffers, and its accessors as arrays, whatever compresses them."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

from mnif_nerf.data.readers.mesh_surroundings import Surroundings
from mnif_nerf.errors import MNIFError, first_line, require

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4", 5130: "<f8"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
DRACO = "KHR_draco_mesh_compression"
_MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
_MOST_EXPANSION = 256  # bytes out of one that meshopt's codecs can make, at most
_READ = (
    *(DRACO, *_MESHOPT, "KHR_mesh_quantization", "KHR_texture_transform", "KHR_texture_basisu", "KHR_node_visibility"),
    *("EXT_texture_webp", "EXT_texture_avif", "MSFT_texture_dds", "EXT_mesh_gpu_instancing"),
)
_NO_MATTER = (
    *("KHR_materials_", "KHR_lights_", "EXT_lights_", "KHR_animation", "KHR_xmp", "KHR_audio", "KHR_physics"),
    *("KHR_interactivity", "KHR_node_", "EXT_mesh_features", "EXT_structural", "EXT_instance_features", "VRM"),
)


class GltfFile:
    """A .glb or .gltf file.

    Args:
        path: the file.
        beside: finds the files that it names.

    Attributes:
        tree: the JSON.

    Raises:
        MNIFError: glTF 1, or a required extension that is not read. What else is wrong raises ValueError, KeyError,
            IndexError or TypeError, here and in the methods.
    """

    def __init__(self, path: Path, beside: Surroundings) -> None:
        self.path, self.beside = path, beside
        content = path.read_bytes()
        self._binary: bytes | None = None
        if content[:4] == b"glTF":
            content = self._chunks(content)
        try:
            self.tree: dict[str, Any] = json.loads(content.decode("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"no glTF: neither binary nor JSON ({first_line(error)})") from None
        if not isinstance(self.tree, dict) or "asset" not in self.tree:
            raise ValueError("no glTF: it has no asset")
        self._buffers: dict[int, bytes] = {}
        self._views: dict[int, tuple[bytes, int]] = {}
        self._draco: dict[int, Any] = {}
        version = str(self.tree["asset"].get("version", ""))
        if not version.startswith("2"):
            raise self.fault(f"glTF {version or 'without a version'}, of which only version 2 is read; convert it")
        for name in self.tree.get("extensionsRequired", ()):
            if name not in _READ and not str(name).startswith(_NO_MATTER):
                raise self.fault(f"needs the extension {str(name)[:60]}, which is not read; export it without")

    def fault(self, words: str) -> MNIFError:
        """A sentence on this file."""
        return MNIFError(f"{self.path}: {words}.")

    def _chunks(self, content: bytes) -> bytes:
        """The JSON of a .glb; its binary chunk is kept."""
        (version,) = struct.unpack_from("<I", content, 4)
        if version != 2:
            raise self.fault(f"glTF {version}, of which only version 2 is read; convert it")
        place, found = 12, None
        while place + 8 <= len(content):
            length, kind = struct.unpack_from("<I4s", content, place)
            chunk = content[place + 8 : place + 8 + length]
            if len(chunk) < length:
                raise ValueError("cut off")
            if kind == b"JSON" and found is None:
                found = chunk
            elif kind == b"BIN\0" and self._binary is None:
                self._binary = chunk
            place += 8 + length
        if found is None:
            raise ValueError("no JSON in it")
        return found

    def entry(self, kind: str, index: Any) -> dict[str, Any]:
        """Entry `index` of one of the tree's lists."""
        entries = self.tree.get(kind, [])
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(entries):
            raise ValueError(f"{kind} {str(index)[:20]} is not there")
        found = entries[index]
        if not isinstance(found, dict):
            raise ValueError(f"{kind} {index} is no object")
        return found

    def uri(self, address: str, what: str) -> bytes:
        """The content of a data: address or of a file.

        Raises:
            MNIFError: no such file.
        """
        if address.startswith("data:"):
            head, _, body = address.partition(",")
            return base64.b64decode(body) if head.endswith(";base64") else unquote_to_bytes(body)
        found = self.beside.find(address)
        if found is None:
            from urllib.parse import unquote

            raise self.fault(
                f"{what} {unquote(address)[:120]} is missing; put it beside the file, or export it as .glb"
            )
        return found.read_bytes()

    def _buffer(self, index: int) -> bytes:
        if index not in self._buffers:
            entry = self.entry("buffers", index)
            if "uri" in entry:
                self._buffers[index] = self.uri(str(entry["uri"]), "its file")
            elif index == 0 and self._binary is not None:
                self._buffers[index] = self._binary
            else:
                raise ValueError(f"buffer {index} has no content")
        return self._buffers[index]

    def view(self, index: Any) -> tuple[bytes, int]:
        """Bytes of a buffer view and their stride, 0 where items lie side by side.

        Raises:
            MNIFError: compressed, and the library for it is not installed.
        """
        if index not in self._views:
            entry = self.entry("bufferViews", index)
            packed = [name for name in _MESHOPT if name in entry.get("extensions", {})]
            if packed:
                self._views[index] = self._unpacked(entry["extensions"][packed[0]]), int(entry.get("byteStride", 0))
            else:
                self._views[index] = self._part(entry), int(entry.get("byteStride", 0))
        return self._views[index]

    def _part(self, entry: dict[str, Any]) -> bytes:
        start, length = int(entry.get("byteOffset", 0)), int(entry["byteLength"])
        content = self._buffer(entry["buffer"])
        if start < 0 or length < 0 or start + length > len(content):
            raise ValueError("a buffer ends too early")
        return content[start : start + length]

    def _unpacked(self, entry: dict[str, Any]) -> bytes:
        """What meshopt packed."""
        packed, count, stride = self._part(entry), int(entry["count"]), int(entry["byteStride"])
        mode, kind = entry.get("mode"), entry.get("filter", "NONE")
        if count < 0 or not 0 < stride <= 256 or count * stride > _MOST_EXPANSION * len(packed) + 1024:
            raise ValueError("a compressed buffer that cannot be so large")
        codec = self._library("meshoptimizer", "meshopt", "meshopt")
        try:
            if mode == "ATTRIBUTES":
                found = codec.decode_vertex_buffer(count, stride, packed, np.dtype((np.void, stride))).tobytes()
            else:
                unpack = codec.decode_index_buffer if mode == "TRIANGLES" else codec.decode_index_sequence
                found = unpack(count, 4, packed).astype(f"<u{stride}").tobytes()
        except Exception:  # the library raises what it likes
            raise self.fault(
                "its geometry is compressed with meshopt and cannot be decoded; export it without compression"
            ) from None
        if kind == "EXPONENTIAL":
            values = np.frombuffer(found, "<i4")
            found = np.ldexp((values << 8) >> 8, values >> 24).astype("<f4").tobytes()
        return found

    def _library(self, module: str, name: str, extra: str) -> Any:
        try:
            return require(module, extra)
        except MNIFError:
            raise self.fault(
                f"compressed with {name}; pip install 'mnif_nerf[{extra}]', or export it without compression"
            ) from None

    def accessor(self, index: Any, normalised: bool | None = None) -> np.ndarray:
        """Values of an accessor, [count, width]: whole numbers as they are, or floats in [0, 1] and [-1, 1] where they
        are normalised.

        Args:
            index: its number.
            normalised: whether whole numbers are; None: as the file says.
        """
        entry = self.entry("accessors", index)
        dtype, width, count = np.dtype(COMPONENTS[entry["componentType"]]), _WIDTHS[entry["type"]], int(entry["count"])
        if "bufferView" in entry:
            values = self._rows(entry["bufferView"], int(entry.get("byteOffset", 0)), dtype, width, count)
        else:
            if not 0 <= count <= self._size():
                raise ValueError("an accessor larger than its file")
            values = np.zeros((count, width), dtype)
        if "sparse" in entry:
            values = self._sparse(values, entry["sparse"], dtype, width)
        return _floats(values, bool(entry.get("normalized")) if normalised is None else normalised)

    def _sparse(self, values: np.ndarray, entry: dict[str, Any], dtype: np.dtype[Any], width: int) -> np.ndarray:
        count, where = int(entry["count"]), entry["indices"]
        numbers = np.dtype(COMPONENTS[where["componentType"]])
        rows = self._rows(where["bufferView"], int(where.get("byteOffset", 0)), numbers, 1, count)[:, 0]
        own = entry["values"]
        values = values.copy()
        values[rows] = self._rows(own["bufferView"], int(own.get("byteOffset", 0)), dtype, width, count)
        return values

    def _rows(self, view: Any, start: int, dtype: np.dtype[Any], width: int, count: int) -> np.ndarray:
        content, stride = self.view(view)
        size = dtype.itemsize * width
        stride = stride or size
        if count < 0 or start < 0 or stride < size or (count and start + (count - 1) * stride + size > len(content)):
            raise ValueError("an accessor reaches beyond its buffer")
        return np.ndarray((count, width), dtype, content, start, (stride, dtype.itemsize))

    def _size(self) -> int:
        """Bytes of all buffers, of those that are there."""
        return sum(len(self._buffer(number)) for number in range(len(self.tree.get("buffers", ()))))

    def attributes(self, primitive: dict[str, Any]) -> dict[str, np.ndarray]:
        """The attributes of a primitive and its "indices", where it has any; colours, weights and texture coordinates
        in floats.

        Raises:
            MNIFError: compressed, and the library for it is not installed.
        """
        named = dict(primitive.get("attributes", {}))
        if "indices" in primitive:
            named["indices"] = primitive["indices"]
        wanted = [name for name in named if name in ("POSITION", "indices") or name.startswith(_USED)]
        draco = primitive.get("extensions", {}).get(DRACO)
        unpacked = self._decoded(draco, named) if draco is not None else {}
        found = {}
        for name in wanted:
            whole = True if name.startswith(("COLOR_", "WEIGHTS_")) else None
            if name.startswith("TEXCOORD_") and "KHR_mesh_quantization" not in self.tree.get("extensionsUsed", ()):
                whole = True
            if name in unpacked:
                entry = self.entry("accessors", named[name])
                found[name] = _floats(unpacked[name], bool(entry.get("normalized")) if whole is None else whole)
            else:
                found[name] = self.accessor(named[name], False if name in ("indices", "JOINTS_0") else whole)
        return found

    def _decoded(self, entry: dict[str, Any], named: dict[str, Any]) -> dict[str, np.ndarray]:
        """What Draco packed, as stored."""
        library = self._library("DracoPy", "Draco", "compressed")
        number = entry["bufferView"]
        if number not in self._draco:
            try:
                mesh = library.decode(self.view(number)[0])
                self._draco[number] = (mesh.attributes, mesh.faces)
            except Exception:  # the library raises what it likes
                raise self.fault(
                    "its geometry is compressed with Draco and cannot be decoded; export it without compression"
                ) from None
        attributes, faces = self._draco[number]
        by_id = {item["unique_id"]: np.asarray(item["data"]) for item in attributes}
        found = {name: by_id[number] for name, number in entry["attributes"].items() if number in by_id}
        if "indices" in named:
            found["indices"] = np.asarray(faces).reshape(-1, 1)
        return {name: value if value.ndim == 2 else value[:, None] for name, value in found.items()}


_USED = ("COLOR_0", "TEXCOORD_", "JOINTS_", "WEIGHTS_")


def _floats(values: np.ndarray, normalised: bool) -> np.ndarray:
    """Stored values; whole numbers over the largest of their type where they are normalised."""
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    if not normalised:
        return values.astype(np.int64)
    return np.maximum(values / float(np.iinfo(values.dtype).max), -1.0)
