"""Latents of many instances with the networks as they are: by the inner loop of meta-learning, or by a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.latents.encoding_settings import EncodingSettings
from mnif_nerf.latents.fitting import FitConfig, fit, frozen
from mnif_nerf.latents.meta import MetaConfig, Objective, PointObjective, adapt
from mnif_nerf.machine import chunk_memory, denormals_flushed
from mnif_nerf.progress import tracked
from mnif_nerf.rendering.batch import PointBatch

_FIT_BATCH = 64  # instances fitted together on a processor, which bounds the memory
_LAYER_BYTES = 16  # of each number of a layer that waits for its gradient: value, sine, and both of their gradients


class EncodedLatents(nn.Module):
    """Latent codes that are computed rather than learned: a buffer with the names of `LatentTable`.

    Args:
        num_instances: rows N.
        dim: D.
    """

    weight: Tensor

    def __init__(self, num_instances: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_instances, dim))

    def forward(self, instances: Tensor) -> Tensor:
        """Codes `[B, D]` of `instances` `[B]`."""
        return self.weight[instances]


@denormals_flushed()
def encode(
    objective: Callable[[Tensor], Objective],
    instances: Tensor | int,
    rates: Tensor,
    config: MetaConfig | None = None,
    batch_size: int = 32,
    progress: bool = True,
    title: str = "Latents",
) -> Tensor:
    """Codes of many instances, by the inner loop from zero; nothing of the field is changed.

    Codes are adapted `batch_size` at a time, which bounds the memory and, as losses of a batch are summed, changes no
    code beyond rounding (as long as an instance's data does not depend on its batch either).

    Args:
        objective: what the inner loop descends for instances `[B]` int64 (on the CPU).
        instances: `[N]` int64, or their number, for 0 to N - 1.
        rates: `[D]`, of `InnerRates`.
        config: number and size of the steps.
        batch_size: instances handled together.
        progress: whether a progress bar is shown where there is more than one batch.
        title: title of the progress bar.

    Returns:
        `[N, D]`.

    Raises:
        MNIFError: the inner loop diverged.
    """
    if batch_size < 1:
        raise MNIFError(f"batch size {batch_size}: at least one instance has to be adapted at a time.")
    rows = torch.arange(instances) if isinstance(instances, int) else instances.cpu().long()
    codes = rates.new_zeros(len(rows), len(rates))
    starts = range(0, len(rows), batch_size)
    shown = progress and len(starts) > 1
    for start in tracked(starts, title, len(starts), shown, transient=True):
        part = rows[start : start + batch_size]
        codes[start : start + len(part)] = adapt(objective(part), len(part), rates.detach(), config)
    return codes.detach()


class PointSource(Protocol):
    """Where points come from: `PointSampler` and `SurfaceSampler` of `mnif_nerf.data.sampling`."""

    def fixed(self, instances: Tensor, points: int, salt: int = 0) -> PointBatch:
        """Points that depend on the instance and `salt` alone."""
        ...


@dataclass(frozen=True)
class GridAdaptation:
    """How the latents of grids are found.

    Attributes:
        meta: settings of the inner loop; None for a fit (auto-decoding).
        rates: `[D]`, of `InnerRates`; for the inner loop.
        training_latents: `[N, D]`, where a fit starts and what regularises it.
        settings: points and steps.
    """

    meta: MetaConfig | None
    rates: Tensor | None
    training_latents: Tensor
    settings: EncodingSettings


def latents_of_grids(field: ModulatedField, source: PointSource, instances: Tensor, how: GridAdaptation) -> Tensor:
    """Latents `[K, D]` of grids or surfaces that the field was not trained on; the field is not changed.

    Args:
        field: the trained mixture.
        source: their points.
        instances: `[K]` int64, which of them.
        how: inner loop or fit.

    Raises:
        MNIFError: the inner loop or the fit diverged.
    """
    if how.meta is not None:
        assert how.rates is not None
        return encode(
            lambda chosen: PointObjective(
                field, source.fixed(chosen, how.settings.encode_points), how.settings.distance
            ),
            instances,
            how.rates,
            how.meta,
            together(field, how.settings.encode_points, how.settings.encode_batch),
        )
    parts = []
    with frozen(field):
        for part in instances.split(together(field, how.settings.fit_points, _FIT_BATCH)):

            def loss(codes: Tensor, step: int, part: Tensor = part) -> Tensor:
                batch = source.fixed(part, how.settings.fit_points, salt=step)
                return PointObjective(field, batch, how.settings.distance).losses(codes)

            config = FitConfig(steps=how.settings.fit_steps)
            parts.append(fit(loss, len(part), how.training_latents, config))
    return torch.cat(parts)


def together(field: ModulatedField, points: int, least: int) -> int:
    """Instances whose latents are found together, which changes them by no more than rounding.

    Args:
        field: the mixture; on a GPU its free memory allows more than `least`.
        points: of each instance in a step; 0 stands for all, however many these are.
        least: what a processor takes.
    """
    device = next(field.parameters()).device
    if device.type != "cuda" or points == 0:
        return least
    layers = len(field.spec.shapes)
    return max(least, chunk_memory(device) // (_LAYER_BYTES * layers * field.spec.width * points))
