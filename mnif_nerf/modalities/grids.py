"""What the modalities share whose data are values on a regular grid: voxels, pictures, signals of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mnif_nerf.data.readers.scene_reading import USUAL, SceneReading
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.base import Modality

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mnif_nerf.metrics.images import Lpips
    from mnif_nerf.modalities.sweeping import SweepSplit
    from mnif_nerf.objects.base import NeuralObject


class GridModality(Modality):
    """A signal that is known at the cells of a grid. The defaults suit any real values in [-1, 1]."""

    is_grid = True
    heads: ClassVar[tuple[str, ...]] = ("signed",)

    def seen_values(self, raw: Tensor, head: str, thickness: float) -> Tensor:
        """The values themselves, in [0, 1]."""
        from mnif_nerf.fields.heads import color_from_raw

        return color_from_raw(raw, head)

    def unit_values(self, raw: Tensor, head: str) -> Tensor:
        """The values themselves."""
        return self.seen_values(raw, head, 0.0)

    def portrait(self, item: NeuralObject, pixels: int) -> Image.Image:
        """The object's own picture."""
        return item.picture(pixels)

    def locate_data(self, root: Path) -> None:
        """Files that this modality reads."""
        from mnif_nerf.data.check.grids import grid_modality

        if grid_modality(Path(root)) != self.name:
            raise MNIFError(f"{root}: holds no {self.nouns}.")

    def splits(self, root: Path | str) -> tuple[str, ...]:
        """See `Modality`."""
        from mnif_nerf.data.stores.grid_store import grid_splits

        return tuple(grid_splits(root, self.name))

    def open_sweep(self, root: Path | str, split: str, resolution: int | None = None) -> SweepSplit:
        """See `Modality`."""
        from mnif_nerf.data.stores.grid_store import open_grid_store
        from mnif_nerf.modalities.grid_sweep import GridSplit

        return GridSplit(open_grid_store(root, split, self.name, resolution or self.sweep.resolution), self)

    def check_data(
        self, root: Path, progress: bool = True, reading: SceneReading = USUAL
    ) -> tuple[list[str], list[str]]:
        """Number, size and content of the grids."""
        from mnif_nerf.data.check.grids import check_grids

        return check_grids(root, self.name, progress)

    def reconstruction_scores(self, item: NeuralObject, truth: np.ndarray, lpips: Lpips | None) -> dict[str, float]:
        """PSNR of the picture that the field gives at the data's resolution."""
        import torch

        from mnif_nerf.metrics.images import psnr
        from mnif_nerf.rendering.plane import render_image

        rendered = render_image(item.field, truth.shape[:2]).cpu()
        return {"psnr": float(psnr(rendered, torch.from_numpy(truth).float() / 255))}
