"""Voxels and pictures that cannot be trained on, through ns-train's own function: one sentence that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nerfstudio")

from nerfstudio_runs import Run, tiny_config
from PIL import Image
from tiny_runs import write_tiny_pictures, write_tiny_shapes

VOXEL, IMAGE = "mnif-voxel-lite", "mnif-image-lite"


def spoil_shapes(root: Path, kind: str) -> None:
    """Add one shape that is no good to the training split."""
    bad = root / "train" / "zz.npy"
    cells = np.zeros((12, 12, 12), dtype=bool)
    cells[2:9, 2:9, 2:9] = True
    if kind == "smaller":
        np.save(bad, cells[:10, :10, :10])
    elif kind == "oblong":
        np.save(bad, cells[:, :10])
    elif kind == "cut":
        from mnif_nerf.export.voxels import write_voxels

        path = write_voxels(cells, bad.with_suffix(".binvox"))
        path.write_bytes(path.read_bytes()[:-20])
    else:
        h5py = pytest.importorskip("h5py")
        for path in (root / "train").iterdir():
            path.unlink()
        with h5py.File(root / "shapes_train.hdf5", "w") as file:
            file.create_dataset("pixels", data=cells)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("smaller", r"zz\.npy: 10\^3 cells, but the first shape has 12\^3; give all grids one size"),
        ("oblong", r"zz\.npy: 12 x 10 x 12 cells, but the first shape has 12\^3; give all grids one size"),
        ("cut", r"zz\.binvox: cannot be read as voxels \(truncated: \d+ of 1728 cells\)"),
        ("keyless", r"shapes_train\.hdf5: holds pixels, but neither voxels nor points_64 and values_64"),
    ],
)
def test_shapes_that_cannot_be_trained_on_are_named(tmp_path: Path, kind: str, words: str) -> None:
    root = write_tiny_shapes(tmp_path / "data", {"train": 3})
    spoil_shapes(root, kind)
    told(root, tmp_path, VOXEL, words)


def told(data: Path, output: Path, method: str, words: str, **changes: Any) -> None:
    with pytest.raises(SystemExit, match=words) as caught:
        Run(tiny_config(data, output, 2, method=method, **{"pipeline.datamanager.instances_per_step": 2, **changes}))
    assert str(caught.value).startswith("error: ")
    assert "\n" not in str(caught.value)


def test_pictures_that_cannot_be_trained_on_are_named(tmp_path: Path) -> None:
    root = write_tiny_pictures(tmp_path / "data", {"train": 3})
    told(root, tmp_path, IMAGE, "12x12 pixels, smaller than 16x16", **{"pipeline.datamanager.resolution": 16})
    Image.new("L", (12, 12), 90).save(root / "train" / "grey.png")
    Run(tiny_config(root, tmp_path, 1, method=IMAGE, **{"pipeline.datamanager.channels": 1}))
    for path in sorted((root / "train").glob("*.png"))[1:]:
        path.write_bytes(b"broken")
    told(root, tmp_path, IMAGE, "one of 4 pictures that can be read; .* needs 2")
