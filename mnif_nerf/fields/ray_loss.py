"""The losses of rendered rays in one pass of the compiled kernel, together with their gradient in the flat weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.fields import kernel
from mnif_nerf.fields.differentiable import inner_contiguous
from mnif_nerf.fields.losses import RayLoss
from mnif_nerf.fields.network import NetworkForm

Reference = Callable[[Sequence[Tensor]], Tensor]
"""The same losses `[B, 3]` of flat weights, by torch."""


def compiled(form: NetworkForm, flat: Sequence[Tensor], loss: RayLoss) -> bool:
    """Whether the kernel can do it, and shall: a gradient is wanted, of weights alone; see `kernel.usable`; and shapes
    fit (it performs no bounds checks)."""
    if not (torch.is_grad_enabled() and any(part.requires_grad for part in flat)):
        return False
    batch, rays, samples = loss.offsets.shape
    tensors = loss.tensors if loss.carve_points.numel() else loss.tensors[:-1]
    expected = [(batch, rays, 3)] * 2 + [(batch, rays)] * 2 + [(batch, rays, samples), (batch, rays, 3), (batch, rays)]
    shapes = [tuple(tensor.shape) for tensor in tensors[:7]]
    return (
        samples <= kernel.MAX_SAMPLES
        and (form.sizes[0], form.sizes[-1]) == (3, 4)
        and shapes == expected
        and loss.carve_points.shape == (batch, loss.carve_points.shape[1], 3)
        and not any(tensor.requires_grad for tensor in tensors)
        and kernel.usable(form, flat, loss.origins.transpose(1, 2), tensors)
    )


def ray_losses(form: NetworkForm, flat: Sequence[Tensor], loss: RayLoss, reference: Reference) -> Tensor:
    """The losses `[B, 3]` of an instance's rays: of colours, opacities and carve points; the caller asked `compiled`.

    They are differentiable in the flat weights. The pass makes the gradient along with the losses, and it is as
    expected where each of them counts `loss.share`; for any other use it is made again.

    Args:
        form: of radiance fields.
        flat: one `[B, out * in + out]` per layer.
        loss: the rays.
        reference: what to differentiate where the gradient shall be differentiated again.
    """
    return _RayLosses.apply(form, loss, reference, *inner_contiguous(flat))


class _RayLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: NetworkForm, loss: RayLoss, reference: Reference, *flat: Tensor) -> Tensor:
        losses, gradient = kernel.ray_losses(form, flat, loss)
        ctx.form, ctx.loss, ctx.reference = form, loss, reference
        ctx.save_for_backward(*flat, *gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, shares: Tensor) -> tuple[Any, ...]:
        form, loss, layers = ctx.form, ctx.loss, len(ctx.form.shapes)
        flat, gradient = ctx.saved_tensors[:layers], ctx.saved_tensors[layers:]
        absent = ~torch.tensor(loss.terms)
        if torch.is_grad_enabled():
            flat = [part if part.requires_grad else part.detach().requires_grad_() for part in flat]
            gradient = torch.autograd.grad(ctx.reference(flat), flat, shares, create_graph=True)
        elif bool(((shares == loss.share) | absent).all()):
            pass  # as it was made
        elif bool(((shares == shares[:, :1]) | absent).all()):
            gradient = [shares[:, :1] / loss.share * part for part in gradient]
        else:
            gradient = kernel.ray_losses(form, flat, loss, shares.contiguous())[1]
        return (None, None, None, *gradient)
