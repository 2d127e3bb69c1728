"""The whole road on a tiny set: train, resume, evaluate, prior, sample, export; and the demo that walks it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from safetensors.torch import load_file
from tiny_srn import write_tiny_srn

pytest.importorskip("nerfstudio")

from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio_runs import Run, tiny_config

from mnif_nerf.cli import demo, demo_pages, export_mesh, sample, train_prior
from mnif_nerf.data.generate import digits
from mnif_nerf.data.readers.voxel_files import read_voxels
from mnif_nerf.modalities import sdf, voxel
from mnif_nerf.pipelines.model_folder import read_model

FORMATS = ("glb", "ply", "obj", "stl", "binvox", "npz")
SHAPE = {
    "pipeline.model.width": 16,
    "pipeline.datamanager.scenes_per_step": 4,
    "pipeline.datamanager.rays_per_scene": 48,
    "pipeline.datamanager.carve_points": 32,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_srn(tmp_path_factory.mktemp("data"), scenes=4, views=6, resolution=16)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 150 steps that was broken off after 75 and resumed, and whose prior was trained afterwards."""
    output = tmp_path_factory.mktemp("outputs")
    first = Run(tiny_config(data, output, steps=150, name="first", **{**SHAPE, "max_num_iterations": 75}))
    assert [path.name for path in first.checkpoints.iterdir()] == ["step-000000074.ckpt"]
    second = Run(tiny_config(data, output, steps=150, name="second", **{**SHAPE, "load_dir": first.checkpoints}))
    assert sorted(second.losses) == list(range(75, 150))
    assert np.mean(list(second.losses.values())[-20:]) < 0.5 * np.mean(list(first.losses.values())[:5])
    assert not (second.folder / "model" / "prior").exists()
    assert train_prior.main(train_prior.TrainPriorOptions(second.folder / "config.yml", steps=20)).is_dir()
    return second.folder


def test_evaluation_of_the_run(run: Path, tmp_path: Path) -> None:
    ComputePSNR(load_config=run / "config.yml", output_path=tmp_path / "metrics.json").main()
    facts = json.loads((tmp_path / "metrics.json").read_text())
    assert facts["checkpoint"].endswith("step-000000149.ckpt")
    assert facts["results"]["psnr"] > 12  # a white picture has 9, the mean colour of all of them 10


def test_samples_of_the_run(run: Path, tmp_path: Path) -> None:
    options = sample.SampleOptions(
        load_config=str(run / "config.yml"),
        num_samples=3,
        views=2,
        resolution=24,
        frames=4,
        turntable_resolution=16,
        output=tmp_path / "samples",
    )
    output = sample.main(options)
    facts = json.loads((output / "samples.json").read_text())
    assert {entry["nearest_training_instance"] for entry in facts["samples"]} <= {f"scene{i:03d}" for i in range(4)}
    assert load_file(str(output / "latents.safetensors"))["latents"].shape == (3, 4)
    for entry in facts["samples"]:
        for view in entry["views"]:
            picture = np.asarray(Image.open(output / view))
            assert picture.shape == (24, 24, 3)
            assert picture.std() > 5, "an object stands before the white background"
    assert (output / "turntable.mp4").stat().st_size > 500
    assert Image.open(output / "contact_sheet.png").width >= 2 * 24


def test_meshes_of_the_run_in_every_format(run: Path, tmp_path: Path) -> None:
    options = export_mesh.ExportOptions(
        load_config=str(run / "config.yml"),
        source="training",
        num_samples=2,
        format=",".join(FORMATS),
        resolution=24,
        level=2.0,
        output=tmp_path / "meshes",
    )
    output = export_mesh.main(options)
    assert {path.suffix[1:] for path in output.iterdir()} == {*FORMATS, "json"}
    for entry in json.loads((output / "report.json").read_text())["objects"]:
        assert entry["watertight"]
        glb, *others = (trimesh.load(output / f"{entry['name']}.{kind}", force="mesh") for kind in FORMATS[:4])
        assert len(glb.faces) == entry["triangles"]
        assert glb.volume == pytest.approx(entry["volume"], rel=1e-3)
        for kind, other in zip(FORMATS[1:4], others):
            axes = [1, 2, 0] if kind in ("ply", "stl") else [0, 1, 2]  # those two are z up, +x forward
            assert other.bounds[:, axes] == pytest.approx(glb.bounds, abs=1e-4)
        assert glb.extents[2] > 1.2 * glb.extents[0], "the bodies are longer (z) than they are wide (x)"
        assert (others[0].visual.vertex_colors[:, :3].astype(int).std(axis=0) > 0).any()
        occupancy = read_voxels(output / f"{entry['name']}.npz")
        assert occupancy.sum() == entry["occupied_voxels"] > 20
        assert (trimesh.load(output / f"{entry['name']}.binvox").matrix == occupancy).all()


def in_process(commands: list[str], **changes: Any) -> Callable[..., None]:
    """What stands in for `demo._command`: the real commands in this process, with settings that take no time.

    Args:
        commands: receives the names of those that were run.
        changes: of the training's configuration, as for `tiny_config`.
    """
    import tyro

    def command(name: str, *arguments: str) -> None:
        commands.append(name)
        if name in ("ns-train", "mnif-train"):  # which take the same words
            from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion

            asked: Any = tyro.cli(AnnotatedBaseConfigUnion, args=list(arguments))
            config = tiny_config(
                asked.data,
                asked.output_dir,
                asked.max_num_iterations,
                asked.timestamp,
                asked.method_name,
                experiment_name=asked.experiment_name,
                **{"pipeline.train_prior": True, "pipeline.prior_steps": 5, **changes},
            )
            Run(config)
        elif name == "mnif-sample":
            options = tyro.cli(sample.SampleOptions, args=list(arguments))
            options.frames, options.turntable_resolution = 3, 16
            if options.resolution is None:
                options.views, options.resolution = 1, 16
            sample.main(options)
        else:
            assert name == "mnif-export-mesh"
            export = tyro.cli(export_mesh.ExportOptions, args=list(arguments))
            export.resolution, export.level = 16, 1e-3
            export_mesh.main(export)

    return command


def is_done(config: demo.DemoConfig, commands: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A second run has nothing to do but the page."""
    commands.clear()
    capsys.readouterr()
    demo.main(config)
    assert commands == []
    assert "trained already" in capsys.readouterr().out
    model = config.run_folder() / "model"
    assert torch.isfinite(load_file(str(model / "latents.safetensors"))["latents"]).all()


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_pages, "_SIZE", 24)
    monkeypatch.setattr(demo_pages, "_ACROSS", 3)


@pytest.mark.usefixtures("small_pages")
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's own arguments reach the real commands, cut down where they would take long."""
    commands: list[str] = []
    monkeypatch.setattr(demo, "_command", in_process(commands))
    output = tmp_path / "out"
    config = demo.DemoConfig(
        data=tmp_path / "cars",
        output=output,
        num_cars=3,
        train_views=3,
        resolution=16,
        steps=8,
        num_samples=2,
    )
    demo.main(config)
    assert commands == ["ns-train", "mnif-sample", "mnif-export-mesh"]
    page = (output / "index.html").read_text()
    for name in ("overview.png", "turntable.mp4", "meshes/sample000.glb"):
        assert name in page
        assert (output / name).stat().st_size > 100
    assert "Held-out views of the training cars: " in page
    is_done(config, commands, capsys)


@pytest.mark.usefixtures("small_pages")
def test_demo_of_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[str] = []
    monkeypatch.setattr(demo, "_command", in_process(commands, **{"pipeline.model.head": "logit"}))
    monkeypatch.setattr(voxel, "_DEMO_UNSEEN", 2)
    output = tmp_path / "out"
    config = demo.DemoConfig("voxel", tmp_path / "cars", output, num_cars=5, steps=30, num_samples=2)
    demo.main(config)
    assert commands == ["mnif-train", "mnif-sample", "mnif-export-mesh"]
    assert {path.name for path in (tmp_path / "cars").iterdir()} >= {"train", "val", "test", "dataset.json"}
    page = (output / "index.html").read_text()
    for name in ("overview.png", "turntable.mp4", "meshes/sample000.glb"):
        assert name in page
        assert (output / name).stat().st_size > 100
    assert (output / "meshes" / "sample000.binvox").is_file()
    assert re.search(r"Training shapes, reconstructed: IoU [01]\.\d+ over 5", page)
    assert re.search(r"Unseen shapes, reconstructed: IoU [01]\.\d+ over 2", page)
    assert read_model(config.run_folder() / "model").modality == "voxel"
    is_done(config, commands, capsys)


@pytest.mark.usefixtures("small_pages")
def test_demo_of_meshes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[str] = []
    monkeypatch.setattr(demo, "_command", in_process(commands))
    monkeypatch.setattr(sdf, "_DEMO_UNSEEN", 2)
    monkeypatch.setattr(sdf, "_DEMO_POINTS", 1000)
    output = tmp_path / "out"
    config = demo.DemoConfig("sdf", tmp_path / "cars", output, num_cars=4, steps=60, num_samples=2)
    demo.main(config)
    assert commands == ["mnif-train", "mnif-sample", "mnif-export-mesh"]
    page = (output / "index.html").read_text()
    for name in ("overview.png", "turntable.mp4", "meshes/sample000.glb"):
        assert name in page
        assert (output / name).stat().st_size > 100
    assert re.search(r"Training cars, reconstructed: IoU [01]\.\d+, colour [\d.]+ dB over 4", page)
    assert re.search(r"Unseen cars, reconstructed: IoU [01]\.\d+, colour [\d.]+ dB over 2", page)
    assert read_model(config.run_folder() / "model").modality == "sdf"
    is_done(config, commands, capsys)


@pytest.mark.usefixtures("small_pages")
def test_demo_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    commands: list[str] = []
    monkeypatch.setattr(demo, "_command", in_process(commands))
    monkeypatch.setattr(digits, "SPLIT_SIZES", {"train": 12, "val": 2, "test": 3})
    output = tmp_path / "out"
    config = demo.DemoConfig("image", tmp_path / "digits", output, steps=30, num_samples=9)
    demo.main(config)
    assert commands == ["mnif-train", "mnif-sample"]
    assert [Image.open(path).size for path in sorted((output / "samples" / "images").iterdir())] == [(64, 64)] * 9
    page = (output / "index.html").read_text()
    assert "overview.png" in page
    assert "turntable" not in page
    assert "glb" not in page
    assert re.search(r"Training digits, reconstructed: [\d.]+ dB over 12", page)
    assert re.search(r"Unseen digits, reconstructed: [\d.]+ dB over 3", page)
    assert Image.open(output / "overview.png").width > 3 * 24
    model = read_model(config.run_folder() / "model")
    assert (model.modality, model.grid) == ("image", {"resolution": 8, "channels": 1, "shape": [8, 8]})
    is_done(config, commands, capsys)


def test_a_demo_goes_on_where_it_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training from its last checkpoint; a finished run without a prior needs that alone."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(demo, "_command", lambda *words: asked.append(words))
    config = demo.DemoConfig("image", tmp_path / "data", tmp_path / "out", steps=9, seed=2)
    run = config.run_folder()
    demo._train(config, run)
    assert asked[-1][:2] == ("mnif-train", "mnif-image-lite")
    assert "--load-dir" not in asked[-1]
    pairs = dict(zip(asked[-1][2::2], asked[-1][3::2]))
    assert Path(pairs["--output-dir"], pairs["--experiment-name"], asked[-1][1], pairs["--timestamp"]) == run
    assert (pairs["--max-num-iterations"], pairs["--machine.seed"]) == ("9", "44")
    (run / "nerfstudio_models").mkdir(parents=True)
    (run / "nerfstudio_models" / "step-000000004.ckpt").touch()
    demo._train(config, run)
    assert asked[-1][-2:] == ("--load-dir", str(run / "nerfstudio_models"))
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text('{"training": {"finished": true, "steps": 9}}')
    demo._train(config, run)
    assert asked[-1] == ("mnif-train-prior", "--load-config", str(run / "config.yml"))
