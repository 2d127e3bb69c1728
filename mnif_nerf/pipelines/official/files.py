"""Reading the files of the authors' release: tensors only, and a sentence for what is wrong with them."""

from __future__ import annotations

import re
import tarfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError

_MOST_NAMED = 8


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote, tensors and plain containers only: no code in the file is run.

    Raises:
        MNIFError: no such file, not written by torch, damaged, or holding other Python objects.
    """
    if path.is_dir():
        inside = next((str(file) for file in sorted(path.rglob("metainits/epoch*.pth"))), "metainits/epochN.pth")
        raise MNIFError(f"{path}: is a folder; give one of the authors' checkpoints in it, such as {inside}.")
    if not path.is_file():
        raise MNIFError(f"{path}: no such file; give one of the authors' checkpoints.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about the file's own age
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # pickle, zip and torch each have errors of their own
        if _is_archive(path):
            raise MNIFError(
                f"{path}: is an archive of files, not a checkpoint; unpack it and give the metainits/epochN.pth inside."
            ) from error
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is not None:
            raise MNIFError(
                f"{path}: holds a Python object ({wanted[1]}) that is not loaded, because it could run code; where "
                'you trust the file, save the tensors alone: torch.save(checkpoint["state_dict"], ...).'
            ) from error
        raise MNIFError(
            f"{path}: not a checkpoint that torch can read, or a damaged one; download or copy it again."
        ) from error


def _is_archive(path: Path) -> bool:
    """Whether the file is a zip or tar archive that torch did not write."""
    if tarfile.is_tarfile(path):
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(name.endswith("data.pkl") for name in archive.namelist())


def read_names(path: Path | None, count: int) -> tuple[str, ...]:
    """Names of the training instances; none without a path.

    Args:
        path: a text file with one name a line, or a folder whose subfolders are the instances.
        count: how many there have to be.

    Raises:
        MNIFError: nothing there, not as many, or one twice.
    """
    if path is None:
        return ()
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    elif path.is_file():
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        raise MNIFError(f"{path}: no such file or folder; give the names of the training instances.")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if len(names) != count or twice:
        what = f"names {twice[0]} twice" if twice else f"has {len(names)} names for {count} latents"
        raise MNIFError(f"{path}: {what}; give those of the split that the contexts are of, in its order.")
    return tuple(names)


def state_dict(content: Any, path: Path) -> dict[str, Any]:
    """A state dict by name; what is no tensor stays, so that it can be named.

    Raises:
        MNIFError: there is no tensor in it.
    """
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise MNIFError(f"{path}: holds no named tensors; give one of the authors' checkpoints.")
    return {str(name): value for name, value in content.items()}


def take(state: dict[str, Any], name: str, place: str) -> Tensor:
    """One tensor of a state dict.

    Raises:
        MNIFError: it is missing.
    """
    if not isinstance(state.get(name), Tensor):
        raise MNIFError(f"{place}: has no {name}; it is incomplete, or of another model or kind.")
    return state[name]


def shaped(state: dict[str, Any], name: str, shape: tuple[int, ...], place: str) -> Tensor:
    """One tensor as float32, of the shape that the others ask for.

    Raises:
        MNIFError: it is missing, of another shape, or not finite.
    """
    value = take(state, name, place)
    if tuple(value.shape) != shape:
        raise MNIFError(
            f"{place}: {name} has shape {list(value.shape)}, but the other tensors ask for {list(shape)}; the file "
            "is damaged or of another model."
        )
    return finite(value, name, place)


def finite(value: Tensor, name: str, place: str) -> Tensor:
    """A tensor as float32.

    Raises:
        MNIFError: NaN or infinite numbers in it.
    """
    value = value.detach().float()
    if not bool(torch.isfinite(value).all()):
        raise MNIFError(f"{place}: {name} has NaN or infinite numbers; use another checkpoint.")
    return value


def left_out(place: str, names: set[str], groups: dict[str, tuple[set[str], str]]) -> list[str]:
    """Lines on the keys of a file that were not mapped: none is dropped without a word.

    Args:
        place: the file.
        names: the keys.
        groups: by a label such as "model.net.*", keys that may be left out, and why.
    """
    lines = []
    for label, (members, reason) in groups.items():
        group = names & members
        names = names - group
        if group:
            lines.append(f"left out of {place}: {len(group)} tensors {label} ({reason})")
    if names:
        listed = sorted(names)
        more = f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
        lines.append(f"not known, left out of {place}: {', '.join(listed[:_MOST_NAMED])}{more}")
    return lines
