"""A loss at points, together with its gradient in the weights, and both of them differentiable.

Meta-learning takes gradient steps on a latent code and then differentiates through them. The gradient of those
gradients is a Hessian-vector product, which is written out here: autograd would keep every activation of every inner
step for it, while this keeps the weights alone and computes activations again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import kernel
from mnif_nerf.fields.siren import split_rows

KINDS = ("mse", "bce")


def pointwise_loss(
    rows: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    points: Tensor,
    targets: Tensor,
    kind: str = "mse",
    final_sine: bool = False,
    weights: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Loss of B networks at their points, and its gradient in their weights.

    Both results can be differentiated once in `rows` (and no further): the loss gives the outer gradient of
    meta-learning, the gradient its second-order part. Nothing but the arguments is kept for that.

    Args:
        rows: one `[B, out * in + out]` per layer, as `MixtureField.mix_rows` yields them.
        shapes: `(out, in)` of every layer.
        points: `[B, in, N]`.
        targets: `[B, out, N]`; for "bce" in [0, 1].
        kind: "mse", the squared error, or "bce", the binary cross entropy of logits.
        final_sine: whether the output layer is a sine.
        weights: `[B, N]` of mean 1 per instance, or None.

    Returns:
        the mean over an instance's points and channels, `[B]`, and its gradient, one tensor like each of `rows`.

    Raises:
        MNIFError: while differentiating them twice.
    """
    results = _PointwiseLoss.apply(tuple(shapes), kind, final_sine, points, targets, weights, *rows)
    return results[0], list(results[1:])


class _PointwiseLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        shapes: tuple[tuple[int, int], ...],
        kind: str,
        final_sine: bool,
        points: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        *rows: Tensor,
    ) -> tuple[Tensor, ...]:
        loss, gradient = loss_and_gradient(rows, shapes, points, targets, kind, final_sine, weights)
        ctx.settings = (shapes, kind, final_sine)
        ctx.has_weights = weights is not None
        ctx.set_materialize_grads(False)
        kept = [points, targets, *([] if weights is None else [weights]), *rows, *gradient]
        ctx.save_for_backward(*kept)
        return loss, *gradient

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *directions: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph; what follows would be lost without a word
            raise MNIFError(
                "The gradient of pointwise_loss can be differentiated once only; build a third derivative from "
                "siren_forward_rows and autograd."
            )
        shapes, kind, final_sine = ctx.settings
        points, targets, *rest = ctx.saved_tensors
        weights = rest.pop(0) if ctx.has_weights else None
        rows, gradient = rest[: len(shapes)], rest[len(shapes) :]
        total: list[Tensor] | None = None
        if any(direction is not None for direction in directions):
            along = [torch.zeros_like(row) if d is None else d for row, d in zip(rows, directions)]
            total = hessian_product(rows, along, shapes, points, targets, kind, final_sine, weights)
        if grad_loss is not None:
            scaled = [grad_loss.unsqueeze(1) * part for part in gradient]
            total = scaled if total is None else [a + b for a, b in zip(total, scaled)]
        return (None,) * 6 + tuple(total if total is not None else [None] * len(shapes))


def loss_and_gradient(
    rows: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    points: Tensor,
    targets: Tensor,
    kind: str,
    final_sine: bool,
    weights: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """See `pointwise_loss`; not differentiable."""
    if _compiled(rows, shapes, points, targets, kind, weights):
        sizes = (points.shape[1], *(out for out, _ in shapes))
        loss = kernel.PointLoss(kind, targets, weights)
        return kernel.loss_and_gradient(sizes, final_sine, kernel.inner_contiguous(rows), points, loss)
    return loss_and_gradient_reference(rows, shapes, points, targets, kind, final_sine, weights)


def hessian_product(
    rows: Sequence[Tensor],
    along: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    points: Tensor,
    targets: Tensor,
    kind: str,
    final_sine: bool,
    weights: Tensor | None,
) -> list[Tensor]:
    """Hessian of every instance's loss in its weights, times `along` (one tensor like each of `rows`)."""
    if _compiled(rows, shapes, points, targets, kind, weights) and _compiled(
        along, shapes, points, targets, kind, weights
    ):
        sizes = (points.shape[1], *(out for out, _ in shapes))
        loss = kernel.PointLoss(kind, targets, weights)
        rows, along = kernel.inner_contiguous(rows), kernel.inner_contiguous(along)
        return kernel.hessian_product(sizes, final_sine, rows, along, points, loss)
    return hessian_product_reference(rows, along, shapes, points, targets, kind, final_sine, weights)


def _compiled(
    rows: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    points: Tensor,
    targets: Tensor,
    kind: str,
    weights: Tensor | None,
) -> bool:
    """Whether the compiled kernel can do it: what it takes, with shapes that fit (it reads them unseen)."""
    others = [targets] if weights is None else [targets, weights]
    if kind not in KINDS or points.ndim != 3 or not kernel.usable([*rows, *others], points):
        return False
    batch, fan_in, count = points.shape
    sizes = (fan_in, *(out for out, _ in shapes))
    expected: list[tuple[int, ...]] = [(batch, out * fan_in + out) for fan_in, out in pairwise(sizes)]
    expected += [(batch, sizes[-1], count)] if weights is None else [(batch, sizes[-1], count), (batch, count)]
    return (
        2 <= len(shapes) <= kernel.MAX_LAYERS
        and [(fan_in, out) for out, fan_in in shapes] == list(pairwise(sizes))
        and [tuple(tensor.shape) for tensor in (*rows, *others)] == expected
    )


def loss_and_gradient_reference(
    rows: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    points: Tensor,
    targets: Tensor,
    kind: str,
    final_sine: bool,
    weights: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """`loss_and_gradient` in plain torch, on any device and in any precision."""
    with torch.no_grad():
        layers = split_rows(rows, shapes)
        inputs, cosines, values = _forward(*layers, points, final_sine)
        loss, delta, _ = _loss(values, targets, kind, weights)
        gradient = []
        for layer in range(len(shapes) - 1, -1, -1):
            if cosines[layer] is not None:
                delta = delta * cosines[layer]
            gradient.append(_as_row(delta @ inputs[layer].transpose(1, 2), delta.sum(dim=2)))
            if layer:
                delta = layers[0][layer].transpose(1, 2) @ delta
        return loss, gradient[::-1]


def hessian_product_reference(
    rows: Sequence[Tensor],
    along: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    points: Tensor,
    targets: Tensor,
    kind: str,
    final_sine: bool,
    weights: Tensor | None,
) -> list[Tensor]:
    """`hessian_product` in plain torch.

    Forward over reverse (Pearlmutter 1994): the derivative, along a direction of the weights, of the gradient.
    A letter with `_dot` is the derivative of the one without.
    """
    with torch.no_grad():
        (weight, bias), (weight_dot, bias_dot) = split_rows(rows, shapes), split_rows(along, shapes)
        inputs, cosines, values = _forward(weight, bias, points, final_sine)
        last = len(shapes) - 1
        inputs_dot: list[Tensor | None] = [None]
        pre_dot = []
        for layer in range(last + 1):
            change = torch.baddbmm(bias_dot[layer], weight_dot[layer], inputs[layer])
            hidden_dot = inputs_dot[layer]
            if hidden_dot is not None:
                change = torch.baddbmm(change, weight[layer], hidden_dot)
            pre_dot.append(change)
            cosine = cosines[layer]
            inputs_dot.append(change if cosine is None else cosine * change)
        _, delta, curvature = _loss(values, targets, kind, weights)
        values_dot = inputs_dot[-1]
        assert values_dot is not None
        delta_dot = curvature * values_dot
        result = []
        for layer in range(last, -1, -1):
            cosine = cosines[layer]
            if cosine is not None:
                # d(delta cos u) = delta_dot cos u - delta sin u u_dot, and sin u is this layer's value.
                sine = inputs[layer + 1] if layer < last else values
                delta_dot = delta_dot * cosine - delta * sine * pre_dot[layer]
                delta = delta * cosine
            product = delta_dot @ inputs[layer].transpose(1, 2)
            hidden_dot = inputs_dot[layer]
            if hidden_dot is not None:
                product = product + delta @ hidden_dot.transpose(1, 2)
            result.append(_as_row(product, delta_dot.sum(dim=2)))
            if layer:
                back, back_dot = weight[layer].transpose(1, 2), weight_dot[layer].transpose(1, 2)
                delta_dot = back @ delta_dot + back_dot @ delta
                delta = back @ delta
        return result[::-1]


def _forward(
    weights: Sequence[Tensor], biases: Sequence[Tensor], points: Tensor, final_sine: bool
) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
    """Inputs of every layer `[B, in, N]`, the cosine of every pre-activation (None where linear), the values."""
    hidden, inputs, cosines = points, [], []
    for layer, (weight, bias) in enumerate(zip(weights, biases)):
        inputs.append(hidden)
        hidden = torch.baddbmm(bias, weight, hidden)
        if layer < len(weights) - 1 or final_sine:
            cosines.append(torch.cos(hidden))
            hidden = torch.sin(hidden)
        else:
            cosines.append(None)
    return inputs, cosines, hidden


def _loss(values: Tensor, targets: Tensor, kind: str, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | float]:
    """Loss `[B]`, and its first and second derivative in every value (`[B, out, N]`, or a number for both)."""
    scale: Tensor | float = 1.0 / (values.shape[1] * values.shape[2])
    if weights is not None:
        scale = scale * weights.unsqueeze(1)
    if kind == "mse":
        error = values - targets
        return (scale * error.square()).sum(dim=(1, 2)), 2.0 * scale * error, 2.0 * scale
    if kind == "bce":
        share = values.sigmoid()
        each = F.binary_cross_entropy_with_logits(values, targets, reduction="none")
        return (scale * each).sum(dim=(1, 2)), scale * (share - targets), scale * share * (1.0 - share)
    raise ValueError(f"kind {kind!r}; one of {KINDS}")


def _as_row(weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([weight.flatten(1), bias], dim=1)
