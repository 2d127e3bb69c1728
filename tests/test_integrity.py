"""Integrity: what is measured of solids and waves, and how a yardstick judges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics.integrity import LIMIT, WORST, Feature, Yardstick
from mnif_nerf.metrics.solid_integrity import SOLID_FEATURES, euler_number, solid_features
from mnif_nerf.metrics.wave_integrity import WAVE_FEATURES, wave_features
from mnif_nerf.rendering.cell_distances import cell_distances

CELLS = 48
CELL = 1.0 / CELLS


def box_distance(low, high) -> np.ndarray:
    """Signed distances to a box, at the centres of the unit cube's cells."""
    axis = (np.arange(CELLS) + 0.5) * CELL - 0.5
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    outside = np.maximum(np.array(low) - points, points - np.array(high))
    return np.asarray(np.linalg.norm(np.maximum(outside, 0), axis=-1) + np.minimum(outside.max(axis=-1), 0))


BOX = box_distance((-0.3, -0.2, -0.2), (0.3, 0.2, 0.2))


def features_of(distance: np.ndarray) -> dict[str, float]:
    return solid_features(np.clip(distance, -0.05, 0.05).astype(np.float32), CELL)


def yardstick() -> Yardstick:
    boxes = [box_distance((-0.3 - k / 200, -0.2, -0.2), (0.3 + k / 200, 0.2, 0.2)) for k in range(5)]
    return Yardstick.of(SOLID_FEATURES, [features_of(box) for box in boxes])


def test_a_whole_box_has_no_flaw():
    found = features_of(BOX)
    expected = {"pieces": 1, "crumbs": 0, "loose": 0, "gap": 0, "reach": 1, "holes": 0, "cavities": 0}
    assert {name: found[name] for name in expected} == expected
    assert found["volume"] == pytest.approx(0.6 * 0.4 * 0.4, rel=0.02)
    assert found["size"] == pytest.approx(np.sqrt(0.6**2 + 0.4**2 + 0.4**2), rel=0.05)
    assert found["thin"] < 0.06  # a ball does not reach into corners
    judged = yardstick().judge(found)
    assert judged.score < 0.05  # the least of the boxes, a hair below the 2.5th percentile
    assert not judged.broken


def test_two_pieces_are_told_with_their_share_and_their_gap():
    gap = 0.07
    first, second = (
        box_distance((-0.3, -0.2, -0.2), (0.1, 0.2, 0.2)),
        box_distance((0.1 + gap, -0.2, -0.2), (0.3, 0.2, 0.2)),
    )
    halves = np.minimum(first, second)
    found = features_of(halves)
    assert found["pieces"] == 2
    assert found["loose"] == pytest.approx((0.2 - gap) / (0.6 - gap), abs=0.03)
    assert found["gap"] == pytest.approx(gap, abs=CELL)
    assert found["reach"] < 0.9
    judged = yardstick().judge(found)
    assert judged.broken
    assert judged.score == WORST
    assert "loose" in judged.reason


def test_a_thin_bridge_is_no_gap_though_no_cell_lies_in_it():
    wire = box_distance((-0.3, -0.002, -0.002), (0.3, 0.002, 0.002)) - 0.008  # rounded: a cell thick
    first, second = box_distance((-0.3, -0.2, -0.2), (-0.1, 0.2, 0.2)), box_distance((0.1, -0.2, -0.2), (0.3, 0.2, 0.2))
    bar = np.minimum(first, second)
    assert features_of(bar)["pieces"] == 2
    bridged = np.minimum(bar, wire)
    assert not (bridged[20:28] < 0).any()
    assert features_of(bridged)["pieces"] == 1


def test_a_crumb_between_the_centres_of_cells_is_seen():
    corner = np.array([0.4, 0.4, 0.4])
    crumb = np.linalg.norm(np.stack(np.meshgrid(*[(np.arange(CELLS) + 0.5) * CELL - 0.5] * 3, indexing="ij"), -1)
                           - np.round(corner / CELL) * CELL, axis=-1) - 0.014  # fmt: skip
    assert (crumb > 0).all()
    found = features_of(np.minimum(BOX, crumb))
    assert (found["pieces"], found["crumbs"]) == (1, 1)
    assert yardstick().judge(found).broken


def test_a_tunnel_and_a_cavity_are_told_apart():
    tunnel = features_of(np.maximum(BOX, -box_distance((-0.05, -0.05, -0.5), (0.05, 0.05, 0.5))))
    cavity = features_of(np.maximum(BOX, -box_distance((-0.05, -0.05, -0.05), (0.05, 0.05, 0.05))))
    assert (tunnel["holes"], tunnel["cavities"]) == (1, 0)
    assert (cavity["holes"], cavity["cavities"]) == (0, 1)
    assert yardstick().judge(tunnel).reason.startswith("holes")
    assert yardstick().judge(cavity).reason.startswith("cavities")


def test_a_rough_box_and_a_thin_plate_are_outside_the_range():
    noise = np.random.default_rng(0).normal(0.0, 0.02, BOX.shape)
    rough = features_of(BOX + noise)
    assert rough["roughness"] > features_of(BOX)["roughness"] + 0.2
    assert yardstick().judge(rough).broken
    plate = features_of(box_distance((-0.3, -0.2, -0.02), (0.3, 0.2, 0.02)))
    assert plate["thin"] == 1.0
    assert yardstick().judge(plate).broken


def test_cells_alone_give_distances():
    cells = BOX < 0
    found = cell_distances(cells, CELL)
    assert np.array_equal(found < 0, cells)
    near = np.abs(BOX) < 0.03
    assert np.abs(found - BOX)[near].max() < CELL
    assert solid_features(found, CELL)["pieces"] == 1
    assert solid_features(cell_distances(np.zeros_like(cells), CELL), CELL) == {}


def test_euler_number_of_ring_shell_and_corner_contact():
    ring = np.zeros((5, 5, 3), bool)
    ring[1:4, 1:4, 1] = True
    ring[2, 2, 1] = False
    shell = np.ones((3, 3, 3), bool)
    shell[1, 1, 1] = False
    corner = np.zeros((2, 2, 2), bool)
    corner[0, 0, 0] = corner[1, 1, 1] = True
    assert [euler_number(cells) for cells in (ring, shell, corner)] == [0, 2, 1]


def test_ranges_let_a_few_bad_objects_of_the_data_pass_by():
    feature = Feature("x", 1.0, "above", above="much x")
    measured = [{"x": float(k % 3)} for k in range(98)] + [{"x": 100.0}, {}]
    found = Yardstick.of([feature], measured)
    assert found.count == 99
    assert found.ranges["x"] == (0.0, 2.0)
    assert found.judge({"x": 2.0}).score == 0.0
    assert found.judge({"x": 3.0}).score == pytest.approx(0.5)
    assert found.judge({"x": 3.0}).broken
    assert found.judge({"x": -5.0}).score == 0.0
    empty = found.judge({})
    assert (empty.score, empty.reason) == (WORST, "empty")
    assert empty.score > LIMIT
    with pytest.raises(MNIFError, match="content"):
        Yardstick.of([feature], [{}, {}])


def test_blurred_and_noisy_pictures_are_outside_the_range():
    rng = np.random.default_rng(0)
    plane = torch.from_numpy(rng.random((20, 1, 8, 8)))
    sharp = torch.nn.functional.interpolate(plane, scale_factor=4, mode="nearest")[:, 0].numpy()
    soft = torch.nn.functional.interpolate(plane, scale_factor=4, mode="bicubic")[:, 0].clip(0, 1).numpy()
    made = Yardstick.of(WAVE_FEATURES, [wave_features(picture, 2) for picture in sharp])
    assert not made.judge(wave_features(sharp[0], 2)).broken
    assert made.judge(wave_features(soft[0], 2)).reason.startswith("blurred")
    noisy = made.judge(wave_features(sharp[0] + rng.normal(0, 0.5, (32, 32)), 2))
    assert noisy.broken
    assert wave_features(np.sin(np.arange(64.0)), 1)["contrast"] == pytest.approx(10 * np.log10(0.5), abs=0.2)
