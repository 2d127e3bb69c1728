"""Procedural cars as surfaces, occupancy and a data set in the SRN layout: deterministic by seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mnif_nerf.data.generate.car_assembly import build_car
from mnif_nerf.data.generate.car_design import SPLIT_CODES, CarParameters, body_type, sample_car
from mnif_nerf.data.generate.car_parts import Part
from mnif_nerf.data.generate.scene_jobs import Pictures, ViewPlan, render_pictures, run_jobs
from mnif_nerf.data.generate.settings import CarCounts, ViewCounts
from mnif_nerf.data.generate.writer import claim_output, write_manifest, write_occupancy
from mnif_nerf.data.geometry.raytrace import Camera, Surface
from mnif_nerf.data.geometry.voxelise import check_voxel_resolution, occupancy_of_mesh
from mnif_nerf.data.readers.labels import FILE, useful, write_labels
from mnif_nerf.labels import Labels

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives another car: folders of different versions are not mixed."""
OCCUPANCY_RESOLUTION = 64
CAR_VIEWS = ViewCounts(train_views=16, heldout_views=4, test_views=24, resolution=64)


def normalised_parts(car: CarParameters) -> list[Part]:
    """The car's parts, centred on the origin and scaled to a bounding-box diagonal of 1."""
    parts = build_car(car)
    low = np.min([part.vertices.min(0) for part in parts], axis=0)
    high = np.max([part.vertices.max(0) for part in parts], axis=0)
    centre, scale = (low + high) / 2, 1.0 / np.linalg.norm(high - low)
    return [Part((part.vertices - centre) * scale, part.faces, part.colors) for part in parts]


def car_surface(car: CarParameters | int | Sequence[int]) -> Surface:
    """A car (or the car of a seed) as one coloured surface in the unit-diagonal frame."""
    if not isinstance(car, CarParameters):
        car = sample_car(car)
    return surface_of_parts(normalised_parts(car))


def surface_of_parts(parts: Sequence[Part]) -> Surface:
    """Parts as one coloured surface."""
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    return Surface(
        vertices=np.concatenate([part.vertices for part in parts]),
        faces=np.concatenate([part.faces + offset for part, offset in zip(parts, offsets)]),
        corner_colors=np.repeat(np.concatenate([part.colors for part in parts])[:, None], 3, axis=1),
    )


def car_occupancy(car: CarParameters | int | Sequence[int], resolution: int = 64) -> np.ndarray:
    """Which cells of [-0.5, 0.5]^3 the car fills: bool [G, G, G] in x, y, z order.

    Every part is closed and is filled on its own; the results are OR-ed, since crossings of overlapping
    shells would cancel.

    Raises:
        MNIFError: `resolution` is below 1.
    """
    if not isinstance(car, CarParameters):
        car = sample_car(car)
    filled = [occupancy_of_mesh(part.vertices, part.faces, resolution) for part in normalised_parts(car)]
    return np.logical_or.reduce(filled)


@dataclass(frozen=True)
class _CarJob:
    """All files of one car."""

    seed: tuple[int, ...]
    body: str
    pictures: tuple[Pictures, ...]
    camera: Camera
    occupancy: Path | None


def make_procedural_cars(
    output: Path | str,
    counts: CarCounts | None = None,
    views: ViewCounts = CAR_VIEWS,
    occupancy: bool = True,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a data set of procedural cars in the SRN layout, or complete one that was interrupted.

    `<output>/cars_train` (cameras over the whole sphere), `cars_train_val` (the same cars from a held-out
    spiral), `cars_val` and `cars_test` (other cars, spiral), `occupancy/<split>/<scene>.npz` (64^3, see
    `mnif_nerf.data.generate.writer.read_occupancy`) and `dataset.json`. Scenes are named `<number>-<body type>`.

    Args:
        output: the folder; one made earlier with the same settings is completed, scenes in it are kept.
        counts: cars per split and the seed; the defaults when None.
        views: pictures of every car.
        occupancy: whether to write the occupancy files.
        workers: processes, None for one per core.
        progress: whether to show a bar.

    Returns:
        `output` as a Path.

    Raises:
        MNIFError: a count that makes no sense, a folder that holds something else or was made with other
            settings, a full disk.
    """
    counts = counts or CarCounts()
    settings = {**asdict(counts), **asdict(views), "occupancy": occupancy, "generator": GENERATOR_VERSION}
    output = Path(output)
    claim_output(output, "procedural-cars", settings)
    plan = ViewPlan(output, "cars", **asdict(views))
    jobs = []
    for split, name, entropy, body in cars_of(counts):
        cells = output / "occupancy" / split / f"{name}.npz" if occupancy else None
        jobs.append(_CarJob(entropy, body, plan.pictures(split, name, (*entropy, 1)), plan.camera, cells))
    run_jobs(_draw_car, [job for job in jobs if _is_missing(job)], workers, progress, "Rendering cars")
    label_cars(output, counts)
    write_manifest(output, "procedural-cars", settings, complete=True)
    return output


def make_procedural_voxels(
    output: Path | str,
    counts: CarCounts | None = None,
    resolution: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write the same cars as `make_procedural_cars` as voxels alone, or complete what was interrupted.

    `<output>/{train,val,test}/<car>.npz` (see `mnif_nerf.data.generate.writer.read_occupancy`) and `dataset.json`.

    Args:
        output: the folder; one made earlier with the same settings is completed, shapes in it are kept.
        counts: cars per split and the seed; the defaults when None.
        resolution: cells along an edge.
        workers: processes, None for one per core.
        progress: whether to show a bar.

    Returns:
        `output` as a Path.

    Raises:
        MNIFError: a count that makes no sense, a folder that holds something else or was made with other
            settings, a full disk.
    """
    counts = counts or CarCounts()
    check_voxel_resolution(resolution)
    output = Path(output)
    settings = {**asdict(counts), "voxels": resolution, "generator": GENERATOR_VERSION}
    claim_output(output, "procedural-car-voxels", settings)
    jobs = [
        _VoxelJob(entropy, body, output / split / f"{name}.npz", resolution)
        for split, name, entropy, body in cars_of(counts)
    ]
    run_jobs(_fill_car, [job for job in jobs if not job.path.exists()], workers, progress, "Filling cars")
    label_cars(output, counts)
    write_manifest(output, "procedural-car-voxels", settings, complete=True)
    return output


@dataclass(frozen=True)
class _VoxelJob:
    """The voxels of one car."""

    seed: tuple[int, ...]
    body: str
    path: Path
    resolution: int


def _fill_car(job: _VoxelJob) -> None:
    write_occupancy(job.path, car_occupancy(sample_car(job.seed, job.body), job.resolution))


def cars_of(counts: CarCounts) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    """Split, name, seed and body type of every car of a data set."""
    for split, count in (("train", counts.num_train), ("val", counts.num_val), ("test", counts.num_test)):
        for index in range(count):
            body = body_type(counts.seed, split, index)
            name = f"{index:04d}-{body}" if split == "train" else f"{split}-{index:04d}-{body}"
            yield split, name, (counts.seed, SPLIT_CODES[split], index), body


def label_cars(output: Path, counts: CarCounts) -> None:
    """Write `labels.csv`: the body type of every car."""
    cars = list(cars_of(counts))
    labels = useful(Labels({"body": tuple(body for _, _, _, body in cars)}))
    if labels is not None:
        write_labels(output / FILE, [name for _, name, _, _ in cars], labels)


def _draw_car(job: _CarJob) -> None:
    car = sample_car(job.seed, job.body)
    render_pictures(car_surface(car), job.pictures, job.camera)
    if job.occupancy is not None and not job.occupancy.exists():
        write_occupancy(job.occupancy, car_occupancy(car, OCCUPANCY_RESOLUTION))


def _is_missing(job: _CarJob) -> bool:
    folders = [pictures.folder for pictures in job.pictures]
    return not all(path.exists() for path in (*folders, *([job.occupancy] if job.occupancy else [])))
