"""Which views are fitted to, held out and scored (no nerfstudio)."""

from __future__ import annotations

import pytest

from mnif_nerf.data.sampling.views import conditioning_views


@pytest.mark.parametrize(
    ("num_views", "wanted", "expected"),
    [
        (251, (64, 104), [64, 104]),
        (251, (104, 64, 64), [64, 104]),
        (8, (64, 104), [2, 6]),  # the scene lacks them: as many, evenly spaced
        (8, (-1,), [4]),  # a number below 0 must not reach into the scene before
        (2, (0, 1), [1]),  # one view is left to score
        (1, (64, 104), [0]),
    ],
)
def test_conditioning_views(num_views: int, wanted: tuple[int, ...], expected: list[int]) -> None:
    assert conditioning_views(num_views, wanted).tolist() == expected
