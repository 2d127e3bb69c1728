"""The manifest of a packed store, with a digest of what it says: a changed letter is noticed.

The arrays beside it have none: they may hold gigabytes, which nobody wants to wait for whenever a store is opened.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.files import read_record, write_json

NAME = "manifest.json"
_DIGEST = "sha256"


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest of a store, JSON-ready, into its folder."""
    write_json(folder / NAME, {**content, _DIGEST: _digest(content)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of a store says, without its digest; older ones have none.

    Raises:
        MNIFError: it is missing, or not what was written.
    """
    content = read_record(folder / NAME)
    stored = content.pop(_DIGEST, None)
    if stored is not None and stored != _digest(content):
        raise MNIFError(f"{folder / NAME}: is damaged (its content is not what was written); make the store again.")
    names = content.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise MNIFError(f"{folder / NAME}: names is not a list of the instances' names; make the store again.")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
