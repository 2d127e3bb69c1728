"""Shapes of data that are points of meshes.

The data has no meshes, but points spread evenly over them with normals and colours, and distances all around. An object
is brought to the same: points spread evenly over its surface with normals and colours of its field. Both are then drawn
as points, so that pictures differ by what they show and not by how they were made. Cells hold what the distances say at
their centres.
"""

from __future__ import annotations

import numpy as np

from mnif_nerf.data.geometry.point_cells import cells_of_points
from mnif_nerf.data.geometry.surface_points import SurfacePoints
from mnif_nerf.evaluation.shapes import Shape
from mnif_nerf.modalities import Modality
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.splats import render_points

RESOLUTION = 64  # cells along an edge
# The pictures of a shape: elevation, then azimuths, degrees; pixels along an edge.
_ELEVATION, _AZIMUTHS = 20.0, (45.0, 135.0, 225.0, 315.0)
VIEWS = len(_AZIMUTHS)
_PIXELS = 64
_MOST_DRAWN = 4096


class SurfaceShapes:
    """See `mnif_nerf.evaluation.shapes.ShapeMaker`.

    Args:
        kind: modality of the objects.
        points: P.
        stored: points on the surface of each instance of the data, P at least.
    """

    def __init__(self, kind: Modality, points: int, stored: int) -> None:
        self.kind, self.points, self.drawn = kind, points, min(stored, _MOST_DRAWN)
        self.facts = {"points": points, "resolution": RESOLUTION, "drawn": self.drawn, "pixels": _PIXELS}
        self.about = (
            f"Both sides are {points} points spread evenly over the surface (the data's as they are stored; a model's "
            f"drawn from a mesh and moved to the zero of the field), and the cells ({RESOLUTION} along an edge) whose "
            "centres are inside"
        )

    def of_data(self, values: SurfacePoints, seed: int) -> Shape:
        """The shape of stored points."""
        surface = values.on_surface()
        chosen = np.random.default_rng(seed).permutation(surface.num_points)
        return self._shape(cells_of_points(values, RESOLUTION), surface.where(chosen))

    def of_object(self, item: NeuralObject, seed: int) -> Shape:
        """The shape of an object; one without a surface, or too small to fill a single cell, is empty."""
        count = max(self.points, self.drawn)
        surface = self.kind.surface_of(item, count, np.random.default_rng(seed))
        return self._shape(require_solid(item).occupancy(RESOLUTION), surface)

    def _shape(self, cells: np.ndarray, surface: SurfacePoints | None) -> Shape:
        if surface is None or not cells.any():
            nowhere = np.full((self.points, 3), np.nan, np.float32)
            return Shape(np.zeros_like(cells), nowhere, np.full((VIEWS, _PIXELS, _PIXELS, 3), 255, np.uint8))
        camera, drawn = Intrinsics.default(_PIXELS), surface.where(np.arange(self.drawn))
        views = [render_points(drawn, orbit_pose(_ELEVATION, azimuth), camera).numpy() for azimuth in _AZIMUTHS]
        return Shape(cells, surface.points[: self.points], np.rint(255 * np.stack(views)).astype(np.uint8))
