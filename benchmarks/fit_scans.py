"""Point clouds of procedural cars as a scanner sees them: from all around or from one place, with noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mnif_nerf.data.generate.car_design import sample_car
from mnif_nerf.data.generate.procedural import SPLIT_CODES, car_surface
from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.observations.observations import Scan
from mnif_nerf.data.readers.cloud_files import PointCloud
from mnif_nerf.errors import MNIFError


def scan_kinds(scanner: np.ndarray) -> dict[str, Callable[[Surface, int], Scan]]:
    """Ways to scan a surface, by name."""

    def scan(partial: bool, normals: bool, told: bool, noise: float = 0.0) -> Callable[[Surface, int], Scan]:
        def make(surface: Surface, seed: int) -> Scan:
            cloud = scan_surface(surface, scanner if partial else None, 4000, seed, noise)
            return Scan(cloud if normals else PointCloud(cloud.points), scanner if told else None)

        return make

    return {
        "whole, normals": scan(False, True, False),
        "whole": scan(False, False, False),
        "one side, normals, scanner": scan(True, True, True),
        "one side, normals": scan(True, True, False),
        "one side, scanner": scan(True, False, True),
        "one side, scanner, noise 0.005": scan(True, False, True, 0.005),
        "one side": scan(True, False, False),
    }


def surface_of(name: str, seed: int) -> Surface:
    """The procedural car that a file "test-0003-bus" was made from.

    Raises:
        MNIFError: another name.
    """
    split, _, rest = name.partition("-")
    index, _, body = rest.partition("-")
    if split not in SPLIT_CODES or not index.isdecimal():
        raise MNIFError(f"{name}: not the name of a procedural car, so there is no surface to scan.")
    return car_surface(sample_car((seed, SPLIT_CODES[split], int(index)), body))


def scan_surface(
    surface: Surface, scanner: np.ndarray | None, count: int, seed: int = 0, noise: float = 0.0
) -> PointCloud:
    """At most `count` points on what is seen from outside (from all around, or from one place), with normals."""
    generator = np.random.default_rng(seed)
    corners = surface.vertices[surface.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normals, axis=1)
    face = generator.choice(len(area), 8 * count, p=area / area.sum())
    u, v = generator.random((2, len(face), 1))
    turned = u + v > 1
    u, v = np.where(turned, 1 - u, u), np.where(turned, 1 - v, v)
    a, b, c = (corners[face, k] for k in range(3))
    points, outward = a + u * (b - a) + v * (c - a), (normals / np.maximum(area, 1e-12)[:, None])[face]
    # From all around: a scanner of its own for every point, on a sphere.
    places = generator.normal(size=(len(points), 3))
    places = 1.5 * places / np.linalg.norm(places, axis=1, keepdims=True)
    origins = places if scanner is None else np.tile(scanner.astype(np.float64), (len(points), 1))
    found = np.flatnonzero(visible(surface, origins, points))[:count]
    points, outward, way = points[found], outward[found], (points - origins)[found]
    outward = np.where((outward * way).sum(axis=1, keepdims=True) > 0, -outward, outward)
    points = points + noise * generator.normal(size=points.shape)
    return PointCloud(points.astype(np.float32), outward.astype(np.float32))


def visible(surface: Surface, origins: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points [N, 3] nothing hides from their origins ([3] or [N, 3]): bool [N]."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene()
    TriangleMesh(scene, surface.vertices.astype(np.float32), surface.faces.astype(np.int32))
    way = points - origins
    distance = np.linalg.norm(way, axis=1)
    origins = np.ascontiguousarray(np.broadcast_to(origins, points.shape), np.float32)
    hit = scene.run(origins, (way / distance[:, None]).astype(np.float32), query="DISTANCE")
    return np.asarray(hit > distance - 2e-3)
