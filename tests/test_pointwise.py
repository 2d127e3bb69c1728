"""The loss at points, its gradient and its Hessian-vector product: torch, the compiled kernel, finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import kernel
from mnif_nerf.fields.families import forward_reference
from mnif_nerf.fields.losses import DistanceLoss, PointLoss
from mnif_nerf.fields.network import NetworkForm, layer_shapes
from mnif_nerf.fields.point_loss import hessian_product, loss_and_gradient, losses_and_gradients

needs_kernel = pytest.mark.skipif(not kernel.available(), reason="the kernel was not built")


# Other numbers than the defaults, and of a size that random values meet both sides of them.
LOSS = DistanceLoss(truncation=0.06, near=0.04, color_weight=3.0)


@dataclass(frozen=True)
class Problem:
    shapes: list[tuple[int, int]]
    rows: list[Tensor]
    along: list[Tensor]
    points: Tensor
    targets: Tensor
    kind: str
    final_sine: bool
    weights: Tensor | None

    @property
    def form(self) -> NetworkForm:
        return NetworkForm(tuple(self.shapes), self.final_sine)

    @property
    def given(self) -> tuple[Tensor, PointLoss]:
        return self.points, PointLoss(self.kind, self.targets, self.weights, LOSS)

    def double(self) -> Problem:
        return replace(
            self,
            rows=[row.double() for row in self.rows],
            along=[row.double() for row in self.along],
            points=self.points.double(),
            targets=self.targets.double(),
            weights=None if self.weights is None else self.weights.double(),
        )

    def loss(self, rows: list[Tensor]) -> Tensor:
        """Losses `[B]`, by torch's own loss functions and autograd."""
        values = forward_reference(self.form, rows, self.points)
        if self.kind == "sdf":
            each = self.distance_losses(values)
            return (each if self.weights is None else each * self.weights).mean(dim=1)
        each = (
            F.mse_loss(values, self.targets, reduction="none")
            if self.kind == "mse"
            else F.binary_cross_entropy_with_logits(values, self.targets, reduction="none")
        )
        return (each if self.weights is None else each * self.weights.unsqueeze(1)).mean(dim=(1, 2))

    def distance_losses(self, values: Tensor) -> Tensor:
        """The loss "sdf" of every point `[B, N]`, point by point as its definition says it."""
        rows = []
        for value, target in zip(values, self.targets):
            row = []
            for raw, truth in zip(value.T, target.T):
                told, known = -0.1 * raw[-1], float(truth[-1])
                off = told - min(max(known, -LOSS.truncation), LOSS.truncation)
                beyond = (known >= LOSS.truncation and off > 0) or (known <= -LOSS.truncation and off < 0)
                loss = torch.zeros_like(told) if beyond else off.abs() / LOSS.truncation
                if abs(known) < LOSS.near and len(raw) > 1:
                    loss = loss + LOSS.color_weight * (raw[:-1].sigmoid() - truth[:-1]).square().mean()
                row.append(loss)
            rows.append(torch.stack(row))
        return torch.stack(rows)

    def results(self) -> list[Tensor]:
        """Loss, gradient and Hessian-vector product, one after the other."""
        loss, gradient = loss_and_gradient(self.form, self.rows, *self.given)
        return [loss, *gradient, *hessian_product(self.form, self.rows, self.along, *self.given)]


def problem(
    batch: int = 2,
    fan_in: int = 3,
    width: int = 24,
    hidden: int = 1,
    out: int = 1,
    count: int = 100,
    kind: str = "mse",
    final_sine: bool = True,
    weighted: bool = False,
    expanded: bool = False,
    seed: int = 0,
) -> Problem:
    """A random problem, whose pre-activations have about unit variance (the first layer's: 3)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = layer_shapes(fan_in, width, hidden, out)
    rows = []
    for layer, (rows_out, rows_in) in enumerate(shapes):
        bound = 5.0 / rows_in if layer == 0 else math.sqrt(6.0 / rows_in)
        rows.append((torch.rand(batch, rows_out * rows_in + rows_out, generator=generator) * 2 - 1) * bound)
    along = [torch.randn(row.shape, generator=generator) for row in rows]
    points = torch.rand(1 if expanded else batch, fan_in, count, generator=generator) * 2 - 1
    targets = torch.rand(batch, count, out, generator=generator).transpose(1, 2)
    weights = torch.rand(batch, count, generator=generator) * 2 if weighted else None
    points = points.expand(batch, -1, -1)
    if kind == "sdf":
        form = NetworkForm(tuple(shapes), final_sine)
        told = -0.1 * forward_reference(form, [row.double() for row in rows], points.double())[:, -1]
        known = 0.3 * targets[:, -1] - 0.15
        # Its slope jumps where it is zero: no point may lie so near that rounding or a finite difference crosses that.
        crossing = (told - known.clamp(-LOSS.truncation, LOSS.truncation)).abs() < 1e-3
        targets[:, -1] = torch.where(crossing, torch.where(told.abs() < 0.01, 0.03, 0.0), known)
    return Problem(shapes, rows, along, points, targets, kind, final_sine, weights)


problems = st.builds(
    problem,
    batch=st.integers(1, 4),
    fan_in=st.integers(1, 3),
    width=st.one_of(st.integers(1, 40), st.sampled_from([48, 64, 67])),
    hidden=st.integers(0, 3),
    out=st.integers(1, 4),
    count=st.one_of(st.integers(1, 140), st.sampled_from([769, 1600])),
    kind=st.sampled_from(["mse", "bce", "sdf"]),
    final_sine=st.booleans(),
    weighted=st.booleans(),
    expanded=st.booleans(),
    seed=st.integers(0, 1000),
)
small_problems = st.builds(
    problem,
    fan_in=st.integers(1, 3),
    width=st.integers(1, 9),
    hidden=st.integers(0, 3),
    out=st.integers(1, 4),
    count=st.integers(1, 9),
    kind=st.sampled_from(["mse", "bce", "sdf"]),
    final_sine=st.booleans(),
    weighted=st.booleans(),
    seed=st.integers(0, 1000),
)


def assert_same(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm() + 1e-6


@needs_kernel
@settings(max_examples=40, deadline=None)
@given(case=problems, instruction_set=st.sampled_from(["", "avx2", "plain"]))
def test_the_kernel_equals_the_reference_in_double(case, instruction_set):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIF_KERNEL", instruction_set)
        patch.setattr(kernel, "_WORK_PER_THREAD", 1)
        got = case.results()
    assert all(one.dtype == torch.float32 for one in got)
    assert_same([one.double() for one in got], case.double().results(), 2e-4)


@settings(max_examples=25, deadline=None)
@given(case=small_problems)
def test_the_reference_equals_finite_differences(case):
    case = case.double()
    step = 1e-5

    def beside(sign: int) -> list[Tensor]:
        moved = [row + sign * step * d for row, d in zip(case.rows, case.along)]
        return [case.loss(moved), *loss_and_gradient(case.form, moved, *case.given)[1]]

    slope, *gradient_slope = [(b - a) / (2 * step) for a, b in zip(beside(-1), beside(1))]
    loss, gradient = loss_and_gradient(case.form, case.rows, *case.given)
    torch.testing.assert_close(loss, case.loss(case.rows))
    expected = torch.stack([(g * d).sum(dim=1) for g, d in zip(gradient, case.along)]).sum(dim=0)
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(hessian_product(case.form, case.rows, case.along, *case.given), gradient_slope):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("by_kernel", [pytest.param(True, marks=needs_kernel), False])
@pytest.mark.parametrize(
    ("kind", "final_sine", "weighted"), [("mse", True, False), ("bce", False, True), ("sdf", False, True)]
)
def test_both_results_backpropagate_as_autograd_would(by_kernel, kind, final_sine, weighted, monkeypatch):
    monkeypatch.setenv("MNIF_KERNEL", "" if by_kernel else "torch")
    case = problem(batch=3, kind=kind, final_sine=final_sine, weighted=weighted, expanded=True)

    def outer(case: Problem, ours: bool) -> list[Tensor]:
        """One inner gradient step, and the outer gradient through it."""
        rows = [row.clone().requires_grad_() for row in case.rows]
        if ours:
            loss, gradient = losses_and_gradients(case.form, rows, *case.given)
        else:
            loss = case.loss(rows)
            gradient = list(torch.autograd.grad(loss.sum(), rows, create_graph=True))
        # Only some gradients are used, and the losses of the instances count differently.
        total = (loss * torch.arange(1.0, 4.0)).sum() + sum((g * d).sum() for g, d in zip(gradient[1:], case.along[1:]))
        return list(torch.autograd.grad(total, rows))

    assert_same([one.double() for one in outer(case, True)], outer(case.double(), False), 1e-4)


def test_losses_alone_and_gradients_alone_backpropagate():
    case = problem()
    rows = [row.clone().requires_grad_() for row in case.rows]
    loss, gradient = losses_and_gradients(case.form, rows, *case.given)
    for got, expected in zip(torch.autograd.grad(loss.sum(), rows, retain_graph=True), gradient):
        torch.testing.assert_close(got, expected)
    got = torch.autograd.grad(gradient, rows, case.along, retain_graph=True)
    assert_same(list(got), hessian_product(case.form, case.rows, case.along, *case.given), 1e-5)
    with pytest.raises(MNIFError, match="once only"):
        torch.autograd.grad(gradient, rows, case.along, create_graph=True)


@needs_kernel
def test_results_do_not_depend_on_threads_or_on_the_batch(monkeypatch):
    monkeypatch.setattr(kernel, "_WORK_PER_THREAD", 1)
    monkeypatch.setattr(kernel, "_threads", kernel.num_threads())
    case = problem(batch=3, count=3000, weighted=True)
    results = []
    for threads in (1, 2, 7, 2):
        kernel.set_num_threads(threads)
        results.append(case.results())
    for other in results[1:]:
        assert all(torch.equal(one, another) for one, another in zip(results[0], other))
    assert case.weights is not None
    one = replace(
        case,
        rows=[row[1:2] for row in case.rows],
        along=[row[1:2] for row in case.along],
        points=case.points[1:2],
        targets=case.targets[1:2],
        weights=case.weights[1:2],
    )
    assert all(torch.equal(a, b[1:2]) for a, b in zip(one.results(), results[0]))


@needs_kernel
def test_what_is_not_a_number_stays_with_its_instance():
    case = problem(batch=3, count=70)
    case.rows[1][1, 5] = math.nan
    for result in case.results():
        assert result[1].isnan().any()
        assert result[[0, 2]].isfinite().all()
    case = problem(batch=2, kind="bce", final_sine=False)
    case.rows[-1][:, -1] = torch.tensor([1e4, -1e4])  # logits that would overflow an exponential
    expected = case.double().results()
    for one, other in zip(case.results(), expected):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


@needs_kernel
def test_the_kernel_is_used_and_takes_any_strides(monkeypatch):
    calls = []
    monkeypatch.setattr(kernel, "_call", lambda task, _call=kernel._call: (calls.append(task.mode), _call(task)))
    case = problem(batch=2)
    expected = case.results()
    assert len(calls) == 2
    strided = replace(
        case,
        rows=[row.repeat_interleave(2, dim=1)[:, ::2] for row in case.rows],
        along=[row.t().contiguous().t() for row in case.along],
        points=case.points.transpose(1, 2).contiguous().transpose(1, 2),
    )
    assert all(torch.equal(one, other) for one, other in zip(strided.results(), expected))
    assert len(calls) == 4
    even = replace(case, along=[torch.ones(1).expand_as(row) for row in case.rows])
    whole = replace(case, along=[torch.ones_like(row) for row in case.rows])
    assert all(torch.equal(one, other) for one, other in zip(even.results(), whole.results()))


def test_torch_does_what_the_kernel_does_not_take(monkeypatch):
    def refuse(*args: object, **kw: object) -> None:
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(kernel, "_call", refuse)
    case = problem()
    with kernel.reference_only():
        case.results()
    case.double().results()
    replace(case, targets=case.targets[:1], points=case.points).results()  # targets to be broadcast
    monkeypatch.setenv("MNIF_KERNEL", "torch")
    case.results()
    monkeypatch.delenv("MNIF_KERNEL")
    with pytest.raises(ValueError, match="one of"):
        replace(case, kind="huber").results()
    with pytest.raises(RuntimeError):
        replace(case, points=case.points[:, :2]).results()
