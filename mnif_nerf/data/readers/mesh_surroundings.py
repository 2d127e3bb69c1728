"""The files beside a mesh that it names (pictures, materials, buffers): finding them however they are spelled."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image

from mnif_nerf.data.readers.mesh_notes import FOUND_ELSEWHERE, LACKS_PICTURE, MeshNote

LEVELS_UP = 2
"""Folders above its own that a mesh read alone may take pictures from."""
MOST_PIXELS = 2**27
"""Pixels of a picture that is decoded."""
LONGEST_EDGE = 4096
"""Larger pictures are reduced by a whole factor until their edges are no longer."""
_PLACES = ("textures", "Textures", "images", "maps")  # where pictures lie whose path is that of another machine


class Surroundings:
    """Finds what a mesh file names, and keeps account of it.

    Backslashes, percent-encoding, another case and other machines' absolute paths are put up with. Nothing outside
    `root` is read.

    Args:
        path: the mesh file.
        root: the folder that the user gave; None allows `LEVELS_UP` folders above the mesh's own.

    Attributes:
        used: files that were read beside the mesh.
        notes: what is missing, or was found elsewhere.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path = Path(os.path.abspath(path))
        folder = self.path.parent
        above = [folder, *folder.parents]
        self.root = Path(os.path.abspath(root)) if root is not None else above[min(LEVELS_UP, len(above) - 1)]
        if not folder.is_relative_to(self.root):
            self.root = folder
        self.used: list[Path] = []
        self.notes: list[MeshNote] = []
        self._listed: dict[Path, dict[str, str]] = {}
        self._decoded: dict[tuple[object, bool], np.ndarray | None] = {}

    def note(self, kind: str, what: str = "") -> None:
        """Add a note, once."""
        if (note := MeshNote(kind, what)) not in self.notes:
            self.notes.append(note)

    def find(self, name: str, elsewhere: bool = False) -> Path | None:
        """The file of that name, as seen from the mesh's folder, or None.

        Args:
            name: as written in the mesh file.
            elsewhere: whether a file of the same name may lie at another place nearby; that is noted.
        """
        spellings = dict.fromkeys((name, name.replace("\\", "/"), unquote(name).replace("\\", "/")))
        for spelling in spellings:
            found = self._walk(self.path.parent, spelling)
            if found is not None:
                self.used.append(found)
                return found
        for place, tail in self._guesses(list(spellings)[-1]) if elsewhere else ():
            found = self._walk(place, tail)
            if found is not None:
                self.note(FOUND_ELSEWHERE, name)
                self.used.append(found)
                return found
        return None

    def picture(self, name: str, alpha: bool = False) -> np.ndarray | None:
        """The picture of that name as uint8 [h, w, 3], or [h, w, 4] with `alpha`; None, and a note, where there is
        none that can be read."""
        key = (name, alpha)
        if key not in self._decoded:
            found = self.find(name, elsewhere=True)
            if found is None:
                self.note(LACKS_PICTURE, f"{name}: {self._why_not(name)}")
            try:
                self._decoded[key] = None if found is None else decode_picture(found.read_bytes(), alpha)
            except (OSError, ValueError) as error:
                self.note(LACKS_PICTURE, f"{name}: {error}")
                self._decoded[key] = None
        return self._decoded[key]

    def embedded(self, key: object, content: bytes, name: str, alpha: bool = False) -> np.ndarray | None:
        """The same of a picture within the mesh file; `key` tells pictures apart."""
        if (key, alpha) not in self._decoded:
            try:
                self._decoded[key, alpha] = decode_picture(content, alpha)
            except (OSError, ValueError) as error:
                self.note(LACKS_PICTURE, f"{name}: {error}")
                self._decoded[key, alpha] = None
        return self._decoded[key, alpha]

    def _why_not(self, name: str) -> str:
        if "://" in name:
            return "an address, which is not fetched"
        try:
            place = Path(os.path.abspath(self.path.parent / unquote(name).replace("\\", "/")))
            outside = place.is_file() and not place.is_relative_to(self.root)
        except (OSError, ValueError):
            outside = False
        return f"outside the folder {self.root}, so it is not read" if outside else "missing"

    def _guesses(self, name: str) -> Iterator[tuple[Path, str]]:
        """Places and names below them where a file might lie that is not where it should."""
        parts = [part for part in name.split("/") if part not in ("", ".", "..") and not part.endswith(":")]
        own = self.path.parent
        for folder in (own, own.parent) if own != self.root else (own,):
            for first in range(len(parts)):
                yield folder, "/".join(parts[first:])
            for place in _PLACES if parts else ():
                yield folder, f"{place}/{parts[-1]}"

    def _walk(self, folder: Path, name: str) -> Path | None:
        """Follow a path part by part, in any case; None where it leads nowhere, or out of `root`."""
        if not name or "\0" in name or len(name) > 4096:
            return None
        name = name.removeprefix("file://")
        absolute = name.startswith("/")
        if absolute:
            folder = Path("/")
            if (inside := self._below_root(name)) is None:
                return None
            folder, name = self.root, inside
        place = folder
        for part in name.split("/"):
            if part in ("", "."):
                continue
            place = place.parent if part == ".." else place / self._spelled(place, part)
        try:
            return place if place.is_relative_to(self.root) and place.is_file() else None
        except (OSError, ValueError):
            return None

    def _below_root(self, name: str) -> str | None:
        place = Path(os.path.normpath(name))
        return place.relative_to(self.root).as_posix() if place.is_relative_to(self.root) else None

    def _spelled(self, folder: Path, name: str) -> str:
        """An entry's name as the folder has it."""
        if not folder.is_relative_to(self.root):
            return name  # on its way out of the root and back
        if folder not in self._listed:
            try:
                entries = os.listdir(folder)
            except (OSError, ValueError):
                entries = []
            self._listed[folder] = {entry: entry for entry in entries}
            for entry in sorted(entries):
                self._listed[folder].setdefault(_plain(entry), entry)
        entries_by_name = self._listed[folder]
        return entries_by_name.get(name) or entries_by_name.get(_plain(name)) or name


def _plain(name: str) -> str:
    return "\0" + unicodedata.normalize("NFC", name).casefold()


def decode_picture(content: bytes, alpha: bool = False) -> np.ndarray:
    """A picture as uint8 [h, w, 3], or [h, w, 4] with straight alpha; edges beyond `LONGEST_EDGE` are reduced.

    Raises:
        ValueError: not decodable, or too large; the words follow the picture's name.
    """
    import io
    import warnings

    if content[:12] == b"\xabKTX 20\xbb\r\n\x1a\n":
        raise ValueError("KTX2, which is not read; save it as PNG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, which is looked at here
            with Image.open(io.BytesIO(content)) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise ValueError(f"{opened.width}x{opened.height} pixels are too many; make it smaller")
                opened.draft(None, (LONGEST_EDGE, LONGEST_EDGE))
                opened.load()
                picture = _eight_bits(opened)
    except Image.DecompressionBombError:
        raise ValueError("too many pixels; make it smaller") from None
    except ValueError as error:
        raise ValueError(f"damaged ({error})" if "pixels" not in str(error) else str(error)) from None
    except Exception:  # every decoder of Pillow raises what it likes
        raise ValueError("damaged, or of a kind that is not read") from None
    factor = -(-max(picture.size) // LONGEST_EDGE)
    picture = picture.convert("RGBA" if alpha else "RGB")
    return np.asarray(picture.reduce(factor) if factor > 1 else picture)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Sixteen and more bits of grey as eight: Pillow's own conversion would cut off above 255."""
    if picture.mode.startswith("I") or picture.mode == "F":
        deep = np.nan_to_num(np.asarray(picture, np.float64))
        return Image.fromarray(np.rint(np.clip(deep, 0, 65535) / 257).astype(np.uint8))
    return picture.copy()
