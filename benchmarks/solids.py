"""Meshes of a model's training cars against the procedural cars that they were learned from.

Meshes are those of `mnif-export-mesh` as it makes them by default, of training instances spread evenly over the set.
Each is compared with its car's own solid: IoU at points spread evenly over the scene box; the distance from points of
one surface to the other, both ways (not squared; the diagonal of an object is 1); and the cosine between their normals
at such pairs. Beside the mean stands the worst car. Run: `python benchmarks/solids.py outputs/demo/mnif-lite/run`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import report
import tyro

from mnif_nerf import MNIFPipeline
from mnif_nerf.data.generate.car_design import sample_car
from mnif_nerf.data.generate.procedural import car_surface, cars_of, normalised_parts
from mnif_nerf.data.generate.settings import CarCounts
from mnif_nerf.data.geometry.signed_distance import SignedDistance
from mnif_nerf.data.geometry.solid_mesh import piece_numbers, solid_of_pieces, winding_number
from mnif_nerf.data.sampling.views import evenly_spaced
from mnif_nerf.errors import MNIFError, require, run_command
from mnif_nerf.export.mesh_files import to_library_axes
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.progress import tracked

SCORES = ("iou", "distance", "normals")


@dataclass(frozen=True)
class Config:
    """Score exported meshes.

    Attributes:
        model: a model trained on procedural cars (folder, run or config.yml).
        cars: training cars that are scored.
        resolution: cells along an edge of the scene box, of the exported mesh.
        level: its level; the model's own where not given.
        points: in the box, and on each of the two surfaces.
        data_seed: seed of the cars, as `mnif-demo --seed` has it.
        seed: of the points.
        output: JSON file for the numbers.
    """

    model: Annotated[Path, tyro.conf.Positional]
    cars: int = 16
    resolution: int = 128
    level: float | None = None
    points: int = 60_000
    data_seed: int = 0
    seed: int = 0
    output: Path | None = None


def true_solid(entropy: tuple[int, ...], body: str) -> SignedDistance:
    """The union of a car's parts, as `cars_of` names the car."""
    car = sample_car(entropy, body)
    surface = car_surface(car)
    pieces = piece_numbers([len(part.faces) for part in normalised_parts(car)])
    return SignedDistance(solid_of_pieces(surface.vertices, surface.faces, pieces))


def mesh_scores(
    vertices: np.ndarray, faces: np.ndarray, truth: SignedDistance, points: int, seed: int = 0
) -> dict[str, float]:
    """`SCORES` of a closed mesh (world units, z up) against a solid."""
    igl, generator = require("igl", "meshes"), np.random.default_rng(seed)
    vertices, faces = np.ascontiguousarray(vertices, np.float64), np.ascontiguousarray(faces, np.int64)
    box = generator.random((points, 3)) - 0.5
    inside, true = winding_number((vertices, faces), box) > 0.5, truth(box)[0] < 0
    across = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    areas = np.linalg.norm(across, axis=1)
    normals = across / np.maximum(areas, 1e-30)[:, None]
    own = generator.choice(len(faces), points, p=areas / areas.sum())
    weights = generator.dirichlet(np.ones(3), points)
    away, nearest, _ = truth(np.einsum("pk,pkc->pc", weights, vertices[faces[own]]))
    theirs, their_face = truth.sample(points, generator)
    squared, found, _ = igl.point_mesh_squared_distance(np.ascontiguousarray(theirs), vertices, faces)
    cosines = [
        np.einsum("pc,pc->p", normals[a], truth.normals[b]).mean() for a, b in ((own, nearest), (found, their_face))
    ]
    return {
        "iou": float((inside & true).sum() / max(1, (inside | true).sum())),
        "distance": float(0.5 * (np.abs(away).mean() + np.sqrt(squared).mean())),
        "normals": float(np.mean(cosines)),
    }


def main(config: Config) -> None:
    """Export, compare, print."""
    info = report.machine(config.seed)
    pipe = MNIFPipeline.from_pretrained(config.model)
    names = pipe.model.names
    cars = {
        name: (entropy, body) for split, name, entropy, body in cars_of(CarCounts(len(names), seed=config.data_seed))
    }
    strange = [name for name in names if name not in cars]
    if strange:
        raise MNIFError(
            f"{config.model}: {strange[0]} is no procedural car of seed {config.data_seed}; set `data_seed`."
        )
    chosen = [names[row] for row in evenly_spaced(len(names), config.cars)]
    found: dict[str, dict[str, float]] = {}
    seconds = 0.0
    for name in tracked(chosen, "meshes", len(chosen)):
        start = time.perf_counter()
        mesh = require_solid(pipe.instance(name)).mesh(config.resolution, config.level, colors=False)
        seconds += time.perf_counter() - start
        mesh, truth = to_library_axes(mesh), true_solid(*cars[name])
        found[name] = mesh_scores(mesh.vertices, mesh.faces, truth, config.points, config.seed)
    columns = ("cars", "IoU (worst)", "distance of the surfaces", "cosine of their normals", "s per mesh")
    values = {metric: [row[metric] for row in found.values()] for metric in SCORES}
    row = [
        len(found),
        f"{np.mean(values['iou']):.3f} ({min(values['iou']):.3f})",
        f"{np.mean(values['distance']):.4f} ({max(values['distance']):.4f})",
        f"{np.mean(values['normals']):.3f} ({min(values['normals']):.3f})",
        seconds / len(found),
    ]
    title = f"Meshes of training cars, {config.resolution} cells along an edge"
    report.finish(title, [report.markdown_table(columns, [row])], info, found, config.output)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)), [Config])
