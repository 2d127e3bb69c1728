"""Latents that a prior holds possible given an observation: several answers to a part.

Each answer begins as a draw of the prior: (1) of a few draws the one that explains the observation best, so that the
way is short; (2) a search held to that draw, as a fit is held to the mean (randomise, then optimise: exact for a
Gaussian prior and a linear observation); (3) noise, which the denoiser takes away again, so that the answer is once
more what the prior knows (decoupled annealing, Zhang et al., arXiv 2407.01521); (4) the search again, held to that.
What was seen decides where it says anything, the draw decides the rest. docs/answers.md has what else was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mnif_nerf.latents.search import Evidence, LatentSpace, SearchConfig, search
from mnif_nerf.limits import require_count
from mnif_nerf.priors.schedulers import Denoises, draw_noise, sample_streams
from mnif_nerf.priors.training import Noising, threads_for
from mnif_nerf.random import stream

if TYPE_CHECKING:
    from mnif_nerf.priors.prior import LatentPrior

MOST_ANSWERS = 64
_SCORED_TOGETHER = 32
_CLEAN = 0.02  # noise, as a multiple of the signal, at which the denoiser has the last word


@dataclass(frozen=True)
class AnswerConfig:
    """How answers are drawn.

    Attributes:
        candidates: draws of the prior for each answer, the best of which goes on.
        levels: noise, as a multiple of the signal, that is brought to the answers and taken away again; one level
            after the other.
        steps: gradient steps before the first level, and after each.
        denoising: evaluations of the denoiser at each level.
    """

    candidates: int = 16
    levels: tuple[float, ...] = (0.5,)
    steps: int = 60
    denoising: int = 6

    @property
    def total_steps(self) -> int:
        """Gradient steps of an answer."""
        return self.steps * (1 + len(self.levels))


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
    def of(cls, prior: LatentPrior) -> Possible:
        """All that the prior knows."""
        return cls(prior, lambda count, seed: prior.sample(count, seed=seed), prior.denoiser)

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
        path = _NoisePath(prior)
        with threads_for(prior.denoiser.spec):
            for share in torch.linspace(0, 1, steps).tolist():
                time, keep, off = path.at(level ** (1 - share) * min(_CLEAN, level) ** share)
                noisy = keep * clean + off * noise
                said = self.denoiser(noisy, time.expand(len(noisy)).to(noisy.device))
                clean = path.clean(noisy, said, keep, off)
                noise = (noisy - keep * clean) / off
        return whitening.unwhiten(clean * prior.gain + prior.shift) + rest


class _NoisePath:
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


@dataclass(frozen=True)
class Answers:
    """Draws latents that explain an observation and are as different as a prior allows.

    Attributes:
        possible: the prior.
        evidence: the observation. The caller sees to it that nothing else takes a gradient (`fitting.frozen`).
        space: where steps are taken.
        search: rate and weight of the prior, those of the fit; its number of steps does not count.
        config: how.
    """

    possible: Possible
    evidence: Evidence
    space: LatentSpace
    search: SearchConfig
    config: AnswerConfig = AnswerConfig()

    def draw(self, count: int, seed: int = 0, on_step: Callable[[], None] | None = None) -> Tensor:
        """Latents `[count, D]`.

        Args:
            count: 1 to `MOST_ANSWERS`; answer i of a seed does not depend on it.
            seed: random seed.
            on_step: called `config.total_steps` times.

        Raises:
            MNIFError: `count` out of range, or a search that diverged.
        """
        require_count("`samples`", count, 1, MOST_ANSWERS)
        latents = self._candidates(count, seed)
        latents = self._pull(latents, 1.0, on_step)
        for number, level in enumerate(self.config.levels):
            streams = sample_streams(count, stream(seed, "answers", number) >> 1)
            latents = self.possible.renew(latents, level, streams, self.config.denoising)
            latents = self._pull(latents, level / (1 + level**2) ** 0.5, on_step)
        return latents

    def _candidates(self, count: int, seed: int) -> Tensor:
        """For each answer the best of some draws."""
        tried = self.config.candidates
        latents = self.possible.sample(count * tried, seed)
        losses = torch.cat([self.evidence.score(part) for part in latents.split(_SCORED_TOGETHER)])
        best = losses.view(count, tried).argmin(dim=1)
        return latents.view(count, tried, -1)[torch.arange(count, device=best.device), best]

    def _pull(self, latents: Tensor, spread: float, on_step: Callable[[], None] | None) -> Tensor:
        """Search from latents and held to them: the prior's share is that of deviations `spread` around them."""
        config = replace(self.search, steps=self.config.steps, weight=self.search.penalty / spread**2)
        return search(self.evidence, latents, self.space, config, on_step, centres=latents)
