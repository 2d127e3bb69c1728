"""Runs and data that were moved, as nerfstudio's commands meet them.

ns-viewer, ns-eval, ns-render and ns-export look for a run's checkpoints where the run was written, seen from the
working directory, and open its data at the old place; none of them can be told another one. Here a run is where its
config.yml is, and `--data` (or the environment's MNIF_DATA) names its data.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mnif_nerf.pipelines.run_data import missing_data, place_of_data

DATA = "MNIF_DATA"
_COMMANDS = {
    "ns-viewer": "run_viewer", "ns-eval": "eval", "ns-render": "render", "ns-export": "exporter",
}  # fmt: skip
"""Commands that load a run, and the modules of nerfstudio that they are."""


def is_command(program: str) -> bool:
    """Whether a program (`sys.argv[0]`) is one of those that load a run."""
    path = Path(program)
    return path.stem in _COMMANDS or ("nerfstudio" in path.parts and path.stem in _COMMANDS.values())


def take_data_option(arguments: list[str]) -> None:
    """Take `--data PATH` out of the options of a command that loads a run: nerfstudio, which lacks it, reads them next.

    Args:
        arguments: `sys.argv`, changed in place. `ns-render dataset` has the option itself.
    """
    if not arguments or not is_command(arguments[0]) or renders_data(arguments):
        return
    for index, text in enumerate(arguments):
        if text.startswith("--data="):
            os.environ[DATA] = text.removeprefix("--data=")
            del arguments[index]
            return
        if text == "--data" and index + 1 < len(arguments):
            os.environ[DATA] = arguments[index + 1]
            del arguments[index : index + 2]
            return


def renders_data(arguments: list[str]) -> bool:
    """Whether a command (`sys.argv`) is `ns-render dataset`, which puts renders beside the data's own pictures."""
    return len(arguments) > 1 and is_command(arguments[0]) and arguments[1] == "dataset"


def config_being_loaded() -> Path | None:
    """The config.yml that nerfstudio's `eval_setup` reads just now: it tells nobody, so its own variable is asked."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "eval_setup" and "config_path" in frame.f_locals:
            return Path(frame.f_locals["config_path"])
        frame = frame.f_back  # type: ignore[assignment]
    return None


def place_data(manager: Any, config: Path, run: Path) -> None:
    """Let a data manager's configuration name its data where that is now, or say that it is missing.

    Args:
        manager: the configuration, changed in place.
        config: the run's config.yml.
        run: the run's folder as it was named by the training.
    """
    parser = getattr(manager, "dataparser", None)
    named = manager.data if manager.data is not None else getattr(parser, "data", None)
    given = os.environ.get(DATA)
    if given:
        manager.data = Path(given)
        return
    if named is None:
        return
    place = place_of_data(Path(named), config, run)
    if place is None:
        manager.__dict__["missing"] = missing_data(Path(named), config)
        manager.__dict__["run_folder"] = config.parent
    else:
        manager.data = place
