"""Objects through cameras that a data set or an observation stores, and many objects through cameras around them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.export.density import field_device
from mnif_nerf.machine import chunk_memory
from mnif_nerf.rendering.cameras import Intrinsics, view_rays
from mnif_nerf.rendering.several import alike, render_fields
from mnif_nerf.rendering.views import render_view as render_field
from mnif_nerf.rendering.views import render_views as render_views_of_field

if TYPE_CHECKING:
    from PIL import Image

_BYTES_PER_RAY = 256  # of rays, intervals and outputs
Camera = tuple[Tensor, Tensor]
"""Poses, camera-to-world `[V, 4, 4]`, and focal lengths and principal points (cx, cy) `[V, 3]` in pixels."""


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
    together = max(1, _views_together(device, size))
    places = (part.to(device, torch.float32) for part in (poses, lenses))
    for some in zip(*(part.split(together) for part in places)):
        yield render_views_of_field(item.field, *some, size, item.grid)["rgb"]


def takes_several(item: Any) -> bool:
    """Whether pictures of this object are made together with those of others: of radiance fields on a GPU, which one
    object's few small pictures leave idle. A processor is no faster so."""
    return item.takes_company and _views_together(field_device(item.field), (1, 1)) > 0


def render_objects(seen: Iterable[tuple[Any, Camera]], size: tuple[int, int]) -> Iterator[Tensor]:
    """What cameras see of many objects with radiance fields, on white: of several objects together, as far as the
    memory of a GPU has room for their rays.

    Args:
        seen: `NeuralRadiance`s and the cameras of each; objects are asked for, and let go, as rooms fill.
        size: height and width in pixels.

    Yields:
        `[V, H, W, 3]` float32 in [0, 1] of each object, on the field's device.
    """
    group: list[tuple[Any, Camera]] = []
    for item, camera in seen:
        views = sum(len(poses) for _, (poses, _) in group) + len(camera[0])
        if group and views > _views_together(field_device(item.field), size):
            yield from _render_group(group, size)
            group = []
        group.append((item, camera))
    yield from _render_group(group, size)


def orbit_images(
    items: Iterable[Any], elevation: float, azimuths: Sequence[float], resolution: int
) -> Iterator[list[Image.Image]]:
    """What `SolidObject.render` shows of each object from some sides.

    Args:
        items: `SolidObject`s of one kind.
        elevation, azimuths: in degrees.
        resolution: pixels along an edge.

    Raises:
        MNIFError: as `SolidObject.render`.
    """
    from mnif_nerf.export.pictures import to_image

    items = iter(items)
    first = next(items, None)
    every = items if first is None else itertools.chain([first], items)
    if first is None or not takes_several(first):
        for item in every:
            yield [item.render(elevation, azimuth, resolution) for azimuth in azimuths]
        return

    def around(item: Any) -> tuple[Any, Camera]:
        poses, cameras = zip(*(item.camera_around(elevation, azimuth, resolution) for azimuth in azimuths))
        lenses = [[each.focal, each.cx, each.cy] for each in cameras]
        return item, (torch.stack(poses), torch.tensor(lenses))

    for pictures in render_objects(map(around, every), (resolution, resolution)):
        yield [to_image(picture) for picture in pictures.cpu()]


def _render_group(group: Sequence[tuple[Any, Camera]], size: tuple[int, int]) -> Iterator[Tensor]:
    """`render_objects` of objects and their cameras, all rays together, unless there is one object or they differ."""
    fields, grids = [item.field for item, _ in group], [item.grid for item, _ in group]
    if len(group) == 1 or not alike(fields, grids):
        for item, camera in group:
            yield torch.cat(list(render_views(item, *camera, size)))
        return
    device, counts = field_device(fields[0]), [len(poses) for _, (poses, _) in group]
    poses, lenses = (torch.cat(part).to(device, torch.float32) for part in zip(*(camera for _, camera in group)))
    pixels = torch.tensor([count * size[0] * size[1] for count in counts], device=device)
    owners = torch.arange(len(group), device=device).repeat_interleave(
        pixels, output_size=len(poses) * size[0] * size[1]
    )
    rgb = render_fields(fields, grids, *view_rays(poses, lenses, size), owners)
    yield from rgb.view(len(poses), *size, 3).split(counts)


def _views_together(device: torch.device, size: tuple[int, int]) -> int:
    """Views whose rays a GPU's memory has room for; none on a processor."""
    return chunk_memory(device) // (size[0] * size[1] * _BYTES_PER_RAY) if device.type == "cuda" else 0
