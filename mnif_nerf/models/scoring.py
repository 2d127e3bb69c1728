"""What an evaluation needs around a render: the rays of a nerfstudio camera, scores, and pictures."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics.images import Lpips, psnr, ssim
from mnif_nerf.rendering.cameras import Intrinsics, pixel_rays


def pinhole_rays(camera: Cameras, height: int, width: int) -> tuple[Tensor, Tensor] | None:
    """Origins and unit directions `[H * W, 3]` of one camera, ten times faster than nerfstudio's own.

    None for what is no pinhole with square pixels (fisheye, panorama, distortion): nerfstudio's rays serve
    there.
    """
    fx, fy, cx, cy = (float(getattr(camera, name).reshape(-1)[0]) for name in ("fx", "fy", "cx", "cy"))
    distorted = camera.distortion_params is not None and bool(camera.distortion_params.any())
    if int(camera.camera_type.reshape(-1)[0]) != CameraType.PERSPECTIVE.value or distorted:
        return None
    if abs(fx - fy) > 1e-5 * fx:
        return None
    c2w = torch.eye(4, device=camera.device)
    c2w[:3] = camera.camera_to_worlds.reshape(-1, 3, 4)[0]
    c2w[:3, 1:3] *= -1  # nerfstudio's OpenGL axes to ours
    return pixel_rays(c2w, Intrinsics(fx, cx, cy, height, width))


class ImageScores:
    """Scores a rendered view against the truth.

    Args:
        lpips: whether LPIPS is wanted. Its weights load at the first score, never at construction: a model
            must be buildable without a network.
    """

    def __init__(self, lpips: bool = False) -> None:
        self._wants_lpips = lpips
        self._lpips = Lpips()

    def __call__(self, outputs: dict[str, Tensor], image: Tensor) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics as floats, and pictures `[H, W, 3]`: truth beside render ("img"), accumulation, depth.

        Args:
            outputs: `rgb`, `depth`, `accumulation` `[H, W, C]`.
            image: the truth `[H, W, 3]` in [0, 1].
        """
        rendered = outputs["rgb"]
        truth = image[..., :3].to(rendered)
        metrics = {"psnr": float(psnr(rendered, truth)), "ssim": float(ssim(rendered, truth))}
        if self._wants_lpips:
            self._add_lpips(metrics, rendered, truth)
        near, far = float(outputs["depth"].min()), float(outputs["depth"].max())
        images = {
            "img": torch.cat([truth, rendered], dim=1),
            "accumulation": outputs["accumulation"].expand(-1, -1, 3),
            "depth": ((outputs["depth"] - near) / max(far - near, 1e-6)).expand(-1, -1, 3),
        }
        return metrics, images

    def _add_lpips(self, metrics: dict[str, float], rendered: Tensor, truth: Tensor) -> None:
        try:
            metrics["lpips"] = self._lpips(rendered, truth)
        except MNIFError as error:
            self._wants_lpips = False
            CONSOLE.print(f"[yellow]LPIPS is left out: {error}")
