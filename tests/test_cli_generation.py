"""The commands mnif-sample, mnif-export-mesh and mnif-train-prior."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from safetensors.torch import load_file, save_file

from mnif_nerf.cli import export_mesh, sample, train_prior
from mnif_nerf.cli.export_mesh import ExportOptions, parse_formats
from mnif_nerf.cli.generation_common import chosen_objects
from mnif_nerf.cli.sample import SampleOptions
from mnif_nerf.cli.train_prior import TrainPriorOptions
from mnif_nerf.data.readers.voxel_files import read_voxels
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import read_json
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.pipelines import integrity
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import read_model
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.tensor_files import read_tensors


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run folder: config.yml (never read) and model/."""
    run = tmp_path / "run"
    shutil.copytree(trained, run / "model")
    (run / "config.yml").write_text("!!python/object:nerfstudio.never.Read {}\n")
    return run


def _sample(run: Path, **options: object) -> SampleOptions:
    small = {"num_samples": 3, "views": 2, "resolution": 16, "frames": 3, "turntable_resolution": 10}
    return SampleOptions(load_config=str(run / "config.yml"), **{**small, **options})


def _export(run: Path, **options: object) -> ExportOptions:
    return ExportOptions(load_config=str(run / "config.yml"), **{"num_samples": 2, "resolution": 16, **options})


# --- mnif-sample ------------------------------------------------------------------------------------------


def test_sample_writes_everything(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = sample.main(_sample(run))
    assert output == run / "samples" / "seed0-3"
    assert {p.name for p in output.iterdir()} == {
        "contact_sheet.png",
        "turntable.mp4",
        "latents.safetensors",
        "samples.json",
        "views",
    }
    facts = json.loads((output / "samples.json").read_text())
    assert (facts["seed"], facts["sampler"], len(facts["samples"])) == (0, "dpm-solver++", 3)
    names = [f"car_{k:02d}" for k in range(12)]
    for entry in facts["samples"]:
        assert entry["nearest_training_instance"] in names
        assert entry["distance"] > 0
        for view in entry["views"]:
            assert Image.open(output / view).size == (16, 16)
    assert load_file(str(output / "latents.safetensors"))["latents"].shape == (3, 5)
    printed = capsys.readouterr().out
    assert "mnif-export-mesh" in printed
    assert "contact_sheet.png" in printed


def test_sample_repeats(run: Path, tmp_path: Path) -> None:
    first = sample.main(_sample(run, output=tmp_path / "a", turntable=False))
    again = sample.main(_sample(run, output=tmp_path / "b", turntable=False))
    assert (first / "contact_sheet.png").read_bytes() == (again / "contact_sheet.png").read_bytes()
    assert not (first / "turntable.mp4").exists()


def test_sample_says_what_is_broken_and_draws_it_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [feature.name for feature in MNIFPipeline.from_pretrained(run).kind.integrity_features]
    rest = dict.fromkeys(names, 1.0)

    def judged(item: NeuralObject) -> dict[str, float]:
        return {**rest, "loose": float(item.latent[0] > 0) if item.name.startswith("sample") else 0.0}

    monkeypatch.setattr(integrity, "measure", judged)
    plain = sample.main(_sample(run, num_samples=6, turntable=False, redraw=0))
    printed = capsys.readouterr().out
    first = read_tensors(plain / "latents.safetensors")[0]["latents"]
    broken = [k for k in range(6) if first[k, 0] > 0]
    assert 0 < len(broken) < 6
    facts = json.loads((plain / "samples.json").read_text())["samples"]
    assert [k for k in range(6) if facts[k]["integrity"]["broken"]] == broken
    assert f"{len(broken)} of 6 lie outside" in printed
    assert facts[broken[0]]["integrity"]["reason"].startswith("loose share of the volume")
    assert (run / "model" / "integrity.json").is_file()

    again = sample.main(_sample(run, num_samples=6, turntable=False, redraw=8))
    printed = capsys.readouterr().out
    second = read_tensors(again / "latents.safetensors")[0]["latents"]
    changed = [k for k in range(6) if not torch.equal(first[k], second[k])]
    assert changed == broken
    assert (second[:, 0] <= 0).all()
    assert f"{len(broken)} of 6 were drawn again" in printed
    fewer = sample.main(_sample(run, num_samples=4, turntable=False, redraw=8))
    # To rounding: some processors multiply batches of four in another order than batches of six.
    torch.testing.assert_close(read_tensors(fewer / "latents.safetensors")[0]["latents"], second[:4], rtol=0, atol=1e-5)
    pipe = MNIFPipeline.from_pretrained(run)
    assert torch.equal(torch.stack([item.latent for item in pipe(6, redraw=8)]), second)

    usual = sample.main(_sample(run, num_samples=6, turntable=False))
    assert json.loads((usual / "samples.json").read_text())["redraw"] == integrity.REDRAWS
    drawn = read_tensors(usual / "latents.safetensors")[0]["latents"]
    assert not torch.equal(drawn, first)
    options = ExportOptions(str(run), num_samples=6)
    assert torch.equal(torch.stack([item.latent for item in chosen_objects(pipe, options)]), drawn)


def test_a_yardstick_of_another_model_is_measured_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = MNIFPipeline.from_pretrained(run)
    names = [feature.name for feature in pipe.kind.integrity_features]
    calls: list[str] = []
    monkeypatch.setattr(integrity, "measure", lambda item: calls.append(item.name) or dict.fromkeys(names, 1.0))
    integrity.yardstick_of(pipe, pipe.folder)
    assert len(calls) == len(pipe.names)
    integrity.yardstick_of(pipe, pipe.folder)
    assert len(calls) == len(pipe.names)
    pipe.model.latents[0, 0] += 1.0
    integrity.yardstick_of(pipe, pipe.folder)
    assert len(calls) == 2 * len(pipe.names)


def test_sample_interpolates(run: Path) -> None:
    output = sample.main(_sample(run, interpolate=("car_02", "5"), num_samples=4, turntable=False))
    latents = load_file(str(output / "latents.safetensors"))["latents"]
    stored = read_model(run / "model").latents
    assert torch.equal(latents[[0, -1]], stored[[2, 5]])
    assert json.loads((output / "samples.json").read_text())["samples"][0]["nearest_training_instance"] == "car_02"


def test_many_samples_share_rows(run: Path) -> None:
    many = sample.main(_sample(run, num_samples=6, turntable=False))
    few = sample.main(_sample(run, num_samples=4, turntable=False))
    assert Image.open(many / "contact_sheet.png").height < Image.open(few / "contact_sheet.png").height


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 0}, "--num-samples 0"),
        ({"views": 0}, "--views 0"),
        ({"resolution": 0}, "--resolution 0"),
        ({"frames": 0}, "--frames 0"),
        ({"sampler": "magic"}, "magic"),
        ({"redraw": -1}, "--redraw -1"),
        ({"redraw": 2, "integrity": False}, "--no-integrity"),
        ({"steps": 0}, "steps"),
        ({"temperature": -1.0}, "temperature"),
        ({"interpolate": ("car_02", "car_99")}, "car_99.*did you mean"),
        ({"interpolate": ("0", "1"), "num_samples": 1}, "--num-samples 2"),
        ({"device": "toaster"}, "toaster"),
    ],
)
def test_sample_refuses(run: Path, options: dict, words: str) -> None:
    with pytest.raises(MNIFError, match=words) as caught:
        sample.main(_sample(run, **options))
    assert "\n" not in str(caught.value)
    assert not (run / "samples").exists()


def test_output_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MNIFError, match="is a file"):
        sample.main(_sample(run, output=tmp_path / "file"))
    with pytest.raises(MNIFError, match="part of this path is a file"):
        export_mesh.main(_export(run, output=tmp_path / "file" / "deeper"))


def test_read_only_output(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # tests may run as root, whom permission bits do not stop
    with pytest.raises(MNIFError, match="no permission"):
        sample.main(_sample(run, output=tmp_path / "out"))


def test_run_without_a_prior(run: Path) -> None:
    shutil.rmtree(run / "model" / "prior")
    for call in (lambda: sample.main(_sample(run)), lambda: export_mesh.main(_export(run))):
        with pytest.raises(MNIFError, match="mnif-train-prior"):
            call()
    assert export_mesh.main(_export(run, source="training")).is_dir()


def test_interrupted_sampling_leaves_whole_files_only(run: Path, tmp_path: Path, monkeypatch) -> None:
    import mnif_nerf.export.video as video

    def interrupt(frames, path: Path, fps: int) -> None:
        next(frames)
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(video, "_write_mp4", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sample.main(_sample(run, output=tmp_path / "out"))
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left == {"contact_sheet.png", "views"}


# --- mnif-export-mesh -------------------------------------------------------------------------------------


def test_export_every_format(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = export_mesh.main(_export(run, format="glb,ply,obj,stl,binvox,npz"))
    printed = capsys.readouterr().out
    assert re.search(
        r"stl: slicers read its numbers as millimetres, so the longest side is 0\.\d+ mm; --scale 100", printed
    )
    assert "ply and obj: colours are at the vertices" in printed
    assert output == run / "meshes" / "seed0"
    report = json.loads((output / "report.json").read_text())
    assert [entry["name"] for entry in report["objects"]] == ["sample000", "sample001"]
    for entry in report["objects"]:
        assert len(entry["files"]) == 6
        assert entry["watertight"]
        for name in entry["files"][:4]:
            read = trimesh.load(output / name, force="mesh")
            assert read.volume == pytest.approx(entry["volume"], rel=1e-3)
        voxels = trimesh.load(output / entry["files"][4])
        assert voxels.matrix.sum() == entry["occupied_voxels"]
        assert (voxels.matrix == read_voxels(output / entry["files"][5])).all()
    assert "y up" in report["axes"]["glb, obj"]
    assert "watertight" in printed


def test_export_levels_of_detail_with_pictures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {
        "lods": "120, 40",
        "texture": 64,
        "scale": 4.2,
        "origin": "bottom",
        "format": "glb,ply,obj,npz",
        "resolution": 24,
    }
    output = export_mesh.main(_export(run, num_samples=1, source="training", **wanted))
    meshes = {f"car_00_lod{k}.{kind}" for k in (0, 1) for kind in ("glb", "ply", "obj", "mtl")}
    pictures = {f"car_00_lod{k}_color.png" for k in (0, 1)}
    assert {p.name for p in output.iterdir()} == meshes | pictures | {"car_00.npz", "report.json"}
    (entry,) = json.loads((output / "report.json").read_text())["objects"]
    assert [(lod["triangles"], lod["watertight"]) for lod in entry["lods"]] == [(120, True), (40, True)]
    glb, ply = (trimesh.load(output / f"car_00_lod0.{kind}", force="mesh") for kind in ("glb", "ply"))
    assert glb.visual.material.baseColorTexture.size == (64, 64)
    assert glb.extents.max() == pytest.approx(4.2)
    assert glb.bounds[0, 1] == pytest.approx(0, abs=1e-6)  # y up
    assert ply.bounds[0, 2] == pytest.approx(0, abs=1e-6)  # z up
    assert len(np.unique(ply.visual.vertex_colors, axis=0)) > 1
    printed = capsys.readouterr().out
    assert "120, 40" in printed
    assert "no picture in ply" in printed


@pytest.mark.parametrize("flag", ["--max-faces", "--faces"])
def test_the_former_name_of_faces_is_understood(
    flag: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mnif-export-mesh", "--load-config", str(run), flag, "3"])
    with pytest.raises(SystemExit):
        export_mesh.entrypoint()
    assert capsys.readouterr().err == (
        "error: --faces 3 cannot close a surface; use at least 4 triangles (20000 is usual).\n"
    )


def test_export_training_instances(run: Path) -> None:
    output = export_mesh.main(_export(run, source="training", instance=("car_03", "7")))
    assert {p.name for p in output.iterdir()} == {"car_03.glb", "car_07.glb", "report.json"}
    with pytest.raises(MNIFError, match="did you mean car_03"):
        export_mesh.main(_export(run, source="training", instance=("car03",)))


def test_objects_mixed_by_layers_are_exported_from_their_own_file(run: Path, tmp_path: Path) -> None:
    pipe = MNIFPipeline.from_pretrained(run)
    mixed = pipe.mix_layers(0, 1, [0.0, 0.5, 1.0], name="half and half")
    mixed.save(tmp_path / "mixed.safetensors")
    output = export_mesh.main(_export(run, source="latent", latent_file=tmp_path / "mixed.safetensors"))
    (report,) = read_json(output / "report.json")["objects"]
    assert report["files"] == ["half_and_half.glb"]
    assert report["volume"] == pytest.approx(mixed.mesh(resolution=16).volume, rel=1e-3)


def test_export_saved_latents(run: Path, tmp_path: Path) -> None:
    model = read_model(run / "model")
    save_file({"latents": model.latents[:2].contiguous()}, str(tmp_path / "two.safetensors"))
    output = export_mesh.main(_export(run, source="latent", latent_file=tmp_path / "two.safetensors"))
    direct = export_mesh.main(_export(run, source="training"))
    first, second = (trimesh.load(p, force="mesh") for p in (output / "two000.glb", direct / "car_00.glb"))
    assert first.vertices == pytest.approx(second.vertices)
    save_file({"other": torch.zeros(2)}, str(tmp_path / "other.safetensors"))
    for name, words in (("absent", "no such file"), ("other", "neither latents nor latent")):
        with pytest.raises(MNIFError, match=words):
            export_mesh.main(_export(run, source="latent", latent_file=tmp_path / f"{name}.safetensors"))
    save_file({"latent": torch.tensor(1.0)}, str(tmp_path / "scalar.safetensors"))
    with pytest.raises(MNIFError, match=r"latents of shape \[\], expected \[n, D\]"):
        export_mesh.main(_export(run, source="latent", latent_file=tmp_path / "scalar.safetensors"))
    save_file({"latents": torch.zeros(2, 4)}, str(tmp_path / "small.safetensors"))
    with pytest.raises(MNIFError, match="takes 5 numbers"):
        export_mesh.main(_export(run, source="latent", latent_file=tmp_path / "small.safetensors"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 0}, "--num-samples 0"),
        ({"format": "fbx"}, "unknown format 'fbx'"),
        ({"format": " , "}, "no format"),
        ({"resolution": 0}, "`resolution` 0 is too small"),
        ({"resolution": 200_000}, "GiB"),
        ({"level": -2.0}, "level"),
        ({"level": 1e9}, "reaches the density level"),
        ({"level": 1e9, "format": "npz"}, "not one voxel"),
        ({"smooth": -1}, "smooth"),
        ({"faces": 0}, "`faces` 0"),
        ({"faces": 4, "lods": "9"}, "give one of them"),
        ({"lods": "100,many"}, "--lods 100,many: many is no number of triangles"),
        ({"lods": "100,200"}, "`lods` 100,200: must descend"),
        ({"texture": 1}, "`texture` 1 is out of range"),
        ({"texture": 64, "format": "ply,stl,npz"}, "`texture` 64: ply and stl cannot carry a picture"),
        ({"texture": 64, "format": "npz"}, "--texture is for meshes, and --format npz writes none"),
        ({"scale": -1.0}, "`scale` -1.0: expected a finite number"),
        ({"up": "z", "format": "ply,glb"}, "y up by definition"),
        ({"source": "latent"}, "--latent-file"),
        ({"instance": ("car_00",)}, "--source training"),
        ({"latent_file": Path("x")}, "--source latent"),
    ],
)
def test_export_refuses(run: Path, options: dict, words: str) -> None:
    with pytest.raises(MNIFError, match=words):
        export_mesh.main(_export(run, **options))
    assert not list(run.glob("meshes/*/*.glb"))


def test_one_empty_object_does_not_stop_the_others(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mnif_nerf.objects.radiance import NeuralRadiance

    whole = NeuralRadiance.mesh

    def mesh(self: NeuralRadiance, *arguments: object) -> object:
        if self.name == "sample000":
            raise MNIFError("nothing in the field reaches the density level; lower it with `level`.")
        return whole(self, *arguments)

    monkeypatch.setattr(NeuralRadiance, "mesh", mesh)
    output = export_mesh.main(_export(run))
    assert [p.name for p in output.glob("*.glb")] == ["sample001.glb"]
    assert "reaches" in json.loads((output / "report.json").read_text())["objects"][0]["error"]
    assert "lower it with --level" in capsys.readouterr().out


def test_format_lists() -> None:
    assert parse_formats("glb, .PLY,glb") == ("glb", "ply")


# --- mnif-train-prior -------------------------------------------------------------------------------------


def test_train_prior_replaces_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = TrainPriorOptions(run, steps=4, whitening="per-dimension", width=16, blocks=1, seed=1, held_out=0.25)
    target = train_prior.main(options)
    assert target == run / "model" / "prior"
    assert [p.name for p in target.parent.iterdir() if "tmp" in p.name or "old" in p.name] == []
    prior = read_model(run / "model").prior
    assert prior is not None
    assert prior.whitening.mode == "per-dimension"
    printed = capsys.readouterr().out
    assert "4 steps" in printed
    assert "held-out loss" in printed
    assert "mnif-sample" in printed


def test_train_prior_mends_a_damaged_one(run: Path) -> None:
    for file in (run / "model" / "prior").rglob("*.*"):
        if file.is_file():
            file.write_text("broken")
    with pytest.raises(MNIFError):
        sample.main(_sample(run))
    train_prior.main(TrainPriorOptions(run, steps=3))
    assert sample.main(_sample(run, turntable=False)).is_dir()


def test_interrupted_prior_training_keeps_the_old_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.read_bytes() for p in (run / "model").rglob("*") if p.is_file()}

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LatentPrior, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_prior.main(TrainPriorOptions(run, steps=3))
    assert {p: p.read_bytes() for p in (run / "model").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("options", [{"steps": 0}, {"held_out": 2.0}, {"learning_rate": -1.0}, {"rank": 0}])
def test_train_prior_refuses(run: Path, options: dict) -> None:
    with pytest.raises(MNIFError):
        train_prior.main(TrainPriorOptions(run, **options))


# --- as console scripts -----------------------------------------------------------------------------------


def test_errors_are_one_line_with_exit_code_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mnif_nerf.cli.sample", "--load-config", str(tmp_path / "absent")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
