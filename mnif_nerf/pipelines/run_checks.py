"""What a training run must not begin with, and what it must not replace."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from mnif_nerf.errors import MNIFError
from mnif_nerf.files import read_json
from mnif_nerf.latents.encoding_settings import EncodingSettings
from mnif_nerf.latents.ranks import Ranks
from mnif_nerf.latents.stage1 import Stage1Trainer
from mnif_nerf.limits import require_count, require_settings
from mnif_nerf.pipelines.methods import METHODS
from mnif_nerf.pipelines.model_folder import require_outside_models

_MOST_THREADS = 1024
_MOST_SEED = 2**32 - 1  # of numpy's generator


def check_run(settings: Any, folder: Path, ranks: Ranks | None = None) -> None:
    """Refuse settings that no run can have, before anything is written.

    Args:
        settings: `RunSettings`, or nerfstudio's configuration, which has the same names.
        folder: folder of the run.
        ranks: the processes that train together; None where nerfstudio has not started them yet.

    Raises:
        MNIFError: devices that no process was started for, a seed or another number out of range, or a folder with a
            longer run in it.
    """
    machine = settings.machine
    _check_ranks(settings, ranks)
    require_outside_models(folder)
    require_count("`seed`", machine.seed, 0, _MOST_SEED)
    require_count("`max_num_iterations`", settings.max_num_iterations, 1)
    require_count("`steps_per_log`", settings.logging.steps_per_log, 1)
    _check_device(machine.device_type)
    method = METHODS.get(settings.method_name)
    if method is not None:
        require_count("`pipeline.threads`", settings.pipeline.threads, 0, _MOST_THREADS)
        require_settings(settings, method.settings)
        _check_encoding(settings.pipeline)
    resumes = settings.load_dir is not None or settings.load_checkpoint is not None
    there = finished_steps(folder)
    if not resumes and not settings.minutes and there > settings.max_num_iterations:
        raise MNIFError(
            f"{folder}: holds a finished model of {there:,} steps, and this run would replace it by one of "
            f"{settings.max_num_iterations:,}; choose another `timestamp` or `output_dir`, or remove the folder first."
        )


def _check_ranks(settings: Any, ranks: Ranks | None) -> None:
    numbers = {name: getattr(settings.machine, name, 1) for name in ("num_devices", "num_machines")}
    for name, number in numbers.items():
        require_count(f"`{name}`", number, 1)
    wanted = math.prod(numbers.values())
    if ranks is not None and ranks.size == 1 < wanted:
        raise MNIFError(
            f"`num_devices` is {wanted}, but this is one process alone; start several by mnif-train or torchrun."
        )
    if ranks is None and wanted > 1 and settings.machine.device_type != "cuda":
        raise MNIFError(
            "nerfstudio starts several processes on CUDA devices alone; use mnif-train, or `num_devices` 1."
        )
    present = torch.cuda.device_count()
    if settings.machine.device_type == "cuda" and torch.cuda.is_available() and numbers["num_devices"] > present:
        raise MNIFError(f"`num_devices` is {numbers['num_devices']}, and this machine has {present}; start so many.")
    if settings.minutes and max(wanted, ranks.size if ranks is not None else 1) > 1:
        raise MNIFError(
            "`minutes` plans a run by the clock of one process, and here are several; give `max_num_iterations`."
        )


def _check_encoding(pipeline: Any) -> None:
    """Refuse settings of fitting that the model folder would be refused for after the training."""
    names = [entry.name for entry in dataclasses.fields(EncodingSettings)]
    parts = (pipeline, pipeline.datamanager, pipeline.model)
    EncodingSettings.from_training({n: getattr(part, n) for part in parts for n in names if hasattr(part, n)})


def _check_device(kind: str) -> None:
    if kind not in ("auto", "cpu", "cuda"):
        raise MNIFError(f"`device_type` {kind} cannot be trained on; use cpu or cuda.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise MNIFError("`device_type` cuda is not available on this machine; use cpu.")


def finished_steps(folder: Path) -> int:
    """Steps of the finished model in a run folder; 0 where there is none."""
    training = _training_of(folder)
    steps = training.get("steps")
    return steps if training.get("finished") is True and isinstance(steps, int) else 0


def has_model(folder: Path) -> bool:
    """Whether a run folder holds a model, finished or not."""
    return bool(_training_of(folder).get("steps"))


def _training_of(folder: Path) -> dict[str, Any]:
    try:
        content = read_json(folder / "model" / "config.json")
    except (MNIFError, OSError):
        return {}
    training = content.get("training") if isinstance(content, dict) else None
    return training if isinstance(training, dict) else {}


def why_not_kept(trainer: Stage1Trainer, folder: Path, step: int) -> str:
    """Why what was trained must not replace the model and the checkpoint of a run folder; "" where it may.

    A run that breaks down for the first time has nothing to lose: it is written, to be looked at.

    Raises:
        MNIFError: training has diverged beyond use.
    """
    trainer.model.require_finite(step)
    broken = trainer.watch.broken
    if not broken or not has_model(folder):
        return ""
    return f"{broken.rstrip('.')}; the model in {folder / 'model'} is kept as it was."
