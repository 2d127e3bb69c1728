"""Values of a batch of small networks, by whatever computes them fastest here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mnif_nerf.fields import kernel
from mnif_nerf.fields.families import forward_reference
from mnif_nerf.fields.network import NetworkForm


def evaluate(form: NetworkForm, flat: Sequence[Tensor], points: Tensor) -> Tensor:
    """Values `[B, out, N]` of B networks at their points.

    On the CPU in float32 the compiled kernel does it for SIRENs, where points need no gradient (see `kernel`); for all
    else, and within `kernel.reference_only()`, torch does.

    Args:
        form: form of all B networks.
        flat: weights, one `[B, out * in + out]` per layer (`mnif_nerf.fields.network`), constants multiplied in.
        points: `[B, in, N]`.
    """
    if kernel.usable(form, flat, points):
        return kernel.run(form, flat, points)
    return forward_reference(form, flat, points)
