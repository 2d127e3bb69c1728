"""Sets of shapes as the metrics see them: occupied cells, and points on their surfaces.

Generated and reference shapes go through the same steps, or the difference of the steps would be measured as well: the
occupancy at the data's resolution, marching cubes on those cells, points evenly over the triangles' area. Coordinates
are those of the scene box, and no shape is moved or scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.cache import Arrays
from mnif_nerf.export.voxels import padded_to_cube
from mnif_nerf.scene_box import HALF_EXTENT

_LEVEL = 0.5  # between a cell that is filled and one that is not


@dataclass(frozen=True)
class ShapeSet:
    """N shapes.

    Attributes:
        bits: uint8 `[N, ceil(G^3 / 8)]`, cell c is bit c % 8 of byte c // 8.
        resolution: G.
        points: float32 `[N, P, 3]`, world units; those of an empty shape are NaN.
    """

    bits: np.ndarray
    resolution: int
    points: np.ndarray

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

    def first(self, count: int) -> ShapeSet:
        """The first `count` shapes."""
        return ShapeSet(self.bits[:count], self.resolution, self.points[:count])

    def to_arrays(self) -> Arrays:
        """For the cache."""
        return {"bits": self.bits, "points": self.points, "resolution": np.array([self.resolution])}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> ShapeSet:
        """Read back `to_arrays`."""
        return cls(arrays["bits"], int(arrays["resolution"][0]), arrays["points"])


def make_shape_set(
    occupancies: Iterable[np.ndarray],
    points: int,
    seed: int,
    advance: Callable[[], None] | None = None,
) -> ShapeSet:
    """Cells and surface points of shapes.

    Args:
        occupancies: bool `[X, Y, Z]` each; boxes are filled up to cubes.
        points: P, per shape; 0 leaves the surfaces out, which takes most of the time.
        seed: random seed of the points; shape i of a seed gets the same ones whatever the set.
        advance: called after every shape.

    Raises:
        MNIFError: no shape at all, or grids of unequal size.
    """
    bits, clouds, resolution = [], [], 0
    for index, given in enumerate(occupancies):
        cells, _ = padded_to_cube(given)
        if resolution not in (0, len(cells)):
            raise MNIFError(f"shape {index}: a grid of {cells.shape}, the others have {resolution}^3 cells.")
        resolution = len(cells)
        bits.append(np.packbits(cells.reshape(-1), bitorder="little"))
        clouds.append(surface_points(cells, points, seed * 1_000_003 + index))
        if advance is not None:
            advance()
    if not bits:
        raise MNIFError("there is no shape to measure.")
    return ShapeSet(np.stack(bits), resolution, np.stack(clouds))


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
