"""Scores of one rendered view against the truth, and the pictures that go with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics.images import Lpips, psnr, ssim


class ViewScores:
    """Scores a rendered view against the truth.

    Args:
        lpips: whether LPIPS is wanted. Its weights load at the first score, never at construction: a model must be
            buildable without a network. Where they cannot be had, that is said once and LPIPS is left out.
        say: prints a line.
    """

    def __init__(self, lpips: bool = False, say: Callable[[str], None] = print) -> None:
        self._lpips = Lpips() if lpips else None
        self._say = say

    def __call__(self, outputs: dict[str, Tensor], image: Tensor) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics as floats, and pictures `[H, W, 3]`: truth beside render ("img"), accumulation, depth.

        Args:
            outputs: `rgb`, `depth`, `accumulation` `[H, W, C]`.
            image: the truth `[H, W, 3]` in [0, 1].
        """
        rendered = outputs["rgb"]
        truth = image[..., :3].to(rendered)
        metrics = {"psnr": float(psnr(rendered, truth)), "ssim": float(ssim(rendered, truth))}
        if self._lpips is not None:
            try:
                metrics["lpips"] = self._lpips(rendered, truth)
            except MNIFError as error:
                self._lpips = None
                self._say(f"LPIPS is left out: {error}")
        near, far = float(outputs["depth"].min()), float(outputs["depth"].max())
        images = {
            "img": torch.cat([truth, rendered], dim=1),
            "accumulation": outputs["accumulation"].expand(-1, -1, 3),
            "depth": ((outputs["depth"] - near) / max(far - near, 1e-6)).expand(-1, -1, 3),
        }
        return metrics, images
