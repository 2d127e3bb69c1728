"""Latents that a prior holds possible given an observation: several answers to a part.

Each answer begins as a draw of the prior: of a few draws the one that explains the observation best, so that the way
is short. A search goes on from there, held to that draw as a fit is held to the mean (randomise, then optimise: exact
for a Gaussian prior and a linear observation). What was seen decides where it says anything, the draw the rest.
docs/answers.md has what else was tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mnif_nerf.latents.search import Evidence, LatentSpace, SearchConfig, search
from mnif_nerf.limits import require_count

MOST_ANSWERS = 64
_SCORED_TOGETHER = 32


@dataclass(frozen=True)
class AnswerConfig:
    """How answers are drawn.

    Attributes:
        candidates: draws of the prior for each answer, the best of which goes on.
        steps: gradient steps of an answer.
    """

    candidates: int = 16
    steps: int = 120


@dataclass(frozen=True)
class Answers:
    """Draws latents that explain an observation and are as different as a prior allows.

    Attributes:
        sample: draws of the prior, latents `[n, D]` from n and a seed; row i does not depend on n.
        evidence: the observation. The caller sees to it that nothing else takes a gradient (`fitting.frozen`).
        space: where steps are taken.
        search: rate and weight of the prior, those of the fit; its number of steps does not count.
        config: how.
    """

    sample: Callable[[int, int], Tensor]
    evidence: Evidence
    space: LatentSpace
    search: SearchConfig
    config: AnswerConfig = AnswerConfig()

    def draw(self, count: int, seed: int = 0, on_step: Callable[[], None] | None = None) -> Tensor:
        """Latents `[count, D]`.

        Args:
            count: 1 to `MOST_ANSWERS`; answer i of a seed does not depend on it.
            seed: random seed.
            on_step: called `config.steps` times.

        Raises:
            MNIFError: `count` out of range, or a search that diverged.
        """
        require_count("`samples`", count, 1, MOST_ANSWERS)
        latents = self._candidates(count, seed)
        config = replace(self.search, steps=self.config.steps)
        return search(self.evidence, latents, self.space, config, on_step, centres=latents)

    def _candidates(self, count: int, seed: int) -> Tensor:
        """For each answer the best of some draws."""
        tried = self.config.candidates
        latents = self.sample(count * tried, seed)
        losses = torch.cat([self.evidence.score(part) for part in latents.split(_SCORED_TOGETHER)])
        best = losses.view(count, tried).argmin(dim=1)
        return latents.view(count, tried, -1)[torch.arange(count, device=best.device), best]
