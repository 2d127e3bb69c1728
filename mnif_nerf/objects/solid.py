"""What solids have and pictures have not: cameras around them, a surface, meshes and voxels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.objects.base import NeuralObject, check_pixels
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.scene_box import HALF_EXTENT

if TYPE_CHECKING:
    from PIL import Image

    from mnif_nerf.export.assets import AssetOptions
    from mnif_nerf.export.mesh_files import ExportMesh
    from mnif_nerf.rendering.occupancy import RadianceField

FIRST_AZIMUTH = 45.0
_CELLS = 64  # along an edge of the scene box, where the data has no grid


def azimuths_around(num: int, first: float = FIRST_AZIMUTH) -> list[float]:
    """`num` directions in degrees evenly around an object, counter-clockwise as seen from above."""
    return [first + 360.0 * k / num for k in range(num)]


class SolidObject(NeuralObject):
    """An object in the scene box that cameras look at: `NeuralRadiance`, `NeuralShape` or `NeuralSurface`."""

    has_surface: ClassVar[bool] = True

    @property
    def takes_company(self) -> bool:
        """Whether rays of several such objects can be rendered as one batch."""
        return False

    @property
    @abstractmethod
    def grid(self) -> OccupancyGrid:
        """The occupancy grid that lets renders skip empty space; built once, on first use."""

    @abstractmethod
    def view(self, pose: Tensor, intrinsics: Intrinsics) -> Image.Image:
        """The picture of any pinhole camera, on white; it may stand inside the scene box.

        Args:
            pose: camera-to-world `[4, 4]` in the OpenCV convention (x right, y down, z forward), world units.
            intrinsics: focal length, principal point and size of the picture, in pixels.

        Raises:
            MNIFError: a picture without pixels, or too large for the memory.
        """

    @abstractmethod
    def mesh(
        self,
        resolution: int = 128,
        level: float | None = None,
        keep: Literal["largest", "all"] = "largest",
        smooth: int = 0,
        max_faces: int | None = None,
        colors: bool = True,
    ) -> ExportMesh:
        """The surface as a closed, coloured `trimesh.Trimesh` in glTF's axes: y up, +z forward, +x left.

        `mesh().export("car.glb")` (or .ply, .obj, .stl) writes it as it is. See
        `mnif_nerf.export.mesh.field_to_mesh`, which has the same mesh in the library's axes, for the
        arguments.

        Raises:
            MNIFError: a resolution that does not fit in memory, or nothing that reaches the level.
        """

    @property
    def has_color(self) -> bool:
        """Whether `surface_colors` says more than a neutral grey."""
        return True

    @abstractmethod
    def surface_colors(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Colours at the surface: sRGB, float32 `[N, 3]` in [0, 1].

        Args:
            points: `[N, 3]` on the surface or a little off it, world units (z up).
            normals: `[N, 3]`, unit length, outward.
        """

    @abstractmethod
    def occupancy(self, resolution: int = 64, level: float | None = None) -> np.ndarray:
        """Which cells are inside: bool `[X, Y, Z]`, index [x, y, z], z up, +x forward; the longest edge has
        `resolution` cells."""

    def signed_distances(self, resolution: int | None = None) -> np.ndarray:
        """Signed distances (world units, positive outside) at the centres of cells: float32 `[X, Y, Z]`.

        Here they are those to the border of the set of cells that are inside: whole cells, as of `occupancy`.

        Args:
            resolution: cells along the longest edge; the training data's when None, and 64 where that is no grid.

        Raises:
            MNIFError: a resolution that does not fit in memory.
        """
        from mnif_nerf.rendering.cell_distances import cell_distances

        resolution = resolution or self.resolution or _CELLS
        return cell_distances(self.occupancy(resolution), 2 * self.half_extent / resolution)

    def export(self, path: Path | str, options: AssetOptions | None = None) -> list[Path]:
        """Write the surface as .glb, .obj, .ply or .stl: decimated, with a baked picture, scaled, in levels of detail.

        `car.export("car.glb", AssetOptions(faces=2000, texture=1024, scale=4.2, origin="bottom"))`; the options are
        those of `mnif_nerf.export.assets`. With `lods` the files are `car_lod0.glb`, `car_lod1.glb`, ...

        Returns:
            the files, the most detailed first.

        Raises:
            MNIFError: see `mnif_nerf.export.assets.write_assets`.
        """
        from mnif_nerf.export.assets import write_assets

        return write_assets(self, path, options)

    def occupancy_in_cube(self, resolution: int = 64) -> np.ndarray:
        """`occupancy` over the whole scene box, whatever the training data's proportions: bool `[G, G, G]`."""
        return self.occupancy(resolution)

    def picture(self, resolution: int = 256) -> Image.Image:
        """See `NeuralObject`: the view from the front left, from a little above."""
        return self.render(resolution=resolution)

    def render(
        self,
        elevation: float = 20.0,
        azimuth: float = 45.0,
        resolution: int = 256,
        radius: float | None = None,
    ) -> Image.Image:
        """A picture on white, seen from outside towards the object's centre.

        Args:
            elevation: degrees above the horizon, -90 to 90.
            azimuth: degrees around the vertical: 0 sees the front (+x), 90 the left side (+y), 180 the back.
            resolution: pixels along an edge.
            radius: distance of the camera, world units; the training cameras' (1.3) when None.

        Raises:
            MNIFError: a resolution below 1 or too large for the memory, or a camera inside the scene box.
        """
        return self.view(*self.camera_around(elevation, azimuth, resolution, radius))

    def camera_around(
        self, elevation: float, azimuth: float, resolution: int, radius: float | None = None
    ) -> tuple[Tensor, Intrinsics]:
        """The camera of `render`: where it stands, camera-to-world `[4, 4]`, and its lens. Raises as `render` does."""
        check_pixels(resolution)
        radius = self.camera["radius"] if radius is None else radius
        if radius <= HALF_EXTENT:
            raise MNIFError(f"`radius` {radius} puts the camera inside the object; use more than {HALF_EXTENT}.")
        intrinsics = Intrinsics.default(resolution, self.camera["focal_over_width"])
        return orbit_pose(elevation, azimuth, radius), intrinsics

    def views(
        self, num: int = 4, resolution: int = 128, elevation: float = 20.0, first_azimuth: float = FIRST_AZIMUTH
    ) -> list[Image.Image]:
        """`num` pictures evenly around the object, counter-clockwise as seen from above."""
        if num < 1:
            raise MNIFError(f"`views` {num} is too few; ask for at least 1.")
        return [self.render(elevation, azimuth, resolution) for azimuth in azimuths_around(num, first_azimuth)]

    def orbit(self, frames: int = 48, resolution: int = 128, elevation: float = 20.0) -> Iterator[Image.Image]:
        """The frames of a turntable, rendered as they are asked for."""
        for k in range(frames):
            yield self.render(elevation, 45.0 + 360.0 * k / frames, resolution)

    def turntable(
        self,
        path: Path | str,
        frames: int = 48,
        resolution: int = 128,
        elevation: float = 20.0,
        fps: int = 24,
    ) -> Path:
        """Write one turn around the object as .mp4 or .gif.

        Raises:
            MNIFError: no frames, an unknown suffix, or a folder that cannot be written.
        """
        from mnif_nerf.export.video import write_video

        return write_video(self.orbit(frames, resolution, elevation), path, fps)


def require_solid(item: NeuralObject) -> SolidObject:
    """The object, if it has a surface and can be seen from around.

    Raises:
        MNIFError: it is of another kind.
    """
    if not isinstance(item, SolidObject):
        raise MNIFError(f"{item.name}: a {type(item).__name__} has no surface and no sides; use picture(resolution).")
    return item


def solid_mesh(
    item: SolidObject,
    field: RadianceField,
    resolution: int,
    level: float | None,
    options: tuple[Literal["largest", "all"], int, int | None, bool],
) -> ExportMesh:
    """The mesh of a solid's density `field` in glTF's axes; `options` are keep, smooth, max_faces and colors."""
    from mnif_nerf.export.mesh import MeshOptions, field_to_mesh, to_export_axes

    return to_export_axes(field_to_mesh(field, resolution, item.cells, MeshOptions(level, *options)))
