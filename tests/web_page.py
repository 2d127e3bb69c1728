"""Pages of small models for tests, opened in a browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from mnif_nerf.export.web import WebObject, WebScene, WebText, write_web_page
from mnif_nerf.export.web_prior import DrawSettings, drawing_kit
from mnif_nerf.pipelines.generation import MNIFPipeline


def page(pipe: MNIFPipeline, path: Path, precision: Any = "float32", names: tuple[str, ...] = (), **draw: Any) -> Path:
    """A page of the model's first three training instances, with frames that tell which they are by their colour. Where
    the model has a prior the page draws new ones too, by settings `draw`."""
    model = pipe.model
    objects = []
    for k in range(3):
        item = pipe.instance(k)
        frames = [Image.new("RGB", (16, 16), (60 * k + 10, 40 * turn + 10, 90)) for turn in range(4)]
        objects.append(WebObject(names[k] if names else item.name, item.field, frames))
    shape = (model.grid or {}).get("shape", (1, 1))
    scene = WebScene(model.kind.drawing, model.camera, model.half_extent, model.cells, shape=shape)
    kit = drawing_kit(model, DrawSettings(**draw), precision) if model.prior is not None else None
    return write_web_page(path, objects, scene, WebText("Things", "Made here.", "test"), precision, kit)


def open_page(browser: Any, path: Path, fragment: str = "") -> None:
    browser.get("about:blank")  # a change of the fragment alone loads nothing
    browser.get(path.resolve().as_uri() + fragment)


def state(browser: Any) -> dict[str, Any]:
    return browser.execute_script("return window.mnif.state()")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Software rendering takes its time; the limit is only there so that a failure ends."""
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)
