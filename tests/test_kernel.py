"""The compiled kernel against plain torch in double precision; its sine; threads; and life without it."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import kernel
from mnif_nerf.fields.evaluate import evaluate
from mnif_nerf.fields.families import forward_reference
from mnif_nerf.fields.network import NetworkForm, layer_shapes

needs_kernel = pytest.mark.skipif(not kernel.available(), reason="the kernel was not built")


def network(batch: int, shapes: list[tuple[int, int]], seed: int) -> list[Tensor]:
    """Flat weights of random SIRENs, whose pre-activations have about unit variance (the first layer's: 10)."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for layer, (out, fan_in) in enumerate(shapes):
        bound = 30.0 / fan_in if layer == 0 else math.sqrt(6.0 / fan_in)
        rows.append((torch.rand(batch, out * fan_in + out, generator=generator) * 2 - 1).mul_(bound).requires_grad_())
    return rows


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm() + 1e-6


@needs_kernel
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 4),
    points=st.one_of(st.integers(1, 70), st.sampled_from([768, 1600])),
    fan_in=st.integers(1, 4),
    width=st.one_of(st.integers(1, 40), st.sampled_from([48, 64, 67, 80])),
    hidden=st.integers(0, 4),
    out=st.integers(1, 6),
    final_sine=st.booleans(),
    instruction_set=st.sampled_from(["", "avx2", "plain"]),
    point_major=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_kernel_equals_torch(batch, points, fan_in, width, hidden, out, final_sine, instruction_set, point_major, seed):
    shapes = layer_shapes(fan_in, width, hidden, out)
    rows = network(batch, shapes, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, fan_in, points, generator=generator) - 0.5
    if point_major:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    upstream = torch.randn(batch, out, points, generator=generator)
    form = NetworkForm(tuple(shapes), final_sine)
    expected = forward_reference(form, [row.double() for row in rows], x.double())
    expected_grads = torch.autograd.grad(expected, rows, upstream.double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIF_KERNEL", instruction_set)
        patch.setattr(kernel, "_WORK_PER_THREAD", 1)
        assert kernel.usable(form, rows, x)
        got = evaluate(form, rows, x)
        grads = torch.autograd.grad(got, rows, upstream)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
    assert_same(grads, expected_grads, 1e-4)


def sine_and_cosine(x: Tensor) -> tuple[Tensor, Tensor]:
    """Through networks of one neuron: one point each, whose bias's gradient is the cosine."""
    first = torch.stack([torch.ones_like(x), x], dim=1).requires_grad_()
    last = torch.tensor([[1.0, 0.0]]).expand(len(x), -1)
    value = evaluate(NetworkForm(((1, 1), (1, 1))), [first, last], torch.zeros(len(x), 1, 1))
    (gradient,) = torch.autograd.grad(value.sum(), first)
    return value.detach().flatten(), gradient[:, 1]


@needs_kernel
@pytest.mark.parametrize("instruction_set", ["", "avx2", "plain"])
def test_sine_is_accurate_up_to_ten_thousand_and_bounded_beyond(instruction_set, monkeypatch):
    monkeypatch.setenv("MNIF_KERNEL", instruction_set)
    multiples = torch.arange(-50, 51) * (math.pi / 4)
    for limit, error, both in ((3.2, 1.5e-7, 1e-7), (100.0, 1.5e-7, 1e-7), (1e4, 2e-7, 1.2e-7)):
        x = torch.cat([torch.linspace(-limit, limit, 20001), multiples[multiples.abs() <= limit]])
        sine, cosine = sine_and_cosine(x)
        torch.testing.assert_close(sine.double(), x.double().sin(), atol=error, rtol=0)
        torch.testing.assert_close(cosine.double(), x.double().cos(), atol=both, rtol=0)
    huge = torch.tensor([1e5, 1e7, 1e12, 1e30, 3.4e38])
    for values in sine_and_cosine(torch.cat([huge, -huge])):
        assert values.abs().max() <= 1.0 + 1e-6
    for values in sine_and_cosine(torch.tensor([math.inf, -math.inf, math.nan])):
        assert values.isnan().all()


@needs_kernel
def test_results_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(kernel, "_WORK_PER_THREAD", 1)
    monkeypatch.setattr(kernel, "_threads", kernel.num_threads())
    shapes = layer_shapes(3, 24, 2, 4)
    rows, x = network(3, shapes, 0), torch.rand(3, 3, 5000) - 0.5
    upstream = torch.randn(3, 4, 5000)
    results = []
    for threads in (1, 2, 7, 2):
        kernel.set_num_threads(threads)
        values = evaluate(NetworkForm(tuple(shapes)), rows, x)
        results.append((values, *torch.autograd.grad(values, rows, upstream)))
    for other in results[1:]:
        assert all(torch.equal(one, another) for one, another in zip(results[0], other))
    with pytest.raises(MNIFError, match="at least 1"):
        kernel.set_num_threads(0)


@needs_kernel
@pytest.mark.parametrize("final_sine", [False, True])
def test_second_derivatives_equal_the_references(final_sine, monkeypatch):
    shapes = layer_shapes(3, 24, 2, 2)
    form = NetworkForm(tuple(shapes), final_sine)
    rows, points = network(3, shapes, 0), torch.rand(3, 3, 130, generator=torch.Generator().manual_seed(1)) - 0.5
    upstream = torch.randn(3, 2, 130, generator=torch.Generator().manual_seed(2), requires_grad=True)
    calls = []
    compiled = kernel._call
    monkeypatch.setattr(kernel, "_call", lambda task: (calls.append(task.mode), compiled(task)))

    def derivatives(rows: list[Tensor], points: Tensor, upstream: Tensor) -> list[Tensor]:
        """First derivatives, and second ones in the rows and in what comes from above."""
        values = evaluate(form, rows, points)
        gradient = torch.autograd.grad(values, rows, upstream, create_graph=True)
        norm = torch.stack([part.square().sum() for part in gradient[1:]]).sum()
        return [*gradient, *torch.autograd.grad(norm, [*rows, upstream])]

    got = derivatives(rows, points, upstream)
    assert calls == [kernel._FORWARD, kernel._GRADIENT, kernel._SECOND]
    with kernel.reference_only():
        derivatives(rows, points, upstream)
    assert len(calls) == 3
    expected = derivatives([row.double() for row in rows], points.double(), upstream.double())
    assert_same(tuple(one.double() for one in got), tuple(expected), 1e-4)


@pytest.mark.parametrize("by_kernel", [pytest.param(True, marks=needs_kernel), False])
def test_third_derivatives_are_torchs(by_kernel, monkeypatch):
    monkeypatch.setenv("MNIF_KERNEL", "" if by_kernel else "torch")
    shapes = layer_shapes(2, 8, 1, 1)
    rows = network(2, shapes, 0)
    points = torch.rand(2, 2, 9, generator=torch.Generator().manual_seed(1)) - 0.5

    def third(rows: list[Tensor], points: Tensor) -> tuple[Tensor, ...]:
        result = evaluate(NetworkForm(tuple(shapes), True), rows, points).square().sum()
        for _ in range(2):
            gradient = torch.autograd.grad(result, rows, create_graph=True)
            result = torch.stack([part.sin().sum() for part in gradient]).sum()
        return torch.autograd.grad(result, rows)

    expected = third([row.double() for row in rows], points.double())
    assert_same(tuple(one.double() for one in third(rows, points)), expected, 1e-3)


def test_second_derivatives_of_weights_that_do_not_lie_in_a_row():
    form = NetworkForm(((8, 3), (4, 8)))
    rows = [torch.randn(size, 2).T.requires_grad_() for size in (32, 36)]
    points = torch.rand(2, 3, 9) - 0.5

    def second_derivatives() -> tuple[Tensor, ...]:
        loss = evaluate(form, rows, points).square().sum()
        gradients = torch.autograd.grad(loss, rows, create_graph=True)
        return torch.autograd.grad(torch.stack([g.square().sum() for g in gradients]).sum(), rows)

    got = second_derivatives()
    with kernel.reference_only():
        expected = second_derivatives()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-2)


def test_points_with_a_gradient_doubles_and_function_transforms_go_to_torch():
    shapes = layer_shapes(3, 8, 1, 4)
    form = NetworkForm(tuple(shapes))
    rows, x = network(2, shapes, 0), torch.rand(2, 3, 5)
    assert not kernel.usable(form, rows, x.clone().requires_grad_())
    assert not kernel.usable(form, [row.double() for row in rows], x.double())
    moved = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(evaluate(form, rows, moved).sum(), moved)
    assert gradient.abs().max() > 0
    by_transform = torch.func.grad(lambda row: evaluate(form, [row, *rows[1:]], x).sum())(rows[0])
    (by_autograd,) = torch.autograd.grad(evaluate(form, rows, x).sum(), rows[0])
    torch.testing.assert_close(by_transform, by_autograd, rtol=1e-4, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    shapes = layer_shapes(3, 8, 1, 4)
    form, rows = NetworkForm(tuple(shapes)), network(2, shapes, 0)
    for bad in (torch.rand(2, 2, 5), torch.rand(1, 3, 5), torch.rand(3, 5)):
        with pytest.raises((RuntimeError, IndexError)):
            evaluate(form, rows, bad)
    with pytest.raises(RuntimeError):
        evaluate(form, [row[:, :-1] for row in rows], torch.rand(2, 3, 5))


def test_torch_takes_over_when_asked_or_when_the_kernel_is_missing(monkeypatch, caplog):
    shapes = layer_shapes(3, 8, 1, 4)
    form = NetworkForm(tuple(shapes))
    rows, x = network(2, shapes, 0), torch.rand(2, 3, 5)
    expected = forward_reference(form, rows, x)
    monkeypatch.setenv("MNIF_KERNEL", "torch")
    assert not kernel.available()
    assert torch.equal(evaluate(form, rows, x), expected)
    monkeypatch.delenv("MNIF_KERNEL")
    monkeypatch.setattr(kernel, "EXTENSION_SUFFIXES", [".absent"])
    kernel._library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert torch.equal(evaluate(form, rows, x), expected)
        assert [record.getMessage() for record in caplog.records if "not built" in record.getMessage()] != []
        assert len(caplog.records) == 1
    finally:
        kernel._library.cache_clear()
