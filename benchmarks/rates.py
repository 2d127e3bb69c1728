"""Which learning rates suit which size of a field: the loss after short training, sizes by rates.

Every size is trained with the method's rates times every factor, with parameters as they were ("plain"), measured in
units that follow the size ("scaled"), and so around a mean network ("centred", docs/method.md). Rates of "plain" are
those that equal "scaled" ones at the method's own size. Where learning rates carry over, the lowest loss of every row
stands in the same column. Shown are losses without regularisation, means of the last fifth of the steps; a collapse to
a constant shows as a loss twice the others'. `--figure` draws the lines. Run: `python benchmarks/rates.py --data DATA`,
or without data on procedural cars.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report

from mnif_nerf.data.generate.points import make_procedural_points
from mnif_nerf.data.generate.settings import CarCounts
from mnif_nerf.errors import run_command
from mnif_nerf.fields.modulations import build_field
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.pipelines.methods import get_method
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.pipelines.run_settings import RunSettings
from mnif_nerf.progress import tracked


@dataclass(frozen=True)
class Config:
    """Train every size with every rate.

    Attributes:
        method: whose settings all others are taken from.
        data: its data; left out, 32 procedural cars (of modality sdf) are made.
        groups: the optimisers whose rate is multiplied: "fields", "projection".
        factors: of these rates.
        widths, bases, latents: sizes, one changed at a time.
        parametrizations: "plain", "scaled", "centred".
        steps: of training.
        points: per instance and step.
        seed: of everything.
        figure: PNG file for the lines.
        output: JSON file for the numbers.
    """

    method: str = "mnif-sdf-lite"
    data: Path | None = None
    groups: tuple[str, ...] = ("projection",)
    factors: tuple[float, ...] = (0.0625, 0.25, 1.0, 4.0)
    widths: tuple[int, ...] = (32, 64, 128)
    bases: tuple[int, ...] = (16, 256)
    latents: tuple[int, ...] = (16, 512)
    parametrizations: tuple[str, ...] = ("plain", "scaled", "centred")
    steps: int = 300
    points: int = 512
    seed: int = 0
    figure: Path | None = None
    output: Path | None = None


def sizes(config: Config, own: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Width, bases and latent size of every row; the method's own first."""
    width, bases, latent = own
    rows = [own, *((w, bases, latent) for w in config.widths)]
    rows += [(width, m, latent) for m in config.bases] + [(width, bases, d) for d in config.latents]
    return list(dict.fromkeys(rows))


def plain_rate(group: str, spec: FieldSpec) -> float:
    """The factor that makes a "scaled" rate of a group the same step of a "plain" field of this size."""
    scaled, plain = (build_field(dataclasses.replace(spec, parametrization=name)) for name in ("scaled", "plain"))
    return scaled.unit * scaled.spec.latent_unit / plain.unit if group == "projection" else 1.0


def settings_of(config: Config, size: tuple[int, int, int], parametrization: str, factor: float) -> RunSettings:
    """Settings of one run."""
    settings: Any = get_method(config.method).new_run()
    model, data = settings.pipeline.model, settings.pipeline.datamanager
    own = (model.width, model.num_bases, model.latent_dim)
    at_home = FieldSpec(width=own[0], num_bases=own[1], latent_dim=own[2], modulation=model.modulation)
    told_plain = model.parametrization == "plain"
    (model.width, model.num_bases, model.latent_dim), model.parametrization = size, parametrization
    data.data, data.points_per_instance = config.data, config.points
    settings.machine.seed, settings.machine.device_type, settings.vis = 42 + config.seed, "cpu", "none"
    settings.max_num_iterations = config.steps
    for group in ("fields", "projection"):
        optimizer = settings.optimizers[group]["optimizer"]
        if parametrization == "plain" and not told_plain:
            optimizer.lr *= plain_rate(group, at_home)
        elif parametrization != "plain" and told_plain:
            optimizer.lr /= plain_rate(group, at_home)
        optimizer.lr *= factor if group in config.groups else 1.0
    return settings


def loss_of(settings: RunSettings, folder: Path) -> float:
    """The loss that training ends with."""
    settings.output_dir = folder
    run = TrainingRun(settings, say=lambda _: None)
    run.trainer.choose_threads(1)
    losses = []
    for step in range(settings.max_num_iterations):
        parts = run.trainer.step(step).losses
        losses.append(sum(float(value) for name, value in parts.items() if name != "latent"))
    return float(np.mean(losses[-max(len(losses) // 5, 1) :]))


def draw(found: dict[str, dict[str, list[float]]], factors: tuple[float, ...], path: Path) -> None:
    """A panel for each parametrisation, a line for each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(5 * len(found), 4), sharey=True, squeeze=False)
    for axis, (name, rows) in zip(axes[0], found.items()):
        for size, losses in rows.items():
            axis.plot(factors, losses, marker="o", label=size)
        axis.set(title=name, xscale="log", xlabel="factor of the learning rate")
        axis.set_xticks(factors, [f"{factor:g}" for factor in factors])
        axis.minorticks_off()
    axes[0][0].set_ylabel("loss")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(config: Config) -> None:
    """Train all, print the tables."""
    info, start = report.machine(config.seed), time.process_time()
    if config.data is None:
        made = Path("outputs/benchmarks/rates_cars")
        make_procedural_points(made, CarCounts(32, 1, 1, config.seed), 20_000)
        config = dataclasses.replace(config, data=made)
    model = get_method(config.method).new_run().pipeline.model
    rows = sizes(config, (model.width, model.num_bases, model.latent_dim))
    jobs = [(name, size, factor) for name in config.parametrizations for size in rows for factor in config.factors]
    found: dict[str, dict[str, list[float]]] = {name: {} for name in config.parametrizations}
    with tempfile.TemporaryDirectory() as folder:
        for name, size, factor in tracked(jobs, "runs", len(jobs)):
            loss = loss_of(settings_of(config, size, name, factor), Path(folder))
            found[name].setdefault("width {}, {} bases, latents of {}".format(*size), []).append(loss)
    shown = []
    for name, lines in found.items():
        table = [[size, *losses] for size, losses in lines.items()]
        shown.append(f"{name}:\n\n" + report.markdown_table(["", *(f"rate x {f:g}" for f in config.factors)], table))
    if config.figure is not None:
        draw(found, config.factors, config.figure)
    shown.append(f"{len(jobs)} runs of {config.steps} steps, {time.process_time() - start:.0f} CPU seconds.")
    groups = " and ".join(config.groups)
    report.finish(f"Learning rates of {groups} by size: {config.method}", shown, info, found, config.output)


if __name__ == "__main__":
    import tyro

    run_command(lambda: main(tyro.cli(Config, description=__doc__)), [Config])
