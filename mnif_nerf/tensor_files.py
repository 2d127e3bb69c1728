"""Tensors by name in safetensors files, each with a digest of itself: what a disk or a copy has changed is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.errors import MNIFError, first_line
from mnif_nerf.files import atomic_file
from mnif_nerf.limits import require_memory

if TYPE_CHECKING:
    from torch import Tensor

_DIGEST = "sha256"  # its name in the metadata


def write_tensors(target: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors (of any device and layout) as a safetensors file with its own digest, atomically.

    Raises:
        MNIFError: the disk is full or the folder cannot be written.
    """
    from safetensors.torch import save

    # Through bytes: where safetensors writes by itself, a full disk is an error of its own kind, and the order of
    # metadata another each time.
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    start = 8 + int.from_bytes(content[:8], "little")
    about, values = dict(metadata or {}), memoryview(content)[start:]
    header = {"__metadata__": about, **json.loads(content[8:start])}
    about[_DIGEST] = _tensor_digest(header, [values])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, values]))


def _tensor_digest(header: dict[str, Any], values: Iterable[bytes | memoryview]) -> str:
    """Of names, types, shapes and metadata (in any order), and of all bytes."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for part in values:
        digest.update(part)
    return digest.hexdigest()


def _is_as_written(path: Path) -> bool:
    """Whether a safetensors file fits its digest; those without one (older ones, other programs') are not asked."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        stored = header.get("__metadata__", {}).pop(_DIGEST, None)
        return stored is None or stored == _tensor_digest(header, iter(lambda: file.read(1 << 22), b""))


def read_tensors(path: Path | str, remedy: str = "write it again") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors on the CPU, and its metadata.

    Raises:
        MNIFError: the file is missing, damaged or larger than the free memory; `remedy` says what to do then.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise MNIFError(f"{path}: no such file; {remedy}.")
    require_memory(path.stat().st_size, f"{path}: reading it", remedy)
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata: dict[str, str] = file.metadata() or {}
        whole = _is_as_written(path)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = first_line(error)  # of torch too, where a number format is not known to it
        raise MNIFError(f"{path}: not a readable safetensors file ({reason}); {remedy}.") from None
    if not whole:
        raise MNIFError(f"{path}: is damaged (its content is not what was written); {remedy}.")
    metadata.pop(_DIGEST, None)
    return tensors, metadata


def require_real(tensors: Mapping[str, Tensor], path: Path | str, remedy: str) -> None:
    """Refuse tensors that are not of finite floating-point numbers: integers, truth values, complex ones, NaN.

    Args:
        tensors: by name.
        path: where they come from.
        remedy: what to do then, without a final stop.

    Raises:
        MNIFError: with the name of the first.
    """
    import torch

    for name, value in tensors.items():
        if value.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            kind = str(value.dtype).removeprefix("torch.")
            raise MNIFError(f"{path}: {name} is of type {kind}, where floating-point numbers belong; {remedy}.")
        if not bool(torch.isfinite(value).all()):
            raise MNIFError(f"{path}: {name} has NaN or infinite numbers; {remedy}.")
