"""`check`: says what is there, and names everything that is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_srn import write_tiny_srn

from mnif_nerf.data.check import check
from mnif_nerf.errors import MNIFError


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
    assert "fit the cube [-0.5, 0.5]^3: no: scene001" in report
    assert "contradict each other in: scene002" in report


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
