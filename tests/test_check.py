"""`check`: says what is there, and names everything that is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_srn import write_tiny_srn

from mnif_nerf.cli.data import Check, main
from mnif_nerf.data.generate.writer import write_occupancy
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities import from_data
from mnif_nerf.modalities.data_report import check as check_data


def check(root, **options) -> str:
    return str(check_data(root, **options))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny_srn(tmp_path / "data", 3, 6, 2, 1, 16)


def test_a_sound_data_set(data):
    report = check(data, progress=False)
    assert "cars, 4 split(s)" in report
    assert "train: 3 scenes, 6 views each (18 in all), 16x16 pixels" in report
    assert "cameras: 1.300 to 1.300 from the origin" in report
    assert "near 0.80, far 1.80" in report
    assert report.count("background: white, silhouettes by alpha") == 4
    assert report.count("objects fit the cube [-0.5, 0.5]^3: yes") == 4
    assert "problems: none" in report


def test_every_problem_is_named(data):
    scene = data / "cars_train" / "scene000"
    (scene / "pose" / "000001.txt").write_text("1 2 3")
    (scene / "pose" / "000003.txt").write_text(" ".join(["nan"] * 16))
    (data / "cars_train" / "scene001" / "intrinsics.txt").unlink()
    (data / "cars_train" / "scene002" / "rgb" / "000005.png").write_bytes(b"broken")
    shutil.rmtree(data / "cars_val" / "val000" / "rgb")
    Image.new("RGB", (9, 9)).save(data / "cars_test" / "test000" / "rgb" / "000002.png")
    report = check(data, progress=False)
    for path, said in (
        (scene / "pose" / "000001.txt", "3 numbers, expected 16"),
        (data / "cars_train" / "scene001", "no intrinsics.txt"),
        (data / "cars_train" / "scene002" / "rgb" / "000005.png", "cannot be read as an image"),
        (data / "cars_val" / "val000", "0 images in rgb/ but 6 poses"),
        (data / "cars_test" / "test000" / "rgb" / "000002.png", "9x9 pixels, expected 16x16"),
    ):
        assert f"  {path}: {said}" in report
    assert "val: cars_val, nothing readable" in report
    assert "train: 1 scenes" in report


def test_the_exit_code_follows_the_problems_whatever_their_words(data: Path, capsys) -> None:
    broken = data / "cars_train" / "problems: none"
    shutil.copytree(data / "cars_train" / "scene000", broken)
    (broken / "rgb" / "000001.png").write_bytes(b"broken")
    with pytest.raises(SystemExit) as stopped:
        main(Check(data))
    assert stopped.value.code == 1
    shutil.rmtree(broken)
    main(Check(data))
    assert "Next: ns-train mnif-lite" in capsys.readouterr().out


def test_problems_are_capped(data):
    for path in (data / "cars_train").glob("*/rgb/*.png"):
        path.write_bytes(path.read_bytes()[:60])
    report = check(data, progress=False, max_problems=5)
    assert "problems: 18" in report
    assert "... and 13 more" in report
    assert report.count("cannot be read as an image") == 5
    assert "background: unknown" in report


def test_objects_that_do_not_fit_and_masks_that_contradict_poses(data):
    for path in (data / "cars_train" / "scene001" / "pose").iterdir():
        numbers = path.read_text().split()
        for place in (3, 7, 11):
            numbers[place] = str(3 * float(numbers[place]))
        path.write_text(" ".join(numbers))
    for number, path in enumerate(sorted((data / "cars_train" / "scene002" / "rgb").iterdir())):
        shift = (5, -5)[number % 2]
        Image.fromarray(np.roll(np.asarray(Image.open(path)), (shift, -shift), axis=(0, 1))).save(path)
    report = check(data, progress=False)
    assert "fit the cube [-0.5, 0.5]^3: no" in report
    assert "beyond the cube of half size 0.5 in 1 of 3 scenes (scene001)" in report
    assert "contradict each other in 1 of 3 scenes (scene002)" in report


def test_other_backgrounds(data):
    for path in data.glob("*/*/rgb/*.png"):
        Image.new("RGB", (16, 16), (0, 90, 0)).save(path)
    assert "background: not white" in check(data, progress=False)


def test_nothing_readable_is_an_error(data, tmp_path):
    for path in data.glob("*/*/intrinsics.txt"):
        path.unlink()
    with pytest.raises(MNIFError, match=r"no intrinsics\.txt in it"):
        check(data, progress=False)
    with pytest.raises(MNIFError, match="no such folder"):
        check(tmp_path / "nowhere", progress=False)


def voxels(root: Path, count: int = 3) -> Path:
    for index in range(count):
        cells = np.zeros((8, 8, 8), bool)
        cells[2 : 4 + index, 2:4, 2:4] = True
        write_occupancy(root / "train" / f"s{index}.npz", cells)
    write_occupancy(root / "test" / "t.npz", np.indices((8, 8, 8))[0] < 4)
    return root


def test_sound_voxels(tmp_path):
    root = voxels(tmp_path / "shapes")
    assert from_data(root).name == "voxel"
    report = check(root, progress=False)
    assert "shapes, 2 split(s)" in report
    assert "train: 3 shapes, 8 cells along an edge; filled 2.3 % of the cells (1.6 to 3.1), near the surface" in report
    assert "test: 1 shapes, 8 cells along an edge; filled 50.0 %" in report
    assert "1 touch the border of their grid" in report
    assert "problems: none" in report


def test_every_fault_of_voxels_is_named(tmp_path):
    root = voxels(tmp_path / "shapes")
    np.save(root / "train" / "empty.npy", np.zeros((8, 8, 8)))
    np.save(root / "train" / "full.npy", np.ones((8, 8, 8)))
    np.save(root / "train" / "small.npy", np.indices((4, 4, 4))[0] < 2)
    np.save(root / "train" / "flat.npy", np.ones((4, 4)))
    (root / "test" / "cut.binvox").write_bytes(b"#binvox 1\ndim 8 8 8\ndata\n\x01\x05")
    report = check(root, progress=False)
    for name, said in (
        ("train/empty.npy", "every cell is empty"),
        ("train/full.npy", "every cell is full"),
        ("train/flat.npy", "an array of shape [4, 4] is no grid of voxels"),
        ("test/cut.binvox", "cannot be read as voxels (truncated: 5 of 512 cells)"),
    ):
        assert f"  {root / name}: {said}" in report
    assert f"  {root / 'train' / 'small.npy'}: 4^3 cells, but the first shape has 8^3" in report
    assert "problems: 5" in report
    for path in root.rglob("*.npz"):
        path.unlink()
    (root / "train" / "small.npy").unlink()
    with pytest.raises(MNIFError, match="every cell is empty"):
        check(root, progress=False)


def test_pictures(tmp_path):
    for index in range(11):
        Image.new("RGB", (12 + index, 20), (9 * index, 50, 0)).save(tmp_path / f"{index:02d}.png")
    assert from_data(tmp_path).name == "image"
    with pytest.raises(MNIFError):
        check(tmp_path / "nowhere", progress=False)
    report = check(tmp_path, progress=False)
    assert "pictures, 3 split(s)" in report
    assert "val: 1 pictures, shorter edge" in report
    Image.new("RGB", (99, 70)).save(tmp_path / "00.png")
    Image.new("L", (30, 20)).save(tmp_path / "01.png")
    (tmp_path / "02.png").write_bytes(b"broken")
    report = check(tmp_path, progress=False)
    assert f"  {tmp_path / '02.png'}: cannot be read as an image" in report
    assert "problems: 2" in report


def test_meshes_beside_their_textures_are_voxels(tmp_path):
    import trimesh

    trimesh.creation.box().export(tmp_path / "a.stl")
    for index in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    assert from_data(tmp_path).name == "voxel"
    assert "1 shapes, 64 cells" in check(tmp_path, progress=False)
    (tmp_path / "a.stl").unlink()
    np.save(tmp_path / "stray.npy", np.zeros(3))
    assert from_data(tmp_path).name == "image"


def test_meshes_beside_grids_are_checked_at_their_size(tmp_path):
    import trimesh

    root = voxels(tmp_path / "shapes")
    trimesh.creation.box((1, 2, 3)).export(root / "train" / "box.stl")
    report = check(root, progress=False)
    assert "train: 4 shapes, 8 cells along an edge" in report
    assert "problems: none" in report
