"""Voxels and images under nerfstudio: training, exact resume, what a run leaves, evaluation, viewer, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nerfstudio")

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio_runs import Run, same, tiny_config
from PIL import Image
from tiny_runs import write_tiny_pictures, write_tiny_shapes

from mnif_nerf.fields.heads import occupancy_from_raw
from mnif_nerf.pipelines.encoding import encode_store
from mnif_nerf.pipelines.model_folder import read_model
from mnif_nerf.rendering.grids import cell_centres

COUNTS = {"train": 6, "val": 3, "test": 3}
VOXEL, IMAGE = "mnif-voxel-lite", "mnif-image-lite"
AUTO = {"pipeline.adaptation": "auto-decoding"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        VOXEL: write_tiny_shapes(folder / "shapes", COUNTS),
        IMAGE: write_tiny_pictures(folder / "pictures", COUNTS),
    }


@pytest.fixture(scope="module")
def runs(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs of 16 steps by meta-learning."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {"steps_per_save": 8, "steps_per_eval_all_images": 8, "steps_per_eval_image": 8}
    return {m: Run(tiny_config(data[m], folder, steps=16, method=m, **changes)) for m in (VOXEL, IMAGE)}


def load(run: Run, test_mode: Any = "test", **changes: Any) -> Any:
    def change(config: Any) -> Any:
        for path, value in changes.items():
            setattr(config.pipeline.datamanager, path, value)
        return config

    return eval_setup(run.folder / "config.yml", test_mode=test_mode, update_config_callback=change)[1]


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("method", [VOXEL, IMAGE])
def test_checkpoint_and_model_folder_hold_rates_and_computed_latents(runs: dict[str, Run], method: str) -> None:
    state = runs[method].checkpoint()
    assert state["optimizers"].keys() == {"fields", "projection", "inner_rates"}
    latents = state["pipeline"]["_model.latents.weight"]
    assert latents.shape == (6, 4)
    assert (latents != 0).all()
    assert state["pipeline"]["_model._extra_state"]["adaptation"] == "meta-learning"
    model = read_model(runs[method].folder / "model")
    modality, stem, channels = ("voxel", "shape", 1) if method == VOXEL else ("image", "picture", 3)
    assert model.modality == modality
    assert model.grid == {"resolution": 12, "channels": channels, "shape": [12] * model.field.spec.in_features}
    assert model.names == tuple(f"{stem}{i:03d}" for i in range(6))
    assert torch.equal(model.latents, latents)
    assert model.rates is not None
    assert torch.equal(model.rates, state["pipeline"]["_model.inner_rates.rates"].clamp(0, 1))
    assert model.adaptation == {
        "method": "meta-learning",
        "inner_steps": 3,
        "inner_lr": 1 / 32,
        "first_order": False,
    }
    assert model.training["finished"] is True
    assert model.training["instances_per_step"] == 4
    assert model.training["steps"] == 16


@pytest.mark.parametrize("method", [VOXEL, IMAGE])
def test_latents_are_those_of_the_inner_loop_one_by_one(runs: dict[str, Run], method: str) -> None:
    """Written out with plain autograd, without the batch, the compiled kernel or `adapt`."""
    pipeline = load(runs[method], test_mode="val")
    model, data = pipeline.model, pipeline.datamanager
    for index in range(6):
        batch, code = data.source.fixed(torch.tensor([index])), torch.zeros(1, 4)
        for _ in range(3):
            code = code.detach().requires_grad_(True)
            loss = (model.field.evaluate(code, batch.points) - batch.targets).square().mean()
            (gradient,) = torch.autograd.grad(loss, code)
            code = code - model.meta.inner_lr * model.stage1.inner_rates().detach() * gradient
        torch.testing.assert_close(model.latents.weight[index], code[0].detach(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("method", "changes"), [(VOXEL, {}), (VOXEL, AUTO), (IMAGE, {}), (IMAGE, AUTO)])
def test_resume_equals_an_uninterrupted_run(
    data: dict[str, Path], tmp_path: Path, method: str, changes: dict[str, Any]
) -> None:
    def run(name: str, **more: Any) -> Run:
        return Run(tiny_config(data[method], tmp_path, 12, name, method, **{**changes, **more}))

    straight, first = run("straight"), run("first", max_num_iterations=6)
    second = run("second", load_dir=first.checkpoints)
    assert sorted(second.losses) == list(range(6, 12))
    assert {**first.losses, **second.losses} == straight.losses
    ours, theirs = second.checkpoint(), straight.checkpoint()
    for part in ("pipeline", "optimizers", "schedulers"):
        assert same(ours[part], theirs[part]), part


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (VOXEL, {}),
        (VOXEL, AUTO),
        (VOXEL, {"pipeline.first_order": True, "pipeline.model.latent_noise": 0.01}),
        (VOXEL, {"pipeline.model.head": "logit"}),
        (IMAGE, {}),
        (IMAGE, AUTO),
    ],
)
def test_training_learns(data: dict[str, Path], tmp_path: Path, method: str, changes: dict[str, Any]) -> None:
    wide = {"pipeline.model.width": 16, "pipeline.model.num_bases": 8, **changes}
    losses = Run(tiny_config(data[method], tmp_path, steps=240, method=method, **wide)).losses
    first, last = (sum(losses[s] for s in part) / 10 for part in (range(10), range(230, 240)))
    assert last < 0.7 * first


def test_the_viewers_latent_is_kept_up_while_training(data: dict[str, Path], tmp_path: Path) -> None:
    """Only the shown instance's latent is computed, and only for a viewer; a checkpoint needs them all."""
    config = tiny_config(data[VOXEL], tmp_path, method=VOXEL)
    pipeline = config.pipeline.setup(device="cpu", test_mode="val")

    def computed_after_step_100(vis: str) -> list[bool]:
        config.vis = vis
        trainer: Any = SimpleNamespace(config=config, base_dir=tmp_path)
        attributes = TrainingCallbackAttributes(optimizers=None, grad_scaler=None, pipeline=pipeline, trainer=trainer)
        for callback in pipeline.get_training_callbacks(attributes):
            callback.run_callback_at_location(100, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        return (pipeline.model.latents.weight != 0).any(dim=1).tolist()

    pipeline.get_train_loss_dict(0)
    assert not any(computed_after_step_100("tensorboard"))
    assert computed_after_step_100("viewer+tensorboard") == [True] + [False] * 5
    pipeline.refresh_latents()
    assert all(computed_after_step_100("tensorboard"))


# ------------------------------------------------------------------------------------------------------ evaluation


def test_ns_eval_scores_shapes_over_the_whole_grid(runs: dict[str, Run], data: dict[str, Path], tmp_path: Path) -> None:
    ComputePSNR(runs[VOXEL].folder / "config.yml", tmp_path / "out.json", tmp_path / "renders").main()
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    per_instance = json.loads((tmp_path / "renders" / "per_instance.json").read_text())
    assert list(per_instance["instances"]) == ["shape001", "shape004"]
    assert list(per_instance["unseen_instances"]) == ["shape000", "shape002"]
    metrics = {"psnr", "iou", "accuracy"}
    assert results.keys() == {p + m + s for p in ("", "unseen_") for m in metrics for s in ("", "_std")}
    pipeline = load(runs[VOXEL])
    latents = {
        "": pipeline.model.latents.weight[[1, 4]],
        "unseen_": pipeline.evaluation.latents_of_unseen(pipeline.model.stage1),
    }
    split = {"": "train", "unseen_": "test"}
    for prefix, codes in latents.items():
        names = list(per_instance[prefix + "instances"])
        truth = torch.stack([torch.from_numpy(np.load(data[VOXEL] / split[prefix] / f"{n}.npy")) for n in names])
        raw = pipeline.model.field.evaluate(codes, cell_centres((12,) * 3).expand(2, -1, -1))[:, 0].view_as(truth)
        error = (occupancy_from_raw(raw, "signed") - truth.float()).square().flatten(1).mean(dim=1)
        inside = raw > 0
        ious = [(i & t).sum() / (i | t).sum() for i, t in zip(inside, truth)]
        assert results[prefix + "psnr"] == pytest.approx(float((-10 * error.log10()).mean()), abs=1e-3)
        assert results[prefix + "iou"] == pytest.approx(float(torch.stack(ious).mean()), abs=1e-6)
        assert results[prefix + "accuracy"] == pytest.approx(float((inside == truth).float().mean()), abs=1e-6)
    assert Image.open(tmp_path / "renders" / "eval_unseen_img_0001.png").size == (32, 16)


@pytest.mark.parametrize("adaptation", ["meta-learning", "auto-decoding"])
def test_evaluation_of_images(
    data: dict[str, Path], tmp_path: Path, adaptation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tiny_config(data[IMAGE], tmp_path, 8, method=IMAGE, **{"pipeline.adaptation": adaptation}))
    pipeline = load(run)
    capsys.readouterr()
    results = pipeline.get_average_eval_image_metrics(step=7)
    line = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert line.startswith(f"step 7: PSNR {results['psnr']:.1f}, SSIM {results['ssim']:.3f} over 2 training pictures; ")
    assert line.endswith(f"unseen: PSNR {results['unseen_psnr']:.1f}, SSIM {results['unseen_ssim']:.3f} over 2")
    expected = []
    for index in (1, 4):
        raw = pipeline.model.field.evaluate(pipeline.model.latents.weight[[index]], cell_centres((12, 12))[None])
        truth = np.asarray(Image.open(data[IMAGE] / "train" / f"picture{index:03d}.png")).reshape(-1, 3).T / 255.0
        expected.append(-10 * np.log10(((raw[0].detach().numpy() / 2 + 0.5 - truth) ** 2).mean()))
    assert results["psnr"] == pytest.approx(np.mean(expected), abs=1e-3)
    before = pipeline.model.latents.weight.clone()
    evaluation, stage1 = pipeline.evaluation, pipeline.model.stage1
    unseen = evaluation.latents_of_unseen(stage1)
    assert unseen.shape == (2, 4)
    assert torch.equal(unseen, evaluation.latents_of_unseen(stage1))
    assert not any(torch.equal(code, row) for code in unseen for row in before)
    assert all(parameter.requires_grad for parameter in pipeline.model.field.parameters())


def test_without_an_unseen_split_only_training_instances_are_scored(tmp_path: Path) -> None:
    data = write_tiny_shapes(tmp_path / "data", {"train": 4})
    pipeline = load(Run(tiny_config(data, tmp_path, 2, method=VOXEL)))
    assert pipeline.get_average_eval_image_metrics().keys() == {"psnr", "iou", "accuracy"}


def test_a_model_of_other_instances_is_scored_on_unseen_ones_only(runs: dict[str, Run], tmp_path: Path) -> None:
    """And a data set that shares an instance finds its latent by name."""
    other = write_tiny_shapes(tmp_path / "other", {"train": 1, "test": 2})
    (other / "train" / "shape000.npy").rename(other / "train" / "else.npy")
    assert set(load(runs[VOXEL], data=other).get_average_eval_image_metrics()) == {
        "unseen_psnr", "unseen_iou", "unseen_accuracy"
    }  # fmt: skip
    (other / "train" / "else.npy").rename(other / "train" / "shape003.npy")
    model = load(runs[VOXEL], data=other).model
    assert torch.equal(model.latent_of(0), model.latents.weight[3])


@pytest.mark.parametrize("adaptation", ["meta-learning", "auto-decoding"])
def test_unseen_latents_are_those_of_the_model_folder(
    runs: dict[str, Run], data: dict[str, Path], tmp_path: Path, adaptation: str
) -> None:
    """ns-eval, mnif-eval and the Python API score the same latents, with the run's settings and no defaults."""
    if adaptation == "meta-learning":
        run = runs[VOXEL]
    else:
        changes = {"pipeline.datamanager.surface_share": 0.25, "pipeline.fit_steps": 5, **AUTO}
        run = Run(tiny_config(data[VOXEL], tmp_path, steps=4, method=VOXEL, **changes))
    model = read_model(run.folder / "model")
    pipeline = load(run)
    evaluation = pipeline.evaluation
    chosen = torch.from_numpy(evaluation.chosen(evaluation.unseen))
    found = evaluation.find_unseen(pipeline.model.stage1)
    assert torch.equal(found, encode_store(model, evaluation.unseen, chosen))
    assert model.encoding.fit_points == 64
    assert model.encoding.encode_points == 128


def test_losses_and_pictures_of_an_evaluation_while_training(runs: dict[str, Run]) -> None:
    for run, metrics, size in ((runs[VOXEL], {"psnr", "iou", "accuracy"}, 16), (runs[IMAGE], {"psnr", "ssim"}, 12)):
        pipeline = load(run)
        _, losses, scores = pipeline.get_eval_loss_dict(3)
        assert losses["mse"] > 0
        assert scores["psnr"] == pytest.approx(-10 * np.log10(float(losses["mse"]) / 4), abs=1e-4)
        first, images = pipeline.get_eval_image_metrics_and_images(0)
        second, _ = pipeline.get_eval_image_metrics_and_images(0)
        assert first.keys() == metrics | {"num_rays"}
        assert first != second, "another instance at every call"
        assert images["img"].shape == (size, 2 * size, 3)


# ----------------------------------------------------------------------------------- what nerfstudio's tools look at


@pytest.mark.parametrize("method", [VOXEL, IMAGE])
def test_outputs_of_any_camera(runs: dict[str, Run], method: str) -> None:
    model = load(runs[method]).model
    pose = torch.eye(4)[:3]
    for offset in ((0.0, 0.0, 1.3), (50.0, 0.0, 3.0), (0.0, 0.0, 0.0)):
        pose = pose.clone()
        pose[:, 3] = torch.tensor(offset)
        camera = Cameras(pose[None], 20.0, 20.0, 10.0, 6.0, 20, 12, metadata={"cam_idx": 0})
        outputs = model.get_outputs_for_camera(camera)
        assert list(outputs) == ["rgb", "depth", "accumulation"]
        assert [tuple(value.shape) for value in outputs.values()] == [(12, 20, 3), (12, 20, 1), (12, 20, 1)]
        assert all(bool(torch.isfinite(value).all()) for value in outputs.values())
        assert 0 <= float(outputs["rgb"].min()) <= float(outputs["rgb"].max()) <= 1
        assert model.get_rgba_image(outputs).shape == (12, 20, 4)


def test_the_front_camera_sees_the_image_pixel_by_pixel(runs: dict[str, Run], data: dict[str, Path]) -> None:
    from mnif_nerf.rendering.plane import render_image

    pipeline = load(runs[IMAGE])
    dataset = pipeline.datamanager.eval_dataset
    truth = np.asarray(Image.open(data[IMAGE] / "train" / "picture000.png"))
    assert (dataset.get_numpy_image(0) == truth).all()
    outputs = pipeline.model.get_outputs_for_camera(dataset.cameras[0:1])
    expected = render_image(pipeline.model.collapsed(pipeline.model.latent_of(0))[0].field, (12, 12))
    torch.testing.assert_close(outputs["rgb"], expected, atol=1e-4, rtol=0)
    assert bool((outputs["accumulation"] == 1).all())


def test_pictures_of_the_shown_shape_show_its_cells(runs: dict[str, Run], data: dict[str, Path]) -> None:
    """Against a slow march in tiny steps along every ray."""
    from mnif_nerf.rendering.cameras import pixel_rays

    dataset = load(runs[VOXEL]).datamanager.train_dataset
    cells = np.load(data[VOXEL] / "train" / "shape000.npy")
    for view in (0, 3):
        picture = dataset.get_numpy_image(view)
        origins, directions = pixel_rays(dataset.poses[view], dataset.camera)
        points = origins[:, None] + directions[:, None] * torch.linspace(0, 3, 3000)[:, None]
        index = ((points + 0.5) * 12).floor().long()
        within = ((index >= 0) & (index < 12)).all(dim=-1)
        i, j, k = index.clamp(0, 11).unbind(dim=-1)
        hit = (torch.from_numpy(cells)[i, j, k] & within).any(dim=1).view(16, 16).numpy()
        seen = (picture != 255).any(axis=2)
        assert hit.sum() > 10
        assert (seen != hit).sum() <= 2  # a corner grazed
        assert len({tuple(color) for color in picture[seen]}) >= 2, "faces are shaded by their direction"


def test_crop_box_of_the_viewer(runs: dict[str, Run]) -> None:
    from nerfstudio.data.scene_box import OrientedBox

    pipeline = load(runs[VOXEL])
    model, camera = pipeline.model, pipeline.datamanager.eval_dataset.cameras[0:1]
    with torch.no_grad():
        model.field.bases[-1].zero_()
        model.field.bases[-1][:, -1] = 0.03  # all of the box is inside
    whole = model.get_outputs_for_camera(camera)["accumulation"]
    nothing = OrientedBox.from_params((9.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert whole.sum() > 20
    assert model.get_outputs_for_camera(camera, obb_box=nothing)["accumulation"].sum() == 0


@pytest.mark.parametrize("method", [VOXEL, IMAGE])
def test_environment_chooses_the_shown_instance(
    runs: dict[str, Run], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIF_SCENE", "2")
    pipeline = load(runs[method])
    assert pipeline.model.shown_scene == pipeline.datamanager.shown == 2
    assert torch.equal(pipeline.model.latent_of(None), pipeline.model.latents.weight[2])
    assert set(pipeline.datamanager.train_dataset.cameras.metadata["scene_idx"].flatten().tolist()) == {2}
    monkeypatch.setenv("MNIF_SCENE", "17")
    with pytest.raises(SystemExit, match="MNIF_SCENE=17: no such scene; give an index from 0 to 5"):
        load(runs[method])


@pytest.mark.parametrize(("method", "views"), [(VOXEL, (8, 4)), (IMAGE, (1, 1))])
def test_ns_render_dataset(runs: dict[str, Run], method: str, views: tuple[int, int], tmp_path: Path) -> None:
    from nerfstudio.scripts.render import DatasetRender

    DatasetRender(
        load_config=runs[method].folder / "config.yml",
        output_path=tmp_path,
        split="train+test",
        rendered_output_names=["rgb", "depth", "gt-rgb", "rgba"],
        image_format="png",
    ).main()
    found = [len(list((tmp_path / s).rglob("*.png"))) for s in ("train", "test")]
    assert found == [4 * views[0], 4 * views[1]]


@pytest.mark.parametrize("method", [VOXEL, IMAGE])
def test_what_the_viewer_and_ns_export_touch(runs: dict[str, Run], method: str) -> None:
    from nerfstudio.viewer.utils import parse_object
    from nerfstudio.viewer.viewer_elements import ViewerElement

    pipeline = load(runs[method])
    parse_object(pipeline, ViewerElement, "Custom Elements")
    manager = pipeline.datamanager
    dataset = manager.train_dataset
    assert all(dataset[i]["image"].max() <= 1 and dataset.cameras[i].cx > 0 for i in range(len(dataset)))
    manager.train_pixel_sampler.num_rays_per_batch = 32
    (first, batch), (second, _) = manager.next_train(0), manager.next_train(0)
    assert not torch.equal(first.directions, second.directions)
    assert batch["image"].shape == (32, 3)
    outputs = pipeline.model(first)
    assert outputs["rgb"].shape == (32, 3)
    assert pipeline.model.get_metrics_dict(outputs, batch)["psnr"] > 0
    assert len(manager.next_eval_image(0)) == 2


# -------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        (VOXEL, {"pipeline.datamanager.data": Path("nowhere")}, "nowhere: no such folder"),
        (VOXEL, {"pipeline.datamanager.data": None}, "by .*data"),
        (VOXEL, {"pipeline.datamanager.instances_per_step": 0}, "instances per step must be at least 1"),
        (VOXEL, {"pipeline.datamanager.instance": "shape9"}, "no such scene"),
        (VOXEL, {"pipeline.inner_steps": 0}, "at least one step"),
        (VOXEL, {"pipeline.inner_lr": float("inf")}, "finite number of at least 0"),
        (VOXEL, {"pipeline.inner_lr": 0.0}, "must be a positive number"),
        (VOXEL, {"pipeline.inner_lr": 1e30}, "the inner loop diverged.*lower --pipeline.inner-lr"),
        (IMAGE, {"pipeline.inner_lr": 1e30}, "the inner loop diverged.*lower --pipeline.inner-lr"),
        (VOXEL, {"pipeline.config_version": 99}, "format 99"),
    ],
)
def test_a_mistake_is_one_sentence(
    data: dict[str, Path], tmp_path: Path, method: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SystemExit, match=words) as caught:
        Run(tiny_config(data[method], tmp_path, method=method, **changes))
    assert str(caught.value).startswith("error: ")
    assert "\n" not in str(caught.value)


def test_data_of_another_modality_is_refused(data: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*pictures.*voxel"):
        Run(tiny_config(data[IMAGE], tmp_path, method=VOXEL))
    with pytest.raises(SystemExit, match=r"error: .*shapes.*image"):
        Run(tiny_config(data[VOXEL], tmp_path, method=IMAGE))


def test_a_checkpoint_of_the_other_adaptation_or_head_is_refused(
    data: dict[str, Path], runs: dict[str, Run], tmp_path: Path
) -> None:
    from_here = {"load_dir": runs[VOXEL].checkpoints}
    with pytest.raises(SystemExit, match=r"trained by meta-learning.*pass --pipeline\.adaptation meta-learning"):
        Run(tiny_config(data[VOXEL], tmp_path, method=VOXEL, **{**AUTO, **from_here}))
    with pytest.raises(SystemExit, match="head signed, here logit"):
        Run(tiny_config(data[VOXEL], tmp_path, method=VOXEL, **{"pipeline.model.head": "logit", **from_here}))
