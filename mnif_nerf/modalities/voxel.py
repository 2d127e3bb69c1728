"""The modality "voxel": solids, learned from the cells that they fill."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.grids import GridModality
from mnif_nerf.modalities.traits import Card, Demo, DemoData, Fitting, SweepScores
from mnif_nerf.objects.shape import NeuralShape
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.scene_box import HALF_EXTENT

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mnif_nerf.data.grid_facts import GridFacts
    from mnif_nerf.export.web import Drawing
    from mnif_nerf.metrics.images import Lpips
    from mnif_nerf.metrics.integrity import Features
    from mnif_nerf.modalities.voxel_training import VoxelTraining
    from mnif_nerf.objects.base import NeuralObject

_ANGLES = (25.0, 40.0)  # elevation and azimuth of a portrait, degrees
_RADIUS = 1.05  # nearer than the cameras of radiance fields, which leave a wide margin
_DEMO_CARS, _DEMO_UNSEEN = 256, 16  # unseen ones in each of val and test
_LIKENESS_CELLS = 64


class Voxel(GridModality):
    """See the module."""

    name, noun, nouns, method = "voxel", "shape", "shapes", "mnif-voxel"
    dims, channels, heads = 3, (1,), ("signed", "logit", "distance")
    object_class = NeuralShape
    has_surface = has_views = True
    solids = "voxel"
    view_count = 2  # the front-left and the rear-right show all there is of a solid
    white_margins = True
    rays_per_pixel = 4
    mesh_formats = "glb,binvox"
    no_repainting = "voxel shapes have no colour"
    fitting = Fitting(kinds=("mesh", "voxels", "cloud"), agreement=0.9, measure="IoU with the best")
    card = Card(("3d",), "solids", 'mesh(resolution=128).export("object.glb")')
    sweep = SweepScores(
        (
            ("train_iou", "IoU, training instances", 3),
            ("unseen_iou", "IoU, unseen instances", 3),
            ("train_psnr", "PSNR, training instances (dB)", 1),
            ("unseen_psnr", "PSNR, unseen instances (dB)", 1),
            ("sample_1nna", "1-NNA of samples (0.5 is best)", 2),
            ("sample_cov", "COV of samples", 2),
        ),
        "unseen_iou",
        "sample_1nna",
        generation_best=0.5,
        resolution=32,
    )

    @cached_property
    def training(self) -> VoxelTraining:
        """See `Modality`."""
        from mnif_nerf.modalities.voxel_training import VoxelTraining

        return VoxelTraining()

    def seen_values(self, raw: Tensor, head: str, thickness: float) -> Tensor:
        """Values in [-1, 1], positive inside."""
        return torch.tanh(0.5 * raw) if head == "logit" else raw.clamp(-1.0, 1.0)

    def unit_values(self, raw: Tensor, head: str) -> Tensor:
        """Occupancies."""
        from mnif_nerf.fields.heads import occupancy_from_raw

        return occupancy_from_raw(raw, head)

    def unit_scores(self, made: Tensor, truth: Tensor) -> dict[str, float]:
        """PSNR of the occupancy, and IoU."""
        from mnif_nerf.metrics.grids import iou, occupancy_psnr

        return {
            "psnr": float(occupancy_psnr(made[:, 0], truth[:, 0]).mean()),
            "iou": float(iou(made[:, 0] > 0.5, truth[:, 0] > 0.5).mean()),
        }

    def set_scores(self, made: Tensor, real: Tensor, shape: tuple[int, ...]) -> dict[str, float]:
        """1-NNA with its halves, and COV: see `mnif_nerf.metrics.solids`."""
        from mnif_nerf.metrics.solids import solid_set_scores

        return solid_set_scores(made[:, 0].numpy() > 0.5, real[:, 0].numpy() > 0.5)

    def portrait(self, item: NeuralObject, pixels: int) -> Image.Image:
        """From the front-left and above."""
        return require_solid(item).render(*_ANGLES, pixels, _RADIUS)

    def picture_of_data(self, values: np.ndarray, pixels: int) -> Any:
        """The cells as little cubes, seen as in a portrait."""
        from mnif_nerf.export.pictures import to_image
        from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
        from mnif_nerf.rendering.voxel_faces import render_cells

        pose = orbit_pose(*_ANGLES, _RADIUS)
        return to_image(render_cells(torch.from_numpy(values), pose, Intrinsics.default(pixels)))

    @property
    def demo(self) -> Demo:
        """Generated cars."""
        title = "Car shapes that never existed"
        return Demo(
            "mnif-voxel-lite", "procedural_car_voxels", "demo-voxel", title, "shapes", _make_cars,
            frames=12, num_scored=16, steps=3000,
        )  # fmt: skip

    @property
    def drawing(self) -> Drawing:
        """A lit surface."""
        from mnif_nerf.export.web import SOLID

        return SOLID

    def check_level(self, level: float | None) -> None:
        """An occupancy, between 0 and 1."""
        if level is not None and not 0 < level < 1:
            raise MNIFError(f"`level` {level} is not an occupancy; use a number between 0 and 1 (the default is 0.5).")

    def protocol_changes(self, protocol: str) -> dict[str, Any]:
        """The authors compare 8,762 shapes with the test split."""
        return {"num_samples": 8762} if protocol == "paper" else {}

    @torch.no_grad()
    def reconstruction_scores(self, item: Any, truth: np.ndarray, lpips: Lpips | None) -> dict[str, float]:
        """IoU and accuracy of the cells, PSNR of the occupancy."""
        from mnif_nerf.metrics.grids import accuracy, iou, occupancy_psnr
        from mnif_nerf.rendering.grids import cell_centres

        cells = torch.from_numpy(truth).flatten()
        centres = cell_centres(truth.shape, item.field.weights[0].device).T * item.half_extent
        occupancy = 0.5 + 0.5 * torch.cat([item.value(part) for part in centres.split(1 << 15)]).cpu()
        inside = torch.from_numpy(item.occupancy(max(truth.shape))).flatten()
        return {
            "iou": float(iou(inside, cells)),
            "accuracy": float(accuracy(inside, cells)),
            "psnr": float(occupancy_psnr(occupancy, cells)),
        }

    def measure_data(self, values: np.ndarray, facts: GridFacts | None) -> Features:
        """See `Modality`: of the cells, as an object's own cells are taken at the data's resolution."""
        from mnif_nerf.metrics.solid_integrity import solid_features
        from mnif_nerf.rendering.cell_distances import cell_distances

        cell = 2 * HALF_EXTENT / max(values.shape)
        return solid_features(cell_distances(values.astype(bool), cell), cell)

    def likeness(self, item: NeuralObject, other: NeuralObject) -> float:
        """IoU of the two."""
        from mnif_nerf.metrics.grids import iou

        solids = (require_solid(each) for each in (item, other))
        first, second = (torch.from_numpy(each.occupancy(_LIKENESS_CELLS)).flatten() for each in solids)
        return float(iou(first, second))


def _make_cars(options: DemoData) -> None:
    from mnif_nerf.data.generate.procedural import make_procedural_voxels
    from mnif_nerf.data.generate.settings import CarCounts

    counts = CarCounts(options.num_cars or _DEMO_CARS, _DEMO_UNSEEN, _DEMO_UNSEEN, options.seed)
    make_procedural_voxels(options.folder, counts)
