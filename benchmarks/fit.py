"""Fits to what a model never saw, against what it says without looking (the mean) and its nearest training instance.

Parts: `views` (one, two and twelve posed pictures), `photo` (one picture, pose searched), `voxels` (half a grid),
`scans` (point clouds), `images` (whole and half digits), `meshes` (a folder of meshes from elsewhere). Each compares
what holds the latent: nothing, a Gaussian along the latents' own axes, and one along principal directions.
Run: `python benchmarks/fit.py --parts views voxels`; the models and data are those of the demos.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from fit_scans import scan_kinds, surface_of

from mnif_nerf.data.observations.files import read_observation, read_views
from mnif_nerf.data.observations.observations import Cells, Observation, Picture, PosedViews
from mnif_nerf.data.observations.observed_region import Region
from mnif_nerf.data.sampling.views import evenly_spaced
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.pipelines.fit.fitting import Fit, FitSettings, fit_observation
from mnif_nerf.pipelines.fit.preparation import prepare, render_mesh, voxelise
from mnif_nerf.pipelines.fit.scores import agreement, cells_scores, grid_iou, picture_scores, scores, views_psnr
from mnif_nerf.pipelines.generation import MNIFPipeline

PARTS = ("views", "photo", "voxels", "scans", "images", "meshes")
REGULARISERS = ("none", "per-dimension", "whitened")
POSE_FOUND = 15.0  # degrees between the camera's direction and the true one


@dataclass
class Config:
    """What to measure."""

    radiance: Path = Path("outputs/demo/mnif-lite/run")
    """Run folder of a radiance model."""
    voxel: Path = Path("outputs/demo-voxel/mnif-voxel-lite/run")
    """Run folder of a voxel model."""
    image: Path = Path("outputs/demo-image/mnif-image-lite/run")
    """Run folder of an image model."""
    cars: Path = Path("data/procedural_cars/cars_test")
    """Scene folders of unseen cars."""
    shapes: Path = Path("data/procedural_car_voxels/test")
    """Voxel files of unseen cars."""
    pictures: Path = Path("data/digits/test")
    """Pictures that the image model never saw."""
    meshes: Path = Path("../shared/data/kenney_cars")
    """Meshes from elsewhere."""
    parts: tuple[str, ...] = ("views", "voxels", "scans", "images")
    """Which of views, photo, voxels, scans, images, meshes. A photo takes 20 s."""
    instances: int = 6
    """Unseen instances of each kind, spread evenly."""
    views: tuple[int, int] = (6, 17)
    """The two views."""
    halves: tuple[str, ...] = ("front", "back", "left", "top")
    """Halves of the voxels that are seen, one after the other."""
    restarts: int = 3
    """Starts of every fit."""
    steps: int = 200
    """Gradient steps from each start."""
    prior_weight: float | None = None
    """Weight of the prior; the kind's own by default."""
    seed: int = 0
    """Seed of draws and starts."""
    output: Path | None = None
    """Also write the numbers as JSON."""


@dataclass
class Results:
    """Rows by table."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, table: str, row: dict[str, Any]) -> None:
        """One more row, said at once."""
        self.tables.setdefault(table, []).append(row)
        print(f"  {table}: " + ", ".join(f"{key} {report.number(value)}" for key, value in row.items()), flush=True)


def settings(config: Config, **changes: Any) -> FitSettings:
    """The fits' settings, with changes."""
    base = FitSettings(config.restarts, config.steps, prior_weight=config.prior_weight, seed=config.seed)
    return dataclasses.replace(base, **changes)


def load(path: Path) -> MNIFPipeline:
    """A model on the CPU."""
    return MNIFPipeline.from_pretrained(path, device="cpu")


def some(paths: Sequence[Path], count: int, place: Path) -> list[Path]:
    """`count` of the paths, evenly spread.

    Raises:
        MNIFError: there are none.
    """
    ordered = sorted(paths)
    if not ordered:
        raise MNIFError(f"{place}: nothing to fit to; make the demos' data first (make demo, make demo-voxel).")
    return [ordered[int(k)] for k in evenly_spaced(len(ordered), count)]


def averaged(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every entry that all rows have."""
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if all(key in row for row in rows)}


def times(fits: Sequence[Fit]) -> dict[str, float]:
    """Mean seconds of a fit."""
    return {
        "seconds": float(np.mean([f.seconds for f in fits])),
        "CPU s": float(np.mean([f.cpu_seconds for f in fits])),
    }


# --------------------------------------------------------------------------------------------------------- pictures


def measure_views(config: Config, results: Results) -> None:
    """One, two and many posed pictures of unseen cars; all scored on the same other views."""
    pipe = load(config.radiance)
    scenes = [
        read_views(path)
        for path in some([p for p in config.cars.iterdir() if p.is_dir()], config.instances, config.cars)
    ]
    count = len(scenes[0].images)
    many = tuple(range(0, count, 2))
    scored = np.array([k for k in range(count) if k not in many and k not in config.views])
    truth = [scene.take(scored) for scene in scenes]
    mean = pipe.decode(pipe.latents.mean(dim=0))
    results.add(
        "views", {"views": 0, "held by": "mean object", "PSNR": _mean(views_psnr(mean, item) for item in truth)}
    )
    nearest = [_nearest_by_views(pipe, scene.take(np.array(config.views)), item) for scene, item in zip(scenes, truth)]
    results.add("views", {"views": 2, "held by": "nearest training instance", "PSNR": float(np.mean(nearest))})
    for chosen in (config.views[:1], config.views, many):
        for held in REGULARISERS:
            plan = settings(config, prior=held, views=chosen)
            fits = [fit_observation(pipe, scene, plan) for scene in scenes]
            quality = _mean(views_psnr(fit.best, item) for fit, item in zip(fits, truth))
            disagree = sum(not agreement(fit)["agree"] for fit in fits)
            row = {"views": len(chosen), "held by": held, "PSNR": quality, "disagree": disagree}
            results.add("views", {**row, **times(fits)})


def _nearest_by_views(pipe: MNIFPipeline, seen: PosedViews, truth: PosedViews) -> float:
    prepared = prepare(pipe.model, seen, Region())
    assert prepared.evidence is not None
    losses = torch.cat([prepared.evidence.score(part) for part in pipe.latents.split(16)])
    return views_psnr(pipe.decode(pipe.latents[int(losses.argmin())]), truth)


def measure_photo(config: Config, results: Results) -> None:
    """One picture of an unseen car: is its camera found, and what do the other views look like?"""
    pipe = load(config.radiance)
    found, quality, known, fits = [], [], [], []
    for path in some([p for p in config.cars.iterdir() if p.is_dir()], config.instances, config.cars):
        scene = read_views(path)
        for view in config.views:
            file = sorted((path / "rgb").iterdir())[view]
            fit = fit_observation(pipe, file, settings(config))
            others = scene.take(np.setdiff1d(np.arange(len(scene.images)), config.views))
            with_pose = fit_observation(pipe, scene, settings(config, restarts=1, views=(view,)))
            assert fit.poses is not None
            angle = pose_error(fit.poses[0].numpy(), scene.poses[view])
            quality.append(views_psnr(fit.best, others))
            known.append(views_psnr(with_pose.best, others))
            found.append(angle)
            fits.append(fit)
            row = {"scene": path.name, "view": view, "angle": angle, "PSNR": quality[-1], "with its pose": known[-1]}
            results.add("photo, each", {**row, "agree": agreement(fit)["agree"]})
    row = {
        "pictures": len(fits),
        "pose found": float(np.mean([angle <= POSE_FOUND for angle in found])),
        "median angle": float(np.median(found)),
        "PSNR": float(np.mean(quality)),
        "PSNR with its pose": float(np.mean(known)),
    }
    results.add("photo", {**row, **times(fits)})


def pose_error(pose: np.ndarray, truth: np.ndarray) -> float:
    """Degrees between the directions from the origin to two cameras [4, 4]."""
    a, b = (each[:3, 3] / np.linalg.norm(each[:3, 3]) for each in (pose, truth))
    return math.degrees(math.acos(float(np.clip(a @ b, -1, 1))))


# ----------------------------------------------------------------------------------------------------------- shapes


def measure_voxels(config: Config, results: Results) -> None:
    """Half a voxel grid of unseen cars; the IoU of the other half."""
    pipe = load(config.voxel)
    paths = some(list(config.shapes.glob("*.npz")), config.instances, config.shapes)
    shapes = [read_observation(path, "voxels") for path in paths]
    mean = pipe.decode(pipe.latents.mean(dim=0))
    for half in (None, *config.halves):
        region, name = Region(half), half or "everything"
        seen = [prepare(pipe.model, shape, region) for shape in shapes]
        _voxel_row(
            results, name, "mean shape", [_grid_scores(mean, each.seen, shape) for each, shape in zip(seen, shapes)]
        )
        near = [_nearest_by_cells(pipe, each.seen) for each in seen]
        _voxel_row(
            results, name, "nearest training shape",
            [_grid_scores(pipe.instance(row), each.seen, shape) for row, each, shape in zip(near, seen, shapes)],
        )  # fmt: skip
        if pipe.model.rates is not None:
            objects = [_inner_loop(pipe, each) for each in seen]
            rows = [_grid_scores(item, each.seen, shape) for item, each, shape in zip(objects, seen, shapes)]
            _voxel_row(results, name, "inner loop alone", rows)
        for held in REGULARISERS:
            fits = [fit_observation(pipe, shape, settings(config, prior=held, region=region)) for shape in shapes]
            rows = [_grid_scores(fit.best, each.seen, shape) for fit, each, shape in zip(fits, seen, shapes)]
            _voxel_row(results, name, held, rows, fits)


def _voxel_row(
    results: Results, half: str, held: str, rows: Sequence[dict[str, float]], fits: Sequence[Fit] = ()
) -> None:
    values = averaged(rows)
    unseen = values.get("iou_unseen")
    row: dict[str, Any] = {"seen": half, "held by": held, "IoU seen, %": 100 * values["iou_seen"]}
    row["IoU unseen, %"] = None if unseen is None else 100 * unseen
    if fits:
        row = {**row, "disagree": sum(not agreement(fit)["agree"] for fit in fits), **times(fits)}
    results.add("voxels", row)


def _grid_scores(item: Any, seen: Any, truth: Any) -> dict[str, float]:
    return cells_scores(item, seen, truth)


def _nearest_by_cells(pipe: MNIFPipeline, seen: Any) -> int:
    """The training shape of the largest IoU with the cells that were seen, by the points of a coarse grid."""
    prepared = prepare(pipe.model, seen, Region())
    assert prepared.evidence is not None
    losses = torch.cat([prepared.evidence.score(part) for part in pipe.latents.split(16)])
    best = losses.argsort()[:5].tolist()
    return max(best, key=lambda row: cells_scores(pipe.instance(int(row)), seen, None)["iou_seen"])


def _inner_loop(pipe: MNIFPipeline, prepared: Any) -> Any:
    from mnif_nerf.latents.fitting import frozen
    from mnif_nerf.latents.meta import MetaConfig, PointObjective, adapt

    how = pipe.model.adaptation
    with frozen(pipe.model.field):
        objective = PointObjective(pipe.model.field, prepared.evidence.draw(1, 0, 4096))
        rates = MetaConfig(int(how["inner_steps"]), float(how["inner_lr"]))
        assert pipe.model.rates is not None
        return pipe.decode(adapt(objective, 1, pipe.model.rates, rates)[0])


def measure_scans(config: Config, results: Results) -> None:
    """Point clouds of unseen cars, whole and from one side; the IoU with the car's cells."""
    pipe = load(config.voxel)
    paths = some(list(config.shapes.glob("*.npz")), config.instances, config.shapes)
    shapes = [read_observation(path, "voxels") for path in paths]
    surfaces = [surface_of(path.stem, config.seed) for path in paths]
    mean = pipe.decode(pipe.latents.mean(dim=0))
    results.add(
        "scans", {"cloud": "none: the mean shape", "IoU, %": 100 * _mean(_iou(mean, shape) for shape in shapes)}
    )
    scanner = np.array([0.7, 0.9, 0.5], dtype=np.float32)
    for name, make in scan_kinds(scanner).items():
        for held in ("none", "whitened"):
            fits = [
                fit_observation(pipe, make(surface, k), settings(config, prior=held))
                for k, surface in enumerate(surfaces)
            ]
            quality = _mean(_iou(fit.best, shape) for fit, shape in zip(fits, shapes))
            results.add("scans", {"cloud": name, "held by": held, "IoU, %": 100 * quality, **times(fits)})


def _iou(item: Any, shape: Observation) -> float:
    assert isinstance(shape, Cells)
    return grid_iou(item, shape.values)


def measure_meshes(config: Config, results: Results) -> None:
    """Meshes from elsewhere, as voxels and as pictures; how far a model of procedural cars goes."""
    voxel, radiance = load(config.voxel), load(config.radiance)
    paths = sorted(path for path in config.meshes.glob("*.glb"))
    size = (voxel.model.grid or {"resolution": 64})["resolution"]
    means = [pipe.decode(pipe.latents.mean(dim=0)) for pipe in (voxel, radiance)]
    rows = []
    for path in paths:
        mesh: Any = read_observation(path, "mesh")
        cells, views = voxelise(mesh, size), render_mesh(mesh, radiance.model.camera["focal_over_width"])
        solid = fit_observation(voxel, cells, settings(config))
        light = fit_observation(radiance, views, settings(config))
        near = voxel.instance(_nearest_by_cells(voxel, cells))
        half = fit_observation(voxel, cells, settings(config, region=Region("front")))
        row = {
            "IoU, mean": grid_iou(means[0], cells.values),
            "IoU, nearest": grid_iou(near, cells.values),
            "IoU, fit": scores(solid)["fit"]["iou"],
            "IoU of the rear, from the front": scores(half)["fit"]["iou_unseen"],
            "PSNR, mean": views_psnr(means[1], views),
            "PSNR, nearest": _nearest_by_views(radiance, views, views),
            "PSNR, fit": views_psnr(light.best, views),
        }
        rows.append(row)
        results.add("meshes", {"mesh": path.stem, **row})
    if rows:
        results.add("meshes", {"mesh": "mean", **averaged(rows)})


# ----------------------------------------------------------------------------------------------------------- images


def measure_images(config: Config, results: Results) -> None:
    """Whole pictures, and the other half of half ones."""
    pipe = load(config.image)
    paths = some(list(config.pictures.glob("*.png")), 4 * config.instances, config.pictures)
    pictures = [read_observation(path, "image", grid=pipe.model.grid) for path in paths]
    mean = pipe.decode(pipe.latents.mean(dim=0))
    for half in (None, "top", "left"):
        region = Region(half)
        seen: list[Any] = [prepare(pipe.model, picture, region).seen for picture in pictures]
        rows = [picture_scores(mean, each, _picture(truth)) for each, truth in zip(seen, pictures)]
        _image_row(results, half, "mean picture", rows)
        for held in REGULARISERS:
            fits = [fit_observation(pipe, each, settings(config, prior=held, region=region)) for each in pictures]
            rows = [picture_scores(fit.best, each, _picture(truth)) for fit, each, truth in zip(fits, seen, pictures)]
            _image_row(results, half, held, rows, fits)


def _picture(value: Observation) -> Picture:
    assert isinstance(value, Picture)
    return value


def _image_row(
    results: Results, half: str | None, held: str, rows: Sequence[dict[str, float]], fits: Sequence[Fit] = ()
) -> None:
    values = averaged(rows)
    row: dict[str, Any] = {"seen": half or "everything", "held by": held, "PSNR seen": values["psnr_seen"]}
    row["PSNR unseen"] = values.get("psnr_unseen")
    if fits:
        row = {**row, "disagree": sum(not agreement(fit)["agree"] for fit in fits), **times(fits)}
    results.add("images", row)


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def main(config: Config) -> dict[str, Any]:
    """Measure and print."""
    unknown = [part for part in config.parts if part not in PARTS]
    if unknown:
        raise MNIFError(f"--parts {unknown[0]}: unknown; choose among {', '.join(PARTS)}.")
    info, results, start = report.machine(config.seed), Results(), time.perf_counter()
    for part in config.parts:
        {
            "views": measure_views,
            "photo": measure_photo,
            "voxels": measure_voxels,
            "scans": measure_scans,
            "images": measure_images,
            "meshes": measure_meshes,
        }[part](config, results)
    tables = []
    for name, rows in results.tables.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        tables.append(
            f"{name}\n\n" + report.markdown_table(columns, [[row.get(key) for key in columns] for row in rows])
        )
    notes = (
        f"{config.instances} unseen instances, {config.restarts} starts of {config.steps} steps each; seconds are of "
        f"one fit. {time.perf_counter() - start:.0f} s in all."
    )
    report.finish("Fits to what was never seen", [*tables, notes], info, results.tables, config.output)
    return results.tables


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
