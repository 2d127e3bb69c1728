"""How diverse the basis networks of a mixture are, and how much of them the instances use.

A basis and its coefficients have no scale of their own: twice the basis with half the coefficient is the same mixture.
So coefficients are measured times the norm of their basis (`Use`), which such a change leaves as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.evaluate import evaluate
from mnif_nerf.fields.modulations.mixture import MixtureField

# Of the root mean square contribution of a layer's bases; in squares (energy) that is a hundredth. Left out together,
# uncorrelated dead bases change a layer by less than a tenth of what its bases add, however many they are. The layer's
# own norm is no yardstick: M equal bases add up to far more than M uncorrelated ones, and none of them would reach it.
DEAD_BELOW = 0.1
_CHUNK = 16  # basis networks evaluated together, which bounds the memory


def singular_values(matrix: Tensor, centred: bool = False) -> Tensor:
    """Singular values, largest first.

    Args:
        matrix: `[R, C]`, rows are bases or instances.
        centred: whether the mean row is taken off first, so that only differences between rows count.

    Returns:
        `[min(R, C)]` float64.

    Raises:
        MNIFError: not a matrix, or NaN or infinite numbers in it.
    """
    values = _checked(matrix)
    if centred:
        values = values - values.mean(dim=0)
    return torch.linalg.svdvals(values)


def effective_rank(matrix: Tensor, centred: bool = False) -> float:
    """The exponential of the entropy of the singular values, as shares of their sum (Roy and Vetterli 2007).

    Between 1 (all rows on one line) and min(R, C) (orthogonal directions of equal size), and 0 for a matrix of zeros.
    Unlike the rank it counts weak directions as parts of one.

    Args:
        matrix: `[R, C]`.
        centred: as in `singular_values`. Uncentred, M equal rows have rank 1; centred they have 0.

    Raises:
        MNIFError: as `singular_values`.
    """
    values = singular_values(matrix, centred)
    # What rounding to float32 leaves of a direction that is not there.
    rounding = 8 * torch.finfo(torch.float32).eps * float(_checked(matrix).norm())
    values = values[values > rounding]
    if len(values) == 0:
        return 0.0
    shares = values / values.sum()
    return math.exp(float(-(shares * shares.log()).sum()))


def correlations(rows: Tensor) -> Tensor:
    """Pearson's correlation of every pair of rows.

    Args:
        rows: `[R, C]`.

    Returns:
        `[R, R]` float64 in [-1, 1]; 1 on the diagonal, and 0 beside it where a row is constant.

    Raises:
        MNIFError: as `singular_values`.
    """
    values = _checked(rows)
    size = values.norm(dim=1, keepdim=True)
    values = values - values.mean(dim=1, keepdim=True)
    norm = values.norm(dim=1, keepdim=True)
    constant = norm <= 1e-6 * size
    unit = torch.where(constant, 0.0, values / norm.clamp(min=torch.finfo(torch.float64).tiny))
    return (unit @ unit.T).clamp(-1.0, 1.0).fill_diagonal_(1.0)


def mean_absolute_correlation(rows: Tensor) -> float:
    """Mean of |correlation| over all pairs of two different rows of `[R, C]`; 0 where there is no pair.

    Independent rows do not reach 0: C independent normal numbers leave about sqrt(2 / (pi * C)).
    """
    matrix = correlations(rows).abs()
    count = len(matrix)
    return 0.0 if count < 2 else float((matrix.sum() - count) / (count * (count - 1)))


@dataclass(frozen=True)
class Use:
    """What the instances make of the bases of one layer. A contribution is coefficient times the norm of the basis.

    Attributes:
        contributions: `[N, M]` float64, relative to the root mean square norm of the mixed layer.
        mean: `[M]`, |mean over the instances| of the contributions: the basis's part in the mean network.
        spread: `[M]`, their standard deviation over the instances: its part in what tells instances apart.
        latent_share: share of the contributions' mean square that is spread, in [0, 1]. 0: every instance has the same
            coefficients. 1: nothing is shared.
        network_share: the same of the mixed weights: how much of a layer's energy differs between instances.
    """

    contributions: Tensor
    mean: Tensor
    spread: Tensor
    latent_share: float
    network_share: float

    @property
    def total(self) -> Tensor:
        """Root mean square contributions `[M]`: by how much the layer changes, relative to it, without the basis."""
        return (self.mean.square() + self.spread.square()).sqrt()

    def dead(self, below: float = DEAD_BELOW) -> Tensor:
        """Bases `[M]` that add next to nothing: under `below` times what a basis of the layer typically adds."""
        return self.total < below * self._typical

    def static(self, below: float = DEAD_BELOW) -> Tensor:
        """Bases `[M]` that are not dead but tell no instances apart: only their spread is that small."""
        return ~self.dead(below) & (self.spread < below * self._typical)

    @property
    def _typical(self) -> Tensor:
        return self.total.square().mean().sqrt()


def use_of_bases(coefficients: Tensor, bases: Tensor) -> Use:
    """What N instances make of M bases of one layer.

    Args:
        coefficients: `[N, M]`, N >= 2.
        bases: `[M, P]`, weights and biases of the layer, one basis per row.

    Raises:
        MNIFError: sizes that do not fit, fewer than 2 instances, or NaN or infinite numbers.
    """
    alpha, rows = _checked(coefficients), _checked(bases)
    if alpha.shape[1] != len(rows):
        raise MNIFError(f"coefficients of {alpha.shape[1]} bases do not fit {len(rows)} bases; take both of one layer.")
    if len(alpha) < 2:
        raise MNIFError(f"{len(alpha)} instance has no spread; the use of bases needs the latents of at least 2.")
    gram = rows @ rows.T
    size = _energy(alpha, gram).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    contributions = alpha * gram.diagonal().clamp(min=0).sqrt() / size
    mean, spread = contributions.mean(dim=0).abs(), contributions.std(dim=0, correction=0)
    total = (mean.square() + spread.square()).sum()
    differing = _energy(alpha - alpha.mean(dim=0), gram)
    return Use(
        contributions,
        mean,
        spread,
        latent_share=float(spread.square().sum() / total) if total > 0 else 0.0,
        network_share=float(differing / size.square()),
    )


@torch.no_grad()
def basis_outputs(field: MixtureField, points: Tensor, latents: Tensor) -> Tensor:
    """Values of every basis network as a network of its own.

    A basis alone may be far larger or smaller than the networks it is mixed into (by sqrt(M) right after the corrected
    initialisation). One factor per layer, the same for all bases, gives them the root mean square norm that the mixed
    networks of `latents` have there.

    Args:
        field: of M bases.
        points: `[in, N]` in field coordinates.
        latents: `[B, D]`.

    Returns:
        `[M, N * out]` raw values, before the head's activation.
    """
    flat = []
    for basis, mixed in zip(field.bases, field.weights(latents)):
        scale = mixed.norm() / math.sqrt(len(mixed)) / (basis.norm() / math.sqrt(len(basis))).clamp(min=1e-30)
        flat.append(scale * basis)
    parts = []
    for first in range(0, field.spec.num_bases, _CHUNK):
        some = field.with_first_layer([layer[first : first + _CHUNK].contiguous() for layer in flat])
        at = points.unsqueeze(0).expand(len(some[0]), -1, -1)
        parts.append(evaluate(field.form, some, at).flatten(1))
    return torch.cat(parts)


def _energy(alpha: Tensor, gram: Tensor) -> Tensor:
    """Mean square norm over the instances of `alpha [N, M] @ bases`, from the bases' inner products `[M, M]`."""
    return ((alpha @ gram) * alpha).sum(dim=1).mean().clamp(min=0)


def _checked(matrix: Tensor) -> Tensor:
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise MNIFError(f"a matrix of shape {list(matrix.shape)} has no bases to compare; expected [rows, columns].")
    values = matrix.detach().cpu().double()
    if not torch.isfinite(values).all():
        raise MNIFError("NaN or infinite numbers among bases or coefficients; the model is damaged, train it again.")
    return values
