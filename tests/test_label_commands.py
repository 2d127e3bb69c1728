"""Asking for labels: in Python and by every command, of a model whose prior knows them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_model import tiny_image_model

from mnif_nerf.cli import export_web, fit, render, sample, train_prior
from mnif_nerf.cli.export_web import WebOptions
from mnif_nerf.cli.fit import ARGUMENTS, FitOptions
from mnif_nerf.cli.generation_common import read_latents
from mnif_nerf.cli.render import RenderOptions
from mnif_nerf.cli.sample import SampleOptions
from mnif_nerf.cli.train_prior import TrainPriorOptions
from mnif_nerf.errors import MNIFError, flag_paths, with_flags
from mnif_nerf.files import read_json, write_json
from mnif_nerf.labels import Labels
from mnif_nerf.pipelines.fit.posterior import AnswerConfig
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import read_model, write_model
from mnif_nerf.priors.prior import LatentPrior, PriorConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of pictures with labels and a prior that knows them."""
    folder = tmp_path_factory.mktemp("labelled")
    model = tiny_image_model(12)
    model.labels = Labels({"kind": ("left", "right") * 6, "size": tuple(float(k) for k in range(12))})
    write_model(model, folder / "model")
    train_prior.main(TrainPriorOptions(folder, steps=20))
    return folder


def test_the_model_folder_keeps_them(run: Path, tmp_path: Path) -> None:
    pipe = MNIFPipeline.from_pretrained(run)
    assert pipe.model.labels is not None
    assert pipe.instance(1).label == {"kind": "right", "size": 1.0}
    assert pipe.prior is not None
    assert [attribute.name for attribute in pipe.prior.attributes] == ["kind", "size"]
    pipe.save_pretrained(tmp_path / "copy")
    assert read_model(tmp_path / "copy").labels == pipe.model.labels
    config = read_json(tmp_path / "copy" / "config.json")
    for broken in ({"kind": ["left"]}, {"kind": [1.0, "left"] * 6}, {"": ["a", "b"] * 6}, "left"):
        write_json(tmp_path / "copy" / "config.json", {**config, "labels": broken})
        with pytest.raises(MNIFError, match="labels"):
            read_model(tmp_path / "copy")


def test_asking_in_python(run: Path) -> None:
    pipe = MNIFPipeline.from_pretrained(run)
    found = pipe(num_samples=3, label={"KIND": "Left"}, guidance=1)
    assert [item.label for item in found] == [{"kind": "left"}] * 3
    again = pipe(num_samples=1, label={"kind": "left"})[0].latent  # 1 is the usual
    torch.testing.assert_close(again, found[0].latent)
    with pytest.raises(MNIFError, match="there is kind: left, right"):
        pipe(label={"kind": "middle"})


def test_the_commands(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"num_samples": 2, "integrity": False, "output": tmp_path / "out"}
    sample.main(SampleOptions(str(run), label=("kind=left", "size=3"), guidance=1.5, **small))
    content = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [entry["label"] for entry in content["samples"]] == [{"kind": "left", "size": 3.0}] * 2
    assert (content["label"], content["guidance"]) == (["kind=left", "size=3"], 1.5)
    wrong = {("left",): "attribute=value", ("kind=left", "kind=right"): "asked for as left already", ("kind=up",): "up"}
    for label, said in wrong.items():
        with pytest.raises(MNIFError, match=said):
            sample.main(SampleOptions(str(run), label=label, **small))
    with pytest.raises(MNIFError, match="add --label"):
        sample.main(SampleOptions(str(run), guidance=2.0, **small))
    with pytest.raises(MNIFError, match="guidance"):
        sample.main(SampleOptions(str(run), label=("kind=left",), guidance=math.nan, **small))
    with pytest.raises(MNIFError, match="--label and --guidance are for samples"):
        export_web.main(WebOptions(str(run), source="training", label=("kind=left",)))


def test_videos_of_a_label(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small: dict[str, Any] = {"path": "interpolate", "index": (1, 0), "seed": 4, "frames": 2, "resolution": 8}
    folder = render.main(RenderOptions(str(run), label=("kind=left",), guidance=3, output=tmp_path / "video", **small))
    wanted = MNIFPipeline.from_pretrained(run, device="cpu")(2, seed=4, label={"kind": "left"}, guidance=3)
    for name, item in zip(("frame_00000.png", "frame_00001.png"), reversed(wanted)):
        assert Image.open(folder / name).tobytes() == item.own_picture(8).tobytes()
    output = render.main(RenderOptions(str(run), "walk", stops=2, frames=2, resolution=8, label=("size=3",)))
    assert output.name == "walk-seed0-2-size-3.mp4"
    assert capsys.readouterr().out.rstrip().endswith("--label size=3 --path walk --seed 1")
    wrong = {("left",): "attribute=value", ("kind=up",): "there is kind: left, right"}
    for label, said in wrong.items():
        with pytest.raises(MNIFError, match=said):
            render.main(RenderOptions(str(run), label=label, **small))
    with pytest.raises(MNIFError, match="add --label"):
        render.main(RenderOptions(str(run), guidance=2, **small))
    with pytest.raises(MNIFError, match="leave them, or --instance"):
        render.main(RenderOptions(str(run), instance=("0", "1"), label=("kind=left",), path="interpolate"))


def test_labels_for_a_model_that_is_there(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tiny_image_model(12), tmp_path / "model")
    names = read_model(tmp_path / "model").names
    table = tmp_path / "mine.csv"
    table.write_text(
        "name,kind\nunseen,up\n" + "".join(f"{name},{'up' if k < 5 else 'down'}\n" for k, name in enumerate(names))
    )
    train_prior.main(TrainPriorOptions(tmp_path, steps=3, labels=table))
    assert "--label kind=down" in capsys.readouterr().out
    assert read_model(tmp_path / "model").labels == Labels({"kind": ("up",) * 5 + ("down",) * 7})
    train_prior.main(TrainPriorOptions(tmp_path, steps=3, use_labels=False))
    found = read_model(tmp_path / "model")
    assert found.prior is not None
    assert not found.prior.attributes
    table.write_text("name,kind\nx,up\ny,up\nz,down\n")
    with pytest.raises(MNIFError, match=r"mean no instance.*such as"):
        train_prior.main(TrainPriorOptions(tmp_path, steps=3, labels=table))
    with pytest.raises(MNIFError, match="drop one of the two"):
        train_prior.main(TrainPriorOptions(tmp_path, steps=3, labels=table, use_labels=False))


# ------------------------------------------------------------------------------------------------- answers to a part


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two kinds of pictures, alike within a kind, with a prior that knows them."""
    folder = tmp_path_factory.mktemp("apart")
    model = tiny_image_model(40)
    model.labels = Labels({"kind": ("left", "right") * 20})
    model.latents = 0.05 * model.latents + torch.tensor([[1.5], [-1.5]]).repeat(20, 1)
    config = PriorConfig(steps=300, width=32, blocks=2, batch_size=64)
    model.prior = LatentPrior.fit(model.latents, config, progress=False, labels=model.labels)
    write_model(model, folder / "run" / "model")
    MNIFPipeline(model).instance(0).own_picture(8).save(folder / "left.png")
    return folder


def test_answers_have_the_label_or_speak_against_it(
    apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = AnswerConfig(candidates=4, steps=6)  # too few to get from one kind to the other
    for place in ("fitting", "answers"):
        monkeypatch.setattr(f"mnif_nerf.pipelines.fit.{place}.AnswerConfig", lambda: few)
    pipe = MNIFPipeline.from_pretrained(apart / "run", device="cpu")
    small: dict[str, Any] = {"samples": 3, "steps": 40, "resolution": 8, "device": "cpu"}
    for kind, side in (("left", 1), ("right", -1)):
        options = FitOptions(str(apart / "run"), apart / "left.png", label=(f"kind={kind}",), guidance=1.5, **small)
        output = fit.main(options)
        assert output.name == f"left-png-steps40-samples3-kind-{kind}-guidance1.5"
        found = read_latents(output / "answers.safetensors")
        assert (side * found.mean(1) > 0.5).all()
        notes = json.loads((output / "report.json").read_text())["notes"]
        said = capsys.readouterr().out
        if kind == "left":
            assert not notes
            continue
        assert re.search(r"seen speaks against right: .* \(loss .* against .*\); leave the label out", notes[-1])
        assert "note: what was seen speaks against right" in said
    answers = pipe.fit(apart / "left.png", samples=2, steps=5, label={"KIND": "Left"}, guidance=1)
    assert [item.label for item in answers] == [{"kind": "left"}] * 2
    plain = pipe.fit(apart / "left.png", samples=2, steps=5)
    assert [item.label for item in plain] == [{}] * 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": ("kind=left",)}, "--label is for answers.* add --samples, such as 6"),
        ({"label": ("kind=up",), "samples": 2}, "--label kind=up: there is kind: left, right"),
        ({"label": ("kind",), "samples": 2}, "expected attribute=value"),
        ({"guidance": 2.0, "samples": 2}, "--guidance 2 guides to a label"),
    ],
)
def test_labels_that_a_fit_refuses(apart: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(MNIFError) as caught:
        fit.main(FitOptions(str(apart / "run"), apart / "left.png", output=tmp_path / "out", **changes))
    assert re.search(said, with_flags(str(caught.value), flag_paths(FitOptions), ARGUMENTS))
    assert not (tmp_path / "out").exists()
