"""`mnif-data download`: fetch a published data set, check it, unpack it safely, put it in place."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnif_nerf.data.download.transfer import fetch, local_file, sha256_of
from mnif_nerf.data.download.unpack import unpack
from mnif_nerf.data.readers.srn_layout import locate
from mnif_nerf.errors import MNIFError, disk_errors
from mnif_nerf.files import read_record, write_json
from mnif_nerf.names import file_name, quoted
from mnif_nerf.progress import progress_bar


@dataclass(frozen=True)
class Archive:
    """A published archive: its address, file name, the page that people know it by, its SHA-256 if known."""

    url: str
    file: str
    page: str
    sha256: str | None = None


_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_PAGE = "https://drive.google.com/drive/folders/1PsT3uKwqHHD2bEEHkIXB99AlIjtmrEiR"

# The SRN renderings as pixelNeRF's authors share them. The file ids are those that public code uses; neither
# address could be tried where this was written, and no checksum is published, so the command says so.
ARCHIVES = {
    "srn-cars": Archive(
        _DRIVE + "19yDsEJjx9zNpOKz9o6AaK-E8ED6taJWU",
        "srn_cars.zip",
        _PAGE,
    ),
    "srn-chairs": Archive(
        _DRIVE + "1VWtRZkC4_ON6EBhNNBTag-BwsjPB2Yc8",
        "srn_chairs.zip",
        _PAGE,
    ),
}


def download(
    name: str,
    output: Path | str,
    url: str | None = None,
    sha256: str | None = None,
    progress: bool = True,
) -> Path:
    """Download and unpack a data set in the SRN layout; returns the folder that holds its splits (`output`).

    The address is `url`, else the environment variable MNIF_URL_<NAME> (MNIF_URL_SRN_CARS), else the table's.
    The path of an archive on this machine serves as well. An interrupted run goes on where it stopped; splits
    appear in `output` whole or not at all. Size and SHA-256 are printed, and compared where the checksum is
    known.

    Args:
        name: a name of `ARCHIVES`, or any name together with `url`.
        output: the folder to fill with `<category>_<split>` folders.
        sha256: the expected checksum; None takes the table's, if the address is the table's.

    Raises:
        MNIFError: unknown name, failed download, wrong checksum, unsafe or damaged archive, no SRN data,
            a split that is there already, a full disk.
    """
    output = Path(output)
    address, source = _address(name, url)
    local = local_file(address)
    expected = sha256 or (ARCHIVES[name].sha256 if source == "table" else None)
    work = output / ".download"
    with disk_errors(output):
        work.mkdir(parents=True, exist_ok=True)
    with _only_downloader(work), disk_errors(output):
        done = _finished(work, name, address, output)
        if done:
            print(f"{output}: {', '.join(done)} from {address} are there already.", flush=True)
            return output
        if source == "table":
            page = ARCHIVES[name].page
            print(f"{name}: as shared at {page} (this project could not verify the address; another one may be given)")
        archive = local or _obtain(name, address, work, progress)
        digest = _verify(archive, expected, progress)
        print(f"{archive.name}: {archive.stat().st_size} bytes, sha256 {digest}", flush=True)
        entries = _unpack_into(archive, output, work, name, address, progress)
        if archive.parent == work:
            archive.unlink()
    print(f"wrote {', '.join(entries)} to {output}; look at it with: mnif-data check {quoted(output)}", flush=True)
    return output


def _address(name: str, url: str | None) -> tuple[str, str]:
    """The address to use and where it comes from: "flag", "environment" or "table"."""
    variable = "MNIF_URL_" + name.upper().replace("-", "_")
    if url:
        return url, "flag"
    if os.environ.get(variable):
        return os.environ[variable], "environment"
    if name not in ARCHIVES:
        known = ", ".join(ARCHIVES)
        raise MNIFError(f"{name}: no such data set (known: {known}); choose one of them or give an address with `url`.")
    return ARCHIVES[name].url, "table"


def _obtain(name: str, address: str, work: Path, progress: bool) -> Path:
    """The archive, downloaded into `work`."""
    known = ARCHIVES[name].file if name in ARCHIVES else f"{file_name(name)}.archive"
    target, marker = work / known, work / f"{known}.json"
    if target.exists() and _marked(marker).get("url") == address:
        return target
    target.unlink(missing_ok=True)
    with progress_bar(f"downloading {known}", None, "bytes", progress) as advance:
        fetch(address, target, advance)
    write_json(marker, {"url": address})
    return target


def _verify(archive: Path, expected: str | None, progress: bool) -> str:
    with progress_bar("checking", None, "bytes", progress) as advance:
        digest = sha256_of(archive, advance)
    if expected and digest != expected.lower():
        raise MNIFError(
            f"{archive}: sha256 is {digest}, expected {expected.lower()}; delete it and download it again,"
            " or pass the new checksum if the archive was replaced on purpose."
        )
    return digest


def _unpack_into(archive: Path, output: Path, work: Path, name: str, address: str, progress: bool) -> list[str]:
    """Unpack beside the target, then rename split by split; returns the folders' names."""
    for leftover in work.glob("unpack.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix="unpack.", dir=work))
    try:
        with progress_bar("unpacking", None, "bytes", progress) as advance:
            unpack(archive, temporary, advance)
        splits = _splits_in(temporary, archive)
        _publish(splits, output, work / f"{name}.json", address)
        return sorted(path.name for path in splits)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _splits_in(temporary: Path, archive: Path) -> list[Path]:
    """The folders of splits that were unpacked.

    Raises:
        MNIFError: there are none, or of several categories; it names the archive, as what was unpacked goes.
    """
    try:
        splits = list(locate(temporary).splits.values())
    except MNIFError as error:
        reason = (
            str(error).removeprefix(f"{temporary}: ").split(";")[0].replace(str(temporary), archive.name).rstrip(".")
        )
        raise MNIFError(f"{archive}: {reason}; unpack it by hand, and give the part of it that you want.") from None
    if temporary in splits:
        raise MNIFError(f"{archive}: holds scenes but no <category>_<split> folder; unpack it by hand.")
    return splits


def _publish(splits: list[Path], output: Path, marker: Path, address: str) -> None:
    """Move split folders into `output`; the marker names them first, so a killed run may replace its own."""
    names = [path.name for path in splits]
    begun = _marked(marker)
    own = begun["entries"] if begun.get("state") == "moving" and begun.get("url") == address else []
    for name in names:
        if (output / name).exists() and name not in own:
            raise MNIFError(f"{output / name}: exists already; remove it or choose another output folder.")
    write_json(marker, {"state": "moving", "url": address, "entries": names})
    for path in splits:
        if (output / path.name).exists():
            shutil.rmtree(output / path.name)
        os.replace(path, output / path.name)
    write_json(marker, {"state": "done", "url": address, "entries": names})


def _finished(work: Path, name: str, address: str, output: Path) -> list[str]:
    """Split folders that an earlier run has put in place, all still there; else nothing."""
    marker = work / f"{name}.json"
    state = _marked(marker)
    entries: list[str] = state.get("entries", [])
    same = state.get("state") == "done" and state.get("url") == address
    return entries if same and entries and all((output / entry).is_dir() for entry in entries) else []


def _marked(marker: Path) -> dict[str, Any]:
    """What an earlier run has noted; nothing where there was none, or where its note is damaged."""
    try:
        found = read_record(marker)
    except MNIFError:
        return {}
    entries = found.setdefault("entries", [])
    return found if isinstance(entries, list) and all(isinstance(name, str) for name in entries) else {}


@contextlib.contextmanager
def _only_downloader(work: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(work / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise MNIFError(f"{work}: another download into this folder is running; wait for it to end.") from None
    try:
        yield
    finally:
        lock.release()
