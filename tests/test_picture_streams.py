"""Pictures that go through feature networks in parts: the same scores as of all together, in memory that is bounded."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mnif_nerf.data.sampling.views import evenly_spaced
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.cache import Cache
from mnif_nerf.evaluation.generated import PictureSet
from mnif_nerf.evaluation.picture_features import features_of, scores_of
from mnif_nerf.evaluation.protocols import PROTOCOLS
from mnif_nerf.latents.ranks import ONE
from mnif_nerf.metrics.distributions import frechet_distance
from mnif_nerf.metrics.feature_sums import FeatureSums, frechet_distance_of_sums
from mnif_nerf.metrics.features import FeatureNetwork, random_conv


@contextmanager
def quiet(title: str, total: int) -> Iterator[Callable[[], None]]:
    yield lambda: None


def context_of(cache: Path | None = None, **changes: Any) -> Any:
    protocol = dataclasses.replace(PROTOCOLS["paper"], neighbours=2, resamples=8, **changes)
    return SimpleNamespace(protocol=protocol, cache=Cache(cache), stage=quiet, device=None, ranks=ONE)


def noise(seed: int, objects: int, views: int, level: int = 256, size: int = 8) -> PictureSet:
    """Pictures that are made again whenever they are asked for."""

    def of(k: int) -> Tensor:
        generator = np.random.default_rng((seed, k))
        return torch.from_numpy(generator.integers(0, level, (views, size, size, 3), dtype=np.uint8))

    return PictureSet(objects, views, (size, size), of, {"noise": [seed, objects, views, level]})


def test_streamed_scores_are_those_of_all_pictures() -> None:
    real, fake, network = noise(0, 20, 6), noise(1, 20, 6, 200), random_conv()
    whole = [features_of(context_of(), side, [network], "")[0] for side in (real, fake)]
    assert [side.sums for side in whole] == [None, None]
    expected = scores_of(context_of(), *whole, network.name)
    streaming = context_of(most_pictures=100, kept_pictures=120)
    parts = [features_of(streaming, side, [network], "")[0] for side in (real, fake)]
    for side, other in zip(parts, whole):
        assert side.sums is not None
        assert side.sums.count == 120
        assert torch.equal(side.rows, other.rows)
    found = scores_of(streaming, *parts, network.name)
    assert list(found) == list(expected)
    for name, score in expected.items():
        assert found[name][0] == pytest.approx(score[0], rel=1e-8), name
    assert np.isnan(found["fd_random-conv"][1])


def test_what_is_kept_is_spread_evenly() -> None:
    network = random_conv()
    some = features_of(context_of(most_pictures=50, kept_pictures=30), noise(0, 10, 7), [network], "")[0]
    assert torch.equal(some.groups, torch.arange(10).repeat_interleave(3))
    everything = features_of(context_of(most_pictures=50), noise(0, 10, 7), [network], "", every=True)[0]
    assert len(everything.rows) == 70
    assert torch.allclose(some.rows[:3], everything.rows[evenly_spaced(7, 3)], atol=1e-5)
    few = features_of(context_of(most_pictures=50, kept_pictures=4), noise(0, 10, 7), [network], "")[0]
    assert few.groups.tolist() == evenly_spaced(10, 4).tolist()


def test_memory_does_not_grow_with_the_number_of_views() -> None:
    """Of pictures and of what is made of them on the way; numpy's arrays are what Python's own counter sees."""

    def function(pictures: Tensor) -> Tensor:
        return torch.from_numpy(pictures.numpy().astype(np.float32)).flatten(1)[:, :16]

    network = FeatureNetwork("toy", 16, function)
    context = context_of(most_pictures=64, kept_pictures=32)
    peaks = []
    for objects in (8, 160):
        tracemalloc.start()
        found = features_of(context, noise(0, objects, 25, size=16), [network], "")[0]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.sums is not None
        assert found.sums.count == objects * 25
        assert len(found.rows) == 32
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[0] < 25 * 64 * 16 * 16 * 3


def test_each_network_is_kept_by_itself(tmp_path: Path) -> None:
    """Pictures are made once for all networks, and not again for those that have seen them."""
    made: list[int] = []
    pictures = noise(0, 6, 2)
    counted = dataclasses.replace(pictures, of=lambda k: made.append(k) or pictures.of(k))
    toy = FeatureNetwork("toy", 4, lambda values: values.float().flatten(1)[:, :4])
    context = context_of(tmp_path, most_pictures=5, kept_pictures=6)
    first = features_of(context, counted, [random_conv(), toy], "")
    assert made == list(range(6))
    again = features_of(context, counted, [toy, random_conv()], "")
    assert made == list(range(6))
    for one, other in zip(first, again[::-1]):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.all_sums.scatter, other.all_sums.scatter)
        assert one.all_sums.count == other.all_sums.count == 12
    features_of(context, counted, [dataclasses.replace(toy, name="other")], "")
    assert made == 2 * list(range(6))


@pytest.mark.parametrize("counts", [(40, 60), (7, 9)])
def test_sums_in_any_parts_give_the_frechet_distance(counts: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (1000 + torch.randn(count, 12, generator=generator, dtype=torch.float64) for count in counts)
    fake = 0.8 * fake + 190
    sides = []
    for rows in (real, fake):
        sums, other = FeatureSums(12), FeatureSums(12)
        for part in rows[: len(rows) // 2].split(4):
            sums.add(part)
        other.add(rows[len(rows) // 2 :])
        other.add(rows[:0])
        sums.merge(other)
        sums.merge(FeatureSums(12))
        sides.append(sums)
    assert frechet_distance_of_sums(*sides) == pytest.approx(frechet_distance(real, fake), rel=1e-9)
    assert frechet_distance_of_sums(sides[0], sides[0]) == pytest.approx(0, abs=1e-6)


def test_sums_without_sense_are_refused() -> None:
    rows = torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(MNIFError, match=r"features of 4 numbers \(real\) and 5"):
        frechet_distance_of_sums(FeatureSums.of(rows), FeatureSums(5))
    with pytest.raises(MNIFError, match="1 generated samples"):
        frechet_distance_of_sums(FeatureSums.of(rows), FeatureSums.of(rows[:1]))
    rows[1, 2] = torch.nan
    with pytest.raises(MNIFError, match="real samples: NaN"):
        frechet_distance_of_sums(FeatureSums.of(rows), FeatureSums.of(rows))
