"""The Triton kernel against torch, by Triton's interpreter: run by `test_fused.py`, with TRITON_INTERPRET=1 set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mnif_nerf.fields import fused, point_loss
from mnif_nerf.fields.differentiable import differentiable_values
from mnif_nerf.fields.families import forward_reference
from mnif_nerf.fields.fused import Fused
from mnif_nerf.fields.losses import PointLoss
from mnif_nerf.fields.network import NetworkForm, layer_shapes, num_parameters

# Width, hidden layers, inputs, outputs, networks, points, whether the last layer is a sine; blocks are of 16 or 32.
CASES = [
    (20, 2, 3, 4, 3, 37, False),
    (32, 1, 2, 3, 1, 48, True),
    (64, 2, 3, 1, 1, 33, True),
    (64, 1, 3, 7, 3, 16, False),
    (128, 1, 1, 1, 1, 21, False),
    (32, 0, 4, 2, 3, 5, True),
]
SMALL = [(20, 1, 3, 4, 3, 18, False), (32, 1, 2, 3, 1, 20, True)]


def made(case: tuple) -> tuple[NetworkForm, list[Tensor], Tensor, Tensor]:
    """Form, flat weights, points and a seed for the gradient."""
    width, hidden, inputs, outputs, batch, count, sine = case
    generator = torch.Generator().manual_seed(width + count)
    form = NetworkForm(tuple(layer_shapes(inputs, width, hidden, outputs)), sine)
    flat = [
        torch.randn(batch, num_parameters([shape]), generator=generator) * (1.5 / shape[1] ** 0.5)
        for shape in form.shapes
    ]
    points = 2 * torch.rand(batch, count, inputs, generator=generator).transpose(1, 2) - 1  # not contiguous
    return form, flat, points, torch.randn(batch, outputs, count, generator=generator)


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal to what another order of sums leaves, relative to the largest number."""
    scale = wanted.abs().max().clamp(min=1e-6)
    torch.testing.assert_close(found / scale, wanted / scale, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("case", "backend"), [*((case, Fused(32, 4, 2)) for case in CASES[1:]), (CASES[0], Fused(16, 4, 1))]
)
def test_values_and_gradients(case: tuple, backend: Fused) -> None:
    form, flat, points, seed = made(case)
    wanted_flat = [part.clone().requires_grad_() for part in flat]
    wanted = forward_reference(form, wanted_flat, points)
    gradients = torch.autograd.grad(wanted, wanted_flat, seed)
    found_flat = [part.clone().requires_grad_() for part in flat]
    found = differentiable_values(backend, form, points, found_flat)
    close(found, wanted)
    for mine, reference in zip(torch.autograd.grad(found, found_flat, seed), gradients, strict=True):
        close(mine, reference)
    with torch.no_grad():
        close(differentiable_values(backend, form, points, flat), wanted.detach())


@pytest.mark.parametrize("case", [SMALL[0], *CASES[2:]])
def test_gradients_of_gradients(case: tuple) -> None:
    form, flat, points, seed = made(case)
    found = []
    for backend in (None, Fused(16, 4, 1)):  # one program adds up several blocks
        parts = [part.clone().requires_grad_() for part in flat]
        weight = seed.clone().requires_grad_()
        values = (
            forward_reference(form, parts, points)
            if backend is None
            else differentiable_values(backend, form, points, parts)
        )
        gradients = torch.autograd.grad(values, parts, weight, create_graph=True)
        size = sum((gradient.square() * (1 + index)).sum() for index, gradient in enumerate(gradients))
        found.append(torch.autograd.grad(size, [weight, *parts]))
    for wanted, mine in zip(*found, strict=True):
        close(mine, wanted)


@pytest.mark.parametrize(
    ("case", "kind", "weighted"),
    [(SMALL[0], "mse", False), (SMALL[1], "mse", True), (SMALL[1], "bce", False), (SMALL[0], "sdf", True)],
)
def test_losses_and_hessian_products(case: tuple, kind: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`point_loss` by the kernel as it is dispatched on CUDA."""
    form, flat, points, seed = made(case)
    targets = torch.rand(seed.shape, generator=torch.Generator().manual_seed(1))
    weights = torch.rand(seed.shape[0], seed.shape[2], generator=torch.Generator().manual_seed(2)) if weighted else None
    loss = PointLoss(kind, targets, weights)
    along = [part.flip(0) * 0.1 for part in flat]
    with monkeypatch.context() as patched:
        patched.setattr(point_loss, "_compiled", lambda *_: False)
        patched.setattr(fused, "backend", lambda *_, **__: Fused(16, 4, 2))
        losses, gradient = point_loss.loss_and_gradient(form, flat, points, loss)
        product = point_loss.hessian_product(form, flat, along, points, loss)
    wanted_losses, wanted_gradient = point_loss.loss_and_gradient_reference(form, flat, points, loss)
    close(losses, wanted_losses)
    for mine, reference in zip(gradient, wanted_gradient, strict=True):
        close(mine, reference)
    wanted_product = point_loss.hessian_product_reference(form, flat, along, points, loss)
    for mine, reference in zip(product, wanted_product, strict=True):
        close(mine, reference)


def test_the_measurement_takes_the_kernel_where_it_is_faster() -> None:
    """The choice itself, of real work; torch has the slower clock."""
    form, flat, points, _ = made(SMALL[0])

    def work(backend: Fused | None) -> list[Tensor]:
        if backend is None:
            return [forward_reference(form, flat, points)]
        return [differentiable_values(backend, form, points, flat)]

    turns = iter([3.0, 2.0, 1.0])
    choices = [Fused(16, 4), Fused(32, 4)]
    assert fused.fastest(choices, work, lambda trial: (trial(), next(turns))[1]) == choices[1]
