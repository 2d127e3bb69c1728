"""One meta-learning step: the authors' recipe against ours, at the paper's ShapeNet S shape.

A step is three second-order inner steps from (about) zero, the outer gradient, clipping and AdamW; both take the same
points with the same targets, drawn before the clock starts, and start from the same networks. Every configuration
runs in a process of its own (peak memory), the two of a batch size are timed in turns, and medians count. Before
that, one process takes both steps from the same state and compares error and gradients. Run: `python
benchmarks/meta_step.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import common
import report
import torch
from meta_recipe import SHAPENET_S, MetaRecipe, MetaRecipeConfig
from recipe import RecipeConfig
from torch import Tensor
from worker import Worker, process_mb

from mnif_nerf.errors import run_command
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.meta import InnerRates, MetaConfig, PointObjective, adapt
from mnif_nerf.rendering.batch import PointBatch
from mnif_nerf.rendering.grids import cell_coordinates

INNER_STEPS = 3
AIM = 5.0
# What a step costs does not depend on the outer rate; at the authors' 1e-4, hundreds of steps on one batch of four
# (an inner rate of 1/4) end in an inner loop that diverges.
OUTER_RATE = 1e-6


@dataclass(frozen=True)
class Config:
    """Time the meta-learning step.

    Attributes:
        batches: instances per step.
        points: per instance.
        first_order: both without the second-order part.
        rounds: turns of each configuration; a turn lasts about `seconds`, at least one step.
        seconds: length of a turn.
        threads: of torch and of the compiled kernel; 0 measures which is faster, in each process.
        device: "cpu" or "cuda".
        seed: of everything.
        output: JSON file for the numbers.
        small: narrow networks and few points, for a quick look.
    """

    batches: tuple[int, ...] = (4, 16, 32)
    points: int = 4096
    first_order: bool = False
    rounds: int = 5
    seconds: float = 1.0
    threads: int = 0
    device: str = "cpu"
    seed: int = 0
    output: Path | None = None
    small: bool = False


def shape(small: bool) -> RecipeConfig:
    """The field that is compared."""
    if not small:
        return SHAPENET_S
    return dataclasses.replace(SHAPENET_S, width=8, hidden_layers=1, num_bases=6, latent_dim=5)


def field_spec(field: RecipeConfig) -> FieldSpec:
    """The same shape in our words."""
    names = ("in_features", "out_features", "width", "hidden_layers", "num_bases", "latent_dim", "w0")
    same = {name: getattr(field, name) for name in names}
    return FieldSpec(**same, final_activation="sine" if field.final_sine else "linear", head="signed")


def ellipsoids(batch: int, points: int, seed: int, dtype: torch.dtype = torch.float32) -> PointBatch:
    """Cells of the 64^3 grid, drawn anew for every instance, and whether they lie in the instance: 1 or -1."""
    generator = torch.Generator().manual_seed(seed)
    position = cell_coordinates(torch.randint(64**3, (batch, points), generator=generator), (64, 64, 64))
    radii = 0.3 + 0.6 * torch.rand(batch, 3, 1, generator=generator)
    inside = (position / radii).square().sum(dim=1, keepdim=True) < 1
    return PointBatch(torch.arange(batch), position.to(dtype), 2.0 * inside.to(dtype) - 1.0)


class OurStep:
    """Our step, at the authors' settings: their rates at a batch of B are an inner rate of 1 / B here.

    Args:
        spec: shape of the field.
        batch: points and targets.
        first_order: without the second-order part.
        seed: of networks and rates.
    """

    def __init__(self, spec: FieldSpec, batch: PointBatch, first_order: bool, seed: int) -> None:
        self.batch = batch
        self.field = MixtureField(spec, seed).to(batch.points)
        self.rates = InnerRates(spec.latent_dim, seed=seed).to(batch.points)
        self.config = MetaConfig(INNER_STEPS, 1.0 / len(batch.points), first_order)
        self.parameters = [*self.field.parameters(), *self.rates.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=OUTER_RATE, weight_decay=0.0, fused=True)

    def gradient(self) -> Tensor:
        """Fill all gradients; returns the error after the inner steps."""
        objective = PointObjective(self.field, self.batch)
        latents = adapt(objective, len(self.batch.points), self.rates(), self.config, create_graph=True)
        error = objective.losses(latents).mean()
        self.optimizer.zero_grad()
        error.backward()
        return error.detach()

    def step(self) -> Tensor:
        """One training step; returns the error."""
        error = self.gradient()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return error


class RecipeStep:
    """The recipe's step on the same points, from the same networks; the arguments are those of `OurStep`."""

    def __init__(
        self, field: RecipeConfig, batch: PointBatch, first_order: bool, seed: int, start_std: float = 1e-4
    ) -> None:
        config = MetaRecipeConfig(INNER_STEPS, first_order=first_order, start_std=start_std, lr=OUTER_RATE)
        self.trainer = MetaRecipe(field, config, batch.points.device, seed, batch.points.dtype)
        spec = field_spec(field)
        self.trainer.copy_from(MixtureField(spec, seed), InnerRates(spec.latent_dim, seed=seed).rates)
        self.points = batch.points.transpose(1, 2).contiguous()
        self.targets = batch.targets.transpose(1, 2).contiguous()

    def gradient(self) -> Tensor:
        """Fill all gradients; returns the error after the inner steps."""
        return self.trainer.gradient(self.points, self.targets)

    def step(self) -> Tensor:
        """One training step; returns the error."""
        return self.trainer.step(self.points, self.targets)


def gradients(step: OurStep | RecipeStep) -> list[Tensor]:
    """The gradients in one order and layout: bases of every layer, projection, rates."""
    if isinstance(step, OurStep):
        return [parameter.grad for parameter in step.parameters]
    field = step.trainer.field
    bases = [torch.cat([w.grad.flatten(1), b.grad], dim=1) for w, b in zip(field.weights, field.biases)]
    return [*bases, field.projection.weight.grad, field.projection.bias.grad, step.trainer.rates.grad]


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest relative distance of two tensors of the same place."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)


class Agreement:
    """Both steps from the same networks and from codes that are exactly zero, inside a worker.

    Args:
        small, device, seed: as in `Config`.
        batch, points: size of the step.
        first_order: as in `Config`.
    """

    def __init__(self, small: bool, batch: int, points: int, first_order: bool, device: str, seed: int) -> None:
        self.field, self.first_order, self.seed = shape(small), first_order, seed
        self.size, self.device = (batch, points), device

    def compare(self) -> dict[str, dict[str, float]]:
        """By number format, relative distances to the recipe: "error", "gradients" (the worst parameter), and
        "second_order", how far gradients of the first order would be off.
        """
        return {str(dtype).removeprefix("torch."): self._compare(dtype) for dtype in (torch.float32, torch.float64)}

    def _compare(self, dtype: torch.dtype) -> dict[str, float]:
        data, spec = ellipsoids(*self.size, self.seed, dtype).to(self.device), field_spec(self.field)
        recipe = RecipeStep(self.field, data, self.first_order, self.seed, start_std=0.0)
        ours, simple = (OurStep(spec, data, order, self.seed) for order in (self.first_order, True))
        error = float(recipe.gradient())
        found = {"error": abs(float(ours.gradient()) - error) / error}
        simple.gradient()
        return {
            **found,
            "gradients": distance(gradients(ours), gradients(recipe)),
            "second_order": distance(gradients(simple), gradients(recipe)),
        }


class Stepper:
    """One configuration, inside a worker.

    Args:
        who: "recipe" or "ours".
        small, points, first_order, device, seed: as in `Config`.
        batch: instances per step.
    """

    def __init__(
        self, who: str, small: bool, batch: int, points: int, first_order: bool, device: str, seed: int
    ) -> None:
        field, data = shape(small), ellipsoids(batch, points, seed).to(device)
        self.device, self.subject = device, None
        if who == "recipe":
            self.subject = RecipeStep(field, data, first_order, seed)
        else:
            self.subject = OurStep(field_spec(field), data, first_order, seed)
        # Linux counts the peak from here on; elsewhere what building the networks took may be part of it.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        self.before = self._held("VmRSS")

    def _held(self, field: str) -> float:
        if self.device == "cpu":
            return process_mb(field)
        peak = torch.cuda.max_memory_allocated if field == "VmHWM" else torch.cuda.memory_allocated
        return peak() / 2**20

    def start(self, threads: int) -> dict[str, Any]:
        """Choose threads and take a first step; returns its error, and the threads."""
        chosen = common.choose_threads(self.subject.gradient, threads, 1)
        return {"error": float(self.subject.step()), "threads": chosen}

    def turn(self, seconds: float) -> dict[str, list[float]]:
        """Wall and CPU seconds of steps taken until `seconds` are over; one step at least."""
        times: dict[str, list[float]] = {"wall": [], "cpu": []}
        while not times["wall"] or sum(times["wall"]) + times["wall"][-1] < seconds:
            common.synchronize(self.device)
            processor = time.process_time()
            times["wall"].append(common.timed(self.subject.step, self.device))
            times["cpu"].append(time.process_time() - processor)
        return times

    def memory_of_steps(self) -> dict[str, float]:
        """MiB: "before" the first step, "peak", and "added", their difference: gradients, AdamW's moments and
        all that a step computes.
        """
        peak = self._held("VmHWM")
        return {"before": self.before, "peak": peak, "added": peak - self.before}


def layer_units(first_order: bool, computed_again: bool = False) -> int:
    """Matrix products of a step over all layers, in forward passes.

    A loss with its gradient is 3: forward, back to the points, weights. A Hessian-vector product, given the
    activations, is 6: both terms of the forward derivative, of the backward derivative and of the weights'. Ours
    keeps no activations between the two and spends 2 more on them (`computed_again`).
    """
    second = 0 if first_order else INNER_STEPS * (8 if computed_again else 6)
    return 3 * (INNER_STEPS + 1) + second


def mixing_units(first_order: bool) -> int:
    """Products of codes with projection and bases, in one direction each.

    Forward in every evaluation, once more for an inner gradient; the outer gradient takes two products for each of
    those it passes, which in the first order are the last evaluation's alone.
    """
    forward, inner = INNER_STEPS + 1, INNER_STEPS
    return forward + inner + 2 * (1 if first_order else forward + inner)


def step_gflop(spec: FieldSpec, batch: int, points: int, first_order: bool) -> float:
    """GFLOP that a step needs, in the products of layers and of mixing; sines and AdamW are not counted, nor is
    what is computed again. (The first layer, which needs no way back to the points, counts like the others.)
    """
    layers = batch * points * sum(out * fan_in for out, fan_in in spec.shapes)
    coefficients = spec.num_bases * len(spec.shapes)
    mixing = batch * (spec.num_bases * spec.parameters_per_instance + spec.latent_dim * coefficients)
    return 2 * (layer_units(first_order) * layers + mixing_units(first_order) * mixing) / 1e9


def measure(config: Config) -> dict[str, Any]:
    """Compare the two, then time them, batch size by batch size."""
    points = min(config.points, 64) if config.small else config.points
    shared = {"small": config.small, "first_order": config.first_order, "device": config.device, "seed": config.seed}
    with Worker("meta_step:Agreement", {"batch": 4, "points": min(points, 512), **shared}) as worker:
        results: dict[str, Any] = {"agreement": worker.call("compare"), "batches": {}}
    peaks: list[float] = []
    spec = field_spec(shape(config.small))
    gemm_size = {"size": 256 if config.small else 2048, "device": config.device}
    for batch in config.batches:
        rows: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            gemm = stack.enter_context(Worker("train_step:Gemm", gemm_size))
            workers = {}
            for who in ("recipe", "ours"):
                arguments = {"who": who, "batch": batch, "points": points, **shared}
                workers[who] = stack.enter_context(Worker("meta_step:Stepper", arguments))
                rows[who] = {**workers[who].call("start", threads=config.threads), "wall": [], "cpu": []}
            for _ in range(config.rounds):
                peaks += gemm.call("turn", seconds=config.seconds / 4)
                for who, worker in workers.items():
                    for kind, times in worker.call("turn", seconds=config.seconds).items():
                        rows[who][kind] += times
            for who, worker in workers.items():
                rows[who]["memory"] = worker.call("memory_of_steps")
        gflop = step_gflop(spec, batch, points, config.first_order)
        results["batches"][str(batch)] = {**rows, "gflop": gflop}
    results["gemm"] = {"gflops": max(peaks), "median": median(peaks)}
    return results


def table(results: dict[str, Any]) -> str:
    """One row per batch size and side; ratios are ours to the recipe's."""
    columns = [
        "step", "batch", "threads*", "ms/step", "best ms", "CPU ms", "instances/s", "GFLOP/s", "of GEMM peak",
        "added MiB", "instances/s, ratio", "by best", "by CPU", "memory, ratio",
    ]  # fmt: skip
    rows = []
    for batch, sides in results["batches"].items():
        first = sides["recipe"]
        for who, label in (("recipe", "recipe"), ("ours", "ours")):
            side = sides[who]
            wall, best, cpu, added = median(side["wall"]), min(side["wall"]), median(side["cpu"]), side["memory"]
            rate = sides["gflop"] / wall
            ratios = [
                f"{median(first['wall']) / wall:.1f}x",
                f"{min(first['wall']) / best:.1f}x",
                f"{median(first['cpu']) / cpu:.1f}x" if cpu > 0 else None,
                f"{added['added'] / max(first['memory']['added'], 1e-9):.2f}x",
            ]
            rows.append([
                label, int(batch), common.threads_text(side["threads"]), 1e3 * wall, 1e3 * best, 1e3 * cpu,
                int(batch) / wall, rate, f"{100 * rate / results['gemm']['gflops']:.1f} %", added["added"], *ratios,
            ])  # fmt: skip
    return report.markdown_table(columns, rows)


def aim_text(results: dict[str, Any]) -> str:
    """What the aim asks of the machine, by batch size."""
    peak = results["gemm"]["gflops"]
    asked = []
    for batch, sides in results["batches"].items():
        rate = sides["gflop"] * AIM / median(sides["recipe"]["wall"])
        asked.append(f"{rate:,.0f} GFLOP/s at batch {batch} ({100 * rate / peak:.0f} % of the peak)")
    return f"{AIM:g} times the recipe's rate would be {', '.join(asked)}."


def main(config: Config) -> dict[str, Any]:
    """Measure and print."""
    info = report.machine(config.seed)
    results = measure(config)
    single, double, order = *(results["agreement"][dtype] for dtype in ("float32", "float64")), config.first_order
    notes = (
        f"From the same networks and points, codes starting at zero, the two differ by {single['error']:.0e} in the "
        f"outer error and by at most {single['gradients']:.0e} in a parameter's gradient, relative to its norm "
        f"(float32; in float64 {double['error']:.0e} and {double['gradients']:.0e}; first-order gradients are off by "
        f"{single['second_order']:.2g}). A step needs "
        f"{layer_units(order)} forward passes' worth of products of the layers, and {mixing_units(order)} of mixing; "
        f"GFLOP/s are of these. Without keeping activations the layers come to {layer_units(order, True)}. "
        f"GEMM peak measured in the same run: {results['gemm']['gflops']:,.0f} GFLOP/s (torch, float32, "
        f"{common.num_cores()} threads; median {results['gemm']['median']:,.0f}). {aim_text(results)} Medians of "
        'alternating turns, and the best step; "CPU" is the processor time of all threads. "Added" is the peak less '
        "what the process held before its first step (networks and data). Drawing the points is in neither. "
        "*Threads of torch/of the compiled kernel."
    )
    title = "Meta-learning step" + (", first order" if config.first_order else "")
    report.finish(title, [table(results), notes], info, results, config.output)
    return results


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
