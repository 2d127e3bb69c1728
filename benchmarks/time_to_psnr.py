"""PSNR against training time: the authors' recipe and ours on the demo's cars, on the same store.

Time is CPU-seconds of the training process, all threads together (on CUDA: wall seconds); evaluating is not
counted. Both train in turns of a few seconds, each in a process of its own, by default on one thread: then a
CPU-second is the same thing for both, whatever else the machine does. Scored: held-out views of training
cars, `ns-train`'s own choice (8 cars x 2 views), each recipe rendered by its own renderer. Run: `python
benchmarks/time_to_psnr.py`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import common
import report
import torch
from recipe import RecipeConfig, RecipeTrainer
from worker import Worker

from mnif_nerf.data.sampling.views import TrainingViews
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.metrics.images import psnr
from mnif_nerf.rendering.cameras import Intrinsics


@dataclass(frozen=True)
class Config:
    """Train both recipes for the same time.

    Attributes:
        seconds: marks at which to evaluate; the last one is the budget.
        finish_each: train ours again for every earlier mark, its learning rates falling to their end there.
        data: the demo's data folder (made here where it is absent), or any data set in the SRN layout.
        cars, views, resolution: of the procedural cars, where they are made here.
        recipe_views, recipe_pixels: the recipe's rays are 8 scenes x these, 4,096 by default: a 32nd of the
            release's, because within minutes more and smaller steps get it further.
        method: "mnif-lite" or "mnif".
        recipe: whether the recipe runs at all.
        eval_scenes, eval_views: how much is scored.
        turn: seconds of training before the other one has its turn.
        threads: of torch and of the compiled kernel; 0 measures which is faster.
        device: "cpu" or "cuda".
        seed: of everything.
        output: JSON file for the numbers.
    """

    seconds: tuple[float, ...] = (30, 60, 120, 240)
    finish_each: bool = False
    data: Path = Path("data/procedural_cars")
    cars: int = 128
    views: int = 16
    resolution: int = 64
    recipe_views: int = 4
    recipe_pixels: int = 128
    method: str = "mnif-lite"
    recipe: bool = True
    eval_scenes: int = 8
    eval_views: int = 2
    turn: float = 10.0
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    output: Path | None = None


class Runner:
    """One training run, inside a worker.

    Args:
        recipe: settings of `RecipeConfig`, or None for ours.
        method: name of our method.
        data, device, seed: as in `Config`.
        budget: seconds after which our learning rates have fallen to their end.
        threads: as in `Config`.
    """

    def __init__(
        self,
        recipe: dict[str, Any] | None,
        method: str,
        data: str,
        device: str,
        seed: int,
        budget: float,
        threads: int,
    ) -> None:
        self.views = TrainingViews(Path(data))
        self.device, self.budget, self.used, self.wall = device, budget, 0.0, 0.0
        self.trainer: RecipeTrainer | common.OurTrainer
        if recipe is not None:
            # Without a split of held-out views some training views are held out, which the recipe would draw.
            if not self.views.has_heldout_split:
                raise MNIFError(f"{data}: the recipe needs a split train_val; make the data with mnif-data.")
            self.trainer = RecipeTrainer(self.views.train, RecipeConfig(**recipe), device, seed)
        else:
            trained = torch.from_numpy(self.views.trained)
            self.trainer = common.OurTrainer(self.views.train, common.METHODS[method], device, seed, trained)
        self.threads = common.choose_threads(self.trainer.gradient, threads, 1)

    def train(self, until: float) -> dict[str, float]:
        """Take steps until `until` training seconds are spent in all."""
        while self.used < until:
            start = common.spent(self.device)
            self.wall += common.timed(lambda: self.trainer.step(self.used / self.budget), self.device)
            self.used += common.spent(self.device) - start
        rays = self.trainer.steps_taken * self.trainer.rays_per_step
        return {"seconds": self.used, "wall": self.wall, "steps": self.trainer.steps_taken, "rays": rays}

    def evaluate(self, scenes: int, views: int) -> float:
        """Mean PSNR of held-out views."""
        chosen = self.views.evaluation(scenes, views)
        store, scores = chosen.store, []
        for view, scene, (focal, cx, cy) in zip(chosen.views, chosen.scenes, chosen.intrinsics.tolist()):
            camera = Intrinsics(focal, cx, cy, store.height, store.width)
            picture = self.trainer.render_view(int(scene), torch.from_numpy(store.poses[view]), camera)
            truth = torch.from_numpy(store.images[view]).to(picture.device).float() / 255
            scores.append(float(psnr(picture, truth)))
        return fmean(scores)

    def thread_counts(self) -> dict[str, int]:
        """Threads in use."""
        return self.threads


def follow(config: Config, runs: dict[str, tuple[dict[str, Any], tuple[float, ...]]]) -> dict[str, Any]:
    """Train several runs in turns.

    Args:
        config: of the benchmark.
        runs: name to (the `Runner`'s own settings, marks at which it is evaluated).

    Returns:
        name to a list of what `Runner.train` says at each mark, with "psnr" and "mark".
    """
    shared = {
        "data": str(config.data),
        "device": config.device,
        "seed": config.seed,
        "threads": config.threads,
    }
    results: dict[str, Any] = {name: {"marks": []} for name in runs}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, (settings, marks) in runs.items():
            arguments = {"method": config.method, "recipe": None, **shared, **settings, "budget": marks[-1]}
            workers[name] = stack.enter_context(Worker("time_to_psnr:Runner", arguments))
            results[name]["threads"] = workers[name].call("thread_counts")
        reached = dict.fromkeys(runs, 0.0)
        while any(reached[name] < runs[name][1][-1] for name in runs):
            for name, worker in workers.items():
                marks = runs[name][1]
                if reached[name] >= marks[-1]:
                    continue
                mark = next(m for m in marks if m > reached[name])
                reached[name] = min(reached[name] + config.turn, mark)
                said = worker.call("train", until=reached[name])
                if reached[name] == mark:
                    score = worker.call("evaluate", scenes=config.eval_scenes, views=config.eval_views)
                    results[name]["marks"].append({"mark": mark, "psnr": score, **said})
                    print(f"{name}: {mark:g} s, {said['steps']} steps, {score:.2f} dB", flush=True)
        for name, worker in workers.items():
            results[name]["memory"] = worker.memory()
    return results


def measure(config: Config) -> dict[str, Any]:
    """Make the data where it is absent, and run everything."""
    if not config.seconds or min(config.seconds) <= 0 or sorted(set(config.seconds)) != list(config.seconds):
        raise MNIFError("--seconds must be positive and rising; for instance --seconds 30 60 120 240.")
    if config.method not in common.METHODS:
        raise MNIFError(f"--method {config.method}: choose one of {', '.join(common.METHODS)}.")
    common.demo_data(config.data, config.cars, config.views, config.resolution, config.seed)
    views = TrainingViews(config.data)
    _ = views.train, views.heldout_store  # packed here, once
    runs: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {}
    if config.recipe:
        recipe = {"views": config.recipe_views, "pixels": config.recipe_pixels}
        runs["recipe"] = ({"recipe": recipe}, config.seconds)
    runs[f"ours (`{config.method}`), one run"] = ({}, config.seconds)
    results = follow(config, runs)
    if config.finish_each:
        for mark in config.seconds[:-1]:
            results |= follow(config, {f"ours, a run of {mark:g} s": ({}, (mark,))})
    return results


def table(config: Config, results: dict[str, Any]) -> str:
    """PSNR by mark, then what the run did in all."""
    unit = "CPU-s" if config.device == "cpu" else "s"
    columns = [
        "held-out PSNR, dB",
        *(f"{mark:g} {unit}" for mark in config.seconds),
        "steps",
        "rays/s",
        "wall s",
    ]
    rows = []
    for name, result in results.items():
        at = {mark["mark"]: mark for mark in result["marks"]}
        last = result["marks"][-1]
        scores = [f"{at[mark]['psnr']:.2f}" if mark in at else None for mark in config.seconds]
        rows.append([name, *scores, last["steps"], last["rays"] / last["seconds"], last["wall"]])
    return report.markdown_table([*columns[:-2], f"rays/{unit}", columns[-1]], rows)


def main(config: Config) -> dict[str, Any]:
    """Measure and print."""
    info = report.machine(config.seed)
    results = measure(config)
    threads = ", ".join(f"{name}: {common.threads_text(result['threads'])}" for name, result in results.items())
    notes = (
        f"Held-out views of the training cars in {config.data}, {config.eval_scenes} cars x "
        f"{config.eval_views} views, mean of the views' PSNR (an all-white picture scores about 10 dB). "
        "Our learning rates follow one cosine over the whole budget, as in real training, so an earlier "
        "mark is a run under way, below what a run that ends there reaches (`--finish-each`). The "
        "recipe's rate is as good as constant here: its cosine spans 1,000 epochs. Its step has 8 x "
        f"{config.recipe_views} x {config.recipe_pixels} rays (the release: 8 x 32 x 512). Evaluation is "
        f"not in the times. Threads (torch/kernel): {threads}."
    )
    report.finish("PSNR against training time", [table(config, results), notes], info, results, config.output)
    return results


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
