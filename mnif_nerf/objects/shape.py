"""Objects of voxel models."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.density import field_device
from mnif_nerf.fields.solid import GAIN, NEUTRAL_GREY, SolidField, surface_level
from mnif_nerf.objects.base import check_pixels, check_size
from mnif_nerf.objects.solid import SolidObject, solid_mesh
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.surface import SurfaceGrid, render_surface_view

if TYPE_CHECKING:
    from PIL import Image

    from mnif_nerf.export.mesh_files import ExportMesh

_SUPERSAMPLING = 2  # rays along each edge of a pixel, for smooth outlines


class NeuralShape(SolidObject):
    """A solid: the object of a model of voxels.

    The arguments are those of `NeuralObject`. Where it has `cells`, nothing is inside beyond them.
    """

    modality: ClassVar[str] = "voxel"

    @cached_property
    def solid(self) -> SolidField:
        """The field as a density."""
        return SolidField(self.field)

    @cached_property
    def grid(self) -> SurfaceGrid:
        """Where the surface can be, for quick renders."""
        return SurfaceGrid.from_shape(self.solid, bounds=self.cells)

    @torch.no_grad()
    def value(self, points: Tensor) -> Tensor:
        """The field's values `[N]` in [-1, 1], positive inside, at points `[N, 3]` (world units)."""
        return self.solid.value(points)

    def render(
        self,
        elevation: float = 20.0,
        azimuth: float = 45.0,
        resolution: int = 256,
        radius: float | None = None,
    ) -> Image.Image:
        """The shaded surface on white, seen from outside; the arguments are those of `SolidObject.render`."""
        check_pixels(resolution, _SUPERSAMPLING**2)
        return super().render(elevation, azimuth, resolution, radius)

    def view(self, pose: Tensor, intrinsics: Intrinsics) -> Image.Image:
        """The shaded surface on white from any camera; the arguments are those of `SolidObject.view`."""
        from mnif_nerf.export.pictures import to_image

        check_size(intrinsics, _SUPERSAMPLING**2)
        pose = pose.to(field_device(self.field))
        finer = intrinsics.scaled(_SUPERSAMPLING)
        rgb = render_surface_view(self.solid, pose, finer, self.grid)["rgb"]
        return to_image(F.avg_pool2d(rgb.permute(2, 0, 1), _SUPERSAMPLING).permute(1, 2, 0))

    def mesh(
        self,
        resolution: int = 128,
        level: float | None = None,
        keep: Literal["largest", "all"] = "largest",
        smooth: int = 0,
        max_faces: int | None = None,
        colors: bool = False,
    ) -> ExportMesh:
        """The surface as a closed `trimesh.Trimesh` in glTF's axes; the arguments are those of `SolidObject.mesh`.

        But `level` is an occupancy between 0 and 1 (0.5 when None), and there are no colours unless asked for (a
        neutral grey).

        Raises:
            MNIFError: a resolution that does not fit in memory, or nothing inside.
        """
        from mnif_nerf.export.mesh import NoSurfaceError

        try:
            wanted = self._density_level(level)
            return solid_mesh(self, self.solid, resolution, wanted, (keep, smooth, max_faces, colors))
        except NoSurfaceError as error:
            value = max(-1.0, float(np.log(max(error.highest, 1e-9) / surface_level())) / GAIN)
            raise MNIFError(
                f"{self.name}: nothing is inside at the level {0.5 if level is None else level:.3g} (its highest "
                f"occupancy is {0.5 + 0.5 * value:.3g}); lower it with `level`, or train for longer."
            ) from None

    @property
    def has_color(self) -> bool:
        """See `SolidObject`: a model of voxels has none."""
        return False

    def surface_colors(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """See `SolidObject`: the same grey everywhere."""
        return np.full((len(points), 3), NEUTRAL_GREY, dtype=np.float32)

    def occupancy(self, resolution: int = 64, level: float | None = None) -> np.ndarray:
        """Which cells are inside: bool `[X, Y, Z]`, index [x, y, z], z up, +x forward.

        The grid has the training data's proportions and `resolution` cells along its longest edge. A cell is inside
        where `value` at its centre is positive (with `level`, an occupancy between 0 and 1: where the field's
        occupancy is above it). Every cell is evaluated, whatever the resolution.

        Raises:
            MNIFError: a resolution that does not fit in memory, or a level out of range.
        """
        wanted = self._density_level(level)
        shape = (resolution,) * 3 if self.facts.grid is None else self.facts.grid.scaled(resolution)
        return self._inside(shape, wanted)

    def occupancy_in_cube(self, resolution: int = 64) -> np.ndarray:
        """See `SolidObject`."""
        return self._inside((resolution,) * 3)

    def _inside(self, shape: tuple[int, ...], level: float | None = None) -> np.ndarray:
        from mnif_nerf.export.voxels import field_to_occupancy

        return field_to_occupancy(self.solid, shape, level, self.cells, skip_empty=False)

    def _density_level(self, level: float | None) -> float | None:
        """The density of `SolidField` that stands for an occupancy."""
        if level is None:
            return None
        if not 0.0 < level < 1.0:
            raise MNIFError(f"`level` {level} is not an occupancy; use a number between 0 and 1 (the default is 0.5).")
        return surface_level() * float(np.exp(GAIN * (2.0 * level - 1.0)))
