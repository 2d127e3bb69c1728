"""mnif-fit as a user runs it: what it writes for every modality, what it says, and that nothing is half-written."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from test_fit_search import views_of
from tiny_model import tiny_image_model, tiny_model, tiny_voxel_model

from mnif_nerf.cli.fit import ARGUMENTS, FitOptions, main
from mnif_nerf.cli.generation_common import read_latents
from mnif_nerf.data.generate.writer import write_scene
from mnif_nerf.data.observations.files import read_views
from mnif_nerf.data.observations.observations import PosedViews
from mnif_nerf.errors import MNIFError, flag_paths, run_command, with_flags
from mnif_nerf.pipelines.fit.scores import unseen_truth
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import StoredModel, write_model
from mnif_nerf.rendering.cameras import Intrinsics

FAST = {"restarts": 2, "steps": 4, "mesh_resolution": 24, "resolution": 16, "device": "cpu"}


def written(model: StoredModel, folder: Path) -> str:
    return str(write_model(model, folder / "run" / "model"))


@pytest.fixture
def radiance(tmp_path: Path) -> str:
    """A model folder of radiance fields."""
    return written(dataclasses.replace(tiny_model(8), cells=None), tmp_path)


@pytest.fixture
def voxel(tmp_path: Path) -> str:
    """A model folder of solids."""
    return written(tiny_voxel_model(8, head="logit"), tmp_path)


def scene_of(model: str, folder: Path) -> Path:
    """Four pictures of an object of the model, in the SRN layout."""
    pipe = MNIFPipeline.from_pretrained(model, device="cpu")
    views = views_of(pipe, pipe.latents[0], ((20.0, 0.0), (30.0, 120.0), (10.0, 240.0), (40.0, 60.0)))
    assert views.silhouettes is not None
    alpha = np.uint8(255) * views.silhouettes[..., None].astype(np.uint8)
    write_scene(folder / "car", np.concatenate([views.images, alpha], axis=-1), views.poses, Intrinsics.default(16))
    return folder / "car"


def test_posed_pictures(radiance: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = scene_of(radiance, tmp_path)
    # The fit of seed 0 ends at a crumb: a few steps from a random model decide little.
    output = main(FitOptions(radiance, scene, views=(0, 1), seed=3, **FAST))  # type: ignore[arg-type]
    assert output == tmp_path / "run" / "fits" / "car-views0-1-restarts2-steps4-seed3"
    report = json.loads((output / "report.json").read_text())
    assert set(report["scores"]["fit"]) == {"psnr_seen", "psnr_unseen"}
    assert len(report["starts"]) == 2
    assert report["starts"][0]["loss"] <= report["starts"][1]["loss"]
    pipe = MNIFPipeline.from_pretrained(radiance, device="cpu")
    latent = read_latents(output / "latent.safetensors")
    assert latent.shape == (1, 5)
    assert pipe.decode(latent[0]).render(resolution=8).size == (8, 8)
    assert Image.open(output / "before_after.png").width > 400
    assert len(list((output / "views").iterdir())) == 4
    loaded = trimesh.load(output / "mesh.glb", force="mesh")
    assert len(loaded.faces) > 100
    said = capsys.readouterr().out
    assert "PSNR, not observed" in said
    assert f"--latent-file {output / 'latent.safetensors'}" in said


def test_a_single_picture(radiance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnif_nerf.latents.poses import PoseSearchConfig, Round
    from mnif_nerf.pipelines.fit import fitting

    short = PoseSearchConfig(
        azimuths=4, elevations=(20.0,), schedule=(Round(4, 2, 32, 8, False),), last=Round(2, 4, 32, 8, True)
    )
    monkeypatch.setattr(fitting, "_pose_config", lambda settings: short)
    scene = scene_of(radiance, tmp_path)
    photo, output = scene / "rgb" / "000000.png", tmp_path / "out"
    main(FitOptions(radiance, photo, truth=scene, output=output, **FAST))  # type: ignore[arg-type]
    report = json.loads((output / "report.json").read_text())
    assert np.array(report["poses"]).shape == (2, 4, 4)
    assert set(report["scores"]["fit"]) == {"psnr_seen", "psnr_unseen"}
    fit = fitting.fit_observation(MNIFPipeline.from_pretrained(radiance, device="cpu"), photo)
    others = unseen_truth(fit, read_views(scene))
    assert isinstance(others, PosedViews)
    assert others.names == ("000001.png", "000002.png", "000003.png")
    with pytest.raises(MNIFError, match="`field_of_view` 180"):
        main(FitOptions(radiance, photo, fov=180.0, output=tmp_path / "no", **FAST))  # type: ignore[arg-type]
    assert not (tmp_path / "no" / "report.json").exists()


def test_solids(voxel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = MNIFPipeline.from_pretrained(voxel, device="cpu")
    cells = pipe.instance(0).occupancy(16)
    np.save(tmp_path / "shape.npy", cells)
    half = main(FitOptions(voxel, tmp_path / "shape.npy", observed_half="front", **FAST))  # type: ignore[arg-type]
    assert half.name == "shape-npy-front-restarts2-steps4"
    report = json.loads((half / "report.json").read_text())
    assert set(report["scores"]["fit"]) == {"iou_seen", "iou_unseen", "iou"}
    unknown = cells.astype(np.float32)
    unknown[:8] = np.nan
    np.save(tmp_path / "nan.npy", unknown)
    options = FitOptions(voxel, tmp_path / "nan.npy", truth=tmp_path / "shape.npy", **FAST)  # type: ignore[arg-type]
    same = json.loads((main(options) / "report.json").read_text())
    assert same["scores"]["fit"] == report["scores"]["fit"]
    mesh = pipe.instance(0).mesh(24)
    mesh.export(tmp_path / "mesh.glb")
    found = main(FitOptions(voxel, tmp_path / "mesh.glb", **FAST))  # type: ignore[arg-type]
    assert "iou" in json.loads((found / "report.json").read_text())["scores"]["fit"]
    np.save(tmp_path / "cloud.npy", np.asarray(mesh.vertices)[:, [2, 0, 1]])
    options = FitOptions(voxel, tmp_path / "cloud.npy", scanner=(2.0, 0.0, 0.0), **FAST)  # type: ignore[arg-type]
    report = json.loads((main(options) / "report.json").read_text())
    assert "distance_seen" in report["scores"]["fit"]
    assert any("normals" in note for note in report["notes"])
    assert "note: the cloud has no normals" in capsys.readouterr().out


def test_a_mesh_for_a_radiance_model_is_rendered(radiance: str, tmp_path: Path) -> None:
    trimesh.creation.box(extents=(0.5, 0.3, 0.2)).export(tmp_path / "box.ply")
    output = main(FitOptions(radiance, tmp_path / "box.ply", **FAST))  # type: ignore[arg-type]
    report = json.loads((output / "report.json").read_text())
    assert report["observation"] == "PosedViews"
    half = dataclasses.replace(FitOptions(radiance, tmp_path / "box.ply", **FAST), observed_half="left")  # type: ignore[arg-type]
    report = json.loads((main(half) / "report.json").read_text())
    assert report["observation"] == "Cells"
    assert any("colours are those of the prior" in note for note in report["notes"])
    np.save(tmp_path / "cells.npy", np.eye(8, dtype=bool)[None].repeat(8, 0))
    whole = FitOptions(radiance, tmp_path / "box.ply", truth=tmp_path / "cells.npy", **FAST)  # type: ignore[arg-type]
    report = json.loads((main(whole) / "report.json").read_text())
    assert "iou" in report["scores"]["fit"]
    with pytest.raises(MNIFError, match=r"a truth of 8\^3 cells"):
        main(dataclasses.replace(whole, observed_half="left"))
    scene = scene_of(radiance, tmp_path)
    other = dataclasses.replace(whole, input=tmp_path / "cells.npy", truth=scene)
    report = json.loads((main(other) / "report.json").read_text())
    assert any("--truth was not scored" in note for note in report["notes"])


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = written(tiny_image_model(8), tmp_path)
    pipe = MNIFPipeline.from_pretrained(model, device="cpu")
    path = tmp_path / "pic.png"
    pipe.instance(0).picture(8).save(path)
    output = main(FitOptions(model, path, observed_half="top", **FAST))  # type: ignore[arg-type]
    assert sorted(item.name for item in output.iterdir()) == [
        "before_after.png",
        "fit.png",
        "latent.safetensors",
        "report.json",
    ]
    assert Image.open(output / "fit.png").size == (16, 16)
    assert "next: look at" in capsys.readouterr().out
    trimesh.creation.box().export(tmp_path / "box.glb")
    with pytest.raises(MNIFError, match="a mesh cannot be fitted with this model of modality 'image'"):
        main(FitOptions(model, tmp_path / "box.glb", **FAST))  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_latent(voxel: str, tmp_path: Path) -> None:
    pipe = MNIFPipeline.from_pretrained(voxel, device="cpu")
    np.save(tmp_path / "shape.npy", pipe.instance(0).occupancy(16))
    first, second, other = (
        read_latents(
            main(FitOptions(voxel, tmp_path / "shape.npy", seed=seed, output=tmp_path / name, **FAST))  # type: ignore[arg-type]
            / "latent.safetensors"
        )
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first, other)


# --------------------------------------------------------------------------------------------------------- bad input


def test_mistakes_are_told_before_anything_is_written(voxel: str, tmp_path: Path) -> None:
    np.save(tmp_path / "shape.npy", np.eye(8, dtype=bool)[None].repeat(8, 0))
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    np.save(tmp_path / "other.npy", np.eye(4, dtype=bool)[None].repeat(4, 0))
    np.save(tmp_path / "cloud.npy", 0.1 * np.random.default_rng(0).normal(size=(50, 3)))
    shape, cloud, output = tmp_path / "shape.npy", tmp_path / "cloud.npy", tmp_path / "out"
    mistakes: dict[str, dict[str, Any]] = {
        "--restarts 0 leaves nothing to do": {"input": shape, "restarts": 0},
        "--steps is 0": {"input": shape, "steps": 0},
        "--resolution 0": {"input": shape, "resolution": 0},
        "resolution 10000000": {"input": shape, "resolution": 10_000_000},
        "--scanner nan": {"input": cloud, "scanner": (float("nan"), 0.0, 0.0)},
        r"--truth .*other\.npy: a truth of 4\^3 cells": {"input": shape, "truth": tmp_path / "other.npy"},
        "--mesh-resolution -1": {"input": shape, "mesh_resolution": -1},
        "missing.ply: no such file": {"input": tmp_path / "missing.ply"},
        "a plain picture cannot be fitted with this model of modality 'voxel'": {"input": tmp_path / "plain.png"},
        "--scanner is for point clouds": {"input": shape, "scanner": (1.0, 0.0, 0.0)},
        "--scale -1": {"input": shape, "scale": -1.0},
        "exclude one another": {"input": shape, "observed_half": "front", "observed_mask": shape},
    }
    for message, changes in mistakes.items():
        settings = {**FAST, "output": output, **changes}
        with pytest.raises(MNIFError) as caught:
            main(FitOptions(voxel, **settings))  # type: ignore[arg-type]
        told = with_flags(str(caught.value), flag_paths(FitOptions), ARGUMENTS)
        assert re.search(message, told), told
        assert not output.exists(), message


def test_a_point_cloud_as_truth_is_refused(voxel: str, tmp_path: Path) -> None:
    np.save(tmp_path / "shape.npy", np.eye(8, dtype=bool)[None].repeat(8, 0))
    np.save(tmp_path / "cloud.npy", 0.1 * np.random.default_rng(0).normal(size=(50, 3)))
    with pytest.raises(MNIFError, match="cannot be scored against"):
        main(FitOptions(voxel, tmp_path / "shape.npy", truth=tmp_path / "cloud.npy", **FAST))  # type: ignore[arg-type]


def test_ctrl_c_leaves_nothing_half_written(voxel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnif_nerf.export import pictures

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    pipe = MNIFPipeline.from_pretrained(voxel, device="cpu")
    np.save(tmp_path / "shape.npy", pipe.instance(0).occupancy(16))
    monkeypatch.setattr(pictures, "contact_sheet", interrupt)
    with pytest.raises(SystemExit, match="130"):
        run_command(lambda: main(FitOptions(voxel, tmp_path / "shape.npy", output=tmp_path / "out", **FAST)))  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "report.json").exists()
    assert not [item for item in (tmp_path / "out").iterdir() if "tmp" in item.name]
