"""Pictures as training data; `mnif_nerf.data.readers.picture_files` says how a file becomes numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.readers.grid_reader import GridReader, Read, Size, plain_reading, register
from mnif_nerf.data.readers.images import HEIF_SUFFIXES, IMAGE_SUFFIXES
from mnif_nerf.data.readers.picture_files import (
    films,
    grey_among_color,
    inspect_pictures,
    read_picture,
    without_alpha,
)
from mnif_nerf.data.readers.splits import GridSource
from mnif_nerf.errors import MNIFError
from mnif_nerf.rendering.alpha import CHANNELS as WITH_ALPHA

_MAPS = {
    *("mask", "masks", "matte", "mattes", "alpha", "alphas", "depth", "depths", "depth_maps", "normals", "normal_maps"),
    *("segmentation", "segmentations", "seg", "silhouettes", "thumbnails", "thumbs", "previews"),
}
"""What folders of pictures that say something about other pictures are called."""
_SHOWN = {"images", "image", "imgs", "img", "rgb", "pictures", "photos", "color", "colour", "input", "jpegimages"}


class PictureReader(GridReader):
    """Pictures: uint8 [H, W, C], C = 1, 3 or 4 (see `mnif_nerf.rendering.alpha`)."""

    name, values, nouns = "image", "bytes", "pictures"
    expected = "pictures (PNG, JPEG, WebP, ...), in train/, val/ and test/ or all together"
    suffixes = IMAGE_SUFFIXES
    companions = HEIF_SUFFIXES  # that are not read are told of by `sift`
    changes = ("alpha", "sRGB")

    def settle(self, sources: Sequence[GridSource], size: Size, channels: int | None) -> GridFacts:
        """See `inspect_pictures`."""
        return GridFacts(*inspect_pictures([source.path for source in sources], size, channels))

    def notes(self, sources: Sequence[GridSource], channels: int | None, facts: GridFacts) -> list[str]:
        """Grey pictures among coloured ones become coloured, and those without alpha among others opaque."""
        paths = [source.path for source in sources]
        several, notes = films(paths), []
        if several:
            notes.append(f"{len(several)} files are films ({several[0].name}, ...): the first picture of each is read.")
        return notes + ([] if channels else self._about_channels(paths, facts))

    def sift(self, files: Sequence[Path]) -> tuple[list[Path], list[str]]:
        """Pictures; those of telephones (HEIC) where their decoder is installed."""
        found, notes = _without_maps(super().sift(files)[0])
        missing = [path for path in files if path.suffix.lower() in HEIF_SUFFIXES and path not in set(found)]
        if missing:
            notes.append(f"{len(missing)} HEIC pictures are left out: pip install 'mnif_nerf[heic]' reads them.")
        return found, notes

    def _about_channels(self, paths: list[Path], facts: GridFacts) -> list[str]:
        if facts.channels == WITH_ALPHA:
            opaque = without_alpha(paths)
            if not opaque:
                return []
            return [
                f"{len(opaque)} of {len(paths)} pictures have no alpha ({opaque[0].name}, ...), others of the data "
                "are transparent: alpha is learned, and those are opaque; channels 3 lays all on white instead."
            ]
        grey = grey_among_color(paths)
        if not grey:
            return []
        return [
            f"{len(grey)} of {len(paths)} pictures are grey ({grey[0].name}, ...) and the others in colour: all are "
            "read in colour; channels 1 makes them grey."
        ]

    def reading(self, facts: GridFacts, exact: bool) -> contextlib.AbstractContextManager[Read]:
        """See `read_picture`: larger pictures are cut and reduced."""
        return plain_reading(lambda source: read_picture(source.path, facts.shape, facts.channels))

    def check(self, value: np.ndarray, name: str) -> None:
        """Uint8 [H, W, C]."""
        if value.ndim != 3 or value.dtype != np.uint8:
            raise MNIFError(f"{name}: {value.dtype} {list(value.shape)}; expected uint8 [H, W, channels].")


def _without_maps(paths: list[Path]) -> tuple[list[Path], list[str]]:
    """Pictures without those in folders of masks, depths and the like of the same names, and a sentence."""
    pictures: dict[Path, set[str]] = {}
    for path in paths:
        pictures.setdefault(path.parent, set()).add(path.stem)
    maps = []
    for folder, stems in pictures.items():
        beside = [other for other in (folder.parent, *folder.parent.iterdir()) if other != folder and other in pictures]
        shown = [other for other in beside if other == folder.parent or other.name.lower() in _SHOWN]
        if folder.name.lower() in _MAPS and any(len(stems & pictures[other]) > 0.5 * len(stems) for other in shown):
            maps.append(folder)
    left = [path for path in paths if path.parent not in maps]
    names = ", ".join(sorted({folder.name for folder in maps}))
    count = len(paths) - len(left)
    note = f"{count} pictures in folders called {names} go with others of the same names, and are left out."
    return (left, [note]) if maps else (paths, [])


READER = register(PictureReader())
