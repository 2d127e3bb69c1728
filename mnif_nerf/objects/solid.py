"""Generated or reconstructed solids and pictures: objects of models of voxels and of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.density import field_device
from mnif_nerf.fields.solid import GAIN, SolidField, surface_level
from mnif_nerf.objects.radiance import NeuralObject, check_pixels, check_size
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.surface import SurfaceGrid, render_surface_view

if TYPE_CHECKING:
    from PIL import Image

    from mnif_nerf.export.mesh_files import ExportMesh

__all__ = ["NeuralImage", "NeuralShape", "object_class"]

_DEFAULT_PIXELS = 64
_SUPERSAMPLING = 2  # rays along each edge of a pixel, for smooth outlines


class NeuralShape(NeuralObject):
    """A solid: the object of a model of voxels.

    The arguments are those of `NeuralObject`. Where `cells` are given, nothing is inside outside them.
    """

    modality: ClassVar[str] = "voxel"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shape = SolidField(self.field, self.half_extent)
        self._surface: SurfaceGrid | None = None

    @property
    def grid(self) -> SurfaceGrid:
        """Where the surface can be, for quick renders; built once, on first use."""
        if self._surface is None:
            self._surface = SurfaceGrid.from_shape(self.shape, bounds=self.cells)
        return self._surface

    @torch.no_grad()
    def value(self, points: Tensor) -> Tensor:
        """The field's values `[N]` in [-1, 1], positive inside, at points `[N, 3]` (world units)."""
        return self.shape.value(points)

    def render(
        self,
        elevation: float = 20.0,
        azimuth: float = 45.0,
        resolution: int = 256,
        radius: float | None = None,
    ) -> Image.Image:
        """The shaded surface on white, seen from outside; the arguments are those of `NeuralObject.render`."""
        check_pixels(resolution, _SUPERSAMPLING**2)
        return super().render(elevation, azimuth, resolution, radius)

    def view(self, pose: Tensor, intrinsics: Intrinsics) -> Image.Image:
        """The shaded surface on white from any camera; the arguments are those of `NeuralObject.view`."""
        from mnif_nerf.export.pictures import to_image

        check_size(intrinsics, _SUPERSAMPLING**2)
        pose = pose.to(field_device(self.field))
        finer = intrinsics.scaled(_SUPERSAMPLING)
        rgb = render_surface_view(self.shape, pose, finer, self.grid, self.half_extent)["rgb"]
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
        """The surface as a closed `trimesh.Trimesh` in glTF's axes; the arguments are those of `NeuralObject.mesh`.

        But `level` is an occupancy between 0 and 1 (0.5 when None), and there are no colours unless asked for (a
        neutral grey).

        Raises:
            MNIFError: a resolution that does not fit in memory, or nothing inside.
        """
        from mnif_nerf.export.mesh import NoSurfaceError

        try:
            wanted = self._density_level(level)
            return self._mesh(self.shape, resolution, wanted, keep, smooth, max_faces, colors)
        except NoSurfaceError as error:
            value = max(-1.0, float(np.log(max(error.highest, 1e-9) / surface_level(self.half_extent))) / GAIN)
            raise MNIFError(
                f"{self.name}: nothing is inside at the level {0.5 if level is None else level:.3g} (its highest "
                f"occupancy is {0.5 + 0.5 * value:.3g}); lower it with --level, or train for longer."
            ) from None

    def occupancy(self, resolution: int = 64, level: float | None = None) -> np.ndarray:
        """Which cells are inside: bool `[G, G, G]`, index [x, y, z], z up, +x forward.

        A cell is inside where `value` at its centre is positive (with `level`, an occupancy between 0 and 1: where
        the field's occupancy is above it). Every cell is evaluated, whatever the resolution.

        Raises:
            MNIFError: a resolution that does not fit in memory, or a level out of range.
        """
        from mnif_nerf.export.voxels import field_to_occupancy

        wanted = self._density_level(level)
        return field_to_occupancy(self.shape, resolution, wanted, self.cells, self.half_extent, skip_empty=False)

    def _density_level(self, level: float | None) -> float | None:
        """The density of `SolidField` that stands for an occupancy."""
        if level is None:
            return None
        if not 0.0 < level < 1.0:
            raise MNIFError(f"level {level} is not an occupancy; use a number between 0 and 1 (the default is 0.5).")
        return surface_level(self.half_extent) * float(np.exp(GAIN * (2.0 * level - 1.0)))


class NeuralImage(NeuralObject):
    """A picture: the object of a model of images. Its field can be sampled at any resolution."""

    modality: ClassVar[str] = "image"

    def image(self, resolution: int | None = None) -> Image.Image:
        """The picture, grey or in colour, sampled at the centres of `resolution` x `resolution` pixels.

        Args:
            resolution: the training pictures' own when None; more shows what the field says in between.

        Raises:
            MNIFError: a resolution below 1 or too large for the memory.
        """
        from PIL import Image

        from mnif_nerf.rendering.plane import render_image

        resolution = (self.resolution or _DEFAULT_PIXELS) if resolution is None else resolution
        check_pixels(resolution)
        values = render_image(self.field, resolution).cpu().numpy()
        pixels = np.rint(np.nan_to_num(values).clip(0, 1) * 255).astype(np.uint8)
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def render(
        self,
        elevation: float = 20.0,
        azimuth: float = 45.0,
        resolution: int = 256,
        radius: float | None = None,
    ) -> Image.Image:
        """`image(resolution)` in colour mode: a picture looks the same from everywhere, so the camera is not used."""
        return self.image(resolution).convert("RGB")

    def view(self, pose: Tensor, intrinsics: Intrinsics) -> Image.Image:
        """Not for pictures.

        Raises:
            MNIFError: always.
        """
        self._refuse("view from a camera")

    def views(
        self, num: int = 4, resolution: int = 128, elevation: float = 20.0, first_azimuth: float = 45.0
    ) -> list[Image.Image]:
        """Not for pictures.

        Raises:
            MNIFError: always.
        """
        self._refuse("other views")

    def orbit(self, frames: int = 48, resolution: int = 128, elevation: float = 20.0) -> Iterator[Image.Image]:
        """Not for pictures.

        Raises:
            MNIFError: always.
        """
        self._refuse("a turntable")

    def mesh(self, *_: Any, **__: Any) -> ExportMesh:
        """Not for pictures.

        Raises:
            MNIFError: always.
        """
        self._refuse("a mesh")

    def occupancy(self, *_: Any, **__: Any) -> np.ndarray:
        """Not for pictures.

        Raises:
            MNIFError: always.
        """
        self._refuse("voxels")

    def _refuse(self, what: str) -> NoReturn:
        raise MNIFError(f"{self.name}: a picture has no {what}; use image(resolution), or mnif-sample.")


def object_class(modality: str, place: Path | str) -> type[NeuralObject]:
    """The class of the objects of a modality.

    Raises:
        MNIFError: a modality this version does not know; the sentence begins with `place`.
    """
    classes: dict[str, type[NeuralObject]] = {kind.modality: kind for kind in (NeuralObject, NeuralShape, NeuralImage)}
    if modality not in classes:
        raise MNIFError(f"{place}: modality {modality!r} is not known; this version has {', '.join(classes)}.")
    return classes[modality]
