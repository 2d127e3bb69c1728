"""The fused kernel on a card, against torch in double precision; skipped, saying so, where there is no CUDA device."""

from __future__ import annotations

import pytest
import torch
from fused_checks import CASES, made
from torch import Tensor

from mnif_nerf.fields import evaluate, fused
from mnif_nerf.fields.differentiable import differentiable_values
from mnif_nerf.fields.families import forward_reference
from mnif_nerf.fields.fused import Fused
from mnif_nerf.fields.network import NetworkForm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


# Few: a card's compiler takes seconds for each kernel, and `benchmarks/gpu_fused.py` compares the methods' own shapes.
CHOSEN = [(CASES[0], False), (CASES[2], True), (CASES[4], True)]


def results(backend: Fused | None, flat: list[Tensor], points: Tensor, seed: Tensor, form: NetworkForm) -> list[Tensor]:
    """Values, gradients, and gradients of the gradients' squares."""
    parts = [part.clone().requires_grad_() for part in flat]
    if backend is None:
        values = forward_reference(form, parts, points)
    else:
        values = differentiable_values(backend, form, points, parts)
    first = torch.autograd.grad(values, parts, seed, create_graph=True)
    second = torch.autograd.grad(sum(part.square().sum() for part in first), parts)
    return [part.detach().double() for part in (values, *first, *second)]


@pytest.mark.parametrize(("case", "tf32"), CHOSEN)
def test_the_fused_kernel_equals_torch(case: tuple, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    form, flat, points, seed = made(case)
    wanted = results(None, [part.double() for part in flat], points.double(), seed.double(), form)
    (backend,) = fused.candidates(form, twice=True)
    found = results(backend, [part.cuda() for part in flat], points.cuda(), seed.cuda(), form)
    for mine, reference in zip(found, wanted, strict=True):
        assert (mine.cpu() - reference).norm() <= (3e-2 if tf32 else 1e-4) * reference.norm() + 1e-6


def test_evaluation_measures_once_and_agrees() -> None:
    form, flat, points, _ = made((64, 2, 3, 4, 4, 4096, False))
    flat, points = [part.cuda().requires_grad_() for part in flat], points.cuda()
    with fused.forgotten():
        values = [evaluate.evaluate(form, flat, points) for _ in range(2)]
        assert len(fused._chosen) == 1
    torch.testing.assert_close(values[0], values[1])
    off = (values[0] - forward_reference(form, flat, points)).norm() / values[0].norm()
    assert float(off.detach()) < 3e-2
