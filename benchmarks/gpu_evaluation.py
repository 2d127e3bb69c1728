"""Parts of `gpu.py`: what an evaluation at the paper's sizes takes on this device, and the pictures of a viewer.

A matrix of 8,762 x 8,762 shapes is never computed here: some of its rows are, and the whole is said by them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import common
import gpu_steps
import numpy as np
import torch
from gpu_report import Rows, Settings, added_memory, pace, ratio

from mnif_nerf.machine import chunk_memory
from mnif_nerf.metrics import device_clouds
from mnif_nerf.metrics.clouds import distance_matrix, one_minus_iou
from mnif_nerf.metrics.device_clouds import chamfer_matrix, one_minus_iou_of_bits, plain_nearest
from mnif_nerf.metrics.features import random_conv
from mnif_nerf.modalities.training import FieldCache
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.views import render_views

_SHAPES, _POINTS, _CELLS = 8762, 2048, 64  # of the authors' evaluation of ShapeNet
_VIEWS, _VIEW_PIXELS = 251, 128  # of SRN Cars
_SECONDS = 3.0  # of work for a number
_VIEWED = ("mnif", "mnif-voxel", "mnif-sdf")
_LEARNED = 5.0  # seconds


def matrices(settings: Settings, rows: Rows) -> None:
    """Chamfer distances and shared cells of all pairs of shapes, from some rows, beside the processor's ways."""
    shapes, points = settings.of(_SHAPES, 12), settings.of(_POINTS, 64)
    generator = torch.Generator().manual_seed(settings.seed)
    clouds = torch.rand(shapes, 3, points, generator=generator) - 0.5
    on_device = clouds.to(settings.device)
    few = [cloud.T.numpy().copy() for cloud in clouds[: settings.of(5, 3)]]
    host = min(common.timed(lambda: distance_matrix(few[:1], few, workers=1), "cpu") for _ in range(3)) / len(few)
    chosen = [index % shapes for index in range(settings.of(4, 2))]

    def whole() -> Any:
        return chamfer_matrix(on_device, on_device.clone(), chosen=chosen)

    took = pace(lambda count: [whole() for _ in range(count)], settings.device, settings.of(_SECONDS, 0.01), warm=1)
    seconds, theirs = took * shapes / len(chosen), host * shapes**2
    kernel = "kernel" if device_clouds._has_kernel(on_device.device) else "torch"
    memory = added_memory(whole, settings.device)
    what = f"Chamfer distances, {shapes:,} x {shapes:,} clouds of {points:,}"
    note = f"by {kernel}, from {len(chosen)} rows, {memory or 0:.0f} MiB beside the clouds; against one core"
    rows.add(what, seconds, "s", theirs, ratio(theirs, seconds), note)
    plain = _seconds_by_torch(settings, on_device) * 2 * shapes**2
    rows.add(f"{what}, by torch", plain, "s", theirs, ratio(theirs, plain), "some pairs of it")
    _cells(settings, rows, generator)


def _seconds_by_torch(settings: Settings, clouds: torch.Tensor) -> float:
    """Seconds of one direction of a pair without the kernel."""
    others, memory = clouds[: settings.of(64, 3)], chunk_memory(clouds.device)

    def some(count: int) -> None:
        for _ in range(count):
            plain_nearest(clouds[:1], others, memory)

    return pace(some, settings.device, settings.of(1.0, 0.01), warm=1) / len(others)


def _cells(settings: Settings, rows: Rows, generator: torch.Generator) -> None:
    shapes, cells = settings.of(_SHAPES, 12), settings.of(_CELLS, 8) ** 3
    bits = torch.randint(0, 256, (shapes, cells // 8), dtype=torch.uint8, generator=generator).numpy()
    some = bits[: settings.of(1024, 3)]
    device = torch.device(settings.device)
    took = common.timed(lambda: one_minus_iou_of_bits(some, bits, device), settings.device)
    took = min(took, common.timed(lambda: one_minus_iou_of_bits(some, bits, device), settings.device))
    few = np.unpackbits(bits[: settings.of(64, 3)], axis=1, bitorder="little").astype(bool)
    theirs = common.timed(lambda: one_minus_iou(few, few), "cpu") * (shapes / len(few)) ** 2
    seconds = took * shapes / len(some)
    note = f"from {len(some)} rows, moving them included; against numpy"
    rows.add(f"shared cells, {shapes:,} x {shapes:,} grids of {cells:,}", seconds, "s", theirs,
             ratio(theirs, seconds), note)  # fmt: skip


def pictures(settings: Settings, rows: Rows) -> None:
    """Views per second through renderer and feature network, and frames per second as a viewer asks for them."""
    for name in _VIEWED:
        fields = _learned(settings, name)
        field, grid = fields(fields.model.latents.weight[0].detach())
        if name == "mnif":
            _views(settings, rows, field, grid)
        size = settings.of(512, 24)
        camera = Intrinsics.default(size)

        def frames(
            count: int, field: Any = field, grid: Any = grid, fields: FieldCache = fields, camera: Any = camera
        ) -> None:
            for k in range(count):  # the pose comes from the host, and the picture goes there, as in the viewer
                rays = pixel_rays(orbit_pose(20.0, 60.0 * k).to(settings.device), camera)
                fields.training.render(field, grid, *rays, fields.settings)["rgb"].cpu()

        took = pace(frames, settings.device, settings.of(2.0, 0.01), warm=settings.of(6, 1))
        rows.add(f"{name}, {size} x {size} as the viewer asks", 1 / took, "frames/s", 30.0, 1 / took / 30.0, "aim")


def _learned(settings: Settings, name: str) -> FieldCache:
    """The fields of a run that learned for some seconds, so that there are surfaces."""
    run = gpu_steps.new_run(settings, name, gpu_steps.data_of(settings, name), steps=settings.of(4000, 4))
    ours = gpu_steps.Ours(run)
    turn = settings.of(100, 2)
    spent = 0.0
    while ours.taken < run.settings.max_num_iterations and spent < settings.of(_LEARNED, 0.5):
        spent += common.timed(lambda: ours.steps(turn), settings.device)
    run.model.eval()
    return run.fields


def _views(settings: Settings, rows: Rows, field: Any, grid: Any) -> None:
    """Of one object, as the paper's protocol sees 704 of them for every line of a table."""
    count, size = settings.of(_VIEWS, 3), settings.of(_VIEW_PIXELS, 16)
    camera = Intrinsics.default(size)
    poses = torch.stack([orbit_pose(20.0, 360.0 * k / count) for k in range(count)]).to(settings.device)
    lenses = torch.tensor([[camera.focal, camera.cx, camera.cy]] * count, device=settings.device)
    network = random_conv(settings.device)

    def rendered() -> torch.Tensor:
        return render_views(field, poses, lenses, (size, size), grid)["rgb"]

    def seen() -> torch.Tensor:
        images = (255 * rendered()).round().to(torch.uint8).permute(0, 3, 1, 2)
        return torch.cat([network.batch(part) for part in images.split(network.batch_size)])

    works: dict[str, Callable[[], torch.Tensor]] = {"rendered": rendered, "rendered and seen by the network": seen}
    for what, work in works.items():

        def some(turns: int, work: Callable[[], torch.Tensor] = work) -> None:
            for _ in range(turns):
                work()

        took = pace(some, settings.device, settings.of(2.0, 0.01), warm=1) / count
        hours = took * 704 * _VIEWS / 3600
        rows.add(f"views of {size} x {size} {what}", 1 / took, "views/s", note=f"704 x {_VIEWS} of them: {hours:.2f} h")
