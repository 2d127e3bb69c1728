"""Large data: stores in shards, and what a step touches, whatever the number of instances. Counted, not timed."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_surface_points import COUNTS, fake, make_store
from tiny_runs import tiny_settings, write_tiny_shapes
from tiny_srn import write_tiny_srn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import streaming

from mnif_nerf.data.readers.grid_reader import get_reader
from mnif_nerf.data.sampling import draw_kernel
from mnif_nerf.data.sampling.point_sampler import PointChoice, PointSampler
from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.sampling.residence import on_device
from mnif_nerf.data.sampling.surface_sampler import SurfaceSampler
from mnif_nerf.data.stores import grid_pack, packing, shards, surface_pack
from mnif_nerf.data.stores.grid_store import GridStore, open_grid_store
from mnif_nerf.data.stores.manifest import read_manifest
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.data.stores.shards import ShardedRows, kept_folder, map_rows, shard_ranges
from mnif_nerf.data.stores.surface_pack import encode, write_part
from mnif_nerf.data.stores.surface_store import open_surface_store, write_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.cache import digest_of_store
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.checkpoint import describe_checkpoint, names_in
from mnif_nerf.latents.rarity import Rarity
from mnif_nerf.latents.table import LatentTable, RowAdam
from mnif_nerf.latents.watch import largest_of
from mnif_nerf.pipelines.run import TrainingRun


def same(ours: Any, theirs: Any) -> bool:
    pairs = [(value, getattr(theirs, name)) for name, value in vars(ours).items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(*pair) for pair in pairs)


# --------------------------------------------------------------------------------------------------------- rows


def test_rows_in_shards_are_indexed_as_one_array() -> None:
    generator = np.random.default_rng(0)
    whole = generator.integers(0, 255, (11, 7, 3), dtype=np.uint8)
    split = ShardedRows([whole[:4], whole[4:5], whole[5:]])
    rows, places = np.array([10, 0, 4, 3, 3, 5]), generator.integers(0, 7, (6, 9))
    many = generator.integers(0, 11, (2, 5))
    for key in (
        3, -1, slice(2, 9), slice(4, 5), slice(7, 7), slice(None, None, 3), rows, rows[:0], many,
        (rows, places[:, 0]), (rows, 2), (rows, slice(1, 3)), (3, slice(2)), (slice(3, 8), 1),
        (rows[:, None], places), (rows[:, None], places[:1]), (rows[:, None], places[0]), (rows[:, None], places, 2),
        (rows[:1, None], places[:1]), (many, places[:2, :5]), (many, places[:2, :5], 1),
    ):  # fmt: skip
        np.testing.assert_array_equal(split[key], whole[key], err_msg=str(key))
    assert (len(split), split.shape, split.dtype, split.nbytes) == (11, whole.shape, whole.dtype, whole.nbytes)
    np.testing.assert_array_equal(np.asarray(split), whole)
    np.testing.assert_array_equal(split.reshape(11, -1)[rows], whole.reshape(11, -1)[rows])
    np.testing.assert_array_equal(split.view(np.int8)[rows], whole.view(np.int8)[rows])
    assert torch.equal(on_device(split, torch.device("cpu")), torch.from_numpy(whole))
    for wrong in (11, -12, np.array([0, 11]), np.ones(11, bool), 0.5):
        with pytest.raises(IndexError):
            split[wrong]


def test_shards_are_below_the_bound_and_hold_everything() -> None:
    assert shard_ranges(10, 100, 1000) == [range(10)]
    assert shard_ranges(11, 100, 1000) == [range(5), range(5, 11)]
    assert [len(each) for each in shard_ranges(3, 5000, 1000)] == [1, 1, 1], "a single one may be larger"
    assert shard_ranges(0, 100, 1000) == [range(0)]


# ------------------------------------------------------------------------------------------------------- stores


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * (11 * COUNTS.total + 3 * COUNTS.surface))


def test_points_in_shards_are_those_of_one_array(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    one = make_store(tmp_path / "one", 5)
    request.getfixturevalue("small_shards")
    many = make_store(tmp_path / "many", 5)
    assert isinstance(many.places, ShardedRows)
    assert [len(part) for part in many.places.parts] == [1, 2, 2]
    assert many.names == one.names
    assert not kept_folder(many.folder).exists()
    for instance in range(5):
        ours, theirs = vars(many.points(instance)), vars(one.points(instance))
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value)
    for points in (40, 0):
        samplers = [SurfaceSampler(store, 3, points, seed=1) for store in (many, one)]
        for step in range(5):
            assert same(*(sampler.draw(step) for sampler in samplers))
        instances = torch.tensor([4, 0, 2])
        assert same(*(sampler.fixed(instances, points) for sampler in samplers))
        assert same(*(sampler.reside(True).draw(3) for sampler in samplers))


def test_a_shard_that_is_finished_is_not_packed_again(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {f"o{index}": tmp_path / f"{index}.npz" for index in range(5)}
    for index, path in enumerate(parts.values()):
        write_part(path, encode(fake(index)))
    folder, append, packed = tmp_path / "points" / "train", surface_pack._append, []

    def stopped(some: Any, *arguments: Any) -> None:
        packed.append([path.name for path in some])
        if len(packed) == 3:
            raise KeyboardInterrupt
        append(some, *arguments)

    monkeypatch.setattr(surface_pack, "_append", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_store(folder, "train", parts, COUNTS, True)
    assert not folder.exists()
    write_part(parts["o1"], encode(fake(7)))  # one of the second shard is another now
    write_store(folder, "train", parts, COUNTS, True)
    assert packed == [["0.npz"], ["1.npz", "2.npz"], ["3.npz", "4.npz"], ["1.npz", "2.npz"], ["3.npz", "4.npz"]]
    store = open_surface_store(tmp_path, "train")
    for index, seed in enumerate((0, 7, 2, 3, 4)):
        np.testing.assert_allclose(store.points(index).points, fake(seed).points, atol=1e-5)
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json", "shard-00000", "shard-00001", "shard-00002",
    ]  # fmt: skip


def test_damaged_shards_are_refused(tmp_path: Path, small_shards: None) -> None:
    store = make_store(tmp_path, 5)
    before = digest_of_store(store.folder)
    array = store.folder / "shard-00001" / "distance.array"
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    assert digest_of_store(store.folder) != before
    array.write_bytes(content[:-8])
    with pytest.raises(MNIFError, match="damaged"):
        open_surface_store(tmp_path, "train")
    array.unlink()
    with pytest.raises(MNIFError, match="damaged"):
        open_surface_store(tmp_path, "train")
    for sizes in ([1, 2], [1, 2, 3], [-1, 6], []):
        with pytest.raises(ValueError, match="shards differ"):
            map_rows(store.folder, "points.array", sizes, (5, COUNTS.total, 3), np.uint16)


def grids(root: Path) -> GridStore:
    return open_grid_store(root, "train", "voxel", progress=False)


def test_grids_in_shards_are_those_of_one_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "many"):
        write_tiny_shapes(tmp_path / name, {"train": 7}, resolution=12)
        np.save(tmp_path / name / "train" / "shape002.npy", np.zeros((12,) * 3, bool))  # without a shape: left out
        np.save(tmp_path / name / "train" / "shape003.npy", np.zeros((12,) * 3, bool))
    one = grids(tmp_path / "one")
    row = grid_pack.GridPacking(get_reader("voxel"), one.facts, True).row_bytes
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * row)
    read, packed = grid_pack._read_row, []

    def stopped(values: Any, read_one: Any, source: Any) -> Any:
        packed.append(source.name)
        if packed.count("shape005") == 1 and source.name == "shape005":
            raise MNIFError("the machine is switched off")
        return read(values, read_one, source)

    monkeypatch.setattr(grid_pack, "_read_row", stopped)
    with pytest.raises(MNIFError, match="switched off"):
        grids(tmp_path / "many")
    first = len(packed)
    many = grids(tmp_path / "many")
    assert set(packed[first:]) == {"shape005", "shape006"}, "finished shards are kept, one without a shape among them"
    assert many.names == one.names == tuple(f"shape{index:03d}" for index in (0, 1, 4, 5, 6))
    assert isinstance(many.packed, ShardedRows)
    assert isinstance(many.surface_cells, ShardedRows)
    np.testing.assert_array_equal(many.packed, one.packed)
    np.testing.assert_array_equal(many.surface_cells, one.surface_cells)
    np.testing.assert_array_equal(many.surface_offsets, one.surface_offsets)
    np.testing.assert_array_equal(many.union(), one.union())
    np.testing.assert_array_equal(many.values(3), one.values(3))
    choices = (PointChoice(), PointChoice(reweight=True), PointChoice(cut_cells=2.0))
    for choice in choices:
        for points in (60, 0):
            samplers = [PointSampler(store, 3, points, seed=1, choice=choice) for store in (many, one)]
            for step in range(4):
                assert same(*(sampler.draw(step) for sampler in samplers))
            assert same(*(sampler.reside(True).draw(3) for sampler in samplers))


def test_grids_of_which_none_has_a_shape_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    for index in range(4):
        np.save(tmp_path / "train" / f"shape{index}.npy", np.zeros((12,) * 3, bool))
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    with pytest.raises(MNIFError, match="shape0"):
        grids(tmp_path)
    assert not list(tmp_path.rglob("*.shards"))


def write_scenes(root: Path) -> Path:
    """Seven scenes, of which one has a blank picture and two have nothing else."""
    write_tiny_srn(root, scenes=7, views=3, resolution=16)
    folders = sorted(path for path in (root / "cars_train").iterdir() if path.is_dir())
    for scene, views in ((1, 1), (4, 3), (5, 3)):
        for path in sorted((folders[scene] / "rgb").iterdir())[:views]:
            Image.new("RGB", (16, 16), "white").save(path)
    return root


def test_scenes_in_shards_are_those_of_one_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = open_store(write_scenes(tmp_path / "one"), "train", progress=False)
    root = write_scenes(tmp_path / "many")
    whole, packed = packing._pack_scene, []

    def stopped(index: Any, scene: int, *others: Any) -> Any:
        packed.append(scene)
        if scene == 6 and packed.count(6) == 1:
            raise MNIFError("the machine is switched off")
        return whole(index, scene, *others)

    monkeypatch.setattr(packing, "_pack_scene", stopped)
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * (3 * (16 * 16 * 3 + 64) + 4096))
    with pytest.raises(MNIFError, match="switched off"):
        open_store(root, "train", progress=False)
    first = len(packed)
    many = open_store(root, "train", progress=False)
    assert set(packed[first:]) == {5, 6}, "three shards are kept"
    assert isinstance(many.images, ShardedRows)
    assert isinstance(many.hulls, ShardedRows)
    assert one.names == many.names
    assert (one.num_scenes, one.num_views) == (many.num_scenes, many.num_views) == (5, 15)
    for name in ("images", "silhouettes", "touching", "hulls", "poses", "intrinsics", "view_offsets"):
        np.testing.assert_array_equal(np.asarray(getattr(many, name)), np.asarray(getattr(one, name)), err_msg=name)
    notes = [
        [note.split(": ", 1)[1] for note in read_manifest(store.folder)["notes"]] for store in (many, one)
    ]  # fmt: skip
    assert notes[0] == notes[1]
    assert any("pictures that show nothing" in note for note in notes[0])
    np.testing.assert_array_equal(many.hull_union(), one.hull_union())
    samplers = [RayBatchSampler(store, 3, 16, 8, seed=2) for store in (many, one)]
    with_kernel = [samplers[0].draw(step) for step in range(6)]
    for step, drawn in enumerate(with_kernel):
        assert same(drawn, samplers[1].draw(step))
    taken = [draw_kernel.takes(each.images, each.touching, each.silhouettes, each.hulls) for each in samplers]
    assert taken[0] == taken[1]
    with monkeypatch.context() as without:
        without.setenv("MNIF_KERNEL", "torch")
        assert all(
            same(drawn, RayBatchSampler(many, 3, 16, 8, seed=2).draw(step)) for step, drawn in enumerate(with_kernel)
        )
    assert same(*(sampler.fixed(torch.tensor([4, 0])) for sampler in samplers))
    assert same(*(sampler.reside(True).draw(3) for sampler in samplers))


# -------------------------------------------------------------------------------------------------------- steps


class _Largest(TorchDispatchMode):
    """Notes the bytes of the largest result that is not a view of an argument or an argument itself."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in args if _is_dense(each)}
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if _is_dense(each) and each.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return result


def _is_dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def sizes_of_steps(root: Path, count: int, steps: int = 4) -> tuple[int, int, int]:
    """Bytes of the largest tensor and of all Python and numpy memory that steps of a run add, and rows touched."""
    root.mkdir()
    streaming.write_balls(root, count, 40_000)
    settings = tiny_settings(root, root / "runs", method="mnif-sdf-lite", **{"pipeline.model.latent_dim": 16})
    settings.pipeline.datamanager.points_per_instance = 10
    run = TrainingRun(settings, say=lambda line: None)
    run.trainer.step(0)  # makes moments, orders and buffers
    table = run.model.latents.weight.detach()
    before = table.clone()
    tracemalloc.start()
    with _Largest() as seen:
        for step in range(1, 1 + steps):
            run.trainer.step(step)
    added, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert run.data.store.num_instances == count
    return seen.bytes, added, int((table != before).any(dim=1).sum())


def test_a_step_is_as_large_for_any_number_of_instances(tmp_path: Path) -> None:
    few, many = (sizes_of_steps(tmp_path / str(count), count) for count in (100, 6000))
    assert few[0] == many[0], "no tensor of a step grows"
    assert many[0] < 6000 * 16 * 4, "a table would be larger"
    assert many[1] < few[1] + 100_000, "and nothing else"
    assert few[2] == many[2] == 4 * 4, "rows of the instances drawn, and no others"


def test_the_optimizer_reads_and_writes_the_rows_of_a_step_alone() -> None:
    table = LatentTable(5000, 4)
    adam = RowAdam(table.parameters(), lr=0.1)
    table(torch.tensor([3, 7])).sum().backward()
    adam.step()
    for value in adam.state[table.weight].values():
        value[torch.tensor([index not in (7, 9) for index in range(5000)])] = torch.nan  # whoever reads it, tells
    table.weight.data[100:] = torch.nan
    table.weight.grad = None
    table(torch.tensor([9, 7, 9])).sum().backward()
    with _Largest() as seen:
        adam.step()
    assert table.weight[[7, 9]].isfinite().all()
    assert seen.bytes <= 3 * 4 * 8, "three rows"


def test_what_looks_at_all_latents_holds_no_second_table() -> None:
    latents = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    expected = float(latents.abs().max())
    with _Largest() as seen:
        assert largest_of(latents) == expected
        assert largest_of(torch.zeros(0)) == 0.0
    assert seen.bytes < 64
    latents[5, 5] = torch.nan
    assert np.isnan(largest_of(latents))


def test_rarity_holds_a_bounded_number_of_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    usual = Rarity(latents)
    monkeypatch.setattr("mnif_nerf.latents.rarity._PAIRS", 300 * 40)
    with _Largest() as seen:
        bounded = Rarity(latents)
    torch.testing.assert_close(bounded.isolation, usual.isolation)
    assert seen.bytes <= 300 * 40 * 4


def test_names_in_a_checkpoint_are_one_text_and_were_a_list() -> None:
    names = ("a", "b\nc", "\udc80", "1")
    extra = describe_checkpoint(names, FieldSpec(), "auto-decoding")
    assert isinstance(extra["names"], str), "torch reads a list entry by entry"
    assert names_in(extra) == names
    assert names_in({"names": list(names)}) == names


def test_the_benchmark_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_benchmarks import LocalWorker

    monkeypatch.setattr(streaming, "Worker", LocalWorker)
    config = streaming.Config(
        instances=(50, 7000), latent_dim=4, per_step=4, shard=1, rounds=1, seconds=0.0, cache=tmp_path / "cache"
    )
    found = streaming.main(config)
    assert [row["instances"] for row in found] == [50, 7000]
    assert [row["shards"] for row in found] == [1, 2]
    assert found[1]["table"] > 100 * found[0]["table"]
    assert not list((tmp_path / "cache").iterdir())
    assert "| 7,000 |" in capsys.readouterr().out
