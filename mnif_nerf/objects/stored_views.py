"""An object through a camera that a data set or an observation stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.export.density import field_device
from mnif_nerf.machine import chunk_memory
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.views import render_view as render_field
from mnif_nerf.rendering.views import render_views as render_fields

_BYTES_PER_RAY = 256  # of rays, intervals and outputs


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


def render_views(item: Any, poses: Tensor, lenses: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """What many cameras see of an object with a radiance field, on white.

    Args:
        item: a `NeuralRadiance`.
        poses: camera-to-world `[V, 4, 4]`, OpenCV axes, world units.
        lenses: focal lengths and principal points (cx, cy) `[V, 3]` in pixels.
        size: height and width in pixels.

    Yields:
        `[v, H, W, 3]` float32 in [0, 1], on the field's device: as many views as its memory allows on a GPU, else one.
    """
    device = field_device(item.field)
    together = 1
    if device.type == "cuda":
        together = max(1, chunk_memory(device) // (size[0] * size[1] * _BYTES_PER_RAY))
    places = (part.to(device, torch.float32) for part in (poses, lenses))
    for some in zip(*(part.split(together) for part in places)):
        yield render_fields(item.field, *some, size, item.grid)["rgb"]
