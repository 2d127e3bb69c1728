"""mnif-train: train a model without nerfstudio; the methods, settings and run folders are those of ns-train."""

from __future__ import annotations

import sys
from pathlib import Path

from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.pipelines.methods import METHODS, get_method
from mnif_nerf.pipelines.run_settings import RunSettings, read_config, update_settings


def main(settings: RunSettings) -> Path:
    """Run the command; returns the run folder.

    Raises:
        MNIFError: no or unreadable data, a setting out of range, or training that diverged.
    """
    from rich.console import Console

    from mnif_nerf.pipelines.run import TrainingRun

    if settings.load_config is not None:
        values, file = read_config(settings.load_config), settings.load_config
        given = settings.data or settings.pipeline.datamanager.data
        settings = get_method(str(values["method_name"])).new_run()
        update_settings(settings, values)
        settings.data = given or _find_data(file)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    return TrainingRun(settings, console.print).train()


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
        lambda: main(tyro.cli(kind, description=__doc__, args=sys.argv[1:])),
        (method.new_run() for method in METHODS.values()),
    )


if __name__ == "__main__":
    entrypoint()
