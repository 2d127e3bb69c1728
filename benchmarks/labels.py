"""Samples asked for by a label: the share that is what was asked for, and what guidance costs in diversity.

A rule learned from pictures of real instances says of which class samples are; its accuracy on real instances that it
has not seen is the yardstick. A second rule, on latents, judges many more samples, as nothing is decoded for it.
Guidance 0 leaves the label out. Run: `python benchmarks/labels.py --model RUN --data DATA`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report

from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.evaluation.cache import Cache
from mnif_nerf.evaluation.generated import EvaluationContext
from mnif_nerf.evaluation.labels import judge_labels
from mnif_nerf.evaluation.protocols import choose_protocol
from mnif_nerf.evaluation.target import load_target
from mnif_nerf.labels import Attribute, Value, Wish
from mnif_nerf.machine import one_thread
from mnif_nerf.metrics.classes import ClassRule, spread, unseen_accuracy
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.progress import progress_bar

_ASKED = (0.1, 0.5, 0.9)  # shares of the instances
_SAME = {name: name for name in ("guidance", "share", "accuracy", "diversity")}


@dataclass(frozen=True)
class Config:
    """Measure a model whose prior was trained with labels.

    Attributes:
        model: model folder, run or config.yml.
        data: its data; by default what config.yml names.
        attributes: by default all.
        guidances: each of them is measured.
        decoded: samples of every class that are decoded; 0 leaves that part out.
        latents: samples of every class that are judged by their latents alone.
        seed: of samples and folds.
        cache: folder of what is kept between runs.
        output: JSON file for the numbers.
    """

    model: Path
    data: Path | None = None
    attributes: tuple[str, ...] = ()
    guidances: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    decoded: int = 8
    latents: int = 128
    seed: int = 0
    cache: Path | None = None
    output: Path | None = None


def latent_rows(config: Config, pipe: MNIFPipeline, attribute: Attribute) -> list[dict[str, Any]]:
    """Share, diversity and novelty of samples by their whitened latents, means over classes, at every guidance."""
    prior = pipe.prior
    assert prior is not None
    real, values = real_codes(config, pipe, attribute)
    names = [str(value) for value in values]
    rule, accuracy = ClassRule(real, names), unseen_accuracy(real, names, seed=config.seed)
    own = {name: real[[k for k, other in enumerate(names) if other == name]] for name in attribute.classes}
    mean_accuracy = float(np.mean(list(accuracy.values())))
    rows = []
    for guidance in config.guidances:
        shares, spreads, nearest = [], [], []
        for name in attribute.classes:
            drawn = prior.sample(config.latents, config.seed, wish=Wish({attribute.name: name}, guidance))
            codes = prior.whitening.whiten(drawn).numpy()
            shares.append(np.mean([found == name for found in rule(codes)]))
            if len(own[name]) > 1:
                spreads.append(spread(codes) / spread(own[name]))
            gaps = np.sqrt(((codes[:, None] - real[None]) ** 2).mean(2)).min(1)
            nearest.append(np.median(gaps) / prior.spacing())
        rows.append(
            {
                "guidance": guidance, "share": float(np.mean(shares)), "accuracy": mean_accuracy,
                "diversity": float(np.mean(spreads)), "nearest": float(np.mean(nearest)),
            }
        )  # fmt: skip
    return rows


def number_rows(config: Config, pipe: MNIFPipeline, attribute: Attribute) -> list[dict[str, Any]]:
    """What samples have of a number, by a linear rule on whitened latents, where they were asked for what a tenth, half
    and nine tenths of the instances have no more than; medians, at every guidance."""
    prior = pipe.prior
    assert prior is not None
    real, known = real_codes(config, pipe, attribute)
    values = np.array(known, float)
    rule, unseen = linear_rule(real, values), np.empty(len(values))
    fold = np.random.default_rng(config.seed).permutation(len(values)) % 5
    for k in range(5):
        unseen[fold == k] = linear_rule(real[fold != k], values[fold != k])(real[fold == k])
    rows = []
    for guidance in config.guidances:
        row = {"guidance": guidance}
        for asked in np.quantile(values, _ASKED):
            drawn = prior.sample(config.latents, config.seed, wish=Wish({attribute.name: float(asked)}, guidance))
            row[f"asked {asked:.3g}"] = float(np.median(rule(prior.whitening.whiten(drawn).numpy())))
        rows.append({**row, "correlation on real": float(np.corrcoef(values, unseen)[0, 1])})
    return rows


def linear_rule(codes: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Least squares on as many of the dimensions `[N, K]` as a fifth of N, those that vary most, to values `[N]`."""
    kept = max(1, len(codes) // 5)
    weights = np.linalg.lstsq(np.c_[codes[:, :kept], np.ones(len(codes))], values, rcond=None)[0]
    return lambda other: np.c_[other[:, :kept], np.ones(len(other))] @ weights


def real_codes(config: Config, pipe: MNIFPipeline, attribute: Attribute) -> tuple[np.ndarray, list[Value]]:
    """Whitened latents `[N, K]` of the training instances whose value is known, and the values."""
    prior, labels = pipe.prior, pipe.model.labels
    assert prior is not None
    if labels is None:
        raise MNIFError(f"{config.model}: the model folder has no labels; give them with mnif-train-prior --labels.")
    known = [(row, value) for row, value in enumerate(labels.columns[attribute.name]) if value is not None]
    codes = prior.whitening.whiten(pipe.latents).numpy()[[row for row, _ in known]]
    return codes, [value for _, value in known]


def decoded_rows(config: Config, context: EvaluationContext, attribute: Attribute) -> list[dict[str, Any]]:
    """The same of decoded samples, by pictures, with set metrics."""
    found = judge_labels(context, attribute, config.guidances, config.decoded)
    accuracy = found.mean_accuracy()
    return [{"guidance": each, "accuracy": accuracy, **found.means(each)} for each in config.guidances]


def main(config: Config) -> dict[str, Any]:
    """Measure and print.

    Raises:
        MNIFError: no model, no labels in its prior, or no data.
    """
    info = report.machine(config.seed)
    target = load_target(config.model, config.data)
    prior = target.pipe.prior
    attributes = () if prior is None else prior.attributes
    attributes = tuple(each for each in attributes if not config.attributes or each.name in config.attributes)
    if not attributes:
        raise MNIFError(f"{config.model}: its prior knows no such labels; train it with mnif-train-prior --labels.")
    protocol = dataclasses.replace(choose_protocol("small", target.kind, None, config.seed), num_samples=config.decoded)
    context = EvaluationContext(target, protocol, Cache(config.cache), progress_bar)
    results: dict[str, Any] = {}
    parts = []
    with one_thread():
        for attribute in attributes:
            if attribute.is_numeric:
                rows = number_rows(config, target.pipe, attribute)
                results[attribute.name] = {"latents": rows}
                parts.append(f"{attribute.describe()}; {config.latents} samples of each number, judged by latents:")
                parts.append(_table(rows, {name: name for name in rows[0]}))
                continue
            rows = latent_rows(config, target.pipe, attribute)
            results[attribute.name] = {"latents": rows}
            parts.append(f"{attribute.describe()}; {config.latents} samples of each class, judged by latents:")
            parts.append(_table(rows, {**_SAME, "nearest": "nearest / spacing"}))
            if config.decoded:
                rows = results[attribute.name]["decoded"] = decoded_rows(config, context, attribute)
                parts.append(f"{config.decoded} decoded samples of each class, judged by pictures:")
                parts.append(_table(rows, {**_SAME, "mmd": "MMD", "cov": "COV", "1nna": "1-NNA"}))
    parts.append(
        "Share: samples that the rule puts into the class that was asked for, mean over classes; accuracy: the same of "
        "real instances that the rule has not seen (5 folds). Diversity: spread of a class's samples over that of its "
        "real instances. Nearest: median distance to the nearest training latent over that of training latents to "
        "their own nearest; 0 is copying. Of a number: the median of what samples have, by a linear rule; the "
        "correlation is of the rule's values and the real ones, of instances that it has not seen (5 folds)."
    )
    report.finish("Labels", parts, info, results, config.output)
    return results


def _table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    return report.markdown_table(list(columns.values()), [[f"{row[key]:.3g}" for key in columns] for row in rows])


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
