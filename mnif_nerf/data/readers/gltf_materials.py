"""Materials of glTF: the colour picture, its factor, where on the picture, and what is see-through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mnif_nerf.data.readers.gltf_file import GltfFile
from mnif_nerf.data.readers.mesh_notes import LACKS_PICTURE

_SPEC_GLOSS = "KHR_materials_pbrSpecularGlossiness"
_TRANSFORM = "KHR_texture_transform"
_WRAPS: dict[Any, str] = {33071: "clamp", 33648: "mirror", 10497: "repeat"}
_OTHER_SOURCES = ("EXT_texture_webp", "EXT_texture_avif", "MSFT_texture_dds")
_BASISU = "KHR_texture_basisu"
_KTX2 = "its pictures are KTX2, which is not read; export it with pictures in PNG or JPEG"
_BLACK = 0.02  # linear light below which a base colour is none, and what glows is the colour


@dataclass(frozen=True)
class GltfMaterial:
    """What of a material is used.

    Attributes:
        factor: linear light and alpha [4].
        picture: uint8 [h, w, 3 or 4], or None.
        wrap: how the picture goes on beyond its edges, along u and v.
        coordinates: number of the set of texture coordinates.
        transform: [2, 3], from these to the picture's.
        cutoff: alpha below which it is not there; 0: blended; -1: alpha counts nothing.
    """

    factor: np.ndarray
    picture: np.ndarray | None = None
    wrap: tuple[str, str] = ("repeat", "repeat")
    coordinates: int = 0
    transform: np.ndarray | None = None
    cutoff: float = -1.0


def read_material(file: GltfFile, index: Any) -> GltfMaterial:
    """Read a material.

    Raises:
        MNIFError: its picture is KTX2.
    """
    entry = file.entry("materials", index)
    mode = entry.get("alphaMode", "OPAQUE")
    cutoff = {"MASK": max(float(entry.get("alphaCutoff", 0.5)), 1e-3), "BLEND": 0.0}.get(mode, -1.0)
    base, factor = _base(entry)
    glow = np.clip(np.array(entry.get("emissiveFactor", (0, 0, 0)), np.float64).reshape(3), 0, 1)
    if factor[:3].max() < _BLACK and glow.max() > _BLACK:
        base, factor = entry.get("emissiveTexture"), np.append(glow, factor[3])
    elif base is None and entry.get("emissiveTexture") is not None and glow.max() > _BLACK and _is_default(entry):
        base, factor = entry["emissiveTexture"], np.append(glow, factor[3])
    if base is None:
        return GltfMaterial(factor, cutoff=cutoff)
    transform = base.get("extensions", {}).get(_TRANSFORM, {})
    return GltfMaterial(
        factor,
        *_picture(file, base, alpha=cutoff >= 0),
        coordinates=int(transform.get("texCoord", base.get("texCoord", 0))),
        transform=_matrix(transform) if transform else None,
        cutoff=cutoff,
    )


def _is_default(entry: dict[str, Any]) -> bool:
    return "pbrMetallicRoughness" not in entry and not entry.get("extensions")


def _base(entry: dict[str, Any]) -> tuple[dict[str, Any] | None, np.ndarray]:
    """The texture of the base colour, or None, and its factor in linear light and alpha."""
    usual, other = entry.get("pbrMetallicRoughness"), entry.get("extensions", {}).get(_SPEC_GLOSS)
    if other is None or (usual is not None and usual.get("baseColorTexture") is not None):
        usual = usual or {}
        return usual.get("baseColorTexture"), _four(usual.get("baseColorFactor", (1, 1, 1, 1)))
    factor = _four(other.get("diffuseFactor", (1, 1, 1, 1)))
    shine = np.array(other.get("specularFactor", (1, 1, 1)), np.float64).reshape(3)
    if "diffuseTexture" not in other and factor[:3].max() < 0.05 and shine.max() > 0.2:
        factor[:3] = shine  # a metal: all its colour is in what it mirrors
    return other.get("diffuseTexture"), factor


def _four(values: Any) -> np.ndarray:
    found = np.array(values, np.float64).reshape(4)
    if not np.isfinite(found).all():
        raise ValueError("a colour that is not finite")
    return np.clip(found, 0.0, 1.0)


def _matrix(entry: dict[str, Any]) -> np.ndarray:
    """[2, 3]: scaled, then turned counter-clockwise as seen with v downwards, then moved."""
    angle = float(entry.get("rotation", 0.0))
    cos, sin = np.cos(angle), np.sin(angle)
    scale = np.array(entry.get("scale", (1, 1)), np.float64).reshape(2)
    offset = np.array(entry.get("offset", (0, 0)), np.float64).reshape(2)
    return np.column_stack([np.array([[cos, sin], [-sin, cos]]) * scale, offset])


def _picture(file: GltfFile, info: dict[str, Any], alpha: bool) -> tuple[np.ndarray | None, tuple[str, str]]:
    """The picture of a texture and how it is wrapped.

    Raises:
        MNIFError: KTX2.
    """
    texture = file.entry("textures", info.get("index"))
    sampler = file.entry("samplers", texture["sampler"]) if "sampler" in texture else {}
    wrap = (_WRAPS.get(sampler.get("wrapS"), "repeat"), _WRAPS.get(sampler.get("wrapT"), "repeat"))
    others = texture.get("extensions", {})
    source = texture.get("source")
    for name in _OTHER_SOURCES:
        if source is None and name in others:
            source = others[name].get("source")
    if source is None and _BASISU in others:
        raise file.fault(_KTX2)
    if source is None:
        file.beside.note(LACKS_PICTURE, "a texture without a picture")
        return None, wrap
    image = file.entry("images", source)
    name = str(image.get("name") or f"picture {source}")
    if image.get("mimeType") == "image/ktx2" or str(image.get("uri", "")).lower().endswith(".ktx2"):
        raise file.fault(_KTX2)
    if "bufferView" in image:
        content = file.view(image["bufferView"])[0]
    elif str(image.get("uri", "")).startswith("data:"):
        content = file.uri(image["uri"], name)
    elif "uri" in image:
        return file.beside.picture(str(image["uri"]), alpha), wrap
    else:
        file.beside.note(LACKS_PICTURE, f"{name}: missing")
        return None, wrap
    if content[:7] == b"\xabKTX 20":
        raise file.fault(_KTX2)
    return file.beside.embedded(source, content, name, alpha), wrap
