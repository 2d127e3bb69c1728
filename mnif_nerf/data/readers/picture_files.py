"""Pictures as training data: finding them, agreeing on one size and number of channels, and decoding them.

A picture is turned as its EXIF note says, brought to sRGB by the profile that it embeds, cut to the wanted proportions
around its middle and reduced with Pillow's bicubic filter. Where it is transparent it keeps its alpha (four channels,
colours premultiplied: see `mnif_nerf.rendering.alpha`) or is laid on white. That filter widens with the reduction and
averages over what a pixel covers: a wave of 1.25 periods per new pixel keeps half a percent of its height, a quarter
period 94 %. The paper's training pictures were reduced with it too. Lanczos is a little sharper but overshoots an edge
by 7 % instead of 4 %; plain area averages let a fifth of the first wave through. Values stay gamma-encoded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mnif_nerf.data.grid_facts import scaled_shape
from mnif_nerf.data.readers.color_profiles import to_srgb
from mnif_nerf.data.readers.images import IMAGE_SUFFIXES, READ_ERRORS, composite_white, open_picture, unreadable
from mnif_nerf.data.readers.splits import find_files
from mnif_nerf.errors import MNIFError
from mnif_nerf.rendering.alpha import CHANNELS as WITH_ALPHA

DEFAULT_RESOLUTION = 64
"""Pixels along an edge where neither the user nor the files say otherwise."""

_GREY_MODES = ("1", "L", "LA", "La", "F")  # and all whose name starts with "I": 16 or 32 bits of grey
_FILM_SUFFIXES = (".gif", ".tif", ".tiff", ".webp", ".avif")
_ORIENTATION = 0x0112  # EXIF
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_MODES = {1: "L", 3: "RGB", WITH_ALPHA: "RGBa"}  # the last is Pillow's name of premultiplied colours
_OPAQUE = 250  # programs write alpha a few levels below 255 where nothing is transparent


def find_pictures(folder: Path | str) -> list[Path]:
    """Pictures in a folder and below it, sorted; hidden files and other clutter are left out.

    Raises:
        MNIFError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "no such folder"
        raise MNIFError(f"{folder}: {problem}; give a folder of pictures (PNG, JPEG, WebP, ...).")
    return find_files(folder, IMAGE_SUFFIXES)


def inspect_pictures(
    paths: Sequence[Path],
    size: int | tuple[int, ...] | None = None,
    channels: int | None = None,
    at_least: int = 2,
) -> tuple[tuple[int, ...], int]:
    """Settle on a shape and number of channels for pictures: from their headers, and from alpha where they have it.

    Pictures of one size keep their proportions. Pictures of several sizes are cut to squares.

    Args:
        paths: the files.
        size: pixels along the longer edge, or the exact (rows, columns); None takes the files' own size where all
            have one with edges of up to 64, and a longer edge of 64 otherwise.
        channels: 1 (grey), 3 (colour) or 4 (colour and alpha). None takes 4 where a pixel of a file is transparent,
            else 1 where all files are grey and 3 where one is in colour. A file in colour counts as such whatever its
            pixels say.
        at_least: how many pictures there have to be (two to learn from, one to test on).

    Returns:
        shape (rows, columns) and channels.

    Raises:
        MNIFError: a file that cannot be read or is smaller than the shape, too few files, or a size or number of
            channels that cannot be.
    """
    if channels is not None and channels not in _MODES:
        raise MNIFError(f"`channels` is {channels}; pictures have 1 (grey), 3 (colour) or 4 (colour and alpha).")
    if size is not None and min((size,) if isinstance(size, int) else size) < 1:
        raise MNIFError(f"`resolution` is {size}; ask for at least 1 pixel.")
    headers = _headers(paths, at_least)
    shape = size if isinstance(size, tuple) else _shape_of([header.size for header in headers], size)
    for path, header in zip(paths, headers):
        width, height = header.size
        if height < shape[0] or width < shape[1]:
            raise _too_small(path, header.size, shape)
    if channels is None and any(_is_transparent(path) for path, header in zip(paths, headers) if header.alpha):
        channels = WITH_ALPHA
    return shape, channels or (1 if all(header.grey for header in headers) else 3)


def grey_among_color(paths: Sequence[Path]) -> list[Path]:
    """The grey ones among pictures of which others are in colour.

    Raises:
        MNIFError: a file that cannot be read.
    """
    headers = _headers(paths, 1)
    grey = [path for path, header in zip(paths, headers) if header.grey]
    return grey if len(grey) < len(paths) else []


def without_alpha(paths: Sequence[Path]) -> list[Path]:
    """Those that have no alpha channel and no transparent colour.

    Raises:
        MNIFError: a file that cannot be read.
    """
    return [path for path, header in zip(paths, _headers(paths, 1)) if not header.alpha]


def films(paths: Sequence[Path]) -> list[Path]:
    """Those that hold several pictures, of which the first one is read; what cannot be read counts as none."""
    found = []
    for path in paths:
        if path.suffix.lower() in _FILM_SUFFIXES:
            with contextlib.suppress(*READ_ERRORS), open_picture(path) as picture:
                picture.seek(1)
                found.append(path)
    return found


def _shape_of(sizes: list[tuple[int, int]], longest: int | None) -> tuple[int, int]:
    """(rows, columns) for pictures of these (width, height)."""
    if any(size != sizes[0] for size in sizes):
        return (longest or DEFAULT_RESOLUTION,) * 2
    width, height = sizes[0]
    rows, columns = scaled_shape((height, width), longest or min(DEFAULT_RESOLUTION, max(width, height)))
    return rows, columns


def read_picture(path: Path | str, size: int | tuple[int, ...], channels: int) -> np.ndarray:
    """Decode a picture to uint8 [H, W, C], see the module's text; 16-bit pictures are rounded to 8 bits.

    Args:
        path: a file that ends in one of `IMAGE_SUFFIXES`.
        size: (H, W), or one number for a square. Where it reaches the file's edge in one direction, no pixel is
            changed but by the cut.
        channels: C, 1 (colour becomes its luma, ITU-R 601), 3 (grey is repeated; both are laid on white where they
            are transparent) or 4 (colours times alpha, and alpha; 255 all over where the file has none).

    Raises:
        MNIFError: unreadable, truncated, or smaller than `size`.
    """
    path = Path(path)
    rows, columns = (size, size) if isinstance(size, int) else size
    try:
        with open_picture(path) as opened:
            # A JPEG can be decoded at a half, quarter or eighth of its size, three times as fast for 1024 -> 64; at
            # four times the size wanted, that changes the result by half a grey level (RMS).
            longest = 4 * max(rows, columns)
            opened.draft(None, (longest, longest))
            picture = _eight_bits(to_srgb(ImageOps.exif_transpose(opened)), channels == WITH_ALPHA)
    except READ_ERRORS as error:
        raise unreadable(path, error) from None
    if picture.height < rows or picture.width < columns:
        raise _too_small(path, picture.size, (rows, columns))
    # The largest part around the middle that has the wanted proportions.
    ratio = min(picture.height / rows, picture.width / columns)
    wide, high = min(picture.width, round(ratio * columns)), min(picture.height, round(ratio * rows))
    left, top = (picture.width - wide) // 2, (picture.height - high) // 2
    picture = picture.crop((left, top, left + wide, top + high)).convert(_MODES[channels])
    if (wide, high) != (columns, rows):
        picture = picture.resize((columns, rows), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture).reshape(rows, columns, channels)
    # The filter overshoots colours and alpha by different amounts.
    return np.minimum(pixels, pixels[..., 3:]) if channels == WITH_ALPHA else pixels


def _eight_bits(picture: Image.Image, keep_alpha: bool) -> Image.Image:
    """The same picture as RGBA, or as L or RGB on white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        # Pillow's own conversion would cut off above 255.
        deep = np.asarray(picture)
        deep = np.nan_to_num(deep) if picture.mode == "F" else deep
        top = float(deep.max(initial=0)) if picture.mode == "F" else 65535.0
        white = 1.0 if top <= 1.0 else 255.0 if top <= 255.0 else 65535.0  # of floats, by their range
        levels = np.rint(np.clip(deep, 0, white) * (255.0 / white)).astype(np.uint8)
        transparent = picture.info.get("transparency")
        picture = Image.fromarray(levels)
        if isinstance(transparent, int):
            picture.putalpha(Image.fromarray(np.where(deep == transparent, 0, 255).astype(np.uint8)))
    if keep_alpha:
        return picture.convert("RGBA")
    grey = _is_grey(picture)
    if _may_be_transparent(picture):
        picture = Image.fromarray(composite_white(np.asarray(picture.convert("RGBA"))))
    return picture.convert("L" if grey else "RGB")


class _Header(NamedTuple):
    """(width, height), whether it is grey, and whether it may be transparent."""

    size: tuple[int, int]
    grey: bool
    alpha: bool


def _headers(paths: Sequence[Path], at_least: int) -> list[_Header]:
    """What the beginning of every file says."""
    if not paths:
        raise MNIFError("no pictures were found; give a folder of pictures (PNG, JPEG, WebP, ...).")
    found, faults = [], []
    for path in paths:
        try:
            with open_picture(path) as picture:
                found.append(_Header(_upright_size(picture), _is_grey(picture), _may_be_transparent(picture)))
        except READ_ERRORS as error:
            faults.append(unreadable(path, error))
    if faults and len(found) != 1:
        raise faults[0]
    if len(found) < at_least:
        only = "picture" if len(paths) == 1 else f"of {len(paths)} pictures that can be read"
        raise MNIFError(f"{paths[0].parent}: holds one {only}; a model needs {at_least} or more to learn from.")
    if faults:
        raise faults[0]
    return found


def _may_be_transparent(picture: Image.Image) -> bool:
    return picture.mode in _ALPHA_MODES or "transparency" in picture.info


def _is_transparent(path: Path) -> bool:
    """Whether a pixel of a file is; one that cannot be decoded is not, and is told of when it is read."""
    try:
        with open_picture(path) as opened:
            alpha = np.asarray(_eight_bits(opened, True).getchannel("A"))
    except READ_ERRORS:
        return False
    return bool(alpha.min() < _OPAQUE)


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) once a JPEG is turned as its EXIF note says; the notes of PNGs are at their end, and rare."""
    width, height = picture.size
    turned = picture.format == "JPEG" and picture.getexif().get(_ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


def _is_grey(picture: Image.Image) -> bool:
    if picture.mode in ("P", "PA") and picture.palette is not None and picture.palette.mode == "RGB":
        entries = np.frombuffer(bytes(picture.palette.palette), np.uint8)
        entries = entries[: len(entries) // 3 * 3].reshape(-1, 3)
        return bool((entries == entries[:, :1]).all())
    # 16-bit grey with alpha has no mode of its own in Pillow.
    deep_grey = any("LA;16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
    return picture.mode in _GREY_MODES or picture.mode.startswith("I") or deep_grey


def _too_small(path: Path, size: tuple[int, int], shape: tuple[int, ...]) -> MNIFError:
    fitting = max(1, int(max(shape) * min(size[0] / shape[1], size[1] / shape[0])))
    return MNIFError(
        f"{path}: {size[0]}x{size[1]} pixels, smaller than {shape[1]}x{shape[0]}; "
        f"ask for a resolution of at most {fitting}, or remove it."
    )
