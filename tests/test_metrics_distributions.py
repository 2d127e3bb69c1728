"""Statistics of feature sets: closed forms, other people's implementations, and models whose faults are known."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics import distributions as module
from mnif_nerf.metrics.distributions import (
    ResamplingSettings,
    bootstrap_feature_scores,
    feature_scores,
    frechet_distance,
    kernel_distance,
    neighbour_scores,
)
from mnif_nerf.metrics.features import INCEPTION, RANDOM_CONV

SHARES = ("precision", "recall", "coverage")


def _normal(seed: int, count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _with_moments(seed: int, count: int, mean: Tensor, covariance: Tensor) -> Tensor:
    """Samples whose own mean and covariance (N - 1) are exactly these."""
    rows = _normal(seed, count, len(mean))
    rows = torch.linalg.qr(rows - rows.mean(dim=0)).Q * (count - 1) ** 0.5
    return rows @ torch.linalg.cholesky(covariance).T + mean


def _covariance(seed: int, dim: int) -> Tensor:
    root = _normal(seed, dim, dim)
    return root @ root.T / dim + 0.1 * torch.eye(dim, dtype=torch.float64)


class _PassThrough(torch.nn.Module):
    """Torchmetrics' feature network for samples that are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, rows: Tensor) -> Tensor:
        return rows


# Fréchet distance.


def test_frechet_distance_in_one_dimension() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    real, fake = _with_moments(0, 30, 2.0 * one[0], 9.0 * one), _with_moments(1, 20, -1.0 * one[0], 4.0 * one)
    assert frechet_distance(real, fake) == pytest.approx(3.0**2 + (3.0 - 2.0) ** 2, rel=1e-12)


def test_frechet_distance_of_gaussians_with_common_axes() -> None:
    spread = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64), torch.tensor([1.0, 9.0, 0.25], dtype=torch.float64)
    axes = torch.linalg.qr(_normal(2, 3, 3)).Q
    shift = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)
    real = _with_moments(0, 50, torch.zeros_like(shift), axes @ spread[0].diag() @ axes.T)
    fake = _with_moments(1, 70, shift, axes @ spread[1].diag() @ axes.T)
    expected = shift.square().sum() + (spread[0].sqrt() - spread[1].sqrt()).square().sum()
    assert frechet_distance(real, fake) == pytest.approx(expected.item(), rel=1e-10)


@given(seed=st.integers(0, 2**31), dim=st.integers(1, 12), extra=st.tuples(st.integers(3, 30), st.integers(3, 30)))
@settings(max_examples=30, deadline=None)
def test_frechet_distance_agrees_with_scipy_and_torchmetrics(seed: int, dim: int, extra: tuple[int, int]) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    real = _normal(seed, dim + extra[0], dim) @ _covariance(seed, dim) + 3.0
    fake = _normal(seed + 1, dim + extra[1], dim) @ _covariance(seed + 2, dim)
    ours = frechet_distance(real, fake)
    first, second = (np.atleast_2d(np.cov(rows.numpy(), rowvar=False)) for rows in (real, fake))
    shift = (real.mean(0) - fake.mean(0)).square().sum().item()
    root = np.real(sqrtm(first @ second))
    assert ours == pytest.approx(shift + np.trace(first + second) - 2 * np.trace(root), rel=1e-5, abs=1e-5)
    metric = FrechetInceptionDistance(feature=_PassThrough(dim))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert ours == pytest.approx(metric.compute().item(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("count", "dim"), [(300, 20), (20, 300)])
def test_frechet_distance_of_a_set_to_itself_is_zero_also_with_fewer_samples_than_features(
    count: int, dim: int
) -> None:
    rows = _normal(0, count, dim) + 50.0
    assert frechet_distance(rows, rows.clone()) < 1e-9
    assert frechet_distance(rows, rows.flip(0)) < 1e-9
    assert frechet_distance(rows, rows + 0.1) == pytest.approx(0.01 * dim, rel=1e-8)


def test_frechet_distance_of_one_distribution_falls_with_n_and_the_kernel_distance_is_zero() -> None:
    # peers.md, trap 7: the bias of FID. Its mean for two samples of one Gaussian is far from 0 at small N.
    frechet, kernel = [], []
    for count in (50, 200, 1000):
        pairs = [(_normal(10 * seed, count, 32), _normal(10 * seed + 1, count, 32)) for seed in range(4)]
        frechet.append(float(np.mean([frechet_distance(*pair) for pair in pairs])))
        kernel.append([kernel_distance(*pair, subsets=20) for pair in pairs])
    assert frechet[0] > 8.0  # of a total variance of 32
    assert all(large > 2.5 * small for large, small in pairwise(frechet))
    for results in kernel:
        assert abs(np.mean([mean for mean, _ in results])) < np.mean([deviation for _, deviation in results])
    shifted = kernel_distance(_normal(0, 200, 32), _normal(1, 200, 32) + 0.5)
    assert shifted[0] > 5 * shifted[1]


# Kernel distance.


def _kernel_by_hand(real: Tensor, fake: Tensor) -> float:
    def kernel(first: Tensor, second: Tensor) -> float:
        return (float(first @ second) / len(first) + 1.0) ** 3

    def mean(pairs: list[float]) -> float:
        return sum(pairs) / len(pairs)

    def within(rows: Tensor) -> float:
        return mean([kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j])

    return within(real) + within(fake) - 2 * mean([kernel(a, b) for a in real for b in fake])


def test_kernel_distance_equals_the_sum_by_hand_for_sets_of_two_sizes() -> None:
    real, fake = _normal(0, 9, 3), _normal(1, 6, 3) + 0.5
    everything = (torch.ones(1, 9, dtype=torch.bool), torch.ones(1, 6, dtype=torch.bool))
    ours = module._kernel_distances(real, fake, *everything)
    assert ours.item() == pytest.approx(_kernel_by_hand(real, fake), rel=1e-12)


def test_kernel_distance_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    real, fake = _normal(0, 700, 8), _normal(1, 700, 8) * 1.2 + 0.1  # more rows than one block of the kernel matrix
    torch.manual_seed(0)

    def theirs(subsets: int, size: int) -> tuple[float, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric = KernelInceptionDistance(feature=_PassThrough(8), subsets=subsets, subset_size=size)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        mean, deviation = metric.compute()
        return mean.item(), deviation.item()

    whole, none = kernel_distance(real, fake, subset_size=700, subsets=2)
    assert whole == pytest.approx(theirs(1, 700)[0], rel=1e-9)
    assert none < 1e-12
    mean, deviation = kernel_distance(real, fake, subset_size=100, subsets=300)
    assert mean == pytest.approx(whole, abs=4 * deviation / math.sqrt(300))
    assert deviation == pytest.approx(theirs(300, 100)[1], rel=0.2)


def test_kernel_distance_depends_on_its_seed_only() -> None:
    real, fake = _normal(0, 60, 5), _normal(1, 50, 5)
    torch.manual_seed(1)
    first = kernel_distance(real, fake, seed=7)
    torch.manual_seed(2)
    assert kernel_distance(real, fake, seed=7) == first
    assert kernel_distance(real, fake, seed=8) != first


# Precision, recall, density, coverage.


@given(
    seed=st.integers(0, 2**31),
    counts=st.tuples(st.integers(6, 40), st.integers(6, 40)),
    dim=st.integers(1, 6),
    k=st.integers(1, 5),
    shift=st.floats(0, 2),
)
@settings(max_examples=40, deadline=None)
def test_neighbour_scores_agree_with_scikit_learn(
    seed: int, counts: tuple[int, int], dim: int, k: int, shift: float
) -> None:
    neighbours = pytest.importorskip("sklearn.neighbors").NearestNeighbors
    real, fake = _normal(seed, counts[0], dim), _normal(seed + 1, counts[1], dim) + shift

    def radius(rows: Tensor) -> np.ndarray:
        return neighbours(n_neighbors=k).fit(rows.numpy()).kneighbors()[0][:, -1]  # without the sample itself

    within = {
        name: np.array([[np.linalg.norm(x - y) for y in fake.numpy()] for x in real.numpy()]) <= limit
        for name, limit in (("real", radius(real)[:, None]), ("fake", radius(fake)[None]))
    }
    assert neighbour_scores(real, fake, k) == pytest.approx(
        {
            "precision": within["real"].any(axis=0).mean(),
            "recall": within["fake"].any(axis=1).mean(),
            "density": within["real"].sum() / (k * counts[1]),
            "coverage": within["real"].any(axis=1).mean(),
        }
    )


def test_neighbour_scores_on_a_line_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # k = 1: radii 1, 1, 2, 7
    fake = torch.tensor([[0.5], [2.5], [-5.0]])  # radii 2, 2, 5.5
    scores = neighbour_scores(real, fake, k=1)
    assert scores["precision"] == pytest.approx(2 / 3)  # -5 is in no ball
    assert scores["recall"] == pytest.approx(3 / 4)  # 10 is in no ball
    assert scores["density"] == pytest.approx(3 / 3)  # 0.5 is in two balls, 2.5 in that of 3
    assert scores["coverage"] == pytest.approx(3 / 4)


def test_neighbour_scores_do_not_suffer_far_from_the_origin() -> None:
    # In steps of 1/1024, so that the shift itself is exact; |x|^2 + |y|^2 - 2 x.y loses these distances altogether.
    real, fake = ((1024 * _normal(i, 200, 6)).round() / 1024 for i in range(2))
    assert neighbour_scores(real + 2.0**22, fake + 2.0**22) == neighbour_scores(real, fake)


# What must hold for all of them.


@pytest.mark.parametrize("count", [12, 300])
def test_a_set_against_itself(count: int) -> None:
    rows = _normal(3, count, 40).float() + 20.0
    scores = feature_scores(rows, rows.clone(), "toy")
    assert scores["fd_toy"] < 1e-9
    assert scores["kd_toy"] < 1e-9 + 2 * scores["kd_deviation_toy"]
    assert [scores[f"{name}_toy"] for name in SHARES] == [1.0, 1.0, 1.0]
    assert scores["density_toy"] == pytest.approx(1 + 1 / 3)  # a sample is in its own ball too


@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_order_of_samples_does_not_matter(seed: int) -> None:
    real, fake = _normal(seed, 30, 4), _normal(seed + 1, 40, 4) * 0.7
    generator = torch.Generator().manual_seed(seed)
    shuffled = [rows[torch.randperm(len(rows), generator=generator)] for rows in (real, fake)]
    assert frechet_distance(*shuffled) == pytest.approx(frechet_distance(real, fake), rel=1e-9)
    assert neighbour_scores(*shuffled) == neighbour_scores(real, fake)
    whole = [torch.ones(1, len(rows), dtype=torch.bool) for rows in (real, fake)]
    expected = module._kernel_distances(real, fake, *whole).item()
    assert module._kernel_distances(*shuffled, *whole).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_exchanging_the_sets_exchanges_precision_and_recall_only() -> None:
    real, fake = _normal(0, 200, 4), _normal(1, 200, 4) * 0.5
    one, other = feature_scores(real, fake, "toy"), feature_scores(fake, real, "toy")
    assert one["fd_toy"] == pytest.approx(other["fd_toy"])
    assert one["precision_toy"] == other["recall_toy"] > other["precision_toy"] == one["recall_toy"]
    assert one["density_toy"] > 1.1 > 0.5 > other["density_toy"]


@pytest.mark.parametrize("seed", range(3))
def test_truth_table(seed: int) -> None:
    """A perfect model, a collapsed one, a shrunken one, and one that copied the reference."""
    train, real, perfect = (_normal(100 * seed + i, 300, 8) for i in range(3))
    models = {
        "perfect": perfect,
        "collapsed": train[:6].repeat(50, 1) + 0.05 * _normal(100 * seed + 3, 300, 8),
        "shrunken": perfect * 0.6,
        "memoriser": real[torch.randperm(300, generator=torch.Generator().manual_seed(seed))],
    }
    scores = {name: feature_scores(real, rows, "toy") for name, rows in models.items()}

    def score_of(name: str) -> list[float]:
        return [scores[model][f"{name}_toy"] for model in ("perfect", "collapsed", "shrunken", "memoriser")]

    perfect_, collapsed, shrunken, memoriser = score_of("precision")
    assert 0.8 < perfect_ < 1.0
    assert shrunken > perfect_
    assert memoriser == 1.0
    perfect_, collapsed, shrunken, memoriser = score_of("recall")
    assert 0.8 < perfect_ < 1.0
    assert collapsed < 0.05
    assert shrunken < 0.75 * perfect_
    assert memoriser == 1.0
    perfect_, collapsed, shrunken, memoriser = score_of("density")
    assert perfect_ == pytest.approx(1.0, abs=0.2)
    assert shrunken > 1.5 * perfect_
    assert memoriser == pytest.approx(4 / 3)
    perfect_, collapsed, shrunken, memoriser = score_of("coverage")
    assert perfect_ == pytest.approx(1 - 2**-3, abs=0.08)
    assert collapsed < 0.3
    assert memoriser == 1.0
    for distance in ("fd", "kd"):
        perfect_, collapsed, shrunken, memoriser = score_of(distance)
        assert min(collapsed, shrunken) > 2 * abs(perfect_)
        assert memoriser < 1e-9 + 2 * scores["memoriser"]["kd_deviation_toy"] * (distance == "kd")


def test_only_inception_earns_the_names_fid_and_kid() -> None:
    rows = _normal(0, 6, 2048)
    statistics = ["precision", "recall", "density", "coverage"]
    names = list(feature_scores(rows, rows, INCEPTION))
    assert names == ["fid", "kid", "kid_deviation", *(f"{name}_inception" for name in statistics)]
    for network, label in ((RANDOM_CONV, "random-conv"), ("inception-of-mine", "inception-of-mine")):
        names = list(feature_scores(rows[:, :480], rows[:, :480], network))
        assert names == [f"{name}_{label}" for name in ("fd", "kd", "kd_deviation", *statistics)]


def test_intervals_hold_the_value_and_follow_the_seed() -> None:
    real, fake = _normal(0, 60, 5), _normal(1, 50, 5) + 0.4
    counted: list[None] = []
    first = bootstrap_feature_scores(
        real, fake, "toy", settings=ResamplingSettings(20), advance=lambda: counted.append(None)
    )
    torch.manual_seed(5)
    assert bootstrap_feature_scores(real, fake, "toy", settings=ResamplingSettings(20)) == first
    assert bootstrap_feature_scores(real, fake, "toy", settings=ResamplingSettings(20, seed=1)) != first
    assert len(counted) == 20
    scores = feature_scores(real, fake, "toy")
    assert set(first) == set(scores) - {"kd_deviation_toy"}
    for name, interval in first.items():
        assert interval.low < interval.value < interval.high
        if name != "kd_toy":
            assert interval.value == pytest.approx(scores[name], rel=1e-9)
    assert first["kd_toy"].value == pytest.approx(_kernel_by_hand(real, fake), rel=1e-9)
    narrow = bootstrap_feature_scores(real, fake, "toy", settings=ResamplingSettings(20, confidence=0.5))
    assert narrow["fd_toy"].high - narrow["fd_toy"].low < first["fd_toy"].high - first["fd_toy"].low


def test_intervals_are_as_wide_as_scores_vary_from_sample_to_sample() -> None:
    def pair(seed: int) -> tuple[Tensor, Tensor]:
        return _normal(2 * seed, 50, 4), 0.7 * _normal(2 * seed + 1, 50, 4) + 0.5

    intervals = [bootstrap_feature_scores(*pair(seed), "toy", settings=ResamplingSettings(40)) for seed in range(60)]
    for name in intervals[0]:
        values = np.array([row[name].value for row in intervals])
        width = np.mean([row[name].high - row[name].low for row in intervals]) / (2 * 1.96)
        assert 0.65 < width / values.std() < 1.6, name


def test_intervals_of_grouped_samples_are_wider() -> None:
    # Ten views of each of 12 objects, which hardly differ.
    objects = torch.arange(12).repeat_interleave(10)
    real, fake = (_normal(i, 12, 4)[objects] + 0.1 * _normal(i + 2, 120, 4) + i for i in range(2))
    alone = bootstrap_feature_scores(real, fake, "toy", settings=ResamplingSettings(60))
    grouped = bootstrap_feature_scores(
        real, fake, "toy", settings=ResamplingSettings(60), groups=(objects + 100, objects)
    )
    for name in ("fd_toy", "kd_toy"):
        assert grouped[name].high - grouped[name].low > 2 * (alone[name].high - alone[name].low)
        assert grouped[name].value == alone[name].value


def _broken(row: int, value: float) -> Tensor:
    rows = torch.zeros(8, 3)
    rows[row, 1] = value
    return rows


@pytest.mark.parametrize(
    ("real", "fake", "k", "message"),
    [
        (torch.zeros(3, 3), torch.zeros(8, 3), 3, "3 real samples: k = 3 neighbours need at least 4; give more"),
        (torch.zeros(8, 3), torch.zeros(5, 3), 5, "5 generated samples: k = 5 neighbours need at least 6"),
        (torch.zeros(8, 3), torch.zeros(0, 3), 1, "0 generated samples"),
        (torch.zeros(8, 3), torch.zeros(8, 4), 3, r"3 numbers \(real\) and 4 \(generated\) come from different netw"),
        (torch.zeros(8, 3), _broken(5, torch.nan), 3, "generated samples: row 5 holds NaN or infinite"),
        (_broken(2, torch.inf), torch.zeros(8, 3), 3, "real samples: row 2 holds NaN or infinite"),
        (torch.zeros(8), torch.zeros(8, 3), 3, r"real samples: shape \[8\], expected"),
        (torch.zeros(8, 3), torch.zeros(8, 3), 0, "k = 0 neighbours"),
    ],
)
def test_bad_features_are_named(real: Tensor, fake: Tensor, k: int, message: str) -> None:
    for function in (neighbour_scores, feature_scores, bootstrap_feature_scores):
        arguments = (real, fake, k) if function is neighbour_scores else (real, fake, "toy", k)
        with pytest.raises(MNIFError, match=message):
            function(*arguments)  # type: ignore[operator]


def test_features_of_another_network_are_refused() -> None:
    rows = _normal(0, 20, 480)
    for function in (feature_scores, bootstrap_feature_scores):
        with pytest.raises(MNIFError, match=f"480 numbers, but {INCEPTION} makes 2048"):
            function(rows, rows, INCEPTION)


def test_too_few_samples_for_each_statistic() -> None:
    rows = _normal(0, 12, 3)
    with pytest.raises(MNIFError, match="1 real samples: the Fréchet distance needs at least 2"):
        frechet_distance(rows[:1], rows)
    with pytest.raises(MNIFError, match="3 generated samples: the kernel distance needs at least 4"):
        kernel_distance(rows, rows[:3])
    with pytest.raises(MNIFError, match="subsets of 13 samples from sets of 12 and 12; choose 2 to 12"):
        kernel_distance(rows, rows, subset_size=13)
    with pytest.raises(MNIFError, match="7 generated samples: intervals with k = 3 need 8"):
        bootstrap_feature_scores(rows, rows[:7], "toy")
    with pytest.raises(MNIFError, match="4 real groups: intervals with k = 3 need 8"):
        bootstrap_feature_scores(rows, rows, "toy", groups=(torch.arange(12) // 3, torch.arange(12)))
    with pytest.raises(MNIFError, match=r"groups of the generated samples: shape \[5\], expected \[12\]"):
        bootstrap_feature_scores(rows, rows, "toy", groups=(torch.arange(12), torch.arange(5)))
    with pytest.raises(MNIFError, match="`resamples` is 1; an interval needs at least 2"):
        ResamplingSettings(resamples=1)
    with pytest.raises(MNIFError, match="`confidence` is 1; give a number between 0 and 1"):
        ResamplingSettings(confidence=1)
