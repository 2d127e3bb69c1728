"""Samples asked for by a label: the share that is what was asked for, and what guidance costs in diversity.

A rule learned from pictures of real instances says of which class samples are; its accuracy on real instances that it
has not seen is the yardstick. A second rule, on latents, judges many more samples, as nothing is decoded for it.
Guidance 0 leaves the label out. Run: `python benchmarks/labels.py --model RUN --data DATA`.
"""

from __future__ import annotations

import dataclasses
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
from mnif_nerf.labels import Attribute, Wish
from mnif_nerf.machine import one_thread
from mnif_nerf.metrics.classes import ClassRule, spread, unseen_accuracy
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.progress import progress_bar


@dataclass(frozen=True)
class Config:
    """Measure a model whose prior was trained with labels.

    Attributes:
        model: model folder, run or config.yml.
        data: its data; by default what config.yml names.
        attributes: of classes; by default all.
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
    prior, labels = pipe.prior, pipe.model.labels
    assert prior is not None
    if labels is None:
        raise MNIFError(f"{config.model}: the model folder has no labels; give them with mnif-train-prior --labels.")
    known = [(row, name) for row, name in enumerate(labels.columns[attribute.name]) if isinstance(name, str)]
    real = prior.whitening.whiten(pipe.latents).numpy()[[row for row, _ in known]]
    names = [name for _, name in known]
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
    attributes = [] if prior is None else [each for each in prior.attributes if not each.is_numeric]
    attributes = [each for each in attributes if not config.attributes or each.name in config.attributes]
    if not attributes:
        raise MNIFError(f"{config.model}: its prior knows no such classes; train it with mnif-train-prior --labels.")
    protocol = dataclasses.replace(choose_protocol("small", target.kind, None, config.seed), num_samples=config.decoded)
    context = EvaluationContext(target, protocol, Cache(config.cache), progress_bar)
    results: dict[str, Any] = {}
    parts = []
    with one_thread():
        for attribute in attributes:
            rows = latent_rows(config, target.pipe, attribute)
            results[attribute.name] = {"latents": rows}
            parts.append(f"{attribute.describe()}; {config.latents} samples of each class, judged by latents:")
            parts.append(_table(rows, {"nearest": "nearest / spacing"}))
            if config.decoded:
                rows = results[attribute.name]["decoded"] = decoded_rows(config, context, attribute)
                parts.append(f"{config.decoded} decoded samples of each class, judged by pictures:")
                parts.append(_table(rows, {"mmd": "MMD", "cov": "COV", "1nna": "1-NNA"}))
    parts.append(
        "Share: samples that the rule puts into the class that was asked for, mean over classes; accuracy: the same of "
        "real instances that the rule has not seen (5 folds). Diversity: spread of a class's samples over that of its "
        "real instances. Nearest: median distance to the nearest training latent over that of training latents to "
        "their own nearest; 0 is copying."
    )
    report.finish("Labels", parts, info, results, config.output)
    return results


def _table(rows: list[dict[str, Any]], more: dict[str, str]) -> str:
    same = ("guidance", "share", "accuracy", "diversity")
    columns = {**dict(zip(same, same)), **more}
    return report.markdown_table(list(columns.values()), [[f"{row[key]:.3g}" for key in columns] for row in rows])


def entrypoint() -> None:
    """The script."""
    import tyro

    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
