"""Voxel metrics, and image metrics of small and grey pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics.grids import accuracy, iou, occupancy_psnr
from mnif_nerf.metrics.images import psnr, ssim

FULL, EMPTY = torch.ones(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_voxel_metrics_equal_counting(pairs: list[tuple[bool, bool]]) -> None:
    ours, truth = (torch.tensor(column) for column in zip(*pairs))
    both, either = sum(a and b for a, b in pairs), sum(a or b for a, b in pairs)
    assert iou(ours, truth).item() == pytest.approx(both / either if either else 1.0)
    wrong = sum(a != b for a, b in pairs)
    assert accuracy(ours, truth).item() == pytest.approx(1 - wrong / len(pairs))
    expected = -10 * math.log10(wrong / len(pairs)) if wrong else math.inf
    assert occupancy_psnr(ours.float(), truth).item() == pytest.approx(expected, abs=1e-4)


def test_empty_grids() -> None:
    assert iou(EMPTY, EMPTY) == 1
    assert iou(EMPTY, FULL) == iou(FULL, EMPTY) == 0
    assert accuracy(EMPTY, EMPTY) == 1
    assert accuracy(EMPTY, FULL) == 0
    assert occupancy_psnr(EMPTY.float(), EMPTY) == math.inf
    assert occupancy_psnr(EMPTY.float(), FULL) == 0


def test_each_instance_has_its_own_number() -> None:
    truth = torch.stack([FULL, EMPTY, FULL])
    half = torch.tensor([True] * 4 + [False] * 4).expand(3, 8)
    assert iou(half, truth).tolist() == [0.5, 0.0, 0.5]
    assert accuracy(half, truth).tolist() == [0.5, 0.5, 0.5]
    per_instance = occupancy_psnr(torch.full((3, 8), 0.9, dtype=torch.float64), truth)
    assert per_instance.tolist() == pytest.approx([20.0, -10 * math.log10(0.81), 20.0])
    assert per_instance.dtype == torch.float64


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [3, 4, 8, 10, 16])
def test_ssim_of_small_pictures_is_a_number_that_falls_with_noise(size: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(size)
    picture, noise = torch.rand(2, size, size, channels, generator=generator)
    values = [ssim(picture, torch.lerp(picture, noise, share)).item() for share in (0.0, 0.3, 1.0)]
    assert values[0] == pytest.approx(1.0, abs=1e-5)
    assert values[0] > values[1] > values[2]
    assert psnr(picture, noise).isfinite()


@pytest.mark.parametrize("size", [8, 16])
def test_ssim_equals_another_implementation(size: int) -> None:
    """By hand from its definition, the pictures mirrored beyond their edges."""
    generator = torch.Generator().manual_seed(1)
    picture, other = torch.rand(2, size, size, 1, generator=generator, dtype=torch.float64)
    radius = 3 if size == 8 else 5
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / (0.3 * radius)) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    ours, theirs = (np.pad(side.numpy()[..., 0], radius, mode="reflect") for side in (picture, other))
    values = []
    for row, column in np.ndindex(size, size):
        here = np.s_[row : row + 2 * radius + 1, column : column + 2 * radius + 1]
        a, b = ours[here], theirs[here]
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        spread_a, spread_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
        common = (window * a * b).sum() - mean_a * mean_b
        top = (2 * mean_a * mean_b + 1e-4) * (2 * common + 9e-4)
        values.append(top / ((mean_a**2 + mean_b**2 + 1e-4) * (spread_a + spread_b + 9e-4)))
    assert ssim(picture, other).item() == pytest.approx(np.mean(values), abs=1e-6)


def test_pictures_too_small_for_any_window_are_refused() -> None:
    with pytest.raises(MNIFError, match="2x5 pixels have no structural similarity; use 3x3 or more"):
        ssim(torch.zeros(5, 2, 1), torch.zeros(5, 2, 1))
