"""The benchmarks: their baseline does what it says, our step is `ns-train`'s, and the scripts run (untimed)."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_srn import write_tiny_srn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import common
import recipe
import render as render_benchmark
import report
import scaling
import time_to_psnr
import train_step
import worker

from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays

TINY = dataclasses.replace(
    common.MNIF_LITE,
    width=12,
    hidden_layers=1,
    num_bases=4,
    latent_dim=3,
    scenes_per_step=2,
    rays_per_scene=24,
)
TINY_RECIPE = {"width": 8, "hidden_layers": 1, "num_bases": 3, "latent_dim": 2, "views": 2, "pixels": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tiny_srn(tmp_path_factory.mktemp("bench"), scenes=3, views=4, heldout_views=2, resolution=12)
    open_store(root, "train", progress=False)
    return root


class LocalWorker:
    """`worker.Worker` without the process, for speed: everything still goes through JSON."""

    def __init__(self, target: str, arguments: dict[str, Any]) -> None:
        module, name = target.split(":")
        self.subject = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))

    def call(self, method: str, **arguments: Any) -> Any:
        return json.loads(json.dumps(getattr(self.subject, method)(**json.loads(json.dumps(arguments)))))

    def memory(self) -> dict[str, float]:
        return worker.memory(0.0, 0.0)

    def __enter__(self) -> LocalWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass


# --- the recipe ------------------------------------------------------------------------------------------------


def test_recipe_mixes_like_the_mixture_field() -> None:
    config = recipe.RecipeConfig(width=8, hidden_layers=1, num_bases=5, latent_dim=4)
    theirs = recipe.RecipeField(config)
    ours = MixtureField(FieldSpec(width=8, hidden_layers=1, num_bases=5, latent_dim=4))
    with torch.no_grad():
        for rows, weight, bias in zip(ours.bases, theirs.weights, theirs.biases):
            rows.copy_(torch.cat([weight.flatten(1), bias], dim=1))
    ours.projection.load_state_dict(theirs.projection.state_dict())
    latents, points = torch.randn(2, 4), torch.rand(2, 7, 3) - 0.5
    torch.testing.assert_close(theirs(latents, points), ours(latents, points), rtol=1e-4, atol=1e-5)


def test_recipe_has_the_size_of_the_paper() -> None:
    field = recipe.RecipeField(recipe.RecipeConfig())
    assert sum(p.numel() for p in field.parameters()) == 4_590_080
    assert torch.equal(field.projection.bias, torch.full_like(field.projection.bias, 1 / 256))


def test_recipe_rays_reach_unit_depth() -> None:
    pose, camera = orbit_pose(30.0, 50.0), Intrinsics(9.0, 4.5, 3.5, 8, 10)
    origins, directions = recipe.view_rays(pose[None], camera)
    expected_origins, unit = pixel_rays(pose, camera)
    torch.testing.assert_close(origins[0], expected_origins)
    torch.testing.assert_close(directions[0] / directions[0].norm(dim=-1, keepdim=True), unit)
    torch.testing.assert_close(directions[0] @ pose[:3, 2], torch.ones(80))


def test_recipe_composites_by_hand() -> None:
    raw = torch.tensor([[0.5, -0.5, 0.0, 2.0], [1.0, 0.0, -1.0, -1.0]])  # 2 samples: colours, raw density
    depths, length = torch.tensor([0.8, 1.0]), torch.tensor(1.25)
    first = 1 - math.exp(-2.1 * 0.2 * 1.25)
    last = 1.0  # the endless interval: any density above zero is opaque
    expected = first * raw[0, :3] + (1 - first) * last * raw[1, :3]
    torch.testing.assert_close(recipe.render(raw, depths, length), expected)
    clear = torch.tensor([[0.5, -0.5, 0.0, 20.0]])  # density is clipped to 10
    torch.testing.assert_close(recipe.render(clear, torch.tensor([0.8]), length), clear[0, :3])


def test_recipe_step_moves_drawn_latents_by_plain_gradient_descent(data: Path) -> None:
    store = open_store(data, "train", progress=False)
    config = recipe.RecipeConfig(**TINY_RECIPE, scenes=2)
    trainer = recipe.RecipeTrainer(store, config, seed=3)
    trainer.latents.fill_(0.5)
    before = [p.detach().clone() for p in trainer.field.parameters()]
    trainer.step()
    drawn = torch.zeros(3, dtype=torch.bool)
    drawn[trainer._drawn] = True
    assert torch.equal(trainer.latents[~drawn], torch.full((1, 2), 0.5))
    moved = 0.5 - config.lr_latent * trainer._codes.grad
    torch.testing.assert_close(trainer.latents[trainer._drawn], moved)
    # The penalty alone would shrink 0.5 by 0.5e-4; the image's part is far smaller than that here.
    torch.testing.assert_close(moved, torch.full((2, 2), 0.5 * (1 - 1e-4)), rtol=0, atol=5e-5)
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.field.parameters()))
    trainer.step()  # the rest of the epoch: one scene
    assert len(trainer._drawn) == 1
    assert not drawn[trainer._drawn].any()


# --- our step --------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_nerfstudio_methods() -> None:
    pytest.importorskip("nerfstudio")
    from mnif_nerf import configs

    for method, registered in ((common.MNIF, configs.mnif), (common.MNIF_LITE, configs.mnif_lite)):
        config: Any = registered.config
        assert config.method_name == method.name
        model, manager = config.pipeline.model, config.pipeline.datamanager
        assert model.field_spec() == method.spec
        assert model.loss_config() == method.losses
        for name in ("latent_weight", "latent_noise", "latent_init_std", "grid_resolution"):
            assert getattr(model, name) == getattr(method, name), name
        for name in ("scenes_per_step", "rays_per_scene", "carve_points"):
            assert getattr(manager, name) == getattr(method, name), name
        rates = {"fields": method.field_lr, "projection": method.projection_lr, "latents": method.latent_lr}
        assert config.optimizers.keys() == {*rates, "inner_rates"}
        for group, rate in rates.items():
            optimizer, schedule = (config.optimizers[group][part] for part in ("optimizer", "scheduler"))
            assert (optimizer.lr, optimizer.eps, tuple(optimizer.betas)) == (rate, method.eps, method.betas)
            assert schedule.warmup_steps == method.warmup_steps
            assert schedule.final_fraction == method.final_fraction


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_losses_are_those_of_stage_1(data: Path, noise: float) -> None:
    from mnif_nerf.latents.model import Stage1Model
    from mnif_nerf.modalities.radiance_settings import RadianceModelSettings
    from mnif_nerf.modalities.radiance_training import RadianceTraining

    store = open_store(data, "train", progress=False)
    method = dataclasses.replace(TINY, latent_noise=noise)
    trainer = common.OurTrainer(store, method, seed=1)
    for _ in range(2):
        trainer.step()
    shape = {name: getattr(method, name) for name in ("width", "hidden_layers", "num_bases", "latent_dim")}
    settings, training = RadianceModelSettings(**shape, latent_noise=noise), RadianceTraining()
    spec = training.field_spec(settings, None)
    model = Stage1Model(spec, store.names, training.task(settings), settings.latents())
    model.field.load_state_dict(trainer.field.state_dict())
    model.latents.load_state_dict(trainer.latents.state_dict())
    batch = trainer.sampler.draw(5)
    theirs, ours = model(batch, 77)["losses"], trainer.losses(batch, 77)
    assert theirs.keys() == ours.keys() == {"rgb", "mask", "carve", "latent"}
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=name)


def test_our_trainer_learns_and_renders(data: Path) -> None:
    store = open_store(data, "train", progress=False)
    trainer = common.OurTrainer(store, dataclasses.replace(TINY, warmup_steps=5))
    errors = [float(trainer.step(k / 60)) for k in range(60)]
    assert np.mean(errors[-10:]) < 0.75 * np.mean(errors[:5])
    assert trainer.rays_per_step == 2 * 24
    assert trainer.points_per_step == 2 * (24 * 8 + 64)
    picture = trainer.render_view(1, orbit_pose(20.0, 30.0), Intrinsics.default(10))
    assert picture.shape == (10, 10, 3)
    assert 0.0 <= float(picture.min()) <= float(picture.max()) <= 1.0


def test_flops_by_hand() -> None:
    shapes = [(2, 3), (4, 2)]  # products of 6 and 8, 8 and 12 parameters
    by_hand = 2 * (100 * (2 * 6 + 3 * 8) + 3 * 7 * 5 * 20) / 1e9
    assert common.step_gflop(shapes, points=100, instances=7, bases=5) == pytest.approx(by_hand)


# --- tools -----------------------------------------------------------------------------------------------------


def test_tiled_store_repeats_scenes_in_memory_and_on_disk(data: Path, tmp_path: Path) -> None:
    base = open_store(data, "train", progress=False)
    common.write_tiles(base, 7, tmp_path)
    for store in (common.tiled_store(base, 7), common.tiled_store(base, 7, tmp_path)):
        assert (store.num_scenes, store.num_views) == (7, 28)
        for scene in range(7):
            (first, _), (origin, _) = store.view_range(scene), base.view_range(scene % 3)
            np.testing.assert_array_equal(store.images[first : first + 4], base.images[origin : origin + 4])
            np.testing.assert_array_equal(store.touching[first], base.touching[origin])
            np.testing.assert_array_equal(store.poses[first], base.poses[origin])
            np.testing.assert_array_equal(store.hull(scene), base.hull(scene % 3))
    assert isinstance(store.images, np.memmap)


def test_table_and_machine_line() -> None:
    table = report.markdown_table(["a", "b", "c"], [["x", 12345.6, None], ["y", 0.01234, 3]])
    lines = ["| a | b | c |", "|---|---:|---:|", "| x | 12,346 | - |", "| y | 0.0123 | 3 |"]
    assert table.splitlines() == lines
    line = report.machine_line(report.machine(seed=7))
    assert "seed 7; load at start" in line
    assert f"torch {torch.__version__.split('+')[0]}" in line


def test_worker_process_answers_and_tells_errors(data: Path) -> None:
    settings = {"method": "mnif-lite", "width": 8, "num_bases": 2}
    arguments = {"settings": settings, "data": str(data), "scenes": 3, "device": "cpu", "seed": 0}
    with worker.Worker("train_step:Stepper", arguments) as process:
        assert process.call("numbers")["rays"] == 3 * 64
        memory = process.memory()
        assert memory["peak"] > memory["added"] >= 0
        with pytest.raises(MNIFError, match="0 threads for the kernel"):
            process.call("set_threads", threads={"torch": 1, "kernel": 0})
        with pytest.raises(MNIFError, match="train_step:Stepper ended with code 0"):
            process.call("numbers")


# --- the scripts -----------------------------------------------------------------------------------------------


def test_train_step_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_step, "Worker", LocalWorker)
    monkeypatch.setattr(common, "small_cars", lambda *_, **__: data)
    output = tmp_path / "out.json"
    config = train_step.Config(
        scenes=4, recipe_views=1, recipe_pixels=32, rounds=1, seconds=0.0, threads=1, output=output, scale=16
    )
    train_step.main(config)
    shown = capsys.readouterr().out
    assert "| recipe, SRN-S | 1/1 | 8 | 256 |" in shown  # 4 scenes x 1 view x 2 pixels, 32 samples each
    results = json.loads(output.read_text())["results"]
    assert results["gemm"]["gflops"] > 0
    assert results["ours, lite (`mnif-lite`)"]["rays"] == 64


def test_time_to_psnr_runs(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(time_to_psnr, "Worker", LocalWorker)
    monkeypatch.setitem(common.METHODS, "mnif-lite", TINY)
    monkeypatch.setattr(time_to_psnr, "RecipeConfig", lambda **_: recipe.RecipeConfig(**TINY_RECIPE))
    config = time_to_psnr.Config(
        seconds=(0.1, 0.2), finish_each=True, data=data, eval_scenes=2, eval_views=1, turn=0.08
    )
    results = time_to_psnr.main(config)
    marks = results["ours (`mnif-lite`), one run"]["marks"]
    assert [mark["mark"] for mark in marks] == [0.1, 0.2]
    assert marks[0]["seconds"] >= 0.1
    assert marks[1]["steps"] > marks[0]["steps"] > 0
    assert math.isfinite(results["recipe"]["marks"][1]["psnr"])
    assert [mark["mark"] for mark in results["ours, a run of 0.1 s"]["marks"]] == [0.1]
    assert "| ours, a run of 0.1 s |" in capsys.readouterr().out
    with pytest.raises(MNIFError, match="positive and rising"):
        time_to_psnr.measure(dataclasses.replace(config, seconds=(2.0, 1.0)))


def test_render_runs_on_learned_cars_and_on_a_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_model import tiny_model

    from mnif_nerf.pipelines.model_folder import write_model

    monkeypatch.setattr(common, "small_cars", lambda *_, **__: data)
    monkeypatch.setattr(common, "MNIF", TINY)
    config = render_benchmark.Config(resolutions=(12,), objects=1, views=1, train_seconds=0.05, threads=1)
    rows = render_benchmark.main(config)
    assert [row["shape"] for row in rows] == ["mnif-lite shape", "mnif-lite shape"]
    write_model(tiny_model(), tmp_path / "model")
    rows = render_benchmark.main(dataclasses.replace(config, model=tmp_path / "model"))
    assert math.isfinite(rows[0]["psnr"])
    assert "| width 16, 1 hidden | 12 x 12 |" in capsys.readouterr().out


def test_scaling_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "Worker", LocalWorker)
    monkeypatch.setattr(common, "small_cars", lambda *_, **__: data)
    config = scaling.Config(
        scenes=(5, 20), bases=(2, 4), instances=3, width=8, hidden_layers=1, latent_dim=2, rounds=1, seconds=0.0,
        threads=1, cache=tmp_path,
    )  # fmt: skip
    results = scaling.main(config)
    assert [row["scenes"] for row in results["scenes"]] == [5, 20]
    assert results["scenes"][1]["data"] > 3 * results["scenes"][0]["data"]
    assert [len(row["broadcast"]["times"]) for row in results["mixing"]] == [1, 1]
    assert not list(tmp_path.iterdir()), "the large stores are removed"
    assert "| 20 |" in capsys.readouterr().out
