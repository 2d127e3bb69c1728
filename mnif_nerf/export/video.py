"""Turntables as MP4 (H.264, plays everywhere) or GIF, with the encoder that imageio-ffmpeg carries."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mnif_nerf.errors import MNIFError, require
from mnif_nerf.export.pictures import image_grid, to_image
from mnif_nerf.files import atomic_file

VIDEO_FORMATS = ("mp4", "gif")


def write_video(frames: Iterable[Any], path: Path | str, fps: int = 24) -> Path:
    """Write frames as .mp4 or .gif (the suffix chooses), atomically; frames are taken one at a time.

    MP4 has 4:2:0 colour (what browsers and phones play), which needs even sizes: odd ones get a repeated
    edge.

    Args:
        frames: pictures as `to_image` takes them, all of one size.
        path: ends in .mp4 or .gif.
        fps: frames per second.

    Raises:
        MNIFError: no frames, an unknown suffix, frames of different sizes, or a folder that cannot be
            written.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in VIDEO_FORMATS:
        raise MNIFError(f"{path}: unknown video format {path.suffix!r}; use .mp4 or .gif.")
    if fps < 1:
        raise MNIFError(f"`fps` {fps} is too low; use at least 1.")
    checked = _checked(frames, path)
    with atomic_file(path) as temporary:
        if kind == "gif":
            _write_gif(checked, temporary, fps)
        else:
            _write_mp4(checked, temporary, fps)
    return path


def _checked(frames: Iterable[Any], path: Path) -> Iterator[Image.Image]:
    size = None
    for frame in frames:
        image = to_image(frame)
        if size is not None and image.size != size:
            raise MNIFError(f"{path}: frames of sizes {size} and {image.size}; a video needs one size.")
        size = image.size
        yield image
    if size is None:
        raise MNIFError(f"{path}: a video needs at least one frame.")


def _write_mp4(frames: Iterator[Image.Image], path: Path, fps: int) -> None:
    imageio = require("imageio", "video")
    require("imageio_ffmpeg", "video")
    options: dict[str, Any] = {
        "codec": "libx264",
        "pixelformat": "yuv420p",
        "quality": 8,
        "macro_block_size": 1,  # sizes are made even below; 16 would resize the pictures
    }
    # closing(), because the writer's own context manager leaves the encoder running after an exception.
    writer: Any = imageio.get_writer(path, format="FFMPEG", fps=fps, **options)
    with contextlib.closing(writer):
        for image in frames:
            array = np.asarray(image)
            odd = [(0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)]
            try:
                writer.append_data(np.pad(array, odd, mode="edge"))
            except OSError as error:  # a broken pipe: what went wrong stood on ffmpeg's own output
                raise MNIFError(
                    f"{path.parent}: the video could not be written; free some space there and run the command again."
                ) from error


def _write_gif(frames: Iterator[Image.Image], path: Path, fps: int) -> None:
    # One palette for all frames, from a spread of them: a palette per frame makes flat paint flicker. How many there
    # are is known at the end only, so they wait on the disk (Pillow itself keeps a byte a pixel, for its differences).
    with tempfile.TemporaryDirectory(prefix="mnif-gif-") as folder:
        count = 0
        for count, image in enumerate(frames, start=1):
            image.save(f"{folder}/{count - 1}.png", compress_level=1)

        def frame(index: int) -> Image.Image:
            with Image.open(f"{folder}/{index}.png") as stored:
                return stored.copy()

        palette = image_grid([frame(index) for index in range(0, count, max(1, count // 8))]).quantize(256)
        rest = (frame(index).quantize(palette=palette) for index in range(1, count))
        first, duration = frame(0).quantize(palette=palette), round(1000 / fps)
        first.save(path, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0, disposal=1)
