"""What nerfstudio's other commands do with a run: ns-eval, ns-render, ns-export, the viewer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nerfstudio")

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio_runs import Run, tiny_config
from PIL import Image
from tiny_srn import write_tiny_srn

from mnif_nerf.evaluation.target import load_target
from mnif_nerf.modalities.training import means
from mnif_nerf.pipelines.encoding import encode_views
from mnif_nerf.pipelines.model_folder import read_model

HELDOUT = "pipeline.datamanager.dataparser.heldout_views_per_scene"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_srn(tmp_path_factory.mktemp("data"), scenes=4, views=5, resolution=16)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tiny_config(data, tmp_path_factory.mktemp("run"), steps=30))


def load(run: Run, **changes: Any) -> Any:
    def change(config: Any) -> Any:
        for path, value in changes.items():
            setattr(config.pipeline, path, value)
        return config

    return eval_setup(run.folder / "config.yml", test_mode="test", update_config_callback=change)[1]


def test_ns_eval(run: Run, tmp_path: Path) -> None:
    ComputePSNR(run.folder / "config.yml", tmp_path / "out.json", tmp_path / "renders").main()
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    per_scene = json.loads((tmp_path / "renders" / "per_instance.json").read_text())["instances"]
    assert list(per_scene) == ["scene001", "scene003"]  # two of four, spread evenly
    assert results["psnr"] == pytest.approx(np.mean([row["psnr"] for row in per_scene.values()]))
    assert {"psnr_std", "ssim", "ssim_std", "fps"} <= results.keys()
    assert "lpips" not in results
    assert Image.open(tmp_path / "renders" / "eval_img_0003.png").size == (32, 16)


def test_scores_are_those_of_the_pictures(run: Run) -> None:
    """The mean PSNR equals one computed on another road: nerfstudio's own rays, every scene's own latent."""
    pipeline = load(run)
    manager, model = pipeline.datamanager, pipeline.model
    expected = []
    for camera, batch in manager.fixed_indices_eval_dataloader:
        bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
        rgb = model.get_outputs(bundle)["rgb"]
        expected.append(-10 * float(torch.log10((rgb - batch["image"]).square().mean())))
    assert len(expected) == 4
    assert pipeline.get_average_eval_image_metrics()["psnr"] == pytest.approx(np.mean(expected), abs=1e-3)


def test_unseen_scenes_use_fitted_codes_and_exclude_the_views_they_were_fitted_to(run: Run, tmp_path: Path) -> None:
    pipeline = load(run, eval_mode="unseen-scenes")
    unseen = pipeline.evaluation.unseen
    assert unseen.names == ["test000", "test001"]
    assert not set(unseen.conditioning.views) & set(unseen.scored.views)
    before = pipeline.model.latents.weight.clone()
    pipeline.get_average_eval_image_metrics(output_path=tmp_path)
    shown = [item.latent for item in pipeline.evaluation.items(pipeline.model.stage1)[""]]
    fitted = pipeline.evaluation.latents_of_unseen(pipeline.model.stage1)
    assert fitted.shape == (2, 4)
    stored = encode_views(read_model(run.folder / "model"), unseen)
    assert torch.equal(fitted, stored), "mnif-eval finds the same latents, with the run's own settings"
    assert all(any(torch.equal(code, row) for row in fitted) for code in shown)
    assert not any(torch.equal(code, row) for row in before for code in shown)
    assert torch.equal(pipeline.model.latents.weight, before)
    assert list(json.loads((tmp_path / "per_instance.json").read_text())["instances"]) == ["test000", "test001"]


def test_outputs_of_any_camera(run: Run) -> None:
    model = load(run).model
    pose = torch.eye(4)[:3]
    for offset in ((0.0, 0.0, 1.3), (50.0, 0.0, 3.0), (0.0, 0.0, 0.0)):
        pose = pose.clone()
        pose[:, 3] = torch.tensor(offset)
        camera = Cameras(pose[None], 20.0, 20.0, 10.0, 6.0, 20, 12, metadata={"cam_idx": 0})
        outputs = model.get_outputs_for_camera(camera)
        assert list(outputs) == ["rgb", "depth", "accumulation"]
        assert [tuple(value.shape) for value in outputs.values()] == [(12, 20, 3), (12, 20, 1), (12, 20, 1)]
        assert all(bool(torch.isfinite(value).all()) for value in outputs.values())
        assert float(outputs["rgb"].min()) >= 0
        assert float(outputs["rgb"].max()) <= 1


def test_crop_box_of_the_viewer(run: Run) -> None:
    from nerfstudio.data.scene_box import OrientedBox

    pipeline = load(run)
    model, camera = pipeline.model, pipeline.datamanager.eval_dataset.cameras[0:1]
    model.stage1.bounds.fill_(True)
    model.field.bases[-1].data[:, -1] = 100.0  # density everywhere
    whole = model.get_outputs_for_camera(camera)["accumulation"]
    half = OrientedBox.from_params((0.0, 0.0, -0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    cropped = model.get_outputs_for_camera(camera, obb_box=half)["accumulation"]
    assert 0.1 * whole.sum() < cropped.sum() < 0.9 * whole.sum()
    nothing = OrientedBox.from_params((9.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert model.get_outputs_for_camera(camera, obb_box=nothing)["accumulation"].sum() == 0


def test_own_rays_equal_nerfstudios(run: Run) -> None:
    from mnif_nerf.models.base import pinhole_rays

    camera = load(run).datamanager.eval_dataset.cameras[0:1]
    origins, directions = pinhole_rays(camera, 16, 16)
    bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
    torch.testing.assert_close(directions, bundle.directions.reshape(-1, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(origins, bundle.origins.reshape(-1, 3), atol=0, rtol=0)
    middle = bundle.directions[7:9, 7:9].mean(dim=(0, 1))  # cameras look at the origin
    torch.testing.assert_close(middle, -origins[0] / origins[0].norm(), atol=2e-3, rtol=0)


def test_rays_of_several_scenes_each_get_their_own_latent(run: Run) -> None:
    pipeline = load(run)
    model = pipeline.model
    model.latents.weight.data.normal_()
    bundle, _ = pipeline.datamanager.random_rays(pipeline.datamanager.source.evaluation_views, 40, 0)
    together = model.get_outputs(bundle)["rgb"]
    for index in range(40):
        alone = model.render(bundle.origins[index : index + 1], bundle.directions[index : index + 1], None)
        scene = int(bundle.metadata["scene_idx"][index])
        own = model.render(bundle.origins[index : index + 1], bundle.directions[index : index + 1], scene)["rgb"]
        torch.testing.assert_close(together[index : index + 1], own, atol=1e-5, rtol=0)
        assert alone["rgb"].shape == (1, 3)


def test_a_scene_out_of_range_shows_the_mean_and_says_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(run).model
    assert torch.equal(model.latent_of(77), model.latents.weight.mean(dim=0))
    assert "scene 77 is not among the 4" in capsys.readouterr().out.replace("\n", " ")


def test_a_shown_latent_is_rendered_wherever_no_scene_is_named(run: Run) -> None:
    model = load(run).model
    rays = torch.tensor([[0.0, 0.0, 1.3]]), torch.tensor([[0.0, 0.0, -1.0]])
    first = model.render(*rays, None)["rgb"]
    model.set_shown_latent(torch.randn(4) * 5)
    assert not torch.equal(model.render(*rays, None)["rgb"], first)
    model.set_shown_latent(None)
    assert torch.equal(model.render(*rays, None)["rgb"], first)


def test_environment_chooses_the_shown_scene(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIF_SCENE", "scene002")
    pipeline = load(run)
    assert pipeline.model.shown_scene == 2
    assert set(pipeline.datamanager.train_dataset.cameras.metadata["scene_idx"].flatten().tolist()) == {2}
    monkeypatch.setenv("MNIF_SCENE", "17")
    with pytest.raises(SystemExit, match="MNIF_SCENE=17: no such scene; give an index from 0 to 3"):
        load(run)


def test_showing_opens_no_store(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnif_nerf.data.stores import scene_store as store

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a store was opened")

    monkeypatch.setattr(store, "open_store", refuse)
    pipeline = load(run)
    pipeline.model.get_outputs_for_camera(pipeline.datamanager.eval_dataset.cameras[0:1])
    assert len(pipeline.datamanager.train_dataset) == 5
    assert pipeline.datamanager.train_dataset[0]["image"].shape == (16, 16, 3)


def test_data_with_fewer_scenes_finds_its_latents_by_name(run: Run, data: Path, tmp_path: Path) -> None:
    import shutil

    for split in ("train", "train_val"):
        for name in ("scene001", "scene003"):
            shutil.copytree(data / f"cars_{split}" / name, tmp_path / f"cars_{split}" / name)
    extra = tmp_path / "cars_train" / "another"
    shutil.copytree(data / "cars_train" / "scene000", extra)

    def change(config: Any) -> Any:
        config.pipeline.datamanager.data = tmp_path
        return config

    pipeline = eval_setup(run.folder / "config.yml", update_config_callback=change)[1]
    model = pipeline.model
    assert model.data_names == ("another", "scene001", "scene003")
    assert torch.equal(model.latent_of(1), model.latents.weight[1])
    assert torch.equal(model.latent_of(2), model.latents.weight[3])
    assert torch.equal(model.latent_of(0), model.latents.weight.mean(dim=0))
    assert pipeline.get_average_eval_image_metrics()["psnr"] > 0


def test_ns_render_dataset(run: Run, tmp_path: Path) -> None:
    from nerfstudio.scripts.render import DatasetRender

    DatasetRender(
        load_config=run.folder / "config.yml",
        output_path=tmp_path,
        split="train+test",
        rendered_output_names=["rgb", "depth", "gt-rgb", "rgba"],
        image_format="png",
    ).main()
    assert len(list((tmp_path / "train" / "rgb").iterdir())) == 5
    assert len(list((tmp_path / "test" / "depth").iterdir())) == 3
    truth = np.asarray(Image.open(tmp_path / "test" / "gt-rgb" / "000000.png"))
    assert tuple(truth[0, 0]) == (255, 255, 255)


def test_rays_for_ns_export_are_of_the_shown_scene_and_new_at_every_call(run: Run) -> None:
    pipeline = load(run)
    manager = pipeline.datamanager
    manager.train_pixel_sampler.num_rays_per_batch = 64
    first, second = manager.next_train(0)[0], manager.next_train(0)[0]
    assert isinstance(first, RayBundle)
    assert len(first) == 64
    assert set(first.metadata["scene_idx"].flatten().tolist()) == {0}
    assert not torch.equal(first.directions, second.directions)
    rgba = pipeline.model.get_rgba_image(pipeline.model(first))
    assert rgba.shape == (64, 4)


def test_ns_export_and_the_tab_of_the_viewer_name_our_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from nerfstudio.viewer import export_panel

    from mnif_nerf.viewer.nerfstudio_patches import own_export_command

    shown: list[tuple[str, str]] = []
    monkeypatch.setattr(export_panel, "show_command_modal", lambda client, what, command: shown.append((what, command)))
    for _ in range(2):
        own_export_command()
    export_panel.show_command_modal(None, "mesh", "ns-export poisson --load-config a b/config.yml --output-dir x")
    export_panel.show_command_modal(None, "point cloud", "ns-export pointcloud --load-config c.yml --output-dir x")
    assert shown == [
        ("mesh", "mnif-export-mesh --load-config 'a b/config.yml' --format glb"),
        ("point cloud", "mnif-export-mesh --load-config c.yml --format ply"),
    ]
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/ns-export", "tsdf"])
    with pytest.raises(SystemExit, match=r"error: ns-export makes clouds .*; use mnif-export-mesh --load-config RUN"):
        load(run)


def test_without_a_heldout_split_views_are_held_out_of_training(data: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data / "cars_train", tmp_path / "data" / "cars_train")
    run = Run(tiny_config(tmp_path / "data", tmp_path / "out", steps=2, **{HELDOUT: 1}))
    pipeline = load(run)
    views = pipeline.datamanager.source.views
    held = views.evaluation(4, 2).views
    assert len(held) == 4
    assert not views.trained[held].any()
    assert views.trained.sum() == 16
    target = load_target(run.folder, None, "cpu")
    assert target.heldout_views == 1, "mnif-eval scores no view that was trained on"
    assert target.notes == []
    assert not set(pipeline.datamanager.source.rays.view_list.tolist()) & set(held.tolist())
    shown = pipeline.datamanager.train_dataset.image_filenames
    held_files = pipeline.datamanager.eval_dataset.image_filenames
    assert len(shown) == 4
    assert not set(shown) & set(held_files)
    with pytest.raises(SystemExit, match="no split of unseen scenes"):
        load(run, eval_mode="unseen-scenes").get_average_eval_image_metrics()


def test_means_of_a_perfect_reconstruction() -> None:
    result = means([{"psnr": float("inf"), "ssim": 1.0}, {"psnr": 30.0, "ssim": 0.5}], with_std=True)
    assert result["psnr"] == float("inf")
    assert np.isnan(result["psnr_std"])
    assert result["ssim_std"] == pytest.approx(0.125**0.5)


def test_training_rays_as_nerfstudio_knows_them(data: Path) -> None:
    config = tiny_config(data, Path("unused"))
    manager = config.pipeline.datamanager.setup(device="cpu", test_mode="val")
    bundle, batch = manager.next_train(3)
    rays = manager.source.draw(3)
    assert len(bundle) == manager.get_train_rays_per_batch() == 32
    assert torch.equal(bundle.metadata["scene_idx"][:, 0].unique_consecutive(), rays.instances)
    assert torch.equal(batch["image"], rays.rgb.view(-1, 3))


def test_viewer_elements_are_found_and_the_scene_is_drawn(run: Run) -> None:
    """What the viewer touches at start-up: every public attribute of every module, and the shown pictures."""
    from nerfstudio.viewer.utils import parse_object
    from nerfstudio.viewer.viewer_elements import ViewerElement

    pipeline = load(run)
    parse_object(pipeline, ViewerElement, "Custom Elements")
    dataset = pipeline.datamanager.train_dataset
    assert all(dataset[i]["image"].max() <= 1 and dataset.cameras[i].cx > 0 for i in range(len(dataset)))
