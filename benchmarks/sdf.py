"""Signed distance and colour on the demo's procedural cars: how near reconstructions come to the meshes, in what time.

Training cars are scored from their latents, unseen ones from latents fitted to 20,000 points each. Scored are 60,000
points anywhere in the box (IoU) and 20,000 on the outer surface (PSNR of sRGB colours, and the distance that the field
says there), drawn from the meshes anew: no method has trained on them. Samples of the latent prior, and as many
training cars at most, are meshed, and it is counted how many meshes are closed; how many look broken is for eyes
(`--pictures`). Time is wall time of the training steps; nothing else may run beside it. Ratios are to the first method.
"prototype" is the small recipe that the method was first tried with, "prototype-larger" the larger one. Run:
`python benchmarks/sdf.py`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch

from mnif_nerf import modalities
from mnif_nerf.data.generate.car_design import sample_car
from mnif_nerf.data.generate.points import make_procedural_points
from mnif_nerf.data.generate.procedural import car_surface, cars_of, normalised_parts
from mnif_nerf.data.generate.settings import CarCounts
from mnif_nerf.data.geometry.solid_mesh import piece_numbers, solid_of_pieces
from mnif_nerf.data.geometry.surface_points import PointCounts, SurfacePoints, draw_points
from mnif_nerf.data.sampling.views import evenly_spaced
from mnif_nerf.data.stores.surface_store import open_surface_store
from mnif_nerf.errors import run_command
from mnif_nerf.export.distance_mesh import distance_mesh
from mnif_nerf.export.mesh import MeshOptions, NoSurfaceError
from mnif_nerf.export.pictures import image_grid
from mnif_nerf.fields.distance import DistanceField
from mnif_nerf.latents.optimizer_settings import optimizer_settings
from mnif_nerf.metrics.surfaces import surface_scores
from mnif_nerf.pipelines.methods import get_method
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.pipelines.run_settings import RunSettings
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.training import PriorConfig
from mnif_nerf.progress import tracked

_FITTED_POINTS = 20_000
_PICTURE_PIXELS, _PICTURES_ACROSS = 160, 8
_EXTRA_SURFACE = 1.1  # a store has a tenth more points than it is asked for, on the surface


@dataclass(frozen=True)
class Config:
    """Train each method on the same cars and score it.

    Attributes:
        methods: "prototype", "prototype-larger", or names of methods; the first is what others are compared with.
        cars, unseen: training cars, and cars whose latents are fitted.
        points: of every training car.
        uniform_points, surface_points: that a car is scored at.
        samples: of the latent prior, that are meshed; 0 trains no prior.
        mesh_cells: along an edge of the scene box, of these meshes.
        steps: of training; 0 takes the method's own.
        threads: of torch and of the compiled kernel; 0 measures which is faster.
        data: where the points are made, or found.
        seed: of everything.
        pictures: folder for a sheet of the samples of every method.
        output: JSON file for the numbers.
    """

    methods: tuple[str, ...] = ("prototype", "mnif-sdf-lite")
    cars: int = 128
    unseen: int = 16
    points: int = 100_000
    uniform_points: int = 60_000
    surface_points: int = 20_000
    samples: int = 64
    mesh_cells: int = 96
    steps: int = 0
    threads: int = 2
    data: Path = Path("outputs/benchmarks/sdf_cars")
    seed: int = 0
    pictures: Path | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Meshes:
    """What became of meshes: how many of how many are closed, and how many of those of one piece."""

    closed: int
    whole: int
    count: int

    def __str__(self) -> str:
        return f"{self.closed} ({self.whole}) of {self.count}"


def settings_of(name: str) -> RunSettings:
    """Settings of a method, or of a prototype."""
    sizes = {"prototype": (3000, 48, 3, 32, 32, 3.0), "prototype-larger": (9000, 64, 4, 64, 64, 10.0)}
    if name not in sizes:
        return get_method(name).new_run()
    settings: Any = get_method("mnif-sdf-lite").new_run()
    model, data = settings.pipeline.model, settings.pipeline.datamanager
    settings.max_num_iterations, model.width, model.hidden_layers, model.num_bases = sizes[name][:4]
    model.latent_dim, model.color_weight = sizes[name][4:]
    model.w0, model.truncation, model.near = 15.0, 0.05, 0.02
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


def meshes_of(run: TrainingRun, latents: torch.Tensor, cells: int, title: str) -> Meshes:
    """Mesh the surfaces of latents and look whether they are closed."""
    closed = whole = 0
    for code in tracked(latents, title, len(latents)):
        field = DistanceField(run.model.field.collapse(code))
        try:
            mesh = distance_mesh(field, cells, options=MeshOptions(None, "all", 0, None, False))
        except NoSurfaceError:
            continue
        closed += mesh.is_watertight
        whole += mesh.is_watertight and mesh.metadata["components_found"] == 1
    return Meshes(closed, whole, len(latents))


def draw(run: TrainingRun, latents: torch.Tensor, path: Path) -> None:
    """Write a sheet of the objects of latents."""
    kind = modalities.get("sdf")
    pictures = [
        kind.portrait(kind.object_class(code, run.model.field.collapse(code)), _PICTURE_PIXELS)
        for code in tracked(latents, "pictures", len(latents))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(pictures, columns=_PICTURES_ACROSS).save(path)


def summary(found: dict[str, list[float]]) -> list[str]:
    """Mean and worst of IoU and colour."""
    return [
        f"{np.mean(found['iou']):.3f} ({min(found['iou']):.3f})",
        f"{np.mean(found['color']):.1f} ({min(found['color']):.1f})",
    ]


def measure(name: str, config: Config, truth: dict[str, list[SurfacePoints]], fitted: Path) -> dict[str, Any]:
    """Train a method and take all its numbers."""
    with tempfile.TemporaryDirectory() as folder:
        run, wall, cpu = train(name, config, Path(folder))
    start = time.perf_counter()
    latents = run.evaluation.encoder(run.model).surfaces(open_surface_store(fitted, "test"))
    fit = time.perf_counter() - start
    learned = run.model.latents.weight.detach()
    steps = config.steps or run.settings.max_num_iterations
    found: dict[str, Any] = {"steps": steps, "wall": wall, "cpu": cpu, "fit": fit}
    with torch.no_grad():
        found |= {"training": scores(run, learned, truth["train"]), "unseen": scores(run, latents, truth["test"])}
    if config.samples:
        start = time.perf_counter()
        prior = LatentPrior.fit(learned, PriorConfig(seed=config.seed), progress=False)
        samples = prior.sample(config.samples, seed=config.seed)
        found["prior"] = time.perf_counter() - start
        some = learned[torch.from_numpy(evenly_spaced(len(learned), config.samples))]
        for words, codes in (("samples", samples), ("training cars", some)):
            found[f"closed {words}"] = meshes_of(run, codes, config.mesh_cells, f"meshes of {words}")
        if config.pictures is not None:
            draw(run, samples, config.pictures / f"{name}.png")
    return found


def tables(results: dict[str, dict[str, Any]], config: Config) -> list[str]:
    """All numbers, and those that the aims are about beside the aims."""
    first = next(iter(results.values()))
    missed = {name: 1 - float(np.mean(found["training"]["iou"])) for name, found in results.items()}
    rows: list[list[object]] = [
        [
            name, found["steps"], found["wall"], found["cpu"], found["wall"] / first["wall"],
            *summary(found["training"]), missed[name] / next(iter(missed.values())),
            f"{np.mean(found['training']['distance']):.5f}", *summary(found["unseen"]), found["fit"],
        ]
        for name, found in results.items()
    ]  # fmt: skip
    base = f"of {next(iter(results))}'s"
    columns = (
        "method", "steps", "wall, s", "CPU, s", f"share {base} time", "IoU (worst)", "colour, dB (worst)",
        f"share {base} 1 - IoU", "distance on the surface", "unseen: IoU (worst)", "unseen: colour, dB (worst)",
        f"fit of {config.unseen}, s",
    )  # fmt: skip
    aims: list[list[object]] = [
        ["IoU of training cars, mean (worst)", "0.985 (0.970)"],
        ["colour on the surface, dB, mean (worst)", "26.0 (23.0)"],
        ["IoU of unseen cars, mean (worst)", "0.960"],
        ["colour of unseen cars, dB, mean (worst)", "22.0"],
        ["training, wall seconds", "240"],
        ["closed meshes of samples (of one piece)", "all"],
        ["closed meshes of training cars (of one piece)", "all"],
    ]
    for found in results.values():
        reached = [*summary(found["training"]), *summary(found["unseen"]), f"{found['wall']:.0f}"]
        reached += [str(found.get(f"closed {words}", "-")) for words in ("samples", "training cars")]
        for line, value in zip(aims, reached):
            line.append(value)
    return [report.markdown_table(columns, rows), report.markdown_table(("", "aim", *results), aims)]


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
    results = {name: measure(name, config, truth, fitted) for name in config.methods}
    shown = tables(results, config)
    stored = {
        name: {key: asdict(value) if isinstance(value, Meshes) else value for key, value in found.items()}
        for name, found in results.items()
    }
    title = f"Signed distance and colour: {config.cars} procedural cars"
    report.finish(title, shown, info, stored, config.output)


if __name__ == "__main__":
    import tyro

    run_command(lambda: main(tyro.cli(Config, description=__doc__)), [Config])
