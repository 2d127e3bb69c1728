"""Point clouds and camera files as other programs write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_srn import look_at_origin

from mnif_nerf.data.observations.files import detect_kind
from mnif_nerf.data.readers.cloud_files import read_cloud
from mnif_nerf.data.readers.transforms_json import read_transforms
from mnif_nerf.errors import MNIFError

RNG = np.random.default_rng(0)
DIRECTIONS = RNG.normal(size=(60, 3))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)
POINTS = np.round(DIRECTIONS / 3, 4)
ROWS = [" ".join(f"{x:.4f}" for x in point) for point in POINTS]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "x,y,z\n" + "\n".join(ROWS).replace(" ", ",")),
        ("a.csv", ",x,y,z\n" + "\n".join(f"{k},{row}" for k, row in enumerate(ROWS)).replace(" ", ",")),
        ("a.txt", "//X Y Z\n" + "\n".join(ROWS)),
        ("a.csv", "\n".join(ROWS).replace(" ", ";")),
        ("a.csv", "\n".join(ROWS).replace(" ", "; ").replace(".", ",")),
        ("a.csv", "\ufeffX;Y;Z\n" + "\n".join(ROWS).replace(" ", ";")),
        ("a.asc", "# made by hand\n% words\n" + "\n".join(ROWS)),
        ("a.pts", "60\n" + "\n".join(f"{row} 12 255 0 0" for row in ROWS)),
        ("a.csv", "intensity,z,y,x\n" + "\n".join(",".join(["9", *row.split()[::-1]]) for row in ROWS)),
        ("a.tsv", "X [m]\tY [m]\tZ [m]\n" + "\n".join(ROWS).replace(" ", "\t")),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_texts(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_text(text + "\n", encoding=encoding)
    assert detect_kind(tmp_path / name) == "cloud"
    np.testing.assert_allclose(read_cloud(tmp_path / name).points, POINTS)


def test_columns_by_their_names(tmp_path: Path) -> None:
    rows = [[*p, 7, *(255 * abs(d)).round(), *d] for p, d in zip(POINTS, DIRECTIONS)]
    text = "//X Y Z Scalar R G B Nx Ny Nz\n" + "\n".join(" ".join(map(str, row)) for row in rows)
    (tmp_path / "a.txt").write_text(text)
    cloud = read_cloud(tmp_path / "a.txt")
    assert cloud.normals is not None
    np.testing.assert_allclose(cloud.normals, DIRECTIONS, atol=1e-6)
    assert cloud.colors is not None
    np.testing.assert_allclose(cloud.colors, (255 * abs(DIRECTIONS)).round() / 255, atol=1e-6)
    assert cloud.notes == ("columns left out: scalar.",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b,c,d\n1,2,3,4\n", "names no columns x, y and z"),
        ("x,y,z\n1,2,3\n1,2\n", "has 2 columns, the first one 3"),
        ("x,y,z\n1,2,3\n1,2,three\n", "could not convert"),
        ("x,y,z\nfoo,bar,baz\n1,2,3\n", "two lines of words"),
        ("# nothing\n", "no points"),
    ],
)
def test_texts_that_are_no_clouds(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(MNIFError, match=said):
        read_cloud(tmp_path / "a.csv")


def test_arrays(tmp_path: Path) -> None:
    colors = abs(DIRECTIONS)
    for name, array, normals, notes in (
        ("four", np.hstack([POINTS, np.ones((60, 1))]), False, 1),
        ("nine", np.hstack([POINTS, colors, DIRECTIONS]), True, 1),
        ("six", np.hstack([POINTS, DIRECTIONS]), True, 0),
        ("colors", np.hstack([POINTS, colors]), False, 1),
        ("batch", POINTS[None], False, 0),
        ("columns", POINTS.T, False, 1),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        assert detect_kind(tmp_path / f"{name}.npy") == "cloud"
        cloud = read_cloud(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(cloud.points, POINTS)
        assert (cloud.normals is not None, len(cloud.notes)) == (normals, notes), name
    for name in ("pc", "xyz", "arr_0"):
        np.savez(tmp_path / "a.npz", **{name: POINTS})
        assert detect_kind(tmp_path / "a.npz") == "cloud"
        np.testing.assert_allclose(read_cloud(tmp_path / "a.npz").points, POINTS)
    np.save(tmp_path / "grid.npy", np.zeros((8, 8, 8)))
    assert detect_kind(tmp_path / "grid.npy") == "voxels"


def test_points_of_the_volume_are_no_cloud(tmp_path: Path) -> None:
    np.savez(tmp_path / "points.npz", points=POINTS.astype(np.float16), occupancies=np.packbits(POINTS[:, 0] > 0))
    with pytest.raises(MNIFError, match="points of the volume with their occupancies"):
        read_cloud(tmp_path / "points.npz")


def transforms(folder: Path, **changes: object) -> Path:
    frames = []
    for k, place in enumerate(([1.3, 0, 0], [0, 1.3, 0.1], [-1.3, 0, 0.2])):
        Image.new("RGB", (32, 32)).save(folder / f"{k}.png")
        pose = look_at_origin(np.array(place)) @ np.diag([1.0, -1, -1, 1])
        frames.append({"file_path": f"{k}.png", "transform_matrix": pose.tolist()})
    content = {"fl_x": 33.0, "cx": 16, "cy": 16, "w": 32, "h": 32, "frames": frames, **changes}
    for frame in frames:
        frame.update(content.pop("frame", {}))  # type: ignore[arg-type]
    path = folder / "transforms.json"
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "model OPENCV_FISHEYE"),
        ({"is_fisheye": True}, "model OPENCV_FISHEYE"),
        ({"camera_model": "equirectangular"}, "model EQUIRECTANGULAR"),
        ({"camera_model": "ORTHOPHOTO"}, "model ORTHOPHOTO"),
        ({"fl_x": 1e9}, "which no lens has"),
        ({"fl_x": 1.02, "cx": 0.5, "cy": 0.5}, "shares of the picture"),
        ({"cx": 300}, "outside the pictures"),
        ({"fl_x": float("nan")}, "positive"),
        ({"cy": float("inf")}, "positive and finite"),
    ],
)
def test_cameras_that_are_not_read(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(MNIFError, match=said):
        read_transforms(transforms(tmp_path, **changes))


def test_files_of_windows(tmp_path: Path) -> None:
    path = transforms(tmp_path)
    path.write_text(path.read_text(encoding="utf-8-sig").replace('"0.png"', '".\\\\0.png"'), encoding="utf-8-sig")
    images, poses, intrinsics, size = read_transforms(path)
    assert (images[0], size) == (tmp_path / "0.png", (32, 32))
    np.testing.assert_allclose(np.linalg.norm(poses[:, :3, 3], axis=1), [1.3, 1.304, 1.315], atol=1e-3)
    assert intrinsics.shape == (3, 3)


def test_world_to_camera_matrices(tmp_path: Path) -> None:
    path = transforms(tmp_path)
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    for frame in content["frames"]:
        frame["transform_matrix"] = np.linalg.inv(np.array(frame["transform_matrix"])).tolist()
    path.write_text(json.dumps(content))
    with pytest.raises(MNIFError, match="stand at one point"):
        read_transforms(path)
