"""The last part of `gpu.py`: procedural cars, as many as there is time for, and a real training on them."""

from __future__ import annotations

import math
import time
from pathlib import Path

import gpu_steps
import torch
from gpu_report import Rows, Settings, facts_of, pace

from mnif_nerf.data.generate.procedural import make_procedural_cars
from mnif_nerf.data.generate.settings import CarCounts, ViewCounts
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.pictures import contact_sheet, save_png
from mnif_nerf.machine import num_cores
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.training import PriorConfig
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.views import render_view

_AIM = 30.0  # dB on held-out views
_SAFETY = 0.75  # share of the time for cars that they are planned to take


def cars(settings: Settings, rows: Rows) -> None:
    """Draw and pack as many cars as the part's seconds allow; facts: "cars" and "data"."""
    before = facts_of(settings, "data")
    if not before:
        raise MNIFError("the part data did not tell how long a car takes.")
    per_car = before["core_seconds_per_car"]
    workers = 1 if settings.tiny else num_cores()
    count = min(settings.cars, int(_SAFETY * settings.seconds * workers / per_car))
    count = settings.of(max(count, 2), 3)
    views = settings.of(ViewCounts(50, 8, 1, 128), ViewCounts(4, 2, 1, 16))
    folder, start = settings.work / "data" / "cars", time.perf_counter()
    make_procedural_cars(folder, CarCounts(count, 0, 0, settings.seed), views, False, workers, progress=False)
    drawn = time.perf_counter() - start
    for split in ("train", "train_val"):
        open_store(folder, split, progress=False)
    rows.facts = {"cars": count, "data": str(folder)}
    note = f"{views.train_views} x {views.resolution}² each, {workers} processes, {settings.cars:,} wanted"
    rows.add("cars drawn", count, "cars", note=f"{note}; {drawn:.0f} s")
    rows.add("packing", time.perf_counter() - start - drawn, "s")


def train(settings: Settings, rows: Rows) -> None:
    """Train `mnif` for the time that is left, score held-out views on the way, train the prior, draw a sheet."""
    made = facts_of(settings, "cars")
    place = Path(made["data"]) if made else gpu_steps.data_of(settings, "mnif")
    start = time.perf_counter()
    run = gpu_steps.new_run(settings, "mnif", place)
    run.evaluate(0)  # opens the held-out views
    rows.add("opening", time.perf_counter() - start, "s", note=f"{len(run.model.names)} cars")
    ours = gpu_steps.Ours(run)
    taken = pace(ours.steps, settings.device, settings.of(2.0, 0.02), warm=settings.of(20, 1))
    # The rest is for the prior, the sheet, and a training that is slower than it seemed.
    end = settings.of(start + 0.75 * settings.seconds - 10.0, time.perf_counter() + 1.0)
    seconds = end - time.perf_counter()
    if seconds < 0.5:
        raise MNIFError("no time was left to train in.")
    total = ours.taken + max(int(settings.of(0.85, 0.5) * seconds / taken), 1)
    total = min(total, settings.of(run.settings.max_num_iterations, 12))
    run.optimizers.set_length(total)
    _steps(settings, rows, ours, total, end)
    _sheet(settings, rows, run, None)  # in case that the prior takes all the time there is
    _sheet(settings, rows, run, _prior(settings, rows, run))


def _steps(settings: Settings, rows: Rows, ours: gpu_steps.Ours, total: int, end: float) -> None:
    """Train to `total` steps or to the clock's `end`, with twelve marks on the way."""
    run, marks, trained, reached = ours.run, settings.of(12, 2), 0.0, None
    every = math.ceil((total - ours.taken) / marks)
    while ours.taken < total and time.perf_counter() < end:
        start = time.perf_counter()
        ours.steps(min(every, total - ours.taken))
        if settings.device == "cuda":
            torch.cuda.synchronize()
        trained += time.perf_counter() - start
        score = run.evaluate(ours.taken)["psnr"]
        run.model.train()
        if reached is None and score >= _AIM:
            reached = trained
        rows.add(f"held-out views after {trained:.1f} s", score, "dB", note=f"{ours.taken:,} of {total:,} steps")
    note = "the learning rate falls over the length of the run"
    rows.add(f"to {_AIM:g} dB", reached, "s", note=note if reached is not None else f"not reached; {note}")


def _prior(settings: Settings, rows: Rows, run: TrainingRun) -> LatentPrior:
    """The latent prior, as `mnif-train` trains it."""
    latents, start = run.model.latents.weight.detach(), time.perf_counter()
    pipeline = run.settings.pipeline
    steps = settings.of(pipeline.prior_steps or None, 5)
    config = PriorConfig(steps=steps, explained_variance=pipeline.prior_variance)
    prior = LatentPrior.fit(latents, config, progress=False)
    if settings.device == "cuda":
        torch.cuda.synchronize()
    rows.add("prior", time.perf_counter() - start, "s", note=f"{len(latents)} latents")
    return prior


@torch.no_grad()
def _sheet(settings: Settings, rows: Rows, run: TrainingRun, prior: LatentPrior | None) -> None:
    """Held-out views beside their reconstructions, and samples: cars.png in the output folder."""
    run.model.eval()
    count, size = settings.of(8, 2), settings.of(128, 16)
    with torch.enable_grad():
        items = run.evaluation.items(run.model)[""]
    step = max(len(items) // count, 1)
    scored = [run.evaluation.score(run.fields, item, with_pictures=True).pictures for item in items[::step][:count]]
    names = list(scored[0])
    lines = [[pictures[name].cpu() for pictures in scored] for name in names]
    labels = list(names)
    if prior is not None:
        camera, pose = Intrinsics.default(size), orbit_pose(20.0, 40.0).to(run.device)
        fields = [run.fields(code) for code in prior.sample(2 * count, seed=settings.seed)]
        views = [render_view(field, pose, camera, grid)["rgb"].cpu() for field, grid in fields]
        lines, labels = [*lines, views[:count], views[count:]], [*labels, "samples", "samples"]
    save_png(contact_sheet(lines, row_labels=labels), settings.output / "cars.png")
    rows.facts["sheet"] = {"rows": labels, "columns": count}
    rows.save()
