"""Stage 1 of images: the colours of pixels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.stores.grid_store import GridStore
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.metrics.images import psnr, ssim
from mnif_nerf.modalities.grid_settings import ImageModelSettings
from mnif_nerf.modalities.grid_training import GridTraining, front_camera, sine_frequency
from mnif_nerf.modalities.training import FieldCache
from mnif_nerf.rendering.alpha import over_white
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.plane import render_image, render_plane


class Picture(NamedTuple):
    """The field of a picture, and the (H, W) whose proportions it has on its plane."""

    field: CompactField
    shape: tuple[int, ...]


class ImageTraining(GridTraining):
    """See `ModalityTraining`."""

    model_settings = ImageModelSettings
    nouns = "pictures"

    def field_spec(self, model: ImageModelSettings, grid: dict[str, Any] | None) -> FieldSpec:
        """Two coordinates in, one, three or four channels out, -1 black (or transparent) and 1 white."""
        grid = grid or {}
        return model.field_spec(
            in_features=2,
            out_features=grid.get("channels", 1),
            final_activation=model.final_activation,
            head="signed",
            w0=sine_frequency(model.w0, grid.get("resolution", 64)),
        )

    def prepare(self, compact: CompactField, bounds: Tensor, model: Any, grid: Any) -> tuple[Picture, None]:
        """The field and its proportions; a plane needs no occupancy grid."""
        return Picture(compact, (1, 1) if grid is None else GridFacts.from_dict(grid, 2).shape), None

    def render(
        self, field: Any, grid: OccupancyGrid | None, origins: Tensor, directions: Tensor, model: Any
    ) -> dict[str, Tensor]:
        """The picture on the plane x = 0, over white; a viewer's crop box does not cut it."""
        return render_plane(field.field, origins, directions, shape=field.shape)

    def score(self, fields: FieldCache, latent: Tensor, store: GridStore, values: np.ndarray) -> dict[str, float]:
        """ "psnr" and, from 3 pixels on, "ssim" of a picture uint8 `[H, W, C]`."""
        rendered = render_image(fields(latent)[0].field, store.shape).cpu()
        truth = torch.from_numpy(values).float() / 255.0
        metrics = {"psnr": float(psnr(rendered, truth))}
        return {**metrics, "ssim": float(ssim(rendered, truth))} if min(store.shape) >= 3 else metrics

    def comparison(self, fields: FieldCache, latent: Tensor, store: GridStore, values: np.ndarray, size: int) -> Tensor:
        """The given picture beside the latent's: `[H, 2 * W, 3]` in [0, 1]; `size` is of no meaning here."""
        rendered = render_image(fields(latent)[0].field, store.shape).cpu()
        both = torch.cat([torch.from_numpy(values).float() / 255.0, rendered], dim=1)
        return over_white(both).expand(-1, -1, 3)

    def cameras(self, store: GridStore, split: str, size: int) -> tuple[Tensor, Intrinsics]:
        """One camera whose pixels are those of the picture on the plane x = 0."""
        return front_camera(store.shape)

    def picture(self, store: GridStore, values: np.ndarray, pose: Tensor, camera: Intrinsics) -> np.ndarray:
        """The picture itself, on white, grey repeated."""
        seen = over_white(values)
        return np.repeat(seen, 3 // seen.shape[2], axis=2)
