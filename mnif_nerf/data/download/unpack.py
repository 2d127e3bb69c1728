"""Unpacking archives from strangers: nothing lands outside the target, nothing but files and folders."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mnif_nerf.errors import MNIFError

_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    folder: bool
    kind: str  # "file", "folder", or what it is instead
    handle: Any


def unpack(archive: Path, target: Path, advance: Callable[[int], None] = lambda size: None) -> int:
    """Unpack a .zip or .tar(.gz, .bz2, .xz) into the existing folder `target`; returns the number of files.

    All names and sizes are checked before the first byte is written.

    Raises:
        MNIFError: not an archive or damaged; a member with an absolute path, `..`, a link or a device; a
            total size that the disk cannot hold; an encrypted zip.
    """
    try:
        with ExitStack() as stack:
            members, open_member = _open_archive(archive, stack)
            for member in members:
                _refuse_unsafe(archive, member)
            total, free = sum(member.size for member in members), shutil.disk_usage(target).free
            if total > free:
                raise MNIFError(
                    f"{archive}: unpacks to {total / 1e6:.0f} MB and {free / 1e6:.0f} MB are free;"
                    " free some space or choose another folder."
                )
            for member in members:
                place = target.joinpath(*_parts(member.name))
                if member.folder:
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                with open_member(member) as source, open(place, "xb") as copy:
                    _copy(source, copy, member.size)
                advance(member.size)
            return sum(not member.folder for member in members)
    except FileExistsError as error:
        raise MNIFError(f"{archive}: two members unpack to {error.filename}; get another copy of it.") from None
    except MNIFError:
        raise
    except _DAMAGE as error:
        raise MNIFError(f"{archive}: cannot be unpacked ({error}); delete it and download it again.") from None


def archive_size(archive: Path) -> int:
    """Total unpacked size in bytes.

    Raises:
        MNIFError: not an archive, or damaged.
    """
    try:
        with ExitStack() as stack:
            return sum(member.size for member in _open_archive(archive, stack)[0])
    except MNIFError:
        raise
    except _DAMAGE as error:
        raise MNIFError(f"{archive}: cannot be unpacked ({error}); delete it and download it again.") from None


def _open_archive(archive: Path, stack: ExitStack) -> tuple[list[_Member], Callable[[_Member], IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        bundle = stack.enter_context(zipfile.ZipFile(archive))
        return list(_zip_members(bundle)), lambda member: bundle.open(member.handle)
    if tarfile.is_tarfile(archive):
        tape = stack.enter_context(tarfile.open(archive))  # noqa: SIM115 (the stack closes it)
        return list(_tar_members(tape)), lambda member: tape.extractfile(member.handle)  # type: ignore
    raise MNIFError(f"{archive}: neither a zip nor a tar archive; delete it and download the right file.")


def _zip_members(bundle: zipfile.ZipFile) -> Iterator[_Member]:
    for info in bundle.infolist():
        mode = stat.S_IFMT(info.external_attr >> 16)
        plain = mode in (0, stat.S_IFREG, stat.S_IFDIR)
        kind = "a link" if stat.S_ISLNK(mode) else "a special file"
        yield _Member(info.filename, info.file_size, info.is_dir(), "plain" if plain else kind, info)


def _tar_members(tape: tarfile.TarFile) -> Iterator[_Member]:
    for info in tape:
        kind = "a link" if info.issym() or info.islnk() else "a special file"
        kind = "plain" if info.isreg() or info.isdir() else kind
        yield _Member(info.name, info.size, info.isdir(), kind, info)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name).parts if part != ".")


def _refuse_unsafe(archive: Path, member: _Member) -> None:
    parts = _parts(member.name)
    escapes = member.name.startswith("/") or ".." in parts or "\\" in member.name or "\0" in member.name
    if escapes or (parts and ":" in parts[0]) or (not parts and not member.folder):
        raise MNIFError(f"{archive}: member {member.name!r} points outside the target folder; do not use this archive.")
    if member.kind != "plain":
        raise MNIFError(f"{archive}: member {member.name!r} is {member.kind}; do not use this archive.")


def _copy(source: IO[bytes], copy: IO[bytes], size: int) -> None:
    """Copy, and stop at once where a member holds more than its header says."""
    left = size
    while block := source.read(_CHUNK):
        left -= len(block)
        if left < 0:
            raise ValueError("a member is larger than it says")
        copy.write(block)
    if left:
        raise ValueError("a member is shorter than it says")
