"""Writing files and folders that are whole or absent: a temporary name beside the target, then a rename."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.errors import MNIFError, disk_errors

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def atomic_file(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path (same folder, same suffix) that replaces `target` when the block ends well.

    On any exception, Ctrl-C included, the temporary file is removed and `target` stays as it was.

    Raises:
        MNIFError: the disk is full or the folder cannot be written.
    """
    target = Path(target)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Named before it is made: mkstemp would leave the file behind where Ctrl-C comes just after it.
        temporary = target.parent / f".{target.stem}.{secrets.token_hex(6)}.tmp{target.suffix}"
        try:
            temporary.touch(exist_ok=False)  # the system applies the umask, which only setting it would tell
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path | str, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that becomes `target` when the block ends well.

    Args:
        target: the folder to create.
        replace: whether an existing `target` is replaced; otherwise it is an error.

    Raises:
        MNIFError: `target` exists and `replace` is false, or the disk is full or cannot be written.
    """
    target = Path(target)
    if target.resolve() == Path.cwd():
        raise MNIFError(f"{target}: is the folder you are in, which cannot be replaced; name another one.")
    if target.exists() and not replace:
        raise MNIFError(f"{target}: exists already; choose another name or remove it first.")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}.tmp"
        try:
            temporary.mkdir()
            yield temporary
            if target.exists():
                retired = temporary.with_suffix(".old")
                try:
                    os.replace(target, retired)
                    os.replace(temporary, target)
                except BaseException:
                    if not target.exists():
                        os.replace(retired, target)
                    raise
                shutil.rmtree(retired, ignore_errors=True)
            else:
                os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MNIFError(f"{path}: not valid JSON ({error}); write it again with the command that made it.") from None


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


def write_tensors(target: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors (of any device and layout) as a safetensors file, atomically.

    Raises:
        MNIFError: the disk is full or the folder cannot be written.
    """
    from safetensors.torch import save

    # Through bytes: where safetensors writes by itself, a full disk is an error of its own kind.
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    with atomic_file(target) as temporary:
        temporary.write_bytes(content)


def read_tensors(path: Path | str, remedy: str = "write it again") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors on the CPU, and its metadata.

    Raises:
        MNIFError: the file is missing or damaged; `remedy` says what to do then.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise MNIFError(f"{path}: no such file; {remedy}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise MNIFError(f"{path}: not a readable safetensors file ({error}); {remedy}.") from None
