"""Grids that are neither square nor cubic: coordinates, stores, points, pictures and objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnif_nerf.data.grid_facts import GridFacts, scaled_shape
from mnif_nerf.data.readers.picture_files import inspect_pictures, read_picture
from mnif_nerf.data.sampling.point_sampler import PointChoice, PointSampler
from mnif_nerf.data.stores.grid_store import open_grid_store, store_of
from mnif_nerf.errors import MNIFError
from mnif_nerf.rendering.grids import cell_centres, cell_coordinates, in_cube


@pytest.mark.parametrize(("size", "dims"), [(7, 1), (6, 2), (5, 3), (64, 3)])
def test_cubes_have_the_coordinates_they_always_had(size: int, dims: int) -> None:
    index = torch.arange(size**dims)
    axes = [index // size ** (dims - 1 - axis) % size for axis in range(dims)]
    before = (torch.stack(axes, dim=-2).float() + 0.5) * (2.0 / size) - 1.0
    assert torch.equal(cell_centres((size,) * dims), before)


def test_cells_are_cubes_whatever_the_shape() -> None:
    centres = cell_centres((8, 4, 2)).view(3, 8, 4, 2)
    for axis, reach in enumerate((1.0, 0.5, 0.25)):
        line = centres[axis].movedim(axis, 0).flatten(1)[:, 0]
        torch.testing.assert_close(line.diff(), torch.full((len(line) - 1,), 0.25))
        torch.testing.assert_close(line[0], torch.tensor(0.125 - reach))
        torch.testing.assert_close(line[0], -line[-1])
    assert cell_coordinates(torch.tensor([[0, 63]]), (8, 4, 2)).shape == (1, 3, 2)


def test_a_box_lies_in_its_cube() -> None:
    cells = torch.ones(4, 2, 1, dtype=torch.bool)
    cube = in_cube(cells)
    assert cube.shape == (4, 4, 4)
    assert cube.any(dim=2).any(dim=0).tolist() == [False, True, True, False]
    assert cube.any(dim=0).any(dim=0).tolist() == [False, True, True, False]  # half a cell off: two overlap
    assert in_cube(cube) is cube


def test_shapes_keep_their_proportions() -> None:
    assert scaled_shape((218, 178), 64) == (64, 52)
    assert scaled_shape((4, 1, 2), 8) == (8, 2, 4)
    assert scaled_shape((100, 1), 10) == (10, 1)
    assert GridFacts.from_dict(GridFacts((4, 6), 3).to_dict(), 2) == GridFacts((4, 6), 3)
    assert GridFacts.from_dict({"resolution": 5, "channels": 1}, 3) == GridFacts((5, 5, 5))
    for dtype in ("int16", ">f4", "float64", "bool", None):
        assert GridFacts.from_dict({"resolution": 4, "dtype": dtype}, 2).dtype == dtype
    for stored, words in (
        ({"resolution": 0}, "does not describe a grid of 2 axes"),
        ({"shape": [4], "channels": 1}, "does not describe"),
        ({"resolution": 4, "novel": 1}, "novel is not known"),
        ({"resolution": 4, "low": 2.0, "high": 1.0}, "are not a range"),
        ({"resolution": 4, "low": 0, "high": 10**400}, "are not a range"),
        ({"resolution": 10**6}, "does not describe"),
        ({"shape": 5}, "does not describe"),
        ({"resolution": 4, "rate": "x"}, "a rate of 'x'"),
        ({"resolution": 4, "dtype": "object"}, "values of type 'object'"),
    ):
        with pytest.raises(MNIFError, match=words):
            GridFacts.from_dict(stored, 2)


def picture(path: Path, height: int, width: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)).save(path)
    return path


def test_pictures_of_one_size_keep_it(tmp_path: Path) -> None:
    oblong = [picture(tmp_path / f"{k}.png", 20, 32, k) for k in range(3)]
    assert inspect_pictures(oblong) == ((20, 32), 1)
    assert inspect_pictures(oblong, 16) == ((10, 16), 1)
    assert inspect_pictures(oblong, (20, 20)) == ((20, 20), 1)
    large = [picture(tmp_path / "large" / f"{k}.png", 100, 150, k) for k in range(2)]
    assert inspect_pictures(large) == ((43, 64), 1)
    with pytest.raises(MNIFError, match="smaller than"):
        inspect_pictures([*oblong, *large])  # of several sizes: squares of 64
    assert inspect_pictures([*oblong, *large], 20) == ((20, 20), 1)
    whole = np.asarray(Image.open(oblong[0]))
    np.testing.assert_array_equal(read_picture(oblong[0], (20, 32), 1)[..., 0], whole)
    np.testing.assert_array_equal(read_picture(oblong[0], 20, 1)[..., 0], whole[:, 6:26])
    store = open_grid_store(tmp_path / "large", "train", "image", progress=False)
    assert (store.shape, store.dims, store.values(1).shape) == ((43, 64), 2, (43, 64, 1))


def test_voxels_need_not_be_cubes(tmp_path: Path) -> None:
    solids = [np.indices((8, 6, 4)).sum(axis=0) < 4 + k for k in range(3)]
    for k, cells in enumerate(solids):
        np.save(tmp_path / f"{k}.npy", cells)
    store = open_grid_store(tmp_path, "train", "voxel", progress=False)
    assert (store.shape, store.resolution, store.has_surface) == ((8, 6, 4), 8, True)
    for k, cells in enumerate(solids):
        np.testing.assert_array_equal(store.values(k), cells)
    coarse = open_grid_store(tmp_path, "train", "voxel", resolution=4, progress=False)
    assert coarse.shape == (4, 3, 2)
    with pytest.raises(MNIFError, match="8 x 6 x 4 cells cannot be brought to 2 x 2 x 1"):
        open_grid_store(tmp_path, "train", "voxel", resolution=2, progress=False)
    batch = PointSampler(store, 2, 60, choice=PointChoice(reweight=True)).draw(0)
    assert (batch.points.amax(dim=(0, 2)) <= torch.tensor([1, 0.75, 0.5])).all()
    grid = torch.tensor([8.0, 6.0, 4.0])[:, None]
    for row, instance in enumerate(batch.instances):
        x, y, z = ((batch.points[row] * 4 + grid / 2) - 0.5).round().long()
        inside = torch.from_numpy(solids[int(instance)])[x, y, z]
        assert torch.equal(batch.targets[row, 0] > 0, inside)


def test_whole_batches_of_a_box_are_its_cells_in_order() -> None:
    values = [np.random.default_rng(k).integers(0, 256, (3, 5, 1), dtype=np.uint8) for k in range(2)]
    batch = PointSampler(store_of(values, "image"), 2, 0).draw(0)
    assert torch.equal(batch.points[0], cell_centres((3, 5)))
    row = int(batch.instances[0])
    np.testing.assert_allclose(batch.targets[0, 0].numpy(), values[row].ravel() / 127.5 - 1, atol=1e-6)
