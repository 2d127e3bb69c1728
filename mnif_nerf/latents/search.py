"""Searching latent space for observations: several starts at once, held by a Gaussian fitted to the training latents.

The search moves coordinates `w` of a `LatentSpace` instead of the latents: along principal directions, each in its
own standard deviation, so that one rate and one penalty |w|^2 suit all of them. A direction that instances hardly
vary in costs much to go along, which is what makes a half-observed shape come out whole (docs/fit.md has the numbers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from mnif_nerf.axes import PrincipalAxes
from mnif_nerf.errors import MNIFError
from mnif_nerf.machine import denormals_flushed

Regulariser = Literal["whitened", "per-dimension", "none"]
REGULARISERS: tuple[str, ...] = get_args(Regulariser)

# Below this share of the widest direction's deviation a direction counts as this wide. Otherwise what lies outside the
# span of few training latents could not be reached at all.
_NARROWEST = 0.01


@dataclass(frozen=True)
class LatentSpace:
    """Coordinates for a search: `z = mean + (w * scale) @ basis.T`.

    Attributes:
        mean: `[D]` of the training latents.
        basis: `[D, D]`, orthonormal columns: principal directions, or the axes themselves.
        scale: `[D]` > 0, standard deviations along the columns.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    @classmethod
    def from_latents(cls, latents: Tensor, per_dimension: bool = False) -> LatentSpace:
        """The space of training latents `[N, D]`, N >= 2.

        Args:
            latents: finite.
            per_dimension: keep the latents' own axes, each in its standard deviation.

        Raises:
            MNIFError: fewer than two latents.
        """
        if len(latents) < 2:
            raise MNIFError(
                f"this model came with {len(latents)} latents of training instances; a fit starts from them and needs "
                "two or more, so export the model again from its run."
            )
        table = latents.detach().double()
        mean = table.mean(dim=0)
        if per_dimension:
            basis = torch.eye(table.shape[1], dtype=table.dtype, device=table.device)
            scale = table.std(dim=0)
        else:
            axes = PrincipalAxes.from_table(table)
            basis, scale = axes.basis, axes.scale
        scale = scale.clamp(min=max(_NARROWEST * float(scale.max()), 1e-8))
        return cls(mean.float(), basis.float().contiguous(), scale.float())

    def latents(self, coordinates: Tensor) -> Tensor:
        """Latents `[..., D]` of coordinates `[..., D]`."""
        return self.mean + (coordinates * self.scale) @ self.basis.T

    def coordinates(self, latents: Tensor) -> Tensor:
        """Coordinates `[..., D]` of latents `[..., D]`."""
        return (latents - self.mean) @ self.basis / self.scale


_MOST_STEPS, _FASTEST = 1_000_000, 100.0


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search.

    Attributes:
        steps: gradient steps.
        lr: Adam's rate for the coordinates, in standard deviations; it decays to a tenth along a cosine.
        weight: weight of the mean squared coordinate, which is added to the loss.
        regulariser: "whitened" (principal directions), "per-dimension" (the latents' own axes) or "none" (principal
            directions, weight 0).
    """

    steps: int = 200
    lr: float = 0.1
    weight: float = 1e-3
    regulariser: Regulariser = "whitened"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise MNIFError(f"`steps` is {self.steps}, which leaves nothing to do; use at least 1 (200 is usual).")
        if self.steps > _MOST_STEPS:
            raise MNIFError(f"`steps` is {self.steps:,}; use at most {_MOST_STEPS:,} (200 is usual).")
        if not 0 < self.lr <= _FASTEST:
            raise MNIFError(f"`lr` {self.lr}: must be above 0 and at most {_FASTEST:g} (0.1 is usual).")
        if not 0 <= self.weight < float("inf"):
            raise MNIFError(f"`weight` {self.weight}: must be 0 or more.")
        if self.regulariser not in REGULARISERS:
            raise MNIFError(f"`regulariser` {self.regulariser}: unknown; choose one of {', '.join(REGULARISERS)}.")

    def space(self, training_latents: Tensor) -> LatentSpace:
        """The coordinates that the regulariser asks for."""
        return LatentSpace.from_latents(training_latents, self.regulariser == "per-dimension")

    @property
    def penalty(self) -> float:
        """The weight that counts: 0 without a regulariser."""
        return 0.0 if self.regulariser == "none" else self.weight


class Evidence(Protocol):
    """What was observed: how badly latents explain it."""

    def losses(self, latents: Tensor, step: int) -> Tensor:
        """`[K]` of latents `[K, D]`, differentiable, on the part of the observations drawn for step `step`."""
        ...

    def score(self, latents: Tensor) -> Tensor:
        """`[K]` of latents `[K, D]` without a gradient, on one part that is the same for all."""
        ...


@denormals_flushed()
def search(
    evidence: Evidence,
    starts: Tensor,
    space: LatentSpace,
    config: SearchConfig,
    on_step: Callable[[], None] | None = None,
    centres: Tensor | None = None,
) -> Tensor:
    """Latents `[K, D]` of small loss, one from each start; none depends on the others.

    Args:
        evidence: the observations. The caller sees to it that nothing else takes a gradient (`fitting.frozen`).
        starts: latents `[K, D]`.
        space: where the steps are taken.
        config: steps, rate, weight.
        on_step: called after every step.
        centres: latents `[K, D]` that the penalty draws to; the mean of the training latents when None.

    Raises:
        MNIFError: a latent is not finite any more.
    """
    held = 0.0 if centres is None else space.coordinates(centres)
    coordinates = torch.nn.Parameter(space.coordinates(starts).detach().clone())
    optimizer = torch.optim.Adam([coordinates], lr=config.lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps, config.lr / 10)
    with torch.enable_grad():
        for step in range(config.steps):
            penalty = config.penalty * (coordinates - held).square().mean(dim=1)
            # Sum over starts, so that none depends on how many there are.
            total = (evidence.losses(space.latents(coordinates), step) + penalty).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step()
    found = space.latents(coordinates.detach())
    if not bool(torch.isfinite(found).all()):
        raise MNIFError(f"the fit diverged at a rate of {config.lr:g}; use a smaller `lr`.")
    return found


def choose_starts(
    evidence: Evidence, training_latents: Tensor, samples: Tensor, count: int, seed: int = 0, compared: int = 128
) -> tuple[Tensor, list[str]]:
    """Where K searches start: the mean, then in turn the training latents that explain most and prior samples.

    Args:
        evidence: the observations.
        training_latents: `[N, D]`.
        samples: `[S, D]` of the prior; may be empty.
        count: K >= 1.
        seed: random seed of which training latents are compared, where there are more than `compared`.

    Returns:
        latents `[K, D]` and what each is: "mean", "nearest <row>", "sample <row>".
    """
    starts, names = [training_latents.mean(dim=0)], ["mean"]
    if count > 1:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(training_latents), generator=generator)[:compared].to(training_latents.device)
        losses = torch.cat([evidence.score(part) for part in training_latents[rows].split(16)])
        near = rows[losses.argsort()].tolist()
        for position in range(max(len(near), len(samples))):
            if position < len(near):
                starts.append(training_latents[near[position]])
                names.append(f"nearest {near[position]}")
            if position < len(samples):
                starts.append(samples[position])
                names.append(f"sample {position}")
    # More than there are: the mean with noise, wider and wider.
    noise = torch.Generator().manual_seed(seed + 1)
    spread = training_latents.std(dim=0)
    while len(starts) < count:
        draw = torch.randn(len(spread), generator=noise).to(spread.device)
        starts.append(starts[0] + spread * draw)
        names.append(f"draw {len(starts) - 1}")
    return torch.stack(starts[:count]), names[:count]
