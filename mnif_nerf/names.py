"""Names that come from a file or from a user: as file names, and as they are shown."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import PurePath

_LONGEST_FILE_NAME = 100  # bytes: file systems take 255, and endings and temporary names are put to it
_LONGEST_SHOWN = 120  # characters
_LONGEST_PATH = 500
_LONGEST_SENTENCE = 1500
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,5}$")


def file_name(name: object, longest: int = _LONGEST_FILE_NAME) -> str:
    """Any text as the name of one file or folder: letters, digits, dot, dash and underscore stay.

    It never leads out of the folder it is put into, is never hidden, and is never too long: what is cut off (before
    the ending, such as .mp4) is told apart by eight digits of a digest.

    Args:
        name: a name from wherever.
        longest: in bytes, at least 24.
    """
    text = re.sub(r"[^\w.-]+", "_", os.fspath(name) if isinstance(name, PurePath) else str(name)).strip(".")
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > longest:
        digest = hashlib.sha256(str(name).encode("utf-8", "surrogatepass")).hexdigest()[:8]
        ending = _ENDING.search(text)
        kept = "" if ending is None else ending[0]
        text = f"{encoded[: longest - 9 - len(kept)].decode('utf-8', 'ignore').rstrip('.')}-{digest}{kept}"
    return text or "object"


def file_names(names: Iterable[object]) -> list[str]:
    """File names of several names, all different also where letter case does not count: the later ones of equals get
    -2, -3, ..."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        own = base = file_name(name)
        count = 1
        while own.casefold() in taken:
            count += 1
            own = f"{base}-{count}"
        taken.add(own.casefold())
        found.append(own)
    return found


def shown(text: object, longest: int = _LONGEST_SHOWN) -> str:
    """Any text as part of one printed line: control characters and bytes that are no text are escaped, and of a long
    one the middle is left out."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    if len(plain) <= longest:
        return plain
    half = (longest - 5) // 2
    return f"{plain[:half]} ... {plain[-half:]}"


def brief(sentence: str) -> str:
    """A sentence as one printed line, whatever the values that it quotes: long words are shortened, and paths that are
    very long, and of a very long sentence the middle is left out."""
    words = sentence.split(" ")
    kept = (shown(word, _LONGEST_PATH if "/" in word or "\\" in word else _LONGEST_SHOWN) for word in words)
    return shown(" ".join(kept), _LONGEST_SENTENCE)


def listed(names: Sequence[str], shown: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def quoted(path: object) -> str:
    """A path as a word of a command that is shown, to be pasted into a shell: in quotes where it has blanks or the
    like."""
    return shlex.quote(os.fspath(path) if isinstance(path, PurePath) else str(path))
