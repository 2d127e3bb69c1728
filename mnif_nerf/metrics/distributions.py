"""How near two sets of pictures are, by their features (`mnif_nerf.metrics.features`).

What each can tell:

- **Fréchet distance**: mean and covariance only, and biased upward at small N: two samples of one distribution are
  apart. Compare it at equal N, beside the distance between two halves of real data.
- **Kernel distance**: unbiased, so around 0 (also below) for two samples of one distribution.
- **precision, density**: are generated pictures near real ones? Both rise when a model only makes typical ones.
- **recall, coverage**: are all kinds of real pictures made? A memoriser of the reference scores full marks in all four.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics.features import FEATURE_DIMS, INCEPTION, RANDOM_CONV

_LABELS = {INCEPTION: "inception", RANDOM_CONV: "random-conv"}
_ONLY_INCEPTION = {"fd": "fid", "kd": "kid", "kd_deviation": "kid_deviation"}
_ROWS = 512  # rows of a kernel matrix made at a time, which bounds the memory


class ScoreInterval(NamedTuple):
    """A score and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ResamplingSettings:
    """How confidence intervals are drawn.

    Attributes:
        resamples: number of half-samples, 2 or more.
        seed: seed of the half-samples.
        confidence: probability that an interval is to cover, in (0, 1).
        frechet: whether the Fréchet distance gets one; for features of large networks it takes most of the time.

    Raises:
        MNIFError: a number out of range.
    """

    resamples: int = 200
    seed: int = 0
    confidence: float = 0.95
    frechet: bool = True

    def __post_init__(self) -> None:
        if self.resamples < 2:
            raise MNIFError(f"`resamples` is {self.resamples}; an interval needs at least 2.")
        if not 0.0 < self.confidence < 1.0:
            raise MNIFError(f"`confidence` is {self.confidence}; give a number between 0 and 1, such as 0.95.")


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets (Heusel et al. 2017, arXiv 1706.08500).

    |m_r - m_f|^2 + tr(C_r + C_f - 2 (C_r C_f)^(1/2)), covariances with N - 1. It is biased upward, about by a term in
    1/N; fewer samples than features are allowed, but then most of the number may be bias.

    Args:
        real: `[N, F]`, N >= 2.
        fake: `[M, F]`, M >= 2.

    Raises:
        MNIFError: other shapes, fewer samples, NaN or infinite numbers.
    """
    real, fake = _checked(real, fake, minimum=2, needed_for="the Fréchet distance needs")
    return distance_of_gaussians((real.mean(dim=0), _covariance_root(real)), (fake.mean(dim=0), _covariance_root(fake)))


def distance_of_gaussians(real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor]) -> float:
    """The squared Fréchet distance of two Gaussians, given by their means `[F]` and matrices R `[*, F]` with R^T R the
    covariance, float64."""
    (mean_real, root_real), (mean_fake, root_fake) = real, fake
    shift = (mean_real - mean_fake).square().sum()
    # tr (C_r C_f)^(1/2) with C = R^T R is the sum of the singular values of R_r R_f^T. torchmetrics and SciPy take
    # roots of the eigenvalues of C_r C_f, which turn rounding of 1e-16 into 1e-8 each wherever a covariance is
    # singular: on 300 equal samples of 2,048 features torchmetrics gives -4e-4, this 2e-12 (and 300 times as fast).
    overlap = torch.linalg.svdvals(root_real @ root_fake.T).sum()
    distance = shift + root_real.square().sum() + root_fake.square().sum() - 2.0 * overlap
    return max(0.0, distance.item())


def kernel_distance(
    real: Tensor, fake: Tensor, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy with kernel (x.y / F + 1)^3 (KID, Binkowski et al. 2018).

    arXiv 1801.01401. As usual it is the mean over random subsets of both sets, drawn without replacement.

    Args:
        real: `[N, F]`, N >= 4.
        fake: `[M, F]`, M >= 4.
        subsets: how many.
        subset_size: samples of each set in a subset; default 1,000, but half of the smaller set at most, since
            subsets that share all samples have no deviation.
        seed: random seed of the subsets.

    Returns:
        Mean and standard deviation over the subsets. The deviation is that of a single subset, not of the mean.

    Raises:
        MNIFError: other shapes, fewer samples, a subset larger than a set, NaN or infinite numbers.
    """
    real, fake = _checked(real, fake, minimum=4, needed_for="the kernel distance needs")
    smaller = min(len(real), len(fake))
    size = min(1000, smaller // 2) if subset_size is None else subset_size
    if not 2 <= size <= smaller:
        raise MNIFError(f"subsets of {size} samples from sets of {len(real)} and {len(fake)}; choose 2 to {smaller}.")
    generator = torch.Generator().manual_seed(seed)
    drawn = [(_picked(len(real), size, generator), _picked(len(fake), size, generator)) for _ in range(subsets)]
    of_real, of_fake = (torch.stack(side) for side in zip(*drawn))
    values = _kernel_distances(real, fake, of_real, of_fake)
    return values.mean().item(), values.std(correction=0).item()


def neighbour_scores(real: Tensor, fake: Tensor, k: int = 3) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    arXiv 1904.06991 and 2002.09797. The ball of a sample reaches to its k-th nearest neighbour in its own set. Balls
    are closed, as in the former paper: a set scores 1 against itself, but for a density of 1 + 1/k. The latter's
    reference code takes open balls; the two differ where generated and real features are exactly equal.

    - precision: share of fakes within any real ball.
    - recall: share of reals within any fake ball.
    - density: real balls that hold a fake, on average, over k; 1 for a perfect model, and may be above.
    - coverage: share of real balls that hold a fake; for a perfect model with N = M about 1 - 2^-k.

    Args:
        real: `[N, F]`, N >= k + 1.
        fake: `[M, F]`, M >= k + 1.
        k: which neighbour bounds a ball.

    Returns:
        "precision", "recall", "density" and "coverage".

    Raises:
        MNIFError: other shapes, fewer samples, NaN or infinite numbers, k below 1.
    """
    real, fake = _checked_for_neighbours(real, fake, k)
    return _neighbour_scores(_distances(real, real), _distances(fake, fake), _distances(real, fake), k)


def feature_scores(real: Tensor, fake: Tensor, network_name: str, k: int = 3, seed: int = 0) -> dict[str, float]:
    """All statistics of two feature sets, under names that say which network they rest on.

    Args:
        real: `[N, F]`.
        fake: `[M, F]`, of the same network.
        network_name: `FeatureNetwork.name` of the network that made both.
        k: neighbours of precision, recall, density and coverage.
        seed: random seed of the kernel distance's subsets.

    Returns:
        For Inception "fid", "kid", "kid_deviation", "precision_inception", "recall_inception", ...; for any other
        network, for example, "fd_random-conv", "kd_random-conv", "kd_deviation_random-conv",
        "precision_random-conv", ... ("random-conv-v1-64px" without its version).

    Raises:
        MNIFError: as the single functions, or features whose number is not the network's.
    """
    real, fake = _checked_for_neighbours(real, fake, k)
    _check_network(real, network_name)
    mean, deviation = kernel_distance(real, fake, seed=seed)
    scores = {"fd": frechet_distance(real, fake), "kd": mean, "kd_deviation": deviation}
    scores.update(neighbour_scores(real, fake, k))
    return {score_name(name, network_name): value for name, value in scores.items()}


def bootstrap_feature_scores(
    real: Tensor,
    fake: Tensor,
    network_name: str,
    k: int = 3,
    settings: ResamplingSettings | None = None,
    groups: tuple[Tensor, Tensor] | None = None,
    advance: Callable[[], None] | None = None,
) -> dict[str, ScoreInterval]:
    """Confidence intervals of `feature_scores`, by half-samples drawn without replacement.

    The common bootstrap, with replacement, is valid for none of these statistics: a repeated sample is its own nearest
    neighbour at distance zero, adds the kernel of itself with itself to an unbiased sum, and leaves the Fréchet
    distance with fewer distinct samples, whose bias at small N it counts twice. A random half of each set has no
    repetitions, and for statistics that are smooth averages the spread of halves around their mean is that of whole
    sets around theirs (the half-sample form of Politis and Romano 1994, Ann. Statist. 22). The interval is that
    spread, moved from the halves' mean to the value of the whole sets.

    What it is valid for: the sampling spread of all statistics at these N and M. Where both distributions are equal,
    the spread of Fréchet and kernel distance is too wide (by up to 1.7). The bias of the Fréchet distance is not in
    it: the interval is about what a model scores at this N, not about N without end. Shares that are 0 or 1 in every
    half get an interval of no width.

    Args:
        real, fake, network_name, k: as in `feature_scores`; halves must still hold k + 1 samples.
        settings: number of halves, seed and confidence; the defaults when None.
        groups: `[N]` and `[M]` int; samples of one group are kept or left together. Views of one object do not vary
            independently, and intervals that take them so are too narrow. Default, every sample is its own group.
        advance: called after every half-sample.

    Returns:
        The keys of `feature_scores`, without the deviation of the kernel distance (which is no estimate); here the
        kernel distance is that of the whole sets instead of a mean over subsets.

    Raises:
        MNIFError: as `feature_scores`, fewer than 2 (k + 1) groups in a set, or a group's number missing.
    """
    settings = settings or ResamplingSettings()
    real, fake = _checked_for_neighbours(real, fake, k)
    _check_network(real, network_name)
    members_real, members_fake = (
        _group_numbers(name, len(rows), None if groups is None else groups[side], k)
        for side, (name, rows) in enumerate((("real", real), ("generated", fake)))
    )
    generator = torch.Generator().manual_seed(settings.seed)
    halves = [(_half(members_real, generator), _half(members_fake, generator)) for _ in range(settings.resamples)]
    scores = _scores_of_subsets(real, fake, halves, k, advance, settings.frechet)
    return {
        score_name(name, network_name): _interval(name, values, settings.confidence) for name, values in scores.items()
    }


def _scores_of_subsets(
    real: Tensor,
    fake: Tensor,
    subsets: list[tuple[Tensor, Tensor]],
    k: int,
    advance: Callable[[], None] | None,
    frechet: bool,
) -> dict[str, list[float]]:
    """Scores of the whole sets, then of each pair of subsets given by bools `[N]` and `[M]`."""
    whole = (torch.ones(len(real), dtype=torch.bool), torch.ones(len(fake), dtype=torch.bool))
    of_real, of_fake = (torch.stack(side).to(real.device) for side in zip(whole, *subsets))
    scores: dict[str, list[float]] = {"fd": [], "kd": _kernel_distances(real, fake, of_real, of_fake).tolist()}
    distances = (_distances(real, real), _distances(fake, fake), _distances(real, fake))
    for index, (rows, columns) in enumerate(zip(of_real, of_fake)):
        if frechet:
            scores["fd"].append(frechet_distance(real[rows], fake[columns]))
        for name, value in _neighbour_scores(*_parts(distances, rows, columns), k).items():
            scores.setdefault(name, []).append(value)
        if advance is not None and index > 0:
            advance()
    return {name: values for name, values in scores.items() if values}


def _covariance_root(rows: Tensor) -> Tensor:
    """A matrix R `[min(N, F), F]` with R^T R the covariance of the rows."""
    centred = rows - rows.mean(dim=0)
    if len(centred) > centred.shape[1]:
        centred = torch.linalg.qr(centred, mode="r").R
    return centred / (len(rows) - 1) ** 0.5


def _kernel_distances(real: Tensor, fake: Tensor, of_real: Tensor, of_fake: Tensor) -> Tensor:
    """`[S]` unbiased squared discrepancies of S pairs of subsets, given by bools `[S, N]` and `[S, M]`.

    The kernel matrices are made once for all subsets; a sum over a subset is a product with its zeros and ones.
    """
    of_real, of_fake = of_real.to(real), of_fake.to(fake)
    count_real, count_fake = of_real.sum(dim=1), of_fake.sum(dim=1)
    within_real = _kernel_sums(real, real, of_real, of_real) - of_real @ _kernel(real.square().sum(dim=1), real)
    within_fake = _kernel_sums(fake, fake, of_fake, of_fake) - of_fake @ _kernel(fake.square().sum(dim=1), fake)
    between = _kernel_sums(real, fake, of_real, of_fake)
    return (
        within_real / (count_real * (count_real - 1))
        + within_fake / (count_fake * (count_fake - 1))
        - 2.0 * between / (count_real * count_fake)
    )


def _kernel_sums(rows: Tensor, columns: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
    total = rows.new_zeros(len(of_rows))
    for part, of_part in zip(rows.split(_ROWS), of_rows.split(_ROWS, dim=1)):
        total += ((of_part @ _kernel(part @ columns.T, rows)) * of_columns).sum(dim=1)
    return total


def _kernel(products: Tensor, rows: Tensor) -> Tensor:
    return (products / rows.shape[1] + 1.0) ** 3


def _distances(first: Tensor, second: Tensor) -> Tensor:
    # Not by |x|^2 + |y|^2 - 2 x.y, whose rounding puts equal samples apart. Without it, SciPy takes half of the time of
    # torch.cdist on a processor; on a GPU that takes every difference too.
    if first.is_cuda:
        return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.from_numpy(cdist(first.numpy(), second.numpy()))


def _neighbour_scores(real_real: Tensor, fake_fake: Tensor, real_fake: Tensor, k: int) -> dict[str, float]:
    """Scores from distances `[N, N]`, `[M, M]` and `[N, M]`."""
    # A sample is its own nearest, so the k-th neighbour is the (k + 1)-th smallest of its row.
    radius_real = real_real.topk(k + 1, dim=1, largest=False).values[:, -1]
    radius_fake = fake_fake.topk(k + 1, dim=1, largest=False).values[:, -1]
    in_real_ball = real_fake <= radius_real[:, None]
    in_fake_ball = real_fake <= radius_fake
    return {
        "precision": in_real_ball.any(dim=0).double().mean().item(),
        "recall": in_fake_ball.any(dim=1).double().mean().item(),
        "density": in_real_ball.sum(dim=0).double().mean().item() / k,
        "coverage": in_real_ball.any(dim=1).double().mean().item(),
    }


def _parts(distances: tuple[Tensor, Tensor, Tensor], rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    real_real, fake_fake, real_fake = distances
    rows, columns = rows.nonzero()[:, 0], columns.nonzero()[:, 0]  # faster than bools
    return real_real[rows][:, rows], fake_fake[columns][:, columns], real_fake[rows][:, columns]


def _picked(count: int, size: int, generator: torch.Generator) -> Tensor:
    """`[count]` bool, `size` of them true."""
    picked = torch.zeros(count, dtype=torch.bool)
    picked[torch.randperm(count, generator=generator)[:size]] = True
    return picked


def _half(members: Tensor, generator: torch.Generator) -> Tensor:
    """`[N]` bool, true for the samples of a random half of the groups; `members` are group numbers from 0."""
    count = int(members.max()) + 1
    return _picked(count, count // 2, generator)[members]


def _group_numbers(name: str, count: int, groups: Tensor | None, k: int) -> Tensor:
    numbers = torch.arange(count) if groups is None else torch.unique(groups.cpu(), return_inverse=True)[1]
    if numbers.shape != (count,):
        raise MNIFError(f"groups of the {name} samples: shape {list(numbers.shape)}, expected [{count}].")
    found, needed = int(numbers.max()) + 1, 2 * (k + 1)
    if found < needed:
        what = "samples" if groups is None else "groups"
        raise MNIFError(
            f"{found} {name} {what}: intervals with k = {k} need {needed}, so that a half has k + 1; give more "
            "or a smaller k."
        )
    return numbers


def _interval(name: str, values: list[float], confidence: float) -> ScoreInterval:
    """The interval of a score from its value on the whole sets, which comes first, and on halves."""
    value, spread = values[0], torch.tensor(values[1:], dtype=torch.float64)
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = (value + torch.quantile(spread - spread.mean(), tails)).tolist()
    if name != "kd":  # an unbiased estimate may be negative, the others may not
        low = max(0.0, low)
    if name in ("precision", "recall", "coverage"):
        high = min(1.0, high)
    return ScoreInterval(value, min(low, value), max(high, value))


def score_name(name: str, network_name: str) -> str:
    """The name of a statistic ("fd", "kd", "precision", ...) of features, which says what network they are of."""
    if network_name == INCEPTION and name in _ONLY_INCEPTION:
        return _ONLY_INCEPTION[name]
    return f"{name}_{_LABELS.get(network_name, network_name)}"


def _check_network(features: Tensor, network_name: str) -> None:
    expected = FEATURE_DIMS.get(network_name)
    if expected is not None and features.shape[1] != expected:
        raise MNIFError(
            f"features of {features.shape[1]} numbers, but {network_name} makes {expected}; they come from another "
            "network, make them again."
        )


def _checked_for_neighbours(real: Tensor, fake: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise MNIFError(f"k = {k} neighbours; choose 1 or more.")
    return _checked(real, fake, minimum=k + 1, needed_for=f"k = {k} neighbours need")


def _checked(real: Tensor, fake: Tensor, minimum: int, needed_for: str) -> tuple[Tensor, Tensor]:
    for name, rows in (("real", real), ("generated", fake)):
        if rows.ndim != 2 or rows.shape[1] == 0:
            raise MNIFError(f"features of the {name} samples: shape {list(rows.shape)}, expected [samples, features].")
        if len(rows) < minimum:
            raise MNIFError(f"{len(rows)} {name} samples: {needed_for} at least {minimum}; give more.")
        wrong = ~rows.isfinite().all(dim=1)
        if bool(wrong.any()):
            raise MNIFError(
                f"features of the {name} samples: row {int(wrong.nonzero()[0])} holds NaN or infinite numbers; make "
                "them again."
            )
    if real.shape[1] != fake.shape[1]:
        raise MNIFError(
            f"features of {real.shape[1]} numbers (real) and {fake.shape[1]} (generated) come from different networks; "
            "make both with one."
        )
    return real.detach().double(), fake.detach().to(real.device).double()
