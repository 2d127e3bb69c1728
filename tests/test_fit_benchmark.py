"""benchmarks/fit.py runs on tiny models, and its scans and angles are what they say."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_fit_command import scene_of, written
from tiny_model import tiny_image_model, tiny_model, tiny_voxel_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import fit
from fit_scans import scan_surface, surface_of

from mnif_nerf.data.generate.writer import write_occupancy
from mnif_nerf.errors import MNIFError
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.rendering.cameras import orbit_pose


def test_the_script_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    radiance = written(dataclasses.replace(tiny_model(8), cells=None), tmp_path / "radiance")
    voxel = written(tiny_voxel_model(8, head="logit"), tmp_path / "voxel")
    image = written(tiny_image_model(8), tmp_path / "image")
    scene_of(radiance, tmp_path / "cars")
    cells = MNIFPipeline.from_pretrained(voxel, device="cpu").instance(0).occupancy(16)
    write_occupancy(tmp_path / "shapes" / "test-0000-van.npz", cells)
    (tmp_path / "pictures").mkdir()
    MNIFPipeline.from_pretrained(image, device="cpu").instance(0).picture(8).save(tmp_path / "pictures/a.png")
    config = fit.Config(
        Path(radiance), Path(voxel), Path(image), tmp_path / "cars", tmp_path / "shapes", tmp_path / "pictures",
        parts=("views", "voxels", "images"), instances=1, views=(0, 1), halves=("front",), restarts=1, steps=2,
        output=tmp_path / "numbers.json",
    )  # fmt: skip
    tables = fit.main(config)
    assert set(tables) == {"views", "voxels", "images"}
    assert {row["held by"] for row in tables["voxels"]} >= {"mean shape", "inner loop alone", "whitened"}
    assert json.loads((tmp_path / "numbers.json").read_text())["results"] == json.loads(json.dumps(tables))
    assert "| seen | held by |" in capsys.readouterr().out
    with pytest.raises(MNIFError, match="--parts nothing: unknown"):
        fit.main(dataclasses.replace(config, parts=("nothing",)))


def test_scans_show_what_the_scanner_sees() -> None:
    surface, scanner = surface_of("test-0001-pickup", 0), np.array([0.9, 0.0, 0.3], dtype=np.float32)
    cloud = scan_surface(surface, scanner, 500)
    assert cloud.normals is not None
    assert 200 < len(cloud.points) <= 500
    assert (((scanner - cloud.points) * cloud.normals).sum(axis=1) > 0).all()
    assert cloud.points[:, 0].mean() > 0.05 > scan_surface(surface, None, 500).points[:, 0].mean()
    with pytest.raises(MNIFError, match="not the name of a procedural car"):
        surface_of("my-car", 0)


def test_angles_between_cameras() -> None:
    first, second = orbit_pose(0, 10).numpy(), orbit_pose(0, 40, 2.0).numpy()
    assert fit.pose_error(first, second) == pytest.approx(30, abs=1e-3)
