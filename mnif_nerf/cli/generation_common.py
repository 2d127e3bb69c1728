"""What mnif-sample, mnif-export-mesh and mnif-train-prior share: loading, output folders, progress bars."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mnif_nerf.errors import MNIFError, disk_errors

if TYPE_CHECKING:
    from mnif_nerf.pipelines.generation import MNIFPipeline


def load_pipeline(load_config: str, device: str | None) -> MNIFPipeline:
    """Load the model and set the process up for rendering (threads as measured, denormals as zero)."""
    from mnif_nerf.machine import flush_denormals, tune_threads
    from mnif_nerf.pipelines.generation import MNIFPipeline

    pipe = MNIFPipeline.from_pretrained(load_config, device)
    flush_denormals()
    if pipe.latents.device.type == "cpu":
        probe = pipe.decode([0.0] * pipe.model.field.spec.latent_dim)
        tune_threads(lambda: probe.render(resolution=64))
    return pipe


def default_output(load_config: str, kind: str, name: str) -> Path:
    """`<run>/<kind>/<name>` beside the model folder; under outputs/ for a model from the hub."""
    from mnif_nerf.pipelines.model_folder import locate_model

    path = Path(load_config)
    if not path.exists():
        return Path("outputs") / path.name / kind / name
    model = locate_model(path)
    run = model.parent if model.name == "model" else model
    return run / kind / name


def prepare_output(folder: Path) -> Path:
    """Make the output folder, before any long work.

    Raises:
        MNIFError: it is a file, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise MNIFError(f"{folder}: is a file; choose a folder with --output.")
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".write-test"
            probe.touch()
            probe.unlink()
        except NotADirectoryError:
            raise MNIFError(f"{folder}: part of this path is a file; choose another folder with --output.") from None
    return folder


@contextlib.contextmanager
def progress_bar(text: str, total: int) -> Iterator[Callable[[], None]]:
    """A rich progress bar on standard error; yields a function that advances it by one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)


def file_name(name: str) -> str:
    """An instance name as a file name: letters, digits, dot, dash and underscore stay."""
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "object"
