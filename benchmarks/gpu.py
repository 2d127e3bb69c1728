"""All that is measured on a borrowed card, in one run of minutes; `gpu.sh` starts it.

Every part runs in a process of its own and is ended when its time is over; what it found until then counts, what went
wrong stands in the table, and the next part goes on. Meanwhile the cars of the last part, a real training, are drawn
on processors that the others do not use. Run: `bash benchmarks/gpu.sh`; its header says what has to travel with it.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# The modules of the parts are loaded here once, for all processes that are forked from this one.
import gpu_checks  # noqa: F401
import gpu_evaluation  # noqa: F401
import gpu_fused  # noqa: F401
import gpu_steps
import gpu_training  # noqa: F401
import report
from gpu_report import Part, Settings, table

from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.files import write_json

_RESERVED = 100.0  # seconds that the real training has at least
_CARS = 260.0  # seconds that the making of its cars may take
_MEASURING = 4  # processors kept free of the making of cars
# Name, function, and wall seconds after which a part is ended; the training takes what is left.
CHECKS = (
    ("machine", "gpu_checks:machine", 60.0),
    ("data", "gpu_checks:data", 75.0),
    ("tests", "gpu_checks:tests", 120.0),
    ("agreement", "gpu_checks:agreement", 60.0),
    ("peaks", "gpu_checks:peaks", 30.0),
)
STEPS = tuple((name, f"gpu_steps:measure:{name}", 60.0) for name in gpu_steps.METHODS)
LAST = (
    ("fused", "gpu_fused:compare", 75.0),
    ("rendering", "gpu_checks:rendering", 45.0),
    ("matrices", "gpu_evaluation:matrices", 45.0),
    ("pictures", "gpu_evaluation:pictures", 60.0),
)
PARTS = (*CHECKS, *STEPS, *LAST)


@dataclass(frozen=True)
class Config:
    """Measure a card.

    Attributes:
        device: "cuda" or "cpu".
        tiny: sizes for a test of this script.
        minutes: of the whole run.
        output: folder of the table, of the numbers (gpu.json) and of the pictures.
        work: folder for data; a temporary one that is removed where None.
        seed: of everything.
        cars: of the training, at most; as many are made as there is time for.
        parts: which to run; all where empty.
    """

    device: Literal["cpu", "cuda"] = "cuda"
    tiny: bool = False
    minutes: float = 8.0
    output: Path = Path("outputs/gpu")
    work: Path | None = None
    seed: int = 0
    cars: int = 2458
    parts: tuple[str, ...] = ()


def _wanted(config: Config) -> list[tuple[str, str, float]]:
    known = [name for name, *_ in PARTS] + ["training"]
    unknown = set(config.parts) - set(known)
    if unknown:
        raise MNIFError(f"`parts` {', '.join(sorted(unknown))}: not known; choose of {', '.join(known)}.")
    return [part for part in PARTS if not config.parts or part[0] in config.parts or part[0] in ("machine", "data")]


class Run:
    """One run: its clock, its settings and what its parts have found."""

    def __init__(self, config: Config, settings: Settings) -> None:
        self.config, self.settings = config, settings
        self.start = time.perf_counter()
        self.end = self.start + 60.0 * config.minutes
        self.parts: dict[str, dict[str, Any]] = {}
        self.context = "fork"
        self.cars: Part | None = None
        cores = sorted(os.sched_getaffinity(0))
        apart = len(cores) >= 2 * _MEASURING
        self.measuring, self.others = (cores[:_MEASURING], cores[_MEASURING:]) if apart else ([], [])

    def left(self) -> float:
        """Seconds to the end of the run."""
        return self.end - time.perf_counter()

    def take(self, name: str, target: str, seconds: float, reserved: float, cores: Any = ()) -> None:
        """Run a part to its end, and keep what it found."""
        seconds = min(seconds, self.left() - reserved)
        if seconds < 1:
            self.parts[name] = {"rows": [], "error": "no time was left for it", "facts": {}, "seconds": 0.0}
            return
        print(f"[{time.perf_counter() - self.start:5.0f} s] {name}", flush=True)
        self.parts[name] = Part(name, target, self.settings, seconds, self.context, cores).finish()

    def machine(self, target: str, seconds: float) -> None:
        """The first part also tells whether CUDA works in a forked process."""
        self.take("machine", target, seconds, 0.0)
        if self.parts["machine"]["error"] is not None:
            forked, self.context = self.parts["machine"]["error"], "spawn"
            self.take("machine", target, seconds, 0.0)
            if self.parts["machine"]["error"] is not None:
                raise MNIFError(f"nothing was measured: {self.parts['machine']['error']}")
            self.parts["machine"]["facts"]["forked"] = forked

    def all(self) -> None:
        """Every part, the cars in the background."""
        config = self.config
        train = not config.parts or "training" in config.parts
        for name, target, seconds in _wanted(config):
            if name == "machine":
                self.machine(target, seconds)
            elif name == "data":  # on all processors, before anything is timed
                self.take(name, target, seconds, 0.0)
                self._start_cars(train)
            else:
                self.take(name, target, seconds, _RESERVED if train else 0.0, self.measuring)
        if self.cars is not None:
            print(f"[{time.perf_counter() - self.start:5.0f} s] waiting for the cars", flush=True)
            self.parts["cars"] = self.cars.finish()
        if train:
            self.take("training", "gpu_training:train", self.left() - 3.0, 0.0)

    def _start_cars(self, train: bool) -> None:
        seconds = min(self.left() - _RESERVED, _CARS)
        if train and seconds > 1:
            self.cars = Part("cars", "gpu_training:cars", self.settings, seconds, self.context, self.others, 10)


def _load_early(device: str) -> None:
    """Load what every optimiser loads (seconds of sympy), once for all forked processes."""
    if device == "cpu":  # before Triton is imported: its kernels are interpreted where there is no card
        os.environ["TRITON_INTERPRET"] = "1"
    importlib.import_module("torch._dynamo")


def main(config: Config) -> dict[str, Any]:
    """Measure, print the table, write the numbers."""
    _wanted(config)  # refuses what is not known
    _load_early(config.device)
    work = Path(tempfile.mkdtemp(prefix="mnif-gpu-")) if config.work is None else config.work
    for folder in (work, config.output):
        folder.mkdir(parents=True, exist_ok=True)
    run = Run(config, Settings(config.device, config.tiny, work, config.output, config.seed, cars=config.cars))
    try:
        run.all()
    finally:
        if run.cars is not None:
            run.cars.stop()
        info = run.parts.get("machine", {}).get("facts", {})
        title = f"{info.get('device', config.device)}, {time.perf_counter() - run.start:.0f} seconds in all"
        text = f"### {title}\n\n{table(run.parts)}\n"
        print(f"\n{text}\n" + (report.machine_line(info) if "processor" in info else ""), flush=True)
        results = {"benchmark": "gpu", "tiny": config.tiny, "machine": info, "parts": run.parts}
        write_json(config.output / "gpu.json", results)
        (config.output / "gpu.md").write_text(text, encoding="utf-8")
        if config.work is None:
            shutil.rmtree(work, ignore_errors=True)
    return run.parts


def entrypoint() -> None:
    """The script; its status is 1 where a part went wrong."""
    import tyro

    parts = main(tyro.cli(Config))
    wrong = [name for name, part in parts.items() if part["error"] is not None]
    if wrong:
        raise MNIFError(f"{len(wrong)} of {len(parts)} parts went wrong: {', '.join(wrong)}; see the table.")


if __name__ == "__main__":
    run_command(entrypoint)
