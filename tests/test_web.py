"""One file for the web: what is in it, how large it gets, what it refuses. How it draws is in test_web_browser.py."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mnif_nerf.cli import export_web
from mnif_nerf.cli.export_web import WebOptions
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.web import RADIANCE, SOLID, WebObject, WebScene, WebText, estimate_bytes, write_web_page
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.rendering.cameras import default_camera

TEXT = WebText("Title", "Origin.", "test")
SCENE = WebScene(RADIANCE, default_camera())


def network(width: int = 8, scale: float = 1.0) -> CompactField:
    generator = torch.Generator().manual_seed(width)
    shapes = [(width, 3), (width, width), (4, width)]
    weights = [scale * torch.randn(*shape, generator=generator) for shape in shapes]
    return CompactField(weights, [torch.zeros(out) for out, _ in shapes])


def thing(name: str = "a", frames: int = 2, **options: Any) -> WebObject:
    return WebObject(name, network(**options), [Image.new("RGB", (8, 8), "red")] * frames)


def embedded(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="model">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(trained, run / "model")
    return run


def options(run: Path, **more: Any) -> WebOptions:
    return WebOptions(load_config=str(run), **{"num_samples": 2, "frames": 3, **more})


# --- the page ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "error"), [("float32", 0.0), ("float16", 1e-3)])
def test_the_weights_are_in_the_file(tmp_path: Path, precision: Any, error: float) -> None:
    item = thing()
    path = write_web_page(tmp_path / "page.html", [item], SCENE, TEXT, precision)
    model = embedded(path.read_text())
    stored = np.frombuffer(base64.b64decode(model["objects"][0]["weights"]), {"float16": "<f2"}.get(precision, "<f4"))
    layers = zip(item.field.weights, item.field.biases)
    wanted = np.concatenate([part.numpy().ravel() for pair in layers for part in pair])
    np.testing.assert_allclose(stored, wanted, rtol=error)
    assert (model["sizes"], model["precision"]) == ([3, 8, 8, 4], precision)


def test_bounds_are_bits_in_c_order(tmp_path: Path) -> None:
    cells = torch.rand(5, 5, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    path = write_web_page(tmp_path / "page.html", [thing()], WebScene(RADIANCE, default_camera(), 0.5, cells), TEXT)
    bounds = embedded(path.read_text())["bounds"]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(bounds["bits"]), np.uint8))[:125]
    assert bounds["resolution"] == 5
    np.testing.assert_array_equal(bits.reshape(5, 5, 5), cells.numpy())


class Tags(HTMLParser):
    """All tags with their attributes, and the text of every script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside = ""
        self.content: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in self.content:
            self.content[self.inside].append(data)


def test_markup_in_names_and_texts_stays_text(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>&quot;\u2028{{SCRIPT}}"
    plain = write_web_page(tmp_path / "plain.html", [thing()], SCENE, TEXT)
    path = write_web_page(tmp_path / "page.html", [thing(bad)], SCENE, WebText(bad, bad, bad))
    page = Tags(path.read_text())
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in Tags(plain.read_text()).tags]
    assert embedded(path.read_text())["objects"][0]["name"] == bad
    assert page.content["script"][-2:] == Tags(plain.read_text()).content["script"][-2:]


def test_the_page_may_run_its_own_script_only_and_fetch_nothing(tmp_path: Path) -> None:
    path = write_web_page(tmp_path / "page.html", [thing()], SCENE, TEXT)
    page = Tags(path.read_text())
    (policy,) = (str(attrs["content"]) for tag, attrs in page.tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(page.content["script"]) == 3
    for kind, texts in (("script-src", page.content["script"][1:]), ("style-src", page.content["style"])):
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert f"{kind} " + " ".join(f"'sha256-{digest}'" for digest in digests) + ";" in policy
    assert not re.search(r"https?:|@import|fetch\(|XMLHttpRequest|import\(", path.read_text())
    sources = [attrs.get(name) for _, attrs in page.tags for name in ("src", "href") if attrs.get(name)]
    assert sources == ["data:,"]


@pytest.mark.parametrize(("precision", "frames"), [("float16", 16), ("float32", 1)])
def test_the_estimate_is_near(tmp_path: Path, pipe: MNIFPipeline, precision: Any, frames: int) -> None:
    items = pipe(2, seed=0)
    objects = [
        WebObject(
            item.name, item.field, [item.render(20, 90 * k, 192) for k in range(min(frames, 2))] * (-(-frames // 4))
        )
        for item in items
    ]
    path = write_web_page(tmp_path / "page.html", objects, SCENE, TEXT, precision)
    guess = estimate_bytes(pipe.model.field.spec.parameters_per_instance, 2, frames, precision)
    assert 0.6 < guess / path.stat().st_size < 1.6


@pytest.mark.parametrize(
    ("objects", "scene", "sentence"),
    [
        ([], SCENE, "at least one object"),
        ([thing(), thing("b", width=12)], SCENE, "b: its network has another shape"),
        ([thing(scale=float("nan"))], SCENE, "NaN"),
        ([thing(scale=1e6)], SCENE, "`precision` float32"),
        ([thing(), thing(frames=3)], SCENE, "as many for each"),
        ([thing(frames=0)], SCENE, "strip holds"),
        ([thing()], WebScene(SOLID, default_camera()), "cannot draw a solid with the head 'radiance'"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    tmp_path: Path, objects: list[WebObject], scene: WebScene, sentence: str
) -> None:
    with pytest.raises(MNIFError, match=re.escape(sentence)):
        write_web_page(tmp_path / "page.html", objects, scene, TEXT)
    assert not list(tmp_path.iterdir())


# --- mnif-export-web --------------------------------------------------------------------------------------


def test_command_writes_one_file_beside_the_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export_web.main(options(run, title="Cars <3"))
    said = capsys.readouterr().out
    assert path == run / "web" / "seed0-2.html"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert re.search(r"2 objects of [\d,]+ numbers: about 0\.\d MB", said)
    assert f"wrote {path}" in said
    assert "next: " in said
    page = path.read_text()
    assert "<h1>Cars &lt;3</h1>" in page
    assert "drawn from its latent prior with seed 0" in page
    model = embedded(page)
    assert model["turntable"] == {"frames": 3, "firstAzimuth": 45.0, "edge": 192}
    assert all(item["strip"].startswith("data:image/") for item in model["objects"])
    assert model["bounds"]["resolution"] == 8


def test_same_seed_same_file(run: Path, tmp_path: Path) -> None:
    first, second = (
        export_web.main(options(run, num_samples=1, turntable=False, output=tmp_path / name))
        for name in ("a.html", "b.html")
    )
    assert first.read_bytes() == second.read_bytes()


def test_training_instances_and_latents(run: Path, tmp_path: Path) -> None:
    path = export_web.main(options(run, source="training", instance=("car_03", "1"), turntable=False))
    model = embedded(path.read_text())
    assert path.name == "training-2.html"
    assert [item["name"] for item in model["objects"]] == ["car_03", "car_01"]
    assert model["turntable"]["frames"] == 1
    save_file({"latents": torch.zeros(3, 5)}, tmp_path / "mine.safetensors")
    path = export_web.main(options(run, source="latent", latent_file=tmp_path / "mine.safetensors", turntable=False))
    assert path.name == "latent-mine-3.html"
    assert len(embedded(path.read_text())["objects"]) == 3


def test_ten_thousand_objects_are_refused_with_their_size_before_any_work(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("objects were made")

    monkeypatch.setattr(export_web, "chosen_objects", never)
    with pytest.raises(MNIFError) as caught:
        export_web.main(options(run, num_samples=10_000, frames=16))
    found = re.search(
        r"10,000 objects of \d+ numbers: about ([\d,.]+) MB, .*go on with --max-size-mb (\d+)", str(caught.value)
    )
    assert found is not None, caught.value
    assert float(found[1].replace(",", "")) < float(found[2])
    assert not (run / "web").exists()
    with pytest.raises(AssertionError, match="objects were made"):  # the option that the sentence names is enough
        export_web.main(options(run, num_samples=10_000, frames=16, max_size_mb=float(found[2])))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"num_samples": 0}, "--num-samples 0"),
        ({"frames": 1}, "--no-turntable"),
        ({"frames": 500}, "at most 72"),
        ({"max_size_mb": 0.0}, "--max-size-mb 0"),
        ({"output": Path("page.txt")}, "use the suffix .html"),
        ({"instance": ("car_01",)}, "--source training"),
        ({"source": "latent"}, "--latent-file"),
        ({"source": "latent", "latent_file": Path("missing.safetensors")}, "missing.safetensors"),
        ({"source": "training", "instance": ("car_99",)}, "did you mean"),
    ],
)
def test_mistakes_get_a_sentence(run: Path, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MNIFError, match=re.escape(sentence)):
        export_web.main(options(run, **wrong))
