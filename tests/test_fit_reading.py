"""Observations that are easily misread: colours, far coordinates, turned photos, stray vertices, unread pictures."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from test_fit_observations import POSES, refuse, sphere_points, write_transforms
from tiny_srn import make_shapes, write_tiny_scene

from mnif_nerf.data.observations import files as observation_files
from mnif_nerf.data.observations.files import read_mask, read_observation, read_photo, read_views
from mnif_nerf.data.observations.observations import MeshShape, Placement, Scan
from mnif_nerf.data.readers.cloud_files import read_cloud
from mnif_nerf.errors import MNIFError


def test_colours_are_not_taken_for_normals(tmp_path: Path) -> None:
    points = sphere_points(60)
    colours = np.random.default_rng(1).uniform(0, 255, (60, 3))
    for name, values in {"bytes": colours, "shares": colours / 255}.items():
        np.save(tmp_path / f"{name}.npy", np.hstack([points, values]))
        np.savetxt(tmp_path / f"{name}.xyz", np.hstack([points, values]))
        for path in (tmp_path / f"{name}.npy", tmp_path / f"{name}.xyz"):
            read = read_observation(path, "cloud")
            assert isinstance(read, Scan)
            assert read.cloud.normals is None, path
            assert "no unit normals" in read.cloud.notes[0]
    # Where the file calls them normals, any length will do.
    np.savez(tmp_path / "named.npz", points=points, normals=7 * points)
    named = read_cloud(tmp_path / "named.npz")
    assert named.normals is not None
    np.testing.assert_allclose(named.normals, points / 0.3, atol=1e-6)


def test_scanner_and_cloud_are_placed_together(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "far.xyz", 10 * sphere_points() + [50, 0, 0])
    plain = read_observation(
        tmp_path / "far.xyz", "cloud", Placement(centre=(50, 0, 0), scale=0.1), scanner=(60.0, 5.0, 0.0)
    )
    assert isinstance(plain, Scan)
    np.testing.assert_allclose(plain.scanner, [1.0, 0.5, 0.0], atol=1e-6)
    whole = read_observation(tmp_path / "far.xyz", "cloud", Placement(normalise="yes"), scanner=(60.0, 5.0, 0.0))
    assert isinstance(whole, Scan)
    diagonal = 6 * np.sqrt(3)  # a ball of radius 3
    np.testing.assert_allclose(whole.scanner, [10 / diagonal, 5 / diagonal, 0.0], atol=2e-2)
    points = sphere_points()
    trimesh.PointCloud(points).export(tmp_path / "cloud.ply")
    (tmp_path / "cloud.obj").write_text("".join(f"v {x} {y} {z}\n" for x, y, z in points))
    for suffix in ("ply", "obj"):  # an axis alone is completed by what is usual for the suffix
        turned = read_observation(
            tmp_path / f"cloud.{suffix}", "cloud", Placement(forward="-x"), scanner=tuple(2 * points[0])
        )
        assert isinstance(turned, Scan)
        np.testing.assert_allclose(turned.scanner, 2 * turned.cloud.points[0], atol=1e-5, err_msg=suffix)
    with pytest.raises(MNIFError, match=r"`scanner` nan 0\.0 0\.0: must be three finite numbers"):
        read_observation(tmp_path / "cloud.ply", "cloud", scanner=(float("nan"), 0.0, 0.0))


def test_georeferenced_clouds_keep_their_precision(tmp_path: Path) -> None:
    place, points = np.array([4_500_000.0, 5_700_000.0, 300.0]), sphere_points(200)
    np.save(tmp_path / "geo.npy", points + place)
    read = read_observation(tmp_path / "geo.npy", "cloud", Placement(centre=tuple(place)))
    assert isinstance(read, Scan)
    assert read.cloud.points.dtype == np.float32
    np.testing.assert_allclose(read.cloud.points, points, atol=1e-6)


def test_photos_are_turned_as_exif_says(tmp_path: Path) -> None:
    pixels = np.full((12, 20, 3), 255, dtype=np.uint8)
    pixels[4:8, 2:9] = (200, 20, 20)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    turned, exif = Image.fromarray(np.rot90(pixels)), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    plain, upright = read_photo(tmp_path / "plain.png"), read_photo(tmp_path / "turned.png")
    np.testing.assert_array_equal(upright.image, plain.image)
    np.testing.assert_array_equal(upright.silhouette, plain.silhouette)


def test_masks_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MNIFError, match=r"no\.npy: cannot be read as a mask \(no such file\)"):
        read_mask(tmp_path / "no.npy", (8, 8))
    (tmp_path / "empty.npy").touch()
    with pytest.raises(MNIFError, match=r"empty\.npy: cannot be read as a mask"):
        read_mask(tmp_path / "empty.npy", (8, 8))
    np.savez(tmp_path / "zip.npz", a=np.ones((8, 8)))
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    with pytest.raises(MNIFError, match=r"zip\.npy: cannot be read as a mask"):
        read_mask(tmp_path / "zip.npy", (8, 8))


def test_vertices_without_faces_count_for_nothing(tmp_path: Path) -> None:
    box = trimesh.creation.box(extents=(0.4, 0.2, 0.1))
    vertices = [*box.vertices.tolist(), (90.0, 0.0, 0.0)]
    header = f"ply\nformat ascii 1.0\nelement vertex {len(vertices)}\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz")
    header += f"element face {len(box.faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    rows = [*vertices, *([3, *face] for face in box.faces.tolist())]
    (tmp_path / "box.ply").write_text(header + "".join(" ".join(map(str, row)) + "\n" for row in rows))
    for normalise, diagonal in (("no", np.linalg.norm([0.4, 0.2, 0.1])), ("yes", 1.0)):
        read = read_observation(tmp_path / "box.ply", "mesh", Placement(normalise=normalise))  # type: ignore[arg-type]
        assert isinstance(read, MeshShape)
        assert np.linalg.norm(np.ptp(read.surface.vertices, axis=0)) == pytest.approx(diagonal, abs=1e-5)
        np.testing.assert_allclose(read.surface.vertices.mean(axis=0), 0, atol=1e-6)


def test_file_paths_that_name_no_picture_we_read(tmp_path: Path) -> None:
    write_tiny_scene(tmp_path / "scene", make_shapes(0), POSES, 16)
    folder = write_transforms(tmp_path / "scene", tmp_path / "ns")
    good = json.loads((folder / "transforms.json").read_text())
    (folder / "there.pcx").touch()
    faults = {
        "file_path '/' names no picture": "/",
        r"x\.pcx: pictures of kind '\.pcx' are not read; convert them": "x.pcx",
        r"there\.pcx: pictures of kind '\.pcx' are not read": "there.pcx",
        r"1 of its 1 pictures are missing \(.*r_9\.png\)": "r_9",
    }
    for message, named in faults.items():
        content = {**good, "frames": [{**good["frames"][0], "file_path": named}]}
        (folder / "transforms.json").write_text(json.dumps(content))
        refuse(message, folder)


def test_pictures_are_reduced_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one picture at its full size is held while the next is read."""
    write_tiny_scene(tmp_path / "scene", make_shapes(0), POSES, 160)
    real, alive = observation_files.composite_white, []
    held: list[weakref.ref[np.ndarray]] = []

    def tracked(pixels: np.ndarray) -> np.ndarray:
        alive.append(sum(reference() is not None for reference in held))
        made = real(pixels).copy()
        held.append(weakref.ref(made))
        return made

    monkeypatch.setattr(observation_files, "composite_white", tracked)
    views = read_views(tmp_path / "scene")
    assert views.images.shape == (3, 128, 128, 3)
    assert max(alive) == 0


def test_clouds_keep_their_colours(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    points, colors = generator.uniform(-0.4, 0.4, (30, 3)), generator.integers(0, 256, (30, 3), dtype=np.uint8)
    points[3] = np.nan
    kept = np.arange(30) != 3
    np.savez(tmp_path / "cloud.npz", points=points, colors=colors)
    np.testing.assert_allclose(read_cloud(tmp_path / "cloud.npz").colors, colors[kept] / 255, atol=1e-6)
    np.savez(tmp_path / "unit.npz", points=points, colors=colors / 255)
    np.testing.assert_allclose(read_cloud(tmp_path / "unit.npz").colors, colors[kept] / 255, atol=1e-6)
    trimesh.PointCloud(points[kept], colors[kept]).export(tmp_path / "cloud.ply")
    np.testing.assert_allclose(read_cloud(tmp_path / "cloud.ply").colors, colors[kept] / 255, atol=1e-6)
    trimesh.PointCloud(points[kept]).export(tmp_path / "plain.ply")
    assert read_cloud(tmp_path / "plain.ply").colors is None
    np.savez(tmp_path / "wrong.npz", points=points, colors=colors[:5])
    with pytest.raises(MNIFError, match="expected one per point"):
        read_cloud(tmp_path / "wrong.npz")
