"""Solids from meshes: exact where they are closed, sensible where they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gltf import Gltf, png

from mnif_nerf.data.generate.meshes import voxelise_mesh_folder
from mnif_nerf.data.generate.procedural import car_occupancy, car_surface
from mnif_nerf.data.geometry.voxel_meshes import voxelise_file, voxelise_solid
from mnif_nerf.data.geometry.voxelise import occupancy_of_mesh
from mnif_nerf.data.stores.grid_layout import grid_splits
from mnif_nerf.data.stores.grid_store import open_grid_store
from mnif_nerf.errors import MNIFError


def box(
    centre: tuple[float, ...] = (0.013, 0.021, -0.017), size: tuple[float, ...] = (0.6, 0.4, 0.3)
) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(size)
    mesh.apply_translation(centre)
    return mesh


def solid(*meshes: trimesh.Trimesh, resolution: int = 32, faces: np.ndarray | None = None) -> np.ndarray:
    mesh = trimesh.util.concatenate(meshes)
    chosen = np.asarray(mesh.faces) if faces is None else np.asarray(mesh.faces)[faces]
    return voxelise_solid(np.asarray(mesh.vertices), chosen, resolution)


def centres(resolution: int = 32) -> np.ndarray:
    axis = (np.arange(resolution) + 0.5) / resolution - 0.5
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


IN_BOX = (np.abs(centres() - (0.013, 0.021, -0.017)) < (0.3, 0.2, 0.15)).all(-1)


def test_closed_meshes_are_exact() -> None:
    np.testing.assert_array_equal(solid(box()), IN_BOX)
    ball = trimesh.creation.icosphere(4, 0.37)
    expected = occupancy_of_mesh(ball.vertices, ball.faces, 32)
    np.testing.assert_array_equal(solid(ball), expected)
    assert expected.mean() == pytest.approx(ball.volume, rel=0.01)


def test_inside_out_unwelded_and_overlapping_pieces() -> None:
    turned, torn = box(), box()
    turned.invert()
    torn.unmerge_vertices()
    second = box((0.2, 0.1, 0.1), (0.3, 0.3, 0.3))
    second.invert()
    np.testing.assert_array_equal(solid(turned), IN_BOX)
    np.testing.assert_array_equal(solid(torn), IN_BOX)
    np.testing.assert_array_equal(solid(box(), second), IN_BOX | solid(second))
    hollow = box(size=(0.4, 0.25, 0.2))
    hollow.invert()
    np.testing.assert_array_equal(solid(box(), hollow), IN_BOX, err_msg="cavities are filled")


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_procedural_cars_agree_with_their_own_filling(seed: int) -> None:
    """That one leaves out plates that lie between cell centres; nothing else is added, and nothing lost."""
    surface = car_surface(seed)
    found, own = voxelise_solid(surface.vertices, surface.faces, 32), car_occupancy(seed, 32)
    assert not (own & ~found).any()
    assert iou(found, own) > 0.9


@pytest.mark.parametrize("side", range(6))
def test_a_box_without_one_side(side: int) -> None:
    """As a car without a floor; the opening does not leak, whichever way it faces."""
    mesh = box()
    direction = np.eye(3)[side // 2] * (1 if side % 2 else -1)
    found = solid(mesh, faces=np.flatnonzero(mesh.face_normals @ direction < 0.5))
    assert iou(found, IN_BOX) > 0.98


def test_faces_turned_at_random_and_missing() -> None:
    ball = trimesh.creation.icosphere(4, 0.37)
    expected = solid(ball)
    rng = np.random.default_rng(0)
    flipped = ball.faces.copy()
    some = rng.random(len(flipped)) < 0.4
    flipped[some] = flipped[some][:, ::-1]
    kept = np.delete(flipped, rng.permutation(len(flipped))[:20], axis=0)
    assert iou(voxelise_solid(ball.vertices, kept, 32), expected) > 0.97
    kept = np.delete(ball.faces, rng.permutation(len(flipped))[:60], axis=0)
    assert iou(voxelise_solid(ball.vertices, kept, 32), expected) > 0.97


def test_thin_sheets_and_plates_stay() -> None:
    sheet = np.array([[-0.3, -0.3, 0.01], [0.3, -0.3, 0.01], [0.3, 0.3, 0.01], [-0.3, 0.3, 0.01]])
    found = voxelise_solid(sheet, np.array([[0, 1, 2], [0, 2, 3]]), 32)
    assert np.unique(np.argwhere(found)[:, 2]).tolist() == [16]
    assert 19**2 <= found.sum() <= 21**2
    plate = solid(box((0.0, 0.0, 0.0), (0.6, 0.6, 0.01)))  # no cell has its centre in it
    assert 19**2 <= plate.any(axis=2).sum() <= 21**2
    wing = solid(box(), box((0.0, 0.0, 0.3), (0.5, 0.3, 0.004)))
    assert wing[:, :, 24:28].any()
    np.testing.assert_array_equal(wing[:, :, :20], IN_BOX[:, :, :20])


def test_a_room_behind_thin_walls_is_filled_and_an_open_one_is_not() -> None:
    walls = [box(tuple(0.3 * s * np.eye(3)[axis]), tuple(np.where(np.eye(3)[axis], 0.01, 0.62)))
             for axis in range(3) for s in (-1, 1)]  # fmt: skip
    assert solid(*walls)[16, 16, 16]
    assert not solid(*walls[:-1])[16, 16, 16], "without its roof it is open"


def test_outside_the_grid_is_cut_off_and_nothing_is_nothing() -> None:
    np.testing.assert_array_equal(solid(box(size=(3, 3, 0.3)))[5, 5], IN_BOX[16, 16])
    assert not solid(box((2.0, 0, 0))).any()
    assert not voxelise_solid(np.zeros((3, 3)), np.array([[0, 1, 2]]), 16).any()
    with pytest.raises(MNIFError, match="resolution 0: must be 1 or more"):
        solid(box(), resolution=0)


def test_a_file_is_centred_scaled_and_turned_upright(tmp_path: Path) -> None:
    box((5, 6, 7), (1.0, 2.0, 4.0)).export(tmp_path / "a.glb")  # x left, y up, z forward
    span = np.ptp(np.argwhere(voxelise_file(tmp_path / "a.glb", 64)), axis=0) + 1
    np.testing.assert_allclose(span / 64, np.array([4, 1, 2]) / np.sqrt(21), atol=1 / 64)
    assert voxelise_file(tmp_path / "a.glb", 16, up="z").shape == (16, 16, 16)


def test_folder_becomes_voxels_and_skips_are_named(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for index in range(5):
        box((0, 0, 0), (2.0, 1.0, 0.3 + 0.1 * index)).export(source / f"box{index}.ply")
    (source / "line.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n1 0 0\n3 0 1 2\n")
    (source / "broken.glb").write_bytes(b"no")
    options: dict[str, Any] = {"resolution": 16, "progress": False, "workers": 1}
    summary = voxelise_mesh_folder(source, out, **options)
    assert [path.name for path, _ in summary.skipped] == ["broken.glb", "line.off"]
    assert "line.off: no face has an area" in summary.skipped[1][1]
    assert sum(map(len, summary.splits.values())) == 5
    assert grid_splits(out, "voxel") == {split: len(names) for split, names in summary.splits.items()}
    store = open_grid_store(out, "train", "voxel", progress=False)
    first = next(name for name in store.names if name.startswith("box"))
    size = np.array([2.0, 1.0, 0.3 + 0.1 * int(first[-1])])
    expected = np.prod(size) / np.linalg.norm(size) ** 3
    assert store.values(store.names.index(first)).mean() == pytest.approx(expected, rel=0.4)
    manifest = json.loads((out / "dataset.json").read_text())
    assert (manifest["complete"], manifest["settings"]["voxels"]) == (True, 16)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert voxelise_mesh_folder(source, out, **options).splits == summary.splits
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    with pytest.raises(MNIFError, match="made with voxels 16, asked for 32"):
        voxelise_mesh_folder(source, out, **{**options, "resolution": 32})
    with pytest.raises(MNIFError, match="2000 voxels along an edge: must be 4 to 512"):
        voxelise_mesh_folder(source, out, resolution=2000)


def test_faces_that_are_there_twice_count_once() -> None:
    """SketchUp and old ShapeNet write both sides of a wall; a body without a floor is filled all the same."""
    body = trimesh.creation.box((0.8, 0.4, 0.3))
    vertices, faces = np.array(body.vertices), np.array(body.faces)
    opened = faces[~np.isclose(vertices[faces][..., 2], -0.15).all(axis=1)]
    assert len(opened) == 10
    for single in (faces, opened):
        both = np.concatenate([single, single[:, ::-1]])
        np.testing.assert_array_equal(voxelise_solid(vertices, both, 32), voxelise_solid(vertices, single, 32))
        apart = np.concatenate([single, single[:, ::-1] + len(vertices)])  # of vertices of their own
        filled = voxelise_solid(np.concatenate([vertices, vertices]), apart, 32)
        np.testing.assert_array_equal(filled, voxelise_solid(vertices, single, 32))


def test_voxels_leave_out_what_a_picture_cuts_out(tmp_path: Path) -> None:
    """A card of which a quarter is there, and a solid box beside it."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:32, :32] = (20, 200, 20, 255)
    card = np.float32([[-1, 0, 0], [1, 0, 0], [1, 2, 0], [-1, 0, 0], [1, 2, 0], [-1, 2, 0]])
    uv = np.float32([[0, 1], [1, 1], [1, 0], [0, 1], [1, 0], [0, 0]])  # v downwards, as in glTF
    areas = {}
    for mode in ("OPAQUE", "MASK", "BLEND"):
        file = Gltf()
        material = {"pbrMetallicRoughness": {"baseColorTexture": file.texture(png(pixels))}, "alphaMode": mode}
        file.node(mesh=file.box(material, card, TEXCOORD_0=file.array(uv)))
        cells = voxelise_file(file.write(tmp_path / "a.glb"), 32)
        areas[mode] = cells.any(axis=0).sum()  # seen along the file's z
        if mode != "OPAQUE":
            _, across, up = np.nonzero(cells)
            assert up.min() >= 15  # the upper left
            assert across.min() >= 15 or across.max() <= 16
    assert areas["MASK"] == areas["BLEND"]
    assert 0.2 < areas["MASK"] / areas["OPAQUE"] < 0.32
