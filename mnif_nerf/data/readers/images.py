"""Decoding pictures, compositing on white, and telling object from background."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, features

from mnif_nerf.data.readers.color_profiles import to_srgb
from mnif_nerf.errors import MNIFError

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
IMAGE_SUFFIXES = (
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
    + ((".avif",) if features.check("avif") else ())
    + (HEIF_SUFFIXES if find_spec("pillow_heif") else ())
)
"""Kinds of pictures that are read, here and now: HEIC needs the extra `heic`."""
_LARGE, _MOST_PIXELS_PER_BYTE = 4 << 20, 2000  # what a header claims beyond both is taken for damage
_LOSSLESS = (".png", ".bmp", ".gif", ".tif", ".tiff")
READ_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError),
    *(EOFError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow's readers raise of damaged files."""
_LOSSLESS_THRESHOLD, _LOSSY_THRESHOLD = 6, 24  # JPEG rings by a dozen grey levels around edges
_ALPHA_THRESHOLD = 2


@dataclass(frozen=True)
class Background:
    """What lies behind the objects: is it (or does it composite to) white, does alpha mark the object."""

    white: bool
    alpha: bool
    threshold: int


class _BoundedFile(io.BufferedReader):
    """A file of which no more is asked for than it has: Python allocates what a damaged header claims, then reads."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A picture of any kind in `IMAGE_SUFFIXES`, opened but not decoded.

    Raises:
        one of `READ_ERRORS`.
    """
    if path.suffix.lower() in HEIF_SUFFIXES and find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    with _BoundedFile(io.FileIO(path)) as file, Image.open(file) as picture:
        pixels = picture.width * picture.height
        if pixels > _LARGE and pixels > _MOST_PIXELS_PER_BYTE * path.stat().st_size:
            raise Image.DecompressionBombError(f"{pixels} pixels")
        yield picture


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) from the file's header.

    Raises:
        MNIFError: not a readable image.
    """
    try:
        with open_picture(path) as picture:
            return picture.height, picture.width
    except READ_ERRORS as error:
        raise unreadable(path, error) from None


def read_image(path: Path, height: int, width: int) -> np.ndarray:
    """Decode to uint8 [H, W, 3] in sRGB, or [H, W, 4] where the file has an alpha channel.

    Raises:
        MNIFError: unreadable or truncated, more than 8 bits per channel, or not H x W.
    """
    try:
        with open_picture(path) as opened:
            deep = opened.mode.startswith("I") or opened.mode == "F"
            picture = to_srgb(opened)
            transparent = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
            pixels = np.asarray(picture.convert("RGBA" if transparent else "RGB"))
    except READ_ERRORS as error:
        raise unreadable(path, error) from None
    if deep:
        raise MNIFError(f"{path}: more than 8 bits per channel; save it as an 8-bit RGB or RGBA image.")
    if pixels.shape[:2] != (height, width):
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise MNIFError(f"{path}: {size} pixels, expected {width}x{height} like the first image; resize one of them.")
    return pixels


def composite_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] from straight-alpha uint8 [..., 4] on white, rounded; RGB passes through."""
    if pixels.shape[-1] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def inspect_background(paths: list[Path], height: int, width: int, sample: int = 64) -> Background:
    """Look at up to `sample` views spread over `paths`.

    Alpha marks the object where at least half of the sampled views have transparent pixels; compositing then
    makes the rest white. Else the background counts as white where at least nine tenths of the sampled views
    have a border that is at least three quarters white.

    Raises:
        MNIFError: a sampled image cannot be read.
    """
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(sample, len(paths))).round().astype(int))
    lossy = any(paths[i].suffix.lower() not in _LOSSLESS for i in chosen)
    threshold = _LOSSY_THRESHOLD if lossy else _LOSSLESS_THRESHOLD
    transparent_views, white_views = 0, 0
    for i in chosen:
        pixels = read_image(paths[i], height, width)
        transparent_views += pixels.shape[-1] == 4 and bool((pixels[..., 3] <= _ALPHA_THRESHOLD).any())
        white_views += white_border(composite_white(pixels), threshold)
    alpha = bool(transparent_views >= 0.5 * len(chosen))
    return Background(white=alpha or bool(white_views >= 0.9 * len(chosen)), alpha=alpha, threshold=threshold)


def white_border(pixels: np.ndarray, threshold: int) -> bool:
    """Whether the border of uint8 [H, W, 3] is at least three quarters white."""
    differs = 255 - pixels.min(-1) > threshold
    border = np.concatenate([differs[0], differs[-1], differs[:, 0], differs[:, -1]])
    return bool(border.mean() <= 0.25)


def silhouette(pixels: np.ndarray, background: Background) -> np.ndarray:
    """bool [H, W], the object: by alpha where that marks it, else by difference from white, holes filled."""
    if background.alpha and pixels.shape[-1] == 4:
        return pixels[..., 3] > _ALPHA_THRESHOLD
    return fill_holes(255 - pixels[..., :3].min(-1) > background.threshold)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Add to bool [H, W] whatever is not connected to the border (white paint inside a silhouette)."""
    from scipy import ndimage

    labels, count = ndimage.label(~mask)
    outside = np.zeros(count + 1, dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[edge] = True
    outside[0] = False
    return ~outside[labels]


def unreadable(path: Path, error: BaseException) -> MNIFError:
    """The sentence for a picture that raised one of `READ_ERRORS`."""
    reason = "no such file" if isinstance(error, FileNotFoundError) else "truncated, or not an image"
    return MNIFError(f"{path}: cannot be read as an image ({reason}); fetch or render it again.")
