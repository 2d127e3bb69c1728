"""Links to what a page of mnif-export-web shows: copied, followed, and told where they mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_web_new import names, press, with_prior
from tiny_model import tiny_image_model
from web_page import open_page, page, state, wait_for

from mnif_nerf.labels import Labels

By = pytest.importorskip("selenium.webdriver.common.by").By


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of pictures with labels, that draws."""
    pipe = with_prior(tiny_image_model(12), Labels({"kind": tuple("ab" * 6)}))
    return page(pipe, tmp_path_factory.mktemp("page") / "page.html", seed=8)


def link(browser: Any) -> str:
    return str(browser.execute_script("return window.mnif.link()"))


def shown(browser: Any) -> str:
    return str(browser.find_element(By.ID, "now").text)


def test_the_address_follows_and_brings_it_back(browser: Any, written: Path) -> None:
    open_page(browser, written)
    browser.find_elements(By.CSS_SELECTOR, ".gallery input")[2].click()
    browser.execute_script(
        "const b = document.getElementById('blend'); b.value = 35; b.dispatchEvent(new Event('input'))"
    )
    stage = browser.find_element(By.ID, "stage")
    stage.send_keys(*["\ue012"] * 3, "\ue013", "+")  # arrows left and up
    before, said = state(browser), shown(browser)
    wait_for(lambda: "mix=0.35" in browser.current_url and browser.current_url == link(browser), "the address")
    address = browser.current_url
    assert address.startswith("file:")
    browser.get("about:blank")
    browser.get(address)
    wait_for(lambda: shown(browser) == said, "what the link means")
    after = state(browser)
    assert [after[name] for name in ("object", "other", "blend")] == [before["object"], before["other"], 0.35]
    for name, value in before["view"].items():
        assert after["view"][name] == pytest.approx(value, abs=0.06)


def test_a_link_to_new_ones_draws_them_again(browser: Any, written: Path) -> None:
    open_page(browser, written)
    browser.find_element(By.CSS_SELECTOR, "#wishes option[value=b]").click()
    press(browser, "draw")
    address = link(browser)
    assert "seed+8" in address
    assert "show.label.kind=b" in address
    browser.get("about:blank")
    browser.get(address + "&with=seed+9&mix=0.5")
    wait_for(lambda: shown(browser) == "seed 8 with 50 % of seed 9", "both are drawn")
    assert names(browser)[:2] == ["seed 8: b", "seed 9"]
    browser.execute_script("window.location.hash = arguments[0]", address.split("#")[1])  # the same page goes on
    wait_for(lambda: shown(browser) == "seed 8", "the first alone")
    assert len(names(browser)) == 5
    fields = [browser.find_element(By.CSS_SELECTOR, name).get_property("value") for name in ("#seed", "#wishes select")]
    assert fields == ["9", "b"]  # the next draw goes on from what the link shows


def test_the_button_copies(browser: Any, written: Path) -> None:
    open_page(browser, written)
    browser.find_elements(By.CSS_SELECTOR, ".gallery input")[1].click()
    browser.execute_script(
        "window.copied = ''; Object.defineProperty(navigator, 'clipboard', {value: {writeText: (text) => {"
        "window.copied = text; return Promise.resolve(); }}})"
    )
    browser.find_element(By.ID, "link").click()
    wait_for(lambda: browser.find_element(By.ID, "link").text == "Copied", "that it was copied")
    assert browser.execute_script("return window.copied") == link(browser)
    assert "show=1" in link(browser)


@pytest.mark.parametrize(
    "fragment",
    ["#show=99", "#show=seed+3&show.label.kind=c", "#show=seed+x", "#show=0&with=nothing", "#show=seed+1e99"],
)
def test_links_to_nothing_are_told(browser: Any, written: Path, fragment: str) -> None:
    open_page(browser, written, fragment)
    wait_for(lambda: browser.find_element(By.ID, "notice").is_displayed(), "the notice")
    assert "does not have" in browser.find_element(By.ID, "notice").text
    assert shown(browser) == "picture_00"
