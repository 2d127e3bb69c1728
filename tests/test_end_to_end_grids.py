"""The whole road for voxels and images on tiny sets, through the commands: train, resume, evaluate, prior, sample,
export, encode. Voxels by meta-learning, images by auto-decoding; the other pairs are in test_nerfstudio_grids.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
import tyro
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("nerfstudio")

from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio_runs import Run
from tiny_runs import write_tiny_pictures, write_tiny_shapes

from mnif_nerf.cli import export_mesh, sample, train_prior
from mnif_nerf.data.readers.voxel_files import read_voxels
from mnif_nerf.data.stores.grid_store import open_grid_store
from mnif_nerf.objects.image import NeuralImage
from mnif_nerf.objects.shape import NeuralShape
from mnif_nerf.pipelines.generation import MNIFPipeline

COUNTS = {"train": 6, "val": 2, "test": 2}
SIZE = 12
STEPS = {"voxel": 700, "image": 300}
COMMON = (
    "--machine.device-type", "cpu", "--pipeline.threads", "1", "--pipeline.train-prior", "False",
    "--pipeline.model.width", "24", "--pipeline.model.hidden-layers", "1", "--pipeline.model.num-bases", "8",
    "--pipeline.model.latent-dim", "6", "--pipeline.datamanager.instances-per-step", "6",
    "--optimizers.fields.scheduler.warmup-steps", "5", "--optimizers.projection.scheduler.warmup-steps", "5",
    "--steps-per-eval-all-images", "0", "--steps-per-eval-image", "0", "--steps-per-save", "0",
)  # fmt: skip
OWN = {
    "voxel": (
        "mnif-voxel-lite", "--pipeline.adaptation", "meta-learning", "--pipeline.inner-steps", "2",
        "--pipeline.model.head", "logit", "--pipeline.datamanager.cut-cells", "0.5", "--pipeline.inner-lr", "1",
        "--pipeline.model.parametrization", "plain", "--optimizers.fields.optimizer.lr", "1e-3",
        "--optimizers.projection.optimizer.lr", "1e-3", "--optimizers.fields.optimizer.max-norm", "1",
        "--pipeline.datamanager.encode-points", "0", "--pipeline.datamanager.points-per-instance", "256",
        "--pipeline.model.grid-resolution", "16",
    ),
    "image": (
        "mnif-image-lite", "--pipeline.adaptation", "auto-decoding",
        "--pipeline.datamanager.points-per-instance", "0", "--optimizers.latents.scheduler.warmup-steps", "5",
    ),
}  # fmt: skip


def train(modality: str, *arguments: str) -> Run:
    """`ns-train`, its command line included, in this process."""
    asked: Any = tyro.cli(AnnotatedBaseConfigUnion, args=[*OWN[modality], *COMMON, *arguments])
    asked.pipeline.datamanager.data = asked.data  # as nerfstudio's `main` does
    return Run(asked)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "voxel": write_tiny_shapes(folder / "shapes", COUNTS, SIZE),
        "image": write_tiny_pictures(folder / "pictures", COUNTS, SIZE),
    }


@pytest.fixture(scope="module")
def runs(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that were broken off half way and resumed, and whose priors were trained afterwards."""
    folders = {}
    for modality in ("voxel", "image"):
        output = tmp_path_factory.mktemp(modality)
        place = ("--data", str(data[modality]), "--output-dir", str(output))
        steps = STEPS[modality]
        half = ("--max-num-iterations", str(steps // 2))
        first = train(modality, *place, *half, "--timestamp", "first")
        rest = ("--max-num-iterations", str(steps), "--load-dir", str(first.checkpoints))
        second = train(modality, *place, *rest, "--timestamp", "second")
        assert sorted(second.losses) == list(range(steps // 2, steps))
        assert np.mean(list(second.losses.values())[-20:]) < 0.7 * np.mean(list(first.losses.values())[:5])
        options = train_prior.TrainPriorOptions(second.folder / "config.yml", steps=60)
        assert train_prior.main(options).is_dir()
        folders[modality] = second.folder
    return folders


def pipeline(run: Path) -> MNIFPipeline:
    return MNIFPipeline.from_pretrained(run / "config.yml", device="cpu")


@pytest.mark.parametrize(("modality", "metric", "least"), [("voxel", "iou", 0.7), ("image", "psnr", 20.0)])
def test_evaluation(runs: dict[str, Path], tmp_path: Path, modality: str, metric: str, least: float) -> None:
    ComputePSNR(load_config=runs[modality] / "config.yml", output_path=tmp_path / "metrics.json").main()
    facts = json.loads((tmp_path / "metrics.json").read_text())
    assert facts["checkpoint"].endswith(f"step-{STEPS[modality] - 1:09d}.ckpt")
    assert facts["results"][metric] > least
    assert facts["results"][f"unseen_{metric}"] > 0


def test_voxel_models_are_bounded_by_what_was_trained_on(runs: dict[str, Path], data: dict[str, Path]) -> None:
    """In the checkpoint, in the model folder and in what is exported: two cells around the union of all shapes."""
    union = np.any([np.load(path) for path in sorted((data["voxel"] / "train").iterdir())], axis=0)
    expected = np.zeros((SIZE,) * 3, dtype=bool)
    for x, y, z in np.argwhere(union):
        expected[max(x - 2, 0) : x + 3, max(y - 2, 0) : y + 3, max(z - 2, 0) : z + 3] = True
    assert not expected.all()
    (checkpoint,) = (runs["voxel"] / "nerfstudio_models").iterdir()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["pipeline"]
    np.testing.assert_array_equal(state["_model.bounds"].numpy(), expected)
    pipe = pipeline(runs["voxel"])
    assert pipe.model.cells is not None
    np.testing.assert_array_equal(pipe.model.cells.numpy(), expected)
    with torch.no_grad():
        pipe.model.field.bases[-1][:, -1] = 9.0  # inside everywhere
    np.testing.assert_array_equal(pipe.instance(0).occupancy(SIZE), expected)
    assert pipeline(runs["image"]).model.cells is None


def test_voxels_export_as_they_are(runs: dict[str, Path], tmp_path: Path) -> None:
    output = export_mesh.main(
        export_mesh.ExportOptions(
            str(runs["voxel"] / "config.yml"),
            source="training",
            num_samples=3,
            format="glb,binvox,npz",
            resolution=30,  # no multiple of the training grid's
            output=tmp_path / "meshes",
        )
    )
    pipe = pipeline(runs["voxel"])
    for entry in json.loads((output / "report.json").read_text())["objects"]:
        item = pipe.instance(entry["name"])
        assert isinstance(item, NeuralShape)
        inside = item.occupancy(30)
        np.testing.assert_array_equal(trimesh.load(output / f"{item.name}.binvox").matrix, inside)
        np.testing.assert_array_equal(read_voxels(output / f"{item.name}.npz"), inside)
        glb = trimesh.load(output / f"{item.name}.glb", force="mesh")
        assert glb.is_watertight
        assert glb.volume == pytest.approx(inside.mean(), rel=0.15)


def test_samples(runs: dict[str, Path], tmp_path: Path) -> None:
    common = {"num_samples": 3, "frames": 3, "turntable_resolution": 10}
    for modality, resolution in (("voxel", 16), ("image", 30)):
        options = sample.SampleOptions(
            str(runs[modality] / "config.yml"), resolution=resolution, output=tmp_path / modality, **common
        )
        output = sample.main(options)
        latents = load_file(str(output / "latents.safetensors"))["latents"]
        expected = pipeline(runs[modality]).sample_latents(3, seed=0)
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)
        stem = {"voxel": "shape", "image": "picture"}[modality]
        for entry in json.loads((output / "samples.json").read_text())["samples"]:
            assert entry["nearest_training_instance"] in {f"{stem}{index:03d}" for index in range(6)}
            for picture in entry.get("views") or [entry["image"]]:
                assert Image.open(output / picture).size == (resolution, resolution)
    assert (tmp_path / "voxel" / "turntable.mp4").stat().st_size > 500
    assert not (tmp_path / "image" / "turntable.mp4").exists()


def test_training_instances_encode_to_their_own_latents(runs: dict[str, Path], data: dict[str, Path]) -> None:
    """Where the inner loop sees every cell, it is the one that training ended with."""
    pipe = pipeline(runs["voxel"])
    store = open_grid_store(data["voxel"], "train", "voxel", progress=False)
    objects = pipe.encode(*(store.values(index) for index in range(6)), points=0)
    torch.testing.assert_close(torch.stack([item.latent for item in objects]), pipe.latents, atol=1e-5, rtol=1e-3)
    # Some of the cells give nearly the same.
    (near,) = pipe.encode(store.values(2), points=600)
    assert pipe.nearest(near)[0] == "shape002"


def test_pictures_are_fitted(runs: dict[str, Path], data: dict[str, Path]) -> None:
    pipe = pipeline(runs["image"])
    store = open_grid_store(data["image"], "train", "image", progress=False)
    truth = store.values(1)
    (item,) = pipe.encode(truth)
    assert isinstance(item, NeuralImage)
    own, fitted = (
        np.square(np.asarray(each.image(SIZE)).astype(float) - truth).mean() for each in (pipe.instance(1), item)
    )
    assert own < 650  # 20 dB
    assert fitted < 2 * own
