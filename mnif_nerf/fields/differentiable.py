"""A kernel of SIRENs in its place in autograd: values that can be differentiated twice, in the flat weights.

Nothing but the arguments is kept for a gradient; kernels compute activations again. A third derivative is torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mnif_nerf.fields.families import forward_reference
from mnif_nerf.fields.network import NetworkForm


class Backend(Protocol):
    """What computes. Flat weights are one `[B, out * in + out]` per layer, the numbers of an instance in a row."""

    def values(self, form: NetworkForm, points: Tensor, flat: Sequence[Tensor]) -> Tensor:
        """Values `[B, out, N]` at points `[B, in, N]` of any strides."""
        ...

    def gradient(
        self, form: NetworkForm, points: Tensor, grad_out: Tensor, flat: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Gradient of the values times `grad_out` `[B, out, N]`, one tensor like each of `flat`."""
        ...

    def second(
        self, form: NetworkForm, points: Tensor, grad_out: Tensor, flat: Sequence[Tensor], along: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Slopes, as the weights move along `along` (tensors like `flat`), of the values `[B, out, N]` and of that
        gradient (tensors like `flat`)."""
        ...


def differentiable_values(backend: Backend, form: NetworkForm, points: Tensor, flat: Sequence[Tensor]) -> Tensor:
    """Values `[B, out, N]` by a backend.

    Args:
        backend: what computes.
        form: form of all B networks.
        points: `[B, in, N]`; they have no gradient.
        flat: one `[B, out * in + out]` per layer.
    """
    # Before autograd sees them: a copy made inside the function could not be differentiated a second time.
    flat = inner_contiguous(flat)
    if torch.is_grad_enabled() and any(part.requires_grad for part in flat):
        return _Siren.apply(backend, form, points, *flat)
    return backend.values(form, points, flat)


class _Siren(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: Backend, form: NetworkForm, points: Tensor, *flat: Tensor) -> Tensor:
        ctx.backend, ctx.form = backend, form
        ctx.save_for_backward(points, *flat)
        return backend.values(form, points, flat)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        points, *flat = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: someone will differentiate this gradient
            gradient = _SirenGradient.apply(ctx.backend, ctx.form, points, grad_out, *flat)
        else:
            gradient = ctx.backend.gradient(ctx.form, points, grad_out, flat)
        return (None, None, None, *gradient)


class _SirenGradient(torch.autograd.Function):
    """The gradient, in the flat weights, of the values times `grad_out`; differentiable in both."""

    @staticmethod
    def forward(
        ctx: Any, backend: Backend, form: NetworkForm, points: Tensor, grad_out: Tensor, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.backend, ctx.form = backend, form
        ctx.save_for_backward(points, grad_out, *flat)
        return backend.gradient(form, points, grad_out, flat)

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Any, ...]:
        points, grad_out, *flat = ctx.saved_tensors
        if torch.is_grad_enabled():  # a third derivative: torch's own
            return (None, None, None, *_differentiable_second(ctx.form, points, grad_out, flat, along))
        # The sum over (gradient times `along`) is also (slope of the values along it) times grad_out.
        slopes, product = ctx.backend.second(ctx.form, points, grad_out, flat, along)
        return (None, None, None, slopes, *product)


def _differentiable_second(
    form: NetworkForm, points: Tensor, grad_out: Tensor, flat: Sequence[Tensor], along: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """What `_SirenGradient.backward` gives, by torch, which can differentiate it again and again."""
    # Views, so that they are inputs of the graph below whether or not anyone wants their gradient.
    given = [tensor.view_as(tensor) if tensor.requires_grad else tensor for tensor in (grad_out, *flat)]
    grad_out, *flat = [tensor if tensor.requires_grad else tensor.detach().requires_grad_() for tensor in given]
    values = forward_reference(form, flat, points)
    gradient = torch.autograd.grad(values, flat, grad_out, create_graph=True)
    return torch.autograd.grad(gradient, (grad_out, *flat), along, create_graph=True, allow_unused=True)


def inner_contiguous(flat: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same, copied where the numbers of one instance do not lie in a row (instances may lie anywhere)."""
    return tuple(part if part.stride(1) == 1 or part.shape[1] == 1 else part.contiguous() for part in flat)
