"""Network families and modulations on the same data: quality after the same processor time and after the same steps.

Every choice learns by auto-decoding, in a process of its own and by default on one thread. First each gets the same
CPU-seconds of training (on CUDA: wall seconds); then all others train once more, for as many steps as the default,
a mixture of SIRENs, took. Rates fall to their end in both. Latents of unseen instances are fitted with the networks
frozen.
Run: `python benchmarks/families.py --data diverse --seconds 45`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adaptation
import common
import numpy as np
import report
import torch
from adaptation_tasks import SETTINGS, GridTask, RadianceTask, Settings, make_data, small
from worker import Worker

from mnif_nerf.data.generate.writer import write_occupancy
from mnif_nerf.data.stores.grid_store import open_grid_store
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.fields import kernel
from mnif_nerf.fields.families import FAMILIES
from mnif_nerf.fields.spec import MODULATIONS
from mnif_nerf.latents.fitting import FitConfig, fit, frozen
from mnif_nerf.latents.table import LatentTable, RowAdam

QUERIES = 100_000
DEFAULT = ("siren", "mixture")
DATA = {
    "diverse": dataclasses.replace(SETTINGS["voxel"], resolution=32, train=400, unseen=32, scored=32, fit_steps=200),
    "voxel": dataclasses.replace(SETTINGS["voxel"], resolution=32, train=400, unseen=32, scored=32, fit_steps=200),
    "image": SETTINGS["image"],
    "radiance": SETTINGS["radiance"],
}


@dataclass(frozen=True)
class Config:
    """Train every choice on the same data.

    Attributes:
        data: "diverse" (unions of boxes, balls and tori), "voxel" (cars), "image" (digits), "radiance" (cars), "all".
        seconds: the budget of each run.
        families, modulations: all pairs are trained, and the default, a mixture of SIRENs, always.
        factors: on w0, for families other than SIREN; of several, each has a third of the time, and the best on
            unseen instances is taken.
        steps: train for the same steps, too.
        threads: of torch and of the compiled kernel; 0 measures which is faster.
        device: "cpu" or "cuda".
        seed: of everything.
        cache: where the data sets are kept.
        output: JSON file for the numbers.
        small: tiny networks and data, for a quick look.
    """

    data: str = "all"
    seconds: float = 60.0
    families: tuple[str, ...] = tuple(FAMILIES)
    modulations: tuple[str, ...] = MODULATIONS
    factors: tuple[float, ...] = (0.25, 0.5, 1.0)
    steps: bool = True
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    cache: Path = common.CACHE
    output: Path | None = None
    small: bool = False


class Run:
    """One training run, inside a worker.

    Args:
        name: of the data, see `DATA`.
        choice: family, modulation, and the factor on w0.
        data: from `make`.
        threads, device, seed, small: as in `Config`.
    """

    def __init__(
        self, name: str, choice: tuple[str, str, float], data: str, threads: int, device: str, seed: int, small: bool
    ) -> None:
        settings = chosen(name, small)
        family, modulation, factor = choice
        w0 = factor * settings.field.w0
        field = dataclasses.replace(settings.field, family=family, modulation=modulation, w0=w0)
        self.settings, self.device = dataclasses.replace(settings, field=field), device
        kind = RadianceTask if name == "radiance" else GridTask
        self.task = kind("image" if name == "image" else "voxel", self.settings, Path(data), device, seed)
        self.used, self.steps = 0.0, 0
        adam: dict[str, Any] = {"betas": (0.9, 0.99), "fused": True}
        self.clipped = list(self.task.field.parameter_groups().values())
        self.optimizers = [torch.optim.Adam(group, lr=settings.field_lr, **adam) for group in self.clipped]
        self.latents = LatentTable(self.task.counts["train"], field.latent_dim, seed=seed).to(device)
        self.optimizers.append(RowAdam(self.latents.parameters(), lr=settings.latent_lr, betas=adam["betas"]))
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.threads = common.choose_threads(self.gradient, threads, 1)

    def gradient(self) -> None:
        """Draw a batch and fill all gradients."""
        instances, objective = self.task.draw(self.steps)
        codes = self.latents(instances)
        loss = objective.losses(codes).mean() + adaptation.LATENT_WEIGHT * codes.square().mean()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()

    def step(self, progress: float) -> None:
        """One training step."""
        final = adaptation.FINAL_FRACTION
        factor = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer, rate in zip(self.optimizers, self.rates):
            optimizer.param_groups[0]["lr"] = rate * factor * min(1.0, (self.steps + 1) / adaptation.WARMUP)
        self.gradient()
        for group in self.clipped:
            torch.nn.utils.clip_grad_norm_(group, adaptation.MAX_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1

    def train(self, seconds: float, steps: int = 0) -> dict[str, Any]:
        """Train for `steps`, or where they are 0 for `seconds`, and score."""
        while self.steps < steps if steps else self.used < seconds:
            start = common.spent(self.device)
            self.step(min(1.0, self.steps / steps if steps else self.used / seconds))
            self.used += common.spent(self.device) - start
        training = self.latents.weight.detach()
        with frozen(self.task.field):
            config = FitConfig(self.settings.fit_steps, self.settings.fit_lr)
            unseen = fit(self.task.fitting, self.task.counts["unseen"], training, config)
        metric = self.settings.metric
        scores = {name: self.task.score(name, z)[metric] for name, z in (("train", training), ("unseen", unseen))}
        return {**scores, "steps": self.steps, "seconds": self.used, **self._costs()}

    def _costs(self) -> dict[str, Any]:
        """Milliseconds of a step, of one without the compiled kernel, and of points of a collapsed field; numbers."""
        field = self.task.field
        spec = field.spec
        with kernel.reference_only():
            plain = min(self._milliseconds(self.gradient) for _ in range(3))
        compact = field.collapse(self.latents.weight[0].detach()).to(self.device)
        points = 2 * torch.rand(spec.in_features, QUERIES, device=self.device) - 1
        with torch.no_grad():
            queries = min(self._milliseconds(lambda: compact.evaluate(points)) for _ in range(3))
        return {
            "step": 1e3 * self.used / self.steps,
            "plain": plain,
            "queries": queries,
            "learned": sum(parameter.numel() for parameter in field.parameters()),
            "instance": spec.parameters_per_instance,
        }

    def _milliseconds(self, work: Callable[[], object]) -> float:
        start = common.spent(self.device)
        work()
        return 1e3 * (common.spent(self.device) - start)


def chosen(name: str, quick: bool) -> Settings:
    """The settings of a data set."""
    return small(DATA[name]) if quick else DATA[name]


# --------------------------------------------------------------------------------------------------------- data


def diverse_shape(seed: tuple[int, ...], resolution: int) -> np.ndarray:
    """A union of one to four boxes, balls and tori of random size, place and direction: bool `[G, G, G]`."""
    random = np.random.default_rng(seed)
    axis = (np.arange(resolution) + 0.5) * (2 / resolution) - 1
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = np.zeros(len(points), dtype=bool)
    for _ in range(random.integers(1, 5)):
        centre = random.uniform(-0.45, 0.45, 3)
        turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
        local = (points - centre) @ turn
        kind = random.integers(3)
        if kind == 0:
            inside |= (np.abs(local) <= random.uniform(0.12, 0.5, 3)).all(axis=1)
        elif kind == 1:
            inside |= (local**2).sum(axis=1) <= random.uniform(0.15, 0.45) ** 2
        else:
            ring, tube = random.uniform(0.25, 0.5), random.uniform(0.08, 0.18)
            inside |= (np.hypot(local[:, 0], local[:, 1]) - ring) ** 2 + local[:, 2] ** 2 <= tube**2
    return inside.reshape((resolution,) * 3)


def make(name: str, settings: Settings, folder: Path, seed: int) -> Path:
    """Write a data set where it is absent, and pack it."""
    if name != "diverse":
        return make_data(name, settings, folder, seed)
    data = folder / f"diverse_{settings.train}_{settings.unseen}x{settings.resolution}_seed{seed}"
    for split, (name, count) in enumerate((("train", settings.train), ("test", settings.unseen))):
        for index in range(count):
            path = data / name / f"{index:04d}.npz"
            if not path.exists():
                write_occupancy(path, diverse_shape((seed, split, index), settings.resolution))
    for name in ("train", "test"):
        open_grid_store(data, name, "voxel", progress=False)
    return data


# ------------------------------------------------------------------------------------------------------ measuring


def measure(config: Config) -> dict[str, Any]:
    """Data set to choice to numbers."""
    names = tuple(DATA) if config.data == "all" else (config.data,)
    if names[0] not in DATA:
        raise MNIFError(f"--data {config.data}: choose one of {', '.join(DATA)}, or all.")
    if config.seconds <= 0:
        raise MNIFError("--seconds must be positive; for instance --seconds 60.")
    for given, known in ((config.families, FAMILIES), (config.modulations, MODULATIONS)):
        if set(given) - set(known) or not config.factors:
            raise MNIFError(f"choose of {', '.join(known)}, and one or more --factors.")
    return {name: _compare(config, name) for name in names}


def _compare(config: Config, name: str) -> dict[str, Any]:
    data = make(name, chosen(name, config.small), config.cache, config.seed)
    shared = {key: getattr(config, key) for key in ("threads", "device", "seed", "small")}
    shared |= {"name": name, "data": str(data)}
    results: dict[str, Any] = {}

    def train(choice: tuple[str, str, float], seconds: float, steps: int = 0) -> dict[str, Any]:
        with Worker("families:Run", {"choice": choice, **shared}) as worker:
            found = worker.call("train", seconds=seconds, steps=steps)
        scores = f"training {found['train']:.3f}, unseen {found['unseen']:.3f}"
        print(f"{name}, {choice[0]}, {choice[1]}, w0 x {choice[2]:g}, {found['steps']} steps: {scores}", flush=True)
        return {**found, "factor": choice[2]}

    pairs = [(family, modulation) for family in config.families for modulation in config.modulations]
    for family, modulation in (DEFAULT, *(pair for pair in pairs if pair != DEFAULT)):
        factors = (1.0,) if family == "siren" else config.factors
        tries = [(family, modulation, factor) for factor in factors]
        tuning = [train(choice, config.seconds / 3) for choice in tries] if len(tries) > 1 else []
        best = tries[int(np.argmax([found["unseen"] for found in tuning]))] if tuning else tries[0]
        result: dict[str, Any] = {"tuning": tuning, "time": train(best, config.seconds)}
        if config.steps:
            wanted = next(iter(results.values()))["time"]["steps"] if results else 0
            result["steps"] = train(best, config.seconds, wanted) if wanted else result["time"]
        results[f"{family}, {modulation}"] = result
    return results


def table(results: dict[str, Any]) -> str:
    """One row per data set and choice."""
    columns = [
        "data", "family, modulation", "metric", "training", "unseen", "steps",
        "training, same steps", "unseen, same steps",
        "ms per step", "ms per step, torch alone", "ms per 100,000 points", "learned", "per instance",
    ]  # fmt: skip
    rows = []
    for name, families in results.items():
        label, digits = ("IoU", 3) if DATA[name].metric == "iou" else ("PSNR, dB", 2)
        for family, result in families.items():
            time, same = result["time"], result.get("steps")
            pairs = [(part, split) for part in (time, same) for split in ("train", "unseen")]
            scores = [f"{part[split]:.{digits}f}" if part else "-" for part, split in pairs]
            rows.append([
                name, family, label, *scores[:2], time["steps"], *scores[2:],
                *(time[key] for key in ("step", "plain", "queries", "learned", "instance")),
            ])  # fmt: skip
    return report.markdown_table(columns, rows)


def main(config: Config) -> dict[str, Any]:
    """Measure and print."""
    info = report.machine(config.seed)
    results = measure(config)
    unit = "CPU-seconds" if config.device == "cpu" else "seconds"
    parts = []
    for name in results:
        s = chosen(name, config.small)
        parts.append(
            f"{name}: {s.train:,} training and {s.unseen:,} unseen instances of {s.resolution} along an edge, width "
            f"{s.field.width}, {s.field.hidden_layers} hidden layers, {s.field.num_bases} bases, latent "
            f"{s.field.latent_dim}, w0 {s.field.w0:g}"
        )
    notes = f"{config.seconds:g} {unit} of training each, by auto-decoding. {'; '.join(parts)}."
    report.finish("Network families and modulations", [table(results), notes], info, results, config.output)
    return results


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
