"""Posed pictures of other conventions: named with their repair, read by it, and never trained on in silence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_srn import FOCAL_OVER_WIDTH, look_at_origin, write_tiny_srn

from mnif_nerf.cli.data import Check, main
from mnif_nerf.data.readers.scene_reading import (
    SceneReading,
    at_one_point,
    camera_to_world,
    file_matrices,
    intrinsics_fault,
)
from mnif_nerf.data.readers.srn import parse_intrinsics, read_scene, read_split
from mnif_nerf.data.readers.srn_layout import locate
from mnif_nerf.data.readers.text import has_decimal_commas, number_lines, read_text
from mnif_nerf.data.sampling.views import TrainingViews
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.data_report import check

SIZE = 24
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
OTHER: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "w2c": np.linalg.inv,
    "c2w-gl": lambda pose: pose @ FLIP,
    "w2c-gl": lambda pose: np.linalg.inv(pose @ FLIP),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    root = write_tiny_srn(tmp_path_factory.mktemp("reading") / "data", 3, 6, 2, 1, SIZE)
    for split in ("cars_train_val", "cars_val"):
        shutil.rmtree(root / split)
    return root


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "data"))


def change_poses(data: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in data.glob("cars_*/*/pose/*.txt"):
        np.savetxt(path, change(np.loadtxt(path).reshape(4, 4)).reshape(1, 16), fmt="%.9g")


def change_intrinsics(data: Path, text: str) -> None:
    for path in data.glob("cars_*/*/intrinsics.txt"):
        path.write_text(text)


def problems(data: Path, reading: SceneReading | None = None) -> list[str]:
    return check(data, progress=False, reading=reading or SceneReading()).problems


@pytest.mark.parametrize("kind", list(OTHER))
def test_matrices_of_another_convention_are_named_and_read(pristine: Path, data: Path, kind: str) -> None:
    change_poses(data, OTHER[kind])
    found = problems(data)
    assert len(found) == 2, "one for each split"
    assert all(f"`poses` {kind}" in problem for problem in found)
    with pytest.raises(MNIFError, match=f"`poses` {kind}"):
        open_store(data, "train", progress=False)
    reading = SceneReading(poses=kind)  # type: ignore[arg-type]
    assert problems(data, reading) == []
    ours, usual = read_split(data, "train", reading), read_split(pristine, "train")
    np.testing.assert_allclose(ours.poses, usual.poses, atol=1e-5)
    assert open_store(data, "train", False, None, reading).num_scenes == 3


@pytest.mark.parametrize("kind", ["c2w", *OTHER])
def test_readings_of_matrices_have_inverses(kind) -> None:
    poses = np.stack([look_at_origin(np.array(place)) for place in ([1.0, 0.2, 0.3], [0.1, -1.2, 0.4])])
    np.testing.assert_allclose(camera_to_world(file_matrices(poses, kind), kind), poses, atol=1e-12)


def test_the_flag_in_the_file_is_overruled_by_the_option(data: Path) -> None:
    for path in data.glob("cars_*/*/intrinsics.txt"):
        path.write_text(path.read_text() + "1\n")
    assert problems(data)
    assert problems(data, SceneReading(poses="c2w")) == []


def test_intrinsics_of_other_layouts(data: Path) -> None:
    focal, centre = FOCAL_OVER_WIDTH * SIZE, SIZE / 2
    for text in (
        f"{focal} {focal} {centre} {centre}\n0. 0. 0.\n1.\n{SIZE} {SIZE}\n",
        f"{focal} {focal} {centre} {centre}\n",
        f"\ufeff{focal}, {centre}, {centre}, 0.\n{SIZE}, {SIZE}\n",
        f"# f cx cy\n[[{focal}, 0, {centre}], [0, {focal}, {centre}], [0, 0, 1]]\n",
    ):
        change_intrinsics(data, text)
        assert read_split(data, "train").intrinsics[0] == pytest.approx([focal, centre, centre], rel=1e-6)
    (data / "cars_train" / "intrinsics.txt").write_bytes(f"{focal} {centre} {centre} 0\n{SIZE} {SIZE}".encode("utf-16"))
    next(data.glob("cars_train/*000/intrinsics.txt")).unlink()
    assert read_split(data, "train").intrinsics[0] == pytest.approx([focal, centre, centre], rel=1e-6)


@pytest.mark.parametrize(
    "text", [f"{FOCAL_OVER_WIDTH} 0 0.5\n0 {FOCAL_OVER_WIDTH} 0.5\n0 0 1\n", f"{FOCAL_OVER_WIDTH} 0.5 0.5 0.\n24 24\n"]
)
def test_normalised_intrinsics(data: Path, text: str) -> None:
    change_intrinsics(data, text)
    with pytest.raises(MNIFError, match="`intrinsics` normalised reads them so"):
        open_store(data, "train", progress=False)
    reading = SceneReading(intrinsics="normalised")
    assert problems(data, reading) == []
    assert read_split(data, "train", reading).intrinsics[0] == pytest.approx([FOCAL_OVER_WIDTH * SIZE, 12, 12])


@pytest.mark.parametrize(
    ("camera", "said"),
    [
        ((999999999.0, 16, 16), "which no lens has"),
        ((5.0, 16, 16), "which no lens has"),
        ((33.0, 64, 16), "outside the pictures"),
        ((33.0, 16, -1), "outside the pictures"),
        ((1.0, 0.5, 0.5), "shares of the picture"),
        ((33.0, 15, 17), None),
    ],
)
def test_cameras_that_cannot_be(camera, said) -> None:
    found = intrinsics_fault(*camera, 32, 32)
    assert (found is None) if said is None else said in str(found)


def test_size_that_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "intrinsics.txt").write_text("131 64 64 0\nnan nan\n")
    with pytest.raises(MNIFError, match="must be positive, finite"):
        parse_intrinsics(tmp_path / "intrinsics.txt")


def test_focal_lengths_of_single_views(data: Path) -> None:
    scene = data / "cars_train" / "scene000"
    (scene / "intrinsics.txt").unlink()
    (scene / "intrinsics").mkdir()
    for view in range(6):
        focal = FOCAL_OVER_WIDTH * SIZE + view
        (scene / "intrinsics" / f"{view:06d}.txt").write_text(f"{focal} 0 12\n0 {focal} 12\n0 0 1\n")
    views = TrainingViews(data, heldout_per_scene=2)
    assert views.training(0).intrinsics[:, 0] == pytest.approx(FOCAL_OVER_WIDTH * SIZE + np.array([0, 2, 3, 5]))
    assert views.training(1).intrinsics[:, 0] == pytest.approx([FOCAL_OVER_WIDTH * SIZE] * 4)
    (scene / "intrinsics" / "000003.txt").unlink()
    with pytest.raises(MNIFError, match=r"no 000003\.txt in it"):
        read_scene(scene)


def test_blank_instances_are_left_out_everywhere(data: Path, capsys) -> None:
    for path in (data / "cars_train" / "scene000" / "rgb").iterdir():
        Image.new("RGB", (SIZE, SIZE), "white").save(path)
    Image.new("RGB", (SIZE, SIZE), "white").save(data / "cars_train" / "scene002" / "rgb" / "000001.png")
    found = problems(data)
    assert any("blank in all their pictures, and left out: scene000" in problem for problem in found)
    assert any("scene002: 1 of 6 pictures show nothing" in problem for problem in found)
    store = open_store(data, "train", progress=False)
    assert store.names == ("scene001", "scene002")
    assert store.view_offsets.tolist() == [0, 6, 12]
    np.testing.assert_array_equal(store.poses[0], read_split(data, "train").poses[6])
    said = capsys.readouterr().out
    assert "left out: scene000" in said
    assert "scene002 (1 of 6)" in said
    for path in (data / "cars_train").glob("*/rgb/*.png"):
        Image.new("RGBA", (SIZE, SIZE)).save(path)
    with pytest.raises(MNIFError, match="all 3 instances are blank"):
        open_store(data, "train", progress=False)


@pytest.mark.parametrize(("factor", "lift"), [(2.0, 0.0), (1.0, 0.7), (0.01, 0.0)])
def test_scale_auto_moves_objects_into_the_box(data: Path, factor: float, lift: float) -> None:
    def moved(pose: np.ndarray) -> np.ndarray:
        pose = pose.copy()
        pose[:3, 3] *= factor
        pose[2, 3] += lift
        return pose

    change_poses(data, moved)
    if factor >= 1:
        assert any("`scale` auto" in problem for problem in problems(data))
        with pytest.raises(MNIFError, match="`scale` auto"):
            open_store(data, "train", progress=False)
    reading = SceneReading(scale="auto")
    assert problems(data, reading) == []
    cells = open_store(data, "train", False, None, reading).hull_union()
    assert cells is not None
    extent = max(int(np.ptp(np.flatnonzero(cells.any(axis=axes)))) + 1 for axes in ((1, 2), (0, 2), (0, 1)))
    assert 26 <= extent <= 32, "the objects fill the box"
    radii = [
        np.linalg.norm(open_store(data, s, False, None, reading).poses[:, :3, 3], axis=1) for s in ("train", "test")
    ]
    assert radii[0].mean() == pytest.approx(radii[1].mean(), rel=0.02), "one placement for all splits"


def test_masks_that_contradict_each_other_can_be_trained_on(data: Path, capsys) -> None:
    for path in data.glob("cars_train/*/rgb/*.png"):
        shift = 8 * (-1) ** int(path.stem)
        Image.fromarray(np.roll(np.asarray(Image.open(path)), (shift, -shift), axis=(0, 1))).save(path)
    with pytest.raises(MNIFError, match=r"3 of 3 scenes .* `poses` c2w trains on them"):
        open_store(data, "train", progress=False)
    assert problems(data)
    store = open_store(data, "train", False, None, SceneReading(poses="c2w"))
    assert store.hull(0).all()
    assert "no hull explains the silhouettes of scene000" in capsys.readouterr().out


def test_alpha_beside_pictures_on_black(data: Path) -> None:
    for path in (data / "cars_train" / "scene000" / "rgb").iterdir():
        pixels = np.asarray(Image.open(path)).astype(float)
        Image.fromarray((pixels[..., :3] * pixels[..., 3:] / 255).astype(np.uint8)).save(path)
    assert any("has no alpha while other pictures have" in problem for problem in problems(data))
    with pytest.raises(MNIFError, match="has no alpha while other pictures have"):
        open_store(data, "train", progress=False)


def test_folders_of_file_servers_and_strangers(data: Path, capsys) -> None:
    for name in ("@eaDir", "lost+found", "__MACOSX", "logs"):
        (data / "cars_train" / name).mkdir()
    report = check(data, progress=False)
    assert not report.problems
    assert "left out: logs" in str(report)
    assert open_store(data, "train", progress=False).num_scenes == 3
    assert "logs: neither rgb/ nor pose/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [
        ("cars_Train", "cars_TEST", "test"),
        ("train", "test", "test"),
        ("training", "validation", "val"),
        ("cars_train", "Cars_valid", "val"),
    ],
)
def test_splits_by_their_other_names(data: Path, train: str, test: str, split: str) -> None:
    (data / "cars_train").rename(data / "a")
    (data / "cars_test").rename(data / "b")
    (data / "a").rename(data / train)
    (data / "b").rename(data / test)
    assert locate(data).splits == {"train": data / train, split: data / test}


def test_folders_of_scenes_with_other_names_are_told(data: Path) -> None:
    (data / "cars_test").rename(data / "cars_holdout")
    assert "are left out: cars_holdout" in str(check(data, progress=False))


def test_pictures_of_one_colour_are_blank(data: Path) -> None:
    for path in (data / "cars_train" / "scene001" / "rgb").iterdir():
        Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 255)).save(path)
    assert any("left out: scene001" in problem for problem in problems(data))


def test_two_folders_of_one_split(data: Path) -> None:
    shutil.copytree(data / "cars_test", data / "cars_testing")
    with pytest.raises(MNIFError, match="cars_test and cars_testing are both its test split"):
        locate(data)


def test_the_command_fails_and_names_the_option(data: Path, capsys) -> None:
    change_poses(data, np.linalg.inv)
    with pytest.raises(SystemExit) as stopped:
        main(Check(data))
    assert stopped.value.code == 1
    assert "--poses w2c reads them so" in capsys.readouterr().out
    main(Check(data, poses="w2c"))
    assert "ns-train mnif-lite --data" in (said := capsys.readouterr().out)
    assert "--poses w2c" in said


def test_texts_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"):
        path.write_bytes("1.5 2\n// words\n3;4 # é\n".encode(encoding))
        assert number_lines(path) == [[1.5, 2], [3, 4]], encoding
    path.write_text("1,5;2,25\n-3,5;4\n")
    assert number_lines(path) == [[1.5, 2.25], [-3.5, 4]]
    assert not has_decimal_commas(["1,2,3"])
    assert not has_decimal_commas(["1, 2, 3"])
    with pytest.raises(MNIFError, match="no such file"):
        read_text(tmp_path / "none.txt")


def test_cameras_at_one_point() -> None:
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = 5.0
    assert at_one_point(poses)
    poses[1, 0, 3] = 5.1
    assert not at_one_point(poses)
    assert not at_one_point(poses[:1])
