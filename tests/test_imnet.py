"""IM-NET's HDF5 layout: splits by name, shapes by table or by points, and files that are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mnif_nerf.data.readers.imnet import Hdf5Reader
from mnif_nerf.data.readers.splits import GridSource
from mnif_nerf.data.stores.grid_layout import grid_splits
from mnif_nerf.data.stores.grid_pack import surface_cells
from mnif_nerf.data.stores.grid_store import open_grid_store
from mnif_nerf.errors import MNIFError

h5py = pytest.importorskip("h5py")


def shapes(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, size, size, size)) < 0.3


def write(path: Path, **tables: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, table in tables.items():
            file.create_dataset(name, data=table, compression="gzip")
    return path


def test_splits_names_and_cells(tmp_path: Path) -> None:
    train, test = shapes(3), shapes(2, seed=1)
    write(tmp_path / "all_vox256_img_train.hdf5", voxels=train[..., None].astype(np.uint8), pixels=np.zeros(3))
    write(tmp_path / "all_vox256_img_test.hdf5", voxels=test.astype(np.uint8))
    (tmp_path / "all_vox256_img_train.txt").write_text("02958343/a1\n02958343/b2\n02691156/c3\n")
    assert grid_splits(tmp_path, "voxel") == {"train": 3, "test": 2}
    store = open_grid_store(tmp_path, "train", "voxel", progress=False)
    assert store.names == ("02958343-a1", "02958343-b2", "02691156-c3")
    assert store.resolution == 8
    for index in range(3):
        np.testing.assert_array_equal(store.values(index), train[index])
    other = open_grid_store(tmp_path, "test", "voxel", progress=False)
    assert other.names == ("all_vox256_img_test-000000", "all_vox256_img_test-000001")
    np.testing.assert_array_equal(other.values(1), test[1])
    coarse = open_grid_store(tmp_path, "test", "voxel", resolution=4, progress=False)
    assert coarse.resolution == 4


def test_one_file_as_the_root_and_files_without_a_split(tmp_path: Path) -> None:
    path = write(tmp_path / "cars.h5", voxels=shapes(20))
    assert grid_splits(path, "voxel") == {"train": 16, "val": 2, "test": 2}
    stores = [open_grid_store(path, split, "voxel", progress=False) for split in ("train", "val", "test")]
    assert len({name for store in stores for name in store.names}) == 20
    assert (tmp_path / ".mnif" / "voxel-own" / "val").is_dir()
    write(tmp_path / "cars_train.h5", voxels=shapes(2))
    with pytest.raises(MNIFError, match=r"cars\.h5: names no split beside files that do"):
        grid_splits(tmp_path, "voxel")


def test_names_that_do_not_fit_are_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a_train.hdf5", voxels=shapes(2))
    path.with_suffix(".txt").write_text("one\n")
    assert open_grid_store(path, "train", "voxel", progress=False).names == ("a_train-000000", "a_train-000001")
    assert "1 names for 2 shapes" in capsys.readouterr().out


def test_shapes_from_points(tmp_path: Path) -> None:
    """A point p lies in cell p // 4; with all cells the grid comes back exactly, with those at the surface nearly."""
    axes = np.meshgrid(*[np.arange(64)] * 3, indexing="ij")
    ball = sum((axis - 31.5) ** 2 for axis in axes) < 18**2
    ball |= axes[0] < 3  # so that the axes can be told apart
    cells = np.stack([axis.reshape(-1) for axis in axes], axis=1)
    points = (4 * cells + 2).astype(np.uint8)
    values = ball.reshape(-1, 1).astype(np.uint8)
    near = np.isin(np.arange(len(points)), surface_cells(ball))
    some = np.flatnonzero(np.random.default_rng(0).random(len(points)) < np.where(near, 0.5, 0.05))
    write(tmp_path / "whole_train.hdf5", points_64=points[None], values_64=values[None])
    write(tmp_path / "part_train.hdf5", points_64=points[None, some], values_64=values[None, some])
    reader = Hdf5Reader()
    np.testing.assert_array_equal(reader.read(GridSource("a", tmp_path / "whole_train.hdf5", 0)), ball)
    found = reader.read(GridSource("a", tmp_path / "part_train.hdf5", 0))
    reader.close()
    assert (found & ball).sum() / (found | ball).sum() > 0.95


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({}, "holds nothing, but neither voxels nor points_64 and values_64"),
        ({"pixels": np.zeros(2), "points_64": np.zeros((2, 5, 3))}, "holds pixels, points_64, but neither voxels"),
        ({"voxels": np.zeros((4, 4))}, r"voxels has shape \[4, 4\]; expected one of IM-NET's tables"),
        ({"voxels": np.zeros((2, 4, 5, 4, 2))}, r"row 0 has shape \[4, 5, 4, 2\]; expected"),
        ({"voxels": np.zeros((2, 4, 4, 4, 1))}, "row 0: every cell is empty"),
        ({"points_64": np.zeros((2, 5, 3)), "values_64": np.zeros((2, 4, 1))}, "row 0 cannot be read"),
    ],
)
def test_files_without_what_is_expected(tmp_path: Path, tables: dict[str, np.ndarray], said: str) -> None:
    path = write(tmp_path / "a_train.hdf5", **tables)
    with pytest.raises(MNIFError, match=said) as caught:
        open_grid_store(tmp_path, "train", "voxel", progress=False)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a_train.hdf5", voxels=shapes(2))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(MNIFError, match=r"a_train\.hdf5: cannot be read as HDF5 .*; fetch it again"):
        grid_splits(tmp_path, "voxel")


def test_without_h5py(tmp_path: Path) -> None:
    """Only this layout needs it, and says so."""
    (tmp_path / "a_train.hdf5").write_bytes(b"x")
    program = (
        "import sys; sys.modules['h5py'] = None\n"
        "from mnif_nerf.data.stores.grid_layout import grid_splits\nfrom mnif_nerf.errors import run_command\n"
        "run_command(lambda: grid_splits(sys.argv[1], 'voxel'))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "h5py cannot be imported; it needs the hdf5 extra: pip install 'mnif_nerf[hdf5]'." in done.stderr
