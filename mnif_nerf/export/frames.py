"""A folder of numbered PNG frames that can be interrupted and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.pictures import save_png
from mnif_nerf.files import read_json, write_json

_ABOUT = "frames.json"


def write_frames(
    folder: Path | str,
    count: int,
    render: Callable[[int], Any],
    settings: dict[str, Any],
    on_frame: Callable[[], None] | None = None,
) -> int:
    """Write frame_00000.png and on; frames that are there already are kept.

    Each frame is written under a temporary name and then renamed, so one that is there is whole.

    Args:
        folder: made where it is missing.
        count: frames in all.
        render: the picture of a frame, as `to_image` takes it.
        settings: JSON-ready, of everything that the frames depend on. It is kept as frames.json.
        on_frame: called after each frame, kept ones included.

    Returns:
        how many frames were made now.

    Raises:
        MNIFError: the folder holds frames of other settings or something else, or cannot be written.
    """
    folder = Path(folder)
    _check(folder, settings)
    made = 0
    for frame in range(count):
        path = folder / f"frame_{frame:05d}.png"
        if not path.exists():
            picture = render(frame)
            if not (folder / _ABOUT).exists():  # not before a frame could be made
                write_json(folder / _ABOUT, settings)
            save_png(picture, path)
            made += 1
        if on_frame is not None:
            on_frame()
    return made


def _check(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that is not this video's own."""
    about = folder / _ABOUT
    if folder.exists() and not folder.is_dir():
        raise MNIFError(f"{folder}: is a file; choose a folder, or a name that ends in .mp4 or .gif.")
    if about.exists():
        if read_json(about) != settings:
            raise MNIFError(
                f"{folder}: holds frames of another video (other options, or another model); choose another folder, "
                "or remove this one."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise MNIFError(f"{folder}: holds something else than frames; choose an empty or new folder.")
