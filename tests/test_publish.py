"""mnif-publish: the folder, its card, and the way to a hub and back (a server on this machine)."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fake_hub import TOKEN, fake_hub
from PIL import Image
from tiny_model import tiny_image_model, tiny_voxel_model

from mnif_nerf.cli.publish import PublishOptions, main
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.cache import digest_of_model
from mnif_nerf.files import write_json
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import write_model
from mnif_nerf.pipelines.publish.model_card import CardOptions, model_card


def metrics_of(pipe: MNIFPipeline) -> dict:
    """The parts of a metrics.json that the card reads."""
    summary = {"psnr": {"mean": 28.6487}, "ssim": {"mean": 0.96}}
    line = {"row": "dpm-30", "label": "DPM-Solver++, 30 steps", "scores": {"chamfer_l2sq_mean_sum/cov": {"value": 0.5}}}
    return {
        "format": "mnif_nerf.evaluation",
        "protocol": {"name": "small", "seed": 0},
        "model": {"digest": digest_of_model(pipe.model)},
        "data": {"name": "cars"},
        "machine": {"processor": "a processor"},
        "reconstruction": {"training": {"summary": summary}, "unseen": {"summary": summary}},
        "shapes": {"references": 24, "lines": [line]},
    }


def front_matter(card: str) -> dict:
    """The YAML at the head of a card."""
    return yaml.safe_load(card.split("---")[1])


@pytest.fixture
def run(folder: Path, pipe: MNIFPipeline) -> Path:
    """A run folder with a model and an evaluation of it."""
    write_json(folder.parent / "evaluation" / "small-seed0" / "metrics.json", metrics_of(pipe))
    return folder.parent


def test_a_published_folder_is_a_model_with_a_card(
    run: Path, pipe: MNIFPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = PublishOptions(
        str(run), tmp_path / "out", title="Tiny cars", license="mit", about="Made by a test.", num_pictures=2
    )
    out = main(options)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"README.md", "samples.png", "metrics.json", "config.json", "prior/prior.json"} <= files
    assert not [name for name in files if not name.endswith((".json", ".safetensors", ".md", ".png"))]
    again = MNIFPipeline.from_pretrained(out)
    assert torch.equal(again.latents, pipe.latents)
    assert torch.equal(again.sample_latents(2), pipe.sample_latents(2))
    card = (out / "README.md").read_text()
    assert front_matter(card)["license"] == "mit"
    (result,) = front_matter(card)["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]}["psnr"] == pytest.approx(28.6487)
    for words in ("# Tiny cars", "Made by a test.", "samples.png", "| unseen instances | 28.65 | 0.96 |", "| 0.5 |"):
        assert words in card
    assert Image.open(out / "samples.png").size == (2 * 192, 192)
    said = capsys.readouterr().out
    assert "wrote" in said
    assert "next:" in said
    main(options)  # a second time replaces the first


def test_the_example_of_the_card_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = main(PublishOptions(str(run), tmp_path / "out", num_pictures=0))
    monkeypatch.chdir(tmp_path)
    program = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(program.replace("resolution=128", "resolution=16"), {})
    assert (tmp_path / "object.glb").read_bytes()[:4] == b"glTF"


def test_cards_of_all_modalities_and_without_a_prior() -> None:
    options = CardOptions("Things", "someone/things")
    voxel, image = tiny_voxel_model(), tiny_image_model()
    cards = [model_card(voxel, options), model_card(image, options)]
    assert front_matter(cards[0])["tags"] == ["3d", "neural-fields", "mnif"]
    assert "license" not in front_matter(cards[0])
    assert front_matter(cards[1])["tags"] == ["neural-fields", "mnif"]
    assert "without a latent prior" in cards[0]
    assert "pipe.instance(0).mesh(" in cards[0]
    assert "image().save" in cards[1]


def test_metrics_of_another_model_are_refused(run: Path, pipe: MNIFPipeline, tmp_path: Path) -> None:
    content = metrics_of(pipe)
    content["model"]["digest"] = "of another"
    other = tmp_path / "other.json"
    write_json(other, content)
    with pytest.raises(MNIFError, match=r"other\.json: measured of another model than this one; run mnif-eval again"):
        main(PublishOptions(str(run), tmp_path / "out", metrics=other))
    write_json(other, {"format": "something"})
    with pytest.raises(MNIFError, match=r"not the metrics\.json of an evaluation"):
        main(PublishOptions(str(run), tmp_path / "out", metrics=other))
    assert not (tmp_path / "out").exists()


def test_stale_metrics_are_left_out_and_named(
    run: Path, pipe: MNIFPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = metrics_of(pipe)
    content["model"]["digest"] = "of an older training"
    write_json(run / "evaluation" / "small-seed0" / "metrics.json", content)
    out = main(PublishOptions(str(run), tmp_path / "out", num_pictures=0))
    assert not (out / "metrics.json").exists()
    said = capsys.readouterr().out
    assert "note: not used:" in said
    assert "no metrics on the card" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_pictures": -1}, "--num-pictures -1 is below 0"),
        ({"private": True}, "add --push owner/name"),
        ({"push": "cars"}, "--push cars: not a repository's name; give owner/name"),
        ({"load_config": "nowhere"}, "nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_one_sentence(run: Path, tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(MNIFError, match=words):
        main(PublishOptions(**{"load_config": str(run), "output": tmp_path / "out", **options}))
    assert not (tmp_path / "out").exists()


def test_other_folders_are_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(MNIFError, match="holds something else than a model"):
        main(PublishOptions(str(run), tmp_path / "out", num_pictures=0))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_nothing_beside_a_published_model_is_lost(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = main(PublishOptions(str(run), tmp_path / "out", num_pictures=1))
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(MNIFError, match=r"holds something else than a model \(thesis\.txt\)"):
        main(PublishOptions(str(run), tmp_path / "out", num_pictures=1))
    with pytest.raises(MNIFError, match=r"holds something else than a model"):
        MNIFPipeline.from_pretrained(out).save_pretrained(out)
    assert (out / "thesis.txt").read_text() == "years of work"
    (out / "thesis.txt").unlink()
    monkeypatch.chdir(out)
    with pytest.raises(MNIFError, match="is the folder you are in"):
        main(PublishOptions(str(run), Path("."), num_pictures=1))
    assert (out / "README.md").is_file()


def test_cards_survive_odd_names(pipe: MNIFPipeline) -> None:
    model = dataclasses.replace(pipe.model, training={"data": 'a|b <img src="x"> `c`'})
    options = CardOptions('Cars: "the\nbest" #1 | all', 'folder/with "quotes"', license="other: mine")
    card = model_card(model, options)
    assert front_matter(card)["license"] == "other: mine"
    assert '# Cars: "the best" \\#1 \\| all\n' in card
    assert r'| data | a\|b \<img src="x"\> \`c\` |' in card
    program = card.split("```python\n")[1].split("```")[0]
    compile(program, "card", "exec")


def hub_command(address: str, home: Path, token: str, program: str) -> subprocess.CompletedProcess[str]:
    """A new Python whose hub is at `address`: the hub's client reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = {
        name: value for name, value in os.environ.items() if name.lower() not in ("http_proxy", "https_proxy")
    }
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, **settings},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_to_the_hub_and_back(run: Path, pipe: MNIFPipeline, tmp_path: Path) -> None:
    push = (
        "from mnif_nerf.cli.publish import PublishOptions, main; from mnif_nerf.errors import run_command; "
        f"run_command(lambda: main(PublishOptions({str(run)!r}, num_pictures=1, push='someone/cars', private=True)))"
    )
    back = (
        "import json; from mnif_nerf import MNIFPipeline; pipe = MNIFPipeline.from_pretrained('someone/cars'); "
        "print(json.dumps(pipe.latents.tolist()), pipe.prior is not None)"
    )
    with fake_hub() as hub:
        refused = hub_command(hub.address, tmp_path, "hf_wrong", push)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1].startswith("error: someone/cars: could not be uploaded (")
        done = hub_command(hub.address, tmp_path, TOKEN, push)
        assert done.returncode == 0, done.stderr
        assert f"uploaded to {hub.address}/someone/cars" in done.stdout
        assert hub.private == {"someone/cars"}
        files = hub.repositories["someone/cars"]
        assert {"README.md", "samples.png", "field.safetensors", "prior/prior.safetensors"} <= set(files)
        assert b'from_pretrained("someone/cars")' in files["README.md"]
        read = hub_command(hub.address, tmp_path, TOKEN, back)
    assert read.returncode == 0, read.stderr
    latents, prior = read.stdout.strip().rsplit(" ", 1)
    assert prior == "True"
    assert torch.equal(torch.tensor(json.loads(latents)), pipe.latents)


def test_models_without_a_prior_have_no_samples_to_show(tmp_path: Path) -> None:
    write_model(tiny_voxel_model(), tmp_path / "run" / "model")
    out = main(PublishOptions(str(tmp_path / "run")))
    assert out == tmp_path / "run" / "published" / "voxel"
    assert not (out / "samples.png").exists()
    shutil.rmtree(out)
