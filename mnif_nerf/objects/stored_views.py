"""An object through a camera that a data set or an observation stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.export.density import field_device
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.views import render_view as render_field


def render_view(
    item: Any, pose: np.ndarray | Tensor, intrinsics: Sequence[float] | np.ndarray | Intrinsics, size: tuple[int, int]
) -> Tensor:
    """What a camera sees of an object with a radiance field, on white.

    Args:
        item: a `NeuralRadiance`.
        pose: camera-to-world `[4, 4]`, OpenCV axes, world units.
        intrinsics: focal length and principal point (cx, cy) in pixels, or a whole camera.
        size: height and width in pixels.

    Returns:
        `[H, W, 3]` float32 in [0, 1], on the CPU.
    """
    if not isinstance(intrinsics, Intrinsics):
        focal, cx, cy = (float(value) for value in intrinsics)
        intrinsics = Intrinsics(focal, cx, cy, *size)
    where = pose if isinstance(pose, Tensor) else torch.from_numpy(np.array(pose))
    where = where.to(field_device(item.field))
    return render_field(item.field, where, intrinsics, item.grid)["rgb"].cpu()
