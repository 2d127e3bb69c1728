"""Several answers to a part (mnif-fit --samples): do they agree with what was seen, does their spread tell the error?

Things that the model never saw are shown in part. Answers are compared with today's fit, draws of the prior, the best
of as many draws as cost the same, and diffusion posterior sampling. Parts:
`cars` (halves of procedural ones, by signed distance), `scans` (the same from one side), `voxels` (halves, a folder of
voxel files), `meshes` (halves, a folder from elsewhere), `pictures` (without their middles).
Run: `python benchmarks/answers.py --parts cars voxels --voxels data/.../test`; the models are those of the demos.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
import tyro
from answers_cases import METHODS, PARTS, Case, Config, cases_of, said
from answers_dps import guided_draws
from torch import Tensor

from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.export.figures import new_figure
from mnif_nerf.latents.fitting import frozen
from mnif_nerf.latents.search import SearchConfig, choose_starts, search
from mnif_nerf.pipelines.fit.answers import Thinned
from mnif_nerf.pipelines.fit.posterior import AnswerConfig, Answers
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.progress import tracked

_GRADIENT = 3  # a step with its gradient costs about as much as three without
_NAMES = {
    "prior": "draws of the prior",
    "best of prior": "best of as many draws as cost the same",
    "DPS": "diffusion posterior sampling",
}


def measures(values: np.ndarray, case: Case) -> dict[str, Any]:
    """Of answers [n, P]: root mean squares over the points that were seen, and over the others.

    `error` is that of an answer, `mean_error` that of the answers' mean, `spread` the difference of two answers (as
    large as `error` where the answers are draws of what is possible), `energy` the energy score (less is better, no
    matter whether by less error or by the right spread), `brier` the same of the share of answers that are inside.
    """
    found: dict[str, Any] = {}
    n = len(values)
    for side, where in (("seen", case.seen), ("unseen", ~case.seen)):
        own, true = values[:, where], case.truth[where]
        errors = np.square(own - true).mean(axis=1)
        apart = [float(np.square(own[a] - own[b]).mean()) for a in range(n) for b in range(a)]
        share = (own < 0).mean(axis=0)
        brier = np.square(share - (true < 0)) - (share * (1 - share) / (n - 1) if n > 1 else 0.0)
        found[side] = {
            "error": float(np.sqrt(errors.mean())),
            "mean_error": float(np.sqrt(np.square(own.mean(axis=0) - true).mean())),
            "spread": float(np.sqrt(np.mean(apart))) if apart else 0.0,
            "energy": float(np.sqrt(errors).mean() - 0.5 * (np.mean(np.sqrt(apart)) if apart else 0.0)),
            "brier": float(brier.mean()),
        }
    counts = (values[:, ~case.seen] < 0).sum(axis=0)
    inside = case.truth[~case.seen] < 0
    found["inside"] = [[int((counts == k).sum()), int(inside[counts == k].sum())] for k in range(n + 1)]
    return found


def draws_of(method: str, pipe: MNIFPipeline, case: Case, config: Config) -> Tensor:
    """Latents `[n, D]` of one method."""
    assert pipe.prior is not None
    usual, prior, count = AnswerConfig(), pipe.prior, config.answers
    settings = SearchConfig(weight=case.weight)
    space, few = settings.space(pipe.latents), Thinned(case.evidence)
    if method == "fit":
        starts, _ = choose_starts(case.evidence, pipe.latents, pipe.latents[:0], 1, config.seed)
        return search(case.evidence, starts, space, settings)
    if method == "prior":
        return prior.sample(count, seed=config.seed)
    if method == "best of prior":
        tried = count * (usual.candidates + _GRADIENT * usual.steps)
        drawn = prior.sample(tried, seed=config.seed)
        losses = torch.cat([few.score(part) for part in drawn.split(64)])
        return drawn[losses.argsort()[:count]]
    if method == "DPS":
        return guided_draws(prior, few, count, usual.steps, config.seed)

    def sample(number: int, seed: int) -> Tensor:
        return prior.sample(number, seed=seed)

    held = SearchConfig(weight=case.held)
    return Answers(sample, few, space, held, usual).draw(count, config.seed)


def part_results(part: str, config: Config) -> list[dict[str, Any]]:
    """One row for each method: means over the things, and what was measured of each."""
    pipe = MNIFPipeline.from_pretrained(config.run_of(part), device="cpu")
    if pipe.prior is None:
        raise MNIFError(f"{config.run_of(part)}: has no latent prior; train one first.")
    cases = list(cases_of(part, pipe, config))
    rows = []
    with frozen(pipe.model.field):
        for method in config.methods:
            start, each = time.process_time(), []
            for case in tracked(cases, f"{part}, {method}", len(cases)):
                latents = draws_of(method, pipe, case, config)
                loss = float(case.evidence.score(latents).mean())
                each.append({"name": case.name, "loss": loss, **measures(said(pipe, latents, case), case)})
            seconds = (time.process_time() - start) / len(cases)
            rows.append({"part": part, "method": method, "seconds": seconds, "each": each, **_means(each)})
    return rows


def _means(each: list[dict[str, Any]]) -> dict[str, float]:
    """Over the things: root mean squares of errors and spreads, means of scores."""

    def over(side: str, key: str, mean: Callable[[np.ndarray], Any]) -> float:
        return float(mean(np.array([row[side][key] for row in each])))

    def rms(values: np.ndarray) -> np.floating[Any]:
        return np.sqrt(np.square(values).mean())

    found = {"loss": float(np.mean([row["loss"] for row in each])), "seen_error": over("seen", "error", rms)}
    found |= {key: over("unseen", key, rms) for key in ("error", "mean_error", "spread")}
    found |= {key: over("unseen", key, np.mean) for key in ("energy", "brier")}
    found["seen_spread"] = over("seen", "spread", rms)
    found["ratio"] = found["spread"] / found["error"]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; losses are relative to the fit's of the same run."""
    base = next((row["loss"] for row in rows if row["method"] == "fit"), None)
    columns = (
        rows[0]["part"], "loss of what was seen, x fit's", "error, seen", "error, not seen", "of the mean", "spread",
        "spread / error", "energy score", "Brier score", "CPU s",
    )  # fmt: skip
    lines = []
    for row in rows:
        one = row["method"] == "fit"
        lines.append([
            _NAMES.get(row["method"], row["method"]), None if base is None else row["loss"] / base, row["seen_error"],
            row["error"], row["mean_error"], None if one else row["spread"], None if one else row["ratio"],
            row["energy"], row["brier"], row["seconds"],
        ])  # fmt: skip
    return report.markdown_table(columns, lines)


def draw_figure(rows: list[dict[str, Any]], path: Path) -> None:
    """How often a point is inside of which some of the answers are; and each thing's error against the spread."""
    figure, (left, right) = new_figure(2, 4.6, 4.2)
    drawn = [row for row in rows if row["method"] in ("best of prior", "answers")]
    for ax, xlabel, ylabel in (
        (left, "share of the answers that are inside", "share of points that truly are"),
        (right, "difference of two answers, not seen", "difference of an answer and the truth"),
    ):
        ax.plot([0, 1], [0, 1], color="0.8", linewidth=1, label="calibrated")
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
    marks, most = "o^sDvx*P+", 0.0
    for row, mark in zip(drawn, marks * 3):
        counts = np.array([item["inside"] for item in row["each"]]).sum(axis=0)
        some = counts[:, 0] >= 30
        share, strong = np.linspace(0, 1, len(counts)), row["method"] == "answers"
        label, color = f"{row['method']}, {row['part']}", "0.0" if strong else "0.55"
        left.plot(share[some], counts[some, 1] / counts[some, 0], marker=mark, color=color, label=label, markersize=5)
        own = np.array([(item["unseen"]["spread"], item["unseen"]["error"]) for item in row["each"]])
        right.plot(own[:, 0], own[:, 1], mark, color=color, label=label, markersize=5)
        most = max(most, float(own.max()))
    right.set_xlim(0, 1.1 * most)
    right.set_ylim(0, 1.1 * most)
    left.legend(fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Measure and print; returns the rows by part."""
    for what, chosen, known in (("parts", config.parts, PARTS), ("methods", config.methods, METHODS)):
        strange = [item for item in chosen if item not in known]
        if strange:
            raise MNIFError(f"`{what}` {strange[0]}: unknown; choose among {', '.join(known)}.")
    if config.answers < 2:
        raise MNIFError(f"`answers` {config.answers}: a spread needs two or more.")
    info = report.machine(config.seed)
    rows = {part: part_results(part, config) for part in config.parts}
    if config.figure is not None:
        draw_figure([row for found in rows.values() for row in found], config.figure)
    title = f"{config.answers} answers to parts of {config.instances} unseen things; half seen: {config.half}"
    report.finish(title, [table(found) for found in rows.values()], info, rows, config.output)
    return rows


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)), [Config])
