"""Colours as sRGB: pictures whose numbers mean other colours (Adobe RGB, Display P3, CMYK of a press) are converted."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

from PIL import Image, ImageCms

_PLAIN = {"RGB": "RGB", "RGBA": "RGBA", "RGBX": "RGB", "CMYK": "RGB", "L": "RGB", "LAB": "RGB", "YCbCr": "RGB"}
_WITHOUT_CACHE = 0x0040  # several threads share a transform


def to_srgb(picture: Image.Image) -> Image.Image:
    """The picture in sRGB, by the profile that its file embeds; as it is where there is none, a damaged one, or one
    that says sRGB. Grey pictures stay grey, alpha stays as it is; deep grey (16 bits) is not converted."""
    profile = picture.info.get("icc_profile")
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
