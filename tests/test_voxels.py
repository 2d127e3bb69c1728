"""Voxel files: round trips through our reader and through trimesh's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import Ball

from mnif_nerf.data.readers.voxel_files import read_voxels
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.voxels import binvox_bytes, field_to_occupancy, write_voxels


def _decode(content: bytes) -> np.ndarray:
    """The slow, obvious reading of a binvox file: bool [x, y, z]."""
    header, body = content.split(b"data\n", 1)
    size = [int(n) for n in header.split(b"dim ")[1].split(b"\n")[0].split()]
    flat: list[int] = []
    for value, count in zip(body[0::2], body[1::2]):
        flat.extend([value] * count)
    return np.array(flat, dtype=bool).reshape(size[0], size[2], size[1]).transpose(0, 2, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.floats(0, 1), st.integers(0, 1000))
def test_binvox_decodes_to_what_was_written(size: int, share: float, seed: int) -> None:
    occupancy = np.random.default_rng(seed).random((size, size, size)) < share
    assert (_decode(binvox_bytes(occupancy)) == occupancy).all()


@pytest.mark.parametrize("value", [False, True])
def test_long_runs_are_split(value: bool) -> None:
    occupancy = np.full((16, 16, 16), value)
    assert (_decode(binvox_bytes(occupancy)) == occupancy).all()


def test_trimesh_reads_binvox_in_our_axes(tmp_path) -> None:
    occupancy = field_to_occupancy(Ball(0.15, (0.2, 0.0, 0.1)), 24)
    read = trimesh.load(write_voxels(occupancy, tmp_path / "ball.binvox"))
    assert (read.matrix == occupancy).all()
    assert read.translation == pytest.approx([-0.5] * 3)


def test_npz_round_trip_with_bounds_and_axes(tmp_path) -> None:
    occupancy = np.random.default_rng(0).random((5, 5, 5)) < 0.5
    path = write_voxels(occupancy, tmp_path / "v.npz")
    assert (read_voxels(path) == occupancy).all()
    with np.load(path) as about:
        assert about["bounds"] == pytest.approx(np.array([[-0.5] * 3, [0.5] * 3]))
        assert "+x forward" in str(about["axes"])


def test_occupancy_is_where_density_passes_the_level() -> None:
    field = Ball(0.25)
    occupancy = field_to_occupancy(field, 20)
    axis = (np.arange(20) + 0.5) / 20 - 0.5
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    assert (occupancy == (radius < 0.25)).all()
    cells = torch.zeros(2, 2, 2, dtype=torch.bool)
    assert not field_to_occupancy(field, 20, cells=cells).any()


def test_bad_voxels_are_refused(tmp_path) -> None:
    with pytest.raises(MNIFError, match="no solid"):
        write_voxels(np.zeros((2, 3), dtype=bool), tmp_path / "v.npz")
    with pytest.raises(MNIFError, match="binvox, npz"):
        write_voxels(np.zeros((2, 2, 2), dtype=bool), tmp_path / "v.vox")


def test_boxes_are_filled_up_to_cubes_in_binvox_only(tmp_path: Path) -> None:
    cells = np.random.default_rng(0).random((6, 8, 5)) < 0.5
    path = write_voxels(cells, tmp_path / "v.npz")
    assert (read_voxels(path) == cells).all()
    with np.load(path) as about:
        np.testing.assert_allclose(about["bounds"], [[-0.375, -0.5, -0.3125], [0.375, 0.5, 0.3125]])
    path = write_voxels(cells, tmp_path / "v.binvox")
    cube = _decode(path.read_bytes())
    assert cube.shape == (8, 8, 8)
    assert (cube[1:7, :, 1:6] == cells).all()
    assert cube.sum() == cells.sum()
    # Cells keep their places: the cube is half a cell off centre along z, which lacks an odd number.
    assert b"translate -0.5 -0.5 -0.4375\n" in path.read_bytes()


def test_occupancy_of_a_box_is_that_of_its_own_cells() -> None:
    from mnif_nerf.rendering.grids import cell_centres

    field, shape = Ball(0.3), (6, 8, 5)
    expected = (cell_centres(shape).T * 0.5).norm(dim=1) < 0.3
    assert (field_to_occupancy(field, shape) == expected.reshape(shape).numpy()).all()
    half = torch.zeros(4, 4, 4, dtype=torch.bool)
    half[2:] = True
    cut = field_to_occupancy(field, shape, cells=half)
    assert not cut[:3].any()
    assert (cut[3:] == expected.reshape(shape).numpy()[3:]).all()
    assert (field_to_occupancy(field, (8, 8, 8)) == field_to_occupancy(field, 8)).all()
