"""Objects of models of signed distance and colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.distance import TRUNCATION, DistanceField
from mnif_nerf.objects.base import ObjectFacts, check_pixels, check_size
from mnif_nerf.objects.solid import SolidObject
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.near_cells import field_device
from mnif_nerf.rendering.sphere_tracing import render_distance_view
from mnif_nerf.rendering.tracing_grid import TracingGrid, distance_grid

if TYPE_CHECKING:
    from PIL import Image

    from mnif_nerf.export.mesh_files import ExportMesh

SUPERSAMPLING = 2  # rays along each edge of a pixel, where the picture changes
_CELLS = 96  # along an edge of the scene box: a twig of a tree is about a cell thick
MOST_LEVEL = 0.6 * TRUNCATION
"""The farthest that a level may be from the surface, world units: beyond, distances are not learned well enough."""


class NeuralSurface(SolidObject):
    """A coloured surface: the object of a model of signed distance and colour.

    The arguments are those of `NeuralObject`. Where it has `cells`, nothing is inside beyond them.
    """

    modality: ClassVar[str] = "sdf"

    def __init__(
        self,
        latent: Tensor | None,
        field: CompactField,
        name: str = "object",
        facts: ObjectFacts | None = None,
        coefficients: Tensor | None = None,
    ) -> None:
        super().__init__(latent, field, name, facts, coefficients)
        self.solid = DistanceField(self.field, self.half_extent)
        self._surface: TracingGrid | None = None

    @property
    def grid(self) -> TracingGrid:
        """Distances around the surface, for quick renders; built once, on first use."""
        if self._surface is None:
            self._surface = distance_grid(self.solid, bounds=self.cells)
        return self._surface

    @torch.no_grad()
    def distance(self, points: Tensor) -> Tensor:
        """Signed distances `[N]` (world units, positive outside) at points `[N, 3]`; true up to about 0.05."""
        return self.solid.distance(points)

    @torch.no_grad()
    def color(self, points: Tensor) -> Tensor:
        """Colours `[N, 3]` (sRGB in [0, 1]) at points `[N, 3]` on or near the surface; grey where none were learned."""
        return self.solid.color(points)

    @property
    def has_color(self) -> bool:
        """See `SolidObject`: not where the data had none."""
        return self.solid.has_color

    def surface_colors(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """See `SolidObject`: the field's colours where its surface is nearest."""
        from mnif_nerf.export.distance_mesh import nearest_colors

        return nearest_colors(self.solid, points)

    @torch.no_grad()
    def value(self, points: Tensor) -> Tensor:
        """Values `[N]` in [-1, 1], positive inside, at points `[N, 3]` (world units)."""
        return self.solid.value(points)

    def view(self, pose: Tensor, intrinsics: Intrinsics) -> Image.Image:
        """See `SolidObject`: the shaded surface in its colours, by sphere tracing."""
        from mnif_nerf.export.pictures import to_image

        check_size(intrinsics, SUPERSAMPLING**2)
        pose = pose.to(field_device(self.field))
        out = render_distance_view(self.solid, pose, intrinsics, self.grid, self.half_extent, SUPERSAMPLING)
        return to_image(out["rgb"])

    def render(
        self,
        elevation: float = 20.0,
        azimuth: float = 45.0,
        resolution: int = 256,
        radius: float | None = None,
    ) -> Image.Image:
        """A picture on white, seen from outside; the arguments are those of `SolidObject.render`."""
        check_pixels(resolution, SUPERSAMPLING**2)
        return super().render(elevation, azimuth, resolution, radius)

    def mesh(
        self,
        resolution: int = 128,
        level: float | None = None,
        keep: Literal["largest", "all"] = "largest",
        smooth: int = 0,
        max_faces: int | None = None,
        colors: bool | None = None,
    ) -> ExportMesh:
        """The surface as a closed, coloured `trimesh.Trimesh` in glTF's axes; the arguments are those of `SolidObject`.

        But `level` is a distance (world units, 0 when None): 0.01 draws the surface that far outside the object, -0.01
        inside. Colours are those of the field at the corners; `colors` None leaves them out where none were learned.

        Raises:
            MNIFError: a resolution that does not fit in memory, a level out of range, or nothing inside.
        """
        from mnif_nerf.export.distance_mesh import distance_mesh
        from mnif_nerf.export.mesh import MeshOptions, NoSurfaceError, to_export_axes

        check_distance_level(level)
        colors = self.solid.has_color if colors is None else colors
        options = MeshOptions(level, keep, smooth, max_faces, colors)
        try:
            return to_export_axes(distance_mesh(self.solid, resolution, self.cells, options))
        except NoSurfaceError as error:
            raise MNIFError(f"{self.name}: {error}") from None

    @torch.no_grad()
    def occupancy(self, resolution: int = 64, level: float | None = None) -> np.ndarray:
        """Which cells are inside: bool `[G, G, G]` over the scene box, index [x, y, z], z up, +x forward.

        A cell is inside where the distance at its centre is below `level` (world units, 0 when None). Only cells near
        the surface are evaluated.

        Raises:
            MNIFError: a resolution that does not fit in memory, or a level out of range.
        """
        from mnif_nerf.export.voxels import distance_occupancy

        check_distance_level(level)
        return distance_occupancy(self.solid, resolution, level or 0.0, self.cells)

    @torch.no_grad()
    def signed_distances(self, resolution: int | None = None) -> np.ndarray:
        """See `SolidObject`: what the field says, between -0.05 and 0.05, at 96 cells along an edge when None.

        Only cells near the surface are evaluated; the others have one of the two ends.
        """
        from mnif_nerf.export.voxels import distance_values

        return distance_values(self.solid, resolution or _CELLS, self.cells)


def check_distance_level(level: float | None) -> None:
    """Refuse a level at which distances are not learned.

    Raises:
        MNIFError: with the range.
    """
    if level is not None and not -MOST_LEVEL <= level <= MOST_LEVEL:
        raise MNIFError(
            f"`level` {level} is no distance that is learned; use one between -{MOST_LEVEL:g} and {MOST_LEVEL:g} (the "
            "default is 0, and objects have a diagonal of 1)."
        )
