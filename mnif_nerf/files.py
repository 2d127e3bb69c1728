"""Writing files and folders that are whole or absent: a temporary name beside the target, then an exchange.

What a killed process leaves behind is `.<name>.<machine>-<process>-<token>.tmp` beside the target; the next write
there removes it. A folder that is replaced exists at every moment where the system can exchange two names at once
(Linux, nearly every file system). Elsewhere there is a moment between two renames, in which the old folder is named
like the above with `.old` at its end; `recover_folder` puts it back.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mnif_nerf.errors import MNIFError, disk_errors, first_line
from mnif_nerf.names import shown

Described = TypeVar("Described")
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{12}\.(tmp|old)(\.[^.]*)?")
_FOREIGN_AGE = 7 * 24 * 3600  # seconds after which another machine's leftover is taken for one: it cannot be asked
_FLUSHERS = 16  # files flushed at once, which shares the file system's journal commits: eight times as fast


@contextlib.contextmanager
def atomic_file(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path (same folder, same suffix) that replaces `target` when the block ends well.

    On any exception, Ctrl-C included, the temporary file is removed and `target` stays as it was. A power cut can
    lose what was just written, never what it replaced.

    Raises:
        MNIFError: the disk is full or the folder cannot be written.
    """
    target = Path(target)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Named before it is made: mkstemp would leave the file behind where Ctrl-C comes just after it.
        temporary = target.parent / (_hidden_name(target.stem, ".tmp") + target.suffix)
        try:
            _sweep_once(target.parent.absolute())
            temporary.touch(exist_ok=False)  # the system applies the umask, which only setting it would tell
            yield temporary
            if target.exists():
                _flush(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path | str, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that becomes `target` when the block ends well.

    Its files are on the disk before it takes the name. Until then an existing `target` stays as it is, whenever the
    process is killed.

    Args:
        target: the folder to create.
        replace: whether an existing `target` is replaced; otherwise it is an error.

    Raises:
        MNIFError: `target` exists and `replace` is false, or the disk is full or cannot be written.
    """
    target = Path(target)
    if os.path.realpath(target) == os.getcwd():
        raise MNIFError(f"{target}: is the folder you are in, which cannot be replaced; name another one.")
    recover_folder(target)
    if os.path.lexists(target) and not replace:
        raise MNIFError(f"{target}: exists already; choose another name or remove it first.")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        temporary = target.parent / _hidden_name(target.name, ".tmp")
        try:
            temporary.mkdir()
            yield temporary
            _flush_folder(temporary)
            if os.path.lexists(target):
                _exchange(temporary, target)
            else:
                os.replace(temporary, target)
            _flush(target.parent)
        finally:
            _remove(temporary)


def recover_folder(target: Path | str) -> None:
    """Put back a folder whose replacement was killed between two renames; whoever reads folders calls it.

    Only systems that cannot exchange two names at once leave such a folder. One that is being replaced at this moment
    is waited for.
    """
    target = Path(target)
    for _ in range(50):
        retired = [] if os.path.lexists(target) else list(_leftovers(target.parent, target.name, ".old"))
        if not retired:
            return
        for path in retired:
            if not _in_use(path):
                with contextlib.suppress(OSError):  # another reader was faster
                    os.rename(path, target)
                return
        time.sleep(0.02)


def _hidden_name(name: str, ending: str) -> str:
    return f".{name}.{_machine()}-{os.getpid()}-{secrets.token_hex(6)}{ending}"


@functools.lru_cache(maxsize=1)
def _machine() -> str:
    """What a process number belongs to, in 8 digits: two containers may share a folder and a host name."""
    about = [platform.node()]
    for source in ("/etc/machine-id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            about.append(os.readlink(source) if os.path.islink(source) else Path(source).read_text())
    return hashlib.blake2b("\0".join(about).encode(), digest_size=4).hexdigest()


def _leftovers(folder: Path, name: str | None = None, ending: str = "") -> Iterator[Path]:
    """Temporary names in a folder, of living processes too."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _LEFTOVER.fullmatch(entry.name) if entry.name.startswith(".") else None
            if match and entry.name.endswith(ending) and name in (None, match["name"]):
                yield Path(entry.path)


def is_leftover(name: str) -> bool:
    """Whether a file name is one that a killed process, or one at work, left beside what it writes."""
    return _LEFTOVER.fullmatch(name) is not None


def _in_use(path: Path) -> bool:
    """Whether the process that made a temporary name may still live."""
    match = _LEFTOVER.fullmatch(path.name)
    assert match is not None
    if match["machine"] != _machine():
        with contextlib.suppress(OSError):
            return time.time() - path.lstat().st_mtime < _FOREIGN_AGE
        return True
    if os.name != "posix":  # there, signal 0 would end the process
        return True
    try:
        os.kill(int(match["process"]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _sweep(folder: Path) -> None:
    """Remove what dead processes left in a folder; a folder that lost its name in a replacement gets it back."""
    for path in list(_leftovers(folder)):
        if _in_use(path):
            continue
        match = _LEFTOVER.fullmatch(path.name)
        if path.name.endswith(".old") and match is not None:
            recover_folder(folder / match["name"])
        _remove(path)


@functools.lru_cache(maxsize=4096)
def _sweep_once(folder: Path) -> None:
    """Once per process: a folder of ten thousand pictures is not listed for each of them."""
    _sweep(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name != "posix":  # Windows opens no folders, and flushes writable files only
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    with ThreadPoolExecutor(_FLUSHERS) as pool:
        list(pool.map(_flush, [*paths, folder]))


def _exchange(temporary: Path, target: Path) -> None:
    """Give the new folder the name, and the old one the temporary name."""
    if _exchange_names(temporary, target):
        return
    retired = temporary.with_suffix(".old")
    try:
        os.replace(target, retired)
        os.replace(temporary, target)
    except BaseException:
        if not os.path.lexists(target):
            os.replace(retired, target)
        raise
    _remove(retired)


def _exchange_names(first: Path, second: Path) -> bool:
    """Exchange two names in one step (Linux' `renameat2`); False where the system or the file system cannot.

    Raises:
        OSError: it can, but not these two.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if function is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if function(here, os.fsencode(first), here, os.fsencode(second), ctypes.c_uint(exchange)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def write_json(target: Path | str, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=False) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        MNIFError: the file is missing or is not valid JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MNIFError(f"{path}: no such file.") from None
    except OSError as error:
        raise MNIFError(f"{path}: cannot be read ({error.strerror}); check its path and permissions.") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, too deep, a number of thousands of digits
        reason = first_line(error)
        raise MNIFError(f"{path}: not valid JSON ({reason}); write it again with the command that made it.") from None


def read_record(path: Path | str) -> dict[str, Any]:
    """Read a JSON file that holds a description, such as what a command has noted of its own work.

    Raises:
        MNIFError: see `read_json`; also where it holds something else than a description.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        found = shown(content)
        raise MNIFError(f"{path}: holds {found} where a description is expected; remove it, and run the command again.")
    return content


@contextlib.contextmanager
def content_errors(path: Path | str, remedy: str) -> Iterator[None]:
    """Turn what goes wrong while the entries of a file are taken apart into an `MNIFError`.

    Raises:
        MNIFError: an entry is missing, or is not what it should be; `remedy` says what to do then.
    """
    try:
        yield
    except MNIFError:
        raise
    except KeyError as error:
        raise MNIFError(f"{path}: lacks {error.args[0]!r}; {remedy}.") from error
    except (TypeError, ValueError, AttributeError) as error:  # json.JSONDecodeError is a ValueError
        raise MNIFError(f"{path}: holds something unexpected ({error}); {remedy}.") from error


def check_keys(content: Any, known: Iterable[str], where: object, remedy: str) -> None:
    """Refuse a stored description with a key that this version does not know: what it says might matter.

    Missing keys are no fault of a file, which may be older than they are: readers have defaults for them.

    Raises:
        MNIFError: an unknown key, or no dictionary at all.
    """
    if not isinstance(content, dict):
        raise MNIFError(f"{where}: holds {content!r} where a description is expected; {remedy}.")
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise MNIFError(
            f"{where}: unknown {', '.join(map(repr, unknown))}, so another version wrote it; update mnif_nerf, "
            f"or {remedy}."
        )


def from_description(kind: type[Described], content: Any, where: object, remedy: str) -> Described:
    """A dataclass from its stored fields; those that a file lacks take their defaults.

    Raises:
        MNIFError: a key is unknown, one without a default is missing, or a value is refused.
    """
    known = dataclasses.fields(kind)  # type: ignore[arg-type]
    check_keys(content, (field.name for field in known), where, remedy)
    none = dataclasses.MISSING
    missing = [f.name for f in known if f.default is none and f.default_factory is none and f.name not in content]
    if missing:
        raise MNIFError(f"{where}: lacks {', '.join(map(repr, missing))}; {remedy}.")
    return kind(**content)
