"""What a prior holds possible, for those who look for it near something: draws, and latents renewed by the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mnif_nerf.priors.schedulers import Denoises, draw_noise
from mnif_nerf.priors.training import Noising, threads_for

if TYPE_CHECKING:
    from mnif_nerf.labels import Wish
    from mnif_nerf.priors.prior import LatentPrior

_CLEAN = 0.02  # noise, as a multiple of the signal, at which the denoiser has the last word


@dataclass(frozen=True)
class Possible:
    """What a prior holds possible, under one condition where it takes any.

    Attributes:
        prior: the prior.
        sample: latents `[n, D]` from n and a seed; row i does not depend on n.
        denoiser: its denoiser, a condition bound to it.
    """

    prior: LatentPrior
    sample: Callable[[int, int], Tensor]
    denoiser: Denoises

    @classmethod
    def of(cls, prior: LatentPrior, wish: Wish | None = None) -> Possible:
        """All that the prior knows, or what it knows of a label.

        Raises:
            MNIFError: a label that training has not seen.
        """
        return cls(prior, lambda count, seed: prior.sample(count, seed=seed, wish=wish), prior.guided(wish))

    @torch.no_grad()
    def renew(self, latents: Tensor, level: float, streams: Sequence[torch.Generator], steps: int) -> Tensor:
        """Bring noise to latents and let the denoiser take it away again (DDIM).

        Args:
            latents: `[n, D]`. What they have outside the prior's principal directions they keep.
            level: deviation of the noise as a multiple of the signal, above 0. Far above 1 nothing is left of them.
            streams: n random generators.
            steps: evaluations of the denoiser.
        """
        prior, whitening = self.prior, self.prior.whitening
        white = whitening.whiten(latents)
        rest = latents - whitening.unwhiten(white)
        clean = (white - prior.shift) / prior.gain
        noise = draw_noise(streams, clean.shape[1]).to(clean)
        path = NoisePath(prior)
        with threads_for(prior.denoiser.spec):
            for share in torch.linspace(0, 1, steps).tolist():
                time, keep, off = path.at(level ** (1 - share) * min(_CLEAN, level) ** share)
                noisy = keep * clean + off * noise
                said = self.denoiser(noisy, time.expand(len(noisy)).to(noisy.device))
                clean = path.clean(noisy, said, keep, off)
                noise = (noisy - keep * clean) / off
        return whitening.unwhiten(clean * prior.gain + prior.shift) + rest


class NoisePath:
    """The shares of signal and noise at the times that a prior was trained at, and its estimate of the clean latent."""

    def __init__(self, prior: LatentPrior) -> None:
        config = prior.config
        self.prediction, self.total = config.prediction, config.num_train_timesteps
        if self.prediction == "flow":
            off = torch.arange(1, self.total, dtype=torch.float64) / self.total
            self.keep, self.off, self.first = 1 - off, off, 1
        else:
            kept = Noising(config.prediction, self.total, config.schedule).scheduler.alphas_cumprod.double()
            self.keep, self.off, self.first = kept.sqrt(), (1 - kept).sqrt(), 0

    def at(self, level: float) -> tuple[Tensor, float, float]:
        """Time `[1]` and shares of signal and noise where the noise is nearest to `level` times the signal."""
        index = int((self.off / self.keep - level).abs().nan_to_num(torch.inf).argmin())
        return torch.tensor([index + self.first]), float(self.keep[index]), float(self.off[index])

    def clean(self, noisy: Tensor, said: Tensor, keep: float, off: float) -> Tensor:
        """What the denoiser takes for the clean latents `[n, K]`, from what it has said."""
        if self.prediction == "sample":
            return said
        if self.prediction == "epsilon":
            return (noisy - off * said) / keep
        # v = keep noise - off clean, with keep^2 + off^2 = 1; of flows noise - clean, with keep + off = 1.
        return noisy - off * said if self.prediction == "flow" else keep * noisy - off * said
