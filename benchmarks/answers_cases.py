"""What benchmarks/answers.py measures: things that a model never saw, shown in part, with the truth to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from fit_scans import scan_surface, visible
from torch import Tensor

from mnif_nerf.data.generate.car_design import sample_car
from mnif_nerf.data.generate.procedural import car_surface, cars_of
from mnif_nerf.data.generate.settings import CarCounts
from mnif_nerf.data.geometry.hull import cell_centres
from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.geometry.solid_mesh import solid_of_surface
from mnif_nerf.data.geometry.surface_points import PointCounts, draw_points
from mnif_nerf.data.observations.files import read_observation
from mnif_nerf.data.observations.observations import Cells, MeshShape, Observation, Picture, Placement, Scan
from mnif_nerf.data.observations.observed_region import Region
from mnif_nerf.data.sampling.views import evenly_spaced
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.heads import distance_from_raw
from mnif_nerf.latents.search import Evidence
from mnif_nerf.objects.image import NeuralImage
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.pipelines.fit.answers import answer_weight
from mnif_nerf.pipelines.fit.preparation import prepare, render_mesh
from mnif_nerf.pipelines.generation import MNIFPipeline

METHODS = ("fit", "prior", "best of prior", "DPS", "answers")
_SCANNER = np.array([0.7, 0.9, 0.5], dtype=np.float32)  # in front, to the left and above
_SCAN_POINTS = 4000
_VIEW = 4  # of those around a mesh: in front, to the left and above
_KINDS: dict[str, Literal["voxels", "mesh", "image"]] = {"voxels": "voxels", "meshes": "mesh", "pictures": "image"}
_SUFFIXES = {
    "voxels": (".npz", ".npy", ".binvox"),
    "meshes": (".glb", ".obj"),
    "pictures": (".png", ".webp", ".jpg"),
}
PARTS = ("cars", "scans", "views", *_KINDS)


@dataclass
class Config:
    """What to measure."""

    model: Path = Path("outputs/demo-sdf/mnif-sdf-lite/run")
    """Run folder of a model of signed distances, with a prior; of `cars`, `scans`, `views` and `meshes`."""
    voxel: Path = Path("outputs/demo-voxel/mnif-voxel-lite/run")
    """Run folder of a voxel model with a prior."""
    image: Path = Path("outputs/demo-image/mnif-image-lite/run")
    """Run folder of an image model with a prior."""
    voxels: Path = Path("data/procedural_car_voxels/test")
    """Voxel files that it never saw."""
    meshes: Path = Path("../shared/data/kenney_cars")
    """Meshes from elsewhere."""
    pictures: Path = Path("data/digits/test")
    """Pictures that the image model never saw."""
    parts: tuple[str, ...] = ("cars",)
    """Which of cars, scans, views (one picture each, its camera known), voxels, meshes, pictures."""
    methods: tuple[str, ...] = METHODS
    """Which of fit, prior, best of prior, DPS, answers."""
    half: str = "front"
    """The half that is seen of cars, voxels and meshes; of pictures all but the middle is, a quarter of the pixels."""
    instances: int = 6
    """Things of each part."""
    answers: int = 8
    """Answers to each."""
    points: int = 6000
    """Points of each thing that answers are compared at."""
    data_seed: int = 0
    """Seed of the procedural cars' data set; those of its test split are taken."""
    seed: int = 0
    """Seed of all draws."""
    figure: Path | None = None
    """Write the reliability figure here."""
    output: Path | None = None
    """Write the numbers as JSON here too."""

    def run_of(self, part: str) -> Path:
        """The run folder of a part's model."""
        return {"voxels": self.voxel, "pictures": self.image}.get(part, self.model)


@dataclass(frozen=True)
class Case:
    """One thing shown in part: evidence, weights of the prior for the fit and for answers, and what is true at P
    places, from -1 to 1: distances, negative inside, at points [P, 3]; or the numbers of a picture, channels last,
    whose `points` are empty."""

    name: str
    evidence: Evidence
    weight: float
    held: float
    points: np.ndarray
    truth: np.ndarray
    seen: np.ndarray


def cases_of(part: str, pipe: MNIFPipeline, config: Config) -> Iterator[Case]:
    """The cases of one part."""
    region = Region(config.half)
    for name, thing in _things(part, config, pipe):
        shown: Observation = thing
        if isinstance(thing, Picture):
            known = _all_but_the_middle(thing.pixels.shape[:2])
            shown, points = Picture(thing.pixels, known), np.zeros((0, 3))
            truth = thing.pixels.reshape(-1) / 127.5 - 1.0
            seen = np.repeat(known.reshape(-1), thing.pixels.shape[2])
        elif isinstance(thing, Cells):
            points, truth = cell_centres(len(thing.values)), np.where(thing.values.reshape(-1), -1.0, 1.0)
            seen = region.contains(points)
        else:
            points, distance = _distances(thing.surface, config)
            truth = np.clip(distance / pipe.model.encoding.distance.truncation, -1, 1)
            seen = region.contains(points)
        if part == "scans" and isinstance(thing, MeshShape):
            shown = Scan(scan_surface(thing.surface, _SCANNER, _SCAN_POINTS, config.seed), _SCANNER)
            seen = visible(thing.surface, _SCANNER, points)
        if part == "views" and isinstance(thing, MeshShape):
            shown = render_mesh(thing, pipe.model.camera["focal_over_width"]).take(np.array([_VIEW]))
            seen = visible(thing.surface, shown.poses[0, :3, 3], points)
        task = prepare(pipe.model, shown, region if shown is thing else Region(), (), config.seed)
        assert task.evidence is not None
        yield Case(name, task.evidence, task.weight, answer_weight(pipe, task), points, truth.astype(np.float32), seen)


def _all_but_the_middle(shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape
    known = np.ones((height, width), dtype=bool)
    known[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    return known


def _distances(surface: Surface, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 3] around a thing, and their signed distances [P]."""
    generator = np.random.default_rng([config.seed, 7])
    drawn = draw_points(surface, solid_of_surface(surface), PointCounts.of(config.points), generator)
    return drawn.points, drawn.distance


def _things(part: str, config: Config, pipe: MNIFPipeline) -> Iterator[tuple[str, MeshShape | Cells | Picture]]:
    """Names and whole observations of what the model never saw."""
    if part not in _KINDS:
        for split, name, entropy, body in cars_of(CarCounts(1, 0, config.instances, seed=config.data_seed)):
            if split == "test":
                yield name, MeshShape(car_surface(sample_car(tuple(entropy), body)))
        return
    folder: Path = getattr(config, part)
    files = sorted(path for path in folder.glob("*") if path.suffix in _SUFFIXES[part])
    if not files:
        raise MNIFError(f"{folder}: holds none of {', '.join(_SUFFIXES[part])}; give another folder with `{part}`.")
    for row in evenly_spaced(len(files), min(config.instances, len(files))):
        path, model = files[int(row)], pipe.model
        found = read_observation(path, _KINDS[part], Placement(), model.camera.get("radius", 1.0), model.grid)
        assert isinstance(found, (MeshShape, Cells, Picture))
        yield path.stem, found


@torch.no_grad()
def said(pipe: MNIFPipeline, latents: Tensor, case: Case) -> np.ndarray:
    """What objects say at the places of a case: float32 [n, P], as its truth."""
    if pipe.kind.fitting.distances:
        points = torch.from_numpy(case.points.T * 2).float().expand(len(latents), -1, -1).contiguous()
        raw = pipe.model.field.evaluate(latents, points)[:, -1]
        return (distance_from_raw(raw) / pipe.model.encoding.distance.truncation).clamp(-1, 1).numpy()
    return np.stack([_said_by_grid(pipe, code, case) for code in latents])


def _said_by_grid(pipe: MNIFPipeline, code: Tensor, case: Case) -> np.ndarray:
    item = pipe.decode(code)
    if isinstance(item, NeuralImage):
        return (item.pixels().reshape(-1) / 127.5 - 1.0).astype(np.float32)
    size = round(len(case.points) ** (1 / 3))
    return np.where(require_solid(item).occupancy_in_cube(size).reshape(-1), -1.0, 1.0).astype(np.float32)
