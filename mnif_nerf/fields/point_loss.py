"""A loss at points, together with its gradient in the flat weights, and both of them differentiable.

Meta-learning takes gradient steps on a latent code and then differentiates through them. The gradient of those
gradients is a Hessian-vector product. For SIRENs it is written out here: autograd would keep every activation of every
inner step for it, while this stores only weights and recomputes activations. Other families go through autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import fused, kernel
from mnif_nerf.fields.differentiable import inner_contiguous
from mnif_nerf.fields.evaluate import evaluate
from mnif_nerf.fields.families import forward_reference
from mnif_nerf.fields.heads import DISTANCE_SCALE, distance_from_raw
from mnif_nerf.fields.losses import KINDS, PointLoss
from mnif_nerf.fields.network import NetworkForm, join_flat, split_flat


def point_losses(form: NetworkForm, flat: Sequence[Tensor], points: Tensor, loss: PointLoss) -> Tensor:
    """The losses `[B]` of `losses_and_gradients` alone, as differentiable."""
    if _written_out(form, points, loss):
        return losses_and_gradients(form, flat, points, loss)[0]
    return _losses(evaluate(form, flat, points), loss)


def losses_and_gradients(
    form: NetworkForm, flat: Sequence[Tensor], points: Tensor, loss: PointLoss
) -> tuple[Tensor, list[Tensor]]:
    """Loss of B networks at their points, and its gradient in their flat weights.

    Both results can be differentiated in `flat`: the loss gives the outer gradient of meta-learning, the gradient its
    second-order part. For SIRENs that works once (and no further), and nothing but the arguments is kept for it. Where
    points, targets or weights want a gradient too, or the family is another one, autograd does it all.

    Args:
        form: form of all B networks.
        flat: one `[B, out * in + out]` per layer, as `ModulatedField.flat_weights` yields them.
        points: `[B, in, N]`.
        loss: what to take, and the targets.

    Returns:
        the mean over an instance's points and channels, `[B]`, and its gradient, one tensor like each of `flat`.

    Raises:
        MNIFError: while differentiating those of SIRENs twice.
    """
    if not _written_out(form, points, loss):
        return _by_autograd(form, flat, points, loss)
    results = _PointLosses.apply(form, points, loss, *flat)
    return results[0], list(results[1:])


def _written_out(form: NetworkForm, points: Tensor, loss: PointLoss) -> bool:
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (points, *loss.tensors))
    return form.family == "siren" and not wanted


def _by_autograd(
    form: NetworkForm, flat: Sequence[Tensor], points: Tensor, loss: PointLoss
) -> tuple[Tensor, list[Tensor]]:
    kept = torch.is_grad_enabled()
    with torch.enable_grad():
        flat = [part if kept and part.requires_grad else part.detach().requires_grad_() for part in flat]
        losses = _losses(forward_reference(form, flat, points), loss)
        gradient = torch.autograd.grad(losses.sum(), flat, create_graph=kept)
    return (losses, list(gradient)) if kept else (losses.detach(), list(gradient))


class _PointLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: NetworkForm, points: Tensor, loss: PointLoss, *flat: Tensor) -> tuple[Tensor, ...]:
        losses, gradient = loss_and_gradient(form, flat, points, loss)
        ctx.form, ctx.kind, ctx.distance = form, loss.kind, loss.distance
        ctx.given = len(loss.tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(points, *loss.tensors, *flat, *gradient)
        return losses, *gradient

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *directions: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph; what follows would be lost without a word
            raise MNIFError(
                "The gradient of losses_and_gradients can be differentiated once only; build a third derivative from "
                "forward_reference and autograd."
            )
        form, layers = ctx.form, len(ctx.form.shapes)
        points, *rest = ctx.saved_tensors
        weights = rest[1] if ctx.given > 1 else None
        loss, rest = PointLoss(ctx.kind, rest[0], weights, ctx.distance), rest[ctx.given :]
        flat, gradient = rest[:layers], rest[layers:]
        total: list[Tensor] | None = None
        if any(direction is not None for direction in directions):
            along = [torch.zeros_like(part) if d is None else d for part, d in zip(flat, directions)]
            total = hessian_product(form, flat, along, points, loss)
        if grad_loss is not None:
            scaled = [grad_loss.unsqueeze(1) * part for part in gradient]
            total = scaled if total is None else [a + b for a, b in zip(total, scaled)]
        return (None, None, None, *(total if total is not None else [None] * layers))


def loss_and_gradient(
    form: NetworkForm, flat: Sequence[Tensor], points: Tensor, loss: PointLoss
) -> tuple[Tensor, list[Tensor]]:
    """See `losses_and_gradients`; of SIRENs, and not differentiable."""
    if _compiled(form, flat, points, loss):
        return kernel.loss_and_gradient(form, inner_contiguous(flat), points, loss)

    def by(backend: fused.Fused | None) -> tuple[Tensor, list[Tensor]]:
        if backend is None:
            return loss_and_gradient_reference(form, flat, points, loss)
        with torch.no_grad():
            values = backend.values(form, points, flat)
            return _losses(values, loss), list(backend.gradient(form, points, _derivatives(values, loss)[0], flat))

    def trial(backend: fused.Fused | None) -> list[Tensor]:
        losses, gradient = by(backend)
        return [losses, *gradient]

    return by(fused.backend(form, flat, points, loss.kind, trial, loss.tensors))


def hessian_product(
    form: NetworkForm, flat: Sequence[Tensor], along: Sequence[Tensor], points: Tensor, loss: PointLoss
) -> list[Tensor]:
    """Hessian of every instance's loss in its weights, times `along` (one tensor like each of `flat`); of SIRENs."""
    if _compiled(form, flat, points, loss) and _compiled(form, along, points, loss):
        flat, along = inner_contiguous(flat), inner_contiguous(along)
        return kernel.hessian_product(form, flat, along, points, loss)

    def by(backend: fused.Fused | None) -> list[Tensor]:
        if backend is None:
            return hessian_product_reference(form, flat, along, points, loss)
        with torch.no_grad():
            values = backend.values(form, points, flat)
            seed, curvature = _derivatives(values, loss)
            if not isinstance(curvature, Tensor):
                curvature = torch.full_like(values, curvature)
            return list(backend.second(form, points, seed, flat, along, curvature.expand_as(values))[1])

    others = (*loss.tensors, *along)
    return by(fused.backend(form, flat, points, loss.kind, by, others, twice=True))


def _compiled(form: NetworkForm, flat: Sequence[Tensor], points: Tensor, loss: PointLoss) -> bool:
    """Whether the compiled kernel can do it: what it takes, with shapes that fit (it performs no bounds checks)."""
    if loss.kind not in KINDS or not kernel.usable(form, flat, points, loss.tensors):
        return False
    batch, _, count = points.shape
    expected: list[tuple[int, ...]] = [(batch, form.sizes[-1], count), (batch, count)]
    return [tuple(tensor.shape) for tensor in loss.tensors] == expected[: len(loss.tensors)]


def loss_and_gradient_reference(
    form: NetworkForm, flat: Sequence[Tensor], points: Tensor, loss: PointLoss
) -> tuple[Tensor, list[Tensor]]:
    """`loss_and_gradient` in plain torch, on any device and in any precision."""
    with torch.no_grad():
        layers = split_flat(flat, form.shapes)
        inputs, cosines, values = _forward(*layers, points, form.final_sine)
        losses, (delta, _) = _losses(values, loss), _derivatives(values, loss)
        gradient = []
        for layer in range(len(form.shapes) - 1, -1, -1):
            if cosines[layer] is not None:
                delta = delta * cosines[layer]
            gradient.append(join_flat(delta @ inputs[layer].transpose(1, 2), delta.sum(dim=2)))
            if layer:
                delta = layers[0][layer].transpose(1, 2) @ delta
        return losses, gradient[::-1]


def hessian_product_reference(
    form: NetworkForm, flat: Sequence[Tensor], along: Sequence[Tensor], points: Tensor, loss: PointLoss
) -> list[Tensor]:
    """`hessian_product` in plain torch.

    Forward over reverse (Pearlmutter 1994): the derivative, along a direction of the weights, of the gradient.
    A letter with `_dot` is the derivative of the one without.
    """
    with torch.no_grad():
        (weight, bias), (weight_dot, bias_dot) = split_flat(flat, form.shapes), split_flat(along, form.shapes)
        inputs, cosines, values = _forward(weight, bias, points, form.final_sine)
        last = len(form.shapes) - 1
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
        delta, curvature = _derivatives(values, loss)
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
            result.append(join_flat(product, delta_dot.sum(dim=2)))
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


def _losses(values: Tensor, loss: PointLoss) -> Tensor:
    """Loss `[B]` of values `[B, out, N]`."""
    if loss.kind == "mse":
        each = (values - loss.targets).square()
    elif loss.kind == "bce":
        each = F.binary_cross_entropy_with_logits(values, loss.targets, reduction="none")
    elif loss.kind == "sdf":
        off, near = _distance_errors(values, loss), _color_weights(values, loss)
        colors = near * (values[:, :-1].sigmoid() - loss.targets[:, :-1]).square()
        each = torch.cat([colors, off.abs() / loss.distance.truncation], dim=1)
    else:
        raise ValueError(f"kind {loss.kind!r}; one of {KINDS}")
    return (_scale(values, loss) * each).sum(dim=(1, 2))


def _derivatives(values: Tensor, loss: PointLoss) -> tuple[Tensor, Tensor | float]:
    """First and second derivative of the loss in every value (`[B, out, N]`, or a number for all)."""
    scale = _scale(values, loss)
    if loss.kind == "mse":
        return 2.0 * scale * (values - loss.targets), 2.0 * scale
    if loss.kind == "sdf":
        first, second = _distance_derivatives(values, loss)
        return scale * first, scale * second
    share = values.sigmoid()
    return scale * (share - loss.targets), scale * share * (1.0 - share)


def _distance_derivatives(values: Tensor, loss: PointLoss) -> tuple[Tensor, Tensor]:
    """First and second derivative of each point's loss, kind "sdf", in its values."""
    raw, share = values[:, -1:], values[:, :-1].sigmoid()
    off, slope = share - loss.targets[:, :-1], share * (1.0 - share)
    weight = 2.0 * _color_weights(values, loss)
    distance = -DISTANCE_SCALE / loss.distance.truncation * _distance_errors(values, loss).sign()
    first = torch.cat([weight * off * slope, distance], dim=1)
    second = torch.cat([weight * slope * (slope + off * (1.0 - 2.0 * share)), 0.0 * raw], dim=1)
    return first, second


def _distance_errors(values: Tensor, loss: PointLoss) -> Tensor:
    """What the distances `[B, 1, N]` are too large by, world units; 0 where both lie beyond the truncation."""
    truth, bound = loss.targets[:, -1:], loss.distance.truncation
    error = distance_from_raw(values[:, -1:]) - truth.clamp(-bound, bound)
    # Not a clamp of both: a field that is wrong by more than the truncation has to be led back.
    far = ((truth >= bound) & (error > 0)) | ((truth <= -bound) & (error < 0))
    return error.masked_fill(far, 0.0)


def _color_weights(values: Tensor, loss: PointLoss) -> Tensor:
    """Weight `[B, 1, N]` of every squared error of a colour: 0 away from the surface."""
    near = loss.targets[:, -1:].abs() < loss.distance.near
    return near * (loss.distance.color_weight / max(values.shape[1] - 1, 1))


def _scale(values: Tensor, loss: PointLoss) -> Tensor | float:
    parts = 1 if loss.kind == "sdf" else values.shape[1]
    mean = 1.0 / (parts * values.shape[2])
    return mean if loss.weights is None else mean * loss.weights.unsqueeze(1)
