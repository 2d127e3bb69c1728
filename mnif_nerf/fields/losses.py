"""What a loss at points is made of: its kind, its targets and weights, and what a kind leaves to choose."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# In the order of `enum loss` in _siren_kernel.c, which has another one before them.
KINDS = ("mse", "bce", "sdf")


@dataclass(frozen=True)
class DistanceLoss:
    """How errors of signed distances and of colours are weighed (kind "sdf"). Lengths are in world units.

    Attributes:
        truncation: distances count up to here; what is farther has to be at least as far, on its side.
        near: colours count where the true distance is smaller than this.
        color_weight: of the mean squared error of the three colours; the distance's, in units of `truncation`, has 1.
    """

    truncation: float = 0.03
    near: float = 0.02
    color_weight: float = 20.0


@dataclass(frozen=True)
class PointLoss:
    """A loss per instance: the mean, over points and outputs, of how far values lie from targets.

    Attributes:
        kind: "mse", the squared error; "bce", the binary cross entropy of logits; or "sdf", the truncated error of
            signed distances and, near the surface, that of colours (the mean over points of both together).
        targets: `[B, out, N]`, any strides; for "bce" in [0, 1]; for "sdf" colours in [0, 1] (where there are any)
            and, last, signed distances in world units, positive outside.
        weights: `[B, N]` of mean 1 per instance, any strides, or None.
        distance: what "sdf" leaves to choose.
    """

    kind: str
    targets: Tensor
    weights: Tensor | None = None
    distance: DistanceLoss = DistanceLoss()

    @property
    def tensors(self) -> list[Tensor]:
        """Targets, and weights where there are any."""
        return [self.targets] if self.weights is None else [self.targets, self.weights]
