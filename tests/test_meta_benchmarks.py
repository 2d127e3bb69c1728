"""The benchmarks of meta-learning: the same step as the recipe's, the counting, and small runs of the scripts."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import adaptation
import adaptation_tasks
import meta_recipe
import meta_step
from recipe import RecipeField
from test_benchmarks import LocalWorker

from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.meta import adapt

# --- the step --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_order", [False, True])
def test_our_step_is_the_recipes(first_order: bool) -> None:
    found = meta_step.Agreement(True, 3, 40, first_order, "cpu", seed=1).compare()
    single, double = found["float32"], found["float64"]
    assert double["error"] < 1e-11
    assert double["gradients"] < 1e-10
    assert single["error"] < 1e-3  # w0 = 50, three steps: rounding grows, as the float64 numbers show
    assert single["gradients"] < 5e-3
    # What is compared is not trivial: leaving the second order out would show.
    assert (double["second_order"] > 0.1) == (not first_order)


def test_full_shape_agrees_in_float32() -> None:
    found = meta_step.Agreement(False, 2, 64, False, "cpu", seed=0)._compare(torch.float32)
    assert found["error"] < 1e-4
    assert found["gradients"] < 1e-3
    assert found["second_order"] > 0.1


def test_both_steps_move_the_networks_alike() -> None:
    data, field = meta_step.ellipsoids(3, 30, 2, torch.float64), meta_step.shape(small=True)
    ours = meta_step.OurStep(meta_step.field_spec(field), data, False, 4)
    theirs = meta_step.RecipeStep(field, data, False, 4, start_std=0.0)
    errors = [(float(ours.step()), float(theirs.step())) for _ in range(3)]
    for mine, reference in errors:
        assert mine == pytest.approx(reference, rel=1e-6)
    assert errors[2][1] != errors[0][1]
    moved = theirs.trainer.field.projection.weight
    torch.testing.assert_close(ours.field.projection.weight, moved, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.rates.rates, theirs.trainer.rates, rtol=1e-6, atol=1e-9)


def test_recipe_has_the_size_of_the_paper() -> None:
    field = RecipeField(meta_recipe.SHAPENET_S)
    assert sum(p.numel() for p in field.parameters()) + meta_recipe.SHAPENET_S.latent_dim == 5_130_496
    assert meta_step.field_spec(meta_recipe.SHAPENET_S).parameters_per_instance == 16_961


def test_recipe_starts_near_zero_and_ends_in_a_sine() -> None:
    trainer = meta_recipe.MetaRecipe(meta_step.shape(small=True), seed=0)
    points = 2 * torch.rand(2, 20, 3) - 1
    values = trainer.field(torch.zeros(2, 5), points).detach()
    assert values.shape == (2, 20, 1)
    assert float(values.abs().max()) <= 1
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    assert math.isfinite(float(trainer.step(points, torch.ones(2, 20, 1))))
    lr = trainer.config.lr
    for old, new in zip(before, trainer.parameters):
        assert not torch.equal(old, new)
        assert float((old - new.detach()).abs().max()) <= 1.01 * lr  # AdamW without decay: a first step of one rate


def test_ellipsoids_are_shapes_on_the_grid() -> None:
    batch = meta_step.ellipsoids(4, 500, 0)
    assert batch.points.shape == (4, 3, 500)
    assert set(batch.targets.unique().tolist()) == {-1.0, 1.0}
    assert float(batch.points.abs().max()) <= 1 - 1 / 64
    share = (batch.targets > 0).float().mean()
    assert 0.01 < float(share) < 0.6
    torch.testing.assert_close(meta_step.ellipsoids(4, 500, 0).points, batch.points)


def test_units_by_hand() -> None:
    # loss and gradient: forward, points, weights; a Hessian-vector product: two of each, or with the rest again 8
    assert meta_step.layer_units(first_order=True) == 4 * 3
    assert meta_step.layer_units(first_order=False) == 4 * 3 + 3 * 6
    assert meta_step.layer_units(first_order=False, computed_again=True) == 4 * 3 + 3 * 8
    assert meta_step.mixing_units(first_order=False) == 7 + 2 * 7
    assert meta_step.mixing_units(first_order=True) == 7 + 2
    spec = meta_step.field_spec(meta_step.shape(small=True))  # 3 layers: 24 + 64 + 8 products, 113 parameters
    mixing = 2 * (6 * 113 + 5 * 6 * 3)
    assert meta_step.step_gflop(spec, 2, 10, True) == pytest.approx(2 * (12 * 2 * 10 * 96 + 9 * mixing) / 1e9)


def test_meta_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(meta_step, "Worker", LocalWorker)
    output = tmp_path / "out.json"
    config = meta_step.Config(batches=(2, 3), rounds=2, seconds=0.0, threads=1, small=True, output=output)
    meta_step.main(config)
    shown = capsys.readouterr().out
    assert "| recipe | 2 | 1/1 |" in shown
    assert "30 forward passes' worth" in shown
    results = json.loads(output.read_text())["results"]
    ours = results["batches"]["3"]["ours"]
    assert len(ours["wall"]) == len(ours["cpu"]) == 2
    assert min(ours["wall"]) > 0
    assert results["agreement"]["float64"]["gradients"] < 1e-10
    meta_step.main(dataclasses.replace(config, batches=(2,), rounds=1, first_order=True, output=None))
    assert "### Meta-learning step, first order" in capsys.readouterr().out


def test_a_worker_of_the_step_counts_its_own_memory() -> None:
    from worker import Worker

    size = {"small": False, "batch": 1, "points": 16, "first_order": True, "device": "cpu", "seed": 0}
    with Worker("meta_step:Stepper", {"who": "ours", **size}) as process:
        process.call("start", threads=1)
        memory = process.call("memory_of_steps")
    # Gradients and AdamW's two moments of 5.1 million numbers are 59 MiB; less, where they find freed memory.
    assert memory["added"] == pytest.approx(memory["peak"] - memory["before"])
    assert 20 < memory["added"] < 400


# --- the two ways ----------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_lite_method() -> None:
    """Those of voxels and images are forms that both ways can learn; the methods of today are larger."""
    pytest.importorskip("nerfstudio")
    from mnif_nerf import configs

    config, settings = configs.mnif_lite.config, adaptation_tasks.SETTINGS["radiance"]
    model, manager = config.pipeline.model, config.pipeline.datamanager
    for name in ("width", "hidden_layers", "num_bases", "latent_dim", "coefficients", "init", "w0"):
        assert getattr(settings.field, name) == getattr(model, name), name
    assert settings.batch == manager.scenes_per_step
    assert settings.points == manager.rays_per_scene
    rates = {"fields": settings.field_lr, "projection": settings.field_lr}
    rates |= {"latents": settings.latent_lr, "inner_rates": settings.rates_lr}
    assert {name: part["optimizer"].lr for name, part in config.optimizers.items()} == rates


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, made = tmp_path_factory.mktemp("adaptation"), {}
    for modality, task in adaptation_tasks.TASKS.items():
        if modality == "image":
            pytest.importorskip("sklearn")
        settings = adaptation.chosen(modality, quick=True)
        data = adaptation_tasks.make_data(modality, settings, folder, seed=0)
        made[modality] = task(modality, settings, data, "cpu", 0)
    return {"folder": folder, **made}


@pytest.mark.parametrize("modality", ["voxel", "image", "radiance"])
def test_losses_of_instances_do_not_depend_on_one_another(tasks: dict[str, Any], modality: str) -> None:
    task = tasks[modality]
    assert task.counts == {"train": 4, "unseen": 2}
    codes = 0.1 * torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    instances, objective = task.draw(0)
    assert instances.shape == (2,)
    losses = objective.losses(codes)
    other = objective.losses(torch.stack([codes[0], codes[1] + 1]))
    assert losses.shape == (2,)
    torch.testing.assert_close(losses[0], other[0])
    assert float(losses[1].detach()) != float(other[1].detach())
    assert task.fitting(codes, 0).shape == (2,)


@pytest.mark.parametrize("modality", ["voxel", "image", "radiance"])
def test_codes_of_unseen_instances_fit_them_whatever_the_batch(tasks: dict[str, Any], modality: str) -> None:
    task = tasks[modality]
    rates = torch.full((3,), 0.1)
    objective = task.observed("unseen")(torch.arange(2))
    codes = adapt(objective, 2, rates)
    again = adapt(task.observed("unseen")(torch.arange(1)), 1, rates)
    with torch.no_grad():
        assert (objective.losses(codes) < objective.losses(torch.zeros(2, 3))).all()
    torch.testing.assert_close(again[0], codes[0], rtol=1e-3, atol=1e-5)
    scores = task.score("unseen", codes)
    assert all(math.isfinite(value) for value in scores.values())
    assert set(scores) == ({"iou", "accuracy", "psnr"} if modality == "voxel" else {"psnr"})


def test_training_lowers_the_loss_both_ways(tasks: dict[str, Any]) -> None:
    folder = str(next(tasks["folder"].glob("voxel*")))
    shared: dict[str, Any] = {"data": folder, "budget": 1e9, "inner_lr": 0.0, "inner_steps": 2, "threads": 1}
    shared |= {"device": "cpu", "seed": 0, "small": True}
    for method in adaptation.METHODS:
        run = adaptation.Run("voxel", method, **shared)
        losses = []
        for _ in range(150):
            run.step()
            losses.append(float(run.loss))
        assert sum(losses[-20:]) < 0.8 * sum(losses[:20]), method
        found = run.evaluate()
        assert found["new"] > 0
        assert 0 <= found["unseen"]["iou"] <= 1


def test_adaptation_runs(
    tasks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adaptation, "Worker", LocalWorker)
    output = tmp_path / "out.json"
    config = adaptation.Config(seconds=0.05, turn=0.05, small=True, cache=tasks["folder"], output=output)
    results = adaptation.main(config)
    assert set(results) == {"voxel", "image", "radiance"}
    for methods in results.values():
        assert set(methods) == set(adaptation.METHODS)
        assert all(found["steps"] > 0 for found in methods.values())
    shown = capsys.readouterr().out
    assert "| voxel | meta-learning, first order |" in shown
    assert json.loads(output.read_text())["benchmark"] == "Meta-learning against auto-decoding"
    with pytest.raises(MNIFError, match="choose one of voxel, image, radiance, or all"):
        adaptation.main(dataclasses.replace(config, modality="video"))
    with pytest.raises(MNIFError, match="must be positive"):
        adaptation.main(dataclasses.replace(config, seconds=0.0))
