"""Observations for fits: what is read, where it lands, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from tiny_srn import look_at_origin, make_shapes, render, write_tiny_scene

from mnif_nerf.data.observations.files import (
    detect_kind,
    read_cells,
    read_mask,
    read_observation,
    read_photo,
    read_views,
)
from mnif_nerf.data.observations.observations import Cells, MeshShape, Placement, PosedViews, Scan, as_observation
from mnif_nerf.data.observations.observed_region import (
    Region,
    enclosed_cells,
    estimate_normals,
    points_of_cells,
    points_of_scan,
)
from mnif_nerf.data.readers.cloud_files import PointCloud, read_cloud
from mnif_nerf.errors import MNIFError

POSES = np.stack([look_at_origin(1.3 * np.array(p)) for p in ((0.8, 0.0, 0.6), (0.0, 0.8, 0.6), (-0.6, 0.0, 0.8))])


def ball(resolution: int = 16, radius: float = 0.3) -> np.ndarray:
    axis = (np.arange(resolution) + 0.5) / resolution - 0.5
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    return x**2 + y**2 + z**2 < radius**2


def cloud_of(points: np.ndarray, normals: np.ndarray | None = None) -> PointCloud:
    return PointCloud(points.astype(np.float32), None if normals is None else normals.astype(np.float32))


def sphere_points(count: int = 3000, radius: float = 0.3) -> np.ndarray:
    direction = np.random.default_rng(0).normal(size=(count, 3))
    return radius * direction / np.linalg.norm(direction, axis=1, keepdims=True)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_tiny_scene(tmp_path / "scene", make_shapes(0), POSES, 16)
    return tmp_path / "scene"


def write_transforms(scene: Path, folder: Path, scale: float = 1.0) -> Path:
    """The same scene as nerfstudio writes it."""
    folder.mkdir()
    views, frames = read_views(scene), []
    for k, pose in enumerate(views.poses):
        (folder / f"{k}.png").write_bytes((scene / "rgb" / f"{k:06d}.png").read_bytes())
        opengl = pose @ np.diag([1.0, -1.0, -1.0, 1.0])
        opengl[:3, 3] *= scale
        frames.append({"file_path": f"{k}.png", "transform_matrix": opengl.tolist()})
    focal, cx, cy = (float(v) for v in views.intrinsics[0])
    about = {"fl_x": focal, "fl_y": focal, "cx": cx, "cy": cy, "w": 16, "h": 16, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(about))
    return folder


def test_transforms_are_the_scene_in_another_convention(scene: Path, tmp_path: Path) -> None:
    ours, theirs = read_views(scene), read_views(write_transforms(scene, tmp_path / "ns"))
    np.testing.assert_allclose(theirs.poses, ours.poses, atol=1e-6)
    np.testing.assert_allclose(theirs.intrinsics, ours.intrinsics, rtol=1e-5)
    np.testing.assert_array_equal(theirs.images, ours.images)
    assert ours.silhouettes is not None
    assert 0.05 < ours.silhouettes.mean() < 0.6


def test_cameras_are_brought_to_the_models_distance(scene: Path, tmp_path: Path) -> None:
    far = write_transforms(scene, tmp_path / "ns", scale=5.0)
    read = read_observation(far, "views", Placement(normalise="yes"), radius=1.3)
    assert isinstance(read, PosedViews)
    np.testing.assert_allclose(read.poses, read_views(scene).poses, atol=1e-4)
    scaled = read_observation(far, "views", Placement(scale=0.2))
    assert isinstance(scaled, PosedViews)
    np.testing.assert_allclose(scaled.poses, read_views(scene).poses, atol=1e-4)


def test_large_pictures_are_reduced_with_their_cameras(tmp_path: Path) -> None:
    write_tiny_scene(tmp_path / "scene", make_shapes(0), POSES[:1], 160)
    views = read_views(tmp_path / "scene")
    assert views.images.shape == (1, 128, 128, 3)
    assert views.intrinsics[0, 1] == pytest.approx(64)
    full = float(np.loadtxt(tmp_path / "scene" / "intrinsics.txt", max_rows=1)[0])
    assert views.intrinsics[0, 0] == pytest.approx(full * 128 / 160, rel=1e-5)


def test_kinds_are_told_apart(scene: Path, tmp_path: Path) -> None:
    points = sphere_points(50)
    trimesh.PointCloud(points).export(tmp_path / "cloud.ply")
    trimesh.creation.box().export(tmp_path / "mesh.ply")
    np.save(tmp_path / "cloud.npy", points)
    np.save(tmp_path / "grid.npy", ball())
    np.savez(tmp_path / "cloud.npz", points=points)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    expected = {"cloud.ply": "cloud", "mesh.ply": "mesh", "cloud.npy": "cloud", "grid.npy": "voxels"}
    for name, kind in {**expected, "cloud.npz": "cloud"}.items():
        assert detect_kind(tmp_path / name) == kind, name
    assert detect_kind(scene) == "views"
    assert detect_kind(tmp_path / "a.png", "photo") == "photo"
    assert detect_kind(tmp_path / "a.png") == "image"


def test_clouds_of_all_files_are_the_same(tmp_path: Path) -> None:
    points = sphere_points(40).astype(np.float32)
    table = np.hstack([points, points / 0.3])
    np.save(tmp_path / "a.npy", table)
    np.savetxt(tmp_path / "a.xyz", table)
    (tmp_path / "a.pts").write_text("40\n" + "\n".join(" ".join(map(str, row)) for row in table))
    header = "ply\nformat {} 1.0\nelement vertex 40\n" + "".join(
        f"property float {n}\n" for n in ("x", "y", "z", "nx", "ny", "nz")
    )
    rows = "\n".join(" ".join(map(str, row)) for row in table)
    (tmp_path / "a.ply").write_text(header.format("ascii") + "end_header\n" + rows + "\n")
    binary = header.format("binary_little_endian") + "end_header\n"
    (tmp_path / "b.ply").write_bytes(binary.encode() + table.astype("<f4").tobytes())
    for name in ("a.npy", "a.xyz", "a.pts", "a.ply", "b.ply"):
        cloud = read_cloud(tmp_path / name)
        np.testing.assert_allclose(cloud.points, points, atol=1e-5, err_msg=name)
        assert cloud.normals is not None, name
        np.testing.assert_allclose(cloud.normals, points / 0.3, atol=1e-4, err_msg=name)


def test_cells_that_are_nan_are_unknown(tmp_path: Path) -> None:
    values = ball().astype(np.float32)
    values[8:] = np.nan
    np.save(tmp_path / "half.npy", values)
    cells = read_cells(tmp_path / "half.npy")
    assert cells.known is not None
    assert cells.known[:8].all()
    assert not cells.known[8:].any()
    np.testing.assert_array_equal(cells.values[:8], ball()[:8])
    given = as_observation(values)
    assert isinstance(given, Cells)
    np.testing.assert_array_equal(given.known, cells.known)


def test_meshes_are_centred_unless_told_otherwise(tmp_path: Path) -> None:
    box = trimesh.creation.box(
        extents=(0.4, 0.2, 0.1), transform=trimesh.transformations.translation_matrix([0.1, 0, 0])
    )
    box.export(tmp_path / "box.stl")
    read = read_observation(tmp_path / "box.stl", "mesh")
    assert isinstance(read, MeshShape)
    assert np.linalg.norm(np.ptp(read.surface.vertices, axis=0)) == pytest.approx(1.0)
    as_it_is = read_observation(tmp_path / "box.stl", "mesh", Placement(normalise="no"))
    assert isinstance(as_it_is, MeshShape)
    np.testing.assert_allclose(as_it_is.surface.vertices.mean(axis=0), [0.1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.ptp(as_it_is.surface.vertices, axis=0), [0.4, 0.2, 0.1], atol=1e-6)
    moved = read_observation(tmp_path / "box.stl", "mesh", Placement(normalise="no", centre=(0.1, 0, 0), scale=2.0))
    assert isinstance(moved, MeshShape)
    np.testing.assert_allclose(np.ptp(moved.surface.vertices, axis=0), [0.8, 0.4, 0.2], atol=1e-6)
    np.testing.assert_allclose(moved.surface.vertices.mean(axis=0), 0, atol=1e-6)


def test_clouds_are_placed(tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", 10 * sphere_points() + [5, 0, 0])
    with pytest.raises(MNIFError, match=r"far\.npy: \d+% of its points lie outside the scene box.*`normalise` yes"):
        read_observation(tmp_path / "far.npy", "cloud")
    placed = read_observation(tmp_path / "far.npy", "cloud", Placement(centre=(5, 0, 0), scale=0.1))
    assert isinstance(placed, Scan)
    np.testing.assert_allclose(np.linalg.norm(placed.cloud.points, axis=1), 0.3, atol=1e-5)
    whole = read_observation(tmp_path / "far.npy", "cloud", Placement(normalise="yes"))
    assert isinstance(whole, Scan)
    assert np.linalg.norm(np.ptp(whole.cloud.points, axis=0)) == pytest.approx(1.0, abs=1e-3)


def test_halves_are_those_of_the_axes() -> None:
    for half, (axis, sign) in {"front": (0, 1), "back": (0, -1), "left": (1, 1), "bottom": (2, -1)}.items():
        seen = np.moveaxis(Region(half).cells(4), axis, 0)
        assert seen[2:].all() == (sign > 0), half
        assert seen[:2].all() == (sign < 0), half
        assert seen.sum() == 32
    box = Region(box=(-0.5, -0.5, -0.5, 0.0, 0.5, 0.5))
    np.testing.assert_array_equal(box.cells(4), Region("back").cells(4))
    top = Region("top").pixels((4, 4))
    assert top[:2].all()
    assert not top[2:].any()
    left = Region("left").pixels((4, 4))
    assert left[:, :2].all()
    assert not left[:, 2:].any()


def test_points_of_cells_know_only_what_was_seen() -> None:
    values, seen = ball(), Region("front").cells(16)
    points = points_of_cells(values, seen)
    where, targets = (
        np.concatenate([points.near, points.far]),
        np.concatenate([points.near_targets, points.far_targets]),
    )
    assert len(where) == seen.sum()
    assert (where[:, 0] > 0).all()
    np.testing.assert_array_equal(targets > 0, np.linalg.norm(where, axis=1) < 0.3)
    distance = np.abs(np.linalg.norm(points.near, axis=1) - 0.3)
    assert distance.max() < 0.15 < np.abs(np.linalg.norm(points.far, axis=1) - 0.3).max()
    shell = points_of_cells(values, seen, shell_only=True)
    assert (shell.far_targets < 0).all()
    assert len(shell.far) < len(points.far)


def test_a_scan_says_inside_and_outside() -> None:
    points = sphere_points()
    for cloud in (cloud_of(points, points / 0.3), cloud_of(points)):
        solid, whole = points_of_scan(cloud)
        assert whole
        radius = np.linalg.norm(solid.near, axis=1)
        assert np.median(radius[solid.near_targets > 0]) < 0.299
        assert np.median(radius[solid.near_targets < 0]) > 0.301
        radius = np.linalg.norm(solid.far, axis=1)
        assert radius[solid.far_targets > 0].max() < 0.3
        assert radius[solid.far_targets < 0].min() > 0.3


def test_a_partial_scan_leaves_the_other_side_open() -> None:
    scanner = np.array([0.9, 0.0, 0.0], dtype=np.float32)
    points = sphere_points()
    seen = points[points[:, 0] > 0.12]
    assert enclosed_cells(seen) is None
    solid, whole = points_of_scan(cloud_of(seen), scanner)
    assert not whole
    assert (solid.far_targets == -1).all()
    assert (solid.far[:, 0] > 0.1).all()
    assert np.linalg.norm(solid.far, axis=1).min() > 0.3
    normals = estimate_normals(seen.astype(np.float32), scanner)
    assert ((normals * seen).sum(axis=1) > 0.29).mean() > 0.95
    assert len(points_of_scan(cloud_of(seen))[0].far) == 0


# --------------------------------------------------------------------------------------------------------- bad input


def refuse(message: str, path: Path, picture: str = "photo", kind: str | None = None) -> None:
    with pytest.raises(MNIFError, match=message):
        read_observation(path, kind or detect_kind(path, picture))  # type: ignore[arg-type]


def test_pictures_without_poses(scene: Path, tmp_path: Path) -> None:
    plain = tmp_path / "pictures"
    plain.mkdir()
    (plain / "a.png").write_bytes((scene / "rgb" / "000000.png").read_bytes())
    refuse(r"pictures: 1 pictures without poses; add a transforms\.json", plain)
    for file in (scene / "pose").iterdir():
        file.unlink()
    refuse(r"3 images in rgb/ but 0 poses", scene)
    (tmp_path / "empty").mkdir()
    refuse("neither an SRN scene", tmp_path / "empty")


def test_a_transforms_json_with_faults(scene: Path, tmp_path: Path) -> None:
    folder = write_transforms(scene, tmp_path / "ns")
    good = json.loads((folder / "transforms.json").read_text())
    for k in (1, 2):
        (folder / f"{k}.png").unlink()
    refuse(r"transforms\.json: 2 of its 3 pictures are missing \(.*1\.png, .*2\.png\)", folder)
    faults = {
        "has no list of frames": {**good, "frames": []},
        "no transform_matrix of 4x4": {**good, "frames": [{"file_path": "0.png"}]},
        "says neither fl_x nor camera_angle_x": {k: v for k, v in good.items() if not k.startswith("fl")},
        "cameras with distortion": {**good, "k1": 0.3},
        "two focal lengths": {**good, "fl_y": 99.0},
    }
    for message, content in faults.items():
        frames = content["frames"][:1]
        (folder / "transforms.json").write_text(json.dumps({**content, "frames": frames}))
        refuse(message, folder)


def test_views_of_different_sizes(scene: Path) -> None:
    Image.new("RGB", (20, 12)).save(scene / "rgb" / "000002.png")
    refuse(r"000002\.png: 20x12 pixels, but 000000\.png has 16x16.*of one size", scene)


def test_cameras_that_look_away(scene: Path) -> None:
    with pytest.raises(MNIFError, match="look away from the origin"):
        read_observation(scene, "views", Placement(centre=(3.0, 0.0, 9.0)))


def test_clouds_of_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "nan.npy", np.full((50, 3), np.nan))
    refuse(r"nan\.npy: all 50 points are NaN", tmp_path / "nan.npy")
    mixed = sphere_points(50)
    mixed[:30] = np.inf
    np.save(tmp_path / "mixed.npy", mixed)
    refuse("30 of 50 points are NaN or infinite", tmp_path / "mixed.npy")
    np.save(tmp_path / "few.npy", sphere_points(3))
    refuse("3 points; a fit needs 10", tmp_path / "few.npy")
    np.save(tmp_path / "two.npy", np.ones((50, 2)))
    refuse(r"shape \[50, 2\]", tmp_path / "two.npy")
    (tmp_path / "words.xyz").write_text("here are words\n")
    refuse("cannot be read as a point cloud", tmp_path / "words.xyz")


def test_empty_shapes(tmp_path: Path) -> None:
    (tmp_path / "empty.off").write_text("OFF\n0 0 0\n")
    refuse("empty.off: .*(empty mesh|cannot be read as a mesh)", tmp_path / "empty.off")
    np.save(tmp_path / "empty.npy", np.zeros((8, 8, 8), dtype=bool))
    refuse("every cell is empty", tmp_path / "empty.npy")
    np.save(tmp_path / "unknown.npy", np.full((8, 8, 8), np.nan))
    refuse("every cell is unknown", tmp_path / "unknown.npy")
    partly = np.zeros((8, 8, 8))
    partly[4:] = np.nan
    np.save(tmp_path / "partly.npy", partly)
    refuse("no known cell is inside", tmp_path / "partly.npy")


def test_unknown_files(tmp_path: Path) -> None:
    (tmp_path / "thing.docx").write_text("x")
    refuse(r"unknown suffix '\.docx'; a fit reads", tmp_path / "thing.docx")
    refuse("no such file or folder", tmp_path / "nothing.ply")


def test_a_picture_of_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    with pytest.raises(MNIFError, match="nothing but its background"):
        read_photo(tmp_path / "white.png")
    pixels = render(make_shapes(0), POSES[0], 16)
    Image.fromarray(pixels).save(tmp_path / "object.png")
    photo = read_photo(tmp_path / "object.png")
    assert photo.silhouette is not None
    assert 0.05 < photo.silhouette.mean() < 0.6


def test_regions_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(MNIFError, match="exclude one another"):
        Region("front", (0, 0, 0, 1, 1, 1))
    with pytest.raises(MNIFError, match="`half` upside: unknown"):
        Region("upside")
    with pytest.raises(MNIFError, match="`box`"):
        Region(box=(0, 0, 0, -1, 1, 1))
    with pytest.raises(MNIFError, match="a picture has top"):
        Region("front").pixels((4, 4))
    np.save(tmp_path / "mask.npy", np.ones((4, 4, 4), dtype=bool))
    with pytest.raises(MNIFError, match=r"mask of \[4, 4, 4\], expected \[8, 8, 8\]"):
        read_mask(tmp_path / "mask.npy", (8, 8, 8))
    Image.fromarray(np.uint8([[0, 255], [255, 0]])).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", (2, 2)), [[False, True], [True, False]])


def test_placements_that_make_no_sense() -> None:
    with pytest.raises(MNIFError, match="`scale` 0"):
        Placement(scale=0.0)
    with pytest.raises(MNIFError, match="`centre`"):
        Placement(centre=(float("nan"), 0, 0))
    with pytest.raises(MNIFError, match="is no observation"):
        as_observation(np.zeros((3, 4, 5, 6)))
