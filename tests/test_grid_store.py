"""The packed store of voxels and pictures: what is in it, when it is built again, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mnif_nerf.data.generate.writer import write_occupancy
from mnif_nerf.data.readers.splits import find_files
from mnif_nerf.data.stores import packing
from mnif_nerf.data.stores.grid_layout import grid_splits, locate_grids
from mnif_nerf.data.stores.grid_pack import surface_cells
from mnif_nerf.data.stores.grid_store import GridStore, open_grid_store, store_of
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.voxels import write_voxels
from mnif_nerf.rendering.grids import cell_centres

SIZE = 8


def shape(seed: int, size: int = SIZE) -> np.ndarray:
    """A box, different for every seed."""
    rng = np.random.default_rng(seed)
    low, high = rng.integers(0, size // 2, 3), rng.integers(size // 2 + 1, size, 3)
    cells = np.zeros((size,) * 3, bool)
    cells[tuple(slice(a, b) for a, b in zip(low, high))] = True
    return cells


def open_quietly(root: Path, split: str = "train", modality: str = "voxel", **options: int | None) -> GridStore:
    return open_grid_store(root, split, modality, progress=False, **options)


@pytest.fixture
def voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MNIF_CACHE", raising=False)
    root = tmp_path / "shapes"
    for seed in range(3):
        write_occupancy(root / "train" / f"s{seed}.npz", shape(seed))
    np.save(root / "train" / "s3.npy", shape(3).astype(np.uint8))
    write_voxels(shape(4), root / "train" / "s4.binvox")
    write_occupancy(root / "test" / "t0.npz", shape(9))
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / split / f"p{index}.png")
    return tmp_path / "pictures"


def refusal(root: Path, split: str = "train", modality: str = "voxel", **options: int | None) -> str:
    with pytest.raises(MNIFError) as caught:
        open_quietly(root, split, modality, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob(".mnif/*/*") if path.is_dir())


def test_voxels_of_all_formats(voxels: Path) -> None:
    assert grid_splits(voxels, "voxel") == {"train": 5, "test": 1}
    store = open_quietly(voxels)
    assert (store.names, store.resolution, store.channels, store.dims) == (("s0", "s1", "s2", "s3", "s4"), SIZE, 1, 3)
    for index in range(5):
        np.testing.assert_array_equal(store.values(index), shape(index))
        np.testing.assert_array_equal(store.surface(index), surface_cells(shape(index)))
    instances, cells = np.array([4, 1]), np.random.default_rng(0).integers(0, SIZE**3, (2, 99))
    expected = np.stack([2.0 * shape(i).reshape(-1)[c] - 1 for i, c in zip(instances, cells)])[:, None]
    found = store.targets(instances, cells)
    assert (found.shape, found.dtype) == ((2, 1, 99), np.float32)
    np.testing.assert_array_equal(found, expected)
    every = np.broadcast_to(np.arange(SIZE**3), (2, SIZE**3))
    np.testing.assert_array_equal(store.all_targets(instances), store.targets(instances, every))
    assert open_quietly(voxels, "test").names == ("t0",)


def test_cells_are_where_the_renderer_takes_them_to_be(voxels: Path) -> None:
    """A box that fills x > 0.25 in [-1, 1] alone has targets that follow the first coordinate."""
    cells = np.zeros((SIZE,) * 3, bool)
    cells[5:] = True
    write_occupancy(voxels / "val" / "half.npz", cells)
    store = open_quietly(voxels, "val")
    inside = store.all_targets(np.array([0]))[0, 0] > 0
    np.testing.assert_array_equal(inside, cell_centres((SIZE,) * 3)[0].numpy() > 0.25)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 6), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_surface_cells_are_those_beside_the_other_kind(size: int, share: float, seed: int) -> None:
    cells = np.random.default_rng(seed).random((size,) * 3) < share
    expected = []
    for i, j, k in np.ndindex(*cells.shape):
        around = cells[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2, max(k - 1, 0) : k + 2]
        if around.any() != around.all():
            expected.append((i * size + j) * size + k)
    assert surface_cells(cells).tolist() == expected


def test_pictures(pictures: Path) -> None:
    store = open_quietly(pictures, "val", "image")
    assert (store.num_instances, store.resolution, store.channels, store.dims) == (2, 6, 3, 2)
    pixels = np.asarray(Image.open(pictures / "val" / "p1.png"))
    np.testing.assert_array_equal(store.values(1), pixels)
    row, column = 2, 5
    found = store.targets(np.array([1]), np.array([[row * 6 + column]]))
    np.testing.assert_allclose(found[0, :, 0], pixels[row, column] / 127.5 - 1, atol=1e-6)
    every = np.arange(36)[None]
    np.testing.assert_array_equal(store.all_targets(np.array([1])), store.targets(np.array([1]), every))
    with pytest.raises(MNIFError, match="have no surface"):
        store.surface(0)
    grey = open_quietly(pictures, "train", "image", resolution=3, channels=1)
    assert (grey.resolution, grey.channels) == (3, 1)
    assert grey.values(0).shape == (3, 3, 1)


def test_union_is_every_cell_that_some_shape_has(voxels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_quietly(voxels)
    expected = np.any([shape(index) for index in range(5)], axis=0)
    np.testing.assert_array_equal(store.union(), expected)
    assert store.union().dtype == bool
    (store.folder / "any.npy").unlink()
    monkeypatch.setattr(packing, "_ROWS_READ", 2)  # read in parts, the last one short
    np.testing.assert_array_equal(store.union(), expected)
    odd = [np.random.default_rng(k).random((5, 5, 5)) < 0.2 for k in range(3)]  # 125 cells do not fill whole bytes
    np.testing.assert_array_equal(store_of(odd, "voxel").union(), np.any(odd, axis=0))
    monkeypatch.setattr(packing, "_ROWS_READ", 0)  # nothing is read again
    np.testing.assert_array_equal(store.union(), expected)


def test_a_store_in_memory_is_that_of_the_files(voxels: Path, pictures: Path) -> None:
    for root, split, modality in ((voxels, "train", "voxel"), (pictures, "val", "image")):
        packed = open_quietly(root, split, modality)
        ours = store_of([packed.values(index) for index in range(packed.num_instances)], modality)
        assert (ours.resolution, ours.channels, ours.dims) == (packed.resolution, packed.channels, packed.dims)
        assert ours.names[:2] == ("000", "001")
        np.testing.assert_array_equal(ours.packed, packed.packed)
        if modality == "voxel":
            np.testing.assert_array_equal(ours.surface_cells, packed.surface_cells)
            np.testing.assert_array_equal(ours.surface_offsets, packed.surface_offsets)


def test_grey_pictures_among_colored_ones_are_told_of(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((6, 6), np.uint8)).save(pictures / "val" / "grey.png")
    assert open_quietly(pictures, "train", "image").channels == 3
    assert "pictures are grey" not in capsys.readouterr().out  # those of this split are not
    assert open_quietly(pictures, "val", "image").channels == 3
    assert "1 of 3 pictures are grey (grey.png, ...)" in capsys.readouterr().out
    assert open_quietly(pictures, "val", "image", channels=1).channels == 1
    assert "pictures are grey" not in capsys.readouterr().out


def test_one_picture_is_not_enough(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((6, 6), np.uint8)).save(tmp_path / "only.png")
    assert "holds one picture; a model needs 2 or more" in refusal(tmp_path, "train", "image")


def test_the_store_is_found_again_and_built_again_when_the_data_change(
    voxels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = open_quietly(voxels)
    with monkeypatch.context() as patch:
        patch.setattr("mnif_nerf.data.stores.grid_store.pack_grids", None)
        again = open_quietly(voxels)
    np.testing.assert_array_equal(again.packed, first.packed)
    write_occupancy(voxels / "train" / "s0.npz", shape(7))
    np.testing.assert_array_equal(open_quietly(voxels).values(0), shape(7))
    assert "the data changed since the store was packed; packing the train split again" in capsys.readouterr().out
    np.save(voxels / "train" / "new.npy", shape(5))
    assert open_quietly(voxels).names[0] == "new"
    (open_quietly(voxels).folder / "surface.npy").write_bytes(b"x")
    assert open_quietly(voxels).num_instances == 6
    assert "the store is damaged" in capsys.readouterr().out


def test_resolutions_have_stores_of_their_own(voxels: Path) -> None:
    fine, coarse = open_quietly(voxels), open_quietly(voxels, resolution=4)
    assert (coarse.resolution, fine.folder != coarse.folder) == (4, True)
    blocks = shape(2).reshape(4, 2, 4, 2, 4, 2).mean(axis=(1, 3, 5))
    np.testing.assert_array_equal(coarse.values(2), blocks >= 0.5)
    assert "cannot be brought to 5^3; ask for 8" in refusal(voxels, resolution=5)
    assert "`resolution` is 0; ask for 1 or more" in refusal(voxels, resolution=0)


def test_cache_elsewhere_and_none_that_can_be_written(
    voxels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIF_CACHE", str(tmp_path / "cache"))
    assert open_quietly(voxels).folder.is_relative_to(tmp_path / "cache")
    assert not (voxels / ".mnif").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MNIF_CACHE", str(tmp_path / "file"))
    assert "set MNIF_CACHE (environment) to a folder that can" in refusal(voxels)


def test_grids_without_a_shape_are_left_out_and_named(voxels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, nothing = voxels / "train", np.zeros((SIZE,) * 3)
    np.savez(train / "a.npz", cells=nothing)  # the first of all, whose size would count
    np.savez(train / "z.npz", cells=nothing + 1)
    speck = nothing.copy()
    speck[0, 0, 0] = 1  # gone where blocks of cells become one
    np.savez(train / "speck.npz", cells=speck)
    store = open_quietly(voxels)
    assert store.names == ("s0", "s1", "s2", "s3", "s4", "speck")
    np.testing.assert_array_equal(store.values(4), shape(4))
    np.testing.assert_array_equal(store.values(5), speck > 0)
    said = "train: without a shape (all cells empty, or all full), and left out: "
    assert f"{said}a, z." in capsys.readouterr().out
    assert open_quietly(voxels, resolution=4).names == ("s0", "s1", "s2", "s3", "s4")
    assert f"{said}a, speck, z." in capsys.readouterr().out
    for path in train.iterdir():
        path.unlink()
    np.savez(train / "a.npz", cells=nothing)
    np.savez(train / "b.npz", cells=nothing + 1)
    assert refusal(voxels, resolution=8).startswith(f"{train / 'a.npz'}: every cell is empty")


def test_bad_grids_are_named(voxels: Path) -> None:
    bad = voxels / "train" / "z.npz"
    np.savez(bad, cells=shape(0, 16))
    message = refusal(voxels)
    assert message.startswith(f"{bad}: 16^3 cells, but the first shape has 8^3; give all grids one size")
    assert not leftovers(voxels)
    assert open_quietly(voxels, resolution=8).num_instances == 6, "a resolution that divides every size is fine"


def test_nothing_that_can_be_read(tmp_path: Path, voxels: Path) -> None:
    assert "no such folder; give the folder that holds .binvox, .npy, .npz or mesh files" in refusal(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("x")
    assert "nothing in it can be read as voxels; expected .binvox" in refusal(tmp_path / "empty")
    assert "nothing in it can be read as images; expected pictures (PNG" in refusal(voxels, modality="image")
    assert "is a file; give the folder" in refusal(voxels / "train" / "s0.npz")
    assert "no val split in it; name a split that is there (train, test)" in refusal(voxels, "val")
    with pytest.raises(MNIFError, match="grids are read for image, signal, voxel"):
        grid_splits(voxels, "sound")
    with pytest.raises(MNIFError, match=r"instance 5: the train split of .* has instances 0 to 4"):
        open_quietly(voxels).values(5)


def test_a_full_disk_and_ctrl_c_leave_nothing(voxels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        assert "packing 5 shapes needs" in refusal(voxels)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing.GrowingArray, "append", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_quietly(voxels)
    assert not leftovers(voxels)
    assert open_quietly(voxels).num_instances == 5


@pytest.mark.parametrize(("count", "expected"), [(9, (9, 0, 0)), (10, (8, 1, 1)), (30, (24, 3, 3))])
def test_a_folder_without_splits_is_shared_out(tmp_path: Path, count: int, expected: tuple[int, ...]) -> None:
    for index in range(count):
        np.save(tmp_path / f"{index:02d}.npy", shape(index))
    splits = grid_splits(tmp_path, "voxel")
    assert tuple(splits.get(split, 0) for split in ("train", "val", "test")) == expected
    names = [source.name for sources in locate_grids(tmp_path, "voxel").splits.values() for source in sources]
    assert sorted(names) == [f"{index:02d}" for index in range(count)]
    assert all(open_quietly(tmp_path, split).num_instances == number for split, number in splits.items())


def test_occupancy_beside_pictures_is_found(tmp_path: Path) -> None:
    (tmp_path / "cars_train" / "a" / "rgb").mkdir(parents=True)
    write_occupancy(tmp_path / "occupancy" / "train" / "a.npz", shape(0))
    assert open_quietly(tmp_path).names == ("a",)


def test_meshes_take_the_resolution_of_the_grids_beside_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        trimesh.creation.box((1, 2, 3)).export(tmp_path / name / "model.stl")
    assert (open_quietly(tmp_path).resolution, open_quietly(tmp_path, resolution=12).resolution) == (64, 12)
    store = open_quietly(tmp_path, resolution=12)
    assert store.names == ("a-model", "b-model")
    assert store.values(0).mean() == pytest.approx(6 / 14**1.5, rel=0.25)
    np.save(tmp_path / "c.npy", shape(0))
    assert open_quietly(tmp_path).resolution == SIZE
    (tmp_path / "a" / "model.stl").write_bytes(b"x")
    assert "an empty mesh (no triangles)" in refusal(tmp_path)


def test_hidden_files_and_links_in_circles(tmp_path: Path) -> None:
    for name in ("a.npy", ".hidden.npy", "deep/er/b.NPY", ".mnif/c.npy", "__MACOSX/d.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    os.symlink("nowhere.npy", tmp_path / "broken.npy")
    assert [p.relative_to(tmp_path).as_posix() for p in find_files(tmp_path, (".npy",))] == ["a.npy", "deep/er/b.NPY"]
    os.symlink(tmp_path, tmp_path / "deep" / "circle")
    assert len(find_files(tmp_path, (".npy",))) < 20
