"""Where the mixture of basis networks stands: modulations and network families on one data set, in the same time.

Every row trains a small network of the same width and depth as the data's `-lite` method does (its loss, draws, rates,
latent table), but for what the row changes; each for the same CPU seconds, one thread, with rates that fall by the
share of the time that is gone. Latents of unseen instances are fitted as that method does, the networks frozen.
A finished run is one line of `--results`; what the file holds is not run again, so an interrupted table goes on, and
one row is one command. `--tune` tries rates instead (seed 0). Make the data as docs/comparison.md says. Run:
`python benchmarks/comparison.py --data monitors --path DATA --rows mixture-32 --seeds 0 1 2 --seconds 30`.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
import report
import torch
from scipy import stats

from mnif_nerf import modalities
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.pipelines.methods import get_method
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.pipelines.run_settings import RunSettings
from mnif_nerf.schedules import warmup_cosine

BASELINE = "mixture-32"
_FINE = 1_000_000  # steps of a cosine that follows a share of the time
_RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """What a row changes.

    Attributes:
        model: settings of the model.
        w0_factor: of the sine frequency that the method would take.
        tuned: name under which `Data.rates` has factors.
    """

    model: dict[str, Any]
    tuned: str
    w0_factor: float = 1.0


ROWS = {
    "mixture-8": Row({"num_bases": 8}, "mixture"),
    "mixture-32": Row({"num_bases": 32}, "mixture"),
    "mixture-128": Row({"num_bases": 128}, "mixture"),
    "mixture-32-scaled": Row({"num_bases": 32, "parametrization": "scaled"}, "scaled"),
    "mixture-32-network-wise": Row({"num_bases": 32, "coefficients": "network-wise"}, "mixture"),
    "shift": Row({"modulation": "shift"}, "shift"),
    "low-rank": Row({"modulation": "low-rank"}, "low-rank"),
    "finer-mixture-32": Row({"num_bases": 32, "family": "finer"}, "mixture", 0.5),
    # As many sines and cosines as the width of the -lite methods, so that the small network has that size.
    "fourier-mixture-32": Row({"num_bases": 32, "family": "fourier-relu", "fourier_features": 32}, "mixture"),
}


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        method: whose road is taken.
        metrics: names of its scores; the first decides.
        scored: training and unseen instances that are scored, as far as there are so many.
        fit_points: points of each unseen instance in a step of its fit; None leaves the method's.
        rates: by `Row.tuned`: factors of the rates of networks, and of projection and latents, found by `--tune`.
    """

    method: str
    metrics: tuple[str, ...]
    scored: int
    fit_points: int | None = None
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)


# Found for the rates before "centred" fields; to be tuned anew.
_VOXELS = {"mixture": (1.0, 3.0), "shift": (0.5, 3.0), "low-rank": (1.0, 3.0)}
_SURFACES = {"mixture": (1.0, 1.0), "shift": (0.5, 3.0), "low-rank": (0.5, 3.0)}
_PICTURES = {"mixture": (1.0, 3.0), "shift": (1.0, 3.0), "low-rank": (1.0, 3.0)}
DATA = {
    "monitors": Data("mnif-voxel-lite", ("iou",), 24, 512, _VOXELS),
    "trees": Data("mnif-sdf-lite", ("iou", "color"), 16, 512, _SURFACES),
    "emoji": Data("mnif-image-lite", ("psnr",), 32, 256, _PICTURES),
    "digits": Data("mnif-image-lite", ("psnr",), 64, None, _PICTURES),
}
TRIES = tuple((networks, latents) for networks in (0.5, 1.0, 2.0) for latents in (1.0, 3.0, 6.0))


@dataclass(frozen=True)
class Config:
    """Train rows of the table on one data set and print what the results hold of it.

    Attributes:
        data: "monitors", "trees", "emoji" or "digits": which method trains, and how many instances are scored.
        path: folder of the data.
        rows: names of rows.
        seeds: of everything; rows take turns, so that a table cut off has all rows of the first seeds.
        seconds: CPU seconds of training, each.
        results: file of one JSON line per finished run.
        tune: try factors of the learning rates with the first seed; such runs stay out of the table.
        table: only print the table of what is there.
        width, hidden_layers, latent_dim: of all rows; 0 takes the method's (64, 4, 64; latents of pictures 256).
        fit_steps: of the fits of unseen instances; 0 takes the method's.
    """

    data: str
    path: Path | None = None
    rows: tuple[str, ...] = tuple(ROWS)
    seeds: tuple[int, ...] = (0, 1, 2)
    seconds: float = 30.0
    results: Path = Path("outputs/benchmarks/comparison.jsonl")
    tune: bool = False
    table: bool = False
    width: int = 0
    hidden_layers: int = 0
    latent_dim: int = 0
    fit_steps: int = 0


@dataclass(frozen=True)
class Job:
    """One run: a row, its seed, and factors of the rates of networks, and of projection and latents."""

    row: str
    seed: int
    factors: tuple[float, float]


def settings_of(config: Config, job: Job, folder: Path) -> RunSettings:
    """Settings of a run: the method's but for what the row says."""
    data, row = DATA[config.data], ROWS[job.row]
    settings: Any = get_method(data.method).new_run()
    model, pipeline = settings.pipeline.model, settings.pipeline
    settings.output_dir, settings.experiment_name, settings.vis = folder, job.row, "none"
    settings.machine.seed, settings.machine.device_type = 42 + job.seed, "cpu"
    pipeline.datamanager.data, pipeline.datamanager.eval_num_instances = config.path, data.scored
    if data.fit_points is not None:
        pipeline.fit_points = data.fit_points
    pipeline.fit_steps = config.fit_steps or pipeline.fit_steps
    for name in ("width", "hidden_layers", "latent_dim"):
        setattr(model, name, getattr(config, name) or getattr(model, name))
    for name, value in row.model.items():
        setattr(model, name, value)
    if row.w0_factor != 1.0:
        training = modalities.get(pipeline.datamanager.modality).training
        grid = training.open(pipeline.datamanager).grid()
        model.w0 = row.w0_factor * training.field_spec(model, grid).w0
    for group, part in settings.optimizers.items():
        part["optimizer"].lr *= job.factors[0 if group == "fields" else 1]
    return settings


def train(run: TrainingRun, schedules: dict[str, Any], seconds: float) -> tuple[int, float]:
    """Train for CPU seconds; returns the steps made and the seconds used.

    Args:
        run: without schedules of its own.
        schedules: warm-up and final fraction of each group.
        seconds: at the end of which the cosine ends.
    """
    run.data.draw(0)  # what is made once, such as distances of voxels, is not on the clock
    groups = run.optimizers.optimizers
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in groups.items()}
    used, steps = 0.0, 0
    while used < seconds:
        start = common.spent("cpu")
        for name, optimizer in groups.items():
            warm, final = schedules[name].warmup_steps, schedules[name].final_fraction
            cosine = warmup_cosine(round(_FINE * used / seconds), 0, _FINE, final)
            optimizer.param_groups[0]["lr"] = rates[name] * cosine * min(1.0, (steps + 1) / max(warm, 1))
        run.trainer.step(steps)
        steps += 1
        used += common.spent("cpu") - start
    return steps, used


def measure(config: Config, job: Job, folder: Path) -> dict[str, Any]:
    """Train one row and score it: numbers, and the scores of every instance by name."""
    settings = settings_of(config, job, folder)
    schedules = {name: part["scheduler"] for name, part in settings.optimizers.items()}
    for part in settings.optimizers.values():
        part["scheduler"] = None  # follows the time instead
    warnings: list[str] = []
    run = TrainingRun(settings, say=warnings.append)
    run.trainer.choose_threads(1)
    steps, used = train(run, schedules, config.seconds)
    evaluation = run.training.evaluation(run.data, settings.pipeline, "test")
    start = common.spent("cpu")
    items = evaluation.items(run.model)
    fitted = common.spent("cpu") - start
    with torch.no_grad():
        scores = {
            "unseen" if prefix else "training": {
                item.instance: evaluation.score(run.fields, item).metrics for item in part
            }
            for prefix, part in items.items()
        }
    spec = run.model.field.spec
    return {
        **scores, "steps": steps, "cpu": round(used, 2), "fit_cpu": round(fitted, 2),
        "learned": sum(parameter.numel() for parameter in run.model.field.parameters()),
        "instance": spec.parameters_per_instance, "latent": spec.latent_dim, "w0": spec.w0, "warnings": warnings,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- results file


def jobs_of(config: Config) -> list[Job]:
    """All runs of a table, seed by seed; or all tries of the rates."""
    if config.tune:
        return [Job(name, config.seeds[0], factors) for name in config.rows for factors in TRIES]
    rates = DATA[config.data].rates
    return [Job(name, seed, rates.get(ROWS[name].tuned, (1.0, 1.0))) for seed in config.seeds for name in config.rows]


def key_of(config: Config, job: Job) -> dict[str, Any]:
    """What a run is known by."""
    sizes = {name: getattr(config, name) for name in ("width", "hidden_layers", "latent_dim", "fit_steps")}
    return {
        "data": config.data, "row": job.row, "seed": job.seed, "seconds": config.seconds, "tune": config.tune,
        "factors": [round(factor, 3) for factor in job.factors], "sizes": sizes,
    }  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    """Finished runs; a last line that was not written to its end is left out.

    Raises:
        MNIFError: another line cannot be read.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    runs = []
    for number, line in enumerate(lines, 1):
        try:
            runs.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise MNIFError(f"{path}, line {number} is no JSON; remove it, and that run is made again.") from error
    return runs


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one run; after a line that was cut off, on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = [json.dumps(each) for each in (*read(path), line)]
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("\n".join(runs) + "\n", encoding="utf-8")
    temporary.replace(path)


def matching(config: Config, runs: list[dict[str, Any]], job: Job) -> dict[str, Any] | None:
    """The finished run of a job."""
    key = key_of(config, job)
    return next((run for run in runs if all(run.get(name) == value for name, value in key.items())), None)


# ---------------------------------------------------------------------------------------------------------- tables


def scores_of(run: dict[str, Any], split: str, metric: str) -> dict[str, float]:
    """Score of every instance."""
    return {name: scores[metric] for name, scores in run.get(split, {}).items() if metric in scores}


def mean_of(run: dict[str, Any], split: str, metric: str) -> float:
    """Mean score; NaN without instances."""
    found = list(scores_of(run, split, metric).values())
    return float(np.mean(found)) if found else math.nan


def interval(values: list[float], digits: int) -> str:
    """Mean and the half of its 95 % interval over seeds (Student's t); of one seed the mean alone."""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{mean} ± {half:.{digits}f}"


def difference(runs: list[dict[str, Any]], others: list[dict[str, Any]], split: str, metric: str, digits: int) -> str:
    """Mean difference over the seeds that both have, and its 95 % interval over resampled instances."""
    by_seed = {run["seed"]: scores_of(run, split, metric) for run in others}
    pairs = [(scores_of(run, split, metric), by_seed[run["seed"]]) for run in runs if run["seed"] in by_seed]
    if not pairs or not pairs[0][0]:
        return "-"
    gains = np.array([[own[name] - base[name] for name in own] for own, base in pairs]).mean(axis=0)
    picks = np.random.default_rng(0).integers(len(gains), size=(_RESAMPLES, len(gains)))
    low, high = np.percentile(gains[picks].mean(axis=1), [2.5, 97.5])
    return f"{gains.mean():+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def table(config: Config, runs: list[dict[str, Any]]) -> str:
    """One line per row: means over seeds, beside the baseline of the same runs."""
    metrics = DATA[config.data].metrics
    jobs = jobs_of(config)
    done = {name: [run for job in jobs if job.row == name and (run := matching(config, runs, job))] for name in ROWS}
    columns = ["row", "seeds"]
    for metric in metrics:
        label, _ = _shown(metric)
        columns += [f"{label}, training", f"{label}, unseen", f"unseen, less {BASELINE}'s [95 %]"]
    columns += ["steps", f"steps / {BASELINE}'s", "fit, CPU s", "learned numbers", "network of an instance"]
    rows = []
    for name, own in done.items():
        if not own:
            continue
        base = done[BASELINE]
        line: list[object] = [name, len(own)]
        for metric in metrics:
            _, digits = _shown(metric)
            line += [interval([mean_of(run, split, metric) for run in own], digits) for split in ("training", "unseen")]
            line.append("" if name == BASELINE else difference(own, base, "unseen", metric, digits))
        steps = float(np.mean([run["steps"] for run in own]))
        line += [round(steps), f"{steps / np.mean([run['steps'] for run in base]):.2f}" if base else "-"]
        line += [float(np.mean([run["fit_cpu"] for run in own])), own[0]["learned"], own[0]["instance"]]
        rows.append(line)
    return report.markdown_table(columns, rows)


def tuning_table(config: Config, runs: list[dict[str, Any]]) -> str:
    """Training and unseen score of every try of the rates."""
    metric = DATA[config.data].metrics[0]
    label, digits = _shown(metric)
    columns = ["row", *(f"networks x {a:.2g}, latents x {b:.2g}" for a, b in TRIES)]
    rows = []
    for name in config.rows:
        found = [matching(config, runs, Job(name, config.seeds[0], factors)) for factors in TRIES]
        cells = [
            " / ".join(f"{mean_of(run, split, metric):.{digits}f}" for split in ("training", "unseen")) if run else "-"
            for run in found
        ]
        rows.append([name, *cells])
    return f"{label}, training / unseen:\n\n" + report.markdown_table(columns, rows)


def _shown(metric: str) -> tuple[str, int]:
    return {"iou": ("IoU", 3), "psnr": ("PSNR (dB)", 2), "color": ("colour (dB)", 2)}[metric]


def check(config: Config) -> None:
    """Refuse what cannot be run.

    Raises:
        MNIFError: with what to give instead.
    """
    if config.data not in DATA:
        raise MNIFError(f"--data {config.data}: choose one of {', '.join(DATA)}.")
    unknown = [name for name in config.rows if name not in ROWS]
    if unknown:
        raise MNIFError(f"--rows {unknown[0]}: choose of {', '.join(ROWS)}.")
    if not config.seconds > 0 or not config.seeds:
        raise MNIFError("--seconds must be positive and --seeds one or more; for instance --seconds 30 --seeds 0 1 2.")
    if not config.table and (config.path is None or not config.path.is_dir()):
        raise MNIFError("--path must be the folder of the data; docs/comparison.md says how each was made.")


def main(config: Config) -> list[dict[str, Any]]:
    """Run what is missing, print the table."""
    check(config)
    info = report.machine(config.seeds[0])
    for job in [] if config.table else jobs_of(config):
        if matching(config, read(config.results), job) is not None:
            continue
        load = report.machine(job.seed)["load"]
        with tempfile.TemporaryDirectory() as folder:
            found = measure(config, job, Path(folder))
        append(config.results, {**key_of(config, job), **found, "load": load, "machine": info})
        scores = ", ".join(
            f"{metric} {mean_of(found, 'training', metric):.3f} / {mean_of(found, 'unseen', metric):.3f}"
            for metric in DATA[config.data].metrics
        )
        factors = "rates x {:.2g}, {:.2g}".format(*job.factors)
        print(f"{config.data}, {job.row}, seed {job.seed}, {factors}: {found['steps']} steps, {scores}", flush=True)
    runs = read(config.results)
    shown = tuning_table(config, runs) if config.tune else table(config, runs)
    notes = (
        f"{config.seconds:g} CPU seconds of training each, one thread, seeds {', '.join(map(str, config.seeds))}. "
        "± is the 95 % interval of the mean over seeds (Student's t); [ ] that of the mean over instances (bootstrap)."
    )
    report.finish(f"Where the mixture stands: {config.data}", [shown, notes], info, runs, None)
    return runs


if __name__ == "__main__":
    import tyro

    run_command(lambda: main(tyro.cli(Config, description=__doc__)), [Config])
