"""What a training step is made of, and what it yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from mnif_nerf.rendering.batch import DeviceDraw


class BatchSource(Protocol):
    """Where batches come from: `mnif_nerf.modalities.training.TrainingData`."""

    def draw(self, step: int) -> Any:
        """The batch of training step `step`: a function of seed and step alone."""
        ...

    def fixed(self, instances: Tensor) -> Any:
        """What the latents of these training instances `[B]` are computed from, whatever else is in the batch."""
        ...

    def device_draw(self) -> DeviceDraw | None:
        """How `draw` does it on the device; None where it does not. Asked where steps are recorded."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What one step yields: the summed loss, its parts, and further metrics; scalars without a graph."""

    loss: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
