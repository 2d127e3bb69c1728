"""The fused Triton kernel against torch's batched products: a part of `gpu.py`. On a CPU, by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_report import Rows, Settings, facts_of, pace, ratio
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import fused
from mnif_nerf.fields.differentiable import differentiable_values
from mnif_nerf.fields.families import forward_reference
from mnif_nerf.fields.fused import Fused
from mnif_nerf.fields.losses import PointLoss
from mnif_nerf.fields.network import NetworkForm, layer_shapes, num_parameters
from mnif_nerf.fields.point_loss import hessian_product_reference

# Name, inputs, width, hidden layers, outputs, final sine, networks, points of each.
SHAPES = (
    ("mnif", 3, 64, 4, 4, False, 32, 1088),
    ("SRN Cars S", 3, 64, 4, 4, False, 8, 524_352),
    ("ShapeNet S", 3, 64, 4, 1, True, 32, 4096),
    ("width 32", 3, 32, 4, 4, False, 32, 4096),
    ("ShapeNet L", 3, 128, 5, 1, False, 32, 4096),
)
_TWICE = "ShapeNet S"
_UNITS = {"values": 1, "gradient": 3, "second": 8}  # products of every layer, in forward passes


def compare(settings: Settings, rows: Rows) -> None:
    """Values, gradients and second derivatives; fails where the kernel does not compile or is wrong."""
    wrong: list[str] = []
    for name, inputs, width, hidden, outputs, sine, batch, count in settings.of(SHAPES, SHAPES[2:3]):
        form = NetworkForm(tuple(layer_shapes(inputs, settings.of(width, 16), settings.of(hidden, 1), outputs)), sine)
        flat, points = _networks(form, settings.of(batch, 1), settings.of(count, 20), settings)
        works = {"values": _values(form, flat, points), "gradient": _gradient(form, flat, points)}
        if name == _TWICE:
            works["second"] = _second(form, flat, points)
        for use, work in works.items():
            choices = settings.of(fused.candidates(form, use == "second"), [Fused(16, 4)])
            wrong += _row(settings, rows, (form, points, f"{name}: {use}"), (use, work, choices))
    if wrong:
        raise MNIFError("; ".join(wrong))


def _networks(form: NetworkForm, batch: int, count: int, settings: Settings) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(settings.seed)
    flat = [
        torch.randn(batch, num_parameters([shape]), generator=generator) * (2.0 / shape[1]) ** 0.5
        for shape in form.shapes
    ]
    points = 2 * torch.rand(batch, form.sizes[0], count, generator=generator) - 1
    return [part.to(settings.device) for part in flat], points.to(settings.device)


def _values(form: NetworkForm, flat: Sequence[Tensor], points: Tensor) -> fused.Work:
    def work(backend: Fused | None) -> list[Tensor]:
        with torch.no_grad():
            if backend is None:
                return [forward_reference(form, flat, points)]
            return [differentiable_values(backend, form, points, flat)]

    return work


def _gradient(form: NetworkForm, flat: Sequence[Tensor], points: Tensor) -> fused.Work:
    def work(backend: Fused | None) -> list[Tensor]:
        parts = [part.detach().requires_grad_() for part in flat]
        if backend is None:
            values = forward_reference(form, parts, points)
        else:
            values = differentiable_values(backend, form, points, parts)
        return list(torch.autograd.grad(values, parts, torch.ones_like(values)))

    return work


def _second(form: NetworkForm, flat: Sequence[Tensor], points: Tensor) -> fused.Work:
    along = [0.1 * part.flip(0) for part in flat]
    loss = PointLoss("mse", torch.zeros(len(points), form.sizes[-1], points.shape[2], device=points.device))

    def work(backend: Fused | None) -> list[Tensor]:
        if backend is None:
            return hessian_product_reference(form, flat, along, points, loss)
        with torch.no_grad():
            values = backend.values(form, points, flat)
            scale = 2.0 / (values.shape[1] * values.shape[2])
            curvature = torch.full_like(values, scale)
            return list(backend.second(form, points, scale * values, flat, along, curvature)[1])

    return work


def _row(settings: Settings, rows: Rows, about: Any, todo: Any) -> list[str]:
    """The fastest choice against torch; returns what went wrong."""
    (form, points, title), (use, work, choices) = about, todo
    seconds = settings.of(0.4, 0.001)
    wanted, torchs = work(None), pace(_repeated(lambda: work(None)), settings.device, seconds, warm=settings.of(2, 0))
    best, wrong, notes = None, [], []
    for choice in choices:
        size = f"{choice.block} points, {choice.warps} warps"
        try:
            found = work(choice)
            took = pace(_repeated(lambda choice=choice: work(choice)), settings.device, seconds, warm=settings.of(2, 0))
        except torch.cuda.OutOfMemoryError:
            notes.append(f"{size}: no memory")
            continue
        except Exception as error:  # whatever the compiler raises: the other shapes count all the same
            wrong.append(f"{title}, {size}: {type(error).__name__} {str(error).strip()[:120]}")
            continue
        off = max(float((a - b).norm() / b.norm().clamp(min=1e-20)) for a, b in zip(found, wanted))
        notes.append(f"{size}: {1e3 * took:.3g} ms, off by {off:.1e}")
        if not off < fused.tolerance():
            wrong.append(f"{title}, {size}: off by {off:.1e}")
        best = took if best is None else min(best, took)
    if best is not None:
        gflop = _UNITS[use] * 2e-9 * points.shape[0] * points.shape[2] * sum(a * b for a, b in form.shapes)
        peak = facts_of(settings, "peaks").get("gflops")
        if peak:
            notes.append(f"{100 * gflop / best / peak:.2g} % of the matrix peak")
        rows.add(title, 1e3 * best, "ms", 1e3 * torchs, ratio(torchs, best), "; ".join(notes))
    return wrong


def _repeated(work: Callable[[], Any]) -> Callable[[int], None]:
    def steps(count: int) -> None:
        for _ in range(count):
            work()

    return steps
