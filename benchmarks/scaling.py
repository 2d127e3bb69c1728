"""How our step grows with the number of scenes, and the mixing with the number of bases.

Scenes: `mnif-lite`'s step over stores of 100 to 10,000 scenes (16 views x 32 x 32 each; a few cars repeated,
written out and memory-mapped like a real store), in turns, each in a process of its own. Bases: mixing the
networks of one batch, forward and backward, at the paper's SRN Cars S shape, ours against broadcast-and-sum.
Run: `python benchmarks/scaling.py`.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import common
import report
import torch
from recipe import RecipeConfig, RecipeField
from train_step import turn
from worker import Worker

from mnif_nerf.errors import disk_errors, run_command
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec


@dataclass(frozen=True)
class Config:
    """Measure scaling.

    Attributes:
        scenes: sizes of the stores.
        views, resolution: of each scene.
        method: whose step is timed.
        bases: numbers of bases to mix.
        instances: networks mixed at a time.
        width, hidden_layers, latent_dim: shape of the mixed networks.
        rounds: turns of each configuration; a turn lasts about `seconds`, at least one step.
        seconds: length of a turn.
        threads: of torch and of the compiled kernel; 0 measures which is faster.
        device: "cpu" or "cuda".
        seed: of everything.
        cache: where the small data set is kept, and the large ones for as long as this runs (0.6 GB for
            10,000).
        output: JSON file for the numbers.
    """

    scenes: tuple[int, ...] = (100, 1000, 10_000)
    views: int = 16
    resolution: int = 32
    method: str = "mnif-lite"
    bases: tuple[int, ...] = (16, 64, 256, 1024)
    instances: int = 32
    width: int = 64
    hidden_layers: int = 4
    latent_dim: int = 128
    rounds: int = 5
    seconds: float = 0.5
    threads: int = 0
    device: str = "cpu"
    seed: int = 0
    cache: Path = common.CACHE
    output: Path | None = None


class Mixer:
    """Mixing of one batch, forward and backward, inside a worker.

    Args:
        kind: "ours" or "broadcast".
        bases, instances, width, hidden_layers, latent_dim: as in `Config`.
        device, seed: as in `Config`.
        threads: what `common.choose_threads` returned elsewhere.
    """

    def __init__(
        self,
        kind: str,
        bases: int,
        instances: int,
        width: int,
        hidden_layers: int,
        latent_dim: int,
        device: str,
        seed: int,
        threads: dict[str, int] | None = None,
    ) -> None:
        torch.manual_seed(seed)
        if threads is not None:
            common.set_threads(threads)
        shape: dict[str, Any] = {
            "width": width,
            "hidden_layers": hidden_layers,
            "num_bases": bases,
            "latent_dim": latent_dim,
        }
        self.kind, self.device = kind, device
        self.field: MixtureField | RecipeField
        if kind == "ours":
            self.field = MixtureField(FieldSpec(**shape), seed).to(device)
        else:
            self.field = RecipeField(RecipeConfig(**shape)).to(device)
        self.latents = torch.randn(instances, latent_dim, device=device).requires_grad_()
        self.gradients: list[torch.Tensor] | None = None

    def mix(self) -> None:
        """Forward and backward."""
        self.field.zero_grad()
        self.latents.grad = None
        if isinstance(self.field, MixtureField):
            mixed = self.field.flat_weights(self.latents)
        else:
            mixed = [part for layer in self.field.mix(self.latents) for part in layer]
        if self.gradients is None:
            self.gradients = [torch.randn_like(part) for part in mixed]
        torch.autograd.backward(mixed, self.gradients)

    def tune(self, wanted: int) -> dict[str, int]:
        """Choose threads; see `common.choose_threads`."""
        return common.choose_threads(self.mix, wanted)

    def turn(self, seconds: float) -> list[float]:
        """Wall seconds of mixings until `seconds` are over; one at least."""
        return turn(self.mix, seconds, self.device)


def measure_scenes(config: Config) -> list[dict[str, Any]]:
    """Step time and memory by number of scenes."""
    data = common.small_cars(config.cache, 8, config.views, config.resolution, config.seed)
    base = common.open_store(data, "train", progress=False)
    shared = {
        "settings": {"method": config.method},
        "data": str(data),
        "device": config.device,
        "seed": config.seed,
    }
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack, disk_errors(config.cache):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=config.cache, prefix="tiles-")))
        workers, threads = [], None
        for scenes in config.scenes:
            tiles = folder / str(scenes)
            tiles.mkdir()
            common.write_tiles(base, scenes, tiles)
            size = sum(path.stat().st_size for path in tiles.iterdir()) / 2**20
            arguments = {**shared, "scenes": scenes, "tiles": str(tiles)}
            workers.append(stack.enter_context(Worker("train_step:Stepper", arguments)))
            if threads is None:
                threads = workers[0].call("tune", wanted=config.threads, repeats=5)
            workers[-1].call("set_threads", threads=threads)
            rows.append({"scenes": scenes, "data": size, "times": [], "threads": threads})
        for _ in range(config.rounds):
            for row, worker in zip(rows, workers):
                row["times"] += worker.call("turn", seconds=config.seconds)
        for row, worker in zip(rows, workers):
            row["memory"] = worker.memory()
    return rows


def measure_mixing(config: Config) -> list[dict[str, Any]]:
    """Time and memory of the mixing by number of bases."""
    rows, threads = [], None
    for bases in config.bases:
        row: dict[str, Any] = {"bases": bases, "ours": {"times": []}, "broadcast": {"times": []}}
        arguments = {
            "bases": bases, "instances": config.instances, "width": config.width,
            "hidden_layers": config.hidden_layers, "latent_dim": config.latent_dim, "device": config.device,
            "seed": config.seed,
        }  # fmt: skip
        with contextlib.ExitStack() as stack:
            workers = {}
            for kind in ("ours", "broadcast"):
                given = {**arguments, "kind": kind, "threads": threads}
                workers[kind] = stack.enter_context(Worker("scaling:Mixer", given))
                if threads is None:
                    threads = workers[kind].call("tune", wanted=config.threads)
            for _ in range(config.rounds):
                for kind, worker in workers.items():
                    row[kind]["times"] += worker.call("turn", seconds=config.seconds / 2)
            for kind, worker in workers.items():
                row[kind]["memory"] = worker.memory()
        rows.append({**row, "threads": threads})
    return rows


def added(memory: dict[str, float]) -> float:
    """Peak less imports; on CUDA the device's peak."""
    return memory.get("device", memory["added"])


def scene_table(rows: list[dict[str, Any]]) -> str:
    """Step by number of scenes; ratios are to the first row."""
    columns = ["scenes", "ms/step", "ratio", "private MiB", "peak MiB", "data on disk, MiB"]
    first = median(rows[0]["times"])
    body = []
    for row in rows:
        seconds, memory = median(row["times"]), row["memory"]
        body.append([
            f"{row['scenes']:,}", 1e3 * seconds, f"{seconds / first:.2f}x", memory["private"], added(memory),
            row["data"],
        ])  # fmt: skip
    return report.markdown_table(columns, body)


def mixing_table(rows: list[dict[str, Any]]) -> str:
    """Mixing by number of bases."""
    columns = ["bases", "ours ms", "broadcast ms", "faster", "ours MiB", "broadcast MiB", "less memory"]
    body = []
    for row in rows:
        ours, other = (median(row[kind]["times"]) for kind in ("ours", "broadcast"))
        sizes = [added(row[kind]["memory"]) for kind in ("ours", "broadcast")]
        body.append([
            f"{row['bases']:,}", 1e3 * ours, 1e3 * other, f"{other / ours:.1f}x", *sizes,
            f"{sizes[1] / max(sizes[0], 1e-9):.1f}x",
        ])  # fmt: skip
    return report.markdown_table(columns, body)


def main(config: Config) -> dict[str, Any]:
    """Measure and print."""
    info = report.machine(config.seed)
    results = {"scenes": measure_scenes(config), "mixing": measure_mixing(config)}
    threads = [common.threads_text(results[part][0]["threads"]) for part in ("scenes", "mixing")]
    notes = (
        f"Step: `{config.method}`, {threads[0]} threads (torch/kernel); pictures are mapped from disk, and "
        "mapped pages, "
        "which the system can drop at any time, count in the peak but not as private memory (latents, "
        f"optimisers, networks); both less imports. Mixing: {config.instances} networks of width {config.width}, "
        f"{config.hidden_layers} hidden layers, latent {config.latent_dim}, forward and backward, "
        f"{threads[1]} threads; memory is the peak less imports, bases and their gradients included. "
        "Medians of alternating turns."
    )
    parts = [scene_table(results["scenes"]), mixing_table(results["mixing"]), notes]
    report.finish("Scaling", parts, info, results, config.output)
    return results


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
