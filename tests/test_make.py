"""`mnif-make`: from a folder to a page, in one command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnif_nerf.cli import export_mesh
from mnif_nerf.cli import make as making
from mnif_nerf.cli.make import MakeOptions
from mnif_nerf.cli.sample_pictures import is_broken
from mnif_nerf.data.generate.varied_copies import is_varied
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import read_json
from mnif_nerf.pipelines import preset
from mnif_nerf.pipelines.methods import METHODS
from mnif_nerf.pipelines.time_plan import TimePlan
from mnif_nerf.tensor_files import read_tensors

TINY = {"minutes": 0.1, "num_samples": 2, "texture": 32, "faces": 4000}


@pytest.fixture(scope="module", autouse=True)
def tiny_methods() -> Iterator[None]:
    """Fields so small that something can be learned in a second."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mnif-sdf-lite", "mnif-image-lite"):
            method = METHODS[name]
            settings = method.new_run()
            settings.pipeline.datamanager.points_per_instance = 256  # type: ignore[attr-defined]
            settings.max_num_iterations = 600
            for group in settings.optimizers.values():
                group["scheduler"].warmup_steps = 10
            for key, value in {"width": 16, "hidden_layers": 2, "num_bases": 4, "latent_dim": 4}.items():
                setattr(settings.pipeline.model, key, value)  # type: ignore[attr-defined]
            patch.setitem(METHODS, name, replace(method, settings=settings))
        patch.setattr(making, "_FRAMES", 2)
        # What has hardly been learned is ragged, and a million triangles take long to become few.
        patch.setattr(export_mesh, "ExportOptions", partial(export_mesh.ExportOptions, resolution=32))
        # So many steps on any machine: in a short time of a busy one nothing is learned, and rays find no end.
        patch.setattr(TimePlan, "start", lambda *_: None)
        patch.setattr(preset, "choose", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six boxes of different sizes, and a file that nobody reads."""
    trimesh = pytest.importorskip("trimesh")
    for module in ("igl", "manifold3d", "xatlas"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("make") / "boxes"
    folder.mkdir()
    for k in range(6):
        trimesh.creation.box((1 + k / 4, 1, 1 + k / 8)).export(folder / f"box{k}.ply")
    (folder / "notes.txt").write_text("six boxes")
    return folder


@pytest.fixture(scope="module")
def made(boxes: Path) -> MakeOptions:
    """What the command made of them."""
    options = MakeOptions(boxes, output=boxes.parent / "page", **TINY)  # type: ignore[arg-type]
    making.main(options)
    return options


def test_a_folder_of_meshes_becomes_a_page_a_sheet_and_meshes(made: MakeOptions) -> None:
    output = made.folder()
    assert "<canvas" in (output / "index.html").read_text(encoding="utf-8")
    assert (output / "samples" / "contact_sheet.png").is_file()
    latents, facts = read_tensors(output / "samples" / "latents.safetensors")
    assert latents["latents"].shape[0] == 2
    assert "sample000" in facts["names"]
    assert "=== writing the page" in (output / "log.txt").read_text(encoding="utf-8")
    report = read_json(output / "meshes" / "report.json")
    # A model of hardly a step need not have surfaces everywhere; what is there is named as on the sheet.
    assert {entry["name"] for entry in report["objects"]} == {"sample000", "sample001"}


def test_of_three_none_is_held_out_and_samples_are_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trimesh = pytest.importorskip("trimesh")
    (tmp_path / "three").mkdir()
    for k in range(3):
        trimesh.creation.torus(1.0, 0.3 + k / 20).export(tmp_path / "three" / f"ring{k}.ply")
    few = {**TINY, "faces": 4, "num_samples": 1}  # no ring keeps closed by so few
    options = MakeOptions(tmp_path / "three", output=tmp_path / "page", **few)  # type: ignore[arg-type]
    assert len(making.main(options).names) == 3
    told = capsys.readouterr().out
    assert "1 could not be written as meshes: --faces 4 is fewer than" in told
    assert "meshes/*.glb" not in told
    assert (tmp_path / "page" / "index.html").is_file()
    assert not any(map(is_broken, read_json(tmp_path / "page" / "samples" / "samples.json")["samples"]))


def test_copies_of_the_meshes_are_learned_from(boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "_train", stop)
    with pytest.raises(KeyboardInterrupt):
        making.main(MakeOptions(boxes, output=tmp_path / "page", copies=1, **TINY))  # type: ignore[arg-type]
    splits = read_json(tmp_path / "page" / "data" / "dataset.json")["splits"]
    assert sum(is_varied(name) for name in splits["train"]) == len(splits["train"]) // 2


def test_only_meshes_are_varied(tmp_path: Path) -> None:
    for k in range(4):
        Image.new("RGB", (8, 8), (60 * k, 0, 0)).save(tmp_path / f"{k}.png")
    with pytest.raises(MNIFError, match=r"`copies` 3: only meshes are varied.*leave it out"):
        making.main(MakeOptions(tmp_path, output=tmp_path.parent / "made_of_pictures", copies=3))


def test_the_same_command_again_makes_nothing_again(made: MakeOptions, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        path for path in made.folder().rglob("*") if path.is_file() and path.name not in ("log.txt", "dataset.json")
    ]
    before = {path: path.stat().st_mtime_ns for path in files}
    making.main(made)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    said = capsys.readouterr().out
    assert "learned already" in said
    assert "1 other files" in said or "notes.txt" in said  # nothing that the user gave goes unmentioned


def test_other_input_does_not_replace_it(made: MakeOptions, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.ply").write_bytes((made.input / "box0.ply").read_bytes())
    with pytest.raises(MNIFError, match="made with input"):
        making.main(replace(made, input=other))


def test_pictures_become_a_page_without_meshes(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "dots"
    folder.mkdir()
    for k in range(8):
        pixels = np.zeros((8, 8, 3), dtype=np.uint8)
        pixels[k % 8, :, k % 3] = 255
        Image.fromarray(pixels).save(folder / f"dot{k}.png")
    pipe = making.make(folder, minutes=0.02, output=tmp_path / "page", num_samples=3)
    assert len(pipe(2)) == 2
    assert (tmp_path / "page" / "index.html").is_file()
    assert not (tmp_path / "page" / "meshes").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"minutes": float("nan")}, "minutes"),
        ({"minutes": 0.0}, "no time"),
        ({"num_samples": 0}, "num_samples"),
        ({"texture": 100_000}, "texture"),
        ({"input": Path("no/such/folder")}, "no such folder"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(tmp_path: Path, change: dict[str, object], said: str) -> None:
    options = replace(MakeOptions(tmp_path / "in", output=tmp_path / "out"), **change)  # type: ignore[arg-type]
    (tmp_path / "in").mkdir()
    with pytest.raises(MNIFError, match=said):
        making.main(options)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_nothing_and_an_output_in_the_input_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.txt").write_text("nothing here")
    with pytest.raises(MNIFError, match="in"):
        making.main(MakeOptions(tmp_path / "in", output=tmp_path / "out"))
    with pytest.raises(MNIFError, match="lies in the input"):
        making.main(MakeOptions(tmp_path / "in", output=tmp_path / "in" / "page"))
    assert not (tmp_path / "out").exists()
