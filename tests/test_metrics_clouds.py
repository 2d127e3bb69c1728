"""Distances between clouds and grids, and the histogram divergence, against slow and independent computations."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial.distance import jensenshannon

from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics import cloud_kernel
from mnif_nerf.metrics.clouds import CHAMFER, EMD, _chamfer, _Cloud, distance_matrix, one_minus_iou
from mnif_nerf.metrics.histograms import jensen_shannon, jsd_of_clouds, occupancy_histogram

seeds = st.integers(0, 2**32 - 1)


def clouds(seed: int, *sizes: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.uniform(-0.5, 0.5, (size, 3)) for size in sizes]


def chamfer(cloud: np.ndarray, other: np.ndarray) -> float:
    """By the trees, of any type."""
    return _chamfer(*(_Cloud.from_points(np.asarray(points, np.float64)) for points in (cloud, other)))


def emd(cloud: np.ndarray, other: np.ndarray) -> float:
    return float(distance_matrix([cloud], [other], EMD)[0, 0])


def plain_chamfer(cloud: np.ndarray, other: np.ndarray) -> float:
    squared = ((cloud[:, None, :] - other[None, :, :]) ** 2).sum(axis=2)
    return float(squared.min(axis=1).mean() + squared.min(axis=0).mean())


def plain_emd(cloud: np.ndarray, other: np.ndarray) -> float:
    costs = np.linalg.norm(cloud[:, None, :] - other[None, :, :], axis=2)
    every = itertools.permutations(range(len(cloud)))
    return min(float(costs[np.arange(len(cloud)), list(order)].mean()) for order in every)


# Chamfer


@given(seeds, st.integers(1, 80), st.integers(1, 80))
@settings(max_examples=40, deadline=None)
def test_chamfer_equals_all_pairs(seed: int, n: int, m: int) -> None:
    cloud, other = clouds(seed, n, m)
    assert chamfer(cloud, other) == pytest.approx(plain_chamfer(cloud, other), rel=1e-12, abs=1e-15)
    assert chamfer(cloud, other) == chamfer(other, cloud)


def test_chamfer_of_single_points_is_twice_the_squared_distance() -> None:
    """Trap 6: it is squared, summed over both directions, and no other variant."""
    here, there = np.array([[0.1, 0.0, 0.0]]), np.array([[0.1, 0.3, 0.4]])
    assert chamfer(here, there) == pytest.approx(2 * 0.25)
    # Two points against one: the mean of 0 and 0.25 in one direction, 0 in the other.
    assert chamfer(np.concatenate([here, there]), here) == pytest.approx(0.125)
    assert CHAMFER == "chamfer_l2sq_mean_sum"


def test_chamfer_of_a_shifted_lattice() -> None:
    axis = np.arange(4) * 0.25
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    assert chamfer(lattice, lattice + [0.1, 0.0, 0.0]) == pytest.approx(2 * 0.01)
    # Shifted by a whole cell three of four planes fall onto others, and one lies a cell beyond.
    assert chamfer(lattice, lattice + [0.25, 0.0, 0.0]) == pytest.approx(2 * 0.25 * 0.0625)


@given(seeds, st.floats(0.01, 100.0))
@settings(max_examples=20, deadline=None)
def test_chamfer_is_squared_and_emd_is_not(seed: int, factor: float) -> None:
    cloud, other = clouds(seed, 12, 12)
    assert chamfer(factor * cloud, factor * other) == pytest.approx(factor**2 * chamfer(cloud, other))
    assert emd(factor * cloud, factor * other) == pytest.approx(factor * emd(cloud, other))


@given(seeds, st.floats(0.0, 1e-6))
@settings(max_examples=30, deadline=None)
def test_chamfer_of_near_duplicates_is_not_negative(seed: int, noise: float) -> None:
    """Trap 5: neither for float32 clouds, nor far from the origin."""
    (cloud,) = clouds(seed, 100)
    cloud = cloud.astype(np.float32) + np.float32(10)
    near = (cloud + noise * np.random.default_rng(seed).standard_normal(cloud.shape)).astype(np.float32)
    assert chamfer(cloud, cloud.copy()) == 0
    assert chamfer(cloud, near) == pytest.approx(plain_chamfer(cloud.astype(float), near.astype(float)), rel=1e-9)
    assert chamfer(cloud, near) >= 0


def test_the_gram_matrix_would_be_negative() -> None:
    """Trap 5: what the test above guards against is there, on the same numbers."""
    cloud = clouds(0, 100)[0].astype(np.float32) + np.float32(10)
    square = (cloud**2).sum(axis=1)
    gram = square[:, None] + square[None, :] - 2 * cloud @ cloud.T
    assert gram.min() < 0


@pytest.mark.skipif(not cloud_kernel.available(), reason="the kernel was not built")
@given(seeds, st.lists(st.integers(1, 70), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_the_compiled_kernel_equals_the_trees(seed: int, sizes: list[int]) -> None:
    rows = [cloud.astype(np.float32) for cloud in clouds(seed, *sizes)]
    columns = [cloud.astype(np.float32) for cloud in clouds(seed + 1, *sizes[::-1])]
    for others in (rows, columns):
        trees = [[chamfer(cloud, other) for other in others] for cloud in rows]
        np.testing.assert_allclose(distance_matrix(rows, others), trees, rtol=1e-6, atol=0)
    assert distance_matrix(rows, [rows[0].copy()])[0, 0] == 0.0, "copies do not hide in rounding"


# Earth mover's distance


@given(seeds, st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_emd_is_the_best_of_all_bijections(seed: int, n: int) -> None:
    cloud, other = clouds(seed, n, n)
    assert emd(cloud, other) == pytest.approx(plain_emd(cloud, other), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_emd_equals_a_linear_program(seed: int) -> None:
    """The transport plan with equal marginals, by another solver of another formulation."""
    n = 16
    cloud, other = clouds(seed, n, n)
    costs = np.linalg.norm(cloud[:, None, :] - other[None, :, :], axis=2)
    sums = np.zeros((2 * n, n, n))
    for index in range(n):
        sums[index, index, :] = 1
        sums[n + index, :, index] = 1
    plan = linprog(costs.ravel(), A_eq=sums.reshape(2 * n, -1), b_eq=np.full(2 * n, 1 / n), bounds=(0, None))
    assert plan.status == 0
    assert emd(cloud, other) == pytest.approx(plan.fun, rel=1e-9)


def test_emd_of_a_shift_is_its_length() -> None:
    (cloud,) = clouds(1, 30)
    assert emd(cloud, cloud + [0.3, 0.0, 0.4]) == pytest.approx(0.5)


def test_emd_uses_every_point_once_where_chamfer_does_not() -> None:
    left, right = np.zeros(3), np.array([1.0, 0.0, 0.0])
    cloud, other = np.stack([left, left, left, right]), np.stack([left, right, right, right])
    assert chamfer(cloud, other) == 0
    assert emd(cloud, other) == pytest.approx(0.5)


# Both


@pytest.mark.parametrize("distance", [chamfer, emd])
@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_points_have_no_order(distance: Callable[..., float], seed: int) -> None:
    cloud, other = clouds(seed, 20, 20)
    order = np.random.default_rng(seed).permutation(20)
    assert distance(cloud[order], other) == pytest.approx(distance(cloud, other), rel=1e-12)
    assert distance(cloud, cloud[order]) == 0


@pytest.mark.parametrize(("metric", "distance"), [(CHAMFER, plain_chamfer), (EMD, plain_emd)])
def test_matrix_has_its_rows_in_rows(metric: str, distance: Callable[..., float]) -> None:
    sets = clouds(2, 5, 5, 5, 5, 5)
    rows, columns = sets[:2], sets[2:]
    expected = np.array([[distance(row, column) for column in columns] for row in rows])
    for workers in (None, 1, 3):
        assert distance_matrix(rows, columns, metric, workers=workers) == pytest.approx(expected)
    assert distance_matrix(rows, columns, metric).shape == (2, 3)
    assert distance_matrix(rows, columns, metric).dtype == np.float64


@pytest.mark.parametrize("metric", [CHAMFER, EMD])
def test_matrix_of_a_set_with_itself(metric: str) -> None:
    sets = clouds(3, *[40] * 6)
    matrix = distance_matrix(sets, sets, metric)
    assert (matrix == matrix.T).all()
    assert (matrix.diagonal() == 0).all()
    assert matrix == pytest.approx(distance_matrix(sets, list(sets), metric), rel=1e-12)


def test_clouds_of_a_chamfer_matrix_may_differ_in_size_and_come_as_one_array() -> None:
    (row,), columns = clouds(4, 7), clouds(5, 3, 11)
    assert distance_matrix([row], columns)[0, 1] == pytest.approx(plain_chamfer(row, columns[1]))
    stacked = np.stack(clouds(6, 9, 9)).astype(np.float32)
    assert distance_matrix(stacked, stacked)[1, 0] == pytest.approx(plain_chamfer(*stacked.astype(float)))


@pytest.mark.parametrize("same", [True, False])
def test_progress_counts_rows(same: bool) -> None:
    sets = clouds(7, *[4] * 5)
    calls: list[int] = []
    distance_matrix(sets, sets if same else list(sets), advance=lambda: calls.append(1))
    assert len(calls) == 5


def test_an_interrupted_matrix_leaves_out_the_rows_that_have_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = clouds(8, *[4] * 6)
    pairs: list[int] = []

    def slow_from_the_second(cloud: object, other: object) -> float:
        pairs.append(1)
        time.sleep(0.5 if len(pairs) > 1 else 0.0)
        return 0.0

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mnif_nerf.metrics.clouds._chamfer", slow_from_the_second)
    with pytest.raises(KeyboardInterrupt):
        distance_matrix(sets, sets[:1], advance=interrupt, workers=1)
    assert len(pairs) < 6


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((4, 3), np.nan), "cloud 1 of the columns: NaN or infinite points"),
        (np.array([[0.0, np.inf, 0.0]] * 4), "cloud 1 of the columns: NaN or infinite points"),
        (np.zeros((0, 3)), "cloud 1 of the columns: no points; leave empty shapes out"),
        (np.zeros((4, 2)), r"cloud 1 of the columns: an array of shape \[4, 2\]"),
    ],
)
@pytest.mark.parametrize("metric", [CHAMFER, EMD])
def test_bad_clouds_are_named_by_their_index(bad: np.ndarray, message: str, metric: str) -> None:
    (good,) = clouds(9, 4)
    with pytest.raises(MNIFError, match=message):
        distance_matrix([good], [good, bad], metric)
    with pytest.raises(MNIFError, match=message.replace("columns", "rows")):
        distance_matrix([good, bad], [good], metric)


def test_emd_of_unequal_sizes_is_refused_with_the_index() -> None:
    cloud, other = clouds(10, 5, 6)
    with pytest.raises(MNIFError, match="cloud 1 of the columns: 6 points, the first has 5"):
        distance_matrix([cloud], [cloud, other], EMD)


def test_unknown_metrics_and_no_clouds_are_refused() -> None:
    (cloud,) = clouds(11, 5)
    with pytest.raises(MNIFError, match="no distance 'chamfer' between clouds"):
        distance_matrix([cloud], [cloud], "chamfer")
    with pytest.raises(MNIFError, match="0 clouds against 1"):
        distance_matrix([], [cloud])


# Voxel grids


@given(seeds, st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None)
def test_one_minus_iou_equals_counting(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    rows, columns = (generator.random((count, 3, 3, 3)) < share for count in (4, 5))
    matrix = one_minus_iou(rows, columns)
    assert matrix.shape == (4, 5)
    for row, column in np.ndindex(4, 5):
        either = (rows[row] | columns[column]).sum()
        both = (rows[row] & columns[column]).sum()
        assert matrix[row, column] == pytest.approx(1 - both / either if either else 0.0)
    assert (one_minus_iou(rows.reshape(4, -1), columns.reshape(5, -1)) == matrix).all()


def test_one_minus_iou_of_empty_and_equal_grids() -> None:
    grids = np.zeros((3, 2, 2, 2), dtype=bool)
    grids[1, 0] = True
    grids[2] = True
    assert one_minus_iou(grids, grids).tolist() == [[0, 1, 1], [1, 0, 0.5], [1, 0.5, 0]]


def test_one_minus_iou_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = np.random.default_rng(0).random((2, 6, 1000)) < 0.3
    whole = one_minus_iou(rows, columns)
    monkeypatch.setattr("mnif_nerf.metrics.clouds._CHUNK_BYTES", 4 * 12 * 7)  # 7 cells, which do not divide 1,000
    assert (one_minus_iou(rows, columns) == whole).all()


def test_grids_of_other_sizes_or_types_are_refused() -> None:
    grids = np.ones((2, 4, 4, 4), dtype=bool)
    with pytest.raises(MNIFError, match="grids of 64 cells do not compare with 27"):
        one_minus_iou(grids, np.ones((1, 3, 3, 3), dtype=bool))
    with pytest.raises(MNIFError, match=r"columns: an array of float64 \[2, 4, 4, 4\], expected occupied cells"):
        one_minus_iou(grids, 0.5 * grids)


# Histograms


def test_points_count_at_the_nearest_centre() -> None:
    cloud = np.array([[-0.5, -0.5, -0.5], [0.5, 0.245, 0.13], [4.5, 0.5, 0.12]])
    counts = occupancy_histogram([cloud], resolution=5)  # centres at -0.5, -0.25, 0, 0.25, 0.5
    assert counts.sum() == 3
    assert counts[0, 0, 0] == counts[4, 3, 3] == counts[4, 4, 2] == 1


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_histogram_equals_a_search_for_the_nearest_centre(seed: int) -> None:
    sets = [1.5 * cloud for cloud in clouds(seed, 50, 30)]  # some points beyond the box
    axis = np.linspace(-0.5, 0.5, 6)
    centres = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    points = np.concatenate(sets)
    nearest = np.linalg.norm(points[:, None, :] - centres[None, :, :], axis=2).argmin(axis=1)
    expected = np.bincount(nearest, minlength=6**3).reshape(6, 6, 6)
    assert (occupancy_histogram(sets, 6) == expected).all()


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_divergence_equals_scipy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts, other = generator.integers(0, 4, (2, 5, 5, 5))
    expected = jensenshannon(counts.ravel(), other.ravel(), base=2) ** 2
    assert jensen_shannon(counts, other) == pytest.approx(expected, abs=1e-12)
    assert jensen_shannon(counts, other) == pytest.approx(jensen_shannon(other, counts), abs=1e-15)


def test_divergence_is_0_of_equal_and_1_of_disjoint_histograms() -> None:
    left, right = np.array([3, 1, 0, 0]), np.array([0, 0, 2, 5])
    assert jensen_shannon(left, 7 * left) == 0
    assert jensen_shannon(left, right) == 1
    # Half of the mass shared, by hand: (log2(4/3) + 0.5 * log2(2/3) + 0.5) / 2 with middle (1/4, 3/4).
    known = 0.5 * (math.log2(4 / 3) + 0.5 * math.log2(2 / 3) + 0.5)
    assert jensen_shannon(np.array([0, 1]), np.array([1, 1])) == pytest.approx(known)


def test_divergence_of_sets_sees_where_they_are_and_not_their_order() -> None:
    near, far = clouds(12, 500, 500, 500), [cloud * 0.5 for cloud in clouds(13, 500, 500, 500)]
    value = jsd_of_clouds(near, far)
    assert jsd_of_clouds(near, near) == 0
    assert 0.5 < value < 1
    assert jsd_of_clouds(near[::-1], [cloud[::-1] for cloud in far]) == value
    quarter = jsd_of_clouds([cloud / 4 for cloud in near], [cloud / 4 for cloud in far])
    assert quarter < value  # the same shapes in fewer cells


def test_histograms_of_nothing_are_refused() -> None:
    with pytest.raises(MNIFError, match="no clouds have no histogram"):
        jsd_of_clouds([], clouds(14, 5))
    with pytest.raises(MNIFError, match="cloud 1: NaN or infinite points"):
        occupancy_histogram([np.zeros((2, 3)), np.full((2, 3), np.nan)])
    with pytest.raises(MNIFError, match="without counts"):
        jensen_shannon(np.zeros(3), np.ones(3))
    with pytest.raises(MNIFError, match="do not compare"):
        jensen_shannon(np.ones(3), np.ones(4))
