"""Features and distances kept between runs of an evaluation, so that an interrupted or repeated one goes on.

A file is named by a digest of everything its content depends on, and says all of that in its header: content made for
something else (another feature network, another model) is never taken for it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.stores.manifest import read_manifest
from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.ranks import ONE, Ranks
from mnif_nerf.pipelines.model_folder import StoredModel
from mnif_nerf.tensor_files import read_tensors, write_tensors

_READ = 1 << 22  # bytes read together

Arrays = dict[str, np.ndarray]


class Cache:
    """A folder of safetensors files.

    Args:
        folder: made when something is first written; None keeps nothing.
        ranks: the processes that share it, and ask for the same things in the same order: the first one writes.
    """

    def __init__(self, folder: Path | str | None, ranks: Ranks = ONE) -> None:
        self.folder = None if folder is None else Path(folder)
        self.ranks = ranks

    def get(self, kind: str, key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """The arrays of `key`: read where they were made before, else made and kept.

        Args:
            kind: what they are; the beginning of the file's name.
            key: all that they depend on, JSON-ready.
            make: makes them.

        Raises:
            MNIFError: a damaged file, or one whose header names something else.
        """
        found = self.find(kind, key)
        return self.keep(kind, key, make()) if found is None else found

    def find(self, kind: str, key: Mapping[str, Any]) -> Arrays | None:
        """The arrays of `key`, or None where they have not been made; see `get`."""
        path, text = self._place(kind, key)
        if path is None or not self.ranks.decide(path.is_file):
            return None
        tensors, metadata = read_tensors(path, "remove the file and run again")
        stored = metadata.get("key", "")
        if stored != text:
            raise MNIFError(
                f"{path}: holds something else than its name says ({_first_difference(stored, text)}); remove it "
                "and run again."
            )
        return {name: value.numpy() for name, value in tensors.items()}

    def keep(self, kind: str, key: Mapping[str, Any], arrays: Arrays) -> Arrays:
        """Keep what was made for `key`, and give it back."""
        path, text = self._place(kind, key)
        if path is not None and self.ranks.is_first:
            tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
            write_tensors(path, tensors, {"key": text})
        return arrays

    def _place(self, kind: str, key: Mapping[str, Any]) -> tuple[Path | None, str]:
        text = json.dumps({"kind": kind, **key}, sort_keys=True)
        name = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors"
        return None if self.folder is None else self.folder / name, text


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A digest of named tensors, the same on every device."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}:{value.dtype}:{list(value.shape)}".encode())
        sha.update(value.view(torch.uint8).numpy().tobytes() if value.ndim else value.numpy().tobytes())
    return sha.hexdigest()[:20]


def digest_of_model(model: StoredModel) -> str:
    """A digest of field, latents, bounds and prior: what tells whether numbers were measured of this very model."""
    tensors = {"latents": model.latents} if model.cells is None else {"latents": model.latents, "cells": model.cells}
    prior = {} if model.prior is None else model.prior.state()
    return digest_of_tensors({**model.field.state_dict(), **tensors, **prior})


def digest_of_store(folder: Path) -> str:
    """A digest of a packed store: what its manifest says, and, where that does not name the files which it was made
    of, all the numbers in it (0.3 s for 128 objects of 66,000 points)."""
    manifest = read_manifest(folder)
    files = [] if manifest.get("source") else sorted(folder.rglob("*.array"))
    facts = json.dumps(manifest, sort_keys=True)
    return _digest_of_files(facts, tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))


@functools.lru_cache(maxsize=64)
def _digest_of_files(facts: str, files: tuple[tuple[Path, int, int], ...]) -> str:
    sha = hashlib.sha256(facts.encode())
    for path, _, _ in files:
        sha.update(path.name.encode())
        with path.open("rb") as file:
            while part := file.read(_READ):
                sha.update(part)
    return sha.hexdigest()[:20]


def _first_difference(stored: str, wanted: str) -> str:
    try:
        found = json.loads(stored)
    except json.JSONDecodeError:
        return "its header is missing"
    expected = json.loads(wanted)
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            return f"{name} {found.get(name)!r}, expected {expected.get(name)!r}"
    return "another order"
