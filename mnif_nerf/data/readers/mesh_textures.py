"""Which pictures of colours a mesh file names that are not there; its reader passes over them in silence."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote


def missing_texture(path: Path) -> Path | None:
    """The first picture or material file that a .glb, .gltf or .obj needs for its colours and that is missing.

    None where all is there, and where the file cannot be read (its reader says so).
    """
    try:
        suffix = path.suffix.lower()
        if suffix == ".obj":
            return _missing_of_obj(path)
        if suffix in (".glb", ".gltf"):
            return _missing_of_gltf(path)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
        return None
    return None


def _missing_of_gltf(path: Path) -> Path | None:
    content = path.read_bytes()
    if content[:4] == b"glTF":
        (length,) = struct.unpack("<I", content[12:16])
        content = content[20 : 20 + length]
    document: dict[str, Any] = json.loads(content)
    for material in document.get("materials", ()):
        texture = material.get("pbrMetallicRoughness", {}).get("baseColorTexture")
        if texture is None:
            continue
        source = document["textures"][texture["index"]].get("source")
        uri = "data:" if source is None else document["images"][source].get("uri", "data:")
        if not uri.startswith("data:") and not (path.parent / unquote(uri)).is_file():
            return path.parent / unquote(uri)
    return None


def _missing_of_obj(path: Path) -> Path | None:
    libraries = [line.split(maxsplit=1)[1] for line in _lines(path, "mtllib")]
    used = bool(_lines(path, "usemtl"))
    for library in libraries if used else ():
        file = path.parent / library.strip()
        if not file.is_file():
            return file
        for line in _lines(file, "map_kd"):
            picture = path.parent / line.split()[-1].replace("\\", "/")
            named = path.parent / line.split(maxsplit=1)[1].strip().replace("\\", "/")  # a name with spaces
            if not picture.is_file() and not named.is_file():
                return picture
    return None


def _lines(path: Path, word: str) -> list[str]:
    """Lines that begin with a word and say more."""
    with open(path, encoding="utf-8", errors="replace") as file:
        found = (line.strip() for line in file if line.lstrip()[:6].lower().startswith(word[:6]))
        return [line for line in found if line.split()[0].lower() == word and len(line.split()) > 1]
