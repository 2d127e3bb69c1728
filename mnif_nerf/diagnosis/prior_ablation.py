"""What each choice of the latent prior is worth: priors on the same latents, one change from the default at a time.

A part of the latents is held out of everything. Samples are compared with the training part (do they look like it?)
and with the held-out part (or do they copy it?); the rows of real latents say what a perfect model and what a
memoriser would score with as many points.

All scores are in one space, the default's whitened coordinates of the training part, so that a prior that works in
others gains or loses nothing by that.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.document import Table
from mnif_nerf.metrics.distributions import frechet_distance, kernel_distance
from mnif_nerf.metrics.sets import Distances, set_scores
from mnif_nerf.priors.baselines import near_neighbours
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.training import PriorConfig, default_steps
from mnif_nerf.priors.whitening import Whitening

# Fewer held-out latents say next to nothing: a 1-NNA over 16 + 16 points has a standard deviation of .09.
LEAST_HELD_OUT = 8
_TIMED_SAMPLES = 64
ABLATION_NOTE = "In brackets the halves of 1-NNA: of real points and of samples."


@dataclass(frozen=True)
class AblationConfig:
    """Settings of an ablation.

    Attributes:
        base: the default that is changed; its `held_out` is not used. None as steps takes `default_steps`, which is
            what a model is trained with, but takes minutes for a few hundred latents.
        held_out: share of the latents that no prior sees, in (0, 1).
        draws: sets of samples, each as large as the held-out part, whose scores are averaged.
        seed: random seed of the split and of the samples (that of training is the base's).
    """

    base: PriorConfig = field(default_factory=lambda: PriorConfig(steps=500))
    held_out: float = 0.2
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise MNIFError(f"held-out share {self.held_out}: must lie between 0 and 1 (0.2 is a fifth).")
        if self.draws < 1:
            raise MNIFError(f"draws {self.draws}: at least one set of samples is needed.")


@dataclass(frozen=True)
class Variant:
    """One row: what is changed, to what, and the prior and sampler that follow.

    Attributes:
        change, name: for the table.
        prior: the changed settings.
        sampler, steps: as of `LatentPrior.sample`.
    """

    change: str
    name: str
    prior: PriorConfig
    sampler: str | None = None
    steps: int | None = None


# The samplers of the default prior beside its own, and their steps.
_SAMPLERS: tuple[tuple[str, int | None], ...] = (
    *(("dpm-solver++", steps) for steps in (10, 20, 50)),
    ("ddim", 20),
    ("ddim", 100),
    ("ddpm", 1000),
    ("gaussian", None),
    ("interpolation", None),
)


def variants(base: PriorConfig, width: int, steps: int) -> list[Variant]:
    """All rows but those of real latents.

    Args:
        base: the default.
        width, steps: of it, where the base leaves them to the data.
    """
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("default", f"width {width}, {base.prediction}, {base.whitening}, {steps} steps", {}),
        ("denoiser", f"a quarter of the width: {max(1, width // 4)}", {"width": max(1, width // 4)}),
        ("denoiser", f"four times the width: {4 * width}", {"width": 4 * width}),
        ("training", f"half the steps: {max(1, steps // 2)}", {"steps": max(1, steps // 2)}),
        ("training", f"twice the steps: {2 * steps}", {"steps": 2 * steps}),
        *(("prediction", name, {"prediction": name}) for name in ("v_prediction", "sample", "epsilon", "flow")),
        *(("whitening", name, {"whitening": name}) for name in ("pca", "per-dimension", "none")),
        ("schedule", "linear", {"schedule": "linear"}),
        ("weights", "without averaging", {"ema_decay": 0.0}),
        ("samples", "without calibration", {"calibrate": False}),
    ]
    base = dataclasses.replace(base, width=width, steps=steps, held_out=0.0)
    rows, seen = [], set()
    for change, name, settings in changes:
        prior = dataclasses.replace(base, **settings)
        if prior not in seen:  # one of the predictions and one of the whitenings is the default
            rows.append(Variant(change, name, prior))
        seen.add(prior)
    # A prior of flows has a sampler of its own, and no other.
    chosen = [pair for pair in _SAMPLERS if base.prediction != "flow" or pair[1] is None]
    return rows + [
        Variant("sampler", name if steps is None else f"{name}, {steps} steps", base, name, steps)
        for name, steps in chosen
    ]


def num_variants(config: AblationConfig | None = None) -> int:
    """How often `run_ablation` calls its `advance`."""
    return len(variants((config or AblationConfig()).base, 64, 100))


def run_ablation(
    latents: Tensor, config: AblationConfig | None = None, advance: Callable[[], None] | None = None
) -> list[dict[str, Any]]:
    """Train and score every variant.

    Args:
        latents: [N, D], one row per training instance of a model.
        config: steps, share held out, seeds.
        advance: called after every variant, `num_variants` times.

    Returns:
        One dictionary per row: "change", "variant", "train_seconds", "sample_seconds" (of 64 samples) and the scores
        of `Reference.latent_scores`, each with its standard deviation over the draws ("..._sd"). None is what does not
        apply, or all scores of a variant whose samples are not finite. The first two rows are of real latents.

    Raises:
        MNIFError: too few latents to hold some out, or latents that no prior can be trained on.
    """
    config = config or AblationConfig()
    training, held = _split(latents, config)
    space = Whitening.fit(training, "pca", config.base.rank, config.base.explained_variance)
    width = config.base.denoiser_spec(len(training), space.dim).width
    steps = config.base.steps or default_steps(len(training))
    real = Reference(space, training, held, config.seed)
    rows = _yardsticks(real, config)
    LatentPrior.fit(
        training, dataclasses.replace(config.base, steps=1), progress=False
    )  # libraries load in untimed time
    trained: dict[PriorConfig, tuple[LatentPrior, float]] = {}
    for variant in variants(config.base, width, steps):
        if variant.prior not in trained:
            start = time.perf_counter()
            prior = LatentPrior.fit(training, variant.prior, progress=False)
            trained[variant.prior] = prior, time.perf_counter() - start
        rows.append(_row(variant, *trained[variant.prior], real, config))
        if advance is not None:
            advance()
    return rows


class Reference:
    """The real latents that sets of points are compared with, in whitened coordinates.

    Args:
        space: the coordinates.
        training, held: latents [T, D] and [H, D].
        seed: of the H training latents that are the training part's share in nearest-neighbour scores, which take
            two sets of one size.
    """

    def __init__(self, space: Whitening, training: Tensor, held: Tensor, seed: int) -> None:
        self.space = space
        self.training, self.held = space.whiten(training), space.whiten(held)
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
        self.some = self.training[order[: len(held)]]
        nearest = near_neighbours(self.training, 1)[:, 0]
        self.spacing = float((self.training - self.training[nearest]).norm(dim=1).median())
        self.spread = _spread(self.training)

    def latent_scores(self, points: Tensor) -> dict[str, float]:
        """Compare as many points as there are held-out latents with both parts.

        Args:
            points: [H, K], whitened.

        Returns:
            "novelty": median distance to the nearest training latent, in units of the median distance between
            neighbours among those (0 is a copy); "spread": root of the total variance, in units of the training
            part's; and with "train_" and "held_out_" before it, "kernel" (unbiased squared maximum mean discrepancy,
            polynomial kernel of degree 3), "frechet" (between Gaussians), "1nna" (leave-one-out accuracy of nearest
            neighbours, 0.5 at best), "1nna_real" and "1nna_fake" (its halves).
        """
        nearest = _distances(points, self.training).min(axis=1)
        found = {"novelty": float(np.median(nearest)) / self.spacing, "spread": _spread(points) / self.spread}
        for part, real, equal in (("train", self.training, self.some), ("held_out", self.held, self.held)):
            found[f"{part}_kernel"], _ = kernel_distance(real, points)
            found[f"{part}_frechet"] = frechet_distance(real, points)
            distances = Distances(_distances(points, equal), _distances(points, points), _distances(equal, equal))
            scores = set_scores(distances)
            found |= {f"{part}_{name}": scores[name] for name in ("1nna", "1nna_real", "1nna_fake")}
        return found


def ablation_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of `run_ablation`."""
    columns = ["change", "variant"]
    columns += [f"{score}, {part}" for part in ("training", "held out") for score in ("kernel", "Fréchet", "1-NNA")]
    columns += ["novelty", "spread", "s of training", "s of 64 samples"]
    lines = []
    for row in rows:
        cells = [row["change"], row["variant"]]
        for part in ("train", "held_out"):
            cells += [_cell(row, f"{part}_kernel", 3), _cell(row, f"{part}_frechet", 1)]
            halves = (_cell(row, f"{part}_1nna_{half}", 2).split(" ")[0] for half in ("real", "fake"))
            accuracy = _cell(row, f"{part}_1nna", 2)
            cells.append(accuracy if accuracy == "-" else f"{accuracy} ({', '.join(halves)})")
        cells += [_cell(row, "novelty", 2), _cell(row, "spread", 2)]
        cells += [_cell(row, "train_seconds", 1), _cell(row, "sample_seconds", 2)]
        lines.append(cells)
    return Table(columns, lines)


def _split(latents: Tensor, config: AblationConfig) -> tuple[Tensor, Tensor]:
    latents = latents.detach().cpu().float()
    count = round(config.held_out * len(latents))
    if count < LEAST_HELD_OUT or len(latents) - count < count:
        raise MNIFError(
            f"an ablation of {len(latents)} latents with a share of {config.held_out:g} held out compares with {count} "
            f"of them; it takes at least {LEAST_HELD_OUT}, and at most half of all."
        )
    if not bool(torch.isfinite(latents).all()):
        raise MNIFError("NaN or infinite numbers among the latents; train stage 1 again with a lower latent rate.")
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(config.seed))
    return latents[order[count:]], latents[order[:count]]


def _yardsticks(real: Reference, config: AblationConfig) -> list[dict[str, Any]]:
    """Scores of latents the priors never see, and of training latents drawn again, as a memoriser would."""
    unseen: dict[str, Any] = dict(real.latent_scores(real.held))
    unseen = {name: None if name.startswith("held_out") else value for name, value in unseen.items()}
    copies = []
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.draws):
        chosen = torch.randint(len(real.training), (len(real.held),), generator=generator)
        copies.append(real.latent_scores(real.training[chosen]))
    timing = {"train_seconds": None, "sample_seconds": None}
    return [
        {"change": "real latents", "variant": "the held-out ones", **_summary([unseen]), **timing},
        {"change": "real latents", "variant": "training ones, drawn again", **_summary(copies), **timing},
    ]


def _row(
    variant: Variant, prior: LatentPrior, seconds: float, real: Reference, config: AblationConfig
) -> dict[str, Any]:
    count = len(real.held)
    points = prior.sample(config.draws * count, config.seed, variant.sampler, variant.steps)
    scores: list[dict[str, Any]]
    if bool(torch.isfinite(points).all()):
        scores = [real.latent_scores(real.space.whiten(part)) for part in points.split(count)]
    else:
        scores = [dict.fromkeys(real.latent_scores(real.held))]
    start = time.perf_counter()
    prior.sample(_TIMED_SAMPLES, config.seed, variant.sampler, variant.steps)
    return {
        "change": variant.change,
        "variant": variant.name,
        **_summary(scores),
        "train_seconds": None if variant.sampler in ("gaussian", "interpolation") else seconds,
        "sample_seconds": time.perf_counter() - start,
    }


def _summary(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the draws, and standard deviations where there are several."""
    found: dict[str, Any] = {}
    for name in scores[0]:
        values = [score[name] for score in scores]
        found[name] = None if values[0] is None else statistics.fmean(values)
        found[f"{name}_sd"] = statistics.stdev(values) if values[0] is not None and len(values) > 1 else None
    return found


def _distances(points: Tensor, others: Tensor) -> np.ndarray:
    """Exact in float64: products of norms would put copies apart."""
    return torch.cdist(points.double(), others.double(), compute_mode="donot_use_mm_for_euclid_dist").numpy()


def _spread(points: Tensor) -> float:
    return math.sqrt(float(points.var(dim=0).sum()))


def _cell(row: dict[str, Any], name: str, digits: int) -> str:
    """A score, with its deviation over the draws where there is one."""
    values = [row[name], row.get(f"{name}_sd")]
    texts = [f"{value:.1e}" if abs(value) >= 1e4 else f"{value:.{digits}f}" for value in values if value is not None]
    return " ± ".join(texts) or "-"
