"""The modality "sdf": coloured solids, learned from signed distance and colour at points of meshes."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mnif_nerf.data.readers.scene_reading import USUAL, SceneReading
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.base import Modality
from mnif_nerf.modalities.traits import Card, Demo, DemoData, Fitting, SweepScores
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.objects.surface import NeuralSurface
from mnif_nerf.scene_box import HALF_EXTENT

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mnif_nerf.data.geometry.surface_points import SurfacePoints
    from mnif_nerf.export.web import Drawing
    from mnif_nerf.latents.evidence import ViewLosses
    from mnif_nerf.metrics.images import Lpips
    from mnif_nerf.modalities.sdf_training import SurfaceTraining
    from mnif_nerf.modalities.sweeping import SweepSplit
    from mnif_nerf.objects.base import NeuralObject

_ANGLES = (25.0, 40.0)  # elevation and azimuth of a portrait, degrees
_DEMO_CARS, _DEMO_UNSEEN, _DEMO_POINTS = 128, 8, 60_000
_SAMPLED_CELLS = 96  # along an edge, of the mesh that points are drawn from
_RADIUS = 1.05  # nearer than the cameras of radiance fields, which leave a wide margin
_FARTHEST = 2 * 3 * (2 * HALF_EXTENT) ** 2  # of the squared diagonal of the scene box, both ways


class Sdf(Modality):
    """See the module."""

    name, noun, nouns, method = "sdf", "object", "objects", "mnif-sdf"
    dims, channels, heads = 3, (1, 4), ("sdf",)
    object_class = NeuralSurface
    is_grid, has_points = False, True
    has_surface = has_views = has_pictures = True
    view_count = 2
    white_margins = True
    rays_per_pixel = 4
    scored = (
        "at points of their meshes: IoU over the box; on the surface the PSNR of colours (dB) and the mean distance "
        "that the field says there. Chamfer distance (squared, both ways, added) and normal consistency compare as "
        "many points of either surface, and have between two draws of the data's own what stands beside them"
    )
    no_repainting = ""
    fitting = Fitting(
        kinds=("mesh", "voxels", "cloud", "views", "photo"), picture="photo", distances=True,
        view_weight=3e-3, photo_weight=1e-2, held_weight=0.1,
    )  # fmt: skip
    sweep = SweepScores(
        (
            ("train_iou", "IoU, training instances", 3),
            ("unseen_iou", "IoU, unseen instances", 3),
            ("train_color", "colour on the surface, training instances (dB)", 1),
            ("unseen_color", "colour on the surface, unseen instances (dB)", 1),
            ("sample_1nna", "1-NNA of samples (0.5 is best)", 2),
            ("sample_cov", "COV of samples", 2),
        ),
        "unseen_iou",
        "sample_1nna",
        generation_best=0.5,
        resolution=32,
    )
    card = Card(("3d",), "coloured solids", 'mesh(resolution=128).export("object.glb")')

    @cached_property
    def training(self) -> SurfaceTraining:
        """See `Modality`."""
        from mnif_nerf.modalities.sdf_training import SurfaceTraining

        return SurfaceTraining()

    def seen_values(self, raw: Tensor, head: str, thickness: float) -> Tensor:
        """Colours inside, and the occupancy: both go to 0 over `thickness` through the surface."""
        from mnif_nerf.fields.heads import color_from_raw, distance_from_raw

        inside = torch.sigmoid(-4.0 / thickness * distance_from_raw(raw[:, -1:]))
        return torch.cat([color_from_raw(raw[:, :-1], head) * inside, inside], dim=1)

    @property
    def view_losses(self) -> ViewLosses:
        """Rays that end softly at the surface, in any light."""
        from mnif_nerf.rendering.surface_losses import surface_losses

        return surface_losses

    def portrait(self, item: NeuralObject, pixels: int) -> Image.Image:
        """From the front-left and above."""
        return require_solid(item).render(*_ANGLES, pixels, _RADIUS)

    def reconstruction_scores(self, item: NeuralObject, truth: Any, lpips: Lpips | None) -> dict[str, float]:
        """IoU at the points spread over the box; on the surface PSNR of the colours and the distance said there;
        Chamfer distance and normal consistency, either beside what two draws of the data's own surface have."""
        from mnif_nerf.metrics.surfaces import surface_agreement, surface_scores

        scores = surface_scores(item.field, truth)
        surface = truth.on_surface()
        half = surface.num_points // 2
        first, second = surface.where(np.arange(half)), surface.where(np.arange(half, 2 * half))
        made = self.surface_of(item, half, np.random.default_rng(0))
        found = (_FARTHEST, 0.0)  # an empty object is farther off than anything in the box
        if made is not None:
            found = surface_agreement(made.points, made.normals, first.points, first.normals)
        alike = surface_agreement(second.points, second.normals, first.points, first.normals)
        scores |= {"chamfer": found[0], "chamfer of the data": alike[0]}
        return scores | {"normals": found[1], "normals of the data": alike[1]}

    def surface_of(self, item: NeuralObject, count: int, generator: np.random.Generator) -> SurfacePoints | None:
        """See `Modality`: of all shells."""
        from mnif_nerf.export.surface_samples import surface_samples

        assert isinstance(item, NeuralSurface)
        return surface_samples(item.solid, count, generator, _SAMPLED_CELLS, item.cells)

    def picture_of_data(self, values: Any, pixels: int) -> Image.Image:
        """The points on the surface, seen as in a portrait."""
        from mnif_nerf.export.pictures import to_image
        from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
        from mnif_nerf.rendering.splats import render_points

        pose = orbit_pose(*_ANGLES, _RADIUS)
        return to_image(render_points(values.to_be_seen(), pose, Intrinsics.default(pixels), smooth=True))

    @property
    def demo(self) -> Demo:
        """Generated cars, learned from their meshes."""
        title = "Cars with edges that never existed"
        return Demo(
            "mnif-sdf-lite", "procedural_car_points", "demo-sdf", title, "cars", _make_cars,
            frames=12, num_scored=16, points=512,  # on these cars as good as twice as many, in two thirds of the time
        )  # fmt: skip

    @property
    def drawing(self) -> Drawing:
        """Sphere tracing."""
        from mnif_nerf.export.web import DISTANCE

        return DISTANCE

    def check_level(self, level: float | None) -> None:
        """A distance, near enough to the surface to be learned."""
        from mnif_nerf.objects.surface import check_distance_level

        check_distance_level(level)

    def locate_data(self, root: Path) -> None:
        """Points with signed distances."""
        from mnif_nerf.data.stores.surface_store import packed_splits

        if not packed_splits(root):
            raise MNIFError(f"{root}: holds no points of meshes; make them with mnif-data from-meshes --sdf.")

    def splits(self, root: Path | str) -> tuple[str, ...]:
        """Of packed points, or of a folder of meshes or voxels."""
        from mnif_nerf.data.stores.surface_store import surface_splits

        return surface_splits(root)

    def open_sweep(self, root: Path | str, split: str, resolution: int | None = None) -> SweepSplit:
        """See `Modality`: sets are compared by their cells."""
        from mnif_nerf.data.stores.surface_store import open_surface_store
        from mnif_nerf.modalities.sdf_sweep import SurfaceSplit

        cells = resolution or self.sweep.resolution
        assert cells is not None
        return SurfaceSplit(open_surface_store(root, split), self, cells)

    def unit_values(self, raw: Tensor, head: str) -> Tensor:
        """1 inside, 0 outside: `[B, 1, cells]`."""
        return (raw[:, -1:] > 0).float()

    def set_scores(self, made: Tensor, real: Tensor, shape: tuple[int, ...]) -> dict[str, float]:
        """As of voxels: see `mnif_nerf.metrics.solids`."""
        from mnif_nerf.metrics.solids import solid_set_scores

        return solid_set_scores(made[:, 0].numpy() > 0.5, real[:, 0].numpy() > 0.5)

    def check_data(
        self, root: Path, progress: bool = True, reading: SceneReading = USUAL
    ) -> tuple[list[str], list[str]]:
        """Number and content of the objects."""
        from mnif_nerf.data.check.surfaces import check_surfaces

        return check_surfaces(root, progress)


def _make_cars(options: DemoData) -> None:
    from mnif_nerf.data.generate.points import make_procedural_points
    from mnif_nerf.data.generate.settings import CarCounts

    counts = CarCounts(options.num_cars or _DEMO_CARS, 0, _DEMO_UNSEEN, options.seed)
    make_procedural_points(options.folder, counts, _DEMO_POINTS)
