"""Frames per second of a collapsed field: dense sampling against skipping with an occupancy grid.

The fields are cars: a few procedural ones, learned here for some seconds at both shapes, or those of a
trained model (`--model`). Dense and skipping render the same views in turns; medians count. The grid is built
once per object and is reported apart. Run: `python benchmarks/render.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import common
import report
import torch

from mnif_nerf.errors import run_command
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.metrics.images import psnr
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.views import render_view


@dataclass(frozen=True)
class Config:
    """Time rendering.

    Attributes:
        model: a trained model (folder, run or config.yml) whose training instances are rendered instead.
        resolutions: pixels along an image's edge.
        objects: how many objects.
        views: views of each, around it at 20 degrees of elevation.
        train_cars, train_views: procedural cars (64 x 64) learned where no model is given.
        train_seconds: CPU-seconds of learning per shape (wall seconds on CUDA).
        threads: of torch and of the compiled kernel; 0 measures which is faster.
        device: "cpu" or "cuda".
        seed: of everything.
        cache: where the small data set is kept.
        output: JSON file for the numbers.
        train_resolution: pixels along the edge of the training pictures.
    """

    model: Path | None = None
    resolutions: tuple[int, ...] = (128, 256)
    objects: int = 2
    views: int = 3
    train_cars: int = 8
    train_views: int = 16
    train_seconds: float = 20.0
    threads: int = 0
    device: str = "cpu"
    seed: int = 0
    cache: Path = common.CACHE
    output: Path | None = None
    train_resolution: int = 64


@dataclass
class Subject:
    """Objects of one shape, ready to render: fields, and what a grid needs."""

    name: str
    fields: list[CompactField]
    bounds: torch.Tensor | None
    grid_resolution: int
    fit: float | None


def learned(config: Config, method: common.Method) -> Subject:
    """Learn a few cars for some seconds."""
    data = common.small_cars(config.cache, config.train_cars, config.train_views, config.train_resolution, config.seed)
    store = common.open_store(data, "train", progress=False)
    # A run of seconds has no time for the method's own warm-up.
    trainer = common.OurTrainer(store, dataclasses.replace(method, warmup_steps=50), config.device, config.seed)
    common.choose_threads(trainer.gradient, config.threads)
    start, used = common.spent(config.device), 0.0
    while used < config.train_seconds:
        trainer.step(used / config.train_seconds)
        used = common.spent(config.device) - start
    objects = range(min(config.objects, store.num_scenes))
    scores = []
    for scene in objects:
        view = store.view_range(scene)[0]
        focal, cx, cy = store.intrinsics[view].tolist()
        camera = Intrinsics(focal, cx, cy, store.height, store.width)
        picture = trainer.render_view(scene, torch.from_numpy(store.poses[view]), camera)
        scores.append(float(psnr(picture, torch.from_numpy(store.images[view]).to(picture.device).float() / 255)))
    fields = [trainer.collapse(scene) for scene in objects]
    print(f"{method.name}: {trainer.steps_taken} steps, training views at {fmean(scores):.1f} dB", flush=True)
    bounds = common.hull_union(store)
    return Subject(f"{method.name} shape", fields, bounds, method.grid_resolution, fmean(scores))


def stored(config: Config) -> Subject:
    """Training instances of a trained model, spread evenly."""
    from mnif_nerf.pipelines.model_folder import locate_model, read_model

    assert config.model is not None
    model = read_model(locate_model(config.model), config.device, with_prior=False)
    chosen = torch.linspace(0, len(model.latents) - 1, min(config.objects, len(model.latents))).long().tolist()
    fields = [model.field.collapse(model.latents[row]).to(config.device) for row in chosen]
    spec = model.field.spec
    return Subject(f"width {spec.width}, {spec.hidden_layers} hidden", fields, model.cells, 48, None)


def build_grid(subject: Subject, field: CompactField, device: str) -> OccupancyGrid:
    """The grid as the package builds it for a viewer."""
    return OccupancyGrid.from_field(field, subject.grid_resolution, bounds=subject.bounds, device=device)


def time_subject(config: Config, subject: Subject) -> list[dict[str, Any]]:
    """Numbers of one shape, by resolution."""
    grids = [build_grid(subject, field, config.device) for field in subject.fields]
    build = [
        common.timed(lambda f=field: build_grid(subject, f, config.device), config.device)
        for field in subject.fields
        for _ in range(3)
    ]
    poses = [orbit_pose(20.0, 30.0 + 360.0 * k / config.views).to(config.device) for k in range(config.views)]
    camera = Intrinsics.default(config.resolutions[0])
    threads = common.choose_threads(lambda: render_view(subject.fields[0], poses[0], camera, grids[0]), config.threads)
    rows = []
    for resolution in config.resolutions:
        camera = Intrinsics.default(resolution)
        times: dict[str, list[float]] = {"dense": [], "skipping": []}
        scores, covered = [], []
        for field, grid in zip(subject.fields, grids):
            for pose in poses:
                pictures = {}
                for mode, used in (("dense", None), ("skipping", grid)):

                    def work(f: CompactField = field, p: torch.Tensor = pose, g: Any = used, m: str = mode) -> None:
                        pictures[m] = render_view(f, p, camera, g)  # noqa: B023

                    times[mode].append(common.timed(work, config.device))
                    if mode == "skipping":  # short, so that one disturbance weighs much: best of two
                        times[mode][-1] = min(times[mode][-1], common.timed(work, config.device))
                scores.append(float(psnr(pictures["skipping"]["rgb"], pictures["dense"]["rgb"])))
                covered.append(float(pictures["dense"]["accumulation"].mean()))
        rows.append({
            "shape": subject.name, "resolution": resolution, "dense": median(times["dense"]),
            "skipping": median(times["skipping"]), "grid": median(build), "psnr": fmean(scores),
            "covered": fmean(covered), "cells": fmean(float(g.cells.float().mean()) for g in grids),
            "fit": subject.fit, "threads": common.threads_text(threads),
        })  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """One row per shape and resolution."""
    columns = [
        "field", "view", "threads*", "dense ms", "dense fps", "skipping ms", "skipping fps", "faster",
        "grid built in ms", "cells set", "object covers", "PSNR to dense, dB",
    ]  # fmt: skip
    body = []
    for row in rows:
        body.append([
            row["shape"], f"{row['resolution']} x {row['resolution']}", row["threads"], 1e3 * row["dense"],
            1 / row["dense"], 1e3 * row["skipping"], 1 / row["skipping"],
            f"{row['dense'] / row['skipping']:.1f}x", 1e3 * row["grid"], f"{100 * row['cells']:.1f} %",
            f"{100 * row['covered']:.0f} %", row["psnr"],
        ])  # fmt: skip
    return report.markdown_table(columns, body)


def main(config: Config) -> list[dict[str, Any]]:
    """Measure and print."""
    info = report.machine(config.seed)
    if config.model is not None:
        rows, source = time_subject(config, stored(config)), f"training instances of {config.model}"
    else:
        rows = []
        for method in (common.MNIF, common.MNIF_LITE):
            rows += time_subject(config, learned(config, method))
        fits = " and ".join(f"{fit:.1f}" for fit in dict.fromkeys(row["fit"] for row in rows))
        source = (
            f"{config.train_cars} procedural cars learned for {config.train_seconds:g} seconds "
            f"(training views at {fits} dB)"
        )
    notes = (
        f"Fields: {source}; {config.objects} objects x {config.views} views at 20 degrees of elevation, "
        "medians. Both take samples 1/64 unit apart along each ray; skipping leaves out those in empty "
        "cells and behind what is opaque. The grid is built once per object and is not in the frame's "
        "time."
        " *Threads of torch/of the compiled kernel."
    )
    report.finish("Rendering", [table(rows), notes], info, rows, config.output)
    return rows


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
