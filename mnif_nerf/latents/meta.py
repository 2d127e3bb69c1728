"""Meta-learning: latent codes by a few gradient steps from zero (CAVIA with Meta-SGD rates, the paper's stage 1).

    z_0 = 0,    z_{k+1} = z_k - inner_lr * rate ⊙ ∇_z L(z_k),    k = 0 .. K - 1

L is the loss of one instance, a mean over its points. Codes of a batch are adapted together and their losses are
summed, never averaged, so a code does not depend on which others, or how many, share its batch. The authors average
over the batch: their step with rate r in batches of B is `inner_lr = 1 / B` here, with the same r.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.heads import DISTANCE_SCALE
from mnif_nerf.fields.losses import DistanceLoss, PointLoss
from mnif_nerf.fields.modulations.base import ModulatedField
from mnif_nerf.fields.point_loss import losses_and_gradients, point_losses
from mnif_nerf.rendering.batch import PointBatch


@dataclass(frozen=True)
class MetaConfig:
    """Settings of the inner loop.

    Attributes:
        inner_steps: K.
        inner_lr: factor on every rate; 1/32 is the authors' step at their batch of 32.
        first_order: take gradients of the adapted codes' loss as if the codes were constant: cheaper, less exact.
    """

    inner_steps: int = 3
    inner_lr: float = 1.0 / 32
    first_order: bool = False

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise MNIFError(f"`inner_steps` {self.inner_steps}: the inner loop needs at least one step (the paper: 3).")
        if not 0 < self.inner_lr < float("inf"):
            raise MNIFError(f"`inner_lr` {self.inner_lr}: must be a positive number (the authors': 1/32).")


class InnerRates(nn.Module):
    """One learned rate per latent dimension (Meta-SGD); kept in [0, 1] in use, as by the authors.

    Args:
        dim: D.
        low, high: between which the rates start, uniformly.
        seed: random seed of the start.
    """

    def __init__(self, dim: int, low: float = 0.005, high: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.rates = nn.Parameter(low + (high - low) * torch.rand(dim, generator=generator))

    def forward(self) -> Tensor:
        """Rates `[D]` in [0, 1]."""
        return self.rates.clamp(0.0, 1.0)


class Objective(Protocol):
    """What the inner loop descends."""

    def __call__(self, latents: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
        """Loss of every instance `[B]` and its gradient `[B, D]` at codes `[B, D]` that require a gradient.

        With `create_graph`, the gradient can be differentiated in the codes and in the field's parameters.
        """
        ...


_DISTANCE = DistanceLoss()


class PointObjective:
    """The loss of a field at given points; of SIRENs, its second derivative needs no more memory than its first.

    It is the mean squared error; of a field whose head is "logit", the binary cross entropy; of one whose head is
    "distance", the truncated error of distances; and of "sdf" that and the colours'.

    Args:
        field: a field of any family and modulation.
        batch: points of B instances and their targets in [-1, 1] (of solids: -1 outside, +1 inside, or distances in
            half cells up to `batch.cut`; of the head "sdf": see `PointLoss`).
        distance: what the loss of distances leaves to choose.
    """

    def __init__(self, field: ModulatedField, batch: PointBatch, distance: DistanceLoss = _DISTANCE) -> None:
        self.field, self.points = field, batch.points
        if field.spec.head == "sdf":
            self._loss = PointLoss("sdf", batch.targets, batch.weights, distance)
        elif field.spec.head == "distance":
            # A raw unit, here half a cell, is a DISTANCE_SCALE of the kind "sdf", which counts outwards.
            truncated = DistanceLoss(DISTANCE_SCALE * batch.cut, 0.0, 0.0)
            self._loss = PointLoss("sdf", -DISTANCE_SCALE * batch.targets, batch.weights, truncated)
        elif field.spec.head == "logit":
            self._loss = PointLoss("bce", 0.5 * (batch.targets.clamp(-1.0, 1.0) + 1.0), batch.weights)
        else:
            self._loss = PointLoss("mse", batch.targets, batch.weights)

    @property
    def kind(self) -> str:
        """ "mse", "bce" or "sdf"."""
        return self._loss.kind

    def losses(self, latents: Tensor) -> Tensor:
        """Loss of every instance `[B]`, differentiable in codes and parameters."""
        return point_losses(self.field.form, self.field.flat_weights(latents), self.points, self._loss)

    def __call__(self, latents: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        flat = self.field.flat_weights(latents)
        # A fixed first layer hangs on no code.
        learned = [part for part in flat if part.requires_grad]
        with torch.set_grad_enabled(create_graph):
            loss, weight_gradient = losses_and_gradients(self.field.form, flat, self.points, self._loss)
        wanted = [part for part, own in zip(weight_gradient, flat) if own.requires_grad]
        (gradient,) = torch.autograd.grad(learned, latents, wanted, create_graph=create_graph)
        return loss, gradient


class LossObjective:
    """Any loss that autograd can differentiate, as of rendered rays.

    Args:
        losses: codes `[B, D]` to losses `[B]`, each depending on its own code only.
        twice: the same in a way that suits a gradient which is differentiated again; `losses` where None.
    """

    def __init__(self, losses: Callable[[Tensor], Tensor], twice: Callable[[Tensor], Tensor] | None = None) -> None:
        self.losses, self.twice = losses, twice or losses

    def __call__(self, latents: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        loss = (self.twice if create_graph else self.losses)(latents)
        (gradient,) = torch.autograd.grad(loss.sum(), latents, create_graph=create_graph)
        return loss, gradient


def adapt(
    objective: Objective, count: int, rates: Tensor, config: MetaConfig | None = None, create_graph: bool = False
) -> Tensor:
    """Codes `[B, D]` after the inner loop from zero.

    Args:
        objective: what to descend.
        count: B.
        rates: `[D]`, of `InnerRates`.
        config: number and size of the steps.
        create_graph: whether the codes can be differentiated in the rates and the field's parameters (through
            every inner step, or, with `first_order`, in the rates alone).

    Raises:
        MNIFError: a code is not finite any more (not asked on a GPU where codes can be differentiated).
    """
    config = config or MetaConfig()
    second_order = create_graph and not config.first_order
    latents = rates.new_zeros(count, len(rates)).requires_grad_(True)
    with torch.enable_grad():
        for _ in range(config.inner_steps):
            _, gradient = objective(latents, second_order)
            step = config.inner_lr * (rates if create_graph else rates.detach()) * gradient
            latents = latents - step
            if not create_graph:
                latents = latents.detach().requires_grad_(True)
    # A GPU would wait for the answer in every step of training; there, `Stage1Trainer` looks at times.
    if not (create_graph and latents.is_cuda) and not bool(torch.isfinite(latents).all()):
        raise MNIFError(
            "the inner loop diverged (a latent code is not finite); lower `inner_lr` "
            f"(now {config.inner_lr:g}) or the learning rate of the networks."
        )
    return latents if create_graph else latents.detach()
