"""Reconstruction quality of images."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images of equal shape with values in [0, 1]; a scalar tensor.

    Equal images give infinity.
    """
    return -10.0 * torch.log10((image - reference).square().mean())


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of two images `[H, W, C]` with values in [0, 1] (torchmetrics: Gaussian window 11)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    value = structural_similarity_index_measure(
        image.permute(2, 0, 1).unsqueeze(0), reference.permute(2, 0, 1).unsqueeze(0), data_range=1.0
    )
    assert isinstance(value, Tensor)
    return value
