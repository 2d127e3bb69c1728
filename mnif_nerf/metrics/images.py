"""Reconstruction quality of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError, require


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images of equal shape with values in [0, 1]; a scalar tensor.

    Equal images give infinity.
    """
    return -10.0 * torch.log10((image - reference).square().mean())


def psnr_each(images: Tensor, references: Tensor) -> Tensor:
    """`psnr` `[V]` of each of V pictures `[V, H, W, C]`."""
    return -10.0 * torch.log10((images - references).square().flatten(1).mean(dim=1))


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of two images `[H, W, C]` with values in [0, 1].

    As torchmetrics has it: a Gaussian window of 11 pixels around every pixel, edges mirrored. Images
    with an edge under 11 pixels take the largest odd window that fits, with a Gaussian narrower in proportion: 7 for
    8x8 pixels.

    Raises:
        MNIFError: an edge under 3 pixels, which no window fits.
    """
    return ssim_each(image[None], reference[None])[0]


def ssim_each(images: Tensor, references: Tensor) -> Tensor:
    """`ssim` `[V]` of each of V pictures `[V, H, W, C]`, all at once.

    Raises:
        MNIFError: as `ssim`.
    """
    metrics = require("torchmetrics.functional.image", "metrics")
    edge = min(images.shape[1:3])
    if edge < 3:
        raise MNIFError(
            f"images of {images.shape[2]}x{images.shape[1]} pixels have no structural similarity; use 3x3 or more."
        )
    radius = min(5, (edge - 1) // 2)  # torchmetrics derives the window from sigma: 2 * round(3.5 * sigma) + 1
    values = metrics.structural_similarity_index_measure(
        images.permute(0, 3, 1, 2),
        references.permute(0, 3, 1, 2),
        sigma=1.5 * radius / 5,
        reduction="none",
        data_range=1.0,
    )
    assert isinstance(values, Tensor)
    return values.reshape(len(images))


class Lpips:
    """The learned perceptual distance of two pictures (AlexNet), as torchmetrics has it.

    Its weights load at the first call and may be fetched then, so it is made only where somebody asks for it.
    """

    def __init__(self) -> None:
        self._metric: Any = None

    def __call__(self, image: Tensor, reference: Tensor) -> float:
        """The distance of two pictures `[H, W, 3]` with values in [0, 1]; 0 for equal ones.

        Raises:
            MNIFError: the weights can neither be found nor fetched, or pictures that are too small for the network.
        """
        if min(image.shape[:2]) < 32:
            raise MNIFError(
                f"pictures of {image.shape[1]}x{image.shape[0]} pixels are too small for LPIPS; it takes 32x32 or more."
            )
        if self._metric is None:
            try:
                lpips = require("torchmetrics.image.lpip", "metrics")
                self._metric = lpips.LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(
                    image.device
                )
            except (OSError, RuntimeError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise MNIFError(
                    f"LPIPS cannot load its AlexNet weights ({reason}); put them into torch's cache (TORCH_HOME) on a "
                    "machine with a network, or leave LPIPS out."
                ) from None
        value = float(self._metric(*(x.permute(2, 0, 1)[None].clamp(0, 1) for x in (image, reference))))
        self._metric.reset()
        return value
