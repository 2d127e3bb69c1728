"""The page of mnif-export-web against the Python renderers: PSNR of its pictures, and frames per second.

A headless Chromium draws with WebGL2 in software (SwiftShader), so the speeds are a lower bound: any graphics chip is
faster. Models are the three demos' by default. Run: `python benchmarks/web.py`.
"""

from __future__ import annotations

import base64
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import report
import torch

from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.export.web import Precision, WebObject, WebScene, WebText, write_web_page
from mnif_nerf.pipelines.generation import MNIFPipeline, NeuralObject
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.plane import render_plane

_DEMOS = tuple(
    Path("outputs") / run
    for run in ("demo/mnif-lite/run", "demo-voxel/mnif-voxel-lite/run", "demo-image/mnif-image-lite/run")
)
_READ = """
const [request, done] = arguments;
window.mnif.render(request).then(
  (result) => done({ milliseconds: result.milliseconds, pixels: btoa(String.fromCharCode(...result.pixels)) }),
  (error) => done({ error: error.message }),
);
"""
_DEVICE = """
const gl = document.createElement("canvas").getContext("webgl2");
const info = gl.getExtension("WEBGL_debug_renderer_info");
return gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
"""


@dataclass(frozen=True)
class Config:
    """Measure pages of trained models.

    Attributes:
        models: model folders, runs or config.yml files.
        objects: samples of each model (training instances where it has no prior).
        views: of each, around it at 20 degrees of elevation.
        size: pixels along a picture's edge.
        seed: of the samples.
        output: JSON file for the numbers.
    """

    models: tuple[Path, ...] = _DEMOS
    objects: int = 2
    views: int = 3
    size: int = 96
    seed: int = 0
    output: Path | None = None


def python_picture(item: NeuralObject, azimuth: float, size: int) -> torch.Tensor:
    """What the package draws itself: `[size, size, 3]` in [0, 1]."""
    if item.modality != "image":
        return torch.from_numpy(np.asarray(item.render(20.0, azimuth, size), np.float32) / 255)
    camera = Intrinsics.default(2 * size, item.camera["focal_over_width"])
    rgb = render_plane(item.field, *pixel_rays(orbit_pose(20.0, azimuth, item.camera["radius"]), camera))["rgb"]
    return rgb.view(size, 2, size, 2, 3).mean(dim=(1, 3))


def page_picture(driver: Any, size: int, **request: Any) -> tuple[torch.Tensor, float]:
    """What the page draws, and the seconds it took."""
    answer = driver.execute_async_script(_READ, {"size": size, **request})
    if "error" in answer:
        raise MNIFError(f"the page could not draw: {answer['error']}")
    pixels = np.frombuffer(base64.b64decode(answer["pixels"]), np.uint8).reshape(size, size, 4)
    return torch.from_numpy(pixels[..., :3].astype(np.float32) / 255), answer["milliseconds"] / 1000


def measure(config: Config, path: Path, precision: Precision, folder: Path, driver: Any) -> dict[str, Any]:
    """Numbers of one model and precision."""
    pipe = MNIFPipeline.from_pretrained(path, device="cpu")
    if pipe.prior is not None:
        items: list[NeuralObject] = list(pipe(config.objects, config.seed))
    else:
        items = [pipe.instance(k) for k in range(config.objects)]
    azimuths = [20.0 + 360.0 * k / config.views for k in range(config.views)]
    shown = [WebObject(item.name, item.field, [item.picture(16)]) for item in items]
    scene = WebScene(pipe.model.kind.drawing, dict(pipe.model.camera), pipe.model.half_extent, pipe.model.cells)
    page = write_web_page(folder / "page.html", shown, scene, WebText("Measured", "", "benchmark"), precision)
    driver.get("about:blank")
    start = time.perf_counter()
    driver.get(page.resolve().as_uri())
    page_picture(driver, 16, object=0)
    first = time.perf_counter() - start
    errors, seconds = [], []
    for index, item in enumerate(items):
        for azimuth in azimuths:
            drawn, spent = page_picture(driver, config.size, object=index, elevation=20.0, azimuth=azimuth)
            errors.append(float((drawn - python_picture(item, azimuth, config.size)).square().mean()))
            if pipe.modality != "radiance":  # timed like a frame that moves, without smoothed outlines
                request = {"object": index, "elevation": 20.0, "azimuth": azimuth, "samples": 1}
                spent = page_picture(driver, config.size, **request)[1]
            seconds.append(spent)
    parameters = pipe.model.field.spec.parameters_per_instance
    return {
        "model": str(path),
        "modality": pipe.modality,
        "parameters": parameters,
        "precision": precision,
        "kilobytes": parameters * (2 if precision == "float16" else 4) * 4 / 3 / 1000,
        "psnr": decibels(fmean(errors)),
        "least": decibels(max(errors)),
        "seconds": median(seconds),
        "first": first,
    }


def decibels(error: float) -> float:
    """PSNR of a mean squared error of values in [0, 1]; 120 at most."""
    return -10 * math.log10(max(error, 1e-12))


def main(config: Config) -> list[dict[str, Any]]:
    """Measure and print.

    Raises:
        MNIFError: no browser, or no model.
    """
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    import pytest
    from browser import chromium

    info = report.machine(config.seed)
    rows = []
    try:
        with tempfile.TemporaryDirectory() as folder, chromium(600, 700) as driver:
            driver.set_script_timeout(300)
            about = f"Chromium {driver.capabilities['browserVersion']}, {driver.execute_script(_DEVICE)}"
            for path in config.models:
                for precision in ("float32", "float16"):
                    rows.append(measure(config, path, precision, Path(folder), driver))  # type: ignore[arg-type]
    except pytest.skip.Exception as reason:
        raise MNIFError(f"this benchmark drives a browser: {reason}.") from None
    report.finish("The page against Python", [table(config, rows), notes(config, about)], info, rows, config.output)
    return rows


def table(config: Config, rows: list[dict[str, Any]]) -> str:
    """One row per model and precision."""
    size = f"{config.size} x {config.size}"
    columns = [
        "model", "numbers", "weights as", "KB an object", "PSNR, dB", "least PSNR, dB", f"ms a frame of {size}",
        "frames/s", "s to a first picture",
    ]  # fmt: skip
    body = [
        [
            row["modality"], row["parameters"], row["precision"], row["kilobytes"], row["psnr"], row["least"],
            1000 * row["seconds"], 1 / row["seconds"], row["first"],
        ]
        for row in rows
    ]  # fmt: skip
    return report.markdown_table(columns, body)


def notes(config: Config, about: str) -> str:
    """What the numbers mean."""
    return (
        f"{about}. WebGL2 in software: a lower bound for any graphics chip. {config.objects} objects x {config.views} "
        "views at 20 degrees of elevation; PSNR of the mean error of 8-bit pictures against the package's own render "
        "of float32 weights, whose float32 row is thus what the shader alone costs; medians of frame times. KB are the "
        "weights' base64 text."
    )


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
