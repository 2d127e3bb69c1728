"""Latents that a prior holds possible given an observation: several answers to a part.

Each answer begins as a draw of the prior: of a few draws the one that explains the observation best, so that the way
is short. A search goes on from there, held to that draw as a fit is held to the mean (randomise, then optimise: exact
for a Gaussian prior and a linear observation). What was seen decides where it says anything, the draw the rest.

The denoiser can have another turn: noise is brought to the answers, it takes it away again, and the search goes on held
to that (decoupled annealing, Zhang et al., arXiv 2407.01521). It did not pay; docs/answers.md has what else was tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mnif_nerf.latents.search import Evidence, LatentSpace, SearchConfig, search
from mnif_nerf.limits import require_count
from mnif_nerf.priors.renewal import Possible
from mnif_nerf.priors.schedulers import sample_streams
from mnif_nerf.random import stream

MOST_ANSWERS = 64
_SCORED_TOGETHER = 32


@dataclass(frozen=True)
class AnswerConfig:
    """How answers are drawn.

    Attributes:
        candidates: draws of the prior for each answer, the best of which goes on.
        levels: noise, as a multiple of the signal, that is brought to the answers and taken away again; one level
            after the other; none by default.
        steps: gradient steps before the first level, and after each.
        denoising: evaluations of the denoiser at each level.
    """

    candidates: int = 16
    levels: tuple[float, ...] = ()
    steps: int = 120
    denoising: int = 6

    @property
    def total_steps(self) -> int:
        """Gradient steps of an answer."""
        return self.steps * (1 + len(self.levels))


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
        latents = self._pull(latents, on_step)
        for number, level in enumerate(self.config.levels):
            streams = sample_streams(count, stream(seed, "answers", number) >> 1)
            latents = self.possible.renew(latents, level, streams, self.config.denoising)
            latents = self._pull(latents, on_step)
        return latents

    def _candidates(self, count: int, seed: int) -> Tensor:
        """For each answer the best of some draws."""
        tried = self.config.candidates
        latents = self.possible.sample(count * tried, seed)
        losses = torch.cat([self.evidence.score(part) for part in latents.split(_SCORED_TOGETHER)])
        best = losses.view(count, tried).argmin(dim=1)
        return latents.view(count, tried, -1)[torch.arange(count, device=best.device), best]

    def _pull(self, latents: Tensor, on_step: Callable[[], None] | None) -> Tensor:
        """Search from latents, held to them as a fit is held to the mean."""
        config = replace(self.search, steps=self.config.steps)
        return search(self.evidence, latents, self.space, config, on_step, centres=latents)
