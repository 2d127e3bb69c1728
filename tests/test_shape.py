"""Voxel fields as solids: value, density, gradient, and what the density tools make of an analytic ball."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import SolidBall, tiny_voxel_model

from mnif_nerf.export.density import density_grid
from mnif_nerf.export.mesh import MeshOptions, field_to_mesh
from mnif_nerf.export.voxels import field_to_occupancy, write_voxels
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.solid import GAIN, SolidField, surface_level
from mnif_nerf.rendering.occupancy import grid_points


class Given:
    """A field that says what it is told, whatever the points."""

    head = "signed"

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def evaluate(self, points: torch.Tensor) -> torch.Tensor:
        return self.values[None]


def _collapsed(head: str) -> CompactField:
    model = tiny_voxel_model(head=head)
    return model.field.collapse(model.latents[0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1.5, 1.5, width=32), min_size=1, max_size=20), st.floats(0.1, 3.0))
def test_above_the_level_is_inside_and_nothing_else_is(values: list[float], half_extent: float) -> None:
    # Numbers next to zero, where e^x rounds to 1, are the ones that could be told apart no more.
    told = torch.tensor([*values, 0.0, -0.0, 1e-30, -1e-30, 1e-8, -1e-8])
    shape = SolidField(Given(told), half_extent)
    density = shape.density(torch.zeros(len(told), 3))
    assert torch.equal(density > surface_level(half_extent), told > 0)
    level = surface_level(half_extent)
    assert density.min() >= level * math.exp(-GAIN) * 0.999
    assert density.max() <= level * math.exp(GAIN) * 1.001


def test_signed_values_are_the_fields_own_and_logits_are_bent_to_the_same_range() -> None:
    points = torch.rand(200, 3) - 0.5
    for half_extent in (0.5, 1.3):
        world = points * 2 * half_extent
        signed, logit = _collapsed("signed"), _collapsed("logit")
        assert torch.allclose(SolidField(signed, half_extent).value(world), signed.evaluate(2 * points.T)[0], atol=1e-6)
        expected = 2 * logit.evaluate(2 * points.T)[0].sigmoid() - 1
        assert torch.allclose(SolidField(logit, half_extent).value(world), expected, atol=1e-5)
    wild = SolidField(Given(torch.tensor([-7.0, 3.0, 0.25])))
    assert wild.value(torch.zeros(3, 3)).tolist() == [-1.0, 1.0, 0.25]


@pytest.mark.parametrize("head", ["signed", "logit"])
def test_the_gradient_equals_finite_differences(head: str) -> None:
    field = _collapsed(head)
    double = CompactField(
        [weight.double() for weight in field.weights],
        [bias.double() for bias in field.biases],
        field.final_sine,
        field.head,
    )
    shape = SolidField(double, half_extent=0.8)
    points = 1.4 * torch.rand(40, 3, dtype=torch.float64) - 0.7
    with torch.no_grad():  # as within a render
        gradient = shape.gradient(points)
    step = 1e-5 * torch.eye(3, dtype=torch.float64)
    differences = torch.stack([shape.value(points + s) - shape.value(points - s) for s in step], dim=1) / 2e-5
    assert torch.allclose(gradient, differences, atol=1e-5, rtol=1e-5)
    assert not gradient.requires_grad
    assert torch.allclose(SolidField(field, 0.8).gradient(points.float()).double(), gradient, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("head", ["signed", "logit"])
@pytest.mark.parametrize("resolution", [40, 64, 96])
def test_the_mesh_of_a_ball_is_the_ball_at_any_resolution(head: str, resolution: int) -> None:
    shape = SolidField(SolidBall(0.3, (0.05, -0.02, 0.1), head=head))
    mesh = field_to_mesh(shape, resolution, options=MeshOptions(colors=False))
    assert mesh.is_watertight
    # The corners lie on the ball and the triangles within it, by less and less as they get smaller.
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=8 / resolution**2)
    radii = np.linalg.norm(mesh.vertices - [0.05, -0.02, 0.1], axis=1)
    assert np.abs(radii - 0.3).max() < 0.03 / resolution


@pytest.mark.parametrize("resolution", [16, 48, 130])
def test_voxels_are_where_the_value_is_positive(resolution: int, tmp_path) -> None:
    shape = SolidField(SolidBall(0.27, (0.1, 0.0, -0.05)))
    occupancy = field_to_occupancy(shape, resolution, skip_empty=False)
    inside = shape.value(grid_points(resolution, 0.5)).view([resolution] * 3) > 0
    read = trimesh.load(write_voxels(occupancy, tmp_path / "ball.binvox"))
    assert (read.matrix == inside.numpy()).all()


def test_without_the_coarse_pass_no_cell_is_left_out() -> None:
    # A ball smaller than a cell of the coarse grid, between its centres.
    crumb = SolidField(SolidBall(0.0075, sharpness=2000.0))
    assert not (density_grid(crumb, 128) > surface_level()).any()
    found = density_grid(crumb, 128, skip_empty=False) > surface_level()
    assert found.sum() == (grid_points(128, 0.5).norm(dim=1) < 0.0075).sum() > 0


def test_a_solid_is_grey_and_moves_with_its_field() -> None:
    shape = SolidField(_collapsed("signed"))
    colors, density = shape.radiance(torch.rand(9, 3) - 0.5)
    assert colors.shape == (9, 3)
    assert density.shape == (9,)
    assert colors.unique().numel() == 1
    assert len(list(shape.parameters())) == 6
    assert torch.equal(shape(torch.zeros(1, 3)), shape.value(torch.zeros(1, 3)))
