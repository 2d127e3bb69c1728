"""Radiance fields by meta-learning under nerfstudio, and old runs, which know auto-decoding alone."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("nerfstudio")

from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio_runs import Run, same, tiny_config
from tiny_srn import write_tiny_srn

from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.pipelines.model_folder import read_model
from mnif_nerf.rendering.radiance_losses import radiance_losses

META = {"pipeline.adaptation": "meta-learning"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_srn(tmp_path_factory.mktemp("data"), scenes=4, views=5, resolution=16)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    changes = {"steps_per_save": 8, "steps_per_eval_all_images": 8, "steps_per_eval_image": 8, **META}
    return Run(tiny_config(data, tmp_path_factory.mktemp("run"), **changes))


def load(run: Run, test_mode: Any = "test", **changes: Any) -> Any:
    def change(config: Any) -> Any:
        for path, value in changes.items():
            setattr(config.pipeline, path, value)
        return config

    return eval_setup(run.folder / "config.yml", test_mode=test_mode, update_config_callback=change)[1]


def test_checkpoint_and_model_folder(run: Run) -> None:
    state = run.checkpoint()
    assert state["optimizers"].keys() == {"fields", "projection", "inner_rates"}
    latents = state["pipeline"]["_model.latents.weight"]
    assert latents.shape == (4, 4)
    assert (latents != 0).all()
    model = read_model(run.folder / "model")
    assert model.modality == "radiance"
    assert torch.equal(model.latents, latents)
    assert model.adaptation["method"] == "meta-learning"
    assert model.cells is not None
    assert model.rates is not None
    assert model.training["rays_per_scene"] == 16


def test_resume_equals_an_uninterrupted_run(data: Path, run: Run, tmp_path: Path) -> None:
    first = Run(tiny_config(data, tmp_path, name="first", **{"max_num_iterations": 10, **META}))
    second = Run(tiny_config(data, tmp_path, name="second", **{"load_dir": first.checkpoints, **META}))
    assert {**first.losses, **second.losses} == run.losses
    assert same(second.checkpoint()["pipeline"], run.checkpoint()["pipeline"])


@pytest.mark.parametrize("changes", [{}, {"pipeline.first_order": True}, {"pipeline.model.latent_noise": 0.01}])
def test_training_learns(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    losses = Run(tiny_config(data, tmp_path, steps=150, **{**META, **changes})).losses
    first, last = (sum(losses[s] for s in part) / 10 for part in (range(10), range(140, 150)))
    assert last < 0.6 * first


def test_latents_are_those_of_the_inner_loop_one_by_one(run: Run) -> None:
    pipeline = load(run, test_mode="val")
    model, losses = pipeline.model, pipeline.model.config.loss_config()
    for scene in range(4):
        rays, code = pipeline.datamanager.source.fixed(torch.tensor([scene])), torch.zeros(1, 4)
        assert rays.rgb.shape == (1, 32, 3)
        for _ in range(3):
            code = code.detach().requires_grad_(True)
            loss = torch.stack(
                list(radiance_losses(partial(model.field.evaluate, code), rays, losses, head="radiance").values())
            ).sum()
            (gradient,) = torch.autograd.grad(loss, code)
            code = code - model.meta.inner_lr * model.stage1.inner_rates().detach() * gradient
        torch.testing.assert_close(model.latents.weight[scene], code[0].detach(), atol=1e-6, rtol=1e-3)


def test_the_batch_changes_no_latent(run: Run) -> None:
    pipeline = load(run, test_mode="val")
    before = pipeline.model.latents.weight.clone()
    for size in (1, 3):
        trainer = pipeline.new_trainer(OptimizerGroups({}, {}, {}, {}))
        trainer.encode_batch, trainer._stale = size, True
        pipeline.model.latents.weight.zero_()
        pipeline.refresh_latents()
        torch.testing.assert_close(pipeline.model.latents.weight, before, atol=1e-6, rtol=1e-4)


def test_rays_of_an_instance_do_not_depend_on_the_others(run: Run) -> None:
    manager = load(run, test_mode="val").datamanager.source
    together = manager.fixed(torch.tensor([2, 0, 3]))
    for row, scene in enumerate((2, 0, 3)):
        alone = manager.fixed(torch.tensor([scene]))
        assert all(torch.equal(getattr(alone, name)[0], value[row]) for name, value in vars(together).items())


def test_losses_of_the_instances_have_the_losses_as_their_mean(run: Run) -> None:
    pipeline = load(run, test_mode="val")
    rays, losses = pipeline.datamanager.source.draw(3), pipeline.model.config.loss_config()
    evaluate = partial(pipeline.model.field.evaluate, torch.randn(2, 4))
    means = radiance_losses(evaluate, rays, losses, torch.Generator().manual_seed(0), head="radiance")
    each = radiance_losses(evaluate, rays, losses, torch.Generator().manual_seed(0), reduce=False, head="radiance")
    assert means.keys() == each.keys() == {"rgb", "mask", "carve"}
    for name, value in each.items():
        assert value.shape == (2,)
        torch.testing.assert_close(value.mean(), means[name])


def test_all_inner_steps_see_the_same_jitter(run: Run) -> None:
    pipeline = load(run, test_mode="val")
    rays, codes = pipeline.datamanager.source.draw(0), torch.zeros(2, 4)
    objective = pipeline.model.stage1.objective(rays, 5)
    assert torch.equal(objective.losses(codes), objective.losses(codes))
    assert not torch.equal(objective.losses(codes), pipeline.model.stage1.objective(rays, 6).losses(codes))


def test_second_order_gradients_are_those_of_the_loss_after_adaptation(run: Run) -> None:
    """Against finite differences in float64 of a weight, the projection and a rate."""
    pipeline = load(run, test_mode="val")
    model = pipeline.model.double()
    rays = pipeline.datamanager.source.draw(0)
    for name, value in vars(rays).items():
        if value.is_floating_point():
            setattr(rays, name, value.double())
    model.stage1.inner_rates.rates.data.fill_(0.9)

    def loss() -> torch.Tensor:
        return torch.stack(list(model.stage1(rays, 3)["losses"].values())).sum()

    model.zero_grad()
    loss().backward()
    for parameter in (model.field.bases[1], model.field.projection.weight, model.stage1.inner_rates.rates):
        place = int(parameter.grad.abs().flatten().argmax())
        flat, expected = parameter.data.view(-1), float(parameter.grad.flatten()[place])
        values = []
        for step in (1e-5, -2e-5):
            flat[place] += step
            values.append(float(loss()))
        flat[place] += 1e-5
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-4)


def test_unseen_scenes_get_their_codes_by_the_inner_loop(run: Run) -> None:
    pipeline = load(run, eval_mode="unseen-scenes")
    assert pipeline.get_average_eval_image_metrics(step=0)["psnr"] > 0
    codes = pipeline.evaluation.latents_of_unseen(pipeline.model.stage1)
    assert codes.shape == (2, 4)
    assert bool((codes != 0).any())


def test_networks_that_diverge_are_told_by_the_inner_loop(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, steps=3, **META)
    config.optimizers["fields"]["optimizer"].lr = 1e38
    with pytest.raises(SystemExit, match=r"^error: the inner loop diverged.*or the learning rate of the networks\.$"):
        Run(config)


def test_an_inner_loop_that_leads_upwards_is_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnif_nerf.latents import watch

    monkeypatch.setattr(watch, "_STEPS_BETWEEN_CHECKS", 4)
    config = {**META, "pipeline.model.init": "authors"}  # codes then move the coefficients far
    Run(tiny_config(data, tmp_path, steps=3, **{**config, "pipeline.inner_lr": 1e5}))
    assert re.search(r"lower \S*inner.lr\S* \(now 100000\)", capsys.readouterr().out)
    Run(tiny_config(data, tmp_path, steps=3, name="small", **{**config, "pipeline.inner_lr": 1e-3}))
    assert "inner loop raises" not in capsys.readouterr().out


def test_the_other_adaptation_is_refused(data: Path, run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="trained by meta-learning, the configuration says auto-decoding"):
        Run(tiny_config(data, tmp_path, **{"load_dir": run.checkpoints}))
    plain = Run(tiny_config(data, tmp_path / "plain", steps=2))
    with pytest.raises(SystemExit, match=r"pass --pipeline\.adaptation auto-decoding"):
        Run(tiny_config(data, tmp_path, **{**META, "load_dir": plain.checkpoints}))


def test_runs_of_version_0_1_0_load(data: Path, tmp_path: Path) -> None:
    """Their checkpoints and configurations say nothing of heads and adaptation."""
    plain = Run(tiny_config(data, tmp_path, steps=3))
    path = sorted(plain.checkpoints.iterdir())[-1]
    state = plain.checkpoint()
    extra = state["pipeline"]["_model._extra_state"]
    assert extra.pop("adaptation") == "auto-decoding"
    assert extra["field"].pop("head") == "radiance"
    torch.save(state, path)
    config = plain.folder / "config.yml"
    new = ("adaptation", "inner_steps", "inner_lr", "first_order", "encode_batch", "encode_rays_per_scene")
    lines = [
        line for line in config.read_text().splitlines() if not line.strip().startswith(tuple(f"{n}:" for n in new))
    ]
    config.write_text("\n".join(lines))
    pipeline = load(plain)
    assert pipeline.model.stage1.adaptation == "auto-decoding"
    assert pipeline.get_average_eval_image_metrics()["psnr"] > 0
    resumed = Run(tiny_config(data, tmp_path, steps=5, name="on", **{"load_dir": plain.checkpoints}))
    assert sorted(resumed.losses) == [3, 4]
