"""Distances kept on a grid: what the compiled march does, and that nothing thin slips through between corners."""

from __future__ import annotations

import pytest
import torch
from test_distance import wild_field
from tiny_model import Rounded
from waiting import Waits

from mnif_nerf.fields.distance import DistanceField
from mnif_nerf.rendering import grid_march, sphere_tracing
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.grid_march import Rays, march
from mnif_nerf.rendering.intervals import box_interval
from mnif_nerf.rendering.sphere_tracing import render_distance
from mnif_nerf.rendering.surface import refine_crossing
from mnif_nerf.rendering.tracing_grid import TracingGrid, distance_grid

_BOX = DistanceField(Rounded((0.3, 0.2, 0.1), 0.02))


class Turned(Rounded):
    """A shape turned by 40 degrees around z and then by 35 around x, and moved."""

    def __init__(self, *arguments: object, **options: float) -> None:
        super().__init__(*arguments, **options)
        a, b = torch.deg2rad(torch.tensor([40.0, 35.0]))
        around_z = torch.tensor([[a.cos(), -a.sin(), 0], [a.sin(), a.cos(), 0], [0, 0, 1]])
        around_x = torch.tensor([[1, 0, 0], [0, b.cos(), -b.sin()], [0, b.sin(), b.cos()]])
        self.turn = around_x @ around_z

    def evaluate(self, points: torch.Tensor) -> torch.Tensor:
        return super().evaluate(self.turn @ (points + 0.013))


def _rays(elevation: float, azimuth: float, pixels: int) -> Rays:
    origins, directions = pixel_rays(orbit_pose(elevation, azimuth, 0.9), Intrinsics.default(pixels))
    near, far = box_interval(origins, directions, 0.5)
    return Rays(origins.contiguous(), directions, near, far, near.clone(), near.clone())


@pytest.mark.parametrize("field", [_BOX, wild_field(3), DistanceField(Rounded((0.6, 0.1, 0.1), 0.0))])
def test_the_compiled_march_does_what_torch_does(field: DistanceField) -> None:
    if grid_march._library() is None:
        pytest.skip("the kernel was not built")
    grid = distance_grid(field, 24)
    compiled, plain = _rays(20, 30, 40), _rays(20, 30, 40)
    states = march(grid, compiled, 1 / 640), grid_march._march(grid, plain, 1 / 640)
    same = states[0] == states[1]
    assert len(states[0].unique()) > 1
    assert same.float().mean() > 0.999  # a ray along the side of a cell may be counted to either
    assert (compiled.now - plain.now)[same].abs().quantile(0.999) < 1e-4


def test_steps_between_questions_change_nothing() -> None:
    """A GPU's host asks now and then which rays go on; those that do not, stand still."""
    grid = distance_grid(wild_field(3), 24)
    often, seldom = _rays(20, 30, 24), _rays(20, 30, 24)
    with Waits() as some:
        states = grid_march._march(grid, often, 1 / 640)
    with Waits() as fewer:
        assert torch.equal(grid_march._march(grid, seldom, 1 / 640, 8), states)
    for mine, theirs in ((often.now, seldom.now), (often.last, seldom.last)):
        assert torch.equal(mine, theirs)
    assert len(fewer.names) < len(some.names) / 5


def test_without_the_kernel_pictures_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rays = _rays(20, 30, 48)
    pictures = []
    for kernel in ("", "torch"):
        monkeypatch.setenv("MNIF_KERNEL", kernel)
        pictures.append(render_distance(_BOX, rays.origins, rays.directions)["rgb"])
    assert (pictures[0] - pictures[1]).square().mean() < 1e-6


@pytest.mark.parametrize("half", [(0.3, 0.3, 0.0), (0.3, 0.0, 0.0)])
def test_sheets_and_rods_thinner_than_the_grid_have_no_holes(half: tuple[float, float, float]) -> None:
    """As thick as half a part of a cell, at any angle to the grid."""
    field = DistanceField(Turned(half, 0.0013, stretch=1.2))
    grid = distance_grid(field)
    assert grid.rough.any()
    inner = (2 * torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)) - 1) * torch.tensor(half)
    points = (2 * inner @ field.compact.turn - 0.013) / 2  # of the thing's middle, so that rays to them must meet it
    assert field.distance(points).max() < -0.001
    for elevation, azimuth in ((5.0, 40.0), (60.0, 10.0), (-20.0, 100.0)):
        origins = orbit_pose(elevation, azimuth)[:3, 3].expand_as(points)
        directions = torch.nn.functional.normalize(points - origins, dim=-1)
        assert (render_distance(field, origins, directions, grid)["accumulation"] == 1).all()


def test_the_field_is_asked_about_once_for_each_ray() -> None:
    asked = []

    class Counted(Rounded):
        def evaluate(self, points: torch.Tensor) -> torch.Tensor:
            asked.append(points.shape[1])
            return super().evaluate(points)

    field = DistanceField(Counted((0.3, 0.2, 0.1), 0.05))
    grid, rays = distance_grid(field), _rays(20, 30, 64)
    asked.clear()
    seen = render_distance(field, rays.origins, rays.directions, grid)["accumulation"].sum()
    assert sum(asked) < 1.3 * seen
    depth = render_distance(field, rays.origins, rays.directions, grid)["depth"]
    on = depth[:, 0] < rays.end - 1e-4
    points = rays.origins[on] + depth[on] * rays.directions[on]
    assert field.distance(points).abs().quantile(0.99) < 1e-5


def test_a_sponge_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnif_nerf.rendering.tracing_grid._MOST_BRICKS", 100)
    field = wild_field(1)
    grid, rays = distance_grid(field, 24), _rays(10, 20, 32)
    assert isinstance(grid, TracingGrid)
    assert len(grid.steps) == 1
    out = render_distance(field, rays.origins, rays.directions, grid)
    on = ((out["accumulation"][:, 0] == 1) & (out["depth"][:, 0] > rays.start + 0.01)).nonzero().flatten()
    assert len(on) > 20
    depth = out["depth"][on, 0]
    least = torch.full_like(depth, 2e-3)
    again, _ = refine_crossing(field, rays.origins[on], rays.directions[on], depth - least, depth + least)
    assert (again - depth).abs().median() < 1e-4


def test_a_hit_beyond_the_middle_of_a_shell_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """From there the other side is nearer, and the slope looks away from the camera."""
    field = DistanceField(Turned((0.3, 0.3, 0.0), 0.004))
    grid, rays = distance_grid(field), _rays(70, 10, 48)
    true = sphere_tracing.trace(field, *rays[:4], grid)
    facing = true[1] < true[1].median()  # the sheet's face, not its rim
    index, depth, is_cut = (part[facing] for part in true)
    monkeypatch.setattr(sphere_tracing, "trace", lambda *_: (index, depth + 0.005, is_cut))
    hits = sphere_tracing.find_on_surface(field, *rays[:4], grid)
    assert (hits.depth - depth).abs().max() < 1e-3
    assert (hits.normal * rays.directions[index]).sum(dim=-1).max() < 0
