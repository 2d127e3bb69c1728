"""The command mnif-render, and the camera paths of nerfstudio that it reads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import tiny_image_model, tiny_model, tiny_voxel_model

from mnif_nerf.cli import render
from mnif_nerf.cli.generation_common import held_interrupts
from mnif_nerf.cli.render import RenderOptions
from mnif_nerf.errors import MNIFError
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import write_model
from mnif_nerf.priors.prior import LatentPrior, PriorConfig
from mnif_nerf.rendering.camera_path import read_camera_path
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.tensor_files import write_tensors

OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run folder: config.yml (never read) and model/."""
    run = tmp_path / "run"
    shutil.copytree(trained, run / "model")
    (run / "config.yml").write_text("!!python/object:nerfstudio.never.Read {}\n")
    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of images with a prior."""
    model = tiny_image_model(num_instances=8)
    model.prior = LatentPrior.fit(model.latents, PriorConfig(steps=3), progress=False)
    return write_model(model, tmp_path_factory.mktemp("pictures") / "model")


def _options(run: Path, **options: object) -> RenderOptions:
    small = {} if {"width", "height", "camera_path_filename"} & set(options) else {"resolution": 12}
    if options.get("camera_path_filename") is None and "seconds" not in options:
        small["frames"] = 4
    return RenderOptions(load_config=str(run), **{**small, **options})  # type: ignore[arg-type]


def _frames(path: Path) -> list[np.ndarray]:
    return list(iio.imiter(path))


def write_path(target: Path, poses: list[torch.Tensor], fov: float = 50.0, **more: object) -> Path:
    """A camera path as the viewer's Render tab writes it, of cameras in the OpenCV convention."""
    cameras = [{"camera_to_world": (pose @ OPENGL).flatten().tolist(), "fov": fov, "aspect": 20 / 12} for pose in poses]
    content: dict[str, Any] = {
        "default_fov": fov,
        "default_transition_sec": 2.0,
        "keyframes": [{"matrix": cameras[0]["camera_to_world"], "fov": fov, "aspect": 20 / 12}] if cameras else [],
        "camera_type": "perspective",
        "render_height": 12,
        "render_width": 20,
        "fps": 24,
        "seconds": len(poses) / 12,
        "is_cycle": False,
        "smoothness_value": 0.0,
        "camera_path": cameras,
    }
    target.write_text(json.dumps({**content, **more}))
    return target


# --- videos ------------------------------------------------------------------------------------------------


def test_orbit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = render.main(_options(run, instance=("car_03",), width=48, height=32, frames=4))
    assert output == run / "renders" / "orbit-car_03.mp4"
    frames = _frames(output)
    assert [frame.shape for frame in frames] == [(32, 48, 3)] * 4
    item = MNIFPipeline.from_pretrained(run, device="cpu").instance("car_03")
    views = [np.asarray(item.render(20, azimuth, 32)).astype(int) for azimuth in (45, 135, 225, 315)]
    for k, frame in enumerate(frames):  # through a video's compression
        errors = [np.abs(frame[:, 8:40] - view).mean() for view in views]
        assert int(np.argmin(errors)) == k
        assert errors[k] < 25
    printed = capsys.readouterr().out
    assert f"wrote {output}: 4 frames of 48 x 32 pixels, 0.2 s at 24 frames a second" in printed
    assert "next: mnif-render --load-config" in printed


def test_the_default_length_and_rate(run: Path) -> None:
    output = render.main(_options(run, seconds=0.5, fps=10, output=run / "turn.gif", resolution=6))
    assert iio.improps(output).n_images == 5
    assert Image.open(output).info["duration"] == 100


def test_samples_are_those_of_the_seed(run: Path, tmp_path: Path) -> None:
    output = render.main(_options(run, index=(2,), seed=7, frames=1, output=tmp_path / "frames"))
    pipe = MNIFPipeline.from_pretrained(run, device="cpu")
    assert Image.open(output / "frame_00000.png").tobytes() == pipe(3, seed=7)[2].render(resolution=12).tobytes()


def test_interpolation_passes_its_objects(run: Path, tmp_path: Path) -> None:
    stops = ("car_02", "5", "car_00")
    pipe = MNIFPipeline.from_pretrained(run, device="cpu")
    pictures = [np.asarray(pipe.instance(name).render(resolution=12)) for name in stops]
    options = {"path": "interpolate", "instance": stops, "frames": 9}
    output = render.main(_options(run, output=tmp_path / "way", **options))
    frames = [np.asarray(Image.open(path)) for path in sorted(output.glob("*.png"))]
    assert len(frames) == 9
    for frame, picture in zip((frames[0], frames[4], frames[8]), pictures):
        assert np.array_equal(frame, picture)
    steps = [np.abs(a.astype(int) - b).mean() for a, b in pairwise(frames)]
    assert min(steps) > 0
    loop = render.main(_options(run, output=tmp_path / "loop", loop=True, **options))
    closed = [np.asarray(Image.open(path)) for path in sorted(loop.glob("*.png"))]
    for frame, picture in zip((closed[0], closed[3], closed[6]), pictures):
        assert np.array_equal(frame, picture)
    assert not np.array_equal(closed[8], pictures[2])  # on its way back


def test_walk_begins_at_the_first_sample_and_repeats(run: Path, tmp_path: Path) -> None:
    first = render.main(_options(run, path="walk", stops=3, seed=4, frames=6, output=tmp_path / "a"))
    again = render.main(_options(run, path="walk", stops=3, seed=4, frames=6, output=tmp_path / "b"))
    other = render.main(_options(run, path="walk", stops=3, seed=5, frames=6, output=tmp_path / "c"))
    whole = [[p.read_bytes() for p in sorted(folder.glob("*.png"))] for folder in (first, again, other)]
    assert whole[0] == whole[1]
    assert whole[0] != whole[2]
    pipe = MNIFPipeline.from_pretrained(run, device="cpu")
    start = np.asarray(pipe(1, seed=4)[0].render(resolution=12)).astype(int)
    assert np.abs(np.asarray(Image.open(first / "frame_00000.png")) - start).max() <= 1
    turned = render.main(_options(run, path="walk", stops=3, seed=4, frames=6, turns=1.0, output=tmp_path / "d"))
    assert [p.read_bytes() for p in sorted(turned.glob("*.png"))][1:] != whole[0][1:]


def test_objects_from_files(run: Path, tmp_path: Path) -> None:
    pipe = MNIFPipeline.from_pretrained(run, device="cpu")
    write_tensors(tmp_path / "latents.safetensors", {"latents": pipe.latents[:3]})
    edited = pipe.mix_layers(0, 1, [0, 0, 1])
    edited.save(tmp_path / "edited.safetensors")
    for name, item, index in (
        ("latents", pipe.instance(0), ()),
        ("latents", pipe.instance(2), (2,)),
        ("edited", edited, ()),
    ):
        folder = tmp_path / f"{name}{index}"
        render.main(_options(run, latent_file=tmp_path / f"{name}.safetensors", index=index, frames=1, output=folder))
        assert Image.open(folder / "frame_00000.png").tobytes() == item.render(resolution=12).tobytes()
    for index, words in (((3,), "holds 3 latents"), ((-1,), "below 0")):
        with pytest.raises(MNIFError, match=words):
            render.main(_options(run, latent_file=tmp_path / "latents.safetensors", index=index))
    write_tensors(tmp_path / "other.safetensors", {"latents": torch.zeros(2, 6)})
    MNIFPipeline(tiny_model(seed=5)).instance(0).save(tmp_path / "stranger.safetensors")
    MNIFPipeline(tiny_voxel_model()).instance(0).save(tmp_path / "solid.safetensors")
    for name, words in (("other", "takes 5 numbers"), ("stranger", "another model"), ("solid", "modality voxel")):
        with pytest.raises(MNIFError, match=words):
            render.main(_options(run, latent_file=tmp_path / f"{name}.safetensors"))


def test_voxels(tmp_path: Path) -> None:
    model = write_model(tiny_voxel_model(), tmp_path / "model")
    output = render.main(_options(model, instance=("0",), frames=2, width=14, height=10))
    assert [frame.shape for frame in _frames(output)] == [(10, 14, 3)] * 2
    with pytest.raises(MNIFError, match="prior"):
        render.main(_options(model, path="walk"))
    with pytest.raises(MNIFError, match="prior"):
        render.main(_options(model))


def test_images(pictures: Path, tmp_path: Path) -> None:
    output = render.main(_options(pictures, path="walk", stops=2, output=tmp_path / "walk", resolution=None))
    assert Image.open(output / "frame_00002.png").size == (256, 256)  # 8 pixels, enlarged
    fine = render.main(_options(pictures, path="interpolate", instance=("0", "1"), output=tmp_path / "fine"))
    expected = MNIFPipeline.from_pretrained(pictures, device="cpu").instance(1).image(12)
    assert Image.open(fine / "frame_00003.png").tobytes() == expected.tobytes()
    for options, words in (
        ({"path": "orbit"}, "nothing for a camera"),
        ({"path": "walk", "turns": 1.0}, "nothing for a camera"),
        ({"path": "walk", "width": 20, "height": 10}, "proportions"),
    ):
        with pytest.raises(MNIFError, match=words):
            render.main(_options(pictures, **options))


# --- camera paths -----------------------------------------------------------------------------------------


def test_camera_path(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poses = [orbit_pose(20, 45 + 30 * k, 1.3) for k in range(4)]
    path = write_path(tmp_path / "path.json", poses, crop={"crop_center": [0, 0, 0]})
    output = render.main(_options(run, path="camera-path", instance=("1",), camera_path_filename=path))
    assert output.name == "camera-path-car_01-path.mp4"
    assert [frame.shape for frame in _frames(output)] == [(12, 20, 3)] * 4
    printed = capsys.readouterr().out
    assert "0.3 s at 12 frames a second" in printed
    assert "crop" in printed
    stills = render.main(
        _options(run, path="camera-path", instance=("1",), camera_path_filename=path, output=tmp_path / "s", height=24)
    )
    item = MNIFPipeline.from_pretrained(run, device="cpu").instance(1)
    camera = Intrinsics.centred(40, 24, 12 / np.tan(np.radians(25)))
    for k, pose in enumerate(poses):
        found = np.asarray(Image.open(stills / f"frame_{k:05d}.png")).astype(int)
        assert np.abs(found - np.asarray(item.view(pose, camera))).max() <= 1
    changing = _options(run, path="interpolate", instance=("1", "2"), camera_path_filename=path, output=tmp_path / "i")
    last = np.asarray(Image.open(render.main(changing) / "frame_00003.png")).astype(int)
    small = Intrinsics.centred(20, 12, 6 / np.tan(np.radians(25)))
    expected = MNIFPipeline.from_pretrained(run, device="cpu").instance(2).view(poses[3], small)
    assert np.abs(last - np.asarray(expected)).max() <= 1
    write_path(path, poses[::-1])
    with pytest.raises(MNIFError, match="frames of another video"):
        render.main(changing)


def test_rays_are_nerfstudios(tmp_path: Path) -> None:
    """What nerfstudio makes of the same file, ray by ray."""
    pytest.importorskip("nerfstudio")
    from nerfstudio.cameras.camera_paths import get_path_from_json

    poses = [orbit_pose(10.0 * k, 70.0 * k, 1.0 + 0.1 * k) for k in range(3)]
    file = write_path(tmp_path / "path.json", poses, fov=63.0)
    path, theirs = read_camera_path(file), get_path_from_json(json.loads(file.read_text()))
    for k in range(3):
        rays = theirs.generate_rays(camera_indices=k)
        origins, directions = pixel_rays(path.poses[k], path.intrinsics(k, path.width, path.height))
        assert torch.allclose(rays.origins.view(-1, 3), origins, atol=1e-5)
        assert torch.allclose(rays.directions.view(-1, 3), directions, atol=1e-5)


def test_the_viewers_export(tmp_path: Path) -> None:
    """The viewer's own arithmetic (`render_panel.py`): a camera of its scene, in the file, is ours again."""
    tf = pytest.importorskip("viser.transforms")
    scale = pytest.importorskip("nerfstudio.viewer.viewer").VISER_NERFSTUDIO_SCALE_RATIO
    pose = orbit_pose(35, 200, 1.7)
    seen = tf.SE3.from_rotation_and_translation(
        tf.SO3.from_matrix(pose[:3, :3].double().numpy()), scale * pose[:3, 3].double().numpy()
    )
    exported = tf.SE3.from_rotation_and_translation(
        seen.rotation() @ tf.SO3.from_x_radians(np.pi), seen.translation() / scale
    )
    file = write_path(tmp_path / "path.json", [pose])
    content = json.loads(file.read_text())
    content["camera_path"][0]["camera_to_world"] = exported.as_matrix().flatten().tolist()
    file.write_text(json.dumps(content))
    assert torch.allclose(read_camera_path(file).poses[0], pose, atol=1e-5)


def _broken(kind: str) -> Any:
    good = (orbit_pose(20, 45, 1.3) @ OPENGL).flatten().tolist()
    return {
        "short": [{"camera_to_world": good[:12], "fov": 50}],
        "words": [{"camera_to_world": ["a"] * 16, "fov": 50}],
        "nan": [{"camera_to_world": [float("nan")] * 16, "fov": 50}],
        "scaled": [{"camera_to_world": [3 * x for x in good], "fov": 50}],
        "mirrored": [{"camera_to_world": [-x if k % 4 == 0 else x for k, x in enumerate(good)], "fov": 50}],
        "no fov": [{"camera_to_world": good}],
        "null fov": [{"camera_to_world": good, "fov": None}],
        "wide": [{"camera_to_world": good, "fov": 180}],
        "list": [good],
    }[kind]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(
            ({"camera_path": kind}, words)
            for kind, words in (
                ("short", "frame 0: camera_to_world has to be 16"),
                ("words", "not made of numbers"),
                ("nan", "16 finite numbers"),
                ("scaled", "no rotation"),
                ("mirrored", "no rotation"),
                ("no fov", "lacks camera_to_world or fov"),
                ("null fov", "not made of numbers"),
                ("wide", "between 0 and 180"),
                ("list", "lacks camera_to_world"),
            )
        ),
        ({"camera_path": None}, "holds no camera path"),
        ({"camera_path": []}, "no frames"),
        ({"camera_type": "equirectangular"}, "of the type equirectangular; only perspective"),
        ({"camera_type": "Fisheye"}, "type fisheye"),
        ({"render_width": "wide"}, "render_width is wide, expected a number above 0"),
        ({"render_height": 0}, "render_height is 0"),
        ({"seconds": -1}, "seconds is -1"),
    ],
)
def test_damaged_camera_paths(run: Path, tmp_path: Path, change: dict, words: str) -> None:
    if isinstance(change.get("camera_path"), str):
        change = {"camera_path": _broken(change["camera_path"])}
    path = write_path(tmp_path / "path.json", [orbit_pose(20, 45, 1.3)], **change)
    with pytest.raises(MNIFError, match=words):
        render.main(_options(run, path="camera-path", camera_path_filename=path))
    assert not (run / "renders").exists()


def test_files_that_are_no_camera_paths(tmp_path: Path) -> None:
    for text, words in (("[]", "no camera path"), ("{", "not valid JSON"), (None, "no such file")):
        if text is not None:
            (tmp_path / "x.json").write_text(text)
        with pytest.raises(MNIFError, match=words):
            read_camera_path(tmp_path / ("x.json" if text is not None else "absent.json"))


def test_older_paths_say_less(tmp_path: Path) -> None:
    path = write_path(tmp_path / "path.json", [orbit_pose(0, 0, 1.3)] * 3, camera_type="Perspective", seconds=None)
    assert (read_camera_path(path).fps, len(read_camera_path(path)), read_camera_path(path).cropped) == (24, 3, False)


# --- what is refused, and what is left behind -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 0}, "--frames 0"),
        ({"fps": 0}, "--fps 0"),
        ({"resolution": 0}, "--resolution 0"),
        ({"width": -3, "height": 4}, "--width -3"),
        ({"resolution": 200_000}, "GiB"),
        ({"seconds": 0.0}, "--seconds 0"),
        ({"seconds": float("nan")}, "--seconds nan"),
        ({"seconds": 1.0, "frames": 3}, "give one of them"),
        ({"resolution": 12, "width": 3}, "square videos"),
        ({"turns": float("inf")}, "--turns inf"),
        ({"radius": 0.3}, "inside the object"),
        ({"output": Path("video.avi")}, "unknown video format"),
        ({"instance": ("car_77",)}, "did you mean"),
        ({"instance": ("0", "1")}, "shows one object and 2 are named"),
        ({"path": "interpolate", "instance": ("0",)}, "at least 2 objects"),
        ({"path": "interpolate", "instance": ("0", "1"), "frames": 1}, "no two ends"),
        ({"path": "walk", "instance": ("0",)}, "draws its own samples"),
        ({"path": "walk", "stops": 1}, "--stops 1"),
        ({"loop": True}, "--loop is for"),
        ({"instance": ("0",), "index": (1,)}, "leave --latent-file and --index out"),
        ({"path": "camera-path"}, "needs --camera-path-filename"),
        ({"path": "orbit", "camera_path_filename": Path("x.json")}, "in place of orbit"),
        ({"path": "camera-path", "camera_path_filename": Path("x.json"), "frames": 3}, "--frames does not go"),
        ({"latent_file": Path("absent.safetensors")}, "no such file"),
    ],
)
def test_refusals(run: Path, options: dict, words: str) -> None:
    with pytest.raises(MNIFError, match=words):
        render.main(_options(run, **options))
    assert not list(run.rglob("*.mp4"))
    assert not list(run.rglob("*.png"))


def test_a_folder_of_another_film_is_left_alone(run: Path, tmp_path: Path) -> None:
    output = render.main(_options(run, instance=("0",), output=tmp_path / "video"))
    before = {path: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(MNIFError, match="frames of another video"):
        render.main(_options(run, instance=("0",), output=output, elevation=30.0))
    shutil.rmtree(run / "model")
    model = tiny_model(num_instances=12, seed=3)
    write_model(model, run / "model")
    with pytest.raises(MNIFError, match="frames of another video"):
        render.main(_options(run, instance=("0",), output=output))
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "video.gif").mkdir()
    for name, words in (("mine", "something else than frames"), ("video.gif", "is a folder")):
        with pytest.raises(MNIFError, match=words):
            render.main(_options(run, instance=("0",), output=tmp_path / name))
    with pytest.raises(MNIFError, match="GiB"):
        render.main(_options(run, instance=("0",), output=tmp_path / "large", resolution=200_000))
    assert not (tmp_path / "large").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(MNIFError, match="is a file"):
        render.main(_options(run, instance=("0",), output=tmp_path / "file"))


def test_an_interrupted_folder_is_gone_on_with(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = render.main(_options(run, instance=("0",), output=tmp_path / "whole"))
    output = render.main(_options(run, instance=("0",), output=tmp_path / "video"))
    for k in (1, 3):
        (output / f"frame_{k:05d}.png").unlink()
    kept = (output / "frame_00000.png").stat().st_mtime_ns
    capsys.readouterr()
    render.main(_options(run, instance=("0",), output=output))
    assert "2 of them kept from before" in capsys.readouterr().out
    assert (output / "frame_00000.png").stat().st_mtime_ns == kept
    for path in whole.glob("*.png"):
        assert path.read_bytes() == (output / path.name).read_bytes()


def test_what_fails_after_ctrl_c_was_interrupted() -> None:
    """The encoder gets the terminal's Ctrl-C as well, and a video that cannot be written to it fails first."""

    def fail(pressed: bool) -> None:
        with held_interrupts():
            if pressed:
                signal.raise_signal(signal.SIGINT)
            raise MNIFError("the video could not be written")

    with pytest.raises(KeyboardInterrupt):
        fail(pressed=True)
    with pytest.raises(MNIFError):
        fail(pressed=False)


def test_ctrl_c_waits_for_a_safe_place() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_interrupts() as checkpoint:
        checkpoint()
        signal.raise_signal(signal.SIGINT)  # held back
        with pytest.raises(KeyboardInterrupt):
            checkpoint()
        with pytest.raises(KeyboardInterrupt):  # the second is not
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("name", ["video.mp4", "frames"])
def test_ctrl_c_leaves_nothing_half_written(run: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "out" / name
    command = [sys.executable, "-m", "mnif_nerf.cli.render", "--load-config", str(run), "--path", "walk"]
    command += ["--frames", "100000", "--resolution", "12", "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        while started.poll() is None and not list((tmp_path / "out").glob("**/*.png" if name == "frames" else ".*mp4")):
            time.sleep(0.05)
        time.sleep(0.3)  # into the frames
        os.killpg(started.pid, signal.SIGINT)  # the terminal's Ctrl-C reaches the encoder too
        _, errors = started.communicate(timeout=60)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 130, errors
    assert "interrupted: nothing half-written was kept" in errors
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in left if path.startswith(".") or path.endswith(".mp4")]
    for path in (tmp_path / "out").rglob("*.png"):
        assert Image.open(path).size == (12, 12)
        Image.open(path).load()
