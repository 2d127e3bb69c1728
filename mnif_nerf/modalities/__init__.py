"""What differs between kinds of signals: one object each, registered here under its name.

Everything outside this room takes what it needs from `get(name)` and never asks which modality it has.
"""

from __future__ import annotations

import functools
from importlib import import_module
from pathlib import Path

from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.base import Modality

__all__ = ["Modality", "from_data", "get", "names"]

# Module and class of each; loaded on first use, so that a command pays for its own modality only.
_REGISTRY = {
    "radiance": ("mnif_nerf.modalities.radiance", "Radiance"),
    "sdf": ("mnif_nerf.modalities.sdf", "Sdf"),
    "voxel": ("mnif_nerf.modalities.voxel", "Voxel"),
    "image": ("mnif_nerf.modalities.image", "Image"),
    "signal": ("mnif_nerf.modalities.signal", "Signal"),
}


def names() -> tuple[str, ...]:
    """Names of all modalities."""
    return tuple(_REGISTRY)


@functools.cache
def _load(name: str) -> Modality:
    module, kind = _REGISTRY[name]
    modality: Modality = getattr(import_module(module), kind)()
    return modality


def get(name: str, place: Path | str = "modality") -> Modality:
    """The modality of this name.

    Raises:
        MNIFError: this version does not have it; the sentence begins with `place`.
    """
    if name not in _REGISTRY:
        raise MNIFError(f"{place}: modality {name!r} is not known; this version has {', '.join(_REGISTRY)}.")
    return _load(name)


def from_data(root: Path | str) -> Modality:
    """The modality of a data folder.

    Raises:
        MNIFError: the folder is missing, or holds data of none.
    """
    refusals = []
    for name in _REGISTRY:
        try:
            get(name).locate_data(Path(root))
        except MNIFError as error:
            refusals.append(error)
        else:
            return get(name)
    raise refusals[0]
