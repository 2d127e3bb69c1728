"""Values of a batch of small networks, by whatever computes them fastest here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnif_nerf.fields import fused, kernel
from mnif_nerf.fields.differentiable import differentiable_values
from mnif_nerf.fields.families import forward_reference
from mnif_nerf.fields.network import NetworkForm


def evaluate(form: NetworkForm, flat: Sequence[Tensor], points: Tensor) -> Tensor:
    """Values `[B, out, N]` of B networks at their points.

    For SIRENs in float32 whose points need no gradient, the compiled kernel does it on the CPU (see `kernel`), and on
    CUDA the fused one where it is the faster there (see `fused`); for all else, and within `kernel.reference_only()`,
    torch does.

    Args:
        form: form of all B networks.
        flat: weights, one `[B, out * in + out]` per layer (`mnif_nerf.fields.network`), constants multiplied in.
        points: `[B, in, N]`.
    """
    if kernel.usable(form, flat, points):
        return kernel.run(form, flat, points)
    if points.is_cuda:
        return _on_cuda(form, flat, points)
    return forward_reference(form, flat, points)


@dataclass(frozen=True)
class Networks:
    """B networks as one function of points, for what can do more with them than call it.

    Attributes:
        form, flat: see `evaluate`.
    """

    form: NetworkForm
    flat: Sequence[Tensor]

    def __call__(self, points: Tensor) -> Tensor:
        """`evaluate`."""
        return evaluate(self.form, self.flat, points)


def _on_cuda(form: NetworkForm, flat: Sequence[Tensor], points: Tensor) -> Tensor:
    wanted = torch.is_grad_enabled() and any(part.requires_grad for part in flat)

    def trial(backend: fused.Fused | None) -> list[Tensor]:
        """Values, and their gradient where that is wanted, apart from any graph."""
        parts = [part.detach().requires_grad_(wanted) for part in flat]
        values = _by(backend, form, parts, points)
        return [values, *torch.autograd.grad(values, parts, torch.ones_like(values))] if wanted else [values]

    chosen = fused.backend(form, flat, points, "gradient" if wanted else "values", trial)
    return _by(chosen, form, flat, points)


def _by(backend: fused.Fused | None, form: NetworkForm, flat: Sequence[Tensor], points: Tensor) -> Tensor:
    if backend is None:
        return forward_reference(form, flat, points)
    return differentiable_values(backend, form, points, flat)
