"""Data sets of points with signed distance and colour, computed on all cores; what is stopped is taken up again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mnif_nerf.data.generate.car_design import sample_car
from mnif_nerf.data.generate.procedural import (
    GENERATOR_VERSION,
    cars_of,
    label_cars,
    normalised_parts,
    surface_of_parts,
)
from mnif_nerf.data.generate.scene_jobs import run_jobs
from mnif_nerf.data.generate.settings import CarCounts
from mnif_nerf.data.generate.writer import claim_output, write_manifest
from mnif_nerf.data.geometry.solid_mesh import piece_numbers, solid_of_pieces
from mnif_nerf.data.geometry.surface_points import POINTS, PointCounts, SurfacePoints, draw_points
from mnif_nerf.data.stores.surface_pack import encode, parts_folder, remove_parts, write_part
from mnif_nerf.data.stores.surface_store import FOLDER, write_store
from mnif_nerf.errors import require


@dataclass(frozen=True)
class _CarJob:
    """The points of one car."""

    seed: tuple[int, ...]
    body: str
    path: Path
    counts: PointCounts


def make_procedural_points(
    output: Path | str,
    counts: CarCounts | None = None,
    points: int = POINTS,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write the same cars as `make_procedural_cars` as points with signed distance and colour, or complete what was
    interrupted.

    `<output>/points/{train,val,test}/` (see `mnif_nerf.data.stores.surface_store`) and `dataset.json`.

    Args:
        output: the folder; one made earlier with the same settings is completed.
        counts: cars per split and the seed; the defaults when None.
        points: of every car, see `PointCounts.of`.
        workers: processes, None for one per core.
        progress: whether to show a bar.

    Returns:
        `output` as a Path.

    Raises:
        MNIFError: a count that makes no sense, a folder that holds something else or was made with other settings,
            a full disk, a library that is not installed.
    """
    counts, by_kind = counts or CarCounts(), PointCounts.of(points)
    require("igl", "meshes")
    output = Path(output)
    settings = {**asdict(counts), "points": points, "generator": GENERATOR_VERSION}
    claim_output(output, "procedural-car-points", settings)
    jobs: dict[str, list[tuple[str, _CarJob]]] = {}
    for split, name, entropy, body in cars_of(counts):
        path = parts_folder(output / FOLDER, split) / f"{name}.npz"
        jobs.setdefault(split, []).append((name, _CarJob(entropy, body, path, by_kind)))
    jobs = {split: some for split, some in jobs.items() if not (output / FOLDER / split).exists()}
    missing = [job for some in jobs.values() for _, job in some if not job.path.exists()]
    run_jobs(_draw_car, missing, workers, progress, "Points of cars")
    for split, some in jobs.items():
        write_store(output / FOLDER / split, split, {name: job.path for name, job in some}, by_kind, True)
        remove_parts(parts_folder(output / FOLDER, split))
    label_cars(output, counts)
    write_manifest(output, "procedural-car-points", settings, complete=True)
    return output


def car_points(seed: Iterable[int], body: str, counts: PointCounts) -> SurfacePoints:
    """The points of one car, which depend on the arguments alone."""
    parts = normalised_parts(sample_car(tuple(seed), body))
    surface = surface_of_parts(parts)
    piece = piece_numbers([len(part.faces) for part in parts])
    solid = solid_of_pieces(surface.vertices, surface.faces, piece, flush=False)
    return draw_points(surface, solid, counts, np.random.default_rng([*seed, 2]))


def _draw_car(job: _CarJob) -> None:
    write_part(job.path, encode(car_points(job.seed, job.body, job.counts)))
