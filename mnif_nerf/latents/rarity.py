"""How rare a latent is: whether it lies where training latents are dense, or out where few of them are.

Out there a model has seen little, and what it makes breaks first: of 32 monitors whose samples a person had looked at,
this number ranked a broken one above a whole one in 84 % of the pairs, of 64 cars in 97 %, of 64 trees, which are few
and lie in clumps, in 45 % (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mnif_nerf.errors import MNIFError

if TYPE_CHECKING:  # the commands read the settings below for their help
    from torch import Tensor

TYPICAL = 0.75
"""Samples are at most so rare unless something else is asked for: most broken ones lie in the sparsest quarter."""
NEIGHBOURS = 5
TRIES = 20
"""How often a latent is drawn again at most for being too rare."""
_MOST_REFERENCES = 2048  # training latents, spread evenly, that a latent is compared with
_CHUNK = 512
_PAIRS = 2**25  # distances held at once: among more than 65,536 latents, fewer are compared at a time
LEAST_AMONG = 4


class Rarity:
    """Ranks latents by the distance to their fifth nearest training latent.

    The idea is that of Han et al., "Rarity Score" (ICLR 2023), in the space of latents and as a rank.

    Args:
        latents: `[N, D]` of the training instances. Among fewer than seven nothing is rare.
        among: rows of those that a latent is ranked among, where not all are meant, as for samples of one class: a
            class that is sparse as a whole would be called rare. Among fewer than four nothing is rare.

    Attributes:
        isolation: distances of those that a latent is ranked among to their own fifth nearest, in their order (of more
            than 2,048, of so many evenly chosen ones); empty where nothing is rare.
    """

    def __init__(self, latents: Tensor, among: Sequence[int] | None = None) -> None:
        import torch

        self.latents = latents.detach()
        self.isolation = latents.new_zeros(0)
        self._few = len(latents) < NEIGHBOURS + 2 or (among is not None and len(among) < LEAST_AMONG)
        if self._few:
            return
        own = self.latents if among is None else self.latents[list(among)]
        rows = torch.linspace(0, len(own) - 1, min(_MOST_REFERENCES, len(own)), dtype=torch.float64)
        chosen = own[rows.round().long().to(own.device)]
        self.isolation = self._isolation(chosen, NEIGHBOURS + 1)  # the nearest of each is itself
        self._among = self.isolation.sort().values

    def __call__(self, codes: Tensor) -> Tensor:
        """Of codes `[n, D]` the share `[n]` of the training latents that lie less isolated, 0 to 1."""
        if self._few:
            return codes.new_zeros(len(codes))
        import torch

        found = self._isolation(codes, NEIGHBOURS)
        return torch.searchsorted(self._among, found) / len(self._among)

    def _isolation(self, codes: Tensor, neighbours: int) -> Tensor:
        import torch

        chunk = max(1, min(_CHUNK, _PAIRS // len(self.latents)))
        parts = [torch.cdist(part, self.latents).kthvalue(neighbours, dim=1).values for part in codes.split(chunk)]
        return torch.cat(parts)


def less_rare(draw: Callable[[int, int], Tensor], count: int, rarity: Rarity, most: float) -> Tensor:
    """Latents of which those that are too rare were drawn again.

    Latent i is the first of up to 1 + `TRIES` draws whose rarity is at most `most`, else the least rare of them; so it
    depends neither on `count` nor on what became of the others.

    Args:
        draw: makes latents `[n, D]` from n and the number of the draw, from 0; row i does not depend on n.
        count: how many are wanted.
        rarity: of the model's training latents.
        most: in (0, 1].

    Raises:
        MNIFError: `most` out of range.
    """
    if not 0.0 < most <= 1.0:
        raise MNIFError(
            f"`typical` {most} is no share of the training latents; use a number above 0; 1 takes all samples."
        )
    latents = draw(count, 0)
    if most == 1:
        return latents
    found = rarity(latents)
    for attempt in range(1, TRIES + 1):
        rare = (found > most).nonzero()[:, 0]
        if len(rare) == 0:
            break
        fresh = draw(int(rare[-1]) + 1, attempt)[rare]
        seen = rarity(fresh)
        better = seen < found[rare]
        latents[rare[better]], found[rare[better]] = fresh[better], seen[better]
    return latents
