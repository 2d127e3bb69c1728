"""Objects of image models."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mnif_nerf.objects.base import NeuralObject, check_pixels

if TYPE_CHECKING:
    from PIL import Image

_DEFAULT_PIXELS = 64


class NeuralImage(NeuralObject):
    """A picture: the object of a model of images. Its field can be sampled at any resolution."""

    modality: ClassVar[str] = "image"

    def pixels(self, resolution: int | None = None) -> np.ndarray:
        """The picture's numbers, uint8 `[H, W, C]`, as the data's store has them: with alpha (C = 4) colours are times
        alpha. Otherwise as `image`."""
        from mnif_nerf.rendering.plane import render_image

        resolution = (self.resolution or _DEFAULT_PIXELS) if resolution is None else resolution
        check_pixels(resolution)
        grid = self.facts.grid
        shape = (resolution, resolution) if grid is None else grid.scaled(resolution)
        values = render_image(self.field, shape).cpu().numpy()
        return np.rint(np.nan_to_num(values).clip(0, 1) * 255).astype(np.uint8)

    def image(self, resolution: int | None = None) -> Image.Image:
        """The picture, grey (mode L), in colour (RGB) or in colour with alpha (RGBA, colours straight), sampled at the
        centres of its pixels, in the training pictures' proportions.

        Args:
            resolution: pixels of the longer edge; the training pictures' own when None. More shows what the field says
                in between.

        Raises:
            MNIFError: a resolution below 1 or too large for the memory.
        """
        from PIL import Image

        from mnif_nerf.rendering.alpha import straight

        pixels = straight(self.pixels(resolution))
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def own_picture(self, resolution: int | None = None) -> Image.Image:
        """`image(resolution)`."""
        return self.image(resolution)

    def picture(self, resolution: int = 256) -> Image.Image:
        """`image(resolution)` in colour mode, on white where it is transparent."""
        from PIL import Image

        from mnif_nerf.rendering.alpha import over_white

        pixels = over_white(self.pixels(resolution))
        return Image.fromarray(np.repeat(pixels, 3 // pixels.shape[-1], axis=2))
