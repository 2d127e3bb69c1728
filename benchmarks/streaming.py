"""What grows with the number of training instances: start-up and checkpoints, not the steps.

A run of `mnif-sdf-lite` as `mnif-train` makes it, on synthetic stores of 1,000 to 1,000,000 balls of a few points each,
in shards as `mnif-data` writes them: opened, trained, saved and resumed, each size in a process of its own. Run:
`python benchmarks/streaming.py`.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import common
import numpy as np
import report
import torch
from train_step import turn
from worker import Worker

from mnif_nerf.data.geometry.surface_points import NEAR_NOISE, WIDE_NOISE, PointCounts, to_lattice
from mnif_nerf.data.stores.manifest import write_manifest
from mnif_nerf.data.stores.packing import GrowingArray
from mnif_nerf.data.stores.shards import shard_folder, shard_ranges
from mnif_nerf.data.stores.surface_pack import rows
from mnif_nerf.data.stores.surface_store import FOLDER, FORMAT, describe_store
from mnif_nerf.errors import disk_errors, run_command
from mnif_nerf.latents.table import RowAdam
from mnif_nerf.pipelines.methods import get_method
from mnif_nerf.pipelines.run import TrainingRun

COUNTS = PointCounts(6, 6, 8, 4)
_BYTES = 8 * COUNTS.total + 3 * COUNTS.surface
_TILE = 5000  # balls that differ
_WARM = 20  # steps before any is timed


@dataclass(frozen=True)
class Config:
    """Measure what grows with the number of instances.

    Attributes:
        instances: sizes of the stores.
        latent_dim: numbers of a latent.
        per_step: instances of a step.
        shard: MiB of a shard at most.
        rounds: turns of each size; a turn lasts about `seconds`, at least one step.
        seconds: length of a turn.
        threads: of torch and of the compiled kernel.
        device: "cpu" or "cuda".
        seed: of everything.
        cache: where a store and its run are kept while they are measured (1.2 GB for a million at 64 numbers).
        output: JSON file for the numbers.
    """

    instances: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)
    latent_dim: int = 64
    per_step: int = 16
    shard: int = 64
    rounds: int = 5
    seconds: float = 1.0
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    cache: Path = common.CACHE
    output: Path | None = None


def write_balls(root: Path, count: int, shard_bytes: int, seed: int = 0) -> None:
    """A data set of `count` balls of random sizes, some thousand of which differ; no colours."""
    generator = np.random.default_rng(seed)
    number = min(count, _TILE)
    way = generator.normal(size=(number, COUNTS.total, 3))
    way /= np.linalg.norm(way, axis=2, keepdims=True)
    radius = generator.uniform(0.2, 0.4, (number, 1, 1))
    noise = np.repeat([0.2, WIDE_NOISE, NEAR_NOISE, 0.0], COUNTS.by_kind)[:, None]
    points = np.clip(way * (radius + noise * generator.normal(size=(number, COUNTS.total, 1))), -0.5, 0.5)
    tile = {
        "points": to_lattice(points),
        "distance": (np.linalg.norm(points, axis=2) - radius[..., 0]).astype(np.float16),
        "normals": np.round(way[:, -COUNTS.surface :] * 127).astype(np.int8),
    }
    folder, ranges = root / FOLDER / "train", shard_ranges(count, _BYTES, shard_bytes)
    for shard, some in enumerate(ranges):
        place = shard_folder(folder, shard) if len(ranges) > 1 else folder
        place.mkdir(parents=True)
        for name, row, dtype in rows(COUNTS, False):
            file = GrowingArray(place / f"{name}.array", row, dtype)
            for first in range(0, len(some), number):
                file.append(tile[name][: len(some) - first])
            file.close()
    names = [f"ball{index:07d}" for index in range(count)]
    head = {"format": FORMAT.name, "format_version": FORMAT.version}
    shards = {"shards": [len(some) for some in ranges]} if len(ranges) > 1 else {}
    write_manifest(folder, {**head, **shards, **describe_store("train", names, COUNTS, False)})


class Streamer:
    """A run, inside a worker; see `Config` for the arguments."""

    def __init__(self, data: str, latent_dim: int, per_step: int, threads: int, device: str, seed: int) -> None:
        common.set_threads({"torch": threads, "kernel": threads})
        settings = get_method("mnif-sdf-lite").new_run()
        settings.data, settings.output_dir, settings.timestamp = Path(data), Path(data) / "runs", "run"
        settings.machine.device_type, settings.machine.seed = device, seed
        settings.pipeline.threads, settings.pipeline.train_prior = threads, False
        settings.pipeline.model.latent_dim = latent_dim
        settings.pipeline.datamanager.instances_per_step = per_step
        settings.pipeline.datamanager.points_per_instance = COUNTS.total // 2
        self.settings, self.device = settings, device
        start = time.perf_counter()
        self.run = TrainingRun(settings, say=lambda line: None)
        self.next = 0
        self.run.trainer.step(self._number())  # opens what is opened on first use
        self.start = time.perf_counter() - start
        for _ in range(_WARM):
            self.run.trainer.step(self._number())

    def _number(self) -> int:
        self.next += 1
        return self.next - 1

    def opened(self) -> dict[str, float]:
        """Seconds from settings to the end of the first step, MiB of the table with its moments, and shards."""
        tables = [self.run.model.latents.weight, *self._state().values()]
        size = sum(each.nbytes for each in tables) / 2**20
        return {"start": self.start, "table": size, "shards": len(getattr(self.run.data.store.places, "parts", "1"))}

    def _state(self) -> dict[str, torch.Tensor]:
        latents = self.run.optimizers.optimizers["latents"]
        assert isinstance(latents, RowAdam)
        state: dict[str, torch.Tensor] = latents.state[self.run.model.latents.weight]
        return state

    def turn(self, seconds: float) -> dict[str, list[float]]:
        """Wall seconds of steps taken until `seconds` are over, and CPU seconds of a step, on average."""
        cpu, first = time.process_time(), self.next
        times = turn(lambda: self.run.trainer.step(self._number()), seconds, self.device)
        return {"times": times, "cpu": [(time.process_time() - cpu) / (self.next - first)]}

    def save(self) -> float:
        """Seconds of a checkpoint."""
        start = time.perf_counter()
        self.run.save(self.next)
        return time.perf_counter() - start

    def resume(self) -> float:
        """Seconds from settings to a run that goes on from the checkpoint."""
        self.settings.load_dir = self.settings.checkpoint_folder()
        del self.run
        gc.collect()
        start = time.perf_counter()
        self.run = TrainingRun(self.settings, say=lambda line: None)
        return time.perf_counter() - start


def measure(config: Config) -> list[dict[str, Any]]:
    """Every size, one after the other: they would not fit on a small disk together."""
    found: list[dict[str, Any]] = []
    for count in config.instances:
        with contextlib.ExitStack() as stack, disk_errors(config.cache):
            config.cache.mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=config.cache, prefix="balls-")))
            write_balls(folder, count, config.shard * 2**20, config.seed)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
            arguments = {
                "data": str(folder), "latent_dim": config.latent_dim, "per_step": config.per_step,
                "threads": config.threads, "device": config.device, "seed": config.seed,
            }  # fmt: skip
            worker = stack.enter_context(Worker("streaming:Streamer", arguments))
            row: dict[str, Any] = {"instances": count, "data": size, "times": [], "cpu": [], **worker.call("opened")}
            before = worker.memory()
            for _ in range(config.rounds):
                for name, values in worker.call("turn", seconds=config.seconds).items():
                    row[name] += values
            row["memory"] = after = worker.memory()
            row["more"] = (after["private"] - before["private"]) / max(len(row["times"]), 1)
            row["save"], row["resume"] = worker.call("save"), worker.call("resume")
            found.append(row)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """One row a size."""
    columns = [
        "instances", "ms/step", "CPU ms/step", "private MiB", "table, MiB", "MiB more a step", "start, s",
        "checkpoint, s", "resume, s", "data, MiB", "shards",
    ]  # fmt: skip
    body = [
        [
            f"{row['instances']:,}", 1e3 * median(row["times"]), 1e3 * median(row["cpu"]), row["memory"]["private"],
            row["table"], row["more"], row["start"], row["save"], row["resume"], row["data"], row["shards"],
        ]
        for row in found
    ]  # fmt: skip
    return report.markdown_table(columns, body)


def main(config: Config) -> list[dict[str, Any]]:
    """Measure and print."""
    info = report.machine(config.seed)
    found = measure(config)
    notes = (
        f"Step: `mnif-sdf-lite` with {config.per_step} balls x {COUNTS.total // 2} points and latents of "
        f"{config.latent_dim} numbers, {config.threads} thread(s). Private memory is that of the process after the "
        "steps, less imports; the table is latents and their two moments, which fill as instances are visited, and "
        "names take the rest of what grows. Start: from settings to the end of the first step. Medians."
    )
    report.finish("Streaming", [table(found), notes], info, found, config.output)
    return found


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
