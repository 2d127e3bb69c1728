"""Colours as sRGB: pictures whose numbers mean other colours (Adobe RGB, Display P3, CMYK of a press) are converted."""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Any

from PIL import ExifTags, Image, ImageCms

_PLAIN = {"RGB": "RGB", "RGBA": "RGBA", "RGBX": "RGB", "CMYK": "RGB", "L": "RGB", "LAB": "RGB", "YCbCr": "RGB"}
_UNCALIBRATED = 0xFFFF  # of EXIF's colour space: not sRGB
_ADOBE_PRIMARIES = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
_WITHOUT_CACHE = 0x0040  # several threads share a transform


def to_srgb(picture: Image.Image) -> Image.Image:
    """The picture in sRGB, by the profile that its file embeds; as it is where there is none, a damaged one, or one
    that says sRGB. Grey pictures stay grey, alpha stays as it is; deep grey (16 bits) is not converted."""
    profile = picture.info.get("icc_profile") or (_adobe_rgb() if _says_adobe_rgb(picture) else None)
    if not profile or not isinstance(profile, bytes) or _is_srgb(profile):
        return picture
    info = {name: value for name, value in picture.info.items() if name != "icc_profile"}
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if picture.mode == "PA" or "transparency" in info else "RGB")
        info.pop("transparency", None)
    if picture.mode == "LA":
        grey, alpha = picture.split()
        grey.info["icc_profile"] = profile
        converted = to_srgb(grey)
        found = Image.merge("LA", (converted, alpha)) if converted.mode == "L" else picture
    elif picture.mode in _PLAIN:
        transform = _transform(profile, picture.mode, _PLAIN[picture.mode])
        if transform is None:
            return picture
        found = ImageCms.applyTransform(picture, transform) or picture
        found = found.convert("L") if picture.mode == "L" else found
    else:
        return picture
    found.info.update(info)
    return found


def _says_adobe_rgb(picture: Image.Image) -> bool:
    """Whether a photograph without a profile says by its EXIF notes that it is in Adobe RGB, as cameras write it."""
    if picture.mode != "RGB" or "exif" not in picture.info:
        return False
    try:
        notes = picture.getexif()
        space = notes.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        return space == _UNCALIBRATED and str(notes.get_ifd(ExifTags.IFD.Interop).get(1, "")).startswith("R03")
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return False


@lru_cache(maxsize=1)
def _adobe_rgb() -> bytes:
    """A profile of Adobe RGB (1998): its primaries, adapted to D50, and a gamma of 563/256."""

    def fixed(*numbers: float) -> bytes:
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    white = (0.9642, 1.0, 0.8249)
    name = b"Adobe RGB (1998)\0"
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, 563)
    primaries = zip((b"rXYZ", b"gXYZ", b"bXYZ"), _ADOBE_PRIMARIES)
    tags = [
        (b"desc", b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)),
        (b"cprt", b"text" + bytes(4) + b"none\0"),
        (b"wtpt", b"XYZ " + bytes(4) + fixed(*white)),
        *((tag, b"XYZ " + bytes(4) + fixed(*xyz)) for tag, xyz in primaries),
        *((tag, curve) for tag in (b"rTRC", b"gTRC", b"bTRC")),
    ]
    offset, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for tag, value in tags:
        value += bytes(-len(value) % 4)
        table += tag + struct.pack(">II", offset + len(data), len(value))
        data += value
    head = struct.pack(">I4sI4s4s4s", offset + len(data), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(*white)
    return head.ljust(128, bytes(1)) + struct.pack(">I", len(tags)) + table + data


@lru_cache(maxsize=64)
def _is_srgb(profile: bytes) -> bool:
    try:
        return "srgb" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).lower()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return True  # damaged: the numbers are all that is known


@lru_cache(maxsize=64)
def _transform(profile: bytes, source: str, target: str) -> Any:
    """The conversion of pictures of a mode, or None where a profile is not of their kind."""
    try:
        srgb = ImageCms.createProfile("sRGB")
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(given, srgb, source, target, flags=_WITHOUT_CACHE)  # type: ignore[arg-type]
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
