"""Batches drawn ahead in background threads: the same ones, whatever was drawn before and by however many threads."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_resident import SAMPLERS, grids, same
from tiny_runs import tiny_settings
from tiny_srn import write_tiny_srn

from mnif_nerf.data.sampling import prefetch
from mnif_nerf.data.sampling.epochs import InstanceShuffle
from mnif_nerf.data.sampling.point_sampler import PointSampler
from mnif_nerf.data.sampling.prefetch import Prefetcher
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.machine import flushes_denormals
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.random import WHOLE, Share
from mnif_nerf.rendering.batch import PointBatch, of_share


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = write_tiny_srn(tmp_path_factory.mktemp("ahead"), scenes=5, views=4, resolution=24)
    return open_store(root, "train", progress=False)


def batch_of(number: int, share: Share) -> PointBatch:
    values = torch.full((2, 3, 5), float(number))
    return of_share(PointBatch(torch.tensor([number, share.part]), values, values[:, :1]), share)


def drawn_together(prefetcher: Prefetcher[PointBatch]) -> None:
    for future in list(prefetcher._drawn.values()):
        future.result()


@pytest.mark.parametrize("name", SAMPLERS)
def test_batches_are_those_of_draws_on_demand(scenes: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    demanded, ahead = SAMPLERS[name](scenes, tmp_path / "a"), SAMPLERS[name](scenes, tmp_path / "b").draw_ahead()
    for step in (*range(9), 30, 31, 2, 3):  # over several epochs; then as after a resume
        assert same(ahead.draw(step), demanded.draw(step))
    part = Share(1, 2)
    assert same(ahead.draw(3, part), demanded.draw(3, part))
    assert ahead.draw(4, part).share == part


def test_what_follows_is_drawn_before_it_is_asked_for() -> None:
    drawn, flushed = [], set()

    def draw(number: int, share: Share) -> PointBatch:
        drawn.append(number)
        flushed.add(flushes_denormals())
        assert threading.current_thread() is not threading.main_thread()
        return batch_of(number, share)

    ahead = Prefetcher(draw, "cpu", threads=2)
    for number in range(4):
        assert int(ahead(number).instances[0]) == number
        drawn_together(ahead)
        assert sorted(drawn) == list(range(number + ahead.ahead + 1)), "each once, and no further"
    assert flushed == {True}, "as a training step draws on demand"
    assert int(ahead(100).instances[0]) == 100
    drawn_together(ahead)
    assert max(drawn) == 100 + ahead.ahead
    assert len(ahead._drawn) == ahead.ahead, "nothing else is kept"


def test_an_error_is_that_of_its_batch_alone() -> None:
    def draw(number: int, share: Share) -> PointBatch:
        if number == 2:
            raise ValueError("no batch 2")
        return batch_of(number, share)

    ahead = Prefetcher(draw, "cpu", threads=1)
    assert [int(ahead(number).instances[0]) for number in (0, 1)] == [0, 1]
    for _ in range(2):
        with pytest.raises(ValueError, match="no batch 2"):
            ahead(2)
    assert int(ahead(3).instances[0]) == 3


def test_threads_may_take_from_one_shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    made, randperm = [], torch.randperm

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        made.append(args)
        return randperm(*args, **kwargs)

    monkeypatch.setattr(torch, "randperm", counted)
    shuffle, alone = InstanceShuffle(5, 1), InstanceShuffle(5, 1)
    for first in (3, 6, 4, 7, 3):  # on both sides of the end of an epoch
        assert torch.equal(shuffle.take(first, 2), alone.take(first, 2))
    assert len(made) == 4, "two epochs of two shuffles"
    ahead = Prefetcher(lambda number, share: PointBatch(shuffle.take(3 * number, 3), *[torch.zeros(1)] * 2), "cpu", 4)
    for number in range(40):
        assert torch.equal(ahead(number).instances, alone.take(3 * number, 3))


class _Card:
    """A CUDA device that does nothing, but notes what is asked of it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        stream = SimpleNamespace(wait_event=lambda event: self.log.append(f"wait for {event.name}"))
        for name, value in {
            "device": lambda device: contextlib.nullcontext(),
            "stream": lambda stream: contextlib.nullcontext(),
            "Stream": lambda device: SimpleNamespace(),
            "Event": lambda: SimpleNamespace(name=self.log[-1], record=lambda stream: None),
            "current_stream": lambda device: stream,
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: self.pinned(tensor))
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, on: self.log.append("in use"))
        patch.setattr(PointBatch, "to", lambda batch, device: self.copied(batch))
        self.threads: set[Any] = set()
        self.pins = 0

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        self.pins += 1
        return tensor.clone()

    def copied(self, batch: PointBatch) -> PointBatch:
        self.threads.add(threading.current_thread())
        self.log.append(f"copy {int(batch.instances[0])}")
        return batch


def test_a_device_gets_the_next_batch_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of copies, waits and uses; what CUDA makes of them only a card can tell (tests/test_cuda.py)."""
    card = _Card(monkeypatch)
    ahead = Prefetcher(batch_of, torch.device("cuda"), threads=1)
    assert int(ahead(0).instances[0]) == 0
    drawn_together(ahead)
    assert int(ahead(1).instances[0]) == 1
    drawn_together(ahead)
    del card.log[:]
    assert int(ahead(2).instances[0]) == 2
    assert card.log == ["wait for copy 2", "in use", "in use", "in use", "copy 3"]
    del card.log[:]
    drawn_together(ahead)
    assert int(ahead(7).instances[0]) == 7
    assert card.log[0] == "copy 7", "another one than was sent is copied when it is asked for"
    assert card.threads == {threading.main_thread()}
    assert card.pins >= 3 * 6, "every tensor of what was drawn"


def test_a_store_that_does_not_fit_is_drawn_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (200, 1000))
    sampler = PointSampler(grids("voxel"), 2, 30, "cuda")
    monkeypatch.setattr(sampler, "_all_centres", lambda count: None)
    assert sampler.reside()._ahead is not None
    assert sampler._resident is None
    assert PointSampler(grids("voxel"), 2, 30).reside()._ahead is None, "a CPU has other work for its cores"


def test_a_run_does_not_depend_on_it(tmp_path: Path) -> None:
    data = write_tiny_srn(tmp_path / "scenes", scenes=4, views=4, resolution=16)
    losses = []
    for ahead in (False, True):
        run = TrainingRun(tiny_settings(data, tmp_path / str(ahead)))
        if ahead:
            run.data.rays.draw_ahead()
        losses.append([float(run.trainer.step(step).loss) for step in range(6)])
    assert losses[0] == losses[1]


def test_the_number_of_threads_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "num_cores", lambda: 128)
    assert Prefetcher(batch_of, "cpu").ahead == 8
    assert Prefetcher(batch_of, "cpu")(0, WHOLE).share == WHOLE
