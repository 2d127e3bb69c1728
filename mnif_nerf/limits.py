"""Sizes, counts and numbers from files and options, checked before anything is allocated or begun."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.machine import available_memory
from mnif_nerf.names import shown

MOST_SAMPLES = 100_000
"""Objects that one command makes."""
MOST_FRAMES = 100_000
"""Pictures of a film: more than an hour of them."""
MOST_STEPS = 1_000_000_000
"""Of anything that is trained."""
MOST_SEED = 2**63 - 1
"""Of torch's generators."""
_FARTHEST = 1e12  # of an option in degrees, seconds, metres or shares
_SHARE = 0.8  # of the free memory


def require_memory(needed: float, what: str, remedy: str) -> None:
    """Refuse what this machine's free memory cannot hold.

    Args:
        needed: bytes.
        what: what needs them, such as "a field of 12 basis networks"; arguments in backticks.
        remedy: what to do then, without a final stop.

    Raises:
        MNIFError: with both sizes.
    """
    available = available_memory()
    if available is not None and needed > _SHARE * available:
        raise MNIFError(
            f"{what} needs about {gibibytes(needed)} of memory, and {gibibytes(available)} are free; {remedy}."
        )


def gibibytes(count: float) -> str:
    """A number of bytes in GiB, as text."""
    return f"{count / 2**30:,.1f} GiB" if count < 1e18 else f"{count / 2**30:.1e} GiB"


def require_count(name: str, value: Any, least: int = 1, most: int = MOST_STEPS, why: str = "") -> None:
    """Refuse what is no whole number from `least` to `most`.

    Args:
        name: of the argument, in backticks.
        value: from wherever.
        least, most: the range.
        why: said of a larger one, without a final stop.

    Raises:
        MNIFError: with the range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise MNIFError(f"{name} {shown(repr(value), 60)}: expected a whole number of at least {least}.")
    if value > most:
        raise MNIFError(f"{name} {value:,}: {why or 'that is more than can be meant'}; use at most {most:,}.")


def require_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, above: bool = False) -> None:
    """Refuse what is no finite number from `low` to `high`.

    Args:
        name: of the argument, in backticks.
        value: from wherever.
        low, high: the range.
        above: whether `low` itself is refused too.

    Raises:
        MNIFError: with the range.
    """
    if is_number(value) and low <= value <= high and not (above and value == low):
        return
    least = "" if low == -math.inf else f" above {low:g}" if above else f" of at least {low:g}"
    most = "" if high == math.inf else f"{' and' if least else ' of'} at most {high:g}"
    raise MNIFError(f"{name} {shown(repr(value), 60)}: expected a finite number{least}{most}.")


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


def require_settings(settings: Any, like: Any) -> None:
    """Refuse a number below zero, NaN or infinite anywhere in settings.

    Args:
        settings: a dataclass, those within it included.
        like: our own settings of the same names; what only `settings` has is not looked at.

    Raises:
        MNIFError: with the name of the first, after what it lies in.
    """
    for path, value in _numbers(settings, like):
        name = f"`{'.'.join(path[-2:])}`"
        if isinstance(value, int):
            require_count(name, value, 0)
        else:
            require_number(name, value, 0.0)


def _numbers(settings: Any, like: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int | float]]:
    if isinstance(like, Mapping):
        for name, part in like.items():
            if isinstance(settings, Mapping) and name in settings:
                yield from _numbers(settings[name], part, (*path, str(name)))
    elif dataclasses.is_dataclass(like):
        for field in dataclasses.fields(like):
            value = getattr(settings, field.name, None)
            yield from _numbers(value, getattr(like, field.name), (*path, field.name))
    elif isinstance(settings, (tuple, list)):
        for value in settings:
            yield from _numbers(value, None, path)
    elif isinstance(settings, (int, float)) and not isinstance(settings, bool):
        yield path, settings


def require_options(options: Any, least: Mapping[str, int] = MappingProxyType({}), **most: int) -> None:
    """Refuse a number in a command's options that is no number, or that no machine can do.

    Args:
        options: a dataclass of options.
        least: the least of a whole number, by its name; 0 of those not named.
        most: the most of a whole number, by its name; 10^9 of those not named, and of seeds 2^63 - 1.

    Raises:
        MNIFError: with the option.
    """
    for field in dataclasses.fields(options):
        name = f"`{field.name}`"
        for value in _parts(getattr(options, field.name)):
            if isinstance(value, int):
                usual = MOST_SEED if field.name == "seed" else MOST_STEPS
                require_count(name, value, least.get(field.name, 0), most.get(field.name, usual))
            else:
                require_number(name, value, -_FARTHEST, _FARTHEST)


def _parts(value: Any) -> list[int | float]:
    """The numbers of an option."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [part for part in values if isinstance(part, (int, float)) and not isinstance(part, bool)]


def require_disk(needed: float, folder: Path, what: str, remedy: str) -> None:
    """Refuse what the free disk cannot hold.

    Args:
        needed: bytes.
        folder: where they go; it need not be there yet.
        what: what needs them.
        remedy: what to do then, without a final stop.

    Raises:
        MNIFError: with both sizes.
    """
    place = Path(os.path.abspath(folder))
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise MNIFError(f"{what} needs about {gibibytes(needed)} of disk, and {gibibytes(free)} are free; {remedy}.")
