"""New objects that the page of mnif-export-web draws by itself: the same as Python's, kept, removed, and refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import tiny_image_model, tiny_model, tiny_surface_model
from web_page import open_page, page, state, wait_for

from mnif_nerf.cli import export_web
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.web_prior import DrawSettings, check_drawable, drawing_kit, estimate_drawing_bytes
from mnif_nerf.labels import Labels
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import StoredModel
from mnif_nerf.priors.linear_steps import LinearSteps
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.schedulers import make_scheduler, reverse_process, sample_streams
from mnif_nerf.priors.training import PriorConfig

By = pytest.importorskip("selenium.webdriver.common.by").By

DRAW = """
const [seed, wish, done] = arguments;
window.mnif.draw(seed, wish).then(
  ({ latent, numbers, rarity, tries }) => done({ latent: [...latent], numbers: [...numbers], rarity, tries }),
  (error) => done("error: " + error.message),
);
"""


def with_prior(model: StoredModel, labels: Labels | None = None, **config: Any) -> MNIFPipeline:
    """The model with a prior that has learned something, so that its denoiser does say something."""
    model.labels = labels
    model.prior = LatentPrior.fit(
        model.latents, PriorConfig(steps=40, learning_rate=0.01, **config), progress=False, labels=labels
    )
    return MNIFPipeline(model)


def labelled(count: int) -> Labels:
    kinds = tuple("oak" if k % 2 else "pine" for k in range(count))
    return Labels({"kind": kinds, "height": tuple(float(k) for k in range(count))})


def flat(field: Any) -> np.ndarray:
    layers = zip(field.weights, field.biases)
    return torch.cat([part.flatten() for pair in layers for part in pair]).numpy()


MODELS: dict[str, Callable[[], MNIFPipeline]] = {
    "radiance, labels": lambda: with_prior(tiny_model(12), labelled(12)),
    "picture": lambda: with_prior(tiny_image_model(12)),
    "picture, fixed first layer, flow": lambda: with_prior(
        tiny_image_model(12, family="fourier-relu"), prediction="flow"
    ),
    "surface, colours apart": lambda: with_prior(tiny_surface_model(12, color_latent=2), prediction="sample"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_is_the_same_object_as_in_python(browser: Any, tmp_path: Path, name: str) -> None:
    pipe = MODELS[name]()
    typical = 0.25  # some are drawn again
    open_page(browser, page(pipe, tmp_path / "page.html", typical=typical))
    assert pipe.prior is not None
    wishes: list[dict[str, Any]] = [{"label": {}, "guidance": 2}]
    if pipe.prior.attributes:
        wishes += [{"label": {"kind": "oak", "height": 4.5}, "guidance": g} for g in (0, 1, 2.5)]
    again = 0
    for seed in (0, 3, 2**40 + 1):
        for wish in wishes:
            drawn = browser.execute_async_script(DRAW, seed, wish)
            assert isinstance(drawn, dict), drawn
            asked = wish if wish["label"] else {}
            (item,) = pipe(1, seed=seed, typical=typical, **asked)
            # The noise has rounding of 1e-7, thirty answers of the denoiser and guidance make it more.
            np.testing.assert_allclose(drawn["latent"], item.latent.numpy(), atol=2e-4 * float(pipe.latents.std()))
            wanted = flat(item.field)
            np.testing.assert_allclose(drawn["numbers"], wanted, atol=2e-4 * np.abs(wanted).max())
            among = pipe.rarity_among(None)
            if not wish["label"]:
                assert drawn["rarity"] == pytest.approx(float(among(item.latent[None])[0]))
            again += drawn["tries"] > 1
    assert again, "no draw was too rare: that redrawing is the same was not tested"


def test_half_precision_moves_a_sample_little(browser: Any, tmp_path: Path) -> None:
    pipe = MODELS["picture"]()
    open_page(browser, page(pipe, tmp_path / "page.html", "float16"))
    drawn = browser.execute_async_script(DRAW, 5, {"label": {}, "guidance": 2})
    (item,) = pipe(1, seed=5)
    error = np.abs(np.array(drawn["latent"]) - item.latent.numpy()).max() / float(pipe.latents.std())
    assert 1e-6 < error < 0.03


@pytest.mark.parametrize(
    ("sampler", "prediction", "steps"),
    [("dpm-solver++", "v_prediction", 30), ("dpm-solver++", "epsilon", 12), ("ddim", "sample", 50)]
    + [("flow-heun", "flow", 30)],
)
def test_a_table_is_the_sampler(sampler: str, prediction: str, steps: int) -> None:
    def denoiser(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.tanh(noisy.roll(1, 1)) * (1 + time[:, None] / 1000)

    streams = sample_streams(2, 4)
    wanted = reverse_process(denoiser, make_scheduler(sampler, prediction), steps, streams, 16)
    steps_table = LinearSteps.of(make_scheduler(sampler, prediction), steps)
    parts = [torch.stack([torch.randn(16, generator=stream) for stream in sample_streams(2, 4)])]
    for row, time in zip(steps_table.table, steps_table.times):
        latent = sum(weight * part for weight, part in zip(row, parts))
        parts.append(denoiser(latent, time.expand(2)))
    latent = sum(weight * part for weight, part in zip(steps_table.table[-1], parts))
    torch.testing.assert_close(latent, wanted, atol=1e-3, rtol=1e-3)


def test_what_no_table_holds_is_refused() -> None:
    with pytest.raises(MNIFError, match="adds noise"):
        LinearSteps.of(make_scheduler("ddpm"), 10)
    with pytest.raises(MNIFError, match="at most 200"):
        LinearSteps.of(make_scheduler("ddim"), 201)


def names(browser: Any) -> list[str]:
    return [item.text.replace("×", "").strip() for item in browser.find_elements(By.CSS_SELECTOR, ".gallery .item")]


def press(browser: Any, name: str) -> None:
    wait_for(lambda: browser.find_element(By.ID, name).is_enabled(), name)
    browser.find_element(By.ID, name).click()
    wait_for(lambda: browser.find_element(By.ID, "draw").is_enabled(), name)


def test_hands_draw_keep_and_remove(browser: Any, tmp_path: Path) -> None:
    pipe = with_prior(tiny_image_model(12), Labels({"kind": tuple("ab" * 6)}))
    open_page(browser, page(pipe, tmp_path / "page.html", seed=8))
    shipped = ["picture_00", "picture_01", "picture_02"]
    press(browser, "draw")
    assert names(browser) == ["seed 8", *shipped]
    assert browser.find_element(By.ID, "now").text == "seed 8"
    assert "% of the training pictures" in browser.find_element(By.ID, "drawn").text
    press(browser, "draw")  # the one before was not kept
    assert names(browser) == ["seed 9", *shipped]
    press(browser, "keep")
    browser.find_element(By.CSS_SELECTOR, "#wishes option[value=b]").click()
    press(browser, "draw")
    assert names(browser) == ["seed 10: b", "seed 9", *shipped]
    wait_for(lambda: "data:image" in browser.find_element(By.CSS_SELECTOR, ".thumb").get_attribute("style"), "thumb")
    wait_for(lambda: state(browser)["shown"]["final"], "the picture of it")
    browser.find_elements(By.CSS_SELECTOR, ".gallery input")[3].click()
    assert browser.find_element(By.ID, "now").text == "picture_01"
    browser.find_element(By.CSS_SELECTOR, ".remove").click()
    assert names(browser) == ["seed 9", *shipped]
    assert browser.find_element(By.ID, "now").text == "picture_01"
    assert [option.text for option in browser.find_elements(By.CSS_SELECTOR, "#other option")] == ["seed 9", *shipped]
    seed = browser.find_element(By.ID, "seed")
    seed.clear()
    seed.send_keys("-3")
    press(browser, "draw")
    assert "whole numbers from 0" in browser.find_element(By.ID, "drawn").text


def test_what_was_drawn_has_a_stand_in_until_it_is_live(browser: Any, tmp_path: Path) -> None:
    """On a device that draws nothing until the test lets it: first words, then the thumbnail, then the live picture."""
    labels = Labels({"kind": ("any", "none") * 6})
    path = page(with_prior(tiny_model(12), labels), tmp_path / "page.html")
    text = re.sub(r"script-src [^;]*", "script-src 'unsafe-inline'", path.read_text(encoding="utf-8"))
    for call, flag in (("await this.doJob(", "mayThumb"), ("await this.drawMoving(", "mayDraw")):
        assert text.count(call) == 1
        text = text.replace(call, f"while (!window.{flag}) await pause(10);\n{call}")
    path.write_text(text, encoding="utf-8")
    open_page(browser, path)
    browser.execute_script("window.mayDraw = true")
    options = [option.text for option in browser.find_elements(By.CSS_SELECTOR, "#wishes option")]
    assert options == ["(any)", "any", "none"]
    wait_for(lambda: state(browser)["shown"]["size"] > 0, "a picture of the first one")
    browser.execute_script("window.mayDraw = false")
    cover, readout = (browser.find_element(By.ID, name) for name in ("cover", "readout"))
    press(browser, "draw")
    wait_for(lambda: cover.is_displayed() and readout.text == "drawing …", "that it is being drawn")
    turntable = browser.find_element(By.ID, "turntable")
    assert turntable.value_of_css_property("background-image") == "none"  # not the one before
    browser.execute_script("window.mayThumb = true")
    wait_for(lambda: "data:image" in turntable.value_of_css_property("background-image"), "its thumbnail")
    wait_for(lambda: readout.text == "a small picture; drawing …", "what is shown")
    browser.execute_script("window.mayDraw = true")
    wait_for(lambda: not cover.is_displayed(), "the live picture")
    assert state(browser)["shown"]["id"] == 3


def test_without_a_worker_the_page_draws_by_itself(browser: Any, tmp_path: Path) -> None:
    path = page(MODELS["picture"](), tmp_path / "page.html")
    text = path.read_text(encoding="utf-8").replace("worker-src blob:", "worker-src 'none'")
    path.write_text(text, encoding="utf-8")
    open_page(browser, path)
    press(browser, "draw")
    assert names(browser)[0] == "seed 1"
    browser.get_log("browser")  # the browser reports what the policy forbids


# --- mnif-export-web --------------------------------------------------------------------------------------


def options(folder: Path, tmp_path: Path, **more: Any) -> export_web.WebOptions:
    run = tmp_path / "run"
    if not run.exists():
        shutil.copytree(folder, run / "model")
    return export_web.WebOptions(str(run), num_samples=1, turntable=False, output=tmp_path / "page.html", **more)


def embedded(path: Path) -> Any:
    text = path.read_text().split('id="model">')[1].split("</script>")[0]
    return json.loads(text)["prior"]


def test_the_command_says_what_drawing_adds(trained: Path, tmp_path: Path, capsys: Any) -> None:
    kit = embedded(export_web.main(options(trained, tmp_path, seed=4, steps=12)))
    assert (kit["seed"], kit["sampler"], kit["steps"]) == (5, "dpm-solver++", 12)
    assert "of them to draw new ones" in capsys.readouterr().out
    assert embedded(export_web.main(options(trained, tmp_path, draw="no"))) is None


def test_what_drawing_adds_is_estimated(trained: Path) -> None:
    model = MNIFPipeline.from_pretrained(trained, device="cpu").model
    for precision in ("float16", "float32"):
        size = len(json.dumps(drawing_kit(model, DrawSettings(), precision)))  # type: ignore[arg-type]
        assert estimate_drawing_bytes(model, precision) == pytest.approx(size, rel=0.15)  # type: ignore[arg-type]


def test_large_models_do_not_draw_unless_asked(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(export_web, "_AUTO_MB", 0.01)
    assert embedded(export_web.main(options(trained, tmp_path))) is None
    assert "--draw yes" in capsys.readouterr().out
    assert embedded(export_web.main(options(trained, tmp_path, draw="yes"))) is not None
    with pytest.raises(MNIFError, match="--draw no takes off"):
        export_web.main(options(trained, tmp_path, draw="yes", max_size_mb=0.05))


def test_models_that_cannot_draw_are_told() -> None:
    with pytest.raises(MNIFError, match="without a latent prior"):
        check_drawable(tiny_model())
    pipe = with_prior(tiny_image_model(12, modulation="shift"))
    with pytest.raises(MNIFError, match="mixture"):
        check_drawable(pipe.model)
