"""Stage 1 of voxel shapes: the occupancy of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.stores.grid_store import GridStore
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.heads import occupancy_from_raw
from mnif_nerf.fields.solid import SolidField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.metrics.grids import accuracy, iou, occupancy_psnr
from mnif_nerf.modalities.grid_settings import VoxelModelSettings
from mnif_nerf.modalities.grid_training import GridTraining
from mnif_nerf.modalities.training import FieldCache
from mnif_nerf.rendering.cameras import Intrinsics, cameras_around, orbit_pose
from mnif_nerf.rendering.grids import cell_centres
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.surface import SurfaceGrid, render_surface, render_surface_view
from mnif_nerf.rendering.voxel_faces import render_cells

_CHUNK = 1 << 15  # points evaluated together


class VoxelTraining(GridTraining):
    """See `ModalityTraining`."""

    model_settings = VoxelModelSettings
    nouns = "shapes"

    def field_spec(self, model: VoxelModelSettings, grid: dict[str, Any] | None) -> FieldSpec:
        """Three coordinates in, one value out."""
        final = "sine" if model.head == "signed" else "linear"
        return model.field_spec(in_features=3, out_features=1, final_activation=final, head=model.head)

    def prepare(self, compact: CompactField, bounds: Tensor, model: Any, grid: Any) -> tuple[SolidField, SurfaceGrid]:
        """The solid, and the grid that its rays leap over empty space by."""
        shape = SolidField(compact)
        return shape, SurfaceGrid.from_shape(shape, model.grid_resolution, bounds)

    def render(
        self, field: Any, grid: OccupancyGrid | None, origins: Tensor, directions: Tensor, model: Any
    ) -> dict[str, Tensor]:
        """The shaded surface over white."""
        return render_surface(field, origins, directions, grid, chunk=model.rays_per_chunk(origins.is_cuda))

    @torch.no_grad()
    def score(self, fields: FieldCache, latent: Tensor, store: GridStore, values: np.ndarray) -> dict[str, float]:
        """ "psnr" as in the paper, "iou" and "accuracy" of a grid bool `[X, Y, Z]`."""
        compact = fields.collapse(latent)
        points = cell_centres(store.shape, latent.device)
        raw = torch.cat([compact.evaluate(part)[0] for part in points.split(_CHUNK, dim=1)])
        truth = torch.from_numpy(values).flatten().to(latent.device)
        return {
            "psnr": float(occupancy_psnr(occupancy_from_raw(raw, compact.head), truth)),
            "iou": float(iou(raw > 0, truth)),
            "accuracy": float(accuracy(raw > 0, truth)),
        }

    @torch.no_grad()
    def comparison(self, fields: FieldCache, latent: Tensor, store: GridStore, values: np.ndarray, size: int) -> Tensor:
        """The given grid (its cells' faces) beside the surface of the latent: `[size, 2 * size, 3]` in [0, 1]."""
        pose, camera = orbit_pose(20.0, 45.0), Intrinsics.default(size)
        shape, grid = fields(latent)
        rendered = render_surface_view(shape, pose.to(latent.device), camera, grid)["rgb"].cpu()
        return torch.cat([render_cells(torch.from_numpy(values), pose, camera), rendered], dim=1)

    def cameras(self, store: GridStore, split: str, size: int) -> tuple[Tensor, Intrinsics]:
        """Cameras around a shape: eight for "train", four others, from higher up, for all else."""
        return cameras_around(split, size)

    def picture(self, store: GridStore, values: np.ndarray, pose: Tensor, camera: Intrinsics) -> np.ndarray:
        """The faces of the shape's cells."""
        return (255 * render_cells(torch.from_numpy(values), pose, camera)).round().byte().numpy()
