"""What mnif-fit scores against, where it starts, and what it does to earlier runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_fit_command import FAST, written
from tiny_model import tiny_model, tiny_voxel_model

from mnif_nerf.cli.fit import FitOptions, _run_name, main
from mnif_nerf.data.observations.observations import Cells, Photo
from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.poses import PhotoSearch, PoseSearchConfig, Round
from mnif_nerf.pipelines.fit import fitting
from mnif_nerf.pipelines.fit.fitting import FitSettings, fit_observation
from mnif_nerf.pipelines.fit.scores import cells_scores, grid_iou
from mnif_nerf.pipelines.generation import MNIFPipeline


@pytest.fixture
def voxel(tmp_path: Path) -> str:
    """A model folder of solids."""
    return written(tiny_voxel_model(8, head="logit"), tmp_path)


def run(model: str, path: Path, **changes: Any) -> Path:
    return main(FitOptions(model, path, **{**FAST, **changes}))  # type: ignore[arg-type]


def test_meta_learned_radiance_models_start_from_the_mean() -> None:
    model = dataclasses.replace(
        tiny_model(8),
        cells=None,
        rates=torch.full((5,), 1e6),  # one step of an inner loop would land far off
        adaptation={"method": "meta-learning", "inner_steps": 1, "inner_lr": 1.0},
    )
    cells = np.zeros((16, 16, 16), dtype=bool)
    cells[5:11, 5:11, 5:11] = True
    fit = fit_observation(MNIFPipeline(model), cells, FitSettings(restarts=1, steps=1))
    assert fit.task.complete
    assert fit.starts == ["mean"]
    assert torch.isfinite(fit.best.latent).all()


def test_the_truth_has_the_inputs_cells(voxel: str, tmp_path: Path) -> None:
    pipe = MNIFPipeline.from_pretrained(voxel, device="cpu")
    item = pipe.instance(0)
    half = item.occupancy(12).astype(np.float32)  # not the model's 16
    half[:6] = np.nan
    np.save(tmp_path / "half.npy", half)
    item.mesh(24).export(tmp_path / "mesh.glb")
    output = run(voxel, tmp_path / "half.npy", truth=tmp_path / "mesh.glb")
    assert set(json.loads((output / "report.json").read_text())["scores"]["fit"]) == {"iou_seen", "iou_unseen", "iou"}
    np.save(tmp_path / "other.npy", item.occupancy(8))
    with pytest.raises(MNIFError, match=r"--truth .*other\.npy: a truth of 8\^3 cells .* of 16\^3"):
        run(voxel, tmp_path / "mesh.glb", truth=tmp_path / "other.npy")
    with pytest.raises(MNIFError, match=r"a truth of 8\^3 cells cannot be scored against an observation of 12\^3"):
        cells_scores(item, Cells(item.occupancy(12)), Cells(item.occupancy(8)))


def test_unknown_cells_of_the_truth_are_not_scored() -> None:
    item = MNIFPipeline(tiny_voxel_model(8, head="logit")).instance(0)
    values = item.occupancy(16)
    known = np.ones_like(values)
    known[:, :8] = False
    seen = np.zeros_like(values)
    seen[8:] = True
    truth = Cells(values & known, known)
    found = cells_scores(item, Cells(values & seen, seen), truth)
    assert found == {"iou_seen": 1.0, "iou_unseen": 1.0, "iou": 1.0}
    assert grid_iou(item, truth.values, known) == 1.0
    assert grid_iou(item, truth.values) < 1.0


def test_more_hypotheses_of_a_photo_than_usual_reach_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule as it is, its rounds made short; 12 restarts give 12 objects."""
    real = fitting._pose_config

    def short(settings: FitSettings) -> PoseSearchConfig:
        config = real(settings)
        rounds = tuple(dataclasses.replace(item, steps=1, rays=8, samples=4) for item in config.schedule)
        return dataclasses.replace(config, schedule=rounds, last=Round(config.last.hypotheses, 1, 8, 4, True))

    def few(self: PhotoSearch, codes: torch.Tensor, cameras: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(codes), dtype=torch.float32)

    monkeypatch.setattr(fitting, "_pose_config", short)
    monkeypatch.setattr(PhotoSearch, "_score", few)
    pipe = MNIFPipeline(dataclasses.replace(tiny_model(8), cells=None))
    photo = Photo(np.full((8, 8, 3), 200, dtype=np.uint8), np.ones((8, 8), dtype=bool))
    assert len(fit_observation(pipe, photo, FitSettings(restarts=12, steps=1)).objects) == 12
    assert [item.hypotheses for item in real(FitSettings()).schedule] == [96, 24, 8]


def test_a_second_run_leaves_nothing_of_the_first(voxel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnif_nerf.pipelines.fit import pictures as fit_pictures

    np.save(tmp_path / "shape.npy", MNIFPipeline.from_pretrained(voxel, device="cpu").instance(0).occupancy(16))
    output = run(voxel, tmp_path / "shape.npy", output=tmp_path / "out")
    assert (output / "mesh.glb").exists()
    run(voxel, tmp_path / "shape.npy", output=output, mesh_resolution=0)
    assert not (output / "mesh.glb").exists()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_pictures, "before_and_after", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(voxel, tmp_path / "shape.npy", output=output)
    assert not (output / "report.json").exists()


def test_other_runs_have_other_names(tmp_path: Path) -> None:
    inputs = ["a/transforms.json", "b/transforms.json", "a/car.glb", "a/car.npy", "one/rgb/0.png", "two/rgb/0.png"]
    names = []
    for each in inputs:
        path = tmp_path / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        names.append(_run_name(FitOptions("run", path)))
    assert names == ["a", "b", "car-glb", "car-npy", "one-0-png", "two-0-png"]
    car = FitOptions("run", tmp_path / "a" / "car.npy")
    changes: list[dict[str, Any]] = [
        {},
        {"observed_half": "front"},
        {"observed_box": (-0.5, -0.5, -0.5, 0.0, 0.5, 0.5)},
        {"observed_box": (-0.5, -0.5, -0.5, 0.1, 0.5, 0.5)},
        {"observed_mask": Path("one.npy")},
        {"observed_mask": Path("two.npy")},
        {"seed": 1},
        {"prior": "none"},
        {"views": tuple(range(40))},
        {"views": tuple(range(41))},
    ]
    found = [_run_name(dataclasses.replace(car, **change)) for change in changes]
    assert len(set(found)) == len(changes)
    assert max(map(len, found)) < 120
    assert found[1] == "car-npy-front"
    assert found[6] == "car-npy-seed1"
