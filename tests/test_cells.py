"""Rendering grids as they are, against every cell's box intersected with every ray."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.surface import shade
from mnif_nerf.rendering.voxel_faces import render_cells

CAMERA = Intrinsics.default(20)


def nearest_faces(cells: torch.Tensor, pose: torch.Tensor, half: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours `[H, W, 3]` by slabs, and whether a ray's choice is clear (no face is grazed, no two are as near)."""
    origins, directions = pixel_rays(pose, CAMERA)
    origins, directions = origins.double(), directions.double()
    edge = 2 * half / len(cells)
    low = cells.nonzero() * edge - half
    bounds = torch.stack([low, low + edge], dim=1)  # [C, 2, 3]
    slopes = torch.where(directions.abs() < 1e-12, 1e-12, directions).reciprocal()
    crossings = (bounds[None] - origins[:, None, None]) * slopes[:, None, None]  # [R, C, 2, 3]
    near, axis = crossings.amin(dim=2).max(dim=2)
    far = crossings.amax(dim=2).amin(dim=2)
    # Unclear: a face nearly missed, two cells as near, or two faces of one cell (its edge).
    entries = crossings.amin(dim=2).topk(2, dim=2).values
    grazing = (((far - near).abs() < 1e-5) | (entries[..., 0] - entries[..., 1] < 1e-5)).any(dim=1)
    near = torch.where((far > near) & (far > 0), near, float("inf"))
    first, cell = near.min(dim=1)
    hit, axis = first.isfinite(), axis.gather(1, cell[:, None])
    normals = torch.zeros_like(directions).scatter(1, axis, -directions.sign().gather(1, axis))
    colors = torch.where(hit[:, None], shade(normals.float(), directions.float()), 1.0)
    grazing |= ((near - first[:, None]).abs() < 1e-6).sum(dim=1).gt(1) & hit
    shape = (CAMERA.height, CAMERA.width)
    return colors.view(*shape, 3), ~grazing.view(*shape)


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 6),
    share=st.sampled_from([0.02, 0.2, 0.7]),
    elevation=st.sampled_from([-90.0, -20.0, 0.0, 25.0, 90.0]),
    azimuth=st.sampled_from([0.0, 40.0, 90.0, 200.0]),
    seed=st.integers(0, 999),
)
def test_every_ray_sees_the_nearest_face(size: int, share: float, elevation: float, azimuth: float, seed: int) -> None:
    cells = torch.rand((size,) * 3, generator=torch.Generator().manual_seed(seed)) < share
    cells[seed % size, 0, -1] = True
    pose = orbit_pose(elevation, azimuth, 1.3)
    expected, clear = nearest_faces(cells, pose, 0.5)
    picture = render_cells(cells, pose, CAMERA)
    assert clear.float().mean() > 0.4
    torch.testing.assert_close(picture[clear], expected[clear], atol=1e-4, rtol=0)


def test_nothing_is_white_and_everything_is_a_cube() -> None:
    pose = orbit_pose(25.0, 40.0)
    assert (render_cells(torch.zeros(4, 4, 4, dtype=torch.bool), pose, CAMERA) == 1).all()
    cube = render_cells(torch.ones(4, 4, 4, dtype=torch.bool), pose, CAMERA)
    torch.testing.assert_close(cube, render_cells(torch.ones(1, 1, 1, dtype=torch.bool), pose, CAMERA))
    assert 0.3 < (cube < 1).all(dim=2).float().mean() < 0.95


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_a_camera_within_the_grid_looks_from_there(offset: float) -> None:
    cells = torch.zeros(5, 5, 5, dtype=torch.bool)
    cells[0] = True  # a wall at x = -0.5, which the camera looks at
    pose = orbit_pose(0.0, 0.0, 0.2)
    pose[1, 3] += offset
    picture = render_cells(cells, pose, CAMERA)
    wall = picture[10, 10]
    assert (wall < 1).all()
    turned = pose.clone()
    turned[:3, :3] = orbit_pose(0.0, 180.0)[:3, :3]
    assert (render_cells(cells, turned, CAMERA) == 1).all()


def test_cells_of_a_box_are_cubes_around_its_centre() -> None:
    pose = orbit_pose(0.0, 0.0)  # from +x: columns are y, rows z downwards
    camera = Intrinsics.default(96)
    box = (render_cells(torch.ones(4, 8, 2, dtype=torch.bool), pose, camera) < 1).any(dim=-1)
    wide, high = box.any(dim=0).nonzero().flatten(), box.any(dim=1).nonzero().flatten()
    assert (len(wide), len(high)) == (pytest.approx(4 * len(high), rel=0.05), len(high))
    assert (int(wide[0] + wide[-1]), int(high[0] + high[-1])) == (95, 95)
    # The same cells in a cube that has as much empty room on both sides.
    cells = torch.rand(4, 8, 2, generator=torch.Generator().manual_seed(0)) < 0.4
    cube = torch.zeros(8, 8, 8, dtype=torch.bool)
    cube[2:6, :, 3:5] = cells
    slanted = orbit_pose(25.0, 40.0)
    torch.testing.assert_close(
        render_cells(cells, slanted, camera), render_cells(cube, slanted, camera), atol=1e-4, rtol=0
    )
