"""Smoothness of maps with known answers, and of a mixture field against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnif_nerf.fields import kernel
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.metrics.smoothness import (
    curvature,
    detour,
    directional_derivatives,
    jacobian_norm,
    local_lipschitz,
    path_length,
    turning,
)

Map = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def field_map() -> Map:
    """Values of a small random mixture field, in float64."""
    field = (
        MixtureField(FieldSpec(width=12, hidden_layers=1, num_bases=6, latent_dim=5, w0=6.0), seed=3)
        .double()
        .requires_grad_(False)
    )
    points = 0.5 * normal(3, 40, seed=4)

    def values(latents: Tensor) -> Tensor:
        with kernel.reference_only():
            return field.evaluate(latents, points.expand(len(latents), -1, -1)).flatten(1).tanh()

    return values


def circle(radius: float, speed: float) -> Map:
    """A circle in the first two of ten values; its root-mean-square radius is radius / sqrt(10)."""

    def values(latents: Tensor) -> Tensor:
        angle = speed * latents[:, :1]
        still = torch.zeros(len(latents), 8, dtype=latents.dtype)
        return torch.cat([radius * angle.cos(), radius * angle.sin(), still], dim=1)

    return values


def along(function: Map, start: Tensor, end: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, and values and derivatives there, of the straight path."""
    at = torch.linspace(0, 1, count, dtype=torch.float64)
    latents = start + at[:, None] * (end - start)
    return at, *directional_derivatives(function, latents, (end - start).expand_as(latents).contiguous())


# --- the Jacobian -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(2, 7), st.integers(3, 12), st.integers(0, 1000))
def test_of_a_linear_map_they_are_its_singular_values(inputs: int, outputs: int, seed: int) -> None:
    matrix = normal(outputs, inputs, seed=seed)
    singular = torch.linalg.svdvals(matrix) / math.sqrt(outputs)
    at = normal(3, inputs, seed=seed + 1)
    found = local_lipschitz(lambda z: z @ matrix.T + 1.0, at, tolerance=1e-9, max_iterations=3000)
    # Where the two largest nearly agree the iteration stops on its way from one to the other.
    assert (found <= singular[0] * (1 + 1e-9)).all()
    assert (found >= singular[0] * 0.999).all()
    norm = jacobian_norm(lambda z: z @ matrix.T + 1.0, at)
    torch.testing.assert_close(norm, singular.norm().expand(3))


def test_of_a_field_they_agree_with_the_whole_jacobian() -> None:
    function, at = field_map(), normal(4, 5, seed=1)
    jacobian = torch.stack([torch.func.jacrev(lambda z: function(z[None])[0])(row) for row in at])
    singular = torch.linalg.svdvals(jacobian) / math.sqrt(jacobian.shape[1])
    torch.testing.assert_close(local_lipschitz(function, at), singular[:, 0], rtol=0.01, atol=0)
    torch.testing.assert_close(jacobian_norm(function, at), singular.norm(dim=1))
    assert (local_lipschitz(function, at) <= jacobian_norm(function, at)).all()


def test_of_a_field_they_agree_with_finite_differences() -> None:
    function, at, step = field_map(), normal(1, 5, seed=1), 1e-5
    columns = [
        (function(at + step * unit) - function(at - step * unit))[0] / (2 * step) for unit in torch.eye(5).double()
    ]
    singular = torch.linalg.svdvals(torch.stack(columns, dim=1)) / math.sqrt(len(columns[0]))
    assert float(local_lipschitz(function, at, tolerance=1e-8, max_iterations=500)) == pytest.approx(float(singular[0]))
    assert float(jacobian_norm(function, at)) == pytest.approx(float(singular.norm()))


def test_some_directions_estimate_the_norm_without_bias() -> None:
    matrix, at = normal(9, 6), normal(1, 6)
    exact = float(matrix.square().mean(0).sum())
    squares = [float(jacobian_norm(lambda z: z @ matrix.T, at, directions=2, seed=seed)) ** 2 for seed in range(300)]
    assert sum(squares) / 300 == pytest.approx(exact, rel=0.05)
    assert max(squares) > 1.1 * exact
    assert float(jacobian_norm(lambda z: z @ matrix.T, at, directions=6)) ** 2 == pytest.approx(exact)


def test_a_map_that_depends_on_nothing_has_no_slope() -> None:
    at = normal(2, 3)
    for measure in (local_lipschitz, jacobian_norm):
        assert measure(lambda z: 0.0 * z + 1.0, at).tolist() == [0.0, 0.0]


def test_more_points_do_not_change_the_numbers() -> None:
    matrix, at = normal(5, 3), normal(2, 3)
    twice = torch.cat([matrix, matrix])
    for measure in (local_lipschitz, jacobian_norm):
        torch.testing.assert_close(measure(lambda z: z @ matrix.T, at), measure(lambda z: z @ twice.T, at))


# --- paths ------------------------------------------------------------------------------------------------


def test_a_straight_path_has_no_curvature_and_no_detour() -> None:
    matrix = normal(7, 4)
    at, values, first, second = along(lambda z: z @ matrix.T, normal(4, seed=1), normal(4, seed=2), 5)
    torch.testing.assert_close(curvature(first, second), torch.zeros(5, dtype=torch.float64))
    assert float(detour(values, first, at)) == pytest.approx(1.0)
    assert float(path_length(first, at)) == pytest.approx(float((values[-1] - values[0]).square().mean().sqrt()))


def test_speeding_up_on_a_straight_path_is_no_turn() -> None:
    direction = normal(1, 6)
    at, values, first, second = along(
        lambda z: z.exp() * direction, torch.zeros(1).double(), torch.ones(1).double(), 201
    )
    assert second.abs().max() > 0.5
    assert turning(first, second).abs().max() < 1e-9
    assert float(detour(values, first, at)) == pytest.approx(1.0, abs=1e-5)


@settings(deadline=None)
@given(st.floats(0.1, 10.0), st.floats(0.2, 3.0))
def test_a_circle_has_one_over_its_radius(radius: float, speed: float) -> None:
    start, end = torch.zeros(1).double(), torch.full((1,), math.pi / speed).double()
    at, values, first, second = along(circle(radius, speed), start, end, 9)
    mean_radius = radius / math.sqrt(10)
    assert curvature(first, second).tolist() == pytest.approx([1 / mean_radius] * 9)
    # Half a turn along the path's parameter from 0 to 1, whatever the speed.
    assert turning(first, second).tolist() == pytest.approx([math.pi] * 9)
    assert float(path_length(first, at)) == pytest.approx(math.pi * mean_radius)
    assert float(detour(values, first, at)) == pytest.approx(math.pi / 2)


def test_a_closed_path_has_an_infinite_detour_and_a_still_one_none() -> None:
    at, values, first, _ = along(circle(1.0, 2 * math.pi), torch.zeros(1).double(), torch.ones(1).double(), 9)
    values[-1] = values[0]
    assert float(detour(values, first, at)) == math.inf
    assert float(detour(values[:1].expand(9, -1), torch.zeros(9, 10), at.float())) == 1.0
    assert curvature(torch.zeros(2, 3), torch.ones(2, 3)).tolist() == [0.0, 0.0]
    assert turning(torch.zeros(2, 3), torch.ones(2, 3)).tolist() == [0.0, 0.0]


def test_derivatives_of_a_field_agree_with_finite_differences() -> None:
    function, at, direction, step = field_map(), normal(3, 5, seed=1), normal(3, 5, seed=2), 1e-4
    value, first, second = directional_derivatives(function, at, direction)
    before, here, after = (function(at + shift * step * direction) for shift in (-1, 0, 1))
    torch.testing.assert_close(value, here)
    torch.testing.assert_close(first, (after - before) / (2 * step), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, (after - 2 * here + before) / step**2, rtol=1e-3, atol=1e-4)


def test_length_and_turning_of_a_field_agree_with_many_small_steps() -> None:
    function, start, end = field_map(), normal(5, seed=1), normal(5, seed=2)
    at, values, first, second = along(function, start, end, 33)
    fine = function(start + torch.linspace(0, 1, 4001).double()[:, None] * (end - start))
    steps = fine.diff(dim=0)
    length = float(steps.square().mean(1).sqrt().sum())
    assert float(path_length(first, at)) == pytest.approx(length, rel=0.01)
    chord = float((fine[-1] - fine[0]).square().mean().sqrt())
    assert float(detour(values, first, at)) == pytest.approx(length / chord, rel=0.01)
    unit = steps / steps.norm(dim=1, keepdim=True)
    angles = 2 * torch.asin(0.5 * unit.diff(dim=0).norm(dim=1))
    assert float(torch.trapezoid(turning(first, second), at)) == pytest.approx(float(angles.sum()), rel=0.02)
