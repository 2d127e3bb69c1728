"""Scores of sets: definitions on toys, the four models whose scores are known, and the traps of these metrics."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics.clouds import CHAMFER, EMD, distance_matrix, one_minus_iou
from mnif_nerf.metrics.sets import (
    SCORES,
    Distances,
    bootstrap,
    coverage,
    min_distances,
    mmd,
    novelty,
    set_scores,
)

seeds = st.integers(0, 2**32 - 1)
SEEDS = range(3)


def between_sets(generated: np.ndarray, reference: np.ndarray) -> Distances:
    """Euclidean distances of feature vectors `[N, D]`."""
    return Distances(cdist(generated, reference), cdist(generated, generated), cdist(reference, reference))


def normal(seed: int, count: int, dims: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dims))


def line(*positions: float) -> np.ndarray:
    return np.array(positions, dtype=float)[:, None]


def plain_scores(generated: list[np.ndarray], reference: list[np.ndarray]) -> dict[str, float]:
    """From the items, with loops. For sets without ties."""

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.sqrt(((one - other) ** 2).sum()))

    nearest = [min(range(len(reference)), key=lambda k: distance(item, reference[k])) for item in generated]
    items = [(item, "fake") for item in generated] + [(item, "real") for item in reference]
    right: dict[str, list[bool]] = {"fake": [], "real": []}
    for index, (item, label) in enumerate(items):
        others = [(distance(item, other), name) for at, (other, name) in enumerate(items) if at != index]
        right[label].append(min(others)[1] == label)
    return {
        "mmd": float(np.mean([min(distance(made, real) for made in generated) for real in reference])),
        "cov": len(set(nearest)) / len(reference),
        "1nna": float(np.mean(right["fake"] + right["real"])),
        "1nna_real": float(np.mean(right["real"])),
        "1nna_fake": float(np.mean(right["fake"])),
    }


# Definitions


@given(seeds, st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_scores_equal_loops_over_the_items(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    generated, reference = generator.standard_normal((2, count, 3)) + np.array([0.5, 0.0])[:, None, None]
    assert set_scores(between_sets(generated, reference)) == pytest.approx(
        plain_scores(list(generated), list(reference)), rel=1e-9
    )


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_items_have_no_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    generated, reference = generator.standard_normal((2, 15, 4))
    shuffled = between_sets(generator.permutation(generated), generator.permutation(reference))
    assert set_scores(shuffled) == pytest.approx(set_scores(between_sets(generated, reference)), rel=1e-12)


def test_a_set_scored_against_itself() -> None:
    items = normal(0, 20)
    scores = set_scores(between_sets(items, items.copy()))
    assert scores == {"mmd": 0, "cov": 1, "1nna": 0, "1nna_real": 0, "1nna_fake": 0}


def test_sets_far_apart() -> None:
    scores = set_scores(between_sets(line(0, 1, 2), line(100, 101, 102)))
    # The nearest generated item of each reference is the last; the nearest reference of each generated the first.
    assert scores == {"mmd": 99, "cov": pytest.approx(1 / 3), "1nna": 1, "1nna_real": 1, "1nna_fake": 1}


def test_rows_are_generated_and_columns_are_reference() -> None:
    """Trap 4. Two samples are near reference 0 and one is near reference 1; references 2, 3 have none."""
    between = cdist(line(0.0, 0.1, 10.2), line(0.0, 10.0, 20.0, 31.0))
    assert mmd(between) == pytest.approx((0 + 0.2 + 9.8 + 20.8) / 4)
    assert coverage(between) == 2 / 4
    assert mmd(between.T) == pytest.approx((0 + 0.1 + 0.2) / 3)  # the sets exchanged: another question
    assert coverage(between.T) == 2 / 3


def test_of_equally_near_references_the_first_is_covered() -> None:
    assert coverage(cdist(line(0.0, 0.0), line(-1.0, 1.0))) == 0.5
    assert coverage(np.ones((5, 4))) == 0.25


# Ties of 1-NNA


def test_a_copy_of_a_reference_counts_as_wrong_however_often_it_is_made() -> None:
    """Three copies of reference 0 are each other's neighbours at distance 0 as well, which must not excuse them."""
    reference = line(0.0, 10.0, 20.0, 30.0)
    scores = set_scores(between_sets(line(0.0, 0.0, 0.0, 100.0), reference))
    assert scores["1nna_fake"] == 0  # and 100 is nearest to 30
    # 0 has copies; 10 is as far from 20 as from a sample (half); 20 and 30 are right
    assert scores["1nna_real"] == 0.75 - 0.125


def test_copied_training_data_does_not_pass_for_a_perfect_model() -> None:
    """Twenty copies each of five references: a model at 0.5 would be perfect."""
    reference = normal(1, 100)
    scores = set_scores(between_sets(np.repeat(reference[:5], 20, axis=0), reference))
    assert scores["1nna_fake"] == 0
    assert scores["1nna_real"] >= 0.7  # the collapse shows in this half, and in COV
    assert scores["cov"] == 0.05


def test_ties_without_copies_count_as_half() -> None:
    between, within = np.ones((4, 4)), 1.0 - np.eye(4)  # as of grids that share no cell: 1 - IoU is 1 for all pairs
    scores = set_scores(Distances(between, within, within))
    assert (scores["1nna_real"], scores["1nna_fake"]) == (0.5, 0.5)


# The four models whose scores are known


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dims", [4, 64])
def test_a_perfect_model(seed: int, dims: int) -> None:
    """Trap 1: 1-NNA is 0.5, and COV is far from 1."""
    scores = set_scores(between_sets(normal(2 * seed, 400, dims), normal(2 * seed + 1, 400, dims)))
    assert scores["1nna"] == pytest.approx(0.5, abs=0.1)
    assert scores["1nna_real"] == pytest.approx(0.5, abs=0.2)
    assert scores["1nna_fake"] == pytest.approx(0.5, abs=0.2)
    assert scores["cov"] == pytest.approx(0.6 if dims == 4 else 0.41, abs=0.08)


def test_what_a_perfect_model_covers_depends_on_the_number_of_items() -> None:
    """Trap 1: so the yardstick has to be computed at the same number."""
    few = np.mean([coverage(cdist(normal(2 * seed, 100), normal(2 * seed + 1, 100))) for seed in range(10)])
    many = coverage(cdist(normal(100, 1000), normal(101, 1000)))
    assert few == pytest.approx(0.44, abs=0.03)
    assert many == pytest.approx(0.39, abs=0.03)
    assert many < few


@pytest.mark.parametrize("seed", SEEDS)
def test_a_collapsed_model(seed: int) -> None:
    """All samples are nearly one reference-like item."""
    reference, (mode,) = normal(seed, 200), normal(seed + 50, 1)
    collapsed = mode + 0.01 * normal(seed + 100, 200)
    perfect = set_scores(between_sets(normal(seed + 150, 200), reference))
    scores = set_scores(between_sets(collapsed, reference))
    assert scores["cov"] <= 0.02
    assert scores["mmd"] > 1.1 * perfect["mmd"]
    assert scores["1nna_fake"] == 1
    assert scores["1nna_real"] > 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shrunken_model(seed: int) -> None:
    """Traps 2, 3 and 4: samples drawn towards the mean. MMD rewards it, and 1-NNA only shows it by halves."""
    reference = normal(seed, 400)
    perfect = set_scores(between_sets(normal(seed + 50, 400), reference))
    shrunken = between_sets(0.6 * normal(seed + 100, 400), reference)
    scores = set_scores(shrunken)
    assert scores["mmd"] < 0.92 * perfect["mmd"]
    assert scores["cov"] < 0.75 * perfect["cov"]  # 0.52 on average
    assert scores["1nna"] == pytest.approx(0.5, abs=0.03)
    assert scores["1nna_real"] < 0.05
    assert scores["1nna_fake"] > 0.98
    # On the transposed matrix the same model would look better than a perfect one.
    assert coverage(shrunken.between.T) > 0.45 > perfect["cov"] > scores["cov"]


@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_memoriser(seed: int, noise: float) -> None:
    """Copies of training items: the scores against the test set are those of a perfect model, novelty is not."""
    training, test = normal(seed, 200), normal(seed + 50, 100)
    copies = training[:100] + noise * normal(seed + 100, 100)
    scores = set_scores(between_sets(copies, test))
    assert scores["1nna"] == pytest.approx(0.5, abs=0.2)
    found = novelty(cdist(copies, training), cdist(test, training))
    assert found["nearest"].tolist() == list(range(100))
    assert found["ratio"] < 0.01
    assert found["suspicious_share"] == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_novelty_of_a_perfect_model(seed: int) -> None:
    training, test, samples = normal(seed, 300, 8), normal(seed + 50, 300, 8), normal(seed + 100, 300, 8)
    found = novelty(cdist(samples, training), cdist(test, training))
    assert found["ratio"] == pytest.approx(1, abs=0.15)
    assert found["suspicious_share"] < 0.15


@pytest.mark.parametrize("metric", [CHAMFER, EMD, "one_minus_iou"])
def test_models_of_shapes(metric: str) -> None:
    """The four models once more on ellipsoids, through each distance of shapes: train, test and what was "made"."""
    generator = np.random.default_rng(0)

    def shapes(sizes: np.ndarray) -> list[np.ndarray] | np.ndarray:
        if metric == "one_minus_iou":
            axis = (np.arange(16) + 0.5) / 16 - 0.5
            centres = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
            return np.stack([((centres / size) ** 2).sum(axis=-1) < 1 for size in sizes])
        ball = np.random.default_rng(1).standard_normal((32, 3))  # one set of points: only the sizes differ
        ball /= np.linalg.norm(ball, axis=1, keepdims=True)
        return [size * ball for size in sizes]

    def distances(rows: list[np.ndarray] | np.ndarray, columns: list[np.ndarray] | np.ndarray) -> np.ndarray:
        if metric == "one_minus_iou":
            return one_minus_iou(np.asarray(rows), np.asarray(columns))
        return distance_matrix(rows, columns, metric)

    sizes = generator.uniform(0.15, 0.48, (4, 24, 3))
    training, test = shapes(sizes[0]), shapes(sizes[1])
    made = {
        "perfect": shapes(sizes[2]),
        "collapsed": shapes(sizes[2, :1] * (1 + 0.01 * sizes[3])),
        "shrunken": shapes(0.315 + 0.3 * (sizes[2] - 0.315)),
        "memoriser": training,
    }
    scores, news = {}, {}
    for name, items in made.items():
        scores[name] = set_scores(Distances(distances(items, test), distances(items, items), distances(test, test)))
        news[name] = novelty(distances(items, training), distances(test, training))
    assert scores["perfect"]["1nna"] == pytest.approx(0.5, abs=0.25)
    assert scores["perfect"]["cov"] > 0.4
    assert scores["collapsed"]["cov"] < 0.15
    assert scores["collapsed"]["mmd"] > 1.5 * scores["perfect"]["mmd"]
    assert scores["shrunken"]["cov"] < scores["perfect"]["cov"]
    assert scores["shrunken"]["1nna_fake"] > 0.75
    assert news["perfect"]["ratio"] == pytest.approx(1, abs=0.5)
    assert news["perfect"]["suspicious_share"] < 0.4
    assert news["memoriser"]["ratio"] == 0
    assert news["memoriser"]["suspicious_share"] == 1


# Novelty


def test_novelty_on_a_line() -> None:
    training = line(0.0, 10.0)
    found = novelty(cdist(line(1.0, 7.0, 10.0), training), cdist(line(2.0, 6.0), training))
    assert found["nearest"].tolist() == [0, 1, 1]
    assert found["distance"].tolist() == [1, 3, 0]
    assert found["test_distance"].tolist() == [2, 4]
    assert (found["median"], found["test_median"]) == (1, 3)
    assert found["ratio"] == pytest.approx(1 / 3)
    assert found["suspicious_below"] == pytest.approx(2.1)
    assert found["suspicious_share"] == pytest.approx(2 / 3)


def test_exact_copies_are_suspicious_even_if_the_test_set_has_some() -> None:
    """Data sets hold duplicates: the quantile is then 0, and no distance is under it."""
    training = normal(3, 40)
    test = np.concatenate([training[:4], normal(4, 36)])
    assert novelty(cdist(training[:10], training), cdist(test, training))["suspicious_share"] == 1


def test_min_distances_takes_the_first_of_equally_near_ones() -> None:
    index, distance = min_distances(np.array([[3.0, 1.0, 1.0], [0.0, 2.0, 0.0]]))
    assert index.tolist() == [1, 0]
    assert distance.tolist() == [1, 0]


def test_novelty_refuses_other_training_sets_and_a_test_set_of_copies() -> None:
    training = normal(5, 10)
    with pytest.raises(MNIFError, match=r"10 training items and test items with 9; use the same"):
        novelty(cdist(training, training), cdist(training, training[:9]))
    with pytest.raises(MNIFError, match="10 of 10 test items are copies of training items"):
        novelty(cdist(normal(6, 10), training), cdist(training, training))


# Confidence intervals


def test_intervals_are_deterministic_and_hold_the_scores() -> None:
    distances = between_sets(normal(7, 31), normal(8, 31))
    first, again = (bootstrap(distances, num=50, seed=3) for _ in range(2))
    assert first == again
    assert first != bootstrap(distances, num=50, seed=4)
    assert tuple(first) == SCORES
    for name, value in set_scores(distances).items():
        low, high = first[name]
        assert low <= value <= high
        assert low >= 0
        assert name == "mmd" or high <= 1


def test_intervals_grow_with_the_level_and_shrink_with_the_sets() -> None:
    few, many = (between_sets(normal(9, count, 4), normal(10, count, 4)) for count in (24, 240))
    wide, narrow, smaller = bootstrap(few, 80, 0.95), bootstrap(few, 80, 0.5), bootstrap(many, 80, 0.95)
    for name in SCORES:
        widths = [high - low for low, high in (wide[name], narrow[name], smaller[name])]
        assert widths[1] < widths[0]
        assert widths[2] < 0.6 * widths[0]


def test_intervals_hold_the_true_mean_about_as_often_as_they_say() -> None:
    """Independent draws of both sets. With replacement the 1-NNA of copies would leave the mean out half the time."""
    draws = [between_sets(normal(2 * seed, 24, 8), normal(2 * seed + 1, 24, 8)) for seed in range(400)]
    scores = [set_scores(distances) for distances in draws]
    means = {name: np.mean([score[name] for score in scores]) for name in SCORES}
    found = [bootstrap(distances, num=100, level=0.8) for distances in draws[:60]]
    for name in SCORES:
        held = np.mean([interval[name][0] <= means[name] <= interval[name][1] for interval in found])
        assert 0.7 <= held <= 0.98, (name, held)


@pytest.mark.parametrize("count", [4, 5])
def test_intervals_of_a_plain_mean_are_those_of_all_halves(count: int) -> None:
    """Where all samples are one, MMD is the mean of fixed numbers. Halves of 2 of 5 vary by sqrt(3 / 2) too much."""
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])[:count]
    references = line(*values)
    distances = Distances(np.tile(values, (count, 1)), np.zeros((count, count)), cdist(references, references))
    means = [np.mean(some) for some in itertools.combinations(values, 2)]
    scale = {4: 1.0, 5: np.sqrt(2 / 3)}[count]
    expected = [max(values.mean() + scale * (end - values.mean()), 0.0) for end in (min(means), max(means))]
    assert bootstrap(distances, num=3000)["mmd"] == pytest.approx(expected, abs=0.25)


def test_intervals_of_a_half_at_its_end_are_not_empty() -> None:
    """No half of sets far apart shows an error, which 12 items cannot rule out: 0.025 = 0.735^12."""
    found = bootstrap(between_sets(normal(11, 12), normal(12, 12) + 100), num=20)
    assert [found[name] for name in SCORES[2:]] == [pytest.approx((0.735, 1), abs=1e-3)] * 3
    copied = normal(13, 12)
    found = bootstrap(between_sets(copied, copied.copy()), num=20)
    assert [found[name] for name in SCORES[2:]] == [pytest.approx((0, 0.265), abs=1e-3)] * 3


# Bad input


def test_sets_of_unequal_size_are_told_how_many_to_draw() -> None:
    distances = between_sets(normal(14, 5), normal(15, 7))
    for function in (set_scores, bootstrap):
        with pytest.raises(MNIFError, match=r"5 generated items against 7 of reference: .* equally many; draw 7"):
            function(distances)
    assert min(coverage(distances.between), mmd(distances.between)) > 0  # these need no equal sizes


@pytest.mark.parametrize(("function", "count", "least"), [(set_scores, 1, 2), (bootstrap, 3, 4)])
def test_too_few_items_are_refused(function: Callable[[Distances], object], count: int, least: int) -> None:
    with pytest.raises(MNIFError, match=f"{count} items of either set .* at least {least}"):
        function(between_sets(normal(16, count), normal(17, count)))


def broken(name: str, matrix: object) -> dict[str, object]:
    good = between_sets(line(0.0, 1.0, 3.0), line(5.0, 7.0))
    return {"between": good.between, "generated": good.generated, "reference": good.reference, name: matrix}


@pytest.mark.parametrize(
    ("name", "matrix", "message"),
    [
        ("generated", np.zeros((2, 2)), r"generated x generated of shape \[2, 2\] do not fit .* expected \[3, 3\]"),
        ("reference", np.zeros((2, 3)), r"reference x reference of shape \[2, 3\] do not fit .* expected \[2, 2\]"),
        ("between", np.ones(3), r"distances between: an array of shape \[3\], expected a matrix"),
        ("between", np.ones((0, 2)), r"distances between: an array of shape \[0, 2\]"),
        ("between", np.array([[1, 1], [1, np.nan], [1, 1]]), "distances between: nan at row 1, column 1"),
        ("between", np.array([[1, 1], [1, 1], [np.inf, 1]]), "distances between: inf at row 2, column 0"),
        ("reference", np.array([[0, -1e-9], [-1e-9, 0]]), "distances reference: -1e-09 at row 0, column 1"),
        ("reference", np.array([[0, 1], [1, 1e-3]]), "0.001 from item 1 to itself instead of 0"),
        ("reference", np.array([[0, 1], [2, 0]]), "reference x reference are not symmetric"),
    ],
)
def test_damaged_matrices_are_refused(name: str, matrix: object, message: str) -> None:
    with pytest.raises(MNIFError, match=message):
        Distances(**broken(name, matrix))  # type: ignore[arg-type]


def test_tensors_are_taken_and_rounding_on_the_diagonal_is_not() -> None:
    """Trap 5: `torch.cdist` in float32 puts copies of long vectors at 1e-3 and not at 0."""
    generated, reference = (torch.from_numpy(normal(seed, 60)).float() + 10 for seed in (18, 19))
    double = [side.double() for side in (generated, reference)]
    scores = set_scores(Distances(*(torch.cdist(double[a], double[b]) for a, b in ((0, 1), (0, 0), (1, 1)))))
    assert scores == pytest.approx(set_scores(between_sets(*(side.numpy() for side in double))))
    with pytest.raises(MNIFError, match="to itself instead of 0; compute them from differences in float64"):
        Distances(*(torch.cdist(a, b) for a, b in ((generated, reference), (generated, generated), (reference,) * 2)))
