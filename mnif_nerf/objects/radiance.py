"""Objects of radiance models."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from torch import Tensor

from mnif_nerf.export.density import field_device
from mnif_nerf.objects.base import check_size
from mnif_nerf.objects.solid import SolidObject, solid_mesh
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.depth_samples import DepthSamples, render_view_at_depths
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.views import render_view

if TYPE_CHECKING:
    from PIL import Image

    from mnif_nerf.export.mesh_files import ExportMesh


class NeuralRadiance(SolidObject):
    """A radiance field: colour and density, seen by volume rendering. The arguments are those of `NeuralObject`.

    Attributes:
        depth_samples: None renders inside the scene box. `DepthSamples()` renders as the authors do, which is what
            fields imported from their release were trained with; set it before asking for pictures.
    """

    modality: ClassVar[str] = "radiance"
    depth_samples: DepthSamples | None = None

    @cached_property
    def grid(self) -> OccupancyGrid:
        """See `SolidObject`."""
        return OccupancyGrid.from_field(self.field, bounds=self.cells, device=field_device(self.field))

    @property
    def takes_company(self) -> bool:
        """See `SolidObject`: where rays are marched."""
        return self.depth_samples is None

    def view(self, pose: Tensor, intrinsics: Intrinsics) -> Image.Image:
        """See `SolidObject`: volume rendering over white."""
        from mnif_nerf.export.pictures import to_image

        check_size(intrinsics)
        pose = pose.to(field_device(self.field))
        if self.depth_samples is not None:
            return to_image(render_view_at_depths(self.field, pose, intrinsics, self.depth_samples)["rgb"])
        return to_image(render_view(self.field, pose, intrinsics, self.grid)["rgb"])

    def mesh(
        self,
        resolution: int = 128,
        level: float | None = None,
        keep: Literal["largest", "all"] = "largest",
        smooth: int = 0,
        max_faces: int | None = None,
        colors: bool = True,
    ) -> ExportMesh:
        """See `SolidObject`; `level` is a density (1/world unit)."""
        return solid_mesh(self, self.field, resolution, level, (keep, smooth, max_faces, colors))

    def surface_colors(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """See `SolidObject`: what a camera sees that looks straight down at the surface."""
        from mnif_nerf.export.mesh import surface_colors

        return surface_colors(self.field, points, normals, self.half_extent)

    def occupancy(self, resolution: int = 64, level: float | None = None) -> np.ndarray:
        """See `SolidObject`; a cell is inside where the density at its centre is above `level`."""
        from mnif_nerf.export.voxels import field_to_occupancy

        return field_to_occupancy(self.field, resolution, level, self.cells)
