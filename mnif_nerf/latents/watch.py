"""Whether training goes where it should: what is watched while it runs, and the sentence that says it does not."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from mnif_nerf.latents.meta import MetaConfig, Objective, adapt

_WINDOW = 100  # steps whose mean loss is compared
_RISE = 1.3  # of a window's mean over the least one before
_FEWEST, _SHORT_RISE = 5, 3.0  # steps of a short run, and the rise of their mean over the first that is a breakdown
_STEPS_BETWEEN_CHECKS = 400  # of latents
_VISITS = 20  # steps with an instance, before its latent can be blamed
_USE = 0.98  # of another instance's loss, which an instance's own latent has to stay below

_REMEDY = (
    "use smaller learning rates (`projection` and `fields` of the optimizers; a third of them), or the "
    '`parametrization` "centred" where the field is larger than that of the method'
)


def largest_of(values: Tensor) -> float:
    """The largest absolute number, NaN where there is one; nothing as large as `values` is made for it."""
    if not values.numel():
        return 0.0
    low, high = values.detach().aminmax()
    return max(-float(low), float(high)) if low == low else math.nan


class TrainingWatch:
    """Watches the loss, and what latents do to it; says at most once that either is wrong.

    Args:
        warn: called with a sentence.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self._sum: Tensor | float = 0.0
        self._count = 0
        self._least = float("inf")
        self._first: Tensor | None = None
        self._risen = ""
        self._high = self._useless = 0  # windows and checks in a row
        self._said: set[str] = set()

    @property
    def left(self) -> int:
        """Steps until losses are read out."""
        return _WINDOW - self._count

    def loss(self, step: int, loss: Tensor, count: int = 1) -> bool:
        """Take the loss of a step, or the sum of those of `count` steps up to it, `left` at most.

        They are read out once in a hundred steps, so that a GPU need not wait.

        A mean loss that stands a third above the least one before for two hundred steps does not come down again: the
        networks have saturated.

        Returns:
            false where losses were read out that are not finite.
        """
        self._first = loss.detach() / count if self._first is None else self._first
        self._sum, self._count = self._sum + loss.detach(), self._count + count
        if self._count < _WINDOW:
            return True
        mean, self._sum, self._count = float(self._sum) / self._count, 0.0, 0
        self._high = self._high + 1 if mean > _RISE * self._least else 0
        if self._high >= 2:
            change = f"from {self._least:.3g} to {mean:.3g}"
            self._risen = f"step {step}: the loss has risen {change} and stays there; {_REMEDY}."
            self._say("loss", self._risen)
        self._least = min(self._least, mean)
        return math.isfinite(mean)

    @property
    def broken(self) -> str:
        """The sentence that says that the loss stands far above what it was, at this moment; "" where it does not.

        Of a run of less than a hundred steps, the first step's loss is what it was.
        """
        if self._high >= 2:
            return self._risen
        if self._first is not None and self._least == float("inf") and self._count >= _FEWEST:
            first, mean = float(self._first), float(self._sum) / self._count
            if not mean <= _SHORT_RISE * first:
                return f"the loss has risen from {first:.3g} to {mean:.3g}; {_REMEDY}."
        return ""

    def due(self, step: int) -> bool:
        """Whether `latents` or `inner_loop` shall be called in this step."""
        return step % _STEPS_BETWEEN_CHECKS == _STEPS_BETWEEN_CHECKS // 2

    def latents(self, step: int, objective: Objective, codes: Tensor, visits: float) -> None:
        """Compare the loss of instances with their own latents to that with each other's.

        Args:
            step: number of the step.
            objective: of a batch of B instances.
            codes: their latents `[B, D]`; nothing is compared where B is 1.
            visits: steps that each latent has been in so far; nothing is compared before 20.
        """
        if len(codes) < 2 or visits < _VISITS:
            return
        chosen = (codes.detach(), codes.detach().roll(1, dims=0))
        own, other = (float(objective(each.requires_grad_(True), False)[0].detach().mean()) for each in chosen)
        self._useless = self._useless + 1 if own > _USE * other else 0
        if self._useless == 2:
            self._say(
                "latents",
                f"step {step}: latents make no difference (loss {own:.3g} with an instance's own, {other:.3g} with "
                f"another's), so that all instances look alike; {_REMEDY}.",
            )

    def inner_loop(self, step: int, objective: Objective, rates: Tensor, instances: int, meta: MetaConfig) -> None:
        """Say where the inner loop leads upwards: with steps too long it may do so for good and stay finite.

        Args:
            step: number of the step.
            objective: of a batch.
            rates: of the inner loop `[D]`.
            instances: in the batch.
            meta: settings of the inner loop.
        """
        start = rates.new_zeros(instances, len(rates)).requires_grad_(True)
        end = adapt(objective, instances, rates, meta).requires_grad_(True)
        before, after = (float(objective(codes, False)[0].detach().mean()) for codes in (start, end))
        if not after < before:
            self.warn(
                f"step {step}: the inner loop raises the loss ({before:.3g} to {after:.3g}); if it goes on doing so, "
                f"lower `inner_lr` (now {meta.inner_lr:g})."
            )

    def _say(self, what: str, sentence: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self.warn(sentence)
