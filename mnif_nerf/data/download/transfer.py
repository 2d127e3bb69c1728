"""Fetching one large file over HTTP: resumable, checked, never spliced from two versions."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from mnif_nerf.errors import MNIFError, disk_errors, first_line
from mnif_nerf.files import read_json, write_json
from mnif_nerf.progress import Advance, silent

_CHUNK = 1 << 18
_TIMEOUT = 30.0
_CUT_CONNECTIONS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
_RETRIED = (408, 425, 429, 500, 502, 503, 504)


# What tells one version of a remote file from another, kept as JSON beside the unfinished download: url, etag, modified
# and size, None where the server does not say.
Version = dict[str, Any]


def fetch(
    url: str,
    target: Path,
    advance: Advance = silent,
    attempts: int = 6,
    pause: float = 2.0,
) -> None:
    """Download `url` to `target`, going on from `<target>.part` where an earlier run was cut off.

    The server is asked for the rest only if the file is still the same (If-Range with its ETag or date, and
    the total size); a changed file, or a server without ranges, starts from the beginning. A cut connection
    is retried with growing pauses. `advance` counts bytes.

    Raises:
        MNIFError: a bad address, a refusal by the server, a web page instead of a file, no connection after
            `attempts` tries without progress, a full disk.
    """
    _require_address(url)
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            with disk_errors(part):
                if _fetch_once(url, part, advance):
                    os.replace(part, target)
                    _version_file(part).unlink(missing_ok=True)
                    return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code not in _RETRIED:
                remedy = "check the address, or give another with `url`"
                raise MNIFError(f"{url}: the server answered {error.code} {error.reason}; {remedy}.") from None
            reason = f"the server answered {error.code} {error.reason}"
        except _CUT_CONNECTIONS as error:
            if _is_hopeless(error):
                raise MNIFError(
                    f"{url}: {first_line(error)}; check the address and the network, or give another with `url`."
                ) from None
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        after = part.stat().st_size if part.exists() else 0
        failures = 1 if after > before else failures + 1
        if failures >= attempts:
            raise MNIFError(f"{url}: {reason} ({failures} tries); run the command again to go on from {after} bytes.")
        time.sleep(pause * 2 ** (failures - 1))


def local_file(address: str) -> Path | None:
    """The file on this machine that an address means, or None where it means one on the web.

    Raises:
        MNIFError: it is no address, or the file is not there.
    """
    scheme, _, rest = address.partition("://")
    if scheme.lower() in ("http", "https"):
        _require_address(address)
        return None
    local = Path(urllib.parse.unquote(rest) if scheme.lower() == "file" else address).expanduser()
    if not local.is_file():
        raise MNIFError(f"{local}: no such file; give the path of an archive or an http(s) address.")
    return local


def _require_address(url: str) -> None:
    """Refuse what is no address of a file on the web, before anything is asked of the network."""
    try:
        parts = urllib.parse.urlsplit(url)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        (parts.hostname or "").encode("idna")
    except ValueError:  # a bracket without its other, a port beyond 65535, a label without end
        named, parts = False, urllib.parse.urlsplit("")
    if not named or parts.scheme not in ("http", "https") or not url.isprintable() or " " in url:
        raise MNIFError(f"{url}: not an http(s) address; give one, or the path of an archive on this machine.")


def _is_hopeless(error: BaseException) -> bool:
    """Whether to try again cannot help: no host of this name, nobody who answers, no trust."""
    reason = getattr(error, "reason", error)
    no_host = isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN
    return no_host or isinstance(reason, (ConnectionRefusedError, ssl.SSLCertVerificationError, http.client.InvalidURL))


def sha256_of(path: Path, advance: Advance = silent) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest, total = hashlib.sha256(), path.stat().st_size
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            advance(len(block), total=total)
    return digest.hexdigest()


def _fetch_once(url: str, part: Path, advance: Advance) -> bool:
    """One request; True where the file is complete afterwards. An answer that is no sequel drops `part`."""
    known = _known_version(url, part)
    start = part.stat().st_size if known else 0
    request = urllib.request.Request(url, headers={"User-Agent": "mnif-data", "Accept-Encoding": "identity"})
    if start and known:
        request.add_header("Range", f"bytes={start}-")
        validator = known["etag"] or known["modified"]
        if validator:
            request.add_header("If-Range", validator)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and known and known["size"] == start:
            return True
        if error.code == 416:
            _forget(part)
            return False
        raise
    with response:
        version = _version_of(url, response)
        if response.status == 206:
            if not _continues(response, version, known, start):
                _forget(part)
                return False
        else:
            start = 0
        _refuse_web_page(url, response)
        _require_space(part, version, start)
        if start == 0:
            _forget(part)
            write_json(_version_file(part), version)
        return _receive(response, part, start, version["size"], advance)


def _receive(response: Any, part: Path, start: int, total: int | None, advance: Advance) -> bool:
    done = start
    with open(part, "ab") as file:
        advance(at=done, total=total)
        while block := response.read(_CHUNK):
            file.write(block)
            done += len(block)
            advance(at=done, total=total)
    if total is not None and done > total:
        _forget(part)
        return False
    return total is None or done == total


def _known_version(url: str, part: Path) -> Version | None:
    """The version that `part` was begun from, if it can be continued."""
    if not part.exists() or not part.stat().st_size:
        return None
    try:
        known = read_json(_version_file(part))
        same = known["url"] == url and bool(known["etag"] or known["modified"] or known["size"])
    except (MNIFError, TypeError, KeyError):
        return None
    return known if same else None


def _version_of(url: str, response: Any) -> Version:
    etag = response.headers.get("ETag")
    if etag and etag.startswith("W/"):
        etag = None  # a weak tag does not promise the same bytes
    size: int | None = None
    if response.status == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        size = int(total) if total.isdigit() else None
    elif response.headers.get("Content-Length", "").isdigit():
        size = int(response.headers["Content-Length"])
    return {"url": url, "etag": etag, "modified": response.headers.get("Last-Modified"), "size": size}


def _continues(response: Any, version: Version, known: Version | None, start: int) -> bool:
    """Is this partial answer the rest of the very file that was begun?"""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if known is None or first != str(start):
        return False
    pairs = [(version[key], known[key]) for key in ("etag", "modified", "size")]
    return all(new is None or old is None or new == old for new, old in pairs)


def _refuse_web_page(url: str, response: Any) -> None:
    if response.headers.get_content_type() == "text/html":
        raise MNIFError(
            f"{url}: the server sent a web page instead of a file (Google Drive does so for a used-up quota);"
            " download the file with a browser and give its path with `url`."
        )


def _require_space(part: Path, version: Version, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if version["size"] is not None and version["size"] - start > free:
        needed = f"{(version['size'] - start) / 1e6:.0f} MB to download and {free / 1e6:.0f} MB free"
        raise MNIFError(f"{part.parent}: {needed}; free some space or choose another folder.")


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)
