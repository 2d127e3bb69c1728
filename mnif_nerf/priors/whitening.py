"""Whitening of latents: the prior works on centred, unit-variance coordinates, whatever training left."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mnif_nerf.axes import PrincipalAxes
from mnif_nerf.errors import MNIFError

WhiteningMode = Literal["pca", "per-dimension", "none"]
MODES: tuple[str, ...] = get_args(WhiteningMode)

# A direction whose deviation is below this share of the largest one is float32 rounding, not variation.
_DEGENERATE = 1e-5


class Whitening(nn.Module):
    """The affine map `w = (z - mean) @ basis / scale` and its inverse on the kept subspace.

    Buffers: `mean` [D], `basis` [D, K] with orthonormal columns, `scale` [K] > 0, with K <= D the kept
    dimensions. `whiten(unwhiten(w)) == w` always; `unwhiten(whiten(z))` is the projection of z on the kept
    subspace, hence z itself when nothing was dropped.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, basis: Tensor, scale: Tensor, mode: str = "pca") -> None:
        super().__init__()
        if basis.shape != (mean.shape[0], scale.shape[0]):
            raise MNIFError(
                f"whitening: a mean of {mean.shape[0]} and a scale of {scale.shape[0]} numbers do not fit a "
                f"basis of shape {tuple(basis.shape)}; train the prior again."
            )
        self.mode = mode
        # Contiguous, so that a saved and loaded whitening takes the same matrix product, to the bit.
        self.register_buffer("mean", mean.float().contiguous())
        self.register_buffer("basis", basis.float().contiguous())
        self.register_buffer("scale", scale.float().contiguous())

    @classmethod
    def fit(
        cls,
        latents: Tensor,
        mode: WhiteningMode = "pca",
        rank: int | None = None,
        explained_variance: float | None = None,
    ) -> Whitening:
        """Fit the map to latents.

        Args:
            latents: [N, D], finite, N >= 1.
            mode: "pca" (decorrelate and scale), "per-dimension" (scale each coordinate; the authors' choice),
                "none" (identity).
            rank: keep at most this many principal directions ("pca" only).
            explained_variance: keep the fewest principal directions that hold this share of the variance, in
                (0, 1] ("pca" only).

        Directions without variance are dropped (`unwhiten` puts the mean there), so K may be smaller than D,
        and is 0 when all latents are equal.

        Raises:
            MNIFError: unknown mode, bad rank or share, or latents that are not a [N >= 1, D] table.
        """
        if latents.ndim != 2 or latents.shape[0] < 1:
            raise MNIFError(f"whitening: latents of shape {tuple(latents.shape)}, expected [N, D] with N >= 1.")
        if rank is not None and rank < 1:
            raise MNIFError(f"whitening: rank {rank}, expected at least 1.")
        if explained_variance is not None and not 0 < explained_variance <= 1:
            raise MNIFError(f"whitening: explained variance {explained_variance}, expected a share in (0, 1].")
        z = latents.detach().cpu().double()
        if mode == "none":
            dim = z.shape[1]
            return cls(torch.zeros(dim), torch.eye(dim), torch.ones(dim), mode).to(latents.device)
        if mode == "per-dimension":
            mean, basis, scale = _fit_per_dimension(z)
        elif mode == "pca":
            mean, basis, scale = _fit_pca(z)
            kept = _kept_directions(scale, rank, explained_variance)
            basis, scale = basis[:, :kept], scale[:kept]
        else:
            raise MNIFError(f"whitening: unknown mode {mode!r}; choose one of {', '.join(MODES)}.")
        return cls(mean, basis, scale, mode).to(latents.device)

    @property
    def latent_dim(self) -> int:
        """D, the size of a latent."""
        return self.mean.shape[0]

    @property
    def dim(self) -> int:
        """K, the number of kept dimensions."""
        return self.scale.shape[0]

    def whiten(self, latents: Tensor) -> Tensor:
        """Whiten latents [..., D] to [..., K]."""
        return (latents - self.mean) @ self.basis / self.scale

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """Bring whitened coordinates [..., K] back to latents [..., D]."""
        return (whitened * self.scale) @ self.basis.T + self.mean


def _noise_floor(z: Tensor, scale: Tensor) -> float:
    """The deviation below which a direction of z counts as constant; z is float64 but came from float32."""
    rounding = 8 * torch.finfo(torch.float32).eps * float(z.abs().max())
    return max(_DEGENERATE * float(scale.max()), rounding, torch.finfo(torch.float32).tiny)


def _fit_per_dimension(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = z.mean(0)
    scale = z.sub(mean).square().sum(0).div(max(len(z) - 1, 1)).sqrt()
    kept = scale > _noise_floor(z, scale)
    return mean, torch.eye(z.shape[1], dtype=z.dtype)[:, kept], scale[kept]


def _fit_pca(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    axes = PrincipalAxes.from_table(z)
    kept = axes.scale > _noise_floor(z, axes.scale)
    return axes.mean, axes.basis[:, kept], axes.scale[kept]


def _kept_directions(scale: Tensor, rank: int | None, explained_variance: float | None) -> int:
    kept = len(scale)
    if explained_variance is not None and kept:
        share = scale.square().cumsum(0) / scale.square().sum()
        kept = min(kept, int((share < explained_variance - 1e-9).sum()) + 1)
    return kept if rank is None else min(kept, rank)
