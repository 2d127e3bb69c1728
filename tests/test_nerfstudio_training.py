"""Training under nerfstudio: checkpoints, exact resume, what a run leaves, users' mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("nerfstudio")

from nerfstudio_runs import Run, same, tiny_config
from tiny_srn import write_tiny_srn

from mnif_nerf.latents.checkpoint import names_in


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_srn(tmp_path_factory.mktemp("data"), scenes=4, views=5, resolution=16)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    changes = {"steps_per_save": 8, "steps_per_eval_all_images": 8, "steps_per_eval_image": 8}
    return Run(tiny_config(data, tmp_path_factory.mktemp("straight"), **changes))


def test_checkpoint_reads_with_weights_only_and_holds_all_that_a_resume_needs(straight: Run) -> None:
    state = straight.checkpoint()
    assert state["step"] == 19
    assert state["optimizers"].keys() == {"fields", "projection", "latents"}
    assert state["pipeline"]["_model.latents.weight"].shape == (4, 4)
    assert list(names_in(state["pipeline"]["_model._extra_state"])) == [f"scene{i:03d}" for i in range(4)]
    assert state["optimizers"]["latents"]["state"][0]["row_steps"].sum() == 20 * 2
    assert [type(rate) for rate in state["schedulers"]["fields"]["_last_lr"]] == [float]


def test_resume_equals_an_uninterrupted_run(data: Path, straight: Run, tmp_path: Path) -> None:
    first = Run(tiny_config(data, tmp_path, steps=20, name="first", **{"max_num_iterations": 10}))
    assert sorted(first.losses) == list(range(10))
    second = Run(tiny_config(data, tmp_path, steps=20, name="second", **{"load_dir": first.checkpoints}))
    assert sorted(second.losses) == list(range(10, 20))
    assert {**first.losses, **second.losses} == straight.losses
    ours, theirs = second.checkpoint(), straight.checkpoint()
    for part in ("pipeline", "optimizers", "schedulers"):
        assert same(ours[part], theirs[part]), part


def test_resuming_a_finished_run_takes_no_step_and_keeps_it(data: Path, straight: Run, tmp_path: Path) -> None:
    again = Run(tiny_config(data, tmp_path, **{"load_dir": straight.checkpoints}))
    assert again.losses == {}
    assert [path.name for path in again.checkpoints.iterdir()] == ["step-000000019.ckpt"]
    assert same(again.checkpoint()["pipeline"], straight.checkpoint()["pipeline"])


def test_ctrl_c_keeps_the_last_checkpoint_and_resume_goes_on(
    data: Path, straight: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnif_nerf.latents.model import Stage1Model

    original = Stage1Model.forward
    steps = iter(range(100))

    def interrupted(model: Any, *args: Any) -> Any:
        if next(steps) == 11:
            raise KeyboardInterrupt
        return original(model, *args)

    config = tiny_config(data, tmp_path, **{"steps_per_save": 8})
    with monkeypatch.context() as patch:
        patch.setattr(Stage1Model, "forward", interrupted)
        with pytest.raises(SystemExit, match=r"step-000000008\.ckpt is kept") as caught:
            Run(config)
    assert f"--load-dir {config.get_checkpoint_dir()}" in str(caught.value)
    assert (config.get_base_dir() / "model" / "field.safetensors").is_file()
    resumed = Run(tiny_config(data, tmp_path, name="on", **{"load_dir": config.get_checkpoint_dir()}))
    assert resumed.losses == {step: straight.losses[step] for step in range(9, 20)}


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_the_data_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnif_nerf.data.stores import packing

    data = write_tiny_srn(tmp_path / "data", scenes=2, views=4, resolution=16)
    with monkeypatch.context() as patch:
        patch.setattr(packing.GrowingArray, "append", interrupt)
        with pytest.raises(SystemExit, match="interrupted before the first step"):
            Run(tiny_config(data, tmp_path / "out", steps=2))
    assert not (data / ".mnif" / "train").exists()
    assert len(Run(tiny_config(data, tmp_path / "out", steps=2)).losses) == 2


def test_ctrl_c_while_the_prior_is_trained_keeps_the_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnif_nerf.pipelines.model_folder import read_model
    from mnif_nerf.priors.prior import LatentPrior

    monkeypatch.setattr(LatentPrior, "fit", interrupt)
    config = tiny_config(data, tmp_path, steps=3, **{"pipeline.train_prior": True})
    with pytest.raises(SystemExit, match=r"mnif-train-prior --load-config .*config\.yml"):
        Run(config)
    model = read_model(config.get_base_dir() / "model")
    assert model.prior is None
    assert model.training["finished"] is True


def test_training_learns(data: Path, tmp_path: Path) -> None:
    losses = Run(tiny_config(data, tmp_path, steps=150)).losses
    first, last = (sum(losses[s] for s in part) / 10 for part in (range(10), range(140, 150)))
    assert last < 0.6 * first


def test_latents_and_bases_move_each_at_its_own_rate(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, steps=3)
    for group in config.optimizers.values():
        group["scheduler"] = None
    config.optimizers["latents"]["optimizer"].lr = 0.0
    state = Run(config).checkpoint()["pipeline"]
    assert state["_model.latents.weight"].abs().max() == 0  # they start at zero and were not to move
    assert state["_model.field.projection.weight"].abs().max() > 0


def test_model_folder_is_written(straight: Run) -> None:
    from safetensors.torch import load_file

    from mnif_nerf.files import read_json

    folder = straight.folder / "model"
    config = read_json(folder / "config.json")
    assert config["names"] == [f"scene{i:03d}" for i in range(4)]
    assert config["training"]["finished"] is True
    assert config["training"]["steps"] == 20
    latents = load_file(folder / "latents.safetensors")["latents"]
    assert torch.equal(latents, straight.checkpoint()["pipeline"]["_model.latents.weight"])
    cells = load_file(folder / "bounds.safetensors")["cells"]
    assert 0 < cells.float().mean() < 1
    assert not list(straight.folder.glob(".*")), "temporary files are left"


def test_prior_is_trained_at_the_end(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mnif_nerf.priors.prior import LatentPrior

    run = Run(tiny_config(data, tmp_path, steps=4, **{"pipeline.train_prior": True, "pipeline.prior_steps": 5}))
    prior = LatentPrior.load(run.folder / "model" / "prior")
    assert prior.sample(3, seed=0).shape == (3, 4)
    assert "mnif-sample --load-config" in capsys.readouterr().out


def test_evaluation_is_logged(straight: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight.folder))
    events.Reload()
    averages = events.Scalars("Eval Images Metrics Dict (all images)/psnr")
    assert [event.step for event in averages] == [8, 16]
    assert 3 < averages[-1].value < 40
    assert events.Tags()["images"]
    assert [event.step for event in events.Scalars("learning_rate/fields")] == [0]  # steps_per_log is 100


def test_unseen_scenes_are_fitted_not_looked_up(data: Path, tmp_path: Path) -> None:
    changes = {
        "pipeline.eval_mode": "unseen-scenes",
        "steps_per_eval_all_images": 2,
        "steps_per_eval_batch": 2,
    }
    run = Run(tiny_config(data, tmp_path, steps=4, **changes))
    assert len(run.losses) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pipeline.datamanager.data": Path("nowhere")}, "nowhere: no such folder"),
        ({"load_dir": Path("nowhere")}, "no checkpoint in it"),
        ({"pipeline.config_version": 99}, "format 99"),
        ({"pipeline.model.coefficients": "per-moon"}, "per-moon"),
        ({"pipeline.datamanager.dataparser.scene": "scene999"}, "no such scene"),
        ({"pipeline.datamanager.rays_per_scene": 0}, "at least 1"),
    ],
)
def test_a_mistake_is_one_sentence(data: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SystemExit, match=words) as caught:
        Run(tiny_config(data, tmp_path, **changes))
    assert str(caught.value).startswith("error: ")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_shape_data_or_version_is_refused(data: Path, straight: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="width 8, here 16"):
        Run(tiny_config(data, tmp_path / "a", **{"load_dir": straight.checkpoints, "pipeline.model.width": 16}))
    other = write_tiny_srn(tmp_path / "other", scenes=2, views=4, resolution=16)
    with pytest.raises(SystemExit, match="holds 4 instances"):
        Run(tiny_config(other, tmp_path / "b", **{"load_dir": straight.checkpoints}))
    state = straight.checkpoint()
    state["pipeline"]["_model._extra_state"]["version"] = 7
    (tmp_path / "c").mkdir()
    torch.save(state, tmp_path / "c" / "step-000000019.ckpt")
    with pytest.raises(SystemExit, match="format 7"):
        Run(tiny_config(data, tmp_path / "d", **{"load_dir": tmp_path / "c"}))
    (tmp_path / "c" / "step-000000020.ckpt").write_bytes(b"PK\x03\x04 half a checkpoint")
    with pytest.raises(SystemExit, match="cannot be loaded"):
        Run(tiny_config(data, tmp_path / "e", **{"load_dir": tmp_path / "c"}))


def test_diverged_training_is_told(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, steps=3)
    config.optimizers["latents"]["optimizer"].lr = 1e30
    with pytest.raises(SystemExit, match="diverged"):
        Run(config)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_full_disk_keeps_the_last_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    import errno

    calls, original = [], torch.save

    def save(state: dict[str, Any], file: Any) -> None:
        calls.append(state["step"])
        if len(calls) > 1:
            file.write(b"half")
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            finally:
                if hidden:  # as torch does, which still wants to write the end of the file
                    raise RuntimeError("unexpected pos 54592 vs 54544")
        original(state, file)

    monkeypatch.setattr(torch, "save", save)
    config = tiny_config(data, tmp_path, steps=10, **{"steps_per_save": 4})
    with pytest.raises(SystemExit, match="disk is full"):
        Run(config)
    assert [path.name for path in config.get_checkpoint_dir().iterdir()] == ["step-000000004.ckpt"]
    assert not (config.get_base_dir() / ".checkpoint.tmp").exists()
