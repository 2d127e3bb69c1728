"""Which varied copies a folder of meshes gets, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mnif_nerf.data.geometry.variations import VARIATIONS, Variation
from mnif_nerf.errors import MNIFError
from mnif_nerf.random import stream

DEFAULT_VARIATIONS = ("mirror", "stretch", "paint")
MOST_COPIES = 1000
_SUFFIX = "-varied"


def is_varied(name: str) -> bool:
    """Whether an instance is a varied copy, by its name."""
    return re.search(rf"{_SUFFIX}\d+$", name) is not None


def original_of(name: str) -> str:
    """The instance that one was varied from, or its own name."""
    return re.sub(rf"{_SUFFIX}\d+$", "", name)


def check_copies(copies: int, vary: Sequence[str]) -> None:
    """Refuse numbers and kinds of copies that cannot be.

    Raises:
        MNIFError: naming what can.
    """
    if not 0 <= copies <= MOST_COPIES:
        raise MNIFError(f"`copies` {copies}: must be 0 to {MOST_COPIES}.")
    wrong = [kind for kind in vary if kind not in VARIATIONS]
    if wrong:
        raise MNIFError(f"`vary` {wrong[0]}: no such variation; choose of {', '.join(VARIATIONS)}.")
    if copies and not vary:
        raise MNIFError(f"`vary` names nothing, so all `copies` would be alike; name some of {', '.join(VARIATIONS)}.")


def plan_copies(names: Sequence[str], copies: int, vary: Sequence[str], seed: int) -> dict[str, tuple[Variation, str]]:
    """The varied copies of some meshes by name, and for each the mesh that it takes a colour from.

    Args:
        names: the meshes.
        copies: of each.
        vary: of `VARIATIONS`.
        seed: of everything; a copy depends on it, its mesh's name and its number alone.

    Raises:
        MNIFError: a mesh is called as a copy would be.
    """
    found = {}
    for name in names:
        for number in range(1, copies + 1):
            copy = f"{name}{_SUFFIX}{number}"
            own = stream(seed, copy)
            found[copy] = (Variation(tuple(vary), (own,)), str(np.random.default_rng(own).choice(names)))
    taken = sorted(set(names) & set(found))
    if taken:
        raise MNIFError(f"a mesh is called {taken[0]}, as a varied copy would be; rename it.")
    return found
