"""How often a picture makes a GPU's host wait: a few times, however many rays, views and samples there are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_model import tiny_model, tiny_voxel_model
from torch import Tensor
from waiting import Waits

from mnif_nerf.fields import kernel
from mnif_nerf.metrics.features import random_conv
from mnif_nerf.objects.stored_views import render_view, render_views
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.rendering import views
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays, view_rays
from mnif_nerf.rendering.surface import first_inside
from mnif_nerf.rendering.views import render_rays
from mnif_nerf.rendering.views import render_views as render_fields


def cameras(count: int, size: int) -> tuple[Tensor, Tensor]:
    poses = torch.stack([orbit_pose(20.0, 37.0 * k) for k in range(count)])
    camera = Intrinsics.default(size)
    lenses = torch.tensor([[camera.focal + k, camera.cx, camera.cy] for k in range(count)])
    return poses, lenses


@pytest.fixture(scope="module")
def car() -> Any:
    return MNIFPipeline(tiny_model()).instance(1)


def waits_of(work: Any) -> list[str]:
    with kernel.reference_only(), Waits() as waits:
        work()
    return waits.names


def test_what_waits_is_counted() -> None:
    ones = torch.ones(3)
    for work in (
        lambda: float(ones.sum()),
        lambda: ones[ones > 0],
        lambda: ones.nonzero(),
        lambda: torch.tensor([1.0]),
    ):
        assert len(waits_of(work)) == 1
    assert waits_of(lambda: ones[torch.arange(2)] + 1.5) == []


@pytest.mark.parametrize(("count", "size"), [(1, 8), (1, 24), (5, 16)])
def test_views_of_a_radiance_field_wait_three_times(car: Any, count: int, size: int) -> None:
    """For the rays that meet anything, for the most samples of any, and for the samples that are wanted."""
    poses, lenses = cameras(count, size)
    assert car.grid.tight_box() is not None
    found = waits_of(lambda: render_fields(car.field, poses, lenses, (size, size), car.grid))
    assert len(found) == 3, found


def test_a_grid_waits_twice(car: Any) -> None:
    bounds = torch.ones(8, 8, 8, dtype=torch.bool)

    def work() -> None:
        views.OccupancyGrid.from_field(car.field, 24, bounds=bounds).tight_box()

    found = waits_of(work)
    assert len(found) <= 5, found


def test_rays_of_many_cameras_are_those_of_each() -> None:
    poses, lenses = cameras(3, 10)
    origins, directions = view_rays(poses, lenses, (10, 12))
    for k, pose in enumerate(poses):
        alone = pixel_rays(pose, Intrinsics(*lenses[k].tolist(), 10, 12))
        own = slice(120 * k, 120 * (k + 1))
        assert torch.equal(origins[own], alone[0])
        torch.testing.assert_close(directions[own], alone[1], atol=1e-6, rtol=0)


def test_many_views_are_each_of_them(car: Any) -> None:
    poses, lenses = cameras(4, 16)
    together = render_fields(car.field, poses, lenses, (16, 16), car.grid)["rgb"]
    one_by_one = list(render_views(car, poses, lenses, (16, 16)))
    assert len(one_by_one) == 4
    assert together.std() > 0.01
    for k, part in enumerate(one_by_one):
        assert torch.equal(part[0], render_view(car, poses[k], lenses[k].numpy(), (16, 16)))
        torch.testing.assert_close(together[k], part[0], atol=1e-5, rtol=0)


def test_chunks_of_rays_follow_the_memory(car: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    origins, directions = pixel_rays(orbit_pose(20.0, 30.0), Intrinsics.default(16))
    whole = render_rays(car.field, origins, directions, car.grid)
    parts = render_rays(car.field, origins, directions, car.grid, chunk=37)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=0)
    cuda: Any = SimpleNamespace(type="cuda")
    for free, expected in ((0, 16384), (2 << 30, (2 << 30) // (112 * 96))):
        monkeypatch.setattr(views, "chunk_memory", lambda device, free=free: free)
        assert views.rays_together(cuda, 0.5, 1 / 64) == expected
    assert views.rays_together(torch.device("cpu"), 0.5, 1 / 64) == 16384


def test_features_of_pictures_do_not_wait() -> None:
    network, pictures = random_conv(), torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    assert waits_of(lambda: network.batch(pictures)) == []


def test_a_solid_waits_thrice_a_step() -> None:
    """Its rays are marched by the network: some steps, not one wait for every use of a mask."""
    shape = MNIFPipeline(tiny_voxel_model()).instance(1)
    grid, solid = shape.grid, shape.solid
    steps: list[int] = []
    lookup = type(grid).lookup

    def counted(self: Any, points: Tensor) -> Tensor:
        steps.append(len(points))
        return lookup(self, points)

    origins, directions = pixel_rays(orbit_pose(20.0, 30.0), Intrinsics.default(12))
    near, far = (value.clamp(min=0.0) for value in views.box_interval(origins, directions, 0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(grid), "lookup", counted)
        found = waits_of(lambda: first_inside(solid, origins, directions, near, far, grid))
    assert len(steps) > 3
    assert len(found) <= 3 * len(steps), found
