"""Points in and around a solid, with what a field of signed distance and colour should say there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.geometry.signed_distance import SignedDistance
from mnif_nerf.data.geometry.solid_mesh import SolidMesh
from mnif_nerf.data.geometry.surface_colors import surface_colors
from mnif_nerf.errors import MNIFError

POINTS = 100_000
"""Points of an instance in the cube and around the surface, where nothing else is asked for."""
HALF_EXTENT = 0.5
"""Points lie in the cube [-HALF_EXTENT, HALF_EXTENT]^3, world units."""
LATTICE = 65535
"""Points are kept as whole numbers from 0 to LATTICE per axis; distances are those of the kept points."""
UNIFORM, WIDE, NEAR, ON_SURFACE = range(4)
"""Kinds of points."""
WIDE_NOISE, NEAR_NOISE = 0.03, 0.006
"""Standard deviations of the points around the surface, world units per axis."""
_SHARES = (0.30, 0.25, 0.45)
_SURFACE_SHARE = 0.1
_SAME_FACE = 0.001  # world units


@dataclass(frozen=True)
class PointCounts:
    """How many points an instance gets of each kind.

    Attributes:
        uniform: anywhere in the cube.
        wide, near: around the surface, by normal noise of `WIDE_NOISE` and `NEAR_NOISE`.
        surface: on the surface.
    """

    uniform: int
    wide: int
    near: int
    surface: int

    @property
    def total(self) -> int:
        """Points of an instance."""
        return sum(self.by_kind)

    @property
    def by_kind(self) -> tuple[int, int, int, int]:
        """Counts in the order of the kinds."""
        return (self.uniform, self.wide, self.near, self.surface)

    @classmethod
    def of(cls, points: int) -> PointCounts:
        """30 % of `points` uniform, 25 % wide and 45 % near, and a tenth more on the surface.

        Raises:
            MNIFError: below 100.
        """
        if points < 100:
            raise MNIFError(f"`points` {points}: must be 100 or more.")
        uniform, wide = (round(share * points) for share in _SHARES[:2])
        return cls(uniform, wide, points - uniform - wide, max(1, round(_SURFACE_SHARE * points)))


@dataclass(frozen=True)
class SurfacePoints:
    """Points of one instance.

    Attributes:
        points: float32 [P, 3], world units, in the cube.
        distance: float32 [P], world units, positive outside.
        color: float32 [P, 3], sRGB in [0, 1], of the nearest point of the outer surface; None without colour.
        kind: uint8 [P]: 0 uniform, 1 wide, 2 near, 3 on the surface; in this order.
        normals: float32 [P, 3], outward unit normals of points on the surface, NaN elsewhere.
    """

    points: np.ndarray
    distance: np.ndarray
    color: np.ndarray | None
    kind: np.ndarray
    normals: np.ndarray

    @property
    def num_points(self) -> int:
        """Points."""
        return len(self.points)

    def where(self, chosen: np.ndarray) -> SurfacePoints:
        """Some of the points: bool [P], or their numbers."""
        color = None if self.color is None else self.color[chosen]
        kept = (array[chosen] for array in (self.kind, self.normals))
        return SurfacePoints(self.points[chosen], self.distance[chosen], color, *kept)

    def on_surface(self) -> SurfacePoints:
        """Those on the surface."""
        return self.where(self.kind == ON_SURFACE)

    def to_be_seen(self) -> SurfacePoints:
        """Those on the surface, and those near it moved onto it: several times as many, for pictures.

        A point near the surface goes its distance along the normal of the nearest point on the surface, unless that
        lies on another face: then the way along the normal is not the distance.
        """
        surface, near = self.on_surface(), self.where(self.kind == NEAR)
        if not surface.num_points or not near.num_points:
            return surface
        nearest = KDTree(surface.points).query(near.points)[1]
        normals = surface.normals[nearest]
        height = ((near.points - surface.points[nearest]) * normals).sum(axis=1)
        same = np.abs(height - near.distance) < _SAME_FACE
        moved = near.points - near.distance[:, None] * normals
        parts = [surface, dataclasses.replace(near, points=moved, normals=normals).where(same)]
        color = None if self.color is None else np.concatenate([part.color for part in parts])
        joined = (np.concatenate([getattr(part, name) for part in parts]) for name in ("points", "normals"))
        points, normals = joined
        on = np.full(len(points), ON_SURFACE, np.uint8)
        return SurfacePoints(points, np.zeros(len(points), np.float32), color, on, normals)


def draw_points(
    surface: Surface, solid: SolidMesh, counts: PointCounts, generator: np.random.Generator, color: bool = True
) -> SurfacePoints:
    """Draw points of a solid; within each kind they come in random order.

    Args:
        surface: the mesh, with its colours, in the frame of `read_surface`.
        solid: the boundary of the solid that it stands for.
        counts: how many of each kind.
        generator: where they come from.
        color: whether to look colours up.
    """
    distances = SignedDistance(solid)
    drawn, on_face = distances.sample(counts.wide + counts.near + counts.surface, generator)
    drawn[: counts.wide] += generator.normal(0.0, WIDE_NOISE, (counts.wide, 3))
    around = counts.wide + counts.near
    drawn[counts.wide : around] += generator.normal(0.0, NEAR_NOISE, (counts.near, 3))
    uniform = generator.uniform(-HALF_EXTENT, HALF_EXTENT, (counts.uniform, 3))
    points = to_lattice(np.concatenate([uniform, drawn]))
    asked, on = counts.uniform + around, slice(counts.uniform + around, None)
    where = from_lattice(points)
    distance = np.zeros(len(points), np.float32)
    face, nearest = np.empty(len(points), np.int64), where.astype(np.float64)
    distance[:asked], face[:asked], nearest[:asked] = distances(nearest[:asked])
    face[on] = on_face[around:]
    found = np.full((len(points), 3), np.nan, np.float32)
    found[on] = distances.normals[face[on]]
    kind = np.repeat(np.arange(4, dtype=np.uint8), counts.by_kind)
    colors = surface_colors(surface, solid.source[face], nearest) if color else None
    return SurfacePoints(where, distance, colors, kind, found)


def to_lattice(points: np.ndarray) -> np.ndarray:
    """World points [..., 3], those outside the cube brought to its side, to uint16 [..., 3]."""
    return np.clip(np.round((points / HALF_EXTENT + 1) * (LATTICE / 2)), 0, LATTICE).astype(np.uint16)


def from_lattice(places: np.ndarray) -> np.ndarray:
    """uint16 [..., 3] to world points float32 [..., 3]."""
    return places.astype(np.float32) * np.float32(2 * HALF_EXTENT / LATTICE) - np.float32(HALF_EXTENT)
