"""Pictures of several objects together: those of each alone, whatever the others are, and rays in bounded numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import tiny_model, tiny_voxel_model
from torch import Tensor
from waiting import Waits

from mnif_nerf.evaluation.generated import PictureSet
from mnif_nerf.fields import kernel
from mnif_nerf.objects import stored_views
from mnif_nerf.objects.stored_views import orbit_images, render_objects, render_views
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.rendering import several
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, view_rays
from mnif_nerf.rendering.depth_samples import DepthSamples
from mnif_nerf.rendering.views import render_rays

SIZE = (12, 14)
VIEWS = (2, 1, 3, 2, 1)


@pytest.fixture
def cars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Five objects, one of which is nowhere, on a processor that is taken for a GPU."""
    monkeypatch.setattr(stored_views, "_views_together", lambda device, size: 6)
    pipe = MNIFPipeline(tiny_model())
    found: list[Any] = [pipe.instance(k) for k in range(5)]
    found[2].grid = several.OccupancyGrid(torch.zeros(48, 48, 48, dtype=torch.bool), torch.zeros(48, 48, 48))
    return found


def cameras(number: int, views: int) -> tuple[Tensor, Tensor]:
    poses = torch.stack([orbit_pose(15.0 + number, 50.0 * view + number) for view in range(views)])
    lens = Intrinsics.default(SIZE[1])
    return poses, torch.tensor([[lens.focal + view, lens.cx, lens.cy] for view in range(views)])


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_pictures_of_several_objects_are_those_of_each(cars: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = several.render_fields
    groups: list[int] = []
    monkeypatch.setattr(
        stored_views, "render_fields", lambda fields, *rest: groups.append(len(fields)) or rendered(fields, *rest)
    )
    seen = [(car, cameras(k, views)) for k, (car, views) in enumerate(zip(cars, VIEWS))]
    found = list(render_objects(iter(seen), SIZE))
    assert groups == [3, 2], "six views at a time"
    assert [each.shape for each in found] == [(views, *SIZE, 3) for views in VIEWS]
    for own, (car, camera) in zip(found, seen):
        assert_same(own, torch.cat(list(render_views(car, *camera, SIZE))))
    assert all(found[k].std() > 0.01 for k in (0, 1, 3, 4))
    assert torch.equal(found[2], torch.ones_like(found[2]))


@pytest.mark.parametrize("head", ["radiance", "radiance-authors"])
def test_small_chunks_and_unequal_shares(cars: list[Any], head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network without a point, one with a few, and one with many, in blocks and chunks that fit none of them."""
    monkeypatch.setattr(several, "_BLOCK", 7)
    monkeypatch.setattr(several, "points_together", lambda device: 35)
    monkeypatch.setattr(several, "rays_together", lambda *_: 50)
    origins, directions = view_rays(*cameras(0, 1), SIZE)
    counts = (1, 100, 60, 0, 7)
    owners = torch.arange(5).repeat_interleave(torch.tensor(counts))
    for car in cars:
        car.field.head = head
    fields, grids = [car.field for car in cars], [car.grid for car in cars]
    rays = [(origins[40 : 40 + n], directions[40 : 40 + n]) for n in counts]
    together = several.render_fields(fields, grids, *map(torch.cat, zip(*rays)), owners)
    for own, car, (starts, ways) in zip(together.split(counts), cars, rays):
        assert_same(own, render_rays(car.field, starts, ways, car.grid)["rgb"])


def test_waits_do_not_grow_with_objects_and_views(cars: list[Any]) -> None:
    """Once for the rays that meet anything, and in a chunk for the most samples, those wanted, and their blocks."""
    for count in (2, 5):
        seen = [(car, cameras(k, views)) for k, (car, views) in enumerate(zip(cars[:count], VIEWS))]
        for car, _ in seen:
            assert car.grid.corners is not None
        poses, lenses = (torch.cat(part) for part in zip(*(camera for _, camera in seen)))
        rays = view_rays(poses, lenses, SIZE)
        owners = torch.arange(count).repeat_interleave(torch.tensor(VIEWS[:count]) * SIZE[0] * SIZE[1])
        fields, grids = [car.field for car, _ in seen], [car.grid for car, _ in seen]
        with kernel.reference_only(), Waits() as waits:
            several.render_fields(fields, grids, *rays, owners)
        assert len(waits.names) == 4, waits.names


def test_orbits_of_several_objects_are_those_of_each(cars: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def rendered() -> list[np.ndarray]:
        found = orbit_images(iter(cars), 20.0, (45.0, 135.0), 16)
        return [np.stack([np.asarray(picture) for picture in pictures]).astype(int) for pictures in found]

    together = rendered()
    monkeypatch.setattr(stored_views, "_views_together", lambda device, size: 0)
    for own, alone in zip(together, rendered(), strict=True):
        assert abs(own - alone).max() <= 1
    assert list(orbit_images([], 20.0, (45.0,), 16)) == []


def test_what_is_not_rendered_together(cars: list[Any]) -> None:
    assert stored_views.takes_several(cars[0])
    cars[0].depth_samples = DepthSamples()
    assert not stored_views.takes_several(cars[0])
    assert not stored_views.takes_several(MNIFPipeline(tiny_voxel_model()).instance(1))
    other = MNIFPipeline(tiny_model()).instance(1)
    other.field.head = "radiance-authors"
    assert not several.alike([cars[1].field, other.field], [cars[1].grid, other.grid])
    seen = [(item, cameras(k, 1)) for k, item in enumerate((cars[1], other))]
    for own, (item, camera) in zip(render_objects(seen, SIZE), seen, strict=True):
        assert torch.equal(own, next(render_views(item, *camera, SIZE)))


def test_a_set_of_pictures_makes_several_at_a_time() -> None:
    pictures = PictureSet(3, 1, (1, 1), lambda k: torch.full((1, 1, 1, 3), k), {})
    assert [int(each.max()) for each in pictures.each([2, 0])] == [2, 0]
    pictures = PictureSet(3, 1, (1, 1), pictures.of, {}, lambda objects: iter([pictures.of(9)] * len(objects)))
    assert [int(each.max()) for each in pictures.each([2, 0])] == [9, 9]
