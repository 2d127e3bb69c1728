"""Packed data beside its source: found again while it is current, built once under a lock where it is not.

A packed folder holds `manifest.json` (what it is, its format version, a fingerprint of the files that it was made
of, a digest of all that) and arrays. It is written beside its place and renamed, so it is whole or absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mnif_nerf.data.stores.manifest import read_manifest, write_manifest
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_folder, recover_folder

Store = TypeVar("Store")


@dataclass(frozen=True)
class PackedFormat:
    """What a manifest must say: the kind of folder, and its version, raised whenever the arrays change."""

    name: str
    version: int


def open_or_build(
    target: Path,
    form: PackedFormat,
    fingerprint: str,
    title: str,
    open_arrays: Callable[[dict[str, Any]], Store],
    build: Callable[[Path], dict[str, Any]],
) -> Store:
    """Open the packed folder `target`, building it first where it is absent, damaged or older than its source.

    Args:
        target: the packed folder.
        form: what its manifest must name.
        fingerprint: fingerprint of the source files as they are now.
        title: what is packed, for the message when it is packed again.
        open_arrays: makes the store from the manifest; ValueError, KeyError and OSError mean damage.
        build: fills an empty folder with arrays and returns the rest of the manifest. Its "notes", a list of
            sentences, are printed.

    Raises:
        MNIFError: a full disk, a cache that cannot be written, and whatever `build` raises.
    """
    store, _ = _load(target, form, fingerprint, open_arrays)
    if store is not None:
        return store
    with _only_packer(target):
        store, stale = _load(target, form, fingerprint, open_arrays)  # another process may have packed it meanwhile
        if store is None:
            if stale:
                print(f"{target}: {stale}; packing {title} again.", flush=True)
            with atomic_folder(target, replace=True) as temporary:
                content = build(temporary)
                head = {"format": form.name, "format_version": form.version, "source": fingerprint}
                write_manifest(temporary, {**head, **content})
            for note in content.get("notes", []):
                print(note, flush=True)
            store, stale = _load(target, form, fingerprint, open_arrays)
    if store is None:
        raise MNIFError(f"{target}: {stale} right after packing; check the disk, remove the folder and run again.")
    return store


def cache_place(root: Path, beside: Path) -> Path:
    """Where packed data goes: `beside`, or under MNIF_CACHE (environment) by the data's name and place."""
    elsewhere = os.environ.get("MNIF_CACHE")
    if not elsewhere:
        return beside
    place = str(root.resolve())
    return Path(elsewhere).expanduser() / f"{Path(place).name}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


def files_fingerprint(files: Iterable[tuple[str, os.stat_result]], *settings: object) -> str:
    """Digest of names, sizes and modification times, and of whatever else decides what is packed."""
    digest = hashlib.sha256()
    for name, status in files:
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    for setting in settings:
        digest.update(f"{setting!r}\n".encode())
    return digest.hexdigest()


def map_array(path: Path, shape: tuple[int, ...], dtype: type = np.uint8) -> np.memmap:
    """Map an .npy file, privately: writing to it does not reach the disk.

    Raises:
        ValueError: it has another shape or type.
    """
    try:
        array = np.load(path, mmap_mode="c")  # private and writable: torch accepts it without a warning
    except OSError:  # strict overcommit counts a private map against memory
        array = np.load(path, mmap_mode="r")
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{path}: {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
    return array


def _load(
    target: Path, form: PackedFormat, fingerprint: str, open_arrays: Callable[[dict[str, Any]], Store]
) -> tuple[Store | None, str]:
    """The store at `target` if it is whole and current, else None and why not ("" where there is none)."""
    recover_folder(target)
    if not target.exists():
        return None, ""
    try:
        manifest = read_manifest(target)
        version = manifest.get("format_version") if manifest.get("format") == form.name else None
        if version != form.version:
            return None, f"the store has format version {version}, this program reads {form.version}"
        if manifest["source"] != fingerprint:
            return None, "the data changed since the store was packed"
        return open_arrays(manifest), ""
    except (MNIFError, OSError, ValueError, KeyError, AttributeError, TypeError, OverflowError):
        return None, "the store is damaged"


@contextlib.contextmanager
def _only_packer(target: Path) -> Iterator[None]:
    """Hold the lock of `target`.

    Raises:
        MNIFError: the cache folder cannot be written.
    """
    from filelock import FileLock

    parent = target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(parent / f".{target.name}.lock")
        lock.acquire()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise MNIFError(
            f"{parent}: cannot be written ({reason}); set MNIF_CACHE (environment) to a folder that can."
        ) from None
    try:
        yield
    finally:
        lock.release()
