"""benchmarks/sdf.py on four cars and a few steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
pytest.importorskip("igl")

import sdf


def test_it_trains_fits_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prototype = sdf.settings_of("prototype")
    assert (prototype.pipeline.model.width, prototype.pipeline.model.color_weight) == (48, 3.0)
    assert prototype.pipeline.datamanager.on_surface_share == 0.0
    larger = sdf.settings_of("prototype-larger")
    assert (larger.max_num_iterations, larger.pipeline.model.latent_dim) == (9000, 64)

    def small(name: str) -> Any:
        settings = sdf_settings(name)
        model, data = settings.pipeline.model, settings.pipeline.datamanager
        model.width, model.hidden_layers, model.num_bases = 8, 1, 4
        data.instances_per_step, data.points_per_instance = 2, 64
        settings.pipeline.fit_steps, settings.pipeline.fit_points = 3, 64
        return settings

    sdf_settings = sdf.settings_of
    monkeypatch.setattr(sdf, "settings_of", small)
    monkeypatch.setattr(sdf, "_FITTED_POINTS", 500)
    output = tmp_path / "results.json"
    sdf.main(
        sdf.Config(
            cars=2, unseen=1, points=500, uniform_points=500, surface_points=100, steps=3, threads=1,
            samples=3, mesh_cells=16, pictures=tmp_path / "sheets", data=tmp_path / "cars", output=output,
        )
    )  # fmt: skip
    table = capsys.readouterr().out
    assert "| prototype | 3 |" in table
    assert "| training, wall seconds | 240 |" in table
    assert "seed 0" in table
    assert "| mnif-sdf-lite | 3 |" in table
    results = json.loads(output.read_text())["results"]
    assert len(results["mnif-sdf-lite"]["training"]["iou"]) == 2
    assert len(results["prototype"]["unseen"]["color"]) == 1
    for words, count in (("samples", 3), ("training cars", 2)):
        meshes = results["prototype"][f"closed {words}"]
        assert meshes["count"] == count
        assert 0 <= meshes["whole"] <= meshes["closed"] <= count
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {"prototype.png", "mnif-sdf-lite.png"}
