"""Draws where the store lives on the device: here the CPU, through the same code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_surface_points import make_store
from tiny_runs import tiny_settings
from tiny_srn import write_tiny_srn
from torch.utils._python_dispatch import TorchDispatchMode

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.sampling.point_sampler import PointChoice, PointSampler
from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.sampling.residence import fits
from mnif_nerf.data.sampling.surface_sampler import KindShares, SurfaceSampler
from mnif_nerf.data.stores.grid_store import GridStore, store_of
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.fields import kernel
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.random import Share
from mnif_nerf.rendering.grids import cell_coordinates


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = write_tiny_srn(tmp_path_factory.mktemp("resident"), scenes=5, views=4, resolution=24)
    return open_store(root, "train", progress=False)


def grids(kind: str) -> GridStore:
    generator = np.random.default_rng(0)
    if kind == "voxel":
        axes = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij")) / 9 - 0.5
        return store_of([(axes**2).sum(axis=0) < size for size in (0.05, 0.1, 0.15, 0.2)], "voxel")
    if kind == "image":
        return store_of(list(generator.integers(0, 256, (4, 9, 7, 3), dtype=np.uint8)), "image")
    return store_of(
        list(generator.normal(size=(4, 40, 2)).astype(np.float32)), "signal", GridFacts((40,), 2, -4.0, 5.0)
    )


class _NoWaiting(TorchDispatchMode):
    """Refuses what would make a GPU wait for its results."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        waits = name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::lift_fresh")
        masks = [each for part in args[1:] if isinstance(part, (list, tuple)) for each in part]
        if waits or (name.startswith("aten::index") and any(getattr(m, "dtype", None) == torch.bool for m in masks)):
            raise AssertionError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refused(*_: object) -> None:
        raise AssertionError("leaves the device")

    for name in ("numpy", "tolist", "cpu", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, refused)
    with _NoWaiting():
        yield


SAMPLERS = {
    "rays": lambda scenes, folder: RayBatchSampler(scenes, 2, 16, 8, seed=3),
    "cells": lambda scenes, folder: PointSampler(grids("voxel"), 2, 60, seed=3),
    "weighed cells": lambda scenes, folder: PointSampler(grids("voxel"), 2, 60, seed=3, choice=PointChoice(0.5, True)),
    "distances": lambda scenes, folder: PointSampler(grids("voxel"), 2, 60, seed=3, choice=PointChoice(cut_cells=2.0)),
    "all distances": lambda scenes, folder: PointSampler(grids("voxel"), 2, 0, choice=PointChoice(cut_cells=2.0)),
    "pixels": lambda scenes, folder: PointSampler(grids("image"), 2, 30, seed=3),
    "moved pixels": lambda scenes, folder: PointSampler(grids("image"), 2, 30, seed=3, choice=PointChoice(jitter=True)),
    "all pixels moved": lambda scenes, folder: PointSampler(grids("image"), 2, 0, choice=PointChoice(jitter=True)),
    "signals": lambda scenes, folder: PointSampler(grids("signal"), 2, 11, seed=3, choice=PointChoice(jitter=True)),
    "surfaces": lambda scenes, folder: SurfaceSampler(make_store(folder), 1, 50, seed=3),
    "all of surfaces": lambda scenes, folder: SurfaceSampler(make_store(folder), 1, 0),
}


def made(name: str, scenes: Any, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    return SAMPLERS[name](scenes, folder).reside(True)


def tensors(batch: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def same(first: Any, second: Any) -> bool:
    ours, theirs = tensors(first), tensors(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_depend_on_seed_and_step_alone(scenes: Any, tmp_path: Path, name: str) -> None:
    first, again = (made(name, scenes, tmp_path / part) for part in "ab")
    drawn = [first.draw(step) for step in range(6)]
    for step in (5, 0, 3):  # as after a resume
        assert same(again.draw(step), drawn[step])
    assert not same(drawn[0], drawn[1])
    host = SAMPLERS[name](scenes, _folder(tmp_path / "c"))
    for step in range(6):
        ours, theirs = tensors(drawn[step]), tensors(host.draw(step))
        assert torch.equal(ours["instances"], theirs["instances"])
        assert ours.keys() == theirs.keys()
        assert all(ours[each].shape == theirs[each].shape and ours[each].dtype == theirs[each].dtype for each in ours)


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize("name", SAMPLERS)
def test_drawing_never_waits(scenes: Any, tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    sampler = made(name, scenes, tmp_path)
    request.getfixturevalue("no_waiting")
    for step in range(6):
        sampler.draw(step)
    ones = torch.ones(2)
    for waits in (lambda: float(ones.sum()), lambda: ones[ones > 0], ones.numpy, lambda: torch.tensor([1.0])):
        with pytest.raises(AssertionError, match=r"waits for the device|leaves the device"):
            waits()


@pytest.mark.parametrize("name", ["rays", "cells", "weighed cells", "moved pixels", "surfaces"])
def test_shares_make_the_whole(scenes: Any, tmp_path: Path, name: str) -> None:
    sampler, whole = made(name, scenes, tmp_path / "a"), made(name, scenes, tmp_path / "b")
    each = "scenes_per_step" if name == "rays" else "instances_per_step"
    count = getattr(whole, each)
    for part in (whole, whole._draws) if name != "rays" else (whole,):
        setattr(part, each, 2 * count)
    for step in range(3):
        parts = [tensors(sampler.draw(step, Share(number, 2))) for number in range(2)]
        for key, value in tensors(whole.draw(step)).items():
            assert torch.equal(torch.cat([part[key] for part in parts]), value), key


@pytest.mark.parametrize("name", ["rays", "cells", "weighed cells", "pixels", "surfaces"])
def test_fixed_draws_are_each_instances_own(scenes: Any, tmp_path: Path, name: str) -> None:
    sampler = made(name, scenes, tmp_path)
    count = () if name == "rays" else (20,)
    together = tensors(sampler.fixed(torch.tensor([2, 0, 1]), *count))
    for row, instance in enumerate((2, 0, 1)):
        alone = tensors(sampler.fixed(torch.tensor([instance]), *count))
        assert all(torch.equal(value[0], together[key][row]) for key, value in alone.items())


def test_rays_are_those_of_the_host(scenes: Any) -> None:
    """On the same device the numbers are the same, and so is all that follows: colours, hulls, spans."""
    host, resident = (RayBatchSampler(scenes, 3, 24, 8, seed=1) for _ in range(2))
    resident.reside(True)
    beside = RayBatchSampler(scenes, 2, 24, seed=1).reside(beside=resident)
    assert beside.images is resident.images
    assert beside.resident
    for step in range(6):
        assert same(host.draw(step), resident.draw(step))
    assert same(host.fixed(torch.tensor([4, 1])), resident.fixed(torch.tensor([4, 1])))


@pytest.mark.parametrize("kind", ["voxel", "image", "signal"])
def test_values_at_cells_are_the_stores(kind: str) -> None:
    store = grids(kind)
    for choice in (PointChoice(), PointChoice(cut_cells=2.0)) if kind == "voxel" else (PointChoice(),):
        host = PointSampler(store, 3, 20, choice=choice)
        batch = PointSampler(store, 3, 20, choice=choice).reside(True).draw(2)
        everything = cell_coordinates(torch.arange(store.num_cells), store.shape)
        apart = (batch.points[:, :, :, None] - everything[:, None]).abs().sum(dim=1)
        cells = apart.argmin(dim=2)
        assert float(apart.min(dim=2).values.max()) < 1e-5
        expected = torch.from_numpy(host._targets(batch.instances.numpy(), cells.numpy()))
        torch.testing.assert_close(batch.targets, expected, atol=1e-6, rtol=1e-5)
        assert batch.cut == host.cut


def test_points_are_stratified_and_near_the_surface() -> None:
    store = grids("voxel")
    batch = PointSampler(store, 4, 40, choice=PointChoice(surface_share=0.5)).reside(True).draw(0)
    place = ((batch.points + 1) * 5).floor().long()
    cells = (place[:, 0] * 10 + place[:, 1]) * 10 + place[:, 2]
    for row, instance in enumerate(batch.instances.tolist()):
        assert set(cells[row, :20].tolist()) <= set(store.surface(instance).tolist())
        assert (cells[row, 20:] // 50).tolist() == list(range(20)), "one of each stretch"


def test_weights_are_those_of_the_host() -> None:
    store = grids("voxel")
    choice = PointChoice(surface_share=0.4, reweight=True)
    host, resident = (PointSampler(store, 4, 50, choice=choice) for _ in range(2))
    batch = resident.reside(True).draw(1)
    place = ((batch.points + 1) * 5).floor().long()
    cells = (place[:, 0] * 10 + place[:, 1]) * 10 + place[:, 2]
    assert batch.weights is not None
    expected = torch.from_numpy(host._weights(batch.instances.numpy(), cells.numpy()))
    torch.testing.assert_close(batch.weights, expected)


def test_moved_points_have_values_between_the_cells() -> None:
    """Interpolation of a ramp is exact, but at the border, where the value of the cell goes on."""
    ramp = np.linspace(0, 250, 11)[:, None, None].repeat(6, axis=1).astype(np.uint8)
    batch = PointSampler(store_of([ramp] * 2, "image"), 2, 40, choice=PointChoice(jitter=True)).reside(True).draw(0)
    row = ((batch.points[:, 0] + 1) * 5.5 - 0.5).clamp(0, 10)
    torch.testing.assert_close(batch.targets[:, 0], row * 25 * 2 / 255 - 1, atol=1e-5, rtol=0)
    assert float(batch.points[:, 1].abs().max()) <= 6 / 11
    assert len(batch.points[:, 1].unique()) == 80


def test_surface_points_are_the_stores(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    shares = KindShares(1, 1, 2, 1)
    sampler = SurfaceSampler(store, 2, 50, seed=1, shares=shares).reside(True)
    batch, everything = sampler.draw(0), sampler.fixed(torch.arange(3), 0)
    where, values = store.targets(np.arange(3), np.tile(np.arange(store.num_points), (3, 1)))
    torch.testing.assert_close(everything.points, torch.from_numpy(where))
    torch.testing.assert_close(everything.targets, torch.from_numpy(values))
    drawn_kind = np.repeat(np.arange(4), shares.counts(50))
    stored_kind = np.repeat(np.arange(4), store.counts.by_kind)
    for row, instance in enumerate(batch.instances.tolist()):
        apart = (batch.points[row, :, :, None] - torch.from_numpy(where[instance])[:, None]).abs().sum(dim=0)
        assert float(apart.min(dim=1).values.max()) < 1e-6
        assert (stored_kind[apart.argmin(dim=1).numpy()] == drawn_kind).all()


def test_a_store_moves_where_half_of_the_free_memory_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (200, 1000))
    stored = [torch.zeros(60, dtype=torch.uint8), None, torch.zeros(40, dtype=torch.uint8)]
    assert fits(torch.device("cuda"), stored)
    assert not fits(torch.device("cuda"), [*stored, torch.zeros(1, dtype=torch.uint8)])


def test_a_cpu_keeps_the_store_where_it_is() -> None:
    assert not fits(torch.device("cpu"), [torch.zeros(1)])
    assert PointSampler(grids("voxel"), 2, 10).reside()._resident is None


class _Finite:
    def all(self) -> bool:
        return True


@pytest.mark.parametrize("adaptation", ["auto-decoding", "meta-learning"])
def test_a_training_step_never_waits(
    tmp_path: Path, adaptation: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what is another on a GPU: the kernel, sums of latents' gradients, and whether the inner loop diverged."""
    data = write_tiny_srn(tmp_path / "scenes", scenes=4, views=4, resolution=16)
    run = TrainingRun(tiny_settings(data, tmp_path, **{"pipeline.adaptation": adaptation, "pipeline.inner_lr": 0.01}))
    run.data.rays.reside(True)
    monkeypatch.setattr(torch, "isfinite", lambda values: _Finite())
    request.getfixturevalue("no_waiting")
    with kernel.reference_only():
        for step in range(6):
            run.trainer.step(step)
