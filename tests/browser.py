"""A headless Chromium for tests, driven through selenium; without one, the tests that need it are skipped and say so.

`make test` runs with whatever browser is installed; `.ci/run` installs Debian's (packages chromium and
chromium-driver). The browser opens local files and servers on this machine, and nothing else.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# No shared memory, sandbox or display is taken for granted: containers have none of them.
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
)
# WebGL2 in software: the same pictures on every machine, with a GPU or without.
_SOFTWARE_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
_NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")


@contextlib.contextmanager
def chromium(width: int = 1000, height: int = 800, webgl: bool = True) -> Iterator[Any]:
    """A selenium driver of a fresh browser; the test is skipped where there is no browser.

    Args:
        width, height: of the window, pixels.
        webgl: False gives a browser without WebGL, to test what a page does there.
    """
    pytest.importorskip("selenium", reason="selenium is not installed (it is in the dev extra)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("NO BROWSER: install Debian's packages chromium and chromium-driver to run this test")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        window = (f"--window-size={width},{height}", f"--user-data-dir={profile}")
        for flag in (*_FLAGS, *(_SOFTWARE_WEBGL if webgl else _NO_WEBGL), *window):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        opened = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield opened
        finally:
            opened.quit()
