"""Auto-decoding: a table of latent codes, one row per training instance, and the optimiser of its rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnif_nerf.random import WHOLE, Share

# Of a Gaussian per instance, whose coordinates a N(0, _SCALE^2) is the prior for. Any scale would do, since the
# projection makes up for it; at this one, rates that suit codes without a spread suit these.
_SCALE = 0.04
_START = 0.3  # of the scale: what the spreads start from
_GAIN = 3.0  # of the learning rate of codes, for the logarithms of spreads


class LatentTable(nn.Module):
    """One latent code per training instance (the paper's auto-decoding), or a Gaussian per instance.

    Args:
        num_instances: rows N.
        dim: D.
        init_std: spread of the initial codes; 0 starts every instance from the average of the bases.
        seed: random seed of the initial codes.
        variational: whether each code is the mean of a Gaussian with spreads of its own, from which training draws
            (`draw`): a variational auto-decoder (Zadeh et al. 2019). What is near a code then decodes as it does, and
            numbers that no instance needs are left to noise, so that a latent prior has fewer to learn.
    """

    def __init__(
        self, num_instances: int, dim: int, init_std: float = 0.0, seed: int = 0, variational: bool = False
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(num_instances, dim, generator=generator).mul_(init_std))
        self.log_spread = nn.Parameter(torch.zeros(num_instances, dim)) if variational else None

    def forward(self, instances: Tensor) -> Tensor:
        """Codes `[B, D]` of `instances` `[B]`, with a sparse gradient: a step costs the same for any N."""
        return F.embedding(instances, self.weight, sparse=True)

    def draw(self, instances: Tensor, generator: torch.Generator, share: Share = WHOLE) -> tuple[Tensor, Tensor]:
        """Draws from the Gaussians of `instances` `[B]` (variational tables only).

        Args:
            instances: int64 `[B]`.
            generator: of the noise.
            share: the part of a larger batch that these instances are.

        Returns:
            Codes `[B, D]`, and the KL divergences `[B]` of the Gaussians from the prior, in nats.
        """
        assert self.log_spread is not None
        mean = self(instances) / _SCALE
        log_spread = math.log(_START) + _GAIN * F.embedding(instances, self.log_spread, sparse=True)
        spread = log_spread.exp()
        divergence = 0.5 * (mean.square() + spread.square() - 1).sum(dim=1) - log_spread.sum(dim=1)
        draw = partial(torch.randn, generator=generator, device=generator.device)
        noise = share.draw(draw, tuple(mean.shape)).to(mean.device)
        return _SCALE * (mean + spread * noise), divergence


class RowAdam(torch.optim.Optimizer):
    """Adam that touches only the rows with a gradient, and counts steps per row.

    torch's SparseAdam corrects the moments' bias by the number of steps of the whole table. A row that is first
    visited late would then move by up to (1 - beta1) / sqrt(1 - beta2) times the learning rate; here every row's
    first step is one learning rate long, whenever it comes.

    Args:
        params: tables `[N, D]` with sparse or dense gradients (a dense one updates every row).
        lr: learning rate, the length of a typical step per coordinate.
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-10,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of the rows that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group)
        return loss

    def _update(self, table: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
            state["row_steps"] = torch.zeros(len(table), 1, device=table.device)
        lr = group["lr"]
        recorded = isinstance(lr, Tensor)  # and so another one whenever this is played again
        if table.grad.is_sparse and (table.is_cuda or recorded):
            rows, values = summed_rows(table.grad)
        elif table.grad.is_sparse:
            gradient = table.grad.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
        else:
            rows, values = torch.arange(len(table), device=table.device), table.grad
        beta1, beta2 = group["betas"]
        steps = state["row_steps"].index_select(0, rows).add_(1)
        mean = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - beta1)
        square = state["exp_avg_sq"].index_select(0, rows).lerp_(values * values, 1 - beta2)
        denominator = (square / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        change = mean / (1 - beta1**steps) / denominator
        moved = table.index_select(0, rows)
        moved = moved.sub_(lr * change) if recorded else moved.add_(change, alpha=-lr)
        updates = (state["row_steps"], steps), (state["exp_avg"], mean), (state["exp_avg_sq"], square), (table, moved)
        for stored, value in updates:
            stored.index_copy_(0, rows, value)


def summed_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `[K]` of a sparse gradient and their values `[K, D]`: of a row that is there twice, the sum at both places.

    `coalesce`, which leaves each row once, has to know how many there are, and makes a GPU wait.
    """
    rows, values = gradient._indices()[0], gradient._values()
    first = (rows[:, None] == rows).int().argmax(dim=1)
    return rows, torch.zeros_like(values).index_add_(0, first, values)[first]
