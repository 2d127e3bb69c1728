"""Rendering solids: rays against the analytic crossing of a ball, grids that skip, and the shading."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import SolidBall, tiny_voxel_model

from mnif_nerf.fields.solid import SolidField
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.intervals import box_interval
from mnif_nerf.rendering.occupancy import dilate
from mnif_nerf.rendering.surface import SurfaceGrid, render_surface, render_surface_view, shade


def _meeting(origins: torch.Tensor, directions: torch.Tensor, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest distance `[R, 1]` at which rays meet a ball at the origin, and whether they pass it well inside."""
    along = -(origins * directions).sum(-1, keepdim=True)
    aside = (origins.square().sum(-1, keepdim=True) - along.square()).clamp(min=0).sqrt()
    return along - (radius**2 - aside.square()).clamp(min=0).sqrt(), aside


@pytest.mark.parametrize("head", ["signed", "logit"])
@pytest.mark.parametrize("sharpness", [10.0, 80.0])
def test_a_ball_is_met_where_it_is(head: str, sharpness: float) -> None:
    radius = 0.31
    shape = SolidField(SolidBall(radius, sharpness=sharpness, head=head))
    origins, directions = pixel_rays(orbit_pose(25, 40), Intrinsics.default(72))
    out = render_surface(shape, origins, directions)
    depth, aside = _meeting(origins, directions, radius)
    inside, outside = (aside < 0.995 * radius)[:, 0], (aside > 1.0001 * radius)[:, 0]
    assert inside.sum() > 500
    assert (out["accumulation"][inside] == 1).all()
    assert (out["accumulation"][outside] == 0).all()
    assert (out["depth"][inside] - depth[inside]).abs().max() < 2e-4
    points = origins + depth * directions
    assert (out["normal"][inside] - F.normalize(points[inside], dim=-1)).abs().max() < 2e-3
    assert (out["rgb"][outside] == 1).all()
    assert (out["normal"][outside] == 0).all()
    near, far = box_interval(origins, directions, 0.5)
    assert torch.equal(out["depth"][outside, 0], torch.maximum(near, far)[outside])
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "rgb": (72 * 72, 3),
        "depth": (72 * 72, 1),
        "accumulation": (72 * 72, 1),
        "normal": (72 * 72, 3),
    }


def _longest_inside(inside: torch.Tensor) -> torch.Tensor:
    """Length in samples `[R]` of the longest run of True in each row of `[R, S]`."""
    run = longest = torch.zeros(len(inside), dtype=torch.long)
    for column in inside.T:
        run = (run + 1) * column
        longest = torch.maximum(longest, run)
    return longest


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(16, 0.2), (40, 0.5), (64, 1.0)]))
def test_leaps_pass_over_no_more_than_one_step_of_a_solid(seed: int, size: tuple[int, float]) -> None:
    """Random solids, grids of every size, against the field asked at 2,000 places along every ray.

    A march that asks every half cell may miss what is thinner than that along the ray, and nothing else; where it
    stops, the field turns positive within a small part of that step.
    """
    resolution, half_extent = size
    model = tiny_voxel_model(num_instances=1, seed=seed)
    shape = SolidField(model.field.collapse(model.latents[0]), half_extent)
    generator = torch.Generator().manual_seed(seed)
    origins = 3 * half_extent * F.normalize(torch.randn(200, 3, generator=generator), dim=-1)
    targets = half_extent * (2 * torch.rand(200, 3, generator=generator) - 1)
    directions = F.normalize(targets - origins, dim=-1)
    near, far = box_interval(origins, directions, half_extent)
    assert (far > near).all()
    out = render_surface(shape, origins, directions, SurfaceGrid.from_shape(shape, resolution))
    hit, depth = out["accumulation"][:, 0] > 0, out["depth"][:, 0]

    def inside(distance: torch.Tensor) -> torch.Tensor:
        points = origins.unsqueeze(1) + distance.unsqueeze(-1) * directions.unsqueeze(1)
        return shape.value(points.flatten(0, 1)).view(distance.shape) > 0

    samples = 2000
    spacing = (far - near) / (samples - 1)
    distance = near.unsqueeze(-1) + spacing.unsqueeze(-1) * torch.arange(samples)
    slack = 1e-3 * half_extent
    passed = inside(distance) & (distance < (torch.where(hit, depth, far) - slack).unsqueeze(-1))
    step = half_extent / resolution
    assert (_longest_inside(passed) * spacing).max() < 1.05 * step
    around = inside(depth.unsqueeze(-1) + 0.25 * step * torch.linspace(-1, 1, 41))[hit]
    assert around.any(dim=-1).all()
    enters_at_the_box = (depth - near)[hit] < 0.25 * step
    assert (~around.all(dim=-1) | enters_at_the_box).all()


def test_the_box_cuts_what_reaches_out_of_it() -> None:
    """A ball larger than the box: rays stop at the box's side, whose normal they get."""
    shape = SolidField(SolidBall(0.8))
    origins = torch.tensor([[2.0, 0.1, 0.0], [0.0, -2.0, 0.2], [2.0, 0.6, 0.0]])
    directions = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    out = render_surface(shape, origins, directions)
    assert out["accumulation"].flatten().tolist() == [1, 1, 0]
    assert out["depth"][:2].flatten().tolist() == pytest.approx([1.5, 1.5], abs=1e-5)
    assert torch.equal(out["normal"][:2], torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))


def test_a_camera_within_the_box_and_one_within_the_solid() -> None:
    shape = SolidField(SolidBall(0.2))
    origins = torch.tensor([[0.4, 0.0, 0.0], [0.0, 0.0, 0.0], [0.4, 0.0, 0.0]])
    directions = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    out = render_surface(shape, origins, directions)
    assert out["depth"][:2].flatten().tolist() == pytest.approx([0.2, 0.0], abs=1e-4)
    assert out["accumulation"].flatten().tolist() == [1, 1, 0]
    assert torch.isfinite(out["normal"]).all()


def test_nothing_there_is_white() -> None:
    out = render_surface_view(SolidField(SolidBall(-1.0)), orbit_pose(0, 0), Intrinsics.default(12))
    assert (out["rgb"] == 1).all()
    assert (out["accumulation"] == 0).all()
    assert out["depth"].shape == (12, 12, 1)


def test_chunks_and_batches_do_not_change_the_picture() -> None:
    shape = SolidField(SolidBall(0.3))
    origins, directions = pixel_rays(orbit_pose(10, 200), Intrinsics.default(30))
    whole = render_surface(shape, origins, directions)
    parts = render_surface(shape, origins, directions, SurfaceGrid.from_shape(shape), chunk=77)
    for name, value in whole.items():
        assert torch.allclose(parts[name], value, atol=1e-6)
    assert render_surface(shape, origins[:0], directions[:0])["rgb"].shape == (0, 3)


def test_nothing_is_seen_outside_the_bounds() -> None:
    bounds = torch.ones(8, 8, 8, dtype=torch.bool)
    bounds[:, :, 4:] = False
    shape = SolidField(SolidBall(0.3))
    view = (orbit_pose(0, 0), Intrinsics.default(40))
    cut = render_surface_view(shape, *view, SurfaceGrid.from_shape(shape, bounds=bounds))["accumulation"]
    whole = render_surface_view(shape, *view)["accumulation"]
    assert cut[:17].sum() == 0
    assert torch.equal(cut[24:], whole[24:])


def test_leaps_never_pass_an_occupied_cell() -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(12, 12, 12, generator=generator) > 0.997
    assert cells.any()
    grid = SurfaceGrid(cells, torch.zeros(12, 12, 12), half_extent=0.6)
    edge = 0.1
    for steps in range(1, 8):
        near = dilate(cells, steps)
        assert (grid.leap[near] <= (steps - 1) * edge + 1e-6).all()
    assert grid.leap.max() > 3 * edge
    assert SurfaceGrid.from_occupancy(grid) is grid


def test_light_comes_from_over_the_cameras_left_shoulder() -> None:
    ball = SolidField(SolidBall(0.3))
    for azimuth in (0, 130, 250):
        rgb = render_surface_view(ball, orbit_pose(15, azimuth), Intrinsics.default(64))["rgb"].mean(dim=-1)
        upper_left, lower_right = rgb[22, 22], rgb[42, 42]
        assert upper_left > lower_right + 0.15
        on = rgb < 1
        assert rgb[on].max() > 0.75
        assert rgb[on].min() > 0.05


def test_shades_stay_in_range_also_where_the_camera_looks_straight_down() -> None:
    normals = F.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    for direction in ((0.0, 0.0, -1.0), (0.0, 0.0, 1.0), (math.sqrt(0.5), math.sqrt(0.5), 0.0)):
        colors = shade(normals, torch.tensor(direction).expand_as(normals))
        assert torch.isfinite(colors).all()
        assert colors.min() >= 0
        assert colors.max() <= 1
