"""Real values on a grid as files: arrays, sounds and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_file

if TYPE_CHECKING:
    from PIL import Image

SIGNAL_FORMATS = ("npy", "wav", "png")
_DEFAULT_RATE = 8000.0  # samples per second of a sound whose data did not say
_PICTURE_PIXELS = 512
_LINES = ((31, 90, 160), (190, 80, 30), (40, 130, 60), (120, 60, 140))
_FINER = 3  # lines are drawn so much larger and reduced, for smooth edges


def write_signal(
    values: np.ndarray, path: Path | str, dims: int, rate: float | None = None, dtype: str | None = None
) -> Path:
    """Write values as .npy, .wav or .png (the suffix chooses), atomically.

    Args:
        values: `[*shape]` or `[*shape, C]`.
        path: path of the file.
        dims: axes of the grid.
        rate: samples per second, of a .wav.
        dtype: whole numbers to round to ("int16"); float32 when None.

    Raises:
        MNIFError: an unknown suffix, a .wav of several axes, or a folder that cannot be written.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in SIGNAL_FORMATS:
        raise MNIFError(f"{path}: unknown format {path.suffix!r}; use one of {', '.join(SIGNAL_FORMATS)}.")
    if kind == "wav" and dims != 1:
        raise MNIFError(f"{path}: a .wav holds one axis, and the signal has {dims}; write .npy or .png.")
    if kind == "png":
        from mnif_nerf.export.pictures import save_png

        return save_png(signal_picture(values, dims, _PICTURE_PIXELS), path)
    numbers = _as_type(values, dtype)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        if kind == "npy":
            np.save(file, numbers)
        else:
            from scipy.io import wavfile

            wavfile.write(file, round(rate or _DEFAULT_RATE), numbers)
    return path


def signal_picture(
    values: np.ndarray, dims: int, resolution: int, span: tuple[float, float] | None = None
) -> Image.Image:
    """A picture (RGB) of values.

    Args:
        values: `[*shape]` or `[*shape, C]`.
        dims: axes of the grid. One is drawn as a line (one of each channel), two as a map, three as the three slices
            through the middle; of four, those of the middle of the last axis.
        resolution: pixels of the longer edge.
        span: lowest and highest value of the scale; those of `values` when None.
    """
    low, high = span or (float(values.min()), float(values.max()))
    high = high if high > low else low + 1.0
    channels = values if values.ndim > dims else values[..., None]
    share = np.clip((np.nan_to_num(channels) - low) / (high - low), 0, 1)
    if dims == 1:
        return _line(share, resolution)
    if dims == 2:
        return _map(share, resolution)
    if dims == 4:
        share = share[:, :, :, share.shape[3] // 2]
    middle = [n // 2 for n in share.shape[:3]]
    slices = [share[middle[0]], share[:, middle[1]], share[:, :, middle[2]]]
    return _beside([_map(each, max(1, resolution // 3)) for each in slices])


def _line(share: np.ndarray, resolution: int) -> Image.Image:
    from PIL import Image, ImageDraw

    width, height = _FINER * resolution, _FINER * max(1, resolution // 2)
    picture = Image.new("RGB", (width, height), "white")
    draw, margin = ImageDraw.Draw(picture), 0.05 * height
    across = np.linspace(margin, width - margin, len(share))
    for channel in range(share.shape[1]):
        up = height - margin - share[:, channel] * (height - 2 * margin)
        points: Sequence[Any] = list(zip(across.tolist(), up.tolist()))
        draw.line(points, fill=_LINES[channel % len(_LINES)], width=max(1, width // 150), joint="curve")
    return picture.resize((resolution, max(1, resolution // 2)), Image.Resampling.LANCZOS)


def _map(share: np.ndarray, resolution: int) -> Image.Image:
    from PIL import Image

    from mnif_nerf.data.grid_facts import scaled_shape

    levels = np.rint(255 * (share if share.shape[-1] == 3 else share[..., :1].repeat(3, axis=-1))).astype(np.uint8)
    rows, columns = scaled_shape(levels.shape[:2], resolution)
    return Image.fromarray(levels).resize((columns, rows), Image.Resampling.NEAREST)


def _beside(pictures: list[Image.Image]) -> Image.Image:
    from PIL import Image

    sheet = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet


def _as_type(values: np.ndarray, dtype: str | None) -> np.ndarray:
    if dtype is None:
        return values.astype(np.float32, copy=False)
    limits: Any = np.iinfo(dtype)
    return np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max).astype(dtype)
