"""mnif-train: train a model without nerfstudio; the methods, settings and run folders are those of ns-train."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mnif_nerf.cli.processes import one_voice, speaks, start_processes
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.pipelines.methods import METHODS, get_method
from mnif_nerf.pipelines.run_settings import RunSettings, read_config, update_settings


def main(settings: RunSettings) -> Path:
    """Run the command; returns the run folder.

    Raises:
        MNIFError: no or unreadable data, a setting out of range, or training that diverged.
    """
    from rich.console import Console

    from mnif_nerf.latents.ranks import started_ranks
    from mnif_nerf.machine import default_device_type
    from mnif_nerf.pipelines.run import TrainingRun

    settings = _settled(settings)
    kind = settings.machine.device_type
    with started_ranks(default_device_type() if kind == "auto" else kind) as ranks, one_voice(ranks):
        if ranks.size > 1:
            settings.machine.num_devices = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
        console = Console(soft_wrap=True, highlight=False, markup=False)
        return TrainingRun(settings, console.print, ranks).train()


def _settled(settings: RunSettings) -> RunSettings:
    """The settings, or those of the config.yml that they name."""
    if settings.load_config is None:
        return settings
    values, file = read_config(settings.load_config), settings.load_config
    given = settings.data or settings.pipeline.datamanager.data
    settings = get_method(str(values["method_name"])).new_run()
    update_settings(settings, values)
    settings.data = given or _find_data(file)
    return settings


def _run(settings: RunSettings) -> None:
    """Run the command, in as many processes as it is asked for."""
    settings = _settled(settings)
    if settings.machine.num_devices > 1:
        start_processes(settings.machine.num_devices, "mnif_nerf.cli.train")
    main(settings)


def _find_data(config: Path) -> Path | None:
    """The data of a run that is trained again, wherever it is now; None leaves it as config.yml names it."""
    from mnif_nerf.evaluation.target import find_data

    try:
        return find_data(config)
    except MNIFError:
        return None


def entrypoint() -> None:
    """The console script."""
    import tyro

    union = tyro.extras.subcommand_type_from_defaults(
        {name: method.new_run() for name, method in METHODS.items()},
        descriptions={name: method.description for name, method in METHODS.items()},
    )
    kind = tyro.conf.SuppressFixed[tyro.conf.FlagConversionOff[union]]  # type: ignore[valid-type]
    run_command(
        lambda: _run(tyro.cli(kind, description=__doc__, args=sys.argv[1:], console_outputs=speaks())),
        (method.new_run() for method in METHODS.values()),
    )


if __name__ == "__main__":
    entrypoint()
