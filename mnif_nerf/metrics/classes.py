"""How well classes can be told apart by features, and what a rule learned from real instances says of generated ones.

The rule is linear discriminant analysis (Fisher 1936; Rao 1948) on the leading principal components of standardised
features, with one covariance for all classes that is drawn towards a multiple of the identity: a few instances of each
class are enough, nothing in it is random, and it is learned in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import pdist

from mnif_nerf.errors import MNIFError

_MOST_COMPONENTS = 32
_LEAST = 0.1  # of the median deviation
_SHRINKAGE = 0.3  # of the covariance towards the mean variance


class ClassRule:
    """A rule from features to classes.

    Args:
        features: `[N, F]` of real instances.
        classes: N names.

    Raises:
        MNIFError: fewer than two classes.
    """

    def __init__(self, features: np.ndarray, classes: Sequence[str]) -> None:
        self.names = sorted(set(classes))
        if len(self.names) < 2:
            raise MNIFError(f"{len(self.names)} class of instances: there is nothing to tell apart.")
        number = np.array([self.names.index(name) for name in classes])
        self._mean, self._deviation = features.mean(0), scale_of(features)
        scaled = (features - self._mean) / self._deviation
        kept = max(1, min(_MOST_COMPONENTS, len(features) // 2))
        self._basis = np.linalg.svd(scaled, full_matrices=False)[2][:kept].T
        places = scaled @ self._basis
        counts = np.bincount(number)
        centres = np.stack([places[number == k].mean(0) for k in range(len(self.names))])
        within = places - centres[number]
        covariance = within.T @ within / len(within)
        spread = float(np.trace(covariance)) / len(covariance) + 1e-9
        covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * spread * np.eye(len(covariance))
        self._weights = np.linalg.solve(covariance, centres.T)
        # Classes count alike, however many instances each has: samples are asked for class by class.
        self._bias = -0.5 * np.einsum("kf,fk->k", centres, self._weights)
        self.counts = dict(zip(self.names, counts.tolist()))

    def places(self, features: np.ndarray) -> np.ndarray:
        """Principal components `[n, K]` of `[n, F]`, which the rule goes by."""
        return (features - self._mean) / self._deviation @ self._basis

    def __call__(self, features: np.ndarray) -> list[str]:
        """The class of each of `[n, F]`."""
        places = self.places(features)
        return [self.names[k] for k in (places @ self._weights + self._bias).argmax(1)]


def unseen_accuracy(features: np.ndarray, classes: Sequence[str], folds: int = 5, seed: int = 0) -> dict[str, float]:
    """Of every class the share of instances that a rule learned from others puts into it: the yardstick of a rule.

    Every instance is judged by a rule that has not seen it (cross-validation, classes spread evenly over the folds).

    Args:
        features: `[N, F]`.
        classes: N names; those of a single instance cannot be judged and are left out.
        folds: parts that are left out in turn.
        seed: which instances are in which part.
    """
    names = np.array(classes)
    order = np.random.default_rng([seed, 11]).permutation(len(names))
    fold = np.empty(len(names), np.int64)
    for name in set(classes):
        own = order[names[order] == name]
        fold[own] = np.arange(len(own)) % folds
    right = np.zeros(len(names), bool)
    for k in range(folds):
        known, judged = fold != k, fold == k
        if judged.any() and len(set(names[known])) > 1:
            right[judged] = (
                np.array(ClassRule(features[known], names[known].tolist())(features[judged])) == names[judged]
            )
    return {name: float(right[names == name].mean()) for name in sorted(set(classes)) if (names == name).sum() > 1}


def scale_of(features: np.ndarray) -> np.ndarray:
    """Deviations `[F]`; those of features that are (nearly) the same for all `[N, F]` are raised, so that dividing by
    them does not blow up what is nothing."""
    deviation = features.std(0)
    return deviation.clip(max(_LEAST * float(np.median(deviation)), 1e-9))


def spread(features: np.ndarray) -> float:
    """Median distance between two of `[n, F]`, divided by the root of 2F: 1 of a standard Gaussian, and hardly moved by
    a single one that lies far out; NaN of fewer than two."""
    if len(features) < 2:
        return float("nan")
    return float(np.median(pdist(features)) / math.sqrt(2 * features.shape[1]))
