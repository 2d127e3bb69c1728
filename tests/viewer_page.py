"""The page of nerfstudio's viewer in a real browser, for tests: started, read and operated as a person would."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_TITLE_BAR, _PANEL = 60, 330  # pixels
_FULL = 500  # pixels of the longer side, of 512 at rest
_PATIENCE = 6.0  # seconds
_COUNT_DRAWS = """
const done = arguments[0], kind = WebGL2RenderingContext.prototype, clear = kind.clear;
let count = 0;
kind.clear = function (...given) { count++; return clear.apply(this, given); };
setTimeout(() => { kind.clear = clear; done(count); }, 1500);
"""
_STILL = 0.3  # grey levels: where pictures come slowly, viser's page goes on to adapt its pixels


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A running `ns-viewer` (or another command that opens one), and what it has printed."""

    def __init__(self, command: list[str], **options: Any) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def text(self) -> str:
        """All that was printed."""
        return "\n".join(self.lines)

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Wait until `text` was printed."""
        wait(lambda: text in self.text or self.process.poll() is not None, seconds, lambda: self.text[-2000:])
        assert text in self.text, self.text[-2000:]

    def stop(self) -> None:
        """End it, at the latest by force."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)


@contextlib.contextmanager
def ns_viewer(config: Path, port: int, **options: Any) -> Iterator[Server]:
    """`ns-viewer` of a run, listening."""
    command = [str(Path(sys.executable).with_name("ns-viewer")), "--load-config", str(config)]
    server = Server([*command, "--viewer.websocket-port", str(port)], **options)
    try:
        server.wait_for("in a browser.")
        yield server
    finally:
        server.stop()


def wait(ready: Callable[[], Any], seconds: float, what: Callable[[], str] = lambda: "") -> Any:
    """What `ready` gives as soon as it is something; it fails after `seconds`."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        found = ready()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what()}")


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two pictures, in grey levels of 255."""
    return float(np.abs(first - second).mean())


class Page:
    """The viewer's page in a browser.

    Args:
        driver: of selenium.
        port: of the viewer.
    """

    def __init__(self, driver: Any, port: int) -> None:
        self.driver, self.port = driver, port
        driver.set_script_timeout(20)
        self._open()

    def _open(self) -> None:
        self.driver.get(f"http://localhost:{self.port}")
        wait(lambda: "Shown:" in self.text(), 60, lambda: self.driver.page_source[-500:])
        self._seen_alive = time.monotonic()

    def text(self) -> str:
        """The status lines of the folder of controls."""
        script = "return [...document.querySelectorAll('p')].filter(p => p.querySelector('strong'))"
        return str(self.driver.execute_script(script + ".map(p => p.textContent).join('\\n')"))

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until the status lines hold `text`."""
        wait(lambda: text in self.text() or self._wake(), seconds, self.text)

    def _wake(self) -> bool:
        """Load the page again if it has stopped to draw, and takes no message any more; False, for `or`.

        In software WebGL, viser's page (0.2.7) ends its loop of frames in about one session of ten, while the server
        goes on. What the server shows outlives that, as it does a person's F5.
        """
        if time.monotonic() - self._seen_alive < _PATIENCE:
            return False
        if not self.driver.execute_async_script(_COUNT_DRAWS):
            print("viser's page had stopped to draw; loaded again")
            self._open()
        self._seen_alive = time.monotonic()
        return False

    def press(self, label: str) -> None:
        """Press a button."""
        script = (
            "const found = [...document.querySelectorAll('button')].find(b => b.textContent.trim() == arguments[0]);"
        )
        wait(lambda: self._run(script + "if (found) found.click(); return !!found", label), 20, lambda: label)

    def slide(self, label: str, steps: int) -> float:
        """Move a slider by its arrow keys; the value that it then has."""
        from selenium.webdriver.common.keys import Keys

        before = self._element(label, "[role=slider]").get_attribute("aria-valuenow")
        for _ in range(5):  # keys are lost where the page is just drawing the element anew
            thumb = self._element(label, "[role=slider]")
            self._run("arguments[0].focus()", thumb)
            thumb.send_keys((Keys.ARROW_RIGHT if steps > 0 else Keys.ARROW_LEFT) * abs(steps))
            after = self._element(label, "[role=slider]").get_attribute("aria-valuenow")
            if after != before:
                return float(after)
            time.sleep(0.5)
        raise AssertionError(f"{label} stays at {before}")

    def type(self, label: str, text: str) -> None:
        """Replace the text of a field (of a slider, of its number) and leave it."""
        from selenium.webdriver.common.keys import Keys

        field = self._element(label, "input:not([type=hidden])")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.ENTER)

    def value(self, label: str) -> str:
        """What a field, a number or a dropdown says."""
        return str(self._element(label, "input:not([type=hidden])").get_attribute("value"))

    def choose(self, label: str, option: str) -> None:
        """Choose in a dropdown."""
        field = self._element(label, "input:not([type=hidden])")
        self._run("arguments[0].scrollIntoView({block: 'center'})", field)
        field.click()
        script = "return [...document.querySelectorAll('[role=option]')].find(o => o.textContent == arguments[0] &&"
        found = wait(lambda: self.driver.execute_script(f"{script} o.offsetParent)", option), 10, lambda: option)
        self._run("arguments[0].click()", found)

    def picture(self) -> np.ndarray:
        """What the browser shows left of the controls: float `[H, W, 3]`, 0 to 255."""
        shot = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        return np.asarray(shot, dtype=np.float32)[_TITLE_BAR:, : shot.width - _PANEL]

    def settled(self, seconds: float = 60) -> np.ndarray:
        """The picture once it is there in its full resolution and does not change any more."""
        last, same, end = self.picture(), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.25)
            self._wake()
            now = self.picture()
            same = same + 1 if difference(now, last) < _STILL and self._resolution() >= _FULL else 0
            last = now
            if same >= 2:
                return now
        raise AssertionError(f"the picture keeps changing for {seconds} s")

    def changed(self, before: np.ndarray, least: float = 1.0, seconds: float = 60) -> np.ndarray:
        """The picture once it has settled and differs from `before` by at least so many grey levels on average."""
        other = lambda: difference(self.picture(), before) >= least or self._wake()  # noqa: E731
        wait(other, seconds, lambda: f"no other picture; {self.text()}")
        now = self.settled(seconds)
        assert difference(now, before) >= least
        return now

    def _resolution(self) -> int:
        """Pixels of the longer side of the last picture that the viewer sent."""
        script = "return [...document.querySelectorAll('p')].map(p => p.textContent).join('\\n')"
        found = re.search(r"Resolution: (\d+)x(\d+)px", str(self._run(script)))
        return max(int(found[1]), int(found[2])) if found else 0

    def _run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def _element(self, label: str, kind: str) -> Any:
        """The element of this kind in the row of this label."""
        script = (
            "const label = [...document.querySelectorAll('label')].find(l => l.textContent == arguments[0]);"
            "let row = label; while (row && !row.querySelector(arguments[1])) row = row.parentElement;"
            "return row && row.querySelector(arguments[1])"
        )
        return wait(lambda: self._run(script, label, kind), 20, lambda: label)
