"""What varied copies of few meshes (`mnif-data from-meshes --copies`) do for samples: novelty, wholeness, reach.

Samples and meshes are compared as coloured points on their surfaces: the mean distance of each point to the other's
nearest in position (diagonals of the object) and colour (weighted by 0.3), both ways, less what two draws of the same
mesh are apart. "Away" is a sample's distance from the nearest of the user's own meshes over the median distance
between those: near 0 are copies, above 1 is as different as the meshes are from each other. "Marked" are samples
outside the range of wholeness of the first model's training instances. "Reach" is the mean distance of unseen meshes
from the nearest sample, over that from the nearest of the user's own: below 1 the model knows more than the meshes
show. The first model is the baseline.
Run: `python benchmarks/copies.py --models RUN RUN_WITH_COPIES --meshes FOLDER --unseen FOLDER`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import report
from scipy.spatial import cKDTree

from mnif_nerf.data.generate.meshes import find_meshes
from mnif_nerf.data.geometry.raytrace import face_normals
from mnif_nerf.data.readers.mesh_files import read_surface
from mnif_nerf.errors import run_command
from mnif_nerf.export.surface_samples import surface_samples
from mnif_nerf.machine import one_thread
from mnif_nerf.metrics.integrity import Yardstick
from mnif_nerf.objects.surface import NeuralSurface
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.integrity import Draw, integrity_of, yardstick_of
from mnif_nerf.progress import progress_bar

_POINTS, _RESOLUTION, _COLOR, _NEAR = 2000, 64, 0.3, 0.25


@dataclass(frozen=True)
class Config:
    """Compare models of signed distance that were trained on the same meshes, with and without copies.

    Attributes:
        models: model folders, runs or config.yml; the first is the baseline.
        meshes: folder of the meshes that all of them were trained on.
        unseen: folder of meshes of the same kind that none has seen; without it, reach is left out.
        num_samples: of each model.
        seed: of samples and points.
        output: JSON file for the numbers.
    """

    models: tuple[Path, ...]
    meshes: Path
    unseen: Path | None = None
    num_samples: int = 32
    seed: int = 0
    output: Path | None = None


def mesh_cloud(path: Path, generator: np.random.Generator) -> np.ndarray:
    """Coloured points [P, 6] of a mesh file."""
    surface = read_surface(path)
    area = face_normals(surface.vertices, surface.faces)[1]
    faces = generator.choice(len(area), _POINTS, p=area / area.sum())
    weights = generator.dirichlet((1.0, 1.0, 1.0), _POINTS)
    points = np.einsum("fkc,fk->fc", surface.vertices[surface.faces[faces]], weights)
    colors = np.einsum("fkc,fk->fc", surface.corner_colors[faces], weights) * surface.texels(faces, weights)[:, :3]
    return np.concatenate([points, _COLOR * colors], axis=1)


def sample_cloud(item: NeuralSurface, generator: np.random.Generator) -> np.ndarray | None:
    """Coloured points [P, 6] of a sample; None of an empty one."""
    found = surface_samples(item.solid, _POINTS, generator, _RESOLUTION, item.cells)
    if found is None or found.color is None:
        return None
    return np.concatenate([found.points, _COLOR * found.color], axis=1)


def distances(rows: list[np.ndarray], columns: list[np.ndarray]) -> np.ndarray:
    """Between clouds [R] and [C], symmetric: [R, C]."""
    trees, others = [cKDTree(cloud) for cloud in rows], [cKDTree(cloud) for cloud in columns]
    return np.array([[(a.query(b.data)[0].mean() + b.query(a.data)[0].mean()) / 2 for b in others] for a in trees])


@dataclass(frozen=True)
class Meshes:
    """Clouds of the user's own meshes and of unseen ones, and the distance of two draws of the same mesh."""

    own: list[np.ndarray]
    unseen: list[np.ndarray]
    floor: float

    @classmethod
    def of(cls, config: Config, generator: np.random.Generator) -> Meshes:
        """Draw them."""
        paths = find_meshes(config.meshes)
        own, again = ([mesh_cloud(path, generator) for path in paths] for _ in range(2))
        unseen = [] if config.unseen is None else [mesh_cloud(path, generator) for path in find_meshes(config.unseen)]
        return cls(own, unseen, float(np.median([distances([a], [b])[0, 0] for a, b in zip(own, again)])))

    def nearest(self, rows: list[np.ndarray], columns: list[np.ndarray]) -> np.ndarray:
        """Distance of each row from its nearest column, [R]; a cloud is not its own nearest one."""
        between = distances(rows, columns)
        return np.where(between == 0, np.inf, between).min(1) - self.floor


def measure(run: Path, config: Config, meshes: Meshes, yardstick: Yardstick) -> dict[str, float]:
    """One model's numbers."""
    pipe = MNIFPipeline.from_pretrained(run)
    generator = np.random.default_rng(config.seed)
    items = Draw(config.seed).objects(pipe, config.num_samples)
    with progress_bar(run.name, len(items)) as advance:
        marked = [judgement.broken for judgement in integrity_of(items, yardstick, advance)]
    clouds = [cloud for item in items if (cloud := sample_cloud(item, generator)) is not None]
    away = meshes.nearest(clouds, meshes.own) / np.median(meshes.nearest(meshes.own, meshes.own))
    row = {
        "instances": float(len(pipe.names)),
        "away, median": float(np.median(away)),
        f"copies (below {_NEAR:g})": float((away < _NEAR).mean()),
        "marked": float(np.mean(marked)),
    }
    if meshes.unseen:
        reached, own = (meshes.nearest(meshes.unseen, columns).mean() for columns in (clouds, meshes.own))
        row["reach"] = float(reached / own)
    return row


def main(config: Config) -> None:
    """Print the table."""
    info = report.machine(config.seed)
    meshes = Meshes.of(config, np.random.default_rng(config.seed))
    first = MNIFPipeline.from_pretrained(config.models[0])
    rows = {}
    with one_thread():
        yardstick = yardstick_of(first)
        for run in config.models:
            rows[str(run)] = measure(run, config, meshes, yardstick)
    columns = ["model", *next(iter(rows.values()))]
    table = report.markdown_table(columns, [[name, *row.values()] for name, row in rows.items()])
    report.finish("Copies of few meshes", [table], info, rows, config.output)


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
