"""Two objects side by side in the page of mnif-export-web."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from PIL import Image
from tiny_model import tiny_image_model
from web_page import open_page, page, state, wait_for

from mnif_nerf.pipelines.generation import MNIFPipeline

By = pytest.importorskip("selenium.webdriver.common.by").By


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(1000, 900) as opened:
        yield opened


def part_of_screen(browser: Any, name: str) -> np.ndarray:
    """What is seen in an element, 64 x 64 pixels of its middle."""
    box = browser.find_element(By.ID, name).rect
    shot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    left, top, size = box["x"] + box["width"] * 0.3, box["y"] + box["width"] * 0.3, box["width"] * 0.4
    return np.asarray(shot.crop((left, top, left + size, top + size)).resize((64, 64)), float)


def rest(browser: Any) -> None:
    wait_for(lambda: state(browser)["shown"]["final"] and state(browser)["second"]["final"], "both pictures")


def test_two_are_seen_from_the_same_place(browser: Any, tmp_path: Path) -> None:
    open_page(browser, page(MNIFPipeline(tiny_image_model()), tmp_path / "page.html"))
    assert not browser.find_element(By.ID, "second").is_displayed()
    browser.find_element(By.ID, "compare").click()
    rest(browser)
    assert browser.find_element(By.ID, "name2").text == "picture_01"
    first, other = (part_of_screen(browser, name) for name in ("stage", "second"))
    assert np.abs(first - other).mean() > 5
    browser.find_elements(By.CSS_SELECTOR, ".gallery input")[1].click()  # what was the other one is the first now
    rest(browser)
    assert browser.find_element(By.ID, "name2").text == "picture_02"
    assert np.abs(part_of_screen(browser, "stage") - other).mean() < 3
    still = part_of_screen(browser, "second")
    browser.find_element(By.ID, "stage").send_keys(*["\ue012"] * 4)  # arrow left: both turn
    rest(browser)
    assert np.abs(part_of_screen(browser, "second") - still).mean() > 3
    address = browser.execute_script("return window.mnif.link()")
    assert "compare=1" in address
    assert "with=2" in address
    browser.get("about:blank")
    browser.get(address)
    wait_for(lambda: browser.find_element(By.ID, "second").is_displayed(), "both again")
    rest(browser)
    assert browser.find_element(By.ID, "name2").text == "picture_02"
    browser.find_element(By.ID, "compare").click()
    assert not browser.find_element(By.ID, "second").is_displayed()
    assert browser.get_log("browser") == []
