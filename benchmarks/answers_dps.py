"""Diffusion posterior sampling (Chung et al., arXiv 2209.14687) in latent space, to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from mnif_nerf.latents.search import Evidence
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.schedulers import draw_noise, sample_streams
from mnif_nerf.priors.training import Noising

_NOISIEST, _CLEAN = 50.0, 0.02  # deviations of the noise, as multiples of the signal
_STRENGTH = 1.0  # of 0.3 and 1 the better on cars


def guided_draws(prior: LatentPrior, evidence: Evidence, count: int, steps: int, seed: int) -> Tensor:
    """Latents `[count, D]`: ancestral steps of the denoiser, each moved against the gradient of the evidence's loss at
    the clean estimate, as far as the step's own noise goes (a normalised step).

    Args:
        prior: the prior.
        evidence: the observation.
        count: how many.
        steps: evaluations of the denoiser, each with a gradient.
        seed: random seed.
    """
    path, streams = NoisePath(prior), sample_streams(count, seed)
    levels = torch.logspace(torch.tensor(_NOISIEST).log10(), torch.tensor(_CLEAN).log10(), steps).tolist()
    x = draw_noise(streams, prior.whitening.dim).to(prior.device)
    for number, level in enumerate(levels):
        time, keep, off = path.at(level)
        x = x.detach().requires_grad_()
        clean = path.clean(x, prior.denoiser(x, time.expand(count).to(x.device)), keep, off)
        latents = prior.whitening.unwhiten(clean * prior.gain + prior.shift)
        if number == steps - 1:
            return latents.detach()
        (slope,) = torch.autograd.grad(evidence.losses(latents, number).sum(), x)
        clean, x = clean.detach(), x.detach()
        _, kept, left = path.at(levels[number + 1])
        fresh = left / off * max(1 - (keep / kept) ** 2 * 1.0, 0.0) ** 0.5
        noise = (x - keep * clean) / off
        x = kept * clean + max(left**2 - fresh**2, 0.0) ** 0.5 * noise + fresh * draw_noise(streams, x.shape[1]).to(x)
        size = slope.norm(dim=1, keepdim=True).clamp(min=1e-8)
        x = x - _STRENGTH * max(fresh, 0.01) * x.shape[1] ** 0.5 * slope / size
    raise AssertionError("no steps")


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
