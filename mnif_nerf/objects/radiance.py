"""One generated or reconstructed object: a latent, its small network, and what can be made of it.

`NeuralObject` is a radiance field; `mnif_nerf.objects.solid` has the solids and the pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.density import field_device
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.files import check_keys, content_errors, read_tensors, write_tensors
from mnif_nerf.machine import check_memory
from mnif_nerf.rendering.cameras import Intrinsics, default_camera, orbit_pose
from mnif_nerf.rendering.depth_samples import DepthSamples, render_view_at_depths
from mnif_nerf.rendering.occupancy import OccupancyGrid, RadianceField
from mnif_nerf.rendering.views import render_view

if TYPE_CHECKING:
    from PIL import Image

    from mnif_nerf.export.mesh_files import ExportMesh

_FORMAT = "mnif_nerf.object"
_KEYS = ("name", "half_extent", "camera", "modality", "resolution")  # and those of the field
NOTEBOOK_PIXELS = 160  # of an object's picture in a notebook: rendered in a few hundredths of a second
_BYTES_PER_PIXEL = 256  # rays, the intervals they are sampled in, and the outputs


class NeuralObject:
    """A latent `[D]` and its collapsed field, which renders, meshes and saves without the basis networks.

    Args:
        latent: `[D]`; None of an object that was mixed layer by layer, which no latent need give.
        field: the collapsed field of that latent.
        name: for captions and file names.
        cells: bool `[G, G, G]` where the object can be, or None.
        half_extent: half the edge of the scene box, world units.
        camera: "focal_over_width" and "radius"; SRN's by default.
        resolution: cells along an edge of the training data, where that is a grid; else None.
        coefficients: mixture coefficients `[M, L]` of an object without a latent, for further editing; else None.

    Attributes:
        depth_samples: None renders inside the scene box. `DepthSamples()` renders as the authors do, which is what
            fields imported from their release were trained with; set it before asking for pictures.
    """

    modality: ClassVar[str] = "radiance"

    def __init__(
        self,
        latent: Tensor | None,
        field: CompactField,
        name: str = "object",
        cells: Tensor | None = None,
        half_extent: float = 0.5,
        camera: dict[str, float] | None = None,
        resolution: int | None = None,
        coefficients: Tensor | None = None,
    ) -> None:
        self._latent = latent
        self.coefficients = coefficients
        self.field = field
        self.name = name
        self.cells = cells
        self.half_extent = half_extent
        self.camera = camera or default_camera()
        self.resolution = resolution
        self.depth_samples: DepthSamples | None = None
        self._grid: OccupancyGrid | None = None

    def __repr__(self) -> str:
        made_of = f"latent of {len(self.latent)}" if self.has_latent else "mixed by layers, without a latent"
        return f"{type(self).__name__}({self.name!r}, {made_of})"

    def _repr_png_(self) -> bytes:
        """What Jupyter shows of the object."""
        from mnif_nerf.export.pictures import png_bytes

        return png_bytes(self.render(resolution=NOTEBOOK_PIXELS))

    @property
    def has_latent(self) -> bool:
        """False of an object that was mixed layer by layer (`MNIFPipeline.mix_layers`)."""
        return self._latent is not None

    @property
    def latent(self) -> Tensor:
        """The latent `[D]` that the field is collapsed from.

        Raises:
            MNIFError: the object was mixed layer by layer, so there is none that would give it back.
        """
        if self._latent is None:
            raise MNIFError(
                f"{self.name}: was mixed layer by layer, so no latent gives it; "
                "MNIFPipeline.project has the latent that comes nearest."
            )
        return self._latent

    @property
    def grid(self) -> OccupancyGrid:
        """The occupancy grid that lets renders skip empty space; built once, on first use."""
        if self._grid is None:
            self._grid = OccupancyGrid.from_field(
                self.field, half_extent=self.half_extent, bounds=self.cells, device=field_device(self.field)
            )
        return self._grid

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
        check_pixels(resolution)
        radius = self.camera["radius"] if radius is None else radius
        if radius <= self.half_extent:
            raise MNIFError(f"radius {radius} puts the camera inside the object; use more than {self.half_extent}.")
        intrinsics = Intrinsics.default(resolution, self.camera["focal_over_width"])
        return self.view(orbit_pose(elevation, azimuth, radius), intrinsics)

    def view(self, pose: Tensor, intrinsics: Intrinsics) -> Image.Image:
        """The picture of any pinhole camera, on white; it may stand inside the scene box.

        Args:
            pose: camera-to-world `[4, 4]` in the OpenCV convention (x right, y down, z forward), world units.
            intrinsics: focal length, principal point and size of the picture, in pixels.

        Raises:
            MNIFError: a picture without pixels, or too large for the memory.
        """
        from mnif_nerf.export.pictures import to_image

        check_size(intrinsics)
        pose = pose.to(field_device(self.field))
        if self.depth_samples is not None:
            return to_image(render_view_at_depths(self.field, pose, intrinsics, self.depth_samples)["rgb"])
        return to_image(render_view(self.field, pose, intrinsics, self.grid, self.half_extent)["rgb"])

    def views(
        self, num: int = 4, resolution: int = 128, elevation: float = 20.0, first_azimuth: float = 45.0
    ) -> list[Image.Image]:
        """`num` pictures evenly around the object, counter-clockwise as seen from above."""
        if num < 1:
            raise MNIFError(f"views {num} is too few; ask for at least 1.")
        return [self.render(elevation, first_azimuth + 360.0 * k / num, resolution) for k in range(num)]

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
        return self._mesh(self.field, resolution, level, keep, smooth, max_faces, colors)

    def _mesh(
        self,
        field: RadianceField,
        resolution: int,
        level: float | None,
        keep: Literal["largest", "all"],
        smooth: int,
        max_faces: int | None,
        colors: bool,
    ) -> ExportMesh:
        from mnif_nerf.export.mesh import field_to_mesh, to_export_axes

        mesh = field_to_mesh(field, resolution, level, self.cells, keep, smooth, max_faces, colors, self.half_extent)
        return to_export_axes(mesh)

    def occupancy(self, resolution: int = 64, level: float | None = None) -> np.ndarray:
        """Which cells are inside: bool `[G, G, G]`, index [x, y, z], z up, +x forward."""
        from mnif_nerf.export.voxels import field_to_occupancy

        return field_to_occupancy(self.field, resolution, level, self.cells, self.half_extent)

    def save(self, path: Path | str) -> Path:
        """Write latent (else coefficients), network and bounds as one safetensors file (about 100 KB), atomically."""
        path = Path(path)
        tensors = {}
        if self.has_latent:
            tensors["latent"] = self.latent.float()
        if self.coefficients is not None:
            tensors["coefficients"] = self.coefficients.float()
        tensors.update({f"field.{name}": value for name, value in self.field.state_dict().items()})
        if self.cells is not None:
            tensors["cells"] = self.cells.to(torch.uint8)
        about = {
            "name": self.name,
            "half_extent": self.half_extent,
            "camera": self.camera,
            "modality": self.modality,
            **self.field.about,
            "resolution": self.resolution,
        }
        write_tensors(path, tensors, {"format": _FORMAT, "object": json.dumps(about)})
        return path

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> NeuralObject:
        """Read back `save`, as the class that wrote it.

        Raises:
            MNIFError: the file is missing, damaged or of another kind.
        """
        from mnif_nerf.objects.solid import object_class

        remedy = "write one with NeuralObject.save"
        stored, metadata = read_tensors(path, remedy)
        if metadata.get("format") != _FORMAT:
            raise MNIFError(f"{path}: does not hold a neural object; {remedy}.")
        tensors = {name: value.to(device) for name, value in stored.items()}
        with content_errors(path, remedy):
            about: dict[str, Any] = json.loads(metadata["object"])
            # Files of version 0.1.0 hold radiance fields and say neither modality nor head.
            kind = object_class(about.get("modality", "radiance"), str(path))
            if not issubclass(kind, cls):
                raise MNIFError(
                    f"{path}: holds a {kind.__name__}, not a {cls.__name__}; read it with {kind.__name__}.load."
                )
            field = CompactField.from_tensors(tensors, about, "field.")
            check_keys(about, (*_KEYS, *field.about), path, remedy)
            cells = tensors["cells"].bool() if "cells" in tensors else None
            return kind(
                tensors.get("latent"),
                field,
                about.get("name", "object"),
                cells,
                about.get("half_extent", 0.5),
                about.get("camera"),
                about.get("resolution"),
                tensors.get("coefficients"),
            )


def check_pixels(resolution: int, samples: int = 1) -> None:
    """Refuse a picture of no pixels, or (with `samples` rays per pixel) of too many for this machine's free memory.

    Raises:
        MNIFError: with the largest resolution that fits.
    """
    if resolution < 1:
        raise MNIFError(f"resolution {resolution} has no pixels; use at least 1 (256 is usual).")
    check_memory(resolution, _BYTES_PER_PIXEL * samples, dimensions=2)


def check_size(intrinsics: Intrinsics, samples: int = 1) -> None:
    """`check_pixels` of a picture that need not be square."""
    width, height = intrinsics.width, intrinsics.height
    if min(width, height) < 1:
        raise MNIFError(f"a picture of {width} x {height} has no pixels; use at least 1 x 1 (256 x 256 is usual).")
    # The square of as many pixels, rounded up.
    check_pixels(math.isqrt(width * height - 1) + 1, samples)
