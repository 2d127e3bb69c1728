"""One training step: the authors' recipe against ours, at the paper's SRN Cars S shape and at the lite one.

A step is draw + forward + backward + all optimisers, in plain Python without nerfstudio. Every configuration
runs in a process of its own (peak memory), they are timed in turns (what disturbs the machine disturbs all),
and medians count. Threads are measured at the start, in each process for its own work. Run: `python
benchmarks/train_step.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import common
import report
import torch
from recipe import RecipeConfig, RecipeTrainer
from worker import Worker

from mnif_nerf.errors import run_command
from mnif_nerf.fields.network import layer_shapes


@dataclass(frozen=True)
class Config:
    """Time the training step.

    Attributes:
        scenes: scenes of the store (a few 128 x 128 procedural cars, repeated).
        resolution: pixels along an image's edge (the recipe builds every ray of a view).
        recipe_views, recipe_pixels: the recipe's rays are 8 scenes x these.
        rounds: turns of each configuration; a turn lasts about `seconds`, at least one step.
        seconds: length of a turn.
        threads: of torch and of the compiled kernel; 0 measures which is faster.
        device: "cpu" or "cuda".
        seed: of everything.
        cache: where the small data set is kept.
        output: JSON file for the numbers.
        scale: divides widths, bases and batches, for a quick look.
    """

    scenes: int = 32
    resolution: int = 128
    recipe_views: int = 4
    recipe_pixels: int = 512
    rounds: int = 7
    seconds: float = 0.5
    threads: int = 0
    device: str = "cpu"
    seed: int = 0
    cache: Path = common.CACHE
    output: Path | None = None
    scale: int = 1


class Stepper:
    """One configuration, inside a worker.

    Args:
        settings: `{"recipe": {...}}` or `{"method": name, ...}` with values to replace.
        data, scenes: as in `common.open_tiled`.
        device, seed: as in `Config`.
        tiles: folder with the tiles of a large store, or None.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        data: str,
        scenes: int,
        device: str,
        seed: int,
        tiles: str | None = None,
    ) -> None:
        store = common.open_tiled(data, scenes, tiles)
        self.device = device
        self.trainer: RecipeTrainer | common.OurTrainer
        if "recipe" in settings:
            config = RecipeConfig(**settings["recipe"])
            self.trainer = RecipeTrainer(store, config, device, seed)
            shapes, bases = layer_shapes(3, config.width, config.hidden_layers, 4), config.num_bases
        else:
            changes = {name: value for name, value in settings.items() if name != "method"}
            method = dataclasses.replace(common.METHODS[settings["method"]], **changes)
            self.trainer = common.OurTrainer(store, method, device, seed)
            shapes, bases = method.spec.shapes, method.num_bases
        if isinstance(self.trainer, RecipeTrainer):
            instances = self.trainer.scenes_per_step
        else:
            instances = self.trainer.sampler.scenes_per_step
        self.size = {
            "rays": self.trainer.rays_per_step,
            "points": self.trainer.points_per_step,
            "gflop": common.step_gflop(shapes, self.trainer.points_per_step, instances, bases),
        }

    def tune(self, wanted: int, repeats: int) -> dict[str, int]:
        """Choose threads; see `common.choose_threads`."""
        return common.choose_threads(self.trainer.gradient, wanted, repeats)

    def set_threads(self, threads: dict[str, int]) -> None:
        """Take another process' choice."""
        common.set_threads(threads)

    def numbers(self) -> dict[str, float]:
        """Rays, points and GFLOP of one step."""
        return self.size

    def turn(self, seconds: float) -> list[float]:
        """Wall seconds of steps taken until `seconds` are over; one step at least."""
        return turn(lambda: self.trainer.step(0.5), seconds, self.device)


class Gemm:
    """What torch's matrix product reaches on this machine with all its cores, inside a worker."""

    def __init__(self, size: int, device: str) -> None:
        torch.set_num_threads(common.num_cores())
        self.a, self.b = torch.randn(2, size, size, device=device)
        self.out = torch.empty(size, size, device=device)
        self.gflop, self.device = 2 * size**3 / 1e9, device

    def turn(self, seconds: float) -> list[float]:
        """GFLOP/s of products made until `seconds` are over."""
        times = turn(lambda: torch.mm(self.a, self.b, out=self.out), seconds, self.device)
        return [self.gflop / t for t in times]


def turn(work: Callable[[], object], seconds: float, device: str) -> list[float]:
    """Wall seconds of calls repeated until `seconds` are over; a first short call is not counted."""
    first = common.timed(work, device)
    times = [first] if first > seconds else []
    start = time.perf_counter()
    while not times or time.perf_counter() - start + first < seconds:
        times.append(common.timed(work, device))
    return times


def configurations(config: Config) -> dict[str, dict[str, Any]]:
    """What is compared, by the name it has in the table."""
    k = config.scale
    lite, full = common.MNIF_LITE, common.MNIF
    recipe = {"views": config.recipe_views, "pixels": config.recipe_pixels}
    if k > 1:
        recipe |= {"width": 64 // k, "num_bases": 256 // k, "pixels": max(config.recipe_pixels // k, 1)}
    ours = []
    for method in (full, lite):
        changes: dict[str, Any] = {"method": method.name}
        if k > 1:
            changes |= {"width": method.width // k, "num_bases": method.num_bases // k}
            changes |= {"scenes_per_step": max(method.scenes_per_step // k, 1)}
        ours.append(changes)
    return {
        "recipe, SRN-S": {"recipe": recipe},
        "ours, SRN-S (`mnif`)": ours[0],
        "ours, lite (`mnif-lite`)": ours[1],
    }


def measure(config: Config) -> dict[str, Any]:
    """Start all processes, time them in turns, return the numbers by configuration (and "gemm")."""
    data = common.small_cars(config.cache, cars=8, views=8, resolution=config.resolution, seed=config.seed)
    common.open_store(data, "train", progress=False)
    shared = {"data": str(data), "scenes": config.scenes, "device": config.device, "seed": config.seed}
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        gemm = stack.enter_context(Worker("train_step:Gemm", {"size": 2048 // config.scale, "device": config.device}))
        workers = {}
        for name, settings in configurations(config).items():
            worker = Worker("train_step:Stepper", {"settings": settings, **shared})
            workers[name] = stack.enter_context(worker)
            threads = worker.call("tune", wanted=config.threads, repeats=1 if "recipe" in settings else 5)
            results[name] = {**worker.call("numbers"), "threads": threads, "times": []}
        peaks = []
        for _ in range(config.rounds):
            peaks += gemm.call("turn", seconds=config.seconds / 2)
            for name, worker in workers.items():
                results[name]["times"] += worker.call("turn", seconds=config.seconds)
        for name, worker in workers.items():
            results[name]["memory"] = worker.memory()
    results["gemm"] = {"gflops": max(peaks), "median": median(peaks)}
    return results


def table(results: dict[str, Any]) -> str:
    """The comparison, one row per configuration; ratios are to the first."""
    columns = [
        "step", "threads*", "rays", "samples", "ms/step", "rays/s", "points/s", "GFLOP/s", "of GEMM peak",
        "peak MiB", "less imports, MiB", "rays/s, ratio", "points/s, ratio", "memory, ratio",
    ]  # fmt: skip
    rows, first = [], None
    for name, result in results.items():
        if name == "gemm":
            continue
        seconds, memory = median(result["times"]), result["memory"]
        added = memory.get("device", memory["added"])
        rates = result["rays"] / seconds, result["points"] / seconds
        first = first or (*rates, added)
        flops = result["gflop"] / seconds
        rows.append([
            name, common.threads_text(result["threads"]), result["rays"], result["points"], 1e3 * seconds, *rates,
            flops, f"{100 * flops / results['gemm']['gflops']:.1f} %", memory["peak"], added,
            f"{rates[0] / first[0]:.1f}x", f"{rates[1] / first[1]:.1f}x", f"{added / first[2]:.2f}x",
        ])  # fmt: skip
    return report.markdown_table(columns, rows)


def main(config: Config) -> dict[str, Any]:
    """Measure and print."""
    info = report.machine(config.seed)
    results = measure(config)
    memory = "device memory" if config.device != "cpu" else "the peak less what the process held at its start"
    notes = (
        f"GEMM peak measured in the same run: {results['gemm']['gflops']:,.0f} GFLOP/s (torch, float32, "
        f"{2048 // config.scale}^3, {common.num_cores()} threads; median "
        f"{results['gemm']['median']:,.0f}). Medians of alternating turns. The recipe's rays are drawn "
        "from all pixels and take 32 samples each; ours all meet the object's hull and take 8, so the two "
        'are not worth the same; "samples" counts our carve points too. FLOPs are the layers\' products '
        "and the mixing, forward and backward; sines, ray drawing and optimisers are in the time alone. "
        f'"Less imports" is {memory}. *Threads of torch/of the compiled kernel.'
    )
    report.finish("Training step", [table(results), notes], info, results, config.output)
    return results


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
