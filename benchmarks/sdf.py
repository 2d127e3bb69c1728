"""Signed distance and colour on the demo's procedural cars: how near reconstructions come to the meshes, in what time.

Training cars are scored from their latents, unseen ones from latents fitted to 20,000 points each. Scored are 60,000
points anywhere in the box (IoU) and 20,000 on the outer surface (PSNR of sRGB colours, and the distance that the field
says there), drawn from the meshes anew: no method has trained on them. Time is wall time of the training steps; nothing
else may run beside it. "prototype" is the small recipe that the method was first tried with. Run: `python
benchmarks/sdf.py`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch

from mnif_nerf.data.generate.car_design import sample_car
from mnif_nerf.data.generate.points import make_procedural_points
from mnif_nerf.data.generate.procedural import car_surface, cars_of, normalised_parts
from mnif_nerf.data.generate.settings import CarCounts
from mnif_nerf.data.geometry.solid_mesh import piece_numbers, solid_of_pieces
from mnif_nerf.data.geometry.surface_points import PointCounts, SurfacePoints, draw_points
from mnif_nerf.data.stores.surface_store import open_surface_store
from mnif_nerf.errors import run_command
from mnif_nerf.latents.optimizer_settings import optimizer_settings
from mnif_nerf.metrics.surfaces import surface_scores
from mnif_nerf.pipelines.methods import get_method
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.pipelines.run_settings import RunSettings
from mnif_nerf.progress import tracked

_FITTED_POINTS = 20_000
_EXTRA_SURFACE = 1.1  # a store has a tenth more points than it is asked for, on the surface


@dataclass(frozen=True)
class Config:
    """Train each method on the same cars and score it.

    Attributes:
        methods: "prototype", or names of methods.
        cars, unseen: training cars, and cars whose latents are fitted.
        points: of every training car.
        uniform_points, surface_points: that a car is scored at.
        steps: of training; 0 takes the method's own.
        threads: of torch and of the compiled kernel; 0 measures which is faster.
        data: where the points are made, or found.
        seed: of everything.
        output: JSON file for the numbers.
    """

    methods: tuple[str, ...] = ("prototype", "mnif-sdf-lite")
    cars: int = 128
    unseen: int = 16
    points: int = 100_000
    uniform_points: int = 60_000
    surface_points: int = 20_000
    steps: int = 0
    threads: int = 2
    data: Path = Path("outputs/benchmarks/sdf_cars")
    seed: int = 0
    output: Path | None = None


def settings_of(name: str) -> RunSettings:
    """Settings of a method, or of the prototype."""
    if name != "prototype":
        return get_method(name).new_run()
    settings: Any = get_method("mnif-sdf-lite").new_run()
    settings.max_num_iterations = 3000
    model, data = settings.pipeline.model, settings.pipeline.datamanager
    model.width, model.hidden_layers, model.num_bases, model.latent_dim, model.w0 = 48, 3, 32, 32, 15.0
    model.truncation, model.near, model.color_weight = 0.05, 0.02, 3.0
    data.instances_per_step, data.points_per_instance = 16, 1024
    data.uniform_share, data.wide_share, data.near_share, data.on_surface_share = 0.30, 0.25, 0.45, 0.0
    settings.optimizers = optimizer_settings(1e-3, 1e-3, 5e-3, 100)
    return settings


def truth_of(split: str, counts: CarCounts, points: PointCounts) -> Iterator[SurfacePoints]:
    """New points of the cars of a split."""
    for found, _, seed, body in cars_of(counts):
        if found == split:
            car = sample_car(seed, body)
            surface = car_surface(car)
            pieces = piece_numbers([len(part.faces) for part in normalised_parts(car)])
            solid = solid_of_pieces(surface.vertices, surface.faces, pieces)
            yield draw_points(surface, solid, points, np.random.default_rng([*seed, 41]))


def train(name: str, config: Config, folder: Path) -> tuple[TrainingRun, float, float]:
    """A trained run, and its wall and CPU seconds."""
    settings = settings_of(name)
    settings.output_dir, settings.experiment_name, settings.vis = folder, name, "none"
    settings.machine.seed, settings.machine.device_type = 42 + config.seed, "cpu"
    settings.pipeline.datamanager.data = config.data
    settings.max_num_iterations = config.steps or settings.max_num_iterations
    run = TrainingRun(settings)
    run.trainer.choose_threads(config.threads)
    steps = tracked(range(settings.max_num_iterations), name, settings.max_num_iterations)
    wall, cpu = time.perf_counter(), time.process_time()
    for step in steps:
        run.trainer.step(step)
    return run, time.perf_counter() - wall, time.process_time() - cpu


def scores(run: TrainingRun, latents: torch.Tensor, truth: list[SurfacePoints]) -> dict[str, list[float]]:
    """Scores of cars by name of the metric."""
    rows = [surface_scores(run.model.field.collapse(code), known) for code, known in zip(latents, truth)]
    return {metric: [row[metric] for row in rows] for metric in rows[0]}


def summary(found: dict[str, list[float]]) -> list[str]:
    """Mean and worst of IoU and colour, and the mean distance."""
    iou, color, distance = found["iou"], found["color"], found["distance"]
    return [
        f"{np.mean(iou):.3f} ({min(iou):.3f})",
        f"{np.mean(color):.1f} ({min(color):.1f})",
        f"{np.mean(distance):.5f}",
    ]


def main(config: Config) -> None:
    """Make the data where it is not there, train, score, print."""
    info = report.machine(config.seed)
    counts = CarCounts(config.cars, 1, config.unseen, config.seed)
    make_procedural_points(config.data, counts, config.points)
    fitted = config.data.with_name(config.data.name + "_unseen")
    make_procedural_points(fitted, CarCounts(1, 1, config.unseen, config.seed), round(_FITTED_POINTS / _EXTRA_SURFACE))
    asked = PointCounts(config.uniform_points, 0, 0, config.surface_points)
    truth = {
        split: list(tracked(truth_of(split, counts, asked), f"truth ({split})", number))
        for split, number in (("train", config.cars), ("test", config.unseen))
    }
    rows: list[list[object]] = []
    results: dict[str, Any] = {}
    for name in config.methods:
        with tempfile.TemporaryDirectory() as folder:
            run, wall, cpu = train(name, config, Path(folder))
        start = time.perf_counter()
        latents = run.evaluation.encoder(run.model).surfaces(open_surface_store(fitted, "test"))
        fit = time.perf_counter() - start
        with torch.no_grad():
            seen = scores(run, run.model.latents.weight.detach(), truth["train"])
            unseen = scores(run, latents, truth["test"])
        steps = config.steps or run.settings.max_num_iterations
        rows.append([name, steps, wall, cpu, *summary(seen), *summary(unseen)[:2], fit])
        results[name] = {"steps": steps, "wall": wall, "cpu": cpu, "fit": fit, "training": seen, "unseen": unseen}
    columns = (
        "method", "steps", "wall, s", "CPU, s", "IoU (worst)", "colour, dB (worst)", "distance on the surface",
        "unseen: IoU (worst)", "unseen: colour, dB (worst)", f"fit of {config.unseen}, s",
    )  # fmt: skip
    report.finish(
        f"Signed distance and colour: {config.cars} procedural cars",
        [report.markdown_table(columns, rows)],
        info,
        results,
        config.output,
    )


if __name__ == "__main__":
    import tyro

    run_command(lambda: main(tyro.cli(Config, description=__doc__)), [Config])
