"""Unpacking archives from strangers: nothing lands outside the target, nothing but files and folders."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mnif_nerf.errors import MNIFError
from mnif_nerf.progress import Advance, silent

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)


class _Member(NamedTuple):
    name: str
    size: int
    folder: bool
    kind: str  # "" for files and folders, or what it is instead
    extract: Callable[[], object]


def unpack(archive: Path, target: Path, advance: Advance = silent) -> int:
    """Unpack a .zip or .tar(.gz, .bz2, .xz) into the existing folder `target`; returns the number of files.

    All names and sizes are checked before the first byte is written, all checksums by the end; `advance` counts bytes.

    Raises:
        MNIFError: not an archive or damaged; a member with an absolute path, `..`, a link or a device; a
            total size that the disk cannot hold; an encrypted zip.
    """
    try:
        # A zip's list is at its end: a tar whose last member is a stored zip looks like one.
        if _is_zip(archive):
            with zipfile.ZipFile(archive) as bundle:
                return _extract(archive, list(_zip_members(bundle, target)), target, advance)
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tape:
                count = _extract(archive, list(_tar_members(tape, target)), target, advance)
                while tape.fileobj is not None and tape.fileobj.read(1 << 20):
                    pass  # the checksum of gzip and xz stands behind the last member
                return count
    except MNIFError:
        raise
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; gzip and bz2 raise those without
            raise
        raise MNIFError(f"{archive}: cannot be unpacked ({error}); delete it and download it again.") from None
    raise MNIFError(f"{archive}: neither a zip nor a tar archive; delete it and download the right file.")


def _is_zip(archive: Path) -> bool:
    with open(archive, "rb") as file:
        begins = file.read(4) in (b"PK\3\4", b"PK\5\6")
    return begins or (not tarfile.is_tarfile(archive) and zipfile.is_zipfile(archive))


def _extract(archive: Path, members: list[_Member], target: Path, advance: Advance) -> int:
    places = set()
    for member in members:
        _refuse_unsafe(archive, member)
        place = PurePosixPath(member.name)
        if place in places and not member.folder:
            raise MNIFError(f"{archive}: two members unpack to {target / place}; get another copy of it.")
        places.add(place)
    total, free = sum(member.size for member in members), shutil.disk_usage(target).free
    if total > free:
        raise MNIFError(
            f"{archive}: unpacks to {total / 1e6:.0f} MB and {free / 1e6:.0f} MB are free;"
            " free some space or choose another folder."
        )
    for member in members:
        member.extract()
        advance(member.size, total=total)
    return sum(not member.folder for member in members)


def _zip_members(bundle: zipfile.ZipFile, target: Path) -> Iterator[_Member]:
    for info in bundle.infolist():
        mode = stat.S_IFMT(info.external_attr >> 16)
        kind = "a link" if stat.S_ISLNK(mode) else "a special file"
        plain = mode in (0, stat.S_IFREG, stat.S_IFDIR)
        info.filename = info.filename.replace("\\", "/")  # of Windows; names are checked below
        yield _Member(
            info.filename,
            info.file_size,
            info.is_dir(),
            "" if plain else kind,
            lambda info=info: bundle.extract(info, target),  # type: ignore[misc]
        )


def _tar_members(tape: tarfile.TarFile, target: Path) -> Iterator[_Member]:
    for info in tape:
        kind = "a link" if info.issym() or info.islnk() else "a special file"
        plain = info.isreg() or info.isdir()
        yield _Member(
            info.name,
            info.size,
            info.isdir(),
            "" if plain else kind,
            lambda info=info: _extract_member(tape, info, target),  # type: ignore[misc]
        )


def _extract_member(tape: tarfile.TarFile, info: tarfile.TarInfo, target: Path) -> None:
    """Write one file or folder, whose name is known to be safe; ten times as fast as tarfile's own for many folders."""
    place = target / info.name
    if info.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    source = tape.extractfile(info)
    if source is None:
        raise tarfile.ExtractError(f"{info.name}: no file")
    with source, open(place, "xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    if place.stat().st_size != info.size:
        raise tarfile.ReadError("unexpected end of data")
    os.utime(place, (info.mtime, info.mtime))


def _refuse_unsafe(archive: Path, member: _Member) -> None:
    parts = PurePosixPath(member.name).parts
    escapes = member.name.startswith("/") or ".." in parts or "\\" in member.name or "\0" in member.name
    if escapes or (parts and ":" in parts[0]) or (not parts and not member.folder):
        raise MNIFError(f"{archive}: member {member.name!r} points outside the target folder; do not use this archive.")
    if member.kind:
        raise MNIFError(f"{archive}: member {member.name!r} is {member.kind}; do not use this archive.")
