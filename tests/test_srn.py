"""The SRN reader: layouts, conventions, and one sentence for every kind of bad input."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_srn import FOCAL_OVER_WIDTH, look_at_origin, write_tiny_srn

from mnif_nerf.data.readers.srn import list_splits, parse_intrinsics, pose_faults, read_split
from mnif_nerf.data.readers.srn_layout import strange_folders
from mnif_nerf.errors import MNIFError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return write_tiny_srn(tmp_path_factory.mktemp("srn") / "data", 2, 3, 2, 1, 16)


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "data"))


def scene(data: Path) -> Path:
    return data / "cars_train" / "scene000"


def refusal(root: Path, split: str = "train") -> str:
    """The message of the MNIFError that reading gives: one sentence that ends in a full stop."""
    with pytest.raises(MNIFError) as caught:
        read_split(root, split)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_reads_every_split_with_its_cameras(data):
    splits = list_splits(data)
    assert list(splits) == ["train", "val", "test", "train_val"]
    index = read_split(data, "train")
    assert (index.num_scenes, index.num_views, index.height, index.width) == (2, 6, 16, 16)
    assert index.names == ("scene000", "scene001")
    assert index.view_offsets.tolist() == [0, 3, 6]
    assert index.image_paths[3] == data / "cars_train" / "scene001" / "rgb" / "000000.png"
    np.testing.assert_allclose(index.intrinsics, [[FOCAL_OVER_WIDTH * 16, 8, 8]] * 6, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(index.poses[:, :3, 3], axis=1), 1.3, rtol=1e-5)
    assert ((index.poses[:, :3, 2] * index.poses[:, :3, 3]).sum(1) < -1.29).all(), "cameras look at the origin"


@pytest.mark.parametrize("nested", ["cars_train", "cars_2.0_train"])
def test_accepts_the_doubly_nested_archive(data, nested):
    (data / "cars_train").rename(data / "inner")
    (data / "cars_train").mkdir()
    (data / "inner").rename(data / "cars_train" / nested)
    (data / "cars_train" / "__MACOSX").mkdir()
    assert read_split(data, "train").num_scenes == 2


def test_accepts_a_wrapper_a_split_and_a_bare_folder_of_scenes(data):
    assert list(list_splits(data.parent)) == ["train", "val", "test", "train_val"]
    assert list_splits(data / "cars_train_val") == {"train_val": data / "cars_train_val"}
    assert "name a split that is there (train)" in refusal(data / "cars_train", "val")
    (data / "cars_train").rename(data.parent / "mine")
    index = read_split(data.parent / "mine", "train")
    assert (index.category, index.split, index.num_scenes) == ("mine", "train", 2)


def test_train_test_stands_in_for_train_val(data):
    (data / "cars_train_val").rename(data / "cars_train_test")
    assert read_split(data, "train_val").split == "train_test"


def test_several_categories_need_a_choice(data):
    shutil.copytree(data / "cars_val", data / "chairs_val")
    assert "several categories in it (cars, chairs)" in refusal(data)
    index = read_split(data / "chairs", "val")
    assert (index.category, index.num_scenes) == ("chairs", 1)


def test_poses_may_span_four_lines_and_images_may_be_jpeg(data):
    before = read_split(data, "train")
    for path in sorted((data / "cars_train").glob("*/pose/*.txt")):
        rows = np.loadtxt(path).reshape(4, 4)
        path.write_text("\n".join(" ".join(map(str, row)) for row in rows))
    for path in sorted((data / "cars_train").glob("*/rgb/*.png")):
        Image.open(path).convert("RGB").save(path.with_suffix(".JPG"), format="jpeg")
        path.unlink()
    after = read_split(data, "train")
    np.testing.assert_array_equal(before.poses, after.poses)
    assert after.image_paths[0].suffix == ".JPG"


def test_views_are_ordered_by_number(data):
    for kind in ("rgb", "pose"):
        for number, path in zip((10, 9, 2), sorted((scene(data) / kind).iterdir())):
            path.rename(path.with_stem(str(number)))
    assert [path.stem for path in read_split(data, "train").image_paths[:3]] == ["2", "9", "10"]


def test_intrinsics_follow_the_images_size(data):
    (scene(data) / "intrinsics.txt").write_text("131.25 64. 64. 0.\n0. 0. 0.\n0.\n1.\n128 128\n")
    np.testing.assert_allclose(read_split(data, "train").intrinsics[0], [16.40625, 8, 8])
    (scene(data) / "intrinsics.txt").write_text("131.25 64. 64. 0.\n128 64\n")
    assert "states 64x128 pixels, the images are 16x16" in refusal(data)


def test_world_to_camera_flag_inverts(data):
    before = read_split(data, "train").poses[:3]
    for path in (scene(data) / "pose").iterdir():
        path.write_text(" ".join(map(str, np.linalg.inv(np.loadtxt(path).reshape(4, 4)).ravel())))
    with open(scene(data) / "intrinsics.txt", "a") as file:
        file.write("1\n")
    np.testing.assert_allclose(read_split(data, "train").poses[:3], before, atol=1e-6)


def test_intrinsics_per_view(data):
    (scene(data) / "intrinsics.txt").unlink()
    folder = scene(data) / "intrinsics"
    folder.mkdir()
    for view in range(3):
        (folder / f"{view:06d}.txt").write_text("16.4 0 8 0 0 16.4 8 0 0 0 1 0 0 0 0 1\n")
    np.testing.assert_allclose(read_split(data, "train").intrinsics[0], [16.4, 8, 8], rtol=1e-6)
    (folder / "000002.txt").write_text("17 0 8 0 17 8 0 0 1\n")
    np.testing.assert_allclose(read_split(data, "train").intrinsics[:3, 0], [16.4, 16.4, 17], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("131 64 64 0\n", "last line 'H W'"),
        ("", "last line 'H W'"),
        ("a b c d\n128 128\n", "not a text file of numbers"),
        ("-5 64 64 0\n128 128\n", "must be positive, finite"),
        ("nan 64 64 0\n128 128\n", "must be positive, finite"),
        ("10 0 8\n0 20 8\n0 0 1\n", "two focal lengths"),
    ],
)
def test_malformed_intrinsics(tmp_path, text, said):
    (tmp_path / "intrinsics.txt").write_text(text)
    with pytest.raises(MNIFError, match=said):
        parse_intrinsics(tmp_path / "intrinsics.txt")


def test_missing_folder_and_no_scene(data, tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    shutil.rmtree(data / "cars_train")
    (data / "cars_train").mkdir()
    assert "cars_train: no scene in it" in refusal(data)
    (data / "cars_train" / "a").mkdir()
    (data / "cars_train" / "b").mkdir()
    assert "cars_train: no scene in it" in refusal(data)


def test_other_layouts_are_named(data, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    assert "found an empty folder" in refusal(other)
    (other / "car.glb").touch()
    assert "mnif-data from-meshes" in refusal(other)
    Image.new("RGB", (4, 4)).save(other / "a.png")
    (other / "car.glb").unlink()
    assert "found 1 images without poses" in refusal(other)
    (other / "cars.zip").touch()
    assert "unpack it first" in refusal(other)
    (other / "transforms.json").write_text("{}")
    assert "transforms.json" in refusal(other)
    assert "two levels up" in refusal(scene(data))


def test_a_folder_that_is_no_scene_is_left_out(data):
    (data / "cars_train" / "junk").mkdir()
    assert read_split(data, "train").num_scenes == 2
    assert strange_folders(data / "cars_train") == [data / "cars_train" / "junk"]


def test_unequal_counts_and_names(data):
    (scene(data) / "pose" / "000002.txt").rename(scene(data) / "pose" / "000007.txt")
    assert "000002.png: no 000002.txt in pose/" in refusal(data)
    (scene(data) / "pose" / "000007.txt").unlink()
    assert "3 images in rgb/ but 2 poses" in refusal(data)
    shutil.rmtree(scene(data) / "rgb")
    assert "0 images in rgb/ but 2 poses" in refusal(data)
    shutil.rmtree(scene(data) / "pose")
    (scene(data) / "rgb").mkdir()
    assert "no images in rgb/" in refusal(data)


def test_missing_intrinsics(data):
    (scene(data) / "intrinsics.txt").unlink()
    assert "scene000: no intrinsics.txt in it" in refusal(data)


def test_poses_without_their_last_row(data):
    before = read_split(data, "train").poses
    for path in (scene(data) / "pose").glob("*.txt"):
        path.write_text(" ".join(map(str, np.loadtxt(path).ravel()[:12])))
    np.testing.assert_array_equal(read_split(data, "train").poses, before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.ravel()[:11], "11 numbers, expected 16"),
        (lambda m: np.where(np.eye(4) > 0, np.nan, m), "NaN or infinite"),
        (lambda m: np.where(np.eye(4) > 0, np.inf, m), "NaN or infinite"),
        (lambda m: np.zeros((4, 4)), "singular"),
        (lambda m: m * np.array([2.0, 2, 2, 1]), "no rotation"),
        (lambda m: m * np.array([-1.0, 1, 1, 1]), "mirrors space"),
        (lambda m: m.T, "last row is not 0 0 0 1"),
    ],
)
def test_bad_poses(data, change, said):
    path = scene(data) / "pose" / "000001.txt"
    path.write_text(" ".join(map(str, np.ravel(change(np.loadtxt(path).reshape(4, 4))))))
    message = refusal(data)
    assert said in message
    assert str(path) in message


def test_a_pose_that_is_no_text(data):
    path = scene(data) / "pose" / "000001.txt"
    path.write_text("1 0 zero")
    assert f"{path}: not a text file of numbers" in refusal(data)
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path}: not a text file of numbers" in refusal(data)


def test_opengl_poses_are_recognised(data):
    for path in data.glob("cars_train/*/pose/*.txt"):
        flipped = np.loadtxt(path).reshape(4, 4) * np.array([1, -1, -1, 1])
        path.write_text(" ".join(map(str, flipped.ravel())))
    assert "6 of 6 cameras look away from the origin" in refusal(data)


def test_scenes_of_unequal_size(data):
    for path in (data / "cars_train" / "scene001" / "rgb").iterdir():
        Image.new("RGB", (8, 8)).save(path)
    assert "8x8 pixels, expected 16x16 like scene000" in refusal(data)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3).filter(lambda p: np.linalg.norm(p) > 0.1))
def test_every_camera_that_looks_at_the_origin_is_sound(position):
    pose = look_at_origin(np.array(position))
    assert not list(pose_faults(pose[None]))
    np.testing.assert_allclose(pose[:3, 2] * np.linalg.norm(position), -np.array(position), atol=1e-9)
    pose[0, 0] += 0.5
    assert len(list(pose_faults(pose[None]))) == 1
