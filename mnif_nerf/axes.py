"""Principal axes of a table of latents: for whitening, for the search of a fit, for the viewer's directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrincipalAxes:
    """Mean, directions and spreads of a table, float64 on its device.

    Attributes:
        mean: `[D]`.
        basis: `[D, D]`, orthonormal columns, the direction of the largest variance first. The largest number of each
            column is positive: the sign of an eigenvector is arbitrary, differs between LAPACK builds, and seeds shall
            repeat.
        scale: `[D]`, standard deviations along the columns; 0 up to rounding where the rows do not differ.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    @classmethod
    def from_table(cls, table: Tensor) -> PrincipalAxes:
        """The axes of `[N, D]`, finite; by the covariance, which is quick for any N."""
        table = table.detach().double()
        mean = table.mean(dim=0)
        centred = table - mean
        variance, basis = torch.linalg.eigh(centred.T @ centred / max(len(table) - 1, 1))
        basis = basis.flip(1)
        signs = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
        return cls(mean, basis * signs, variance.flip(0).clamp(min=0).sqrt())
