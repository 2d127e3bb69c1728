"""What a loss at points is made of: its kind, its targets and weights, and what a kind leaves to choose; and what one
of rendered rays is."""

from __future__ import annotations

from dataclasses import dataclass, fields

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


@dataclass(frozen=True)
class RayLoss:
    """The losses of rendered rays of B radiance fields (head "radiance"), R rays each; `rendering.radiance_losses` says
    what they are.

    Attributes:
        origins, directions: `[B, R, 3]` world units.
        near, far: `[B, R]` distances between which S samples lie.
        offsets: `[B, R, S]` in [0, 1], where each sample lies in its bin.
        rgb, mask: `[B, R, 3]` and `[B, R]`, the wanted colours and opacities.
        carve_points: `[B, C, 3]` where nothing shall be; C may be 0.
        mask_weight, carve_weight, carve_length: see `LossConfig`.
        share: what the loss of an instance counts in the gradient, such as 1/B for their mean.
    """

    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor
    offsets: Tensor
    rgb: Tensor
    mask: Tensor
    carve_points: Tensor
    mask_weight: float
    carve_weight: float
    carve_length: float
    share: float = 1.0

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the attributes."""
        return [getattr(self, f.name) for f in fields(self) if f.type == "Tensor"]

    @property
    def terms(self) -> tuple[bool, bool, bool]:
        """Which of the three losses there are: of colours, opacities and carve points."""
        return True, self.mask_weight > 0, self.carve_weight > 0 and self.carve_points.shape[1] > 0
