"""Latents of a whole data set by the inner loop of meta-learning: what the prior is trained on, and what is shown."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.meta import MetaConfig, Objective, adapt


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
        title: of the progress bar.

    Returns:
        `[N, D]`.

    Raises:
        MNIFError: the inner loop diverged.
    """
    from rich.progress import track

    if batch_size < 1:
        raise MNIFError(f"batch size {batch_size}: at least one instance has to be adapted at a time.")
    rows = torch.arange(instances) if isinstance(instances, int) else instances.cpu().long()
    codes = rates.new_zeros(len(rows), len(rates))
    starts = range(0, len(rows), batch_size)
    shown = progress and len(starts) > 1
    for start in track(starts, description=title, disable=not shown, transient=True):
        part = rows[start : start + batch_size]
        codes[start : start + len(part)] = adapt(objective(part), len(part), rates.detach(), config)
    return codes.detach()
