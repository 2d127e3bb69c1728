"""Features of more pictures than are kept: mean and scatter of all, as they go by, and the rows of some."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics.distributions import distance_of_gaussians


class FeatureSums:
    """Number, mean and scatter of features that were added in any parts: all that the Fréchet distance asks.

    Memory is that of one `[F, F]` matrix of float64, however many features there were. Parts are centred before they
    are added (Chan, Golub and LeVeque 1979), so that nothing cancels; the order of parts changes only the rounding.

    Args:
        dim: F.
        device: where sums are.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add features `[B, F]` on the device of the sums; nothing waits for it."""
        if len(rows) == 0:
            return
        values = rows.detach().double()
        mean = values.mean(dim=0)
        centred = values - mean
        self._join(len(values), mean, centred.T @ centred)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.scatter += scatter
        self.scatter += (self.count * count / total) * torch.outer(shift, shift)
        self.mean += (count / total) * shift
        self.count = total

    def merge(self, other: FeatureSums) -> None:
        """Add what another has seen, another process for example."""
        if other.count:
            self._join(other.count, other.mean.to(self.mean), other.scatter.to(self.scatter))

    @classmethod
    def of(cls, rows: Tensor) -> FeatureSums:
        """The sums of features `[N, F]`."""
        sums = cls(rows.shape[1], rows.device)
        sums.add(rows)
        return sums


def frechet_distance_of_sums(real: FeatureSums, fake: FeatureSums) -> float:
    """`mnif_nerf.metrics.distributions.frechet_distance` of what two sums have seen, to rounding.

    Raises:
        MNIFError: features of other sizes, fewer than two of a side, or NaN or infinite ones among them.
    """
    if real.mean.shape != fake.mean.shape:
        raise MNIFError(
            f"features of {len(real.mean)} numbers (real) and {len(fake.mean)} (generated) come from different "
            "networks; make both with one."
        )
    for name, sums in (("real", real), ("generated", fake)):
        if sums.count < 2:
            raise MNIFError(f"{sums.count} {name} samples: the Fréchet distance needs at least 2; give more.")
        if not bool(torch.isfinite(sums.scatter).all()):
            raise MNIFError(f"features of the {name} samples: NaN or infinite numbers among them; make them again.")
    return distance_of_gaussians((real.mean, _root(real)), (fake.mean.to(real.mean), _root(fake).to(real.mean)))


def _root(sums: FeatureSums) -> Tensor:
    """R `[F, F]` with R^T R the covariance."""
    values, vectors = torch.linalg.eigh(sums.scatter / (sums.count - 1))
    return values.clamp(min=0.0).sqrt()[:, None] * vectors.T


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of pictures by one network.

    Attributes:
        rows: `[K, F]` float64, of all pictures or of some.
        groups: `[K]` int64, numbers of the objects that they show.
        sums: of all pictures, where `rows` are only some; else None.
    """

    rows: Tensor
    groups: Tensor
    sums: FeatureSums | None = None

    @property
    def all_sums(self) -> FeatureSums:
        """The sums of all pictures."""
        return FeatureSums.of(self.rows) if self.sums is None else self.sums
