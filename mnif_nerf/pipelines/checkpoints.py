"""Checkpoints of a run, whole or absent; nerfstudio's commands and `mnif-train` read and write the same files."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mnif_nerf.errors import MNIFError, disk_errors

_CHECKPOINT = re.compile(r"^step-(\d{9})\.ckpt$")


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, if there is one."""
    if not folder.is_dir():
        return None
    found = sorted(path for path in folder.iterdir() if _CHECKPOINT.match(path.name))
    return found[-1] if found else None


def checkpoint_in(folder: Path, step: int | None) -> Path:
    """The checkpoint of `step`, or the latest.

    Raises:
        MNIFError: there is none.
    """
    found = latest_checkpoint(folder) if step is None else folder / f"step-{step:09d}.ckpt"
    if found is None or not found.is_file():
        raise MNIFError(
            f"{folder}: no checkpoint{'' if step is None else f' of step {step}'} in it; give the folder "
            "nerfstudio_models of a run."
        )
    return found


def write_checkpoint(state: dict[str, Any], folder: Path, only_latest: bool = True) -> Path:
    """Write a checkpoint beside its place and move it there, then drop older ones.

    Killed at any moment, the run keeps the last whole checkpoint.

    Args:
        state: "step", "pipeline", "optimizers", "schedulers" and "scalers", as nerfstudio has them.
        folder: folder of the run's checkpoints.
        only_latest: whether older ones are removed.

    Raises:
        MNIFError: a disk that cannot take it.
    """
    target = folder / f"step-{state['step']:09d}.ckpt"
    # Not in the checkpoint folder: nerfstudio takes every file in there for a checkpoint.
    temporary = folder.parent / ".checkpoint.tmp"
    with disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # An open file: where torch opens one itself, a full disk becomes a RuntimeError.
            with open(temporary, "wb") as file:
                _save(state, file)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    if only_latest:
        for other in folder.glob("*.ckpt"):
            if other != target:
                other.unlink(missing_ok=True)
    return target


def _save(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # On a full disk torch cannot write the end of the file either, and that error hides the first one.
        cause = error.__context__
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        raise cause or error from None


# What reading a damaged or foreign checkpoint may raise.
DAMAGED = (RuntimeError, EOFError, OSError, pickle.UnpicklingError, KeyError, ValueError)


def damaged_checkpoint(file: Path | None, error: Exception) -> MNIFError:
    """What to tell the user of such an error."""
    reason = str(error).split("\n", 1)[0]
    return MNIFError(f"{file}: cannot be loaded ({reason}); it is damaged or of another configuration or version.")


def verify_checkpoint(file: Path) -> None:
    """Compare every part of a checkpoint with the checksum that was written with it; torch itself does not.

    Raises:
        MNIFError: a byte is not what was written.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise damaged_checkpoint(file, error) from error
    if broken is not None:
        raise MNIFError(f"{file}: is damaged ({broken} is not what was written); go on from another checkpoint.")


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        MNIFError: there is none, or it cannot be read.
    """
    if not file.is_file():
        raise MNIFError(f"{file}: no such checkpoint; give a file nerfstudio_models/step-*.ckpt of a run.")
    verify_checkpoint(file)
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        _ = state["step"], state["pipeline"], state["optimizers"]
    except DAMAGED as error:
        raise damaged_checkpoint(file, error) from error
    return state


def time_plan_in(file: Path) -> dict[str, Any] | None:
    """What a checkpoint says of a run whose steps were planned from its minutes: see `TimePlan.kept`.

    Returns:
        None where the number of steps was given.

    Raises:
        MNIFError: it cannot be read.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)  # mapped: weights are not read
        plan: dict[str, Any] | None = state.get("time_plan")
    except DAMAGED as error:
        raise damaged_checkpoint(file, error) from error
    return plan


def how_to_resume(folder: Path, step: int) -> str:
    """What to tell a user who has interrupted a run at `step`."""
    kept = latest_checkpoint(folder)
    if kept is None:
        return f"interrupted at step {step}, before the first checkpoint; nothing was kept."
    return (
        f"interrupted at step {step}; {kept} is kept: go on from there with the same command and --load-dir {folder}."
    )


def nothing_left(steps: int) -> str:
    """What to tell a user whose run has all its steps already."""
    return f"The run has its {steps} steps; --max-num-iterations N goes on to step N."


def require_instances(trained: Sequence[str], present: Sequence[str], root: Path) -> None:
    """Refuse to go on with other instances than those of the checkpoint.

    Args:
        trained: names in the checkpoint.
        present: names in the data.
        root: the data folder.

    Raises:
        MNIFError: they differ.
    """
    if tuple(trained) != tuple(present):
        raise MNIFError(
            f"the checkpoint holds {len(trained)} instances, and {root} holds {len(present)} others; go on with the "
            "data it was trained on."
        )
