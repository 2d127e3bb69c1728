"""Sets of shapes as the metrics see them: occupied cells, and points on their surfaces.

Generated and reference shapes go through the same steps, or the difference of the steps would be measured as well.
Where the data are cells: the occupancy at the data's resolution, marching cubes on those cells, points evenly over the
triangles' area (`CellShapes`). Where they are points of meshes, see `mnif_nerf.evaluation.surface_shapes`.
Coordinates are those of the scene box, and no shape is moved or scaled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.cache import Arrays
from mnif_nerf.export.voxels import padded_to_cube
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.scene_box import HALF_EXTENT

_LEVEL = 0.5  # between a cell that is filled and one that is not


@dataclass(frozen=True)
class Shape:
    """One shape.

    Attributes:
        cells: bool `[G, G, G]`.
        points: float32 `[P, 3]`, world units; NaN where it is empty.
        pictures: uint8 `[V, H, W, 3]` of its points, where those have colours; else None.
    """

    cells: np.ndarray
    points: np.ndarray
    pictures: np.ndarray | None = None


class ShapeMaker(Protocol):
    """How shapes of the data, and objects of a model, become `Shape`s.

    Attributes:
        facts: all that a shape depends on beside what it is made of, JSON-ready.
        about: the same in a sentence.
    """

    facts: dict[str, int]
    about: str

    def of_data(self, values: Any, seed: int) -> Shape:
        """The shape of an instance of the data."""
        ...

    def of_object(self, item: NeuralObject, seed: int) -> Shape:
        """The shape of an object."""
        ...


class CellShapes:
    """Shapes of the cells that they fill; see `ShapeMaker`.

    Args:
        points: P.
        resolution: of objects, cells along an edge; the data's own.
    """

    def __init__(self, points: int, resolution: int = 0) -> None:
        self.points, self.resolution = points, resolution
        self.facts = {"points": points, "resolution": resolution}
        self.about = (
            f"Both sides are brought to the data's grid ({resolution or 'the same number of'} cells along an edge), "
            f"meshed by marching cubes, and sampled with {points} points"
        )

    def of_data(self, values: np.ndarray, seed: int) -> Shape:
        """Of bool `[X, Y, Z]`; a box is filled up to a cube."""
        cells, _ = padded_to_cube(values)
        return Shape(cells, surface_points(cells, self.points, seed))

    def of_object(self, item: NeuralObject, seed: int) -> Shape:
        """Of its occupancy."""
        return self.of_data(require_solid(item).occupancy(self.resolution), seed)


@dataclass(frozen=True)
class ShapeSet:
    """N shapes.

    Attributes:
        bits: uint8 `[N, ceil(G^3 / 8)]`, cell c is bit c % 8 of byte c // 8.
        resolution: G.
        points: float32 `[N, P, 3]`, world units; those of an empty shape are NaN.
        pictures: uint8 `[N, V, H, W, 3]`, or None.
    """

    bits: np.ndarray
    resolution: int
    points: np.ndarray
    pictures: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.bits)

    @property
    def empty(self) -> np.ndarray:
        """`[N]` bool, shapes without a single cell."""
        return ~self.bits.any(axis=1)

    def occupancy(self, index: int) -> np.ndarray:
        """Cells of one shape, bool `[G, G, G]`."""
        return self.cells(np.array([index]))[0].reshape((self.resolution,) * 3)

    def cells(self, rows: np.ndarray) -> np.ndarray:
        """Cells of some shapes, bool `[K, G^3]`."""
        count = self.resolution**3
        return np.unpackbits(self.bits[rows], axis=1, count=count, bitorder="little").astype(bool)

    def some(self, rows: np.ndarray) -> ShapeSet:
        """Some of the shapes."""
        pictures = None if self.pictures is None else self.pictures[rows]
        return ShapeSet(self.bits[rows], self.resolution, self.points[rows], pictures)

    def to_arrays(self) -> Arrays:
        """For the cache."""
        arrays = {"bits": self.bits, "points": self.points, "resolution": np.array([self.resolution])}
        return arrays if self.pictures is None else {**arrays, "pictures": self.pictures}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> ShapeSet:
        """Read back `to_arrays`."""
        return cls(arrays["bits"], int(arrays["resolution"][0]), arrays["points"], arrays.get("pictures"))


def packed(shape: Shape) -> ShapeSet:
    """One shape, as little as it takes."""
    bits = np.packbits(shape.cells.reshape(-1), bitorder="little")
    pictures = None if shape.pictures is None else shape.pictures[None]
    return ShapeSet(bits[None], len(shape.cells), shape.points[None], pictures)


def make_shape_set(parts: Iterable[ShapeSet]) -> ShapeSet:
    """Shapes of one kind, together.

    Args:
        parts: some each; see `packed`.

    Raises:
        MNIFError: no shape at all, or grids of unequal size.
    """
    sets = list(parts)
    if not sets:
        raise MNIFError("there is no shape to measure.")
    resolution = sets[0].resolution
    for index, part in enumerate(sets):
        if part.resolution != resolution:
            size = (part.resolution,) * 3
            raise MNIFError(f"shape {index}: a grid of {size}, the others have {resolution}^3 cells.")
    bits, points = (np.concatenate([getattr(part, name) for part in sets]) for name in ("bits", "points"))
    pictures = [part.pictures for part in sets if part.pictures is not None]
    return ShapeSet(bits, resolution, points, np.concatenate(pictures) if pictures else None)


def shape_seed(seed: int, index: int) -> int:
    """Random seed of the points of shape `index`: the same ones whatever the set."""
    return seed * 1_000_003 + index


def surface_points(cells: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Points evenly over the surface that marching cubes finds around cells: float32 `[count, 3]`, world units.

    NaN where there are no cells.

    Args:
        cells: bool `[G, G, G]`, index [x, y, z].
        count: number of points.
        seed: random seed of the points.
    """
    if count == 0 or not cells.any():
        return np.full((count, 3), np.nan, dtype=np.float32)
    import mcubes
    import trimesh

    padded = np.pad(cells, 1).astype(np.float32)
    vertices, faces = mcubes.marching_cubes(padded, _LEVEL)
    vertices = (vertices - 0.5) * (2 * HALF_EXTENT / len(cells)) - HALF_EXTENT
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    points, _ = trimesh.sample.sample_surface(mesh, count, seed=np.random.default_rng(seed))
    return np.asarray(points, dtype=np.float32)
