"""The page of mnif-export-web in a real browser (WebGL2 in software): what it draws, and what hands do to it."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import chromium
from PIL import Image
from tiny_model import tiny_image_model, tiny_model, tiny_surface_model, tiny_voxel_model
from web_page import open_page, page, state, wait_for

from mnif_nerf.export.web import RADIANCE, WebObject, WebScene, WebText, write_web_page
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import StoredModel
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.plane import render_plane
from mnif_nerf.rendering.views import render_view

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (it is in the dev extra)")
ActionChains, Keys = webdriver.ActionChains, webdriver.Keys
By = pytest.importorskip("selenium.webdriver.common.by").By
ScrollOrigin = pytest.importorskip("selenium.webdriver.common.actions.wheel_input").ScrollOrigin

SIZE = 48
VIEWS = ((20.0, 45.0), (-35.0, 200.0))
BAD_NAME = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"
READ = """
const [request, done] = arguments;
window.mnif.render(request).then(
  (result) => done(btoa(String.fromCharCode(...result.pixels))),
  (error) => done("error: " + error.message),
);
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium(700, 900) as opened:
        opened.set_script_timeout(120)
        yield opened


@pytest.fixture(scope="module")
def plain_driver() -> Iterator[Any]:
    with chromium(700, 900, webgl=False) as opened:
        yield opened


@pytest.fixture
def browser(driver: Any) -> Iterator[Any]:
    """The browser; in the end nothing may have gone wrong in its console, nor anything been fetched."""
    yield driver
    assert driver.get_log("browser") == []
    fetched = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []


def pixels(browser: Any, **request: Any) -> np.ndarray:
    """What the page draws: [SIZE, SIZE, 3] from 0 to 255."""
    answer = browser.execute_async_script(READ, {"size": SIZE, **request})
    assert not answer.startswith("error"), answer
    return np.frombuffer(base64.b64decode(answer), np.uint8).reshape(SIZE, SIZE, 4)[..., :3].astype(float)


def psnr(drawn: np.ndarray, wanted: np.ndarray) -> float:
    return float(-10 * np.log10(max(((drawn - wanted) ** 2).mean() / 255**2, 1e-12)))


def python_picture(pipe: MNIFPipeline, latent: torch.Tensor, elevation: float, azimuth: float) -> np.ndarray:
    """The same by the package's own renderers."""
    item = pipe.decode(latent)
    if pipe.modality != "image":
        return np.asarray(item.render(elevation, azimuth, SIZE), float)
    pose, camera = orbit_pose(elevation, azimuth, item.camera["radius"]), Intrinsics.default(2 * SIZE)
    grid = item.facts.grid
    assert grid is not None
    rgb = render_plane(item.field, *pixel_rays(pose, camera), shape=grid.shape)["rgb"]
    return 255 * rgb.view(SIZE, 2, SIZE, 2, 3).mean(dim=(1, 3)).numpy()


def wide_image_model() -> StoredModel:
    """Pictures that are twice as wide as high."""
    model = tiny_image_model()
    return dataclasses.replace(model, grid={"resolution": 8, "channels": 3, "shape": [4, 8]})


@pytest.mark.parametrize(
    "model",
    [
        tiny_model,
        tiny_voxel_model,
        lambda: tiny_voxel_model(head="logit"),
        tiny_surface_model,
        lambda: tiny_surface_model(channels=1),
        tiny_image_model,
        lambda: tiny_image_model(channels=1),
        lambda: tiny_image_model(channels=4),
        wide_image_model,
        lambda: tiny_image_model(family="finer"),
        lambda: tiny_image_model(family="fourier-relu", modulation="shift"),
    ],
    ids=[
        "radiance",
        "voxel",
        "voxel-logit",
        "sdf",
        "sdf-grey",
        "image",
        "image-grey",
        "image-alpha",
        "image-wide",
        "finer",
        "fourier-relu",
    ],
)
def test_the_shader_draws_what_python_draws(browser: Any, tmp_path: Path, model: Callable[[], StoredModel]) -> None:
    pipe = MNIFPipeline(model())
    path = page(pipe, tmp_path / "page.html")
    open_page(browser, path)
    start, end = pipe.latents[0], pipe.latents[1]
    # Random distances are none: rays that graze such a surface may take other steps in the shader.
    least = 40 if pipe.modality == "sdf" else 45
    for view, blend in ((0, 0.0), (1, 0.5), (0, 1.0)):
        elevation, azimuth = VIEWS[view]
        wanted = python_picture(pipe, torch.lerp(start, end, blend), elevation, azimuth)
        drawn = pixels(browser, object=0, other=1, blend=blend, elevation=elevation, azimuth=azimuth)
        assert wanted.std() > 5, "an empty picture proves nothing"
        assert psnr(drawn, wanted) > least, (view, blend)
    assert psnr(pixels(browser, object=2, elevation=20, azimuth=45), wanted) < 30  # another object is another picture


def test_while_it_moves_a_surface_is_drawn_from_its_grid(browser: Any, tmp_path: Path) -> None:
    """Nearly the same picture, with one question to the network where the final one has a dozen."""
    pipe = MNIFPipeline(tiny_surface_model())
    open_page(browser, page(pipe, tmp_path / "page.html"))
    view = {"elevation": 20, "azimuth": 45}
    fine, quick = (pixels(browser, object=1, **view, quick=quick) for quick in (False, True))
    assert not np.array_equal(fine, quick)
    # Random distances are none, and a grid of them is rough; but it is this object.
    assert psnr(quick, fine) > psnr(quick, pixels(browser, object=2, **view)) + 3
    assert ((quick < 255).any(axis=2) == (fine < 255).any(axis=2)).mean() > 0.95


@pytest.mark.parametrize("source", ["blocks", "texture"])
def test_half_precision_and_both_ways_to_read_weights(browser: Any, tmp_path: Path, source: str) -> None:
    pipe = MNIFPipeline(tiny_model())
    open_page(browser, page(pipe, tmp_path / "page.html", "float16"), f"#weights={source}")
    drawn = pixels(browser, object=1, elevation=20, azimuth=45)
    assert browser.execute_script("return window.mnif.state().weights") == source
    assert psnr(drawn, python_picture(pipe, pipe.latents[1], 20, 45)) > 35


def test_the_authors_activations_and_odd_widths(browser: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = [(10, 3), (7, 10), (4, 7)]
    weights = [
        gain * torch.randn(*shape, generator=generator) / shape[1] ** 0.5
        for gain, shape in zip((9.0, 2.0, 12.0), shapes)
    ]
    field = CompactField(weights, [torch.randn(out, generator=generator) for out, _ in shapes], head="radiance-authors")
    camera = {"focal_over_width": 1.1, "radius": 1.4}
    objects = [WebObject("one", field, [Image.new("RGB", (8, 8))])]
    scene = WebScene(RADIANCE, camera, 0.4)
    path = write_web_page(tmp_path / "page.html", objects, scene, WebText("One", "", "test"), "float32")
    open_page(browser, path)
    grid = OccupancyGrid.from_field(field, half_extent=0.4)
    rgb = render_view(field, orbit_pose(10, 120, 1.4), Intrinsics.default(SIZE, 1.1), grid, 0.4)["rgb"]
    assert rgb.std() > 0.02
    assert psnr(pixels(browser, elevation=10, azimuth=120), 255 * rgb.numpy()) > 45
    assert not browser.find_element(By.ID, "blending").is_displayed()


def test_hands_move_pick_and_blend(browser: Any, tmp_path: Path) -> None:
    pipe = MNIFPipeline(tiny_image_model())
    open_page(browser, page(pipe, tmp_path / "page.html"))
    stage = browser.find_element(By.ID, "stage")
    wait_for(lambda: state(browser)["shown"]["final"], "a first picture at full resolution")
    before = browser.get_screenshot_as_png()
    assert state(browser)["shown"]["size"] == browser.execute_script("return document.getElementById('canvas').width")
    ActionChains(browser).drag_and_drop_by_offset(stage, 100, 30).perform()
    view = state(browser)["view"]
    assert view["azimuth"] > 300
    assert view["elevation"] > 5
    ActionChains(browser).scroll_from_origin(ScrollOrigin.from_element(stage), 0, -200).perform()
    assert state(browser)["view"]["radius"] < view["radius"]
    wait_for(lambda: state(browser)["shown"]["final"], "a picture of the new view")
    assert browser.get_screenshot_as_png() != before
    browser.find_element(By.ID, "reset").click()
    assert state(browser)["view"] == {"azimuth": 0, "elevation": 0, "radius": pytest.approx(1.3)}
    browser.find_elements(By.CSS_SELECTOR, ".gallery input")[2].click()
    assert state(browser)["object"] == 2
    assert browser.find_element(By.ID, "now").text == "picture_02"
    slider = browser.find_element(By.ID, "blend")
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert state(browser)["blend"] == pytest.approx(0.02)
    assert browser.find_element(By.ID, "now").text == "picture_02 with 2 % of picture_01"
    browser.find_element(By.CSS_SELECTOR, "#other option:first-child").click()
    assert state(browser)["other"] == 0


def test_keys_move_and_pick(browser: Any, tmp_path: Path) -> None:
    pipe = MNIFPipeline(tiny_image_model())
    open_page(browser, page(pipe, tmp_path / "page.html"))
    stage = browser.find_element(By.ID, "stage")
    stage.send_keys(*[Keys.ARROW_RIGHT] * 3, Keys.ARROW_LEFT, *[Keys.ARROW_UP] * 3, Keys.ARROW_DOWN, "+", "+", "-")
    assert state(browser)["view"] == {"azimuth": 20, "elevation": 20, "radius": pytest.approx(1.3 / 1.1)}
    stage.send_keys("p")
    assert state(browser)["object"] == 2
    stage.send_keys("n", "n")
    assert state(browser)["object"] == 1
    stage.send_keys(Keys.HOME)
    assert state(browser)["view"]["azimuth"] == 0
    stage.send_keys(" ")
    wait_for(lambda: state(browser)["view"]["azimuth"] > 1, "turning by itself")
    stage.send_keys(" ")
    assert browser.find_element(By.ID, "spin").get_attribute("aria-pressed") == "false"


def test_names_with_markup_do_nothing(browser: Any, tmp_path: Path) -> None:
    pipe = MNIFPipeline(tiny_image_model())
    open_page(browser, page(pipe, tmp_path / "page.html", names=(BAD_NAME, "b", "c")))
    assert browser.find_element(By.ID, "now").text == BAD_NAME
    assert browser.execute_script("return [window.broken, document.images.length]") == [None, 0]


def test_a_lost_graphics_device_leaves_the_turntable(browser: Any, tmp_path: Path) -> None:
    pipe = MNIFPipeline(tiny_image_model())
    open_page(browser, page(pipe, tmp_path / "page.html"))
    wait_for(lambda: state(browser)["shown"]["final"], "a first picture")
    browser.execute_script(
        "document.getElementById('canvas').getContext('webgl2').getExtension('WEBGL_lose_context').loseContext()"
    )
    wait_for(lambda: state(browser)["mode"] == "turntable", "the turntable")
    assert "graphics driver stopped" in browser.find_element(By.ID, "notice").text
    browser.get_log("browser")  # the browser reports the loss


def test_pictures_made_beforehand_stand_in_for_a_slow_device(browser: Any, tmp_path: Path) -> None:
    """Nothing live yet: the nearest frame at once, then that of the view dragged to, and last the live picture."""
    path = page(MNIFPipeline(tiny_image_model()), tmp_path / "page.html")
    # A device on which no picture is ever finished until the test lets it: only its waiting is replaced.
    text = path.read_text(encoding="utf-8")
    slow = re.sub(r"script-src [^;]*", "script-src 'unsafe-inline'", text).replace(
        "async function finished(gl) {", "async function finished(gl) {\n  while (!window.quick) await pause(10);"
    )
    assert slow.count("window.quick") == 1
    path.write_text(slow, encoding="utf-8")
    open_page(browser, path)
    stage = browser.find_element(By.ID, "stage")

    def middle() -> tuple[int, ...]:
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        return picture.getpixel((round(stage.rect["x"] + 60), round(stage.rect["y"] + 60)))

    def is_near(color: tuple[int, ...]) -> bool:
        return max(abs(a - b) for a, b in zip(middle(), color)) <= 6

    wait_for(lambda: is_near((10, 10, 90)), "the first frame")
    assert "made beforehand" in browser.find_element(By.ID, "readout").text
    stage.send_keys(*[Keys.ARROW_RIGHT] * 9)
    wait_for(lambda: is_near((10, 50, 90)), "the frame a quarter of a turn on")
    browser.find_elements(By.CSS_SELECTOR, ".gallery input")[1].click()
    wait_for(lambda: is_near((70, 50, 90)), "the same of another object")
    browser.execute_script(
        "const b = document.getElementById('blend'); b.value = 50; b.dispatchEvent(new Event('input'))"
    )
    wait_for(lambda: is_near((100, 50, 90)), "half and half with the next")
    browser.execute_script("window.quick = true")
    wait_for(lambda: not browser.find_element(By.ID, "cover").is_displayed(), "the live picture")


def test_an_interrupted_grid_goes_on_and_spoils_no_other(browser: Any, tmp_path: Path) -> None:
    path = page(MNIFPipeline(tiny_surface_model()), tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    path.write_text(
        re.sub(r"script-src [^;]*", "script-src 'unsafe-inline'", text)
        .replace("stage = new Stage(", "stage = window.stage = new Stage(")
        .replace("live.run()", "live.renderer.ready()")
    )
    open_page(browser, path)
    rows = browser.execute_async_script(
        """
        const done = arguments[0], renderer = window.stage.renderer, drawn = [];
        const draw = renderer.drawRows.bind(renderer);
        renderer.drawRows = (name, ...rest) => {
          if (name === "cells") drawn.push([rest[3], rest[4]]);
          draw(name, ...rest);
        };
        (async () => {
          await renderer.ready();
          window.stage.load(window.stage.choice);
          await renderer.makeGrid(8, () => true);
          const coarse = renderer.grid.texture;
          const stopped = await renderer.makeGrid(24, () => false);
          drawn.length = 0;
          const kept = await renderer.makeGrid(8, () => true);
          const none = drawn.length;
          const made = await renderer.makeGrid(24, () => true);
          return [stopped, kept, none, renderer.hasGrid(8), made, drawn[0][0] > 0, drawn.at(-1)[0] + drawn.at(-1)[1]];
        })().then(done, (error) => done(error.message));
        """
    )
    assert rows == [False, True, 0, True, True, True, 27]


def test_without_webgl_there_is_a_turntable(plain_driver: Any, tmp_path: Path) -> None:
    browser = plain_driver
    pipe = MNIFPipeline(tiny_model())
    open_page(browser, page(pipe, tmp_path / "page.html"))
    assert state(browser)["mode"] == "turntable"
    assert "no WebGL2" in browser.find_element(By.ID, "notice").text
    assert not browser.find_element(By.ID, "blending").is_displayed()
    stage, turntable = browser.find_element(By.ID, "stage"), browser.find_element(By.ID, "turntable")
    assert turntable.is_displayed()

    def color() -> tuple[int, ...]:
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        box = stage.rect
        return picture.getpixel((round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)))

    assert color() == pytest.approx((10, 10, 90), abs=6)
    stage.send_keys(*[Keys.ARROW_RIGHT] * 9)  # a quarter of a turn, which is the next of four frames
    assert color() == pytest.approx((10, 50, 90), abs=6)
    ActionChains(browser).drag_and_drop_by_offset(stage, -150, 0).perform()
    assert color() == pytest.approx((10, 90, 90), abs=6)
    browser.find_elements(By.CSS_SELECTOR, ".gallery input")[1].click()
    assert color() == pytest.approx((70, 90, 90), abs=6)
    assert browser.get_log("browser") == []
