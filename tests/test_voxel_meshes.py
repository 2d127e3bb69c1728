"""Solids from meshes: exact where they are closed, sensible where they are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from mnif_nerf.data.car_assembly import build_car
from mnif_nerf.data.car_design import sample_car
from mnif_nerf.data.procedural import car_occupancy, car_surface
from mnif_nerf.data.voxel_meshes import voxelise_file, voxelise_solid
from mnif_nerf.data.voxelise import occupancy_of_mesh
from mnif_nerf.errors import MNIFError


def box(centre: tuple[float, ...] = (0.013, 0.021, -0.017), size: tuple[float, ...] = (0.6, 0.4, 0.3)) -> trimesh.Trimesh:
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
    assert 0.99 < expected.mean() / (4 / 3 * np.pi * 0.37**3) < 1.01


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
    surface = car_surface(seed)
    assert len(build_car(sample_car(seed))) > 3
    assert iou(voxelise_solid(surface.vertices, surface.faces, 32), car_occupancy(seed, 32)) > 0.97


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
