"""Voxel files of every kind come back as they were, and bad ones are told in one sentence."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnif_nerf.data.generate.writer import read_occupancy, write_occupancy
from mnif_nerf.data.readers.voxel_files import read_voxels, require_shape, resample
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.voxels import binvox_bytes, write_voxels


def grid(size: int = 7, seed: int = 0, share: float = 0.4) -> np.ndarray:
    return np.random.default_rng(seed).random((size, size, size)) < share


@pytest.mark.parametrize("suffix", ["binvox", "npz"])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_what_is_exported_is_read_back(tmp_path: Path, suffix: str, size: int) -> None:
    cells = grid(size, size)
    np.testing.assert_array_equal(read_voxels(write_voxels(cells, tmp_path / f"a.{suffix}")), cells)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 9), share=st.sampled_from([0.0, 0.02, 0.5, 1.0]), seed=st.integers(0, 99))
def test_binvox_of_any_runs(tmp_path_factory: pytest.TempPathFactory, size: int, share: float, seed: int) -> None:
    path = tmp_path_factory.mktemp("b") / "a.binvox"
    cells = grid(size, seed, share)
    path.write_bytes(binvox_bytes(cells))
    np.testing.assert_array_equal(read_voxels(path), cells)


def test_binvox_order_is_that_of_its_specification(tmp_path: Path) -> None:
    """Voxel (x, y, z) is number x * G * G + z * G + y; here number 5 of 8: x = 1, z = 0, y = 1."""
    path = tmp_path / "a.binvox"
    path.write_bytes(b"#binvox 1\ndim 2 2 2\ntranslate 0 0 0\nscale 1\ndata\n" + bytes([0, 5, 1, 1, 0, 2]))
    assert np.argwhere(read_voxels(path)).tolist() == [[1, 1, 0]]


def test_arrays_of_many_kinds(tmp_path: Path) -> None:
    cells = grid()
    kinds = {
        "bool": cells,
        "bytes": cells.astype(np.uint8),
        "levels": cells.astype(np.uint8) * 255,
        "shares": np.where(cells, 0.51, 0.0),
        "signs": np.where(cells, 1, -1).astype(np.int8),
        "channel": cells[..., None],
        "batch": cells[None, :, :, :, None],
        "fortran": np.asfortranarray(cells),
    }
    for name, array in kinds.items():
        np.save(tmp_path / f"{name}.npy", array)
        np.savez(tmp_path / f"{name}.npz", whatever=array)
        for suffix in ("npy", "npz"):
            np.testing.assert_array_equal(read_voxels(tmp_path / f"{name}.{suffix}"), cells, err_msg=name)
    write_occupancy(tmp_path / "ours.npz", cells)
    np.testing.assert_array_equal(read_voxels(tmp_path / "ours.npz"), cells)


def spoilt_npz() -> bytes:
    """A compressed grid whose stream has turned bytes in it."""
    file = io.BytesIO()
    np.savez_compressed(file, a=np.random.default_rng(0).random((16, 16, 16)) > 0.5)
    content = bytearray(file.getvalue())
    for place in range(60, len(content) - 200, 7):
        content[place] ^= 0x5A
    return bytes(content)


def broken_files() -> dict[str, tuple[bytes, str]]:
    whole = binvox_bytes(grid(6))
    return {
        "cut.binvox": (whole[: len(whole) // 2], r"cannot be read as voxels \(truncated: \d+ of 216 cells\)"),
        "odd.binvox": (whole[:-1], "truncated"),
        "long.binvox": (whole + b"\x01\xff", "471 of 216 cells"),
        "head.binvox": (b"#binvox 1\ndim 6 6 6\n", "no binvox header"),
        "text.binvox": (b"hello", "no binvox header"),
        "headless.binvox": (b"\ndata\n\x01\x08", "no binvox header"),
        "dims.binvox": (whole.replace(b"dim 6 6 6", b"dim 6 6 x"), "cannot be read as voxels"),
        "nodims.binvox": (whole.replace(b"dim 6 6 6\n", b""), "dimensions missing"),
        "huge.binvox": (whole.replace(b"dim 6 6 6", b"dim 9999 9999 9999"), "dimensions 9999 9999 9999"),
        "empty.npy": (b"", "cannot be read as voxels"),
        "text.npz": (b"PK nothing", "cannot be read as voxels"),
        "spoilt.npz": (spoilt_npz(), "cannot be read as voxels"),
    }


@pytest.mark.parametrize("name", sorted(broken_files()))
def test_broken_files(tmp_path: Path, name: str) -> None:
    content, said = broken_files()[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MNIFError, match=said) as caught:
        read_voxels(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.zeros((4, 4))}, r"shape \[4, 4\] is no grid of voxels"),
        ({"a": np.zeros((2, 4, 4, 4))}, r"shape \[2, 4, 4, 4\] is no grid of voxels"),
        ({"a": np.full((4, 4, 4), np.nan)}, "a cell is NaN or infinite"),
        ({"a": np.full((4, 4, 4), "x")}, "elements of type <U1"),
        ({"a": np.zeros((4, 4, 4)), "b": np.zeros(3)}, "arrays a, b; expected a single one"),
        ({}, "arrays missing"),
        ({"packed": np.zeros(3, np.uint8), "resolution": np.int64(4)}, r"3 bytes of bits for a grid of 4\^3"),
        ({"packed": np.zeros(3, np.uint8), "resolution": np.int64(10**6)}, "3 bytes of bits"),
        ({"occupancy": np.zeros(3, np.uint8), "shape": np.array([4, 4, 4])}, "3 bytes of bits"),
        ({"occupancy": np.zeros(3, np.uint8), "shape": np.int64(4)}, "cannot be read as voxels"),
        ({"a": np.array([{}], dtype=object)}, "cannot be read as voxels"),
    ],
)
def test_arrays_that_are_no_grid(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(MNIFError, match=said) as caught:
        read_voxels(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(caught.value)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(MNIFError, match=r"a\.npz: no such file"):
        read_voxels(tmp_path / "a.npz")
    (tmp_path / "a.vox").write_bytes(b"x")
    with pytest.raises(MNIFError, match=r"unknown voxel format '\.vox'; use one of \.binvox, \.npy, \.npz"):
        read_voxels(tmp_path / "a.vox")
    np.savez(tmp_path / "b.npz", other=np.zeros(3))
    with pytest.raises(MNIFError, match="not an occupancy file"):
        read_occupancy(tmp_path / "b.npz")


def test_grids_without_a_shape() -> None:
    require_shape(grid(), "a")
    with pytest.raises(MNIFError, match="a: every cell is empty, so there is no shape in it; remove it"):
        require_shape(np.zeros((3, 3, 3), bool), "a")
    with pytest.raises(MNIFError, match="b: every cell is full"):
        require_shape(np.ones((3, 3, 3), bool), "b")


def test_coarser_grids_by_majority() -> None:
    cells = np.zeros((4, 4, 4), bool)
    cells[:2, :2, :2].flat[:4] = True  # half of a block counts as inside
    cells[2:, 2:, 2:].flat[:3] = True  # three of eight do not
    coarse = resample(cells, (2, 2, 2), "a")
    assert np.argwhere(coarse).tolist() == [[0, 0, 0]]
    assert resample(cells, (4, 4, 4), "a") is cells
    for resolution in (3, 8, 0):
        with pytest.raises(
            MNIFError, match=rf"a: a grid of 4\^3 cells cannot be brought to {resolution}\^3; ask for 4"
        ):
            resample(cells, (resolution,) * 3, "a")
