"""nerfstudio's model of voxel shapes: an occupancy field, trained on points, shown as a shaded surface."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.heads import occupancy_from_raw
from mnif_nerf.fields.solid import SolidField
from mnif_nerf.metrics.grids import accuracy, iou, occupancy_psnr
from mnif_nerf.models.base import InstanceModelConfig
from mnif_nerf.models.grid_model import GridModel
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.grids import cell_centres
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.surface import SurfaceGrid, render_surface, render_surface_view
from mnif_nerf.rendering.voxel_faces import render_cells

_CHUNK = 1 << 15  # points evaluated together


@dataclass
class VoxelModelConfig(InstanceModelConfig):
    """Voxel shapes. The defaults are the paper's ShapeNet S shape, but for the sine frequency."""

    _target: type = field(default_factory=lambda: VoxelModel)
    latent_dim: int = 512
    """Size of a latent code."""
    head: Literal["signed", "logit"] = "signed"
    """What the field says: -1 outside to 1 inside by a last sine, with squared errors as in the paper ("signed"), or
    the logit of the occupancy, with the binary cross entropy ("logit")."""
    grid_resolution: int = 64
    """Cells per side of the occupancy grid that rendering skips empty space with."""

    def ends(self, channels: int) -> dict[str, Any]:
        """Three coordinates in, one value out."""
        final = "sine" if self.head == "signed" else "linear"
        return {"in_features": 3, "out_features": 1, "final_activation": final, "head": self.head}


class VoxelModel(GridModel):
    """See the module."""

    config: VoxelModelConfig
    own_settings = ("head",)

    def prepared(self, compact: CompactField) -> tuple[SolidField, SurfaceGrid]:
        """The solid, and the grid that its rays leap over empty space by."""
        shape = SolidField(compact)
        return shape, SurfaceGrid.from_shape(shape, self.config.grid_resolution, self.bounds)

    def render_field(
        self, field: Any, grid: OccupancyGrid | None, origins: Tensor, directions: Tensor
    ) -> dict[str, Tensor]:
        """The shaded surface over white."""
        return render_surface(field, origins, directions, grid, chunk=self.config.eval_num_rays_per_chunk)

    @torch.no_grad()
    def score(self, latent: Tensor, values: np.ndarray) -> dict[str, float]:
        """How well a latent `[D]` gives back a grid bool `[G, G, G]`: "psnr" as in the paper, "iou", "accuracy"."""
        compact = self.field.collapse(latent).to(self.device)
        points = cell_centres(len(values), 3, self.device)
        raw = torch.cat([compact.evaluate(part)[0] for part in points.split(_CHUNK, dim=1)])
        truth = torch.from_numpy(values).flatten().to(self.device)
        return {
            "psnr": float(occupancy_psnr(occupancy_from_raw(raw, self.config.head), truth)),
            "iou": float(iou(raw > 0, truth)),
            "accuracy": float(accuracy(raw > 0, truth)),
        }

    @torch.no_grad()
    def comparison(self, latent: Tensor, values: np.ndarray, size: int) -> Tensor:
        """The given grid (its cells' faces) beside the surface of the latent: `[size, 2 * size, 3]` in [0, 1]."""
        pose, camera = orbit_pose(20.0, 45.0), Intrinsics.default(size)
        shape, grid = self.collapsed(latent)
        rendered = render_surface_view(shape, pose.to(self.device), camera, grid)["rgb"].cpu()
        return torch.cat([render_cells(torch.from_numpy(values), pose, camera), rendered], dim=1)
