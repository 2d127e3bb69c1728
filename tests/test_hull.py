"""Carving against slow references: the hull holds the object, the touching pixels hold its silhouette."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from tiny_srn import FOCAL_OVER_WIDTH, Shape, make_shapes, random_poses, render

from mnif_nerf.data.geometry import hull
from mnif_nerf.data.readers.images import Background, fill_holes, silhouette

SIZE = 32


def camera(size: int = SIZE) -> np.ndarray:
    return np.array([FOCAL_OVER_WIDTH * size, size / 2, size / 2], dtype=np.float32)


def views(shapes: list[Shape], count: int, seed: int = 0, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    poses = random_poses(count, np.random.default_rng(seed))
    masks = np.stack([render(shapes, pose, size)[..., 3] > 0 for pose in poses])
    return masks, poses.astype(np.float32)


def cells_met_by(shapes: list[Shape], resolution: int) -> np.ndarray:
    """Cells that hold at least one of 3^3 points inside a shape."""
    fine = hull.cell_centres(3 * resolution)
    inside = np.any([shape.contains(fine) for shape in shapes], axis=0)
    return inside.reshape(resolution, 3, resolution, 3, resolution, 3).any((1, 3, 5))


def pixels_meeting(cells: np.ndarray, pose: np.ndarray, size: int, steps: int = 1500) -> np.ndarray:
    """Reference of `project`: march every pixel's centre ray in small steps."""
    axis = (np.arange(size) + 0.5 - size / 2) / (FOCAL_OVER_WIDTH * size)
    x, y = np.meshgrid(axis, axis)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ pose[:3, :3].T
    hit = np.zeros((size, size), dtype=bool)
    resolution = len(cells)
    for depth in np.linspace(0.3, 2.4, steps):
        place = np.floor((pose[:3, 3] + depth * rays + 0.5) * resolution).astype(int)
        valid = ((place >= 0) & (place < resolution)).all(-1)
        place = np.clip(place, 0, resolution - 1)
        hit |= valid & cells[place[..., 0], place[..., 1], place[..., 2]]
    return hit


def test_cells_are_in_xyz_order():
    centres = hull.cell_centres(4).reshape(4, 4, 4, 3)
    np.testing.assert_allclose(centres[0, 1, 3], [-0.375, -0.125, 0.375])


def test_hull_of_a_sphere_holds_it_and_excludes_what_is_far():
    sphere = Shape("sphere", np.array([0.1, -0.05, 0.05]), np.full(3, 0.2), np.full(3, 0.5))
    masks, poses = views([sphere], 24)
    cells = hull.carve(masks, poses, camera())
    assert not (cells_met_by([sphere], 32) & ~cells).any()
    distance = np.linalg.norm(hull.cell_centres() - sphere.centre, axis=1).reshape(cells.shape)
    assert not cells[distance > 0.36].any()
    assert cells.mean() < 4 / 3 * np.pi * 0.255**3  # a margin of one cell and one pixel


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12), size=st.sampled_from([17, 32, 48]))
def test_hull_is_conservative(seed, count, size):
    shapes = make_shapes(seed)
    masks, poses = views(shapes, count, seed, size)
    result = hull.carve_scene(masks, poses, camera(size))
    assert result.state == "strict"
    assert result.fits
    assert not (cells_met_by(shapes, 32) & ~result.cells).any()
    assert not (masks & ~result.touching).any()


def test_touching_holds_every_ray_that_meets_the_hull_and_few_others():
    masks, poses = views(make_shapes(5), 6)
    cells = hull.carve(masks, poses, camera())
    touching = hull.project(cells, poses, camera(), SIZE, SIZE)
    exact = np.stack([pixels_meeting(cells, pose, SIZE) for pose in poses])
    assert not (exact & ~touching).any()
    assert touching.sum() < 1.35 * exact.sum()
    assert not touching.all((1, 2)).any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_projection_of_any_cells_is_conservative(seed):
    rng = np.random.default_rng(seed)
    cells = rng.random((8, 8, 8)) < 0.03
    poses = random_poses(2, rng).astype(np.float32)
    touching = hull.project(cells, poses, camera(24), 24, 24)
    exact = np.stack([pixels_meeting(cells, pose, 24, 700) for pose in poses])
    assert not (exact & ~touching).any()


def test_votes_agree_with_carving():
    masks, poses = views(make_shapes(2), 7)
    votes = hull.excluding_views(masks, poses, camera())
    np.testing.assert_array_equal(votes == 0, hull.carve(masks, poses, camera()))
    assert votes.max() <= 7


def test_a_camera_inside_the_cube_or_looking_away_is_no_evidence():
    pose = np.eye(4, dtype=np.float32)[None]
    nothing = np.zeros((1, SIZE, SIZE), dtype=bool)
    cells = hull.carve(nothing, pose, camera())
    assert cells[:, :, :16].all(), "cells behind the camera stay"
    assert not cells[16, 16, 28]
    assert hull.project(cells, pose, camera(), SIZE, SIZE).all()


def test_a_scene_without_silhouettes_gets_the_whole_cube():
    _, poses = views(make_shapes(0), 4)
    result = hull.carve_scene(np.zeros((4, SIZE, SIZE), dtype=bool), poses, camera())
    assert result.state == "full"
    assert result.cells.all()


def test_one_broken_mask_loosens_the_hull_and_many_give_the_cube():
    shapes = make_shapes(3)
    masks, poses = views(shapes, 16)
    broken = masks.copy()
    broken[4] = np.roll(masks[4], 9, axis=1)
    result = hull.carve_scene(broken, poses, camera())
    assert result.state == "loose"
    assert not result.cells.all()
    assert not (cells_met_by(shapes, 32) & ~result.cells).any()
    shifts = np.random.default_rng(0).integers(-9, 10, (16, 2))
    scattered = np.stack([np.roll(mask, shift, axis=(0, 1)) for mask, shift in zip(masks, shifts)])
    wrong = hull.carve_scene(scattered, poses, camera())
    assert wrong.state == "full"
    assert wrong.cells.all()


def test_an_object_larger_than_the_cube_is_noticed():
    big = Shape("box", np.zeros(3), np.array([0.62, 0.1, 0.1]), np.full(3, 0.5))
    poses = random_poses(12, np.random.default_rng(0))
    poses[:, :3, 3] *= 1.6
    masks = np.stack([render([big], pose, SIZE)[..., 3] > 0 for pose in poses])
    result = hull.carve_scene(masks, poses.astype(np.float32), camera())
    assert not result.fits
    assert result.state == "strict"
    assert not (cells_met_by([big], 32) & ~result.cells).any()


def test_dilation_and_distance_agree_with_scipy():
    mask = np.random.default_rng(0).random((3, 20, 31)) < 0.02
    reference = np.stack([ndimage.binary_dilation(m, np.ones((3, 3))) for m in mask])
    np.testing.assert_array_equal(hull.dilate(mask), reference)
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    expected = [ndimage.distance_transform_cdt(~m, metric="chessboard") for m in padded]
    np.testing.assert_array_equal(hull.silhouette_distance(mask), np.stack(expected))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 0.7))
def test_filling_holes_agrees_with_scipy(seed, density):
    mask = np.random.default_rng(seed).random((15, 18)) < density
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


@pytest.mark.parametrize("alpha", [True, False])
def test_white_paint_inside_the_object_belongs_to_it(alpha):
    pixels = np.full((12, 12, 4), 255, dtype=np.uint8)
    pixels[3:9, 3:9, :3] = 90
    pixels[5:7, 5:7, :3] = 255
    pixels[..., 3] = 0
    pixels[3:9, 3:9, 3] = 255
    expected = np.zeros((12, 12), dtype=bool)
    expected[3:9, 3:9] = True
    found = silhouette(pixels if alpha else pixels[..., :3], Background(True, alpha, 6))
    np.testing.assert_array_equal(found, expected)
