"""Grids that are neither square nor cubic, and signals, the whole road on tiny sets: train, load, sample, look, write,
encode, score; of signals through every command that takes a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from tiny_runs import tiny_settings

from mnif_nerf.cli import data, diagnose, evaluate, export_mesh, export_web, fit, publish, render, sample
from mnif_nerf.data.observations.observations import Cells
from mnif_nerf.errors import MNIFError
from mnif_nerf.objects import NeuralImage, NeuralObject, NeuralShape, NeuralSignal
from mnif_nerf.pipelines.fit.fitting import FitSettings, fit_observation, open_observation
from mnif_nerf.pipelines.fit.scores import grid_iou
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.run import TrainingRun

COUNTS = {"train": 6, "val": 2, "test": 2}
PICTURE, BOX, RATE = (8, 12), (6, 8, 12), 4000


def write_pictures(root: Path) -> Path:
    """Gradients of 8 x 12 pixels."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, PICTURE[0])[:, None, None] * np.linspace(1, 0.3, PICTURE[1])[None, :, None]
    for split, count in COUNTS.items():
        (root / split).mkdir(parents=True)
        for index in range(count):
            first, last = rng.integers(0, 256, (2, 3))
            Image.fromarray((first + ramp * (last - first)).astype(np.uint8)).save(root / split / f"p{index}.png")
    return root


def write_boxes(root: Path) -> Path:
    """Boxes of cells within 6 x 8 x 12."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        (root / split).mkdir(parents=True)
        for index in range(count):
            cells = np.zeros(BOX, dtype=bool)
            cells[1:5, 2 : rng.integers(5, 8), 1 : rng.integers(7, 12)] = True
            np.save(root / split / f"s{index}.npy", cells)
    return root


def write_sounds(root: Path) -> Path:
    """Tones of 48 samples of 16 bits."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        (root / split).mkdir(parents=True)
        for index in range(count):
            tone = 1000 * np.sin(np.arange(48) * rng.uniform(0.1, 0.3)) + 20
            wavfile.write(root / split / f"t{index}.wav", RATE, tone.astype(np.int16))
    return root


def train(root: Path, method: str, steps: int, **changes: Any) -> tuple[TrainingRun, MNIFPipeline]:
    run = TrainingRun(
        tiny_settings(root / "data", root / "outputs", steps, method=method, **changes), say=lambda _: None
    )
    run.train()
    return run, MNIFPipeline.from_pretrained(run.folder)


def score(run: TrainingRun) -> dict[str, float]:
    """Every item of the run's own evaluation, with pictures; the metrics of the last."""
    for items in run.evaluation.items(run.model).values():
        for item in items:
            scores = run.evaluation.score(run.fields, item, with_pictures=True)
            assert all(np.isfinite(value) for value in scores.metrics.values())
            assert scores.pictures["img"].shape[2] == 3
    return scores.metrics


@pytest.mark.parametrize("adaptation", ["auto-decoding", "meta-learning"])
def test_pictures_keep_their_proportions(tmp_path: Path, adaptation: str) -> None:
    write_pictures(tmp_path / "data")
    run, pipe = train(tmp_path, "mnif-image-lite", 20, **{"pipeline.adaptation": adaptation})
    assert pipe.model.grid is not None
    assert pipe.model.grid["shape"] == [*PICTURE]
    item = pipe.instance(0)
    assert isinstance(item, NeuralImage)
    assert item.image().size == (12, 8)
    assert item.image(24).size == (24, 16)
    again = NeuralObject.load(item.save(tmp_path / "a.safetensors"))
    assert again.picture(36).size == (36, 24)
    assert set(score(run)) == {"psnr", "ssim"}
    values = run.data.store.values(0)
    found = pipe.encode(values)[0]
    assert isinstance(found, NeuralImage)
    assert found.image().size == (12, 8)
    path = tmp_path / "data" / "test" / "p0.png"
    quick = {"restarts": 1, "steps": 3, "observed_half": "left", "output": tmp_path / "fit", "device": "cpu"}
    fitted = fit.main(fit.FitOptions(str(run.folder), path, resolution=24, **quick))  # type: ignore[arg-type]
    assert Image.open(fitted / "fit.png").size == (24, 16)
    assert set(json.loads((fitted / "report.json").read_text())["scores"]["fit"]) == {"psnr_seen", "psnr_unseen"}
    # A viewer that looks straight at the plane sees white above and below, and the picture between.
    out = run.fields.training.render(*run.fields(item.latent), *_rays(), run.settings.pipeline.model)
    seen = out["accumulation"][:, 0] > 0
    assert seen.tolist() == [False, True, True, True, False]


def _rays() -> tuple[torch.Tensor, torch.Tensor]:
    """Parallel rays towards the plane x = 0, at heights -0.4, -0.3, 0, 0.3 and 0.4."""
    origins = torch.tensor([[1.0, 0.45, z] for z in (-0.4, -0.3, 0.0, 0.3, 0.4)])
    return origins, torch.tensor([-1.0, 0.0, 0.0]).expand(5, 3)


@pytest.mark.parametrize("adaptation", ["auto-decoding", "meta-learning"])
def test_shapes_keep_their_proportions(tmp_path: Path, adaptation: str) -> None:
    write_boxes(tmp_path / "data")
    changes = {"pipeline.adaptation": adaptation, "pipeline.datamanager.points_per_instance": 0}
    run, pipe = train(tmp_path, "mnif-voxel-lite", 150, **changes)
    assert pipe.model.grid is not None
    assert pipe.model.grid["shape"] == [*BOX]
    item = pipe.instance(0)
    assert isinstance(item, NeuralShape)
    assert item.occupancy(12).shape == BOX
    assert item.occupancy(24).shape == (12, 16, 24)
    assert item.occupancy(12).any()
    mesh = item.mesh(32)
    assert mesh.is_watertight
    assert {"psnr", "iou", "accuracy"} <= set(score(run))
    truth = run.data.store.values(0)
    scores = pipe.model.kind.reconstruction_scores(item, truth, None)
    assert scores["iou"] == pytest.approx((item.occupancy(12) & truth).sum() / (item.occupancy(12) | truth).sum())
    assert pipe.model.kind.picture_of_data(truth, 24).size == (24, 24)
    box = open_observation(tmp_path / "data" / "test" / "s0.npy", pipe)
    assert isinstance(box, Cells)
    np.testing.assert_array_equal(box.values[3:9, 2:10], np.load(tmp_path / "data" / "test" / "s0.npy"))
    observed = fit_observation(pipe, item.occupancy_in_cube(12), FitSettings(restarts=1, steps=3))
    assert 0 <= grid_iou(observed.best, item.occupancy_in_cube(12)) <= 1
    found = pipe.encode(truth)[0]
    assert isinstance(found, NeuralShape)
    assert found.occupancy(12).shape == BOX


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingRun, MNIFPipeline, Path]:
    """A run on tones with a prior."""
    root = tmp_path_factory.mktemp("sounds")
    write_sounds(root / "data")
    changes = {"pipeline.train_prior": True, "pipeline.prior_steps": 20}
    return (*train(root, "mnif-signal-lite", 40, **changes), root)


def test_signals_of_a_pipeline(sounds: tuple[TrainingRun, MNIFPipeline, Path], tmp_path: Path) -> None:
    run, pipe, _ = sounds
    first, second = pipe(num_samples=2, seed=0)
    assert isinstance(first, NeuralSignal)
    assert first.values().shape == (48,)
    assert first.values().dtype == np.float32
    np.testing.assert_array_equal(np.load(first.save_as(tmp_path / "a.npy")), first.values().round())
    rate, heard = wavfile.read(first.save_as(tmp_path / "a.wav"))
    assert (rate, heard.dtype, heard.shape) == (RATE, np.int16, (48,))
    assert Image.open(first.save_as(tmp_path / "a.png")).mode == "RGB"
    again = NeuralSignal.load(first.save(tmp_path / "a.safetensors"))
    np.testing.assert_array_equal(again.values(), first.values())
    assert len(pipe.interpolate(0, 1, num=3)) == 3
    assert pipe.nearest(second)[0] in pipe.names
    assert set(score(run)) == {"psnr", "rmse"}
    values = run.data.store.values(0)
    found = pipe.encode(values)[0]
    assert isinstance(found, NeuralSignal)
    assert found.values().shape == (48,)


def test_commands_take_signals(
    sounds: tuple[TrainingRun, MNIFPipeline, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, _, root = sounds
    config = str(run.folder)
    data.main(data.Check(root / "data"))
    assert "signals" in capsys.readouterr().out
    made = sample.main(sample.SampleOptions(config, num_samples=2, output=tmp_path / "s"))
    for entry in json.loads((made / "samples.json").read_text())["samples"]:
        assert Image.open(made / entry["image"]).size == (256, 128)
        array, sound = entry["values"]
        assert np.load(made / array).shape == (48,)
        assert wavfile.read(made / sound)[0] == RATE
    assert "values/" in capsys.readouterr().out
    options = render.RenderOptions(config, path="interpolate", frames=2, output=tmp_path / "v.gif")
    assert render.main(options).stat().st_size > 100
    evaluate.main(evaluate.EvalOptions(run.folder, protocol="small", output=tmp_path / "e"))
    assert "psnr" in (tmp_path / "e" / "metrics.json").read_text()
    diagnose.main(diagnose.DiagnoseOptions(config, num_pairs=2, num_samples=2, points=32, output=tmp_path / "d"))
    assert (tmp_path / "d" / "report.md").is_file()
    publish.main(publish.PublishOptions(config, output=tmp_path / "p"))
    assert 'save_as("signal.npy")' in (tmp_path / "p" / "README.md").read_text()
    with pytest.raises(MNIFError, match="a web page cannot show signals"):
        export_web.main(export_web.WebOptions(config))
    with pytest.raises(MNIFError, match="has no surface to export"):
        export_mesh.main(export_mesh.ExportOptions(config))
