"""Procedural cars: closed, deterministic, varied, and written in the layout that the reader expects."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mnif_nerf.data.generate.car_assembly import build_car
from mnif_nerf.data.generate.car_design import BODY_TYPES, BRIGHTEST, body_type, sample_car
from mnif_nerf.data.generate.car_parts import rounded_box, signed_volume
from mnif_nerf.data.generate.procedural import (
    car_occupancy,
    car_surface,
    make_procedural_cars,
    make_procedural_voxels,
    normalised_parts,
)
from mnif_nerf.data.generate.scene_jobs import heldout_poses, run_jobs, training_poses
from mnif_nerf.data.generate.settings import CarCounts, ViewCounts
from mnif_nerf.data.generate.writer import read_occupancy, write_occupancy, write_scene
from mnif_nerf.data.geometry.voxelise import occupancy_of_mesh
from mnif_nerf.data.readers.srn import list_splits, read_split
from mnif_nerf.data.stores.grid_layout import grid_splits
from mnif_nerf.errors import MNIFError
from mnif_nerf.rendering.cameras import Intrinsics

TINY = {
    "num_train": 2,
    "num_val": 1,
    "num_test": 1,
    "train_views": 3,
    "heldout_views": 2,
    "test_views": 2,
    "resolution": 12,
    "progress": False,
}


def _taken(options: dict[str, Any], settings: type) -> Any:
    """Settings of that class, made of the options that it knows, which are taken out."""
    names = [entry.name for entry in dataclasses.fields(settings) if entry.name in options]
    return settings(**{name: options.pop(name) for name in names})


def make_cars(output: Path, **options: Any) -> Path:
    """`make_procedural_cars` with its settings as one list."""
    counts, views = _taken(options, CarCounts), _taken(options, ViewCounts)
    return make_procedural_cars(output, counts, views, **options)


def make_voxels(output: Path, **options: Any) -> Path:
    """`make_procedural_voxels` with its settings as one list."""
    return make_procedural_voxels(output, _taken(options, CarCounts), **options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_cars(tmp_path_factory.mktemp("cars") / "data", workers=1, **TINY)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("body", BODY_TYPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_part_is_closed_and_turned_outwards(body, seed):
    for part in build_car(sample_car(seed, body)):
        edges = np.concatenate([part.faces[:, [0, 1]], part.faces[:, [1, 2]], part.faces[:, [2, 0]]])
        there = {tuple(edge) for edge in edges.tolist()}
        assert len(there) == len(edges), "an edge is used twice in the same direction"
        assert all((b, a) in there for a, b in there), "an edge has no partner"
        assert signed_volume(part.vertices, part.faces) > 0
        assert len(part.colors) == len(part.faces)
        assert 0 <= part.colors.min() <= part.colors.max() <= 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_cars_are_centred_fit_the_box_and_are_not_white(seed):
    car = sample_car(seed)
    surface = car_surface(car)
    low, high = surface.vertices.min(0), surface.vertices.max(0)
    np.testing.assert_allclose(low + high, 0, atol=1e-9)
    assert np.linalg.norm(high - low) == pytest.approx(1.0)
    size = high - low
    assert size[0] > size[1] > 0
    assert size[0] > size[2] > 0
    assert max(*car.paint, *car.second, *car.roof_paint) <= BRIGHTEST


def test_same_seed_same_car_and_other_seeds_other_cars():
    first, again = car_surface([3, 0, 5]), car_surface([3, 0, 5])
    np.testing.assert_array_equal(first.vertices, again.vertices)
    np.testing.assert_array_equal(first.corner_colors, again.corner_colors)
    cars = [sample_car([seed, split, index], "suv") for seed in (0, 1) for split in (0, 1, 2) for index in range(20)]
    assert len(set(cars)) == len(cars)


def test_body_types_are_balanced():
    for split in ("train", "val", "test"):
        types = [body_type(4, split, index) for index in range(7 * 6)]
        assert all(types.count(body) == 6 for body in BODY_TYPES)
        assert all(set(types[k : k + 7]) == set(BODY_TYPES) for k in range(0, 42, 7))
    assert [body_type(0, "train", i) for i in range(14)] != [body_type(1, "train", i) for i in range(14)]


def test_unknown_body_and_negative_seed_are_told():
    with pytest.raises(MNIFError, match=r"tractor.*unknown; choose one of sedan"):
        sample_car(0, "tractor")
    with pytest.raises(MNIFError, match="seed -1: negative"):
        sample_car(-1)


def winding_number(vertices: np.ndarray, faces: np.ndarray, point: np.ndarray) -> float:
    """How often a closed mesh surrounds a point: the sum of its triangles' solid angles over 4 pi."""
    a, b, c = (vertices[faces[:, k]] - point for k in range(3))
    la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
    top = np.einsum("ij,ij->i", a, np.cross(b, c))
    bottom = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return float(np.arctan2(top, bottom).sum() / (2 * np.pi))


@pytest.mark.parametrize("body", ["pickup", "sports", "bus"])
def test_occupancy_equals_winding_numbers(body):
    car, size = sample_car(11, body), 24
    cells = car_occupancy(car, size)
    parts = normalised_parts(car)
    rng = np.random.default_rng(0)
    near = np.argwhere(cells)
    picks = np.concatenate([near[rng.integers(len(near), size=60)], rng.integers(0, size, (60, 3))])
    for cell in picks:
        point = -0.5 + (cell + 0.5) / size
        inside = any(winding_number(part.vertices, part.faces, point) > 0.5 for part in parts)
        assert cells[tuple(cell)] == inside, f"cell {cell}"


def test_occupancy_has_the_car_upright_and_in_axis_order():
    cells = car_occupancy(sample_car(2, "sedan"), 48)
    filled = np.argwhere(cells)
    spans = np.ptp(filled, axis=0)
    assert spans[0] > spans[1] > spans[2]
    # A sedan's cabin sits in the middle and behind: little stands above the bonnet.
    upper = filled[filled[:, 2] > filled[:, 2].max() - 3]
    assert upper[:, 0].mean() < 24
    box = rounded_box((0.1, 0.0, -0.2), (0.4, 0.2, 0.1), (1, 1, 1), bevel=0.01)
    found = np.argwhere(occupancy_of_mesh(box.vertices, box.faces, 40))
    np.testing.assert_array_equal(found.min(0), [16, 16, 10])
    np.testing.assert_array_equal(found.max(0), [31, 23, 13])


def test_occupancy_file_round_trip(tmp_path):
    cells = np.random.default_rng(0).random((9, 9, 9)) > 0.6
    write_occupancy(tmp_path / "a.npz", cells)
    np.testing.assert_array_equal(read_occupancy(tmp_path / "a.npz"), cells)
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(MNIFError, match="not an occupancy file"):
        read_occupancy(tmp_path / "b.npz")


def test_layout_is_what_the_reader_reads(tiny):
    assert set(list_splits(tiny)) == {"train", "val", "test", "train_val"}
    train, heldout = read_split(tiny, "train"), read_split(tiny, "train_val")
    assert train.names == heldout.names
    assert all(name.split("-")[1] in BODY_TYPES for name in train.names)
    assert (train.num_views, heldout.num_views) == (6, 4)
    assert (train.height, train.width) == (12, 12)
    np.testing.assert_allclose(train.intrinsics, [[131.25 / 128 * 12, 6, 6]] * 6, rtol=1e-6)
    scene = tiny / "cars_train" / train.names[0]
    lines = (scene / "intrinsics.txt").read_text().splitlines()
    assert lines == [f"{131.25 / 128 * 12:.9g} 6 6 0.", "0. 0. 0.", "1.", "12 12"]
    image = np.asarray(Image.open(scene / "rgb" / "000000.png"))
    assert image.shape == (12, 12, 4)
    assert 0.03 < (image[..., 3] > 0).mean() < 0.7
    for split in ("train", "val", "test"):
        names = read_split(tiny, split).names
        files = sorted(path.stem for path in (tiny / "occupancy" / split).iterdir())
        assert files == sorted(names)
        assert read_occupancy(tiny / "occupancy" / split / f"{names[0]}.npz").shape == (64, 64, 64)
    assert json.loads((tiny / "dataset.json").read_text())["complete"] is True


def test_splits_show_different_cars(tiny):
    pictures = [
        path.read_bytes()
        for split in ("val", "test")
        for path in sorted((tiny / f"cars_{split}").glob("*/rgb/000000.png"))
    ]
    pictures += [path.read_bytes() for path in sorted((tiny / "cars_train_val").glob("*/rgb/000000.png"))]
    assert len(set(pictures)) == len(pictures)


def test_same_seed_same_bytes_with_any_number_of_workers(tiny, tmp_path):
    again = make_cars(tmp_path / "again", workers=2, **TINY)
    assert contents(again) == contents(tiny)
    other = make_cars(tmp_path / "other", workers=1, seed=1, **TINY)
    assert not set(contents(other).values()) & {v for k, v in contents(tiny).items() if k.endswith(".png")}


def test_an_interrupted_run_is_completed_and_nothing_else_touched(tiny, tmp_path):
    whole = contents(tiny)
    root = make_cars(tmp_path / "data", workers=1, **TINY)
    scenes = sorted((root / "cars_train").iterdir())
    kept = (scenes[1] / "rgb" / "000000.png").stat().st_mtime_ns
    for path in sorted(scenes[0].rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    scenes[0].rmdir()
    next((root / "occupancy" / "test").iterdir()).unlink()
    # What a killed run leaves: a hidden temporary folder, which no reader takes for a scene.
    (root / "cars_train" / f".{scenes[0].name}.abc.tmp" / "rgb").mkdir(parents=True)
    make_cars(root, workers=1, **TINY)
    assert contents(root) == whole
    assert (scenes[1] / "rgb" / "000000.png").stat().st_mtime_ns == kept
    assert read_split(root, "train").num_scenes == 2


def test_voxels_alone_are_those_beside_the_pictures(tiny, tmp_path):
    counts = {name: TINY[name] for name in ("num_train", "num_val", "num_test", "progress")}
    root = make_voxels(tmp_path / "a", workers=1, **counts)
    assert {name: data for name, data in contents(root).items() if name.endswith(".npz")} == {
        name.removeprefix("occupancy/"): data for name, data in contents(tiny).items() if name.startswith("occupancy/")
    }
    assert contents(make_voxels(tmp_path / "b", workers=2, **counts)) == contents(root)
    assert grid_splits(root, "voxel") == grid_splits(tiny, "voxel") == {"train": 2, "val": 1, "test": 1}
    removed = next((root / "train").iterdir())
    kept = {path: path.stat().st_mtime_ns for path in root.glob("*/*.npz") if path != removed}
    removed.unlink()
    make_voxels(root, workers=1, **counts)
    assert removed.exists()
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    with pytest.raises(MNIFError, match="made with voxels 64, asked for 32"):
        make_voxels(root, resolution=32, **counts)
    with pytest.raises(MNIFError, match="written by another command"):
        make_voxels(tiny, **counts)
    with pytest.raises(MNIFError, match="3 voxels along an edge: must be 4 to 512"):
        make_voxels(tmp_path / "c", resolution=3, **counts)
    with pytest.raises(MNIFError, match="`num_train` 0: must be"):
        make_voxels(tmp_path / "c", **{**counts, "num_train": 0})


def test_other_settings_and_foreign_folders_are_refused(tiny, tmp_path):
    with pytest.raises(MNIFError, match=r"dataset.json: made with resolution 12, asked for 16; choose another"):
        make_cars(tiny, **{**TINY, "resolution": 16})
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(MNIFError, match=r"not empty and without dataset.json"):
        make_cars(tmp_path, **TINY)
    with pytest.raises(MNIFError, match="is a file, not a folder"):
        make_cars(tmp_path / "mine.txt", **TINY)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_train", 0), ("train_views", 0), ("test_views", 0), ("resolution", 0), ("num_val", -1),
     ("seed", -1), ("heldout_views", -1), ("resolution", 10**6), ("workers", 0)],
)  # fmt: skip
def test_counts_that_make_no_sense(name, value, tmp_path):
    with pytest.raises(MNIFError, match=f"`{name}` {value}: must be"):
        make_cars(tmp_path / "out", **{**TINY, name: value})


def test_splits_may_be_left_out(tmp_path):
    sizes = {**TINY, "num_train": 1, "num_val": 0, "num_test": 0, "heldout_views": 0}
    root = make_cars(tmp_path / "out", workers=1, occupancy=False, **sizes)
    assert set(list_splits(root)) == {"train"}
    assert not (root / "occupancy").exists()


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_cameras_are_rotations_that_look_at_the_car(count, seed):
    for poses in (training_poses(count, np.random.default_rng(seed)), heldout_poses(count)):
        rotation, position = poses[:, :3, :3], poses[:, :3, 3]
        np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (count, 1, 1)), atol=1e-5)
        np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(position, axis=1), 1.3, rtol=1e-5)
        np.testing.assert_allclose(rotation[:, :, 2] * 1.3, -position, atol=1e-5)


def test_cameras_cover_the_sphere():
    positions = np.concatenate([training_poses(16, np.random.default_rng(s))[:, :3, 3] for s in range(8)])
    assert 0.15 < (positions[:, 2] < 0).mean() < 0.35
    probes = np.random.default_rng(0).normal(size=(200, 3))
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    assert (probes @ positions.T / 1.3).max(1).min() > np.cos(np.radians(35))
    for count in (4, 8, 24):
        spiral = heldout_poses(count)[:, :3, 3]
        assert (spiral[:, 2] > 0).all()
        quarters = set(np.floor(np.degrees(np.arctan2(spiral[:, 1], spiral[:, 0])) // 90).astype(int))
        assert len(quarters) >= 3, "a few held-out views must not all show one side"


def test_write_scene_refuses_what_does_not_fit(tmp_path):
    images, poses, camera = (
        np.zeros((2, 8, 8, 3), np.uint8),
        np.tile(np.eye(4), (2, 1, 1)),
        Intrinsics.default(8),
    )
    with pytest.raises(MNIFError, match="2 images and 1 poses"):
        write_scene(tmp_path / "a", images, poses[:1], camera)
    with pytest.raises(MNIFError, match="expected uint8"):
        write_scene(tmp_path / "a", images.astype(float), poses, camera)
    write_scene(tmp_path / "a", images, poses, camera)
    with pytest.raises(MNIFError, match="exists already"):
        write_scene(tmp_path / "a", images, poses, camera)


def test_workers_are_not_forked_from_a_process_with_threads():
    way = "ForkServerProcess" if sys.platform == "linux" else "SpawnProcess"
    assert run_jobs(start_of_worker, [0, 1], 2, False, "x") == [way, way]


def start_of_worker(_: int) -> str:
    return type(multiprocessing.current_process()).__name__


def fail_on_three(number: int) -> int:
    if number == 3:
        raise MNIFError("three: not allowed; choose another.")
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_keep_their_order_and_their_errors(workers):
    assert run_jobs(fail_on_three, [5, 1, 2], workers, False, "x") == [25, 1, 4]
    assert run_jobs(fail_on_three, [], workers, False, "x") == []
    with pytest.raises(MNIFError, match="three: not allowed"):
        run_jobs(fail_on_three, list(range(6)), workers, False, "x")
