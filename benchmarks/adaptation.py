"""Meta-learning against auto-decoding: the same field, data and processor time, for voxels, images and radiance.

Both train in turns, each in a process of its own and by default on one thread, until their CPU-seconds are spent (on
CUDA: wall seconds); evaluating is not counted. Scored are reconstructions of training instances and of unseen ones.
Meta-learning finds a latent by its inner loop, for training and unseen instances alike; auto-decoding has those of
training instances in its table and fits those of unseen ones with the networks frozen (`latents/fitting.py`). Run:
`python benchmarks/adaptation.py --seconds 60 --modality voxel`.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import report
import torch
from adaptation_tasks import SETTINGS, TASKS, Settings, make_data, small
from torch import Tensor
from worker import Worker

from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.latents.encoding import encode
from mnif_nerf.latents.fitting import FitConfig, fit, frozen
from mnif_nerf.latents.meta import InnerRates, MetaConfig, adapt
from mnif_nerf.latents.table import LatentTable, RowAdam

METHODS = ("auto-decoding", "meta-learning", "meta-learning, first order")
LATENT_WEIGHT = 1e-3
WARMUP = 100
MAX_NORM = 1.0
FINAL_FRACTION = 0.03


@dataclass(frozen=True)
class Config:
    """Train both ways for the same time.

    Attributes:
        modality: "voxel", "image", "radiance", or "all".
        seconds: the budget of each run.
        first_order: run first-order meta-learning too.
        inner_lr: of meta-learning, for every modality; 0 takes the modality's own.
        inner_steps: of meta-learning.
        turn: seconds of training before another run has its turn.
        threads: of torch and of the compiled kernel; 0 measures which is faster.
        device: "cpu" or "cuda".
        seed: of everything.
        cache: where the data sets are kept.
        output: JSON file for the numbers.
        small: tiny networks and data, for a quick look.
    """

    modality: str = "all"
    seconds: float = 60.0
    first_order: bool = True
    inner_lr: float = 0.0
    inner_steps: int = 3
    turn: float = 10.0
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    cache: Path = common.CACHE
    output: Path | None = None
    small: bool = False


class Run:
    """One training run, inside a worker.

    Args:
        modality: of the task.
        method: one of `METHODS`.
        data: from `make_data`.
        budget: seconds after which the learning rates have fallen to their end.
        inner_lr, inner_steps: of meta-learning.
        threads, device, seed, small: as in `Config`.
    """

    def __init__(
        self,
        modality: str,
        method: str,
        data: str,
        budget: float,
        inner_lr: float,
        inner_steps: int,
        threads: int,
        device: str,
        seed: int,
        small: bool,
    ) -> None:
        settings = chosen(modality, small)
        self.settings, self.device, self.budget, self.used, self.steps = settings, device, budget, 0.0, 0
        self.task = TASKS[modality](modality, settings, Path(data), device, seed)
        adam: dict[str, Any] = {"betas": (0.9, 0.99), "fused": True}
        field = self.task.field
        self.clipped = [list(field.bases.parameters()), list(field.projection.parameters())]
        self.optimizers = [torch.optim.Adam(group, lr=settings.field_lr, **adam) for group in self.clipped]
        self.meta = None
        if method == "auto-decoding":
            self.latents = LatentTable(self.task.counts["train"], settings.field.latent_dim, seed=seed).to(device)
            self.optimizers.append(RowAdam(self.latents.parameters(), lr=settings.latent_lr, betas=adam["betas"]))
        else:
            self.meta = MetaConfig(inner_steps, inner_lr or settings.inner_lr, method.endswith("first order"))
            self.rates = InnerRates(settings.field.latent_dim, seed=seed).to(device)
            self.clipped.append(list(self.rates.parameters()))
            self.optimizers.append(torch.optim.Adam(self.clipped[-1], lr=settings.rates_lr, **adam))
        self.rates_at_start = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.threads = common.choose_threads(self.gradient, threads, 1)

    def gradient(self) -> Tensor:
        """Draw a batch and fill all gradients; returns the loss."""
        instances, objective = self.task.draw(self.steps)
        if self.meta is None:
            codes = self.latents(instances)
        else:
            codes = adapt(objective, len(instances), self.rates(), self.meta, create_graph=True)
        loss = objective.losses(codes).mean()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        (loss if self.meta is not None else loss + LATENT_WEIGHT * codes.square().mean()).backward()
        return loss.detach()

    def step(self) -> None:
        """One training step."""
        progress = min(self.used / self.budget, 1.0)
        factor = FINAL_FRACTION + (1 - FINAL_FRACTION) * 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer, rate in zip(self.optimizers, self.rates_at_start):
            optimizer.param_groups[0]["lr"] = rate * factor * min(1.0, (self.steps + 1) / WARMUP)
        self.loss = self.gradient()
        for group in self.clipped:
            torch.nn.utils.clip_grad_norm_(group, MAX_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1

    def train(self, until: float) -> dict[str, float]:
        """Take steps until `until` training seconds are spent in all."""
        while self.used < until:
            start = common.spent(self.device)
            self.step()
            self.used += common.spent(self.device) - start
        return {"seconds": self.used, "steps": self.steps, "loss": float(self.loss)}

    def evaluate(self) -> dict[str, Any]:
        """Scores of training instances ("train") and unseen ones ("unseen"), and processor seconds that the latent
        of one unseen instance took ("new").
        """
        training = self.latents.weight.detach() if self.meta is None else self._encode("train")
        start = common.spent(self.device)
        unseen = self._fit(training) if self.meta is None else self._encode("unseen")
        seconds = common.spent(self.device) - start
        scores = {name: self.task.score(name, latents) for name, latents in (("train", training), ("unseen", unseen))}
        return {**scores, "new": seconds / len(unseen), "threads": self.threads}

    def _encode(self, split: str) -> Tensor:
        everyone = self.task.counts[split]
        wanted = everyone if split == "unseen" else min(everyone, self.settings.scored)
        return encode(self.task.observed(split), wanted, self.rates(), self.meta, self.settings.batch, progress=False)

    def _fit(self, training: Tensor) -> Tensor:
        config = FitConfig(self.settings.fit_steps, self.settings.fit_lr)
        with frozen(self.task.field):
            return fit(self.task.fitting, self.task.counts["unseen"], training, config)


def chosen(modality: str, quick: bool) -> Settings:
    """The settings of a modality."""
    return small(SETTINGS[modality]) if quick else SETTINGS[modality]


def measure(config: Config) -> dict[str, Any]:
    """Make the data where it is absent, and run everything: modality to method to numbers."""
    names = tuple(SETTINGS) if config.modality == "all" else (config.modality,)
    if names[0] not in SETTINGS:
        raise MNIFError(f"--modality {config.modality}: choose one of {', '.join(SETTINGS)}, or all.")
    if config.seconds <= 0:
        raise MNIFError("--seconds must be positive; for instance --seconds 60.")
    return {name: _compare(config, name) for name in names}


def _compare(config: Config, modality: str) -> dict[str, Any]:
    data = make_data(modality, chosen(modality, config.small), config.cache, config.seed)
    same = ("inner_lr", "inner_steps", "threads", "device", "seed", "small")
    shared = {name: getattr(config, name) for name in same}
    shared |= {"modality": modality, "data": str(data), "budget": config.seconds}
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for method in METHODS if config.first_order else METHODS[:2]:
            workers[method] = stack.enter_context(Worker("adaptation:Run", {"method": method, **shared}))
        reached = 0.0
        while reached < config.seconds:
            reached = min(reached + config.turn, config.seconds)
            for method, worker in workers.items():
                results[method] = worker.call("train", until=reached)
        for method, worker in workers.items():
            results[method] |= {"memory": worker.memory(), **worker.call("evaluate")}
            metric = SETTINGS[modality].metric
            scores = (f"{results[method][split][metric]:.3f}" for split in ("train", "unseen"))
            print(f"{modality}, {method}: {metric} {', unseen '.join(scores)}", flush=True)
    return results


def table(results: dict[str, Any]) -> str:
    """One row per modality and method."""
    columns = [
        "modality", "latents by", "steps", "added MiB", "metric", "training instances", "unseen instances",
        "ms per new instance", "threads*",
    ]  # fmt: skip
    rows = []
    for modality, methods in results.items():
        metric = SETTINGS[modality].metric
        label, digits = ("IoU", 3) if metric == "iou" else ("PSNR, dB", 2)
        for method, result in methods.items():
            memory = result["memory"]
            rows.append([
                modality, method, result["steps"], memory.get("device", memory["added"]), label,
                *(f"{result[split][metric]:.{digits}f}" for split in ("train", "unseen")), 1e3 * result["new"],
                common.threads_text(result["threads"]),
            ])  # fmt: skip
    return report.markdown_table(columns, rows)


def describe(results: dict[str, Any], quick: bool) -> str:
    """What was trained on what."""
    parts = []
    for modality in results:
        s = chosen(modality, quick)
        f, per_step = s.field, "all" if s.points == 0 else f"{s.points:,}"
        unit = "rays" if modality == "radiance" else "points"
        parts.append(
            f"{modality}: {s.train:,} training and {s.unseen:,} unseen instances of {s.resolution} cells or pixels "
            f"along an edge, width {f.width}, {f.hidden_layers} hidden layers, {f.num_bases} bases, latent "
            f"{f.latent_dim}, {s.batch} instances x {per_step} {unit} a step"
        )
    return "; ".join(parts)


def main(config: Config) -> dict[str, Any]:
    """Measure and print."""
    info = report.machine(config.seed)
    results = measure(config)
    unit = "CPU-seconds" if config.device == "cpu" else "seconds"
    fits = ", ".join(f"{modality} {chosen(modality, config.small).fit_steps}" for modality in results)
    notes = (
        f"{config.seconds:g} {unit} of training each, in turns; {config.inner_steps} inner steps. "
        f"{describe(results, config.small)}. Voxels and radiance are procedural cars, images are scikit-learn's "
        "digits. Radiance is scored on views that were not trained on; an unseen car shows every other of its views. "
        f"Auto-decoding fits unseen instances in steps ({fits}), all of them together; a new instance's time is that "
        "of all, shared. *Threads of torch/of the compiled kernel."
    )
    report.finish("Meta-learning against auto-decoding", [table(results), notes], info, results, config.output)
    return results


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
