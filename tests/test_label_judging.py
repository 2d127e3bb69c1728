"""Rules that tell classes apart, samples asked for by label in an evaluation, in the viewer and on a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from browser import chromium
from tiny_model import tiny_image_model

from mnif_nerf.cli import export_web
from mnif_nerf.cli.export_web import WebOptions
from mnif_nerf.errors import MNIFError
from mnif_nerf.labels import Attribute, Labels, Wish
from mnif_nerf.metrics.classes import ClassRule, spread, unseen_accuracy
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import write_model
from mnif_nerf.priors.prior import LatentPrior, PriorConfig
from mnif_nerf.viewer.label_controls import LabelControls
from mnif_nerf.viewer.latent_browser import GENERATED, TRAINING, LatentWalk


def clusters(gap: float, count: int = 30) -> tuple[np.ndarray, list[str]]:
    noise = np.random.default_rng(0).normal(size=(2 * count, 40))
    noise[:count, 3] += gap
    return noise, ["near"] * count + ["far"] * count


def test_a_rule_tells_apart_what_can_be_told_apart() -> None:
    features, names = clusters(6.0)
    assert min(unseen_accuracy(features, names).values()) > 0.75
    fresh = np.random.default_rng(1).normal(size=(50, 40))
    assert np.mean(np.array(ClassRule(features, names)(fresh)) == "far") > 0.75
    fresh[:, 3] += 6
    assert np.mean(np.array(ClassRule(features, names)(fresh)) == "near") > 0.75


def test_its_yardstick_is_chance_where_there_is_nothing_to_see() -> None:
    features, names = clusters(0.0)
    assert np.mean(list(unseen_accuracy(features, names).values())) == pytest.approx(0.5, abs=0.2)
    assert np.mean(np.array(ClassRule(features, names)(features)) == np.array(names)) > 0.7  # what it has seen
    with pytest.raises(MNIFError, match="nothing to tell apart"):
        ClassRule(features, ["one"] * len(features))


def test_spread_is_one_of_a_standard_gaussian() -> None:
    assert spread(np.random.default_rng(0).normal(size=(500, 20))) == pytest.approx(1, abs=0.03)
    assert np.isnan(spread(np.zeros((1, 3))))


def test_what_is_the_same_for_all_real_instances_is_not_blown_up() -> None:
    features, names = clusters(6.0)
    features[:, 7] = 1.0
    fresh = features.copy()
    fresh[:, 7] += 0.01
    assert ClassRule(features, names)(fresh) == ClassRule(features, names)(features)
    assert ClassRule(features, names).places(fresh) == pytest.approx(
        ClassRule(features, names).places(features), abs=0.3
    )


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> MNIFPipeline:
    model = tiny_image_model(8)
    model.labels = Labels({"kind": ("left", "right") * 4, "size": tuple(float(k) for k in range(8))})
    config = PriorConfig(steps=10, width=16, blocks=1)
    model.prior = LatentPrior.fit(model.latents, config, progress=False, labels=model.labels)
    found = MNIFPipeline.from_pretrained(write_model(model, tmp_path_factory.mktemp("run") / "model"))
    return found


class Gui:
    """viser's elements: each keeps its value, and calls back when it is set by the user."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def __getattr__(self, kind: str) -> Any:
        def add(label: str, *values: Any, hint: str) -> Any:
            place = 3 if kind == "add_slider" else -1
            handle = SimpleNamespace(kind=kind, values=values, value=values[place], hint=hint)
            handle.on_update = lambda call: setattr(handle, "call", call)
            self.made[label] = handle
            return handle

        return add


def test_the_viewers_controls(pipe: MNIFPipeline) -> None:
    walk, gui = LatentWalk(pipe), Gui()
    touched: list[str] = []
    controls = LabelControls(gui, walk, touched.append)
    assert gui.made["kind"].values[0] == ("any", "left", "right")
    assert gui.made["size"].values[:2] == (0.0, 7.0)
    assert controls.value == ()
    gui.made["kind"].value = "right"
    gui.made["kind"].call(None)
    gui.made["Ask for size"].value = True
    assert touched == ["label"]
    assert controls.value == (("kind", "right"), ("size", 3.5))
    walk.change(label=controls.value)
    assert walk.settings.source == GENERATED
    assert "right, size 3.5" in walk.shown
    expected = pipe.sample_latents(1, 0, None, 30, 1.0, wish=Wish({"kind": "right", "size": 3.5}))[0]
    assert torch.equal(walk.latent, expected)
    walk.change(guidance=0.0)
    assert "guidance 0.00" in walk.shown
    assert not torch.equal(walk.latent, expected)
    controls.value = (("kind", "left"),)
    assert controls.value == (("kind", "left"),)
    walk.change(source=TRAINING, label=())
    with pytest.raises(MNIFError, match="there is kind: left, right"):
        walk.change(label=(("kind", "up"),))
    assert walk.settings.label == ()


def test_a_class_called_any_is_a_class() -> None:
    attributes = (Attribute("kind", ("any", "none")), Attribute("age", ("(any)", "any")))
    gui, prior = Gui(), SimpleNamespace(attributes=attributes)
    controls = LabelControls(gui, SimpleNamespace(pipe=SimpleNamespace(prior=prior)), lambda _: None)  # type: ignore[arg-type]
    assert gui.made["kind"].values[0] == ("(any)", "any", "none")
    assert gui.made["age"].values[0] == ("((any))", "(any)", "any")
    assert controls.value == ()
    gui.made["kind"].value = "any"
    assert controls.value == (("kind", "any"),)
    controls.value = (("age", "any"),)
    assert controls.value == (("age", "any"),)
    assert gui.made["kind"].value == "(any)"


def test_a_page_shows_them(pipe: MNIFPipeline, tmp_path: Path) -> None:
    def objects(**options: Any) -> list[dict[str, Any]]:
        written = export_web.main(WebOptions(str(pipe.folder), output=tmp_path / "page.html", num_samples=2, **options))
        found = re.search(r'id="model">(.*?)</script>', written.read_text(), re.DOTALL)
        assert found is not None
        return json.loads(found[1])["objects"]

    assert [item["label"] for item in objects(label=("kind=left",))] == [{"kind": "left"}] * 2
    assert "asked to be kind=left" in (tmp_path / "page.html").read_text()
    assert [item["label"]["kind"] for item in objects(source="training")] == ["left", "right"]
    assert all("label" not in item for item in objects())


def test_a_page_filters_by_label(pipe: MNIFPipeline, tmp_path: Path) -> None:
    page = export_web.main(WebOptions(str(pipe.folder), source="training", output=tmp_path / "page.html"))
    with chromium(webgl=False) as driver:
        driver.get(page.as_uri())
        shown = "return [...document.querySelectorAll('#gallery label')].map((l) => l.offsetParent !== null)"
        assert driver.execute_script(shown) == [True] * 8
        assert "left, size 0" in driver.execute_script("return document.querySelector('#gallery label').title")
        choose = "const s = document.querySelector('#filters select'); s.value = 'right';"
        driver.execute_script(f"{choose} s.dispatchEvent(new Event('change'))")
        assert driver.execute_script(shown) == [False, True] * 4
        checked = (
            "return [...document.querySelectorAll('#gallery label')].findIndex((l) => l.querySelector(':checked'))"
        )
        assert driver.execute_script(checked) == 1  # the first one shown
        key = "document.getElementById('stage').dispatchEvent(new KeyboardEvent('keydown', { key: 'n' }))"
        driver.execute_script(key)
        assert driver.execute_script(checked) == 3
