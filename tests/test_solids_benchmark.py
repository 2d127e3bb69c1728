"""benchmarks/solids.py: what its scores say of a car's own solid, and of the meshes of a small model."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
pytest.importorskip("igl")

import solids
from tiny_model import tiny_model

from mnif_nerf.data.generate.procedural import cars_of
from mnif_nerf.data.generate.settings import CarCounts
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.mesh_files import ExportMesh, to_export_axes
from mnif_nerf.objects.radiance import NeuralRadiance
from mnif_nerf.pipelines.model_folder import write_model


def first_cars(count: int) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, seed and body of training cars."""
    return [rest for split, *rest in cars_of(CarCounts(count)) if split == "train"]  # type: ignore[misc]


def test_a_solid_is_like_itself_and_a_moved_one_less_so() -> None:
    _, entropy, body = first_cars(1)[0]
    truth = solids.true_solid(entropy, body)
    same = solids.mesh_scores(truth.vertices, truth.faces, truth, 5000)
    assert same["iou"] > 0.999
    assert same["distance"] < 1e-6
    assert same["normals"] > 0.97
    moved = solids.mesh_scores(truth.vertices + [0.0, 0.0, 0.02], truth.faces, truth, 5000)
    assert 0.7 < moved["iou"] < 0.95
    assert 0.003 < moved["distance"] < 0.02
    turned = solids.mesh_scores(truth.vertices, truth.faces[:, ::-1], truth, 5000)
    assert turned["normals"] < -0.97


def test_exported_meshes_are_compared_in_the_axes_of_the_cars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (name, entropy, body), *_ = first_cars(1)
    truth = solids.true_solid(entropy, body)
    whole = ExportMesh(truth.vertices, truth.faces, process=False, metadata={"axes": "z-up"})
    monkeypatch.setattr(NeuralRadiance, "mesh", lambda *_, **__: to_export_axes(whole))
    model = dataclasses.replace(tiny_model(1), names=(name,))
    output = tmp_path / "results.json"
    solids.main(solids.Config(write_model(model, tmp_path / "model"), cars=1, points=2000, output=output))
    assert json.loads(output.read_text())["results"][name]["iou"] > 0.99


def test_it_scores_the_meshes_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tuple(name for name, _, _ in first_cars(6))
    folder = write_model(dataclasses.replace(tiny_model(), names=names), tmp_path / "model")
    output = tmp_path / "results.json"
    config = solids.Config(folder, cars=2, resolution=24, points=500, output=output)
    solids.main(config)
    table = capsys.readouterr().out
    assert "| cars | IoU (worst) |" in table
    results = json.loads(output.read_text())["results"]
    assert list(results) == [names[1], names[4]]
    assert all(0.0 <= car["iou"] < 0.9 and car["distance"] > 0.01 for car in results.values())  # blobs are no cars
    with pytest.raises(MNIFError, match="no procedural car of seed 7"):
        solids.main(dataclasses.replace(config, data_seed=7))
