"""The numbered examples, run as a reader would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.pipelines.model_folder import read_model

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(name: str, *arguments: str, where: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=where, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    printed = run_example("02_train_without_nerfstudio.py", str(folder), "60", where=folder)
    errors = [float(line.split()[-1]) for line in printed.splitlines() if line.startswith("step")]
    assert errors[-1] < 0.5 * errors[0]
    assert f"wrote {folder / 'model'}" in printed
    return folder


def test_every_example_is_run_here() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in sorted(EXAMPLES.glob("*.py")) if path.name not in tested] == []


def test_one_network_per_instance(tmp_path: Path) -> None:
    printed = run_example("01_one_network_per_instance.py", where=tmp_path)
    assert "learnable: 4,590,080 parameters" in printed
    assert "one instance: 17,156 parameters" in printed
    assert float(printed.split("largest difference to the mixture: ")[1].split()[0]) < 1e-4
    assert not list(tmp_path.iterdir())


def test_training_without_nerfstudio(example: Path) -> None:
    model = read_model(example / "model")
    assert len(model.names) == 7
    assert model.latents.std() > 0
    assert model.prior is not None


def test_generation(example: Path, tmp_path: Path) -> None:
    printed = run_example("03_generate.py", str(example / "model"), str(tmp_path / "out"), where=tmp_path)
    assert printed.count("nearest training instance") == 4
    width, height = Image.open(tmp_path / "out" / "objects.png").size
    assert width >= 4 * 96
    assert height >= 5 * 96
    assert trimesh.load(tmp_path / "out" / "object.glb", force="mesh").is_watertight


def test_editing(example: Path, tmp_path: Path) -> None:
    printed = run_example("06_edit.py", str(example / "model"), str(tmp_path / "out"), where=tmp_path)
    assert printed.count("nearest training instance") == 5
    assert "without a latent" in printed
    sheet = np.asarray(Image.open(tmp_path / "out" / "edited.png"))
    assert sheet.shape[0] >= 3 * 128
    assert sheet.shape[1] >= 5 * 128
    own, other, painted = (sheet[6:134, 6 + 134 * k : 134 + 134 * k] for k in (0, 1, 3))  # A, B, A in B's colours
    assert own.min() < 240
    assert (painted != own).any()
    assert (painted != other).any()
    edited = NeuralObject.load(tmp_path / "out" / "painted.safetensors")
    assert not edited.has_latent


def test_images(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    printed = run_example("04_images.py", str(tmp_path), "150", where=tmp_path)
    quality = [float(line.split()[-2]) for line in printed.splitlines() if line.startswith("step")]
    assert quality[0] < 10
    assert quality[-1] > 20  # one grey level for all would give 8.5 dB
    sheet = Image.open(tmp_path / "images.png")
    assert sheet.width > 12 * 64
    assert sheet.height > 3 * 64


def test_voxels(tmp_path: Path) -> None:
    printed = run_example("05_voxels.py", str(tmp_path), "150", where=tmp_path)
    overlaps = [float(line.split()[-1]) for line in printed.splitlines() if line.startswith("unseen ")]
    assert len(overlaps) == 4
    assert sum(overlaps) / 4 > 0.82  # the average training car would give 0.70
    model = read_model(tmp_path / "model")
    assert (model.modality, len(model.names)) == ("voxel", 32)
    assert model.latents.std() > 0
    sheet = Image.open(tmp_path / "unseen.png")
    assert sheet.width > 4 * 128
    assert sheet.height > 2 * 128
    assert trimesh.load(tmp_path / "unseen.glb", force="mesh").is_watertight

    printed = run_example("07_labels_and_answers.py", str(tmp_path), "100", where=tmp_path)
    assert "labelled: body (" in printed
    prior = read_model(tmp_path / "labelled").prior
    assert prior is not None
    assert [attribute.name for attribute in prior.attributes] == ["body"]
    for name, across, down in (("bodies.png", 4, 4), ("answers.png", 4, 1)):
        with Image.open(tmp_path / name) as sheet:
            assert sheet.width > across * 96
            assert sheet.height > down * 96
