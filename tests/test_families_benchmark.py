"""The benchmark of network families and modulations: its shapes, and a small run."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import families
from test_benchmarks import LocalWorker

from mnif_nerf.errors import MNIFError


def test_shapes_are_diverse_and_repeat() -> None:
    shapes = [families.diverse_shape((0, 0, index), 16) for index in range(40)]
    assert (shapes[3] == families.diverse_shape((0, 0, 3), 16)).all()
    shares = [shape.mean() for shape in shapes]
    assert min(shares) > 0
    assert max(shares) < 0.6
    assert max(shares) > 5 * min(shares)


def test_families_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(families, "Worker", LocalWorker)
    monkeypatch.setattr(families, "QUERIES", 100)
    output = tmp_path / "out.json"
    config = families.Config(
        "diverse", 0.02, ("fourier-relu",), ("mixture", "shift"), (0.5, 1.0), small=True, cache=tmp_path, output=output
    )
    found = families.main(config)["diverse"]
    assert tuple(found) == ("siren, mixture", "fourier-relu, mixture", "fourier-relu, shift")
    assert [tried["factor"] for tried in found["fourier-relu, shift"]["tuning"]] == [0.5, 1.0]
    for result in found.values():
        assert result["steps"]["steps"] == found["siren, mixture"]["time"]["steps"]
        assert all(math.isfinite(result["time"][split]) for split in ("train", "unseen"))
    assert "| diverse | fourier-relu, shift | IoU |" in capsys.readouterr().out
    assert json.loads(output.read_text())["benchmark"] == "Network families and modulations"
    with pytest.raises(MNIFError, match="choose one of diverse, voxel, image, radiance, or all"):
        families.main(dataclasses.replace(config, data="video"))
    with pytest.raises(MNIFError, match="must be positive"):
        families.main(dataclasses.replace(config, seconds=0.0))
    with pytest.raises(MNIFError, match="choose of mixture, shift, low-rank"):
        families.main(dataclasses.replace(config, modulations=("wavelets",)))


@pytest.mark.parametrize("name", ["image", "radiance"])
def test_other_modalities_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "image":
        pytest.importorskip("sklearn")
    monkeypatch.setattr(families, "QUERIES", 100)
    data = families.make(name, families.chosen(name, quick=True), tmp_path, seed=0)
    for choice in (("finer", "low-rank", 1.0), ("fourier-relu", "mixture", 0.5)):
        found = families.Run(name, choice, str(data), 1, "cpu", 0, True).train(seconds=0.0, steps=2)
        assert found["steps"] == 2
        assert all(math.isfinite(found[split]) for split in ("train", "unseen"))


@pytest.mark.parametrize("family", list(families.FAMILIES))
@pytest.mark.parametrize("modulation", families.MODULATIONS)
def test_training_lowers_the_loss_of_every_choice(family: str, modulation: str, tmp_path: Path) -> None:
    data = families.make("diverse", families.chosen("diverse", quick=True), tmp_path, seed=0)
    run = families.Run("diverse", (family, modulation, 0.5), str(data), 1, "cpu", 0, True)
    losses = []
    for step in range(150):
        with torch.no_grad():
            instances, objective = run.task.draw(step)
            losses.append(float(objective.losses(run.latents(instances)).mean()))
        run.step(0.0)
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
