"""The whole road on a tiny set: train, resume, evaluate, prior, sample, export; and the demo that walks it."""

from __future__ import annotations

import json
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

from mnif_nerf.cli import demo, export_mesh, sample, train_prior
from mnif_nerf.export.voxels import read_npz

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
        for other in others:
            assert other.bounds == pytest.approx(glb.bounds, abs=1e-4)
        assert glb.extents[2] > 1.2 * glb.extents[0], "the bodies are longer (z) than they are wide (x)"
        assert (others[0].visual.vertex_colors[:, :3].astype(int).std(axis=0) > 0).any()
        occupancy = read_npz(output / f"{entry['name']}.npz")[0]
        assert occupancy.sum() == entry["occupied_voxels"] > 20
        assert (trimesh.load(output / f"{entry['name']}.binvox").matrix == occupancy).all()


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's own arguments reach the real commands, cut down where they would take long."""
    commands: list[str] = []

    def command(name: str, *arguments: str) -> None:
        import tyro

        commands.append(name)
        if name == "ns-train":
            from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion

            asked: Any = tyro.cli(AnnotatedBaseConfigUnion, args=list(arguments))
            config = tiny_config(asked.data, asked.output_dir, steps=asked.max_num_iterations, name=asked.timestamp)
            config.experiment_name = asked.experiment_name
            config.pipeline.train_prior, config.pipeline.prior_steps = True, 5
            Run(config)
        elif name == "mnif-sample":
            options = tyro.cli(sample.SampleOptions, args=list(arguments))
            options.views, options.resolution, options.frames, options.turntable_resolution = 1, 16, 3, 16
            sample.main(options)
        else:
            export = tyro.cli(export_mesh.ExportOptions, args=list(arguments))
            export.resolution, export.level = 16, 1e-3
            export_mesh.main(export)

    monkeypatch.setattr(demo, "_command", command)
    config = demo.DemoConfig(
        data=tmp_path / "cars",
        output=tmp_path / "out",
        num_cars=3,
        train_views=3,
        resolution=16,
        steps=8,
        num_samples=2,
    )
    demo.main(config)
    assert commands == ["ns-train", "mnif-sample", "mnif-export-mesh"]
    page = (config.output / "index.html").read_text()
    for name in ("overview.png", "turntable.mp4", "meshes/sample000.glb"):
        assert name in page
        assert (config.output / name).stat().st_size > 100
    commands.clear()
    capsys.readouterr()
    monkeypatch.setattr(demo, "_overview", lambda *_: config.output / "index.html")  # made anew every time: seconds
    demo.main(config)
    assert commands == []
    assert "trained already" in capsys.readouterr().out
    latents = load_file(str(config.output / "mnif-lite" / "run" / "model" / "latents.safetensors"))["latents"]
    assert torch.isfinite(latents).all()
