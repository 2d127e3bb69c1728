"""Scores of a generated set against a reference set, from the distances between their items.

Every distance works (of clouds, grids or features). All matrices have **generated items as rows and reference items as
columns**; the transposed ones give other numbers without any warning.

A perfect model (another draw of the reference's distribution) has 1-NNA 0.5, but neither MMD 0 nor COV 1, and what it
reaches depends on the number of items: a score means something beside that of training against test items only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mnif_nerf.errors import MNIFError

if TYPE_CHECKING:
    import torch

SCORES = ("mmd", "cov", "1nna", "1nna_real", "1nna_fake")
SUSPICIOUS_QUANTILE = 0.05
_TOLERANCE = 1e-6  # of the largest distance of a matrix


@dataclass(frozen=True, eq=False)
class Distances:
    """The distances that all scores of two sets are computed from.

    Attributes:
        between: `[G, R]`, generated items x reference items.
        generated: `[G, G]`, symmetric with zeros on the diagonal.
        reference: `[R, R]`, likewise.

    All become float64. Raises `MNIFError` for matrices of other shapes, or with negative, NaN or infinite numbers.
    """

    between: np.ndarray
    generated: np.ndarray
    reference: np.ndarray

    def __post_init__(self) -> None:
        for name in ("between", "generated", "reference"):
            object.__setattr__(self, name, _checked(getattr(self, name), name))
        for name, count in zip(("generated", "reference"), self.between.shape):
            matrix = getattr(self, name)
            if matrix.shape != (count, count):
                raise MNIFError(
                    f"distances {name} x {name} of shape {list(matrix.shape)} do not fit between's "
                    f"{list(self.between.shape)} (generated x reference); expected {[count, count]}."
                )
            _check_self_distances(matrix, name)


def mmd(between: np.ndarray) -> float:
    """Minimum matching distance: the mean over the reference of the distance to the nearest generated item.

    Fidelity only. A model that makes nothing but average shapes may score better than a perfect one.

    Args:
        between: `[G, R]`, generated x reference.

    Source: Achlioptas et al. 2018.
    """
    return float(_checked(between, "between").min(axis=0).mean())


def coverage(between: np.ndarray) -> float:
    """COV: share of the reference that is the nearest reference item of some generated item.

    It measures diversity only and ignores how near these items are. Where several references are equally near, the
    one with the lowest index is covered.

    Args:
        between: `[G, R]`, generated x reference.

    Source: Achlioptas et al. 2018.
    """
    matrix = _checked(between, "between")
    return len(np.unique(matrix.argmin(axis=1))) / matrix.shape[1]


def set_scores(distances: Distances) -> dict[str, float]:
    """MMD, COV and 1-NNA of two sets of equal size.

    1-NNA by class: how often the nearest other item of both sets together is of the item's own set. 0.5 and 0.5: the
    sets cannot be told apart. Near 1: they can. Near 0: items lie closer to the other set than independent draws
    would, as copies do. Their mean alone may be 0.5 for a bad model (real 0 and fake 1: samples shrunk towards the
    mean), so both are always given.

    Ties. Where the nearest item of the own set and of the other are at the same distance,
    - 0, the item is an exact copy of one in the other set and counts as wrong: further copies of it in its own set
      would otherwise turn a memoriser's errors into right answers;
    - above 0, it counts as half right, which is what a coin would give on average.
    So scores do not depend on the order of the items.

    Returns:
        "mmd" in the distances' unit; "cov", "1nna" and its halves in [0, 1]: the share of reference items
        ("1nna_real") and of generated items ("1nna_fake") that are classified rightly.

    Raises:
        MNIFError: sets of unequal size, which would shift 0.5, or of fewer than 2.

    Source of 1-NNA: Lopez-Paz and Oquab 2017; for shapes Yang et al. 2019 (PointFlow).
    """
    _check_equal_sizes(distances)
    return _scores(distances.between, distances.generated, distances.reference)


def bootstrap(
    distances: Distances,
    num: int = 200,
    level: float = 0.95,
    seed: int = 0,
    device: torch.device | None = None,
) -> dict[str, tuple[float, float]]:
    """Confidence intervals of `set_scores`: where the mean over many draws of both sets, of this size, may lie.

    The usual bootstrap draws with replacement, and an item drawn twice is its own neighbour at distance 0: intervals
    come out half as wide as they should be, and around a wrong value. Here each resample is a random half of either
    set without replacement, with the neighbours found anew within the halves. Means of random halves vary around the
    full mean as much as the full mean varies around the truth (sampling half of n leaves the variance
    s^2 * (2 / n - 1 / n)); for an odd n the difference is scaled accordingly. Halves also have other means (MMD
    grows), so only their deviations from their own mean are used, added to the scores of the whole sets.

    Measured on independent draws of normal vectors (N = 32 to 200, 4 to 64 dimensions, the same or a shrunken
    distribution): 95 % intervals held the true mean in 95 to 99 % of the repetitions, 80 % ones in 81 to 91 %;
    neighbour statistics make them up to 1.3 times too wide. The exception are true halves of 1-NNA within 1 / N of 0
    or 1 and the mean with them (86 % for 95 %). Where a measured half is 0 or 1, no resample shows any variation, and
    the exact binomial bound for N independent items is used.

    Args:
        distances: sets of one size, at least 4.
        num: resamples.
        level: share of repetitions in which the interval should hold the mean, in (0, 1).
        seed: random seed of the resamples.
        device: where the halves of large matrices are gathered; None for the processor.

    Returns:
        (low, high) for each score.

    Raises:
        MNIFError: as `set_scores`, or sets of fewer than 4.

    Source: random half samples as in Politis, Romano and Wolf, Subsampling (1999).
    """
    _check_equal_sizes(distances, least=4)
    count = len(distances.between)
    half = count // 2
    generator = np.random.default_rng(seed)
    # Made one by one: all of them together would be of the size of a matrix.
    halves = ((generator.permutation(count)[:half], generator.permutation(count)[:half]) for _ in range(num))
    if device is None:
        found = np.array([_scores_of_half(distances, made, real) for made, real in halves])
    else:
        from mnif_nerf.metrics.device_sets import scores_of_halves

        found = scores_of_halves((distances.between, distances.generated, distances.reference), halves, device)
    deviations = (found - found.mean(axis=0)) * math.sqrt(half / (count - half))
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(deviations, [tail, 1.0 - tail], axis=0)
    whole = set_scores(distances)
    intervals = {}
    for name, below, above in zip(SCORES, low, high):
        most = math.inf if name == "mmd" else 1.0
        value = whole[name]
        intervals[name] = (max(value + min(float(below), 0.0), 0.0), min(value + max(float(above), 0.0), most))
    return _with_bounds_at_the_ends(intervals, whole, 1.0 - tail ** (1.0 / count))


def _scores_of_half(distances: Distances, made: np.ndarray, real: np.ndarray) -> list[float]:
    scores = _scores(
        distances.between[np.ix_(made, real)],
        distances.generated[np.ix_(made, made)],
        distances.reference[np.ix_(real, real)],
    )
    return [scores[name] for name in SCORES]


def min_distances(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest column of every row.

    Args:
        matrix: `[R, C]` distances.

    Returns:
        index int64 `[R]` (the lowest of equally near ones) and distance float64 `[R]`.

    Raises:
        MNIFError: not a matrix of finite numbers of at least 0.
    """
    values = _checked(matrix, "to the training set")
    nearest = values.argmin(axis=1)
    return nearest, values[np.arange(len(values)), nearest]


def novelty(generated_train: np.ndarray, test_train: np.ndarray) -> dict[str, Any]:
    """How near generated items come to training items, measured by how near test items come.

    A ratio near 1 is that of a perfect model, near 0 that of a memoriser. One above 1 is no merit: noise has it.
    Suspicious is what lies at or below the 5 % quantile of the test items' distances, about 5 % of a perfect model's;
    "at", so that exact copies count even if the test set has some (the quantile is then 0).

    Args:
        generated_train: `[G, N]`, generated x training.
        test_train: `[T, N]`, test x training (the same N items).

    Returns:
        "nearest" `[G]`, index of the nearest training item; "distance" `[G]` and "test_distance" `[T]`, how far it is;
        "median" and "test_median" of both, and their "ratio"; "suspicious_below", the quantile; "suspicious_share".

    Raises:
        MNIFError: matrices of different training sets, or a test set at least half of which are copies of training
            items: there is no yardstick in it.
    """
    made, (_, test_distance) = min_distances(generated_train), min_distances(test_train)
    if np.shape(generated_train)[1] != np.shape(test_train)[1]:
        raise MNIFError(
            f"generated items are compared with {np.shape(generated_train)[1]} training items and test items with "
            f"{np.shape(test_train)[1]}; use the same training set for both."
        )
    return novelty_of_nearest(made, test_distance)


def novelty_of_nearest(made: tuple[np.ndarray, np.ndarray], test_distance: np.ndarray) -> dict[str, Any]:
    """`novelty` of what `min_distances` found: of generated items index and distance, of test items the distance."""
    nearest, distance = made
    median, test_median = float(np.median(distance)), float(np.median(test_distance))
    if test_median == 0:
        raise MNIFError(
            f"{int((test_distance == 0).sum())} of {len(test_distance)} test items are copies of training items, so "
            f"they do not show how near a new one comes; compare with a split that training has not seen."
        )
    below = float(np.quantile(test_distance, SUSPICIOUS_QUANTILE))
    return {
        "nearest": nearest,
        "distance": distance,
        "test_distance": test_distance,
        "median": median,
        "test_median": test_median,
        "ratio": median / test_median,
        "suspicious_below": below,
        "suspicious_share": float((distance <= below).mean()),
    }


def _scores(between: np.ndarray, generated: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    real = _right(_nearest_other(reference), between.min(axis=0))
    fake = _right(_nearest_other(generated), between.min(axis=1))
    return {
        "mmd": float(between.min(axis=0).mean()),
        "cov": len(np.unique(between.argmin(axis=1))) / between.shape[1],
        "1nna": 0.5 * (real + fake),
        "1nna_real": real,
        "1nna_fake": fake,
    }


def _nearest_other(matrix: np.ndarray) -> np.ndarray:
    """Distance to the nearest other item of the same set `[N]`: leave-one-out."""
    others = matrix.copy()
    np.fill_diagonal(others, np.inf)
    return others.min(axis=1)


def _right(own: np.ndarray, other: np.ndarray) -> float:
    """Share of items whose nearest neighbour is of their own set, from the distances to both; ties as documented."""
    tie = (own == other) & (own > 0)
    return float(((own < other) + 0.5 * tie).mean())


def _with_bounds_at_the_ends(
    intervals: dict[str, tuple[float, float]], whole: dict[str, float], bound: float
) -> dict[str, tuple[float, float]]:
    """Intervals where halves of 1-NNA at 0 or 1 reach `bound` inwards, and their mean with them if both are."""
    ends = {0.0: (0.0, bound), 1.0: (1.0 - bound, 1.0)}
    halves = [name for name in ("1nna_real", "1nna_fake") if whole[name] in ends]
    widened = {**intervals, **{name: ends[whole[name]] for name in halves}}
    if len(halves) == 2:
        low, high = (0.5 * (widened["1nna_real"][side] + widened["1nna_fake"][side]) for side in range(2))
        widened["1nna"] = (low, high)
    return widened


def _check_equal_sizes(distances: Distances, least: int = 2) -> None:
    made, real = distances.between.shape
    if made != real:
        raise MNIFError(f"{made} generated items against {real} of reference: 1-NNA needs equally many; draw {real}.")
    if made < least:
        raise MNIFError(f"{made} items of either set are too few to compare neighbours; draw at least {least}.")


def _checked(matrix: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise MNIFError(f"distances {name}: an array of shape {list(values.shape)}, expected a matrix.")
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise MNIFError(
            f"distances {name}: {values[row, column]} at row {row}, column {column}, but a distance is finite and at "
            f"least 0; leave out items without one."
        )
    return values


def _check_self_distances(matrix: np.ndarray, name: str) -> None:
    allowed = _TOLERANCE * matrix.max()
    if matrix.diagonal().max() > allowed:
        index = int(matrix.diagonal().argmax())
        raise MNIFError(
            f"distances {name} x {name}: {matrix[index, index]:.3g} from item {index} to itself instead of 0; compute "
            f"them from differences in float64, where copies cannot hide in rounding."
        )
    if np.abs(matrix - matrix.T).max() > allowed:
        raise MNIFError(f"distances {name} x {name} are not symmetric; compute each of a set with itself.")
