"""Material files of .obj: colours, pictures with their options, and transparency."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mnif_nerf.data.readers.mesh_surroundings import Surroundings

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_OPTION = re.compile(
    rf"\s*-(o|s|t)((?:\s+{_NUMBER}(?=\s)){{1,3}})|\s*-(mm)(?:\s+{_NUMBER}){{2}}(?=\s)|\s*-(\w+)\s+\S+(?=\s)"
)
_OPTIONS = ("blendu", "blendv", "bm", "boost", "cc", "clamp", "imfchan", "texres", "type", "colorspace")


@dataclass
class MtlPicture:
    """A picture that a material names, with what its options say.

    Attributes:
        name: as written.
        scale, offset: of the texture coordinates.
        wrap: as in `Surface`.
    """

    name: str
    scale: np.ndarray = field(default_factory=lambda: np.ones(2))
    offset: np.ndarray = field(default_factory=lambda: np.zeros(2))
    wrap: tuple[str, str] = ("repeat", "repeat")


@dataclass
class MtlMaterial:
    """What of a material is used: its diffuse colour [3] as written, pictures, and opacity; `other` is the picture of
    ambient or emitted light, which some programs write alone."""

    diffuse: np.ndarray | None = None
    glow: np.ndarray | None = None
    picture: MtlPicture | None = None
    other: MtlPicture | None = None
    mask: MtlPicture | None = None
    opacity: float | None = None
    transparency: float | None = None

    @property
    def alpha(self) -> float:
        """In [0, 1]: `d` where it is there, else from `Tr`."""
        if self.opacity is not None:
            return float(np.clip(self.opacity, 0, 1))
        return 1.0 - float(np.clip(self.transparency or 0.0, 0, 1))

    @property
    def color(self) -> np.ndarray | None:
        """The diffuse colour; what glows where that is black."""
        if self.diffuse is not None and self.diffuse.max() <= 0 and self.glow is not None and self.glow.max() > 0:
            return self.glow
        return self.diffuse

    def pixels(self, beside: Surroundings) -> np.ndarray | None:
        """Its picture as uint8 [h, w, 3], or [h, w, 4] where a mask cuts it out; None without one."""
        own = None if self.picture is None else beside.picture(self.picture.name)
        mask = None if self.mask is None else beside.picture(self.mask.name, alpha=True)
        if mask is None:
            return own
        cut = mask[..., 3] if mask[..., 3].min() < 255 else mask[..., :3].max(axis=2)
        if own is None:
            own = np.full((*cut.shape, 3), 255, np.uint8)
        if cut.shape != own.shape[:2]:
            cut = np.asarray(Image.fromarray(cut).resize(own.shape[1::-1]))
        return np.dstack([own, cut])


def read_mtl(path: Path) -> dict[str, MtlMaterial]:
    """The materials of a file by name; lines that mean nothing here, or that are broken, are passed over.

    Raises:
        OSError: it cannot be read.
    """
    found: dict[str, MtlMaterial] = {}
    own = MtlMaterial()
    for line in decode_text(path.read_bytes()).splitlines():
        word, _, rest = line.strip().replace("\t", " ").partition(" ")
        word, rest = word.lower(), rest.strip()
        if word == "newmtl":
            own = found[rest] = MtlMaterial()
        elif word in ("kd", "ke"):
            setattr(own, "diffuse" if word == "kd" else "glow", _color(rest))
        elif word in ("map_kd", "map_d") and rest:
            setattr(own, "picture" if word == "map_kd" else "mask", _picture(rest))
        elif word in ("map_ka", "map_ke") and rest:
            own.other = own.other or _picture(rest)
        elif word in ("d", "tr"):
            numbers = re.findall(_NUMBER, rest)
            if numbers:
                setattr(own, "opacity" if word == "d" else "transparency", float(numbers[-1]))
    for material in found.values():
        material.picture = material.picture or material.other
    return found


def decode_text(content: bytes) -> str:
    """UTF-8 or UTF-16 by their byte-order marks, else UTF-8 or Latin-1; lines that go on are joined."""
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\\\n", " ")


def _color(text: str) -> np.ndarray | None:
    words = text.split()
    try:
        values = np.array([float(word) for word in words[:3]])
    except ValueError:  # spectral curves
        return None
    if not len(values) or not np.isfinite(values).all():
        return None
    return np.clip(np.resize(values, 3), 0.0, 1.0)


def _picture(text: str) -> MtlPicture:
    """A picture's line: options first, then a name that may hold blanks."""
    found, place = MtlPicture(""), 0
    while (option := _OPTION.match(text, place)) is not None:
        if option[1] in ("o", "s"):
            values = [float(value) for value in option[2].split()[:2]]
            target = found.offset if option[1] == "o" else found.scale
            target[: len(values)] = values
        elif option[4] is not None and option[4] not in _OPTIONS:
            break
        elif option[4] == "clamp" and option[0].split()[-1].lower() == "on":
            found.wrap = ("clamp", "clamp")
        place = option.end()
    found.name = text[place:].strip().strip('"').strip()
    return found
