"""The viewer as a person uses it: `ns-viewer` in a real browser, where a button and a slider show other objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("nerfstudio")

from browser import chromium
from nerfstudio_runs import Run, tiny_config
from tiny_srn import write_tiny_srn
from viewer_page import Page, Server, difference, free_port, ns_viewer

from mnif_nerf.pipelines.model_folder import read_model, write_prior
from mnif_nerf.priors.prior import LatentPrior, PriorConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run long enough that its objects differ in colour; with a prior."""
    folder = tmp_path_factory.mktemp("browser")
    data = write_tiny_srn(folder / "toys", scenes=6, views=6, resolution=16)
    # A seed whose first sample differs from the first training instance and from the mean, all of which are shown.
    changes = {"pipeline.datamanager.rays_per_scene": 64, "pipeline.model.width": 16, "machine.seed": 5}
    made = Run(tiny_config(data, folder / "outputs", steps=250, **changes))
    latents = read_model(made.folder / "model").latents
    write_prior(LatentPrior.fit(latents, PriorConfig(steps=100), progress=False), made.folder / "model")
    return made.folder


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[tuple[Server, int]]:
    port = free_port()
    with ns_viewer(run / "config.yml", port) as started:
        yield started, port


def test_drawing_and_moving_a_slider_show_other_objects(server: tuple[Server, int], run: Path) -> None:
    started, port = server
    with chromium(900, 640) as driver:
        page = Page(driver, port)
        start = page.settled()
        assert start.std() > 5, "an object is in view"

        page.press("Draw new sample")
        page.wait_for("drew seed 0")
        drawn = page.changed(start)

        position = page.value("Direction 1")
        moved_to = page.slide("Direction 1", -30 if float(position) > 0 else 30)
        page.wait_for("seed 0 edited")
        moved = page.changed(drawn)
        assert moved_to != float(position)

        page.press("Undo directions")
        page.wait_for("Shown: seed 0\n")
        back = page.changed(moved)
        assert difference(back, drawn) < 0.2 * difference(moved, drawn)
        assert page.value("Direction 1") == position

        # Whatever is typed: a sentence, and the thread that renders lives on.
        page.type("Name", "nonesuch")
        page.wait_for("no training instance is named 'nonesuch'")
        page.type("Seed", "99999999999")
        page.wait_for("out of range")
        page.choose("Source", "mean")
        page.wait_for("Shown: mean")
        page.changed(back)

        page.press("Save latent")
        page.wait_for("wrote")
    assert (run / "viewer" / "mean.safetensors").is_file()
    assert "Traceback" not in started.text, started.text[-2000:]
