"""`mnif-demo`: from nothing to generated objects on one machine, in minutes. What `make demo` and its kin run.

Every stage is one of the commands a user would type; a stage whose result is there already is skipped, and an
interrupted training goes on from its last checkpoint.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mnif_nerf.cli.generation_common import made_before
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.limits import MOST_SAMPLES, require_options
from mnif_nerf.modalities.traits import DemoData
from mnif_nerf.names import quoted

if TYPE_CHECKING:
    from mnif_nerf.modalities import Modality

_RUN = "run"


@dataclass(frozen=True)
class DemoConfig:
    """Make data, train on it, generate new objects, and show everything on one page.

    Attributes:
        modality: radiance fields of procedural cars, signed distances and colours of their meshes ("sdf"), voxels of
            them, images of handwritten digits, or signals (days of electricity demand, which need the extra "signals").
        data: where the data is made; by default data/procedural_cars, data/procedural_car_voxels, data/digits, ...
        output: where the run and its pictures go; by default outputs/demo, outputs/demo-sdf, outputs/demo-voxel, ...
        num_cars: training cars; by default 128, of voxels 256. The digits are as many as there are.
        train_views: views of each car (radiance).
        resolution: pixels along an image's edge (radiance).
        seed: random seed of the cars, the training and the samples.
        steps: training steps; 0 takes the demo's own number: the method's, or fewer where that takes long.
        num_samples: generated objects on the sheet; by default 16, of digits 64.
    """

    modality: Literal["radiance", "sdf", "voxel", "image", "signal"] = "radiance"
    data: Path | None = None
    output: Path | None = None
    num_cars: int | None = None
    train_views: int = 16
    resolution: int = 64
    seed: int = 0
    steps: int = 0
    num_samples: int | None = None

    @property
    def kind(self) -> Modality:
        """The modality itself."""
        from mnif_nerf import modalities

        return modalities.get(self.modality)

    def data_folder(self) -> Path:
        """Where the data is."""
        return self.data or Path("data") / self.kind.demo.data

    def output_folder(self) -> Path:
        """Where run and pictures go."""
        return self.output or Path("outputs") / self.kind.demo.output

    def run_folder(self) -> Path:
        """nerfstudio's folder of the run."""
        return self.output_folder() / self.kind.demo.method / _RUN

    def samples(self) -> int:
        """How many objects are generated."""
        return self.num_samples or self.kind.demo.num_samples


def main(config: DemoConfig) -> None:
    """Run every stage that has not been run yet."""
    from mnif_nerf.cli.demo_pages import PageSamples, make_page
    from mnif_nerf.pipelines.generation import MNIFPipeline

    require_options(config, num_samples=MOST_SAMPLES)
    timings: dict[str, float] = {}
    output, run, kind = config.output_folder(), config.run_folder(), config.kind
    with _stage(timings, "data"):
        _make_data(config)
    with _stage(timings, "training and latent prior"):
        _train(config, run)
    trained = run / "model" / "prior" / "prior.json"
    common = ["--load-config", str(run / "config.yml"), "--seed", str(config.seed)]
    with _stage(timings, "samples"):
        samples = output / "samples"
        if not made_before(samples / "samples.json", trained, num_samples=config.samples(), seed=config.seed):
            larger = ["--resolution", str(kind.demo.pixels)] if kind.demo.pixels else []
            larger += ["--frames", str(kind.demo.frames)] if kind.demo.frames else []
            count = ["--num-samples", str(config.samples())]
            _command("mnif-sample", *common, *count, *larger, "--output", str(samples))
    if kind.has_surface:
        with _stage(timings, "meshes"):
            meshes = output / "meshes"
            if not made_before(meshes / "report.json", trained, num_samples=4, seed=config.seed):
                wanted = ["--num-samples", "4", "--format", kind.mesh_formats]
                _command("mnif-export-mesh", *common, *wanted, "--output", str(meshes))
    with _stage(timings, "overview page"):
        pipe = MNIFPipeline.from_pretrained(run)
        page = make_page(pipe, config.data_folder(), output, PageSamples(config.samples(), config.seed))
    print("\n" + "\n".join(f"{name:32s} {seconds:6.1f} s" for name, seconds in timings.items()))
    print(f"{'together':32s} {sum(timings.values()):6.1f} s")
    print(f"\nLook at {page} (and {output / 'overview.png'}).")
    print(f"Next: ns-viewer --load-config {quoted(run / 'config.yml')}")


@contextmanager
def _stage(timings: dict[str, float], name: str) -> Iterator[None]:
    print(f"\n=== {name}", flush=True)
    start = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - start


def _command(name: str, *arguments: str) -> None:
    """Run one of the installed commands, from the same environment as this one."""
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        raise MNIFError(f"{name} is not installed beside {sys.executable}; install mnif_nerf with its extras.")
    print("$", name, *arguments, flush=True)
    with subprocess.Popen([str(program), *arguments]) as process:
        try:
            code = process.wait()
        except SystemExit:  # SIGTERM, which reached this process alone
            process.terminate()
            raise
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise MNIFError(f"{name} ended with code {code}; its own message is above.")


def _make_data(config: DemoConfig) -> None:
    options = DemoData(config.data_folder(), config.num_cars, config.train_views, config.resolution, config.seed)
    config.kind.demo.make_data(options)


def _train(config: DemoConfig, run: Path) -> None:
    from mnif_nerf.pipelines.run_checks import finished_steps

    if finished_steps(run):
        if (run / "model" / "prior").is_dir():
            print(f"{run}: trained already; remove it to train again.")
            return
        _command("mnif-train-prior", "--load-config", str(run / "config.yml"))
        return
    output = config.output_folder()
    arguments = [
        config.kind.demo.method, "--data", str(config.data_folder()), "--output-dir", str(output.parent),
        "--experiment-name", output.name, "--timestamp", _RUN, "--machine.seed", str(42 + config.seed),
        "--steps-per-eval-all-images", "0",  # the page at the end scores more, and ten seconds are saved each time
    ]  # fmt: skip
    if steps := config.steps or config.kind.demo.steps:
        arguments += ["--max-num-iterations", str(steps)]
    if points := config.kind.demo.points:
        arguments += ["--pipeline.datamanager.points-per-instance", str(points)]
    if list((run / "nerfstudio_models").glob("*.ckpt")):
        arguments += ["--load-dir", str(run / "nerfstudio_models")]
    _command(config.kind.demo.trainer, *arguments)


def entrypoint() -> None:
    """Console script."""
    import tyro

    run_command(lambda: main(tyro.cli(DemoConfig, prog="mnif-demo")), [DemoConfig])
