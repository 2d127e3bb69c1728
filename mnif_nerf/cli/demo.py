"""`mnif-demo`: from nothing to generated cars on one machine, in minutes. What `make demo` runs.

Every stage is one of the commands a user would type; a stage whose result is there already is skipped, and an
interrupted training goes on from its last checkpoint.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.errors import MNIFError, run_command

if TYPE_CHECKING:
    from mnif_nerf.pipelines.generation import MNIFPipeline


@dataclass(frozen=True)
class DemoConfig:
    """Make procedural cars, train on them, generate new ones, and show everything on one page.

    Attributes:
        data: where the cars are made.
        output: where the run and its pictures go.
        num_cars: training cars.
        train_views: views of each.
        resolution: pixels along an image's edge.
        seed: of the cars, the training and the samples.
        steps: training steps; 0 takes the method's own number.
        num_samples: generated cars on the sheet; the first four become GLB meshes.
    """

    data: Path = Path("data/procedural_cars")
    output: Path = Path("outputs/demo")
    num_cars: int = 128
    train_views: int = 16
    resolution: int = 64
    seed: int = 0
    steps: int = 0
    num_samples: int = 16


def main(config: DemoConfig) -> None:
    """Run every stage that has not been run yet."""
    timings: dict[str, float] = {}
    with _stage(timings, "1/5 procedural cars"):
        _make_cars(config)
    run = config.output / "mnif-lite" / "run"
    with _stage(timings, "2/5 training and latent prior"):
        _train(config, run)
    trained = run / "model" / "prior" / "prior.json"
    common = ["--load-config", str(run / "config.yml"), "--seed", str(config.seed)]
    with _stage(timings, "3/5 samples"):
        output = config.output / "samples"
        if not _made(output / "samples.json", trained, num_samples=config.num_samples, seed=config.seed):
            _command("mnif-sample", *common, "--num-samples", str(config.num_samples), "--output", str(output))
    with _stage(timings, "4/5 meshes"):
        output = config.output / "meshes"
        if not _made(output / "report.json", trained, num_samples=4, seed=config.seed):
            _command("mnif-export-mesh", *common, "--num-samples", "4", "--format", "glb", "--output", str(output))
    with _stage(timings, "5/5 overview page"):
        page = _overview(config, run)
    print("\n" + "\n".join(f"{name:32s} {seconds:6.1f} s" for name, seconds in timings.items()))
    print(f"{'together':32s} {sum(timings.values()):6.1f} s")
    print(f"\nLook at {page} (and {config.output / 'overview.png'}).")
    print(f"Next: ns-viewer --load-config {run / 'config.yml'}")


@contextmanager
def _stage(timings: dict[str, float], name: str) -> Iterator[None]:
    print(f"\n=== {name}", flush=True)
    start = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - start


def _made(report: Path, source: Path, **settings: int) -> bool:
    """Whether a command's report is newer than the model `source` and was made with these settings."""
    from mnif_nerf.files import read_json

    if not (report.is_file() and source.is_file() and report.stat().st_mtime >= source.stat().st_mtime):
        return False
    content = read_json(report)
    used = content.get("settings", content)
    done = all(used.get(name) == value for name, value in settings.items())
    if done:
        print(f"{report.parent}: made from this model already; remove it to make it again.")
    return done


def _command(name: str, *arguments: str) -> None:
    """Run one of the installed commands, from the same environment as this one."""
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        raise MNIFError(f"{name} is not installed beside {sys.executable}; install mnif_nerf with its extras.")
    print("$", name, *arguments, flush=True)
    done = subprocess.run([str(program), *arguments], check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise MNIFError(f"{name} ended with code {done.returncode}; its own message is above.")


def _make_cars(config: DemoConfig) -> None:
    from mnif_nerf.data.procedural import make_procedural_cars

    make_procedural_cars(
        config.data,
        num_train=config.num_cars,
        train_views=config.train_views,
        resolution=config.resolution,
        seed=config.seed,
    )


def _train(config: DemoConfig, run: Path) -> None:
    from mnif_nerf.files import read_json

    stored = run / "model" / "config.json"
    if stored.is_file() and read_json(stored).get("training", {}).get("finished"):
        if (run / "model" / "prior").is_dir():
            print(f"{run}: trained already; remove it to train again.")
            return
        _command("mnif-train-prior", "--load-config", str(run / "config.yml"))
        return
    arguments = [
        "mnif-lite", "--data", str(config.data), "--output-dir", str(config.output.parent),
        "--experiment-name", config.output.name, "--timestamp", "run", "--machine.seed", str(42 + config.seed),
    ]  # fmt: skip
    if config.steps > 0:
        arguments += ["--max-num-iterations", str(config.steps)]
    if list((run / "nerfstudio_models").glob("*.ckpt")):
        arguments += ["--load-dir", str(run / "nerfstudio_models")]
    _command("ns-train", *arguments)


def _overview(config: DemoConfig, run: Path) -> Path:
    """One picture and one page: training cars, their reconstructions, samples and interpolations."""
    from mnif_nerf.export.pictures import comparison_rows, save_png
    from mnif_nerf.pipelines.generation import MNIFPipeline

    pipe = MNIFPipeline.from_pretrained(run)
    shown = [round(i * (len(pipe.names) - 1) / 7) for i in range(8)]
    truth, rebuilt, score = _held_out(config.data, pipe, shown)
    samples = pipe(num_samples=config.num_samples, seed=config.seed)
    ends = (samples[0], samples[min(1, len(samples) - 1)])
    size = 128
    rows: dict[str, list[Any]] = {
        "Training cars, views held out from training": truth,
        f"The model's rendering of the same views ({score:.1f} dB over all training cars)": rebuilt,
    }
    for first in range(0, len(samples), 8):
        label = "Cars that never existed: samples of the latent prior" if first == 0 else "more samples"
        rows[label if first <= 8 else f"{label} {first}"] = [
            car.render(elevation=25, azimuth=40, resolution=size) for car in samples[first : first + 8]
        ]
    path = pipe.interpolate(*ends, num=8)
    rows["From the first sample to the second"] = [car.render(25, 40, size) for car in path]
    save_png(comparison_rows(rows), config.output / "overview.png")
    return _write_page(config.output, score)


def _held_out(data: Path, pipe: MNIFPipeline, shown: list[int]) -> tuple[list[Any], list[Any], float]:
    """A held-out view of each shown instance, the model's render of it, and the mean PSNR in dB over all instances."""
    import torch

    from mnif_nerf.data.store import open_store
    from mnif_nerf.metrics.images import psnr
    from mnif_nerf.rendering.cameras import Intrinsics
    from mnif_nerf.rendering.views import render_view

    store = open_store(data, "train_val", progress=False)
    truth, rebuilt, scores = [], [], []
    for instance, name in enumerate(pipe.names):
        scene = store.names.index(name)
        focal, cx, cy = (float(v) for v in store.intrinsics[scene])
        camera = Intrinsics(focal, cx, cy, store.height, store.width)
        car = pipe.instance(name)
        first, last = store.view_range(scene)
        for view in range(first, last):
            picture = torch.from_numpy(store.images[view].copy()).float() / 255
            pose = torch.from_numpy(store.poses[view]).to(car.latent.device)
            render = render_view(car.field, pose, camera, car.grid)["rgb"].cpu()
            scores.append(float(psnr(render, picture)))
            if view == first and instance in shown:
                truth.append(_enlarged(picture))
                rebuilt.append(_enlarged(render))
    return truth, rebuilt, sum(scores) / len(scores)


def _enlarged(picture: Any, size: int = 128) -> Any:
    from PIL import Image

    from mnif_nerf.export.pictures import to_image

    return to_image(picture).resize((size, size), Image.Resampling.BICUBIC)


def _write_page(output: Path, score: float) -> Path:
    from mnif_nerf.files import atomic_file

    videos = sorted((output / "samples").glob("[!.]*.mp4"))
    meshes = sorted((output / "meshes").glob("[!.]*.glb"))
    for video in videos[:1]:
        shutil.copyfile(video, output / "turntable.mp4")
    listed = "".join(f'<li><a href="meshes/{mesh.name}">{mesh.name}</a></li>' for mesh in meshes)
    page = output / "index.html"
    with atomic_file(page) as temporary:
        temporary.write_text(
            "<!doctype html><meta charset='utf-8'><title>mnif_nerf demo</title>"
            "<style>body{font-family:sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}"
            "img,video{max-width:100%}</style>"
            "<h1>Cars that never existed</h1>"
            f"<p>Reconstruction of held-out views of the training cars: {score:.1f} dB PSNR.</p>"
            "<img src='overview.png' alt='training cars, reconstructions, samples and interpolations'>"
            + ("<h2>Turntable of the samples</h2><video src='turntable.mp4' controls loop></video>" if videos else "")
            + f"<h2>Meshes (open in any 3D program)</h2><ul>{listed}</ul>",
            encoding="utf-8",
        )
    return page


def entrypoint() -> None:
    """Console script."""
    import tyro

    run_command(lambda: main(tyro.cli(DemoConfig, prog="mnif-demo")))
