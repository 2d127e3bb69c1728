"""Cameras, intervals, volume rendering and the skipping renderer, against slow references and analytic truths."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnif_nerf.metrics.images import psnr, ssim
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays, spiral_poses
from mnif_nerf.rendering.intervals import box_interval, cell_index, occupied_span, step_positions
from mnif_nerf.rendering.occupancy import OccupancyGrid, dilate, grid_points, resize_cells
from mnif_nerf.rendering.views import render_rays, render_view
from mnif_nerf.rendering.volume import composite, ray_weights


class Ball:
    """A ball of constant density and colour: the renderer's truth is a formula."""

    def __init__(self, radius: float = 0.3, density: float = 60.0) -> None:
        self.radius, self.value = radius, density

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return torch.where(points.norm(dim=-1) < self.radius, self.value, 0.0)

    def radiance(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([0.9, 0.2, 0.1]).expand(len(points), 3), self.density(points)


@given(st.floats(-89.0, 89.0), st.floats(-720.0, 720.0), st.floats(0.5, 4.0))
@settings(max_examples=40, deadline=None)
def test_orbit_poses_are_rotations_that_look_at_the_origin_with_z_up(elevation, azimuth, radius):
    pose = orbit_pose(elevation, azimuth, radius)
    rotation, position = pose[:3, :3], pose[:3, 3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-5, rtol=0)
    assert torch.linalg.det(rotation) > 0.99
    torch.testing.assert_close(position.norm(), torch.tensor(radius), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotation[:, 2], -position / radius, atol=1e-4, rtol=0)
    assert rotation[2, 1] <= 1e-5  # the picture's down points down


def test_azimuth_zero_looks_from_the_front_and_ninety_from_the_left():
    torch.testing.assert_close(orbit_pose(0, 0)[:3, 3], torch.tensor([1.3, 0, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(orbit_pose(0, 90)[:3, 3], torch.tensor([0, 1.3, 0]), atol=1e-6, rtol=0)


def test_the_spiral_climbs_over_the_upper_half():
    heights = spiral_poses(24)[:, 2, 3]
    assert (heights.diff() > 0).all()
    assert heights[0] > 0
    assert heights[-1] > 1.0


def test_pixel_rays_equal_a_pixel_by_pixel_projection():
    camera = Intrinsics(20.0, 7.5, 5.0, 10, 14)
    pose = orbit_pose(31, 77)
    origins, directions = pixel_rays(pose, camera)
    for row, column in ((0, 0), (9, 13), (4, 7)):
        ray = directions[row * 14 + column]
        local = pose[:3, :3].T @ (origins[0] + 2 * ray - pose[:3, 3])
        assert math.isclose(local[0] / local[2] * 20 + 7.5, column + 0.5, abs_tol=1e-3)
        assert math.isclose(local[1] / local[2] * 20 + 5.0, row + 0.5, abs_tol=1e-3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(140))


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_box_interval_equals_a_fine_march(seed):
    generator = torch.Generator().manual_seed(seed)
    origins = torch.randn(20, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator), dim=-1)
    directions[0] = torch.tensor([1.0, 0.0, 0.0])  # a ray along an axis divides by zero in naive code
    near, far = box_interval(origins, directions, 0.5)
    t = torch.linspace(0, 8, 4001)
    inside = ((origins[:, None] + t[:, None] * directions[:, None]).abs() <= 0.5).all(dim=-1)
    for ray in range(20):
        if inside[ray].any():
            assert abs(near[ray] - t[inside[ray]].min()) < 0.01
            assert abs(far[ray] - t[inside[ray]].max()) < 0.01
        else:
            assert far[ray] - near[ray] < 0.01


def test_occupied_span_equals_a_loop():
    torch.manual_seed(0)
    inside = torch.rand(200, 9) < 0.2
    near = torch.rand(200)
    width = torch.rand(200, 1)
    start, end, hit = occupied_span(inside, near, width)
    for ray in range(200):
        places = inside[ray].nonzero().flatten()
        assert bool(hit[ray]) == (len(places) > 0)
        if len(places):
            torch.testing.assert_close(start[ray], near[ray] + places[0] * width[ray, 0])
            torch.testing.assert_close(end[ray], near[ray] + (places[-1] + 1) * width[ray, 0])
        else:
            assert start[ray] == end[ray]


def test_step_positions_and_cell_index():
    t, width = step_positions(torch.tensor([1.0]), torch.tensor([2.0]), 4)
    torch.testing.assert_close(t, torch.tensor([[1.125, 1.375, 1.625, 1.875]]))
    assert width.item() == 0.25
    points = grid_points(5, 0.5)
    assert torch.equal(cell_index(points, 5, 0.5), torch.arange(125))
    assert cell_index(torch.tensor([9.0, 9.0, 9.0]), 5, 0.5) == 124  # outside: the nearest cell


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_ray_weights_and_compositing_equal_the_recursion(seed):
    generator = torch.Generator().manual_seed(seed)
    optical = torch.rand(4, 6, generator=generator) * 3
    colors = torch.rand(4, 6, 3, generator=generator)
    got, accumulation = composite(ray_weights(optical), colors)
    for ray in range(4):
        light, color = 1.0, torch.zeros(3)
        for sample in range(6):
            alpha = 1 - math.exp(-optical[ray, sample])
            color = color + light * alpha * colors[ray, sample]
            light *= 1 - alpha
        torch.testing.assert_close(got[ray], color + light)
        assert math.isclose(accumulation[ray, 0], 1 - light, abs_tol=1e-5)


def test_rendering_a_ball_equals_the_formula():
    ball = Ball(density=6.0)
    offsets = torch.tensor([0.0, 0.1, 0.2, 0.29, 0.31, 0.45])
    origins = torch.stack([torch.full((6,), -1.3), offsets, torch.zeros(6)], dim=-1)
    directions = torch.tensor([[1.0, 0.0, 0.0]]).expand(6, 3)
    out = render_rays(ball, origins, directions, step=1 / 2000)
    chord = 2 * (0.3**2 - offsets**2).clamp(min=0).sqrt()
    opacity = 1 - torch.exp(-6.0 * chord)
    torch.testing.assert_close(out["accumulation"][:, 0], opacity, atol=5e-3, rtol=0)
    expected = opacity[:, None] * torch.tensor([0.9, 0.2, 0.1]) + (1 - opacity)[:, None]
    torch.testing.assert_close(out["rgb"], expected, atol=5e-3, rtol=0)


def test_an_opaque_ball_has_the_depth_of_its_surface():
    out = render_rays(Ball(density=2000.0), torch.tensor([[-1.3, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert abs(out["depth"].item() - 1.0) < 0.02
    missed = render_rays(Ball(), torch.tensor([[-1.3, 2.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert missed["accumulation"].item() == 0.0
    assert missed["rgb"].tolist() == [[1.0, 1.0, 1.0]]


def test_the_skipping_render_equals_the_dense_one():
    camera, ball = Intrinsics.default(48), Ball(density=150.0)
    grid = OccupancyGrid.from_field(ball, resolution=32)
    assert 0.05 < grid.cells.float().mean() < 0.25
    for pose in (orbit_pose(20, 30), orbit_pose(-80, 200), orbit_pose(0, 0, radius=0.45)):
        dense, skipped = render_view(ball, pose, camera), render_view(ball, pose, camera, grid)
        for name, tolerance in (("rgb", 4e-3), ("accumulation", 4e-3), ("depth", 1e-2)):
            torch.testing.assert_close(skipped[name], dense[name], atol=tolerance, rtol=0)


def test_an_empty_field_renders_white():
    grid = OccupancyGrid.from_field(Ball(density=0.0), resolution=8)
    assert grid.tight_box() is None
    assert render_view(Ball(density=0.0), orbit_pose(0, 0), Intrinsics.default(8), grid)["rgb"].min() == 1.0


def test_bounds_remove_what_lies_outside_them():
    bounds = torch.zeros(4, 4, 4, dtype=torch.bool)
    bounds[2:] = True
    cells = OccupancyGrid.from_field(Ball(), resolution=24, bounds=bounds).cells
    assert not cells[:12].any()
    assert cells[12:].any()


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_resized_cells_cover_every_set_cell(old, new, seed):
    cells = torch.rand(old, old, old, generator=torch.Generator().manual_seed(seed)) < 0.3
    resized = resize_cells(cells, new)
    fine = grid_points(40, 0.5)
    was = cells.flatten()[cell_index(fine.clone(), old, 0.5)]
    now = resized.flatten()[cell_index(fine.clone(), new, 0.5)]
    assert bool(now[was].all())


def test_dilate_grows_by_one_cell_in_every_direction():
    cells = torch.zeros(5, 5, 5, dtype=torch.bool)
    cells[2, 2, 2] = True
    assert dilate(cells).sum() == 27


def test_image_metrics():
    image = torch.rand(16, 16, 3)
    assert math.isclose(psnr(image, image + 0.1), 20.0, abs_tol=1e-3)
    assert psnr(image, image) == math.inf
    assert math.isclose(ssim(image, image), 1.0, abs_tol=1e-4)
    assert ssim(image, torch.rand(16, 16, 3)) < 0.5
