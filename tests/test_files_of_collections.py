"""Folders of shapes as archives have them: their own splits, shapes in several files, and files that are none."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh

from mnif_nerf.cli.data import Check, main
from mnif_nerf.data.download.unpack import unpack
from mnif_nerf.data.generate.meshes import voxelise_mesh_folder
from mnif_nerf.data.readers.arrays import load_arrays
from mnif_nerf.data.readers.splits import find_files, is_clutter, one_of_each
from mnif_nerf.data.readers.voxel_files import read_voxels
from mnif_nerf.data.readers.voxel_values import all_corners_inside, inside_cells
from mnif_nerf.data.readers.voxels import meshes_first
from mnif_nerf.data.stores.grid_layout import GridLayout, locate_grids
from mnif_nerf.data.stores.grid_store import open_grid_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.voxels import binvox_bytes

SOLID = np.zeros((8, 8, 8), bool)
SOLID[2:6, 2:6, 2:6] = True
AXIS = np.abs(np.arange(16) - 7.5) / 16
DISTANCE = np.maximum.reduce(np.meshgrid(AXIS - 0.3, AXIS - 0.2, AXIS - 0.1, indexing="ij"))


def grid(path: Path, values: np.ndarray = SOLID) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".binvox":
        path.write_bytes(binvox_bytes(values))
    else:
        np.save(path, values)
    return path


def names(layout: GridLayout) -> dict[str, list[str]]:
    return {split: [source.name for source in sources] for split, sources in layout.splits.items()}


@pytest.mark.parametrize(("train", "val"), [("train", "validation"), ("Training", "VALID"), ("Train", "dev")])
def test_split_folders_by_other_names(tmp_path: Path, train: str, val: str) -> None:
    for k in range(12):
        grid(tmp_path / train / f"t{k}.npy")
        grid(tmp_path / val / "deep" / f"v{k}.npy")
    layout = locate_grids(tmp_path, "voxel")
    assert {split: len(sources) for split, sources in layout.splits.items()} == {"train": 12, "val": 12}
    assert layout.splits["val"][0].name == "v0"
    assert layout.notes == ()


def test_splits_within_classes_are_kept(tmp_path: Path) -> None:
    for kind in ("chair", "sofa"):
        for split, count in (("train", 6), ("test", 3)):
            for k in range(count):
                grid(tmp_path / kind / split / f"{kind}_{split}{k}.npy")
    layout = locate_grids(tmp_path, "voxel")
    assert {split: len(sources) for split, sources in layout.splits.items()} == {"train": 12, "test": 6}
    assert all("test" in name for name in names(layout)["test"])


def test_a_class_called_train_is_no_split(tmp_path: Path) -> None:
    for kind in ("train", "bus", "car"):
        for k in range(4):
            grid(tmp_path / kind / f"{kind}{k}.npy")
    assert len(locate_grids(tmp_path, "voxel").every()) == 12


def test_lists_of_names_are_kept(tmp_path: Path) -> None:
    for k in range(6):
        grid(tmp_path / "0295" / f"id{k}" / "model.binvox")
        np.savez(
            tmp_path / "0295" / f"id{k}" / "points.npz", points=np.zeros((9, 3)), occupancies=np.zeros(2, np.uint8)
        )
    (tmp_path / "0295" / "train.lst").write_text("id0\nid1\r\nid2\n")
    (tmp_path / "0295" / "test.lst").write_text("id3\nid4")
    layout = locate_grids(tmp_path, "voxel")
    assert [source.path.parent.name for source in layout.splits["test"]] == ["id3", "id4"]
    assert len(layout.splits["train"]) == 3
    assert any("1 files belong to no split" in note for note in layout.notes)
    assert any("6 files hold points, not voxels" in note for note in layout.notes)


def test_what_is_left_out_is_told(tmp_path: Path, capsys) -> None:
    for k in range(3):
        grid(tmp_path / "train" / f"{k}.npy", np.roll(SOLID, k, 0))
    grid(tmp_path / "more" / "a.npy")
    for name in ("b.mat", "c.mat", "d.vox"):
        (tmp_path / "train" / name).write_bytes(b"x")
    (tmp_path / "train" / "readme.txt").write_text("hello")
    open_grid_store(tmp_path, "train", "voxel", progress=False)
    said = capsys.readouterr().out
    assert "1 files belong to no split and are left out (more/a.npy)" in said
    assert "3 files are of kinds that are not read as shapes: 2 .mat, 1 .vox" in said


def test_one_shape_in_three_files_is_one_shape(tmp_path: Path) -> None:
    for k in range(4):
        models = tmp_path / f"shape{k}" / "models"
        grid(models / "model_normalized.solid.binvox")
        grid(models / "model_normalized.surface.binvox")
        (models / "model_normalized.obj").write_text("v 0 0 0\n")
    (tmp_path / "shape3" / "models" / "model_normalized.solid.binvox").unlink()
    layout = locate_grids(tmp_path, "voxel")
    assert len(layout.every()) == 4
    suffixes = ["".join(source.path.suffixes) for source in layout.every()]
    assert suffixes == [".obj"] * 4, "the kind that all of them have"
    assert any("4 instances are there as several files" in note for note in layout.notes)
    grid(tmp_path / "shape3" / "models" / "model_normalized.solid.binvox")
    assert {"".join(s.path.suffixes) for s in locate_grids(tmp_path, "voxel").every()} == {".solid.binvox"}


def test_names_with_numbers_are_different_shapes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.1.npy", "a.2.npy", "A.npy", "a.npy", "b.obj", "b.glb")]
    kept, notes = one_of_each(files, lambda kind: (".glb", ".obj", ".npy").index(kind))
    assert [path.name for path in kept] == ["a.1.npy", "a.2.npy", "A.npy", "a.npy", "b.glb"]
    assert "b.glb, b.obj" in notes[0]


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "._a.npy", "Thumbs.db", "#recycle", "lost+found", ".hidden"])
def test_clutter_is_not_read(tmp_path: Path, name: str) -> None:
    assert is_clutter(name)
    grid(tmp_path / name / "x.npy") if "." not in name[1:] else grid(
        tmp_path / "sub" / f"{name}.npy" if name.startswith(".") else tmp_path / name / "x.npy"
    )
    grid(tmp_path / "a.npy")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [path.name for path in find_files(tmp_path, (".npy",))] == ["a.npy"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (DISTANCE, "negative inside: write grid < 0"),
        (10 * DISTANCE, "negative inside: write grid < 0"),
        (np.clip(8 * DISTANCE, -1, 1), "negative inside: write grid < 0"),
        (-40 * DISTANCE, "positive inside: write grid > 0"),
        (np.abs(DISTANCE), "neither 0 nor 1"),
        (np.clip(0.5 + DISTANCE, 0, 1), "neither 0 nor 1"),
        (np.where(DISTANCE < 0, 25.0, 0.7), "from 0.7 to 25"),
        (np.where(DISTANCE < 0, 5, -3), "whole numbers from -3 to 5"),
        (np.where(DISTANCE < 0, np.nan, 0), "NaN or infinite"),
        (np.packbits(DISTANCE < 0, axis=2), "eight cells each, packed"),
        (np.argwhere(DISTANCE < 0), "the numbers of cells, and no grid"),
    ],
)
def test_what_is_no_occupancy_is_refused(tmp_path: Path, values: np.ndarray, said: str) -> None:
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "a.npz", values.astype(np.float32) if values.dtype.kind == "f" else values)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(MNIFError, match=said):
            read_voxels(tmp_path / name)


def test_the_grid_among_arrays_is_told_by_its_name(tmp_path: Path) -> None:
    inside = DISTANCE < 0
    np.savez(tmp_path / "a.npz", voxels=inside, colors=np.zeros((*inside.shape, 3)))
    np.testing.assert_array_equal(read_voxels(tmp_path / "a.npz"), inside)


def test_numbers_that_are_occupancies() -> None:
    inside = DISTANCE < 0
    labels = inside * np.random.default_rng(0).integers(1, 5, inside.shape)
    smooth = np.clip(0.5 - 20 * DISTANCE, 0, 1)
    for values in (
        inside,
        inside * 255,
        labels,
        np.where(inside, 1, -1),
        smooth,
        np.rint(255 * smooth).astype(np.uint8),
    ):
        found = inside_cells(np.asarray(values), "grid")
        assert (found != inside).mean() < 0.01


def test_grids_where_one_stands_for_empty(tmp_path: Path, capsys) -> None:
    for k in range(3):
        grid(tmp_path / f"{k}.npy", ~np.roll(SOLID, k, 0))
    assert all_corners_inside(~SOLID)
    with pytest.raises(SystemExit):
        main(Check(tmp_path))
    assert "3 of 3 shapes have all corners of their grid inside" in capsys.readouterr().out
    open_grid_store(tmp_path, "train", "voxel", progress=False)
    assert "where 1 stands for empty" in capsys.readouterr().out


def test_headers_that_ask_for_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (100_000,) * 3})
    for read in (load_arrays, read_voxels):
        with pytest.raises(ValueError, match=r"bytes, and there are"):
            read(path)
    np.savez(tmp_path / "a.npz", a=np.zeros(3), b=np.ones((2, 2)))
    with load_arrays(tmp_path / "a.npz") as found:
        assert found.files == ["a", "b"]
        assert found["b"].tolist() == [[1, 1], [1, 1]]
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes().replace(b"(3,), ", b"(9999999,), "[:6]))
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="objects"):
        load_arrays(tmp_path / "o.npy")


def test_sparse_hdf5_is_refused_before_it_is_read(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file.create_dataset("voxels", (2, 4096, 4096, 4096), np.uint8, chunks=(1, 64, 64, 64))
    with pytest.raises(MNIFError, match=r"asks for 64\.0 GiB"):
        open_grid_store(tmp_path, "train", "voxel", progress=False)
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["voxels"] = np.stack([DISTANCE] * 2).astype(np.float32)
    with pytest.raises(MNIFError, match="no occupancy"):
        open_grid_store(tmp_path, "train", "voxel", progress=False)


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = io.BytesIO()
    np.savez(inner, a=np.zeros(3))
    with tarfile.open(tmp_path / "a.tar", "w") as tape:
        for k in range(300):
            folder = tarfile.TarInfo(f"folder{k}")
            folder.type = tarfile.DIRTYPE
            tape.addfile(folder)
        for name, content in (("x/first.txt", b"abc"), ("x/last.npz", inner.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tape.addfile(member, io.BytesIO(content))
    (tmp_path / "out").mkdir()
    assert unpack(tmp_path / "a.tar", tmp_path / "out") == 2
    assert (tmp_path / "out" / "x" / "first.txt").read_bytes() == b"abc"
    assert len(list((tmp_path / "out").iterdir())) == 301


def test_from_meshes_keeps_the_splits_of_an_archive(tmp_path: Path) -> None:
    for kind in ("chair", "sofa"):
        for split, count in (("train", 4), ("test", 2)):
            (tmp_path / "net" / kind / split).mkdir(parents=True)
            for k in range(count):
                box = trimesh.creation.box((1, 0.5, 0.4 + 0.1 * k))
                box.export(tmp_path / "net" / kind / split / f"{kind}_{split}{k}.off")
    trimesh.creation.box((1, 1, 1)).export(tmp_path / "net" / "chair" / "stray.off")
    trimesh.creation.box((1, 1, 1)).export(tmp_path / "net" / "chair" / "train" / "chair_train0.obj")
    summary = voxelise_mesh_folder(tmp_path / "net", tmp_path / "out", 8, workers=1, progress=False)
    assert {split: len(found) for split, found in summary.splits.items()} == {"train": 8, "test": 4}
    assert all("test" in name for name in summary.splits["test"])
    assert [path.name for path, _ in summary.skipped] == ["stray.off"]
    assert any("the folder's own splits are kept: train, test" in note for note in summary.notes)
    assert any("1 instances are there as several files" in note for note in summary.notes)


def test_meshes_are_taken_for_surfaces_and_grids_for_solids(tmp_path: Path) -> None:
    for k in range(2):
        grid(tmp_path / f"{k}.npy")
        (tmp_path / f"{k}.obj").write_text("v 0 0 0\n")
    assert [source.path.suffix for source in locate_grids(tmp_path, "voxel").every()] == [".npy"] * 2
    assert [source.path.suffix for source in locate_grids(tmp_path, "voxel", meshes_first).every()] == [".obj"] * 2


def test_zips_of_windows(tmp_path: Path) -> None:
    for name, count in (("cars_train\\a\\1.txt", 1), ("cars_train\\..\\..\\b.txt", 0)):
        (tmp_path / f"out{count}").mkdir()
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
            info = zipfile.ZipInfo("x")
            info.filename = name
            bundle.writestr(info, b"abc")
        if count:
            assert unpack(tmp_path / "a.zip", tmp_path / "out1") == 1
            assert (tmp_path / "out1" / "cars_train" / "a" / "1.txt").read_bytes() == b"abc"
        else:
            with pytest.raises(MNIFError, match="points outside"):
                unpack(tmp_path / "a.zip", tmp_path / "out0")


def test_options_of_cameras_are_for_cameras(tmp_path: Path) -> None:
    grid(tmp_path / "a.npy")
    grid(tmp_path / "b.npy")
    with pytest.raises(MNIFError, match="without cameras"):
        main(Check(tmp_path, poses="w2c"))
