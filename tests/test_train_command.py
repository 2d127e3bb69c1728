"""mnif-train: training without nerfstudio, exact resume, what a run leaves, mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from no_nerfstudio import WITHOUT_NERFSTUDIO
from tiny_runs import DISTANCES, tiny_settings, write_tiny_pictures, write_tiny_shapes
from tiny_srn import write_tiny_srn

from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.stage1 import Stage1Trainer
from mnif_nerf.pipelines.checkpoints import read_checkpoint
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.methods import METHODS, get_method, method_of
from mnif_nerf.pipelines.model_folder import read_model
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.pipelines.run_settings import dump_settings, read_config, update_settings

COUNTS = {"train": 6, "val": 3, "test": 3}
RADIANCE, VOXEL, IMAGE = "mnif-lite", "mnif-voxel-lite", "mnif-image-lite"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        RADIANCE: write_tiny_srn(folder / "scenes", scenes=4, views=5, resolution=16),
        VOXEL: write_tiny_shapes(folder / "shapes", COUNTS),
        IMAGE: write_tiny_pictures(folder / "pictures", COUNTS),
    }


def latest(run: Path) -> dict[str, Any]:
    return read_checkpoint(sorted((run / "nerfstudio_models").iterdir())[-1])


@pytest.mark.parametrize(("method", "own"), [(RADIANCE, {}), (VOXEL, {}), (VOXEL, DISTANCES), (IMAGE, {})])
def test_a_run_of_every_modality(
    data: dict[str, Path], tmp_path: Path, method: str, own: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"pipeline.train_prior": True, "pipeline.prior_steps": 5, "steps_per_eval_all_images": 6, **own}
    run = TrainingRun(tiny_settings(data[method], tmp_path, 12, method=method, **changes)).train()
    assert run == tmp_path / "tiny" / method / "run"
    said = capsys.readouterr().out
    assert "step 6: PSNR" in said
    assert f"mnif-sample --load-config {run / 'config.yml'}" in said
    model = read_model(run / "model")
    assert model.prior is not None
    assert model.training["finished"] is True
    assert model.training["steps"] == 12
    assert torch.equal(model.latents, latest(run)["pipeline"]["_model.latents.weight"])
    assert not list(run.glob(".*")), "temporary files are left"


def test_voxels_are_learned_by_their_distances(data: dict[str, Path], tmp_path: Path) -> None:
    """The small method as it is: boxes come back at another resolution, unseen ones are fitted."""
    sizes = {
        "pipeline.model.width": 24,
        "pipeline.model.num_bases": 8,
        "pipeline.datamanager.instances_per_step": 6,
        "pipeline.datamanager.points_per_instance": 256,
        "pipeline.fit_steps": 100,
        "pipeline.fit_points": 256,
    }
    run = TrainingRun(tiny_settings(data[VOXEL], tmp_path, 400, method=VOXEL, **DISTANCES, **sizes)).train()
    pipe = MNIFPipeline.from_pretrained(run / "model")
    assert pipe.model.field.spec.head == "distance"
    boxes = [np.load(path) for path in sorted((data[VOXEL] / "train").glob("*.npy"))]
    for item, cells in zip((pipe.instance(index) for index in range(len(boxes))), boxes):
        for rebuilt, truth in (
            (item.occupancy(12), cells),
            (item.occupancy(24), cells.repeat(2, 0).repeat(2, 1).repeat(2, 2)),
        ):
            assert (rebuilt & truth).sum() / (rebuilt | truth).sum() > 0.85
    unseen = np.load(next((data[VOXEL] / "test").glob("*.npy")))
    (found,) = pipe.encode(unseen)
    average = pipe.decode(pipe.latents.mean(dim=0)).occupancy(12)
    ious = [(unseen & other).sum() / (unseen | other).sum() for other in (found.occupancy(12), average)]
    assert ious[0] > ious[1]


@pytest.mark.parametrize(("method", "kl"), [(RADIANCE, 0.0), (RADIANCE, 1e-4), (VOXEL, 0.0)])
def test_resume_equals_an_uninterrupted_run(data: dict[str, Path], tmp_path: Path, method: str, kl: float) -> None:
    def train(name: str, **changes: Any) -> Path:
        changes = {"pipeline.model.latent_kl": kl, **changes}
        return TrainingRun(tiny_settings(data[method], tmp_path, 12, name, method, **changes)).train()

    straight, first = train("straight"), train("first", max_num_iterations=6)
    if kl:
        with pytest.raises(MNIFError, match="latents are Gaussians; pass a `latent_kl` above 0"):
            train("points", load_dir=first / "nerfstudio_models", **{"pipeline.model.latent_kl": 0.0})
    second = train("second", load_dir=first / "nerfstudio_models")
    ours, theirs = latest(second), latest(straight)
    for name, value in theirs["pipeline"].items():
        assert (
            value == ours["pipeline"][name] if isinstance(value, dict) else torch.equal(value, ours["pipeline"][name])
        )
    assert ours["schedulers"] == theirs["schedulers"]
    assert [part["step"] for part in (ours, theirs)] == [11, 11]


@pytest.mark.parametrize("method", [RADIANCE, IMAGE])
def test_nerfstudio_takes_the_same_steps_and_goes_on_with_the_run(
    data: dict[str, Path], tmp_path: Path, method: str
) -> None:
    """A run of one command is continued, viewed and evaluated by the other."""
    pytest.importorskip("nerfstudio")
    from nerfstudio.utils.eval_utils import eval_setup
    from nerfstudio_runs import Run, same, tiny_config

    ours = TrainingRun(tiny_settings(data[method], tmp_path / "ours", 12, method=method)).train()
    theirs = Run(tiny_config(data[method], tmp_path / "theirs", 12, method=method))
    for part in ("pipeline", "optimizers", "schedulers"):
        assert same(latest(ours)[part], theirs.checkpoint()[part]), part
    config, pipeline, _, step = eval_setup(ours / "config.yml")
    assert (config.method_name, step) == (method, 11)
    assert pipeline.get_average_eval_image_metrics()["psnr"] > 0
    longer = Run(
        tiny_config(
            data[method], tmp_path / "on", 12, method=method, max_num_iterations=14, load_dir=ours / "nerfstudio_models"
        )
    )
    assert sorted(longer.losses) == [12, 13]
    back = tiny_settings(data[method], tmp_path / "back", 12, method=method, max_num_iterations=16)
    back.load_dir = longer.checkpoints
    assert latest(TrainingRun(back).train())["step"] == 15


def test_settings_survive_the_config_file(data: dict[str, Path], tmp_path: Path) -> None:
    settings = tiny_settings(data[VOXEL], tmp_path, method=VOXEL, **{"pipeline.model.family": "finer"})
    settings.optimizers["fields"]["optimizer"].lr = 0.25
    (tmp_path / "config.yml").write_text(dump_settings(settings))
    values = read_config(tmp_path / "config.yml")
    found = get_method(values["method_name"]).new_run()
    update_settings(found, values)
    found.load_dir = settings.load_dir
    assert found == settings


def test_an_old_configuration_of_nerfstudio_gives_the_settings(data: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("nerfstudio")
    from nerfstudio_runs import tiny_config

    config = tiny_config(data[RADIANCE], tmp_path)
    config.optimizers["latents"]["optimizer"].lr = 0.125
    config.save_config()
    settings = get_method(RADIANCE).new_run()
    update_settings(settings, read_config(config.get_base_dir() / "config.yml"))
    assert settings.pipeline.model.width == 8
    assert settings.optimizers["latents"]["optimizer"].lr == 0.125
    assert settings.optimizers["fields"]["optimizer"].betas == (0.9, 0.99)
    assert settings.pipeline.datamanager.data == data[RADIANCE]
    assert settings.machine.seed == config.machine.seed


def test_ctrl_c_says_how_to_go_on(data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, steps = Stage1Trainer.steps, iter(range(100))

    def interrupted(trainer: Any, first: int, count: int) -> Any:
        if next(steps) == 11:
            raise KeyboardInterrupt
        return original(trainer, first, count)

    monkeypatch.setattr(Stage1Trainer, "steps", interrupted)
    settings = tiny_settings(data[VOXEL], tmp_path, method=VOXEL, steps_per_save=8)
    with pytest.raises(SystemExit, match=r"interrupted at step 10; .*step-000000008\.ckpt is kept.*--load-dir"):
        TrainingRun(settings).train()
    assert (settings.run_folder() / "model" / "field.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pipeline.datamanager.data": Path("nowhere")}, "nowhere: no such folder"),
        ({"load_dir": Path("nowhere")}, "no checkpoint in it"),
        ({"load_checkpoint": Path("nowhere.ckpt")}, "nowhere.ckpt: no such checkpoint"),
        ({"machine.num_devices": 2}, "`num_devices` is 2, but this is one process alone"),
        ({"pipeline.config_version": 99}, "format 99"),
        ({"pipeline.model.family": "magic"}, "magic"),
    ],
)
def test_a_mistake_is_one_sentence(data: dict[str, Path], tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MNIFError, match=words) as caught:
        TrainingRun(tiny_settings(data[VOXEL], tmp_path, method=VOXEL, **changes)).train()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_instances_is_refused(data: dict[str, Path], tmp_path: Path) -> None:
    run = TrainingRun(tiny_settings(data[VOXEL], tmp_path, 2, method=VOXEL)).train()
    other = write_tiny_shapes(tmp_path / "other", {"train": 4})
    settings = tiny_settings(other, tmp_path, 4, "other", VOXEL, load_dir=run / "nerfstudio_models")
    with pytest.raises(MNIFError, match=r"holds 6 instances, and .* holds 4 others"):
        TrainingRun(settings)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(MNIFError, match="cannot be read"):
        read_config(tmp_path / "none.yml")
    for text in ("a: [", "just words", "{a: 1}"):
        (tmp_path / "config.yml").write_text(text)
        with pytest.raises(MNIFError, match=r"config\.yml"):
            read_config(tmp_path / "config.yml")


def test_every_modality_has_a_small_and_a_large_method() -> None:
    from mnif_nerf import modalities

    for name in modalities.names():
        for size in ("", "-lite"):
            method = method_of(name, size)
            assert METHODS[method.name] is method
            assert method.settings.pipeline.datamanager.modality == name
    with pytest.raises(MNIFError, match="no method"):
        method_of("smell")
    with pytest.raises(MNIFError, match="not known"):
        get_method("mnif-smell")


PROGRAM = (
    WITHOUT_NERFSTUDIO
    + """
from mnif_nerf.cli.train import entrypoint
sys.argv[0] = "mnif-train"
entrypoint()
"""
)


def test_the_command_works_with_nerfstudio_blocked(data: dict[str, Path], tmp_path: Path) -> None:
    words = ["mnif-image-lite", "--data", str(data[IMAGE]), "--output-dir", str(tmp_path), "--timestamp", "run"]
    words += [
        "--max-num-iterations",
        "4",
        "--pipeline.datamanager.instances-per-step",
        "4",
        "--pipeline.prior-steps",
        "3",
    ]
    words += ["--pipeline.model.width", "8", "--pipeline.threads", "1", "--machine.device-type", "cpu"]
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "mnif-sample --load-config" in done.stdout
    model = read_model(tmp_path / "pictures" / "mnif-image-lite" / "run" / "model")
    assert model.field.spec.width == 8
    bad = [*command[:3], "mnif-image-lite", "--data", str(tmp_path / "nowhere")]
    failed = subprocess.run(bad, capture_output=True, text=True, timeout=120, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr
