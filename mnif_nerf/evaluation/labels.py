"""Samples that were asked for by a label: whether they are what was asked for, how varied, and how near real ones.

A rule (`mnif_nerf.metrics.classes`) is learned from the data's own instances, by their pictures or (voxels) coarse
cells, and says what samples are; how often it is right about real instances that it has not seen is the yardstick.
Diversity is the spread of samples of one class in the same features, over that of the class's real instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mnif_nerf.data.readers.labels import find_table, table_labels
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.comparison import LEAST_REFERENCES, shape_distances
from mnif_nerf.evaluation.generated import EvaluationContext, shapes_of_instances, shapes_of_row
from mnif_nerf.evaluation.picture_features import features_of
from mnif_nerf.evaluation.protocols import Row
from mnif_nerf.evaluation.shapes import ShapeSet
from mnif_nerf.evaluation.surface_pictures import given_pictures
from mnif_nerf.evaluation.target import Instances
from mnif_nerf.export.document import Section, Table
from mnif_nerf.labels import GUIDANCE, Attribute
from mnif_nerf.metrics.classes import ClassRule, spread, unseen_accuracy
from mnif_nerf.metrics.clouds import CHAMFER
from mnif_nerf.metrics.features import random_conv
from mnif_nerf.metrics.sets import Distances, set_scores

_MOST_CLASSES = 12  # that samples are drawn of, the most frequent first
_SAMPLES_OF_CLASS = 16  # at most
_POOLED = 8  # cells along an edge that features of shapes without pictures are pooled to


@dataclass
class ClassLine:
    """What was found of one class at one guidance.

    Attributes:
        name: of the class.
        guidance: of the samples.
        count: samples.
        share: of them that the rule puts into the class.
        diversity: their spread over that of real instances of the class; NaN where there is one of these.
        scores: MMD, COV and 1-NNA on Chamfer distances against real instances of the class; empty of too few.
    """

    name: str
    guidance: float
    count: int
    share: float
    diversity: float
    scores: dict[str, float] = field(default_factory=dict)


@dataclass
class LabelFindings:
    """What was found of one attribute.

    Attributes:
        attribute: it.
        real: how many real instances of every class there are.
        accuracy: of every class the share of unseen real instances that the rule is right about.
        lines: of every guidance and class.
    """

    attribute: Attribute
    real: dict[str, int]
    accuracy: dict[str, float]
    lines: list[ClassLine]

    def mean_accuracy(self) -> float:
        """Over classes, which count alike."""
        return float(np.mean(list(self.accuracy.values()))) if self.accuracy else float("nan")

    def means(self, guidance: float) -> dict[str, float]:
        """Share, diversity and 1-NNA at one guidance, over classes; NaN where no class has a number."""
        lines = [line for line in self.lines if line.guidance == guidance]
        found = {"share": [line.share for line in lines], "diversity": [line.diversity for line in lines]}
        for name in ("mmd", "cov", "1nna"):
            found[name] = [line.scores[name] for line in lines if line.scores]
        finite = {name: [value for value in values if np.isfinite(value)] for name, values in found.items()}
        return {name: float(np.mean(values)) if values else float("nan") for name, values in finite.items()}


class LabelJudge:
    """Real instances of a data set by the classes of an attribute, and the rule learned from them.

    Args:
        context: a model of solids and its data.
        attribute: of classes.

    Raises:
        MNIFError: real instances of fewer than two of its classes.
    """

    def __init__(self, context: EvaluationContext, attribute: Attribute) -> None:
        self.context, self.attribute = context, attribute
        target = context.target
        assert target.pipe.prior is not None
        self.sampler = target.pipe.prior.default_sampler
        splits = tuple(name for name in ("train", "val", "test") if name in target.splits_of_solids)
        instances = target.references(splits, context.protocol.max_references, solids=True)
        classes = class_names(context, instances, attribute.name)
        known = [k for k, name in enumerate(classes) if name is not None]
        instances = Instances(instances.stores, tuple(instances.rows[k] for k in known))
        self.classes = [str(classes[k]) for k in known]
        self.shapes = shapes_of_instances(context, instances, f"real instances by {attribute.name}")
        self.features = self._features(self.shapes)
        self.rule = ClassRule(self.features, self.classes)
        self.accuracy = unseen_accuracy(self.features, self.classes, seed=context.protocol.seed)

    def _features(self, shapes: ShapeSet) -> np.ndarray:
        """`[N, F]`: means over an object's pictures; of shapes without pictures the share of inside in coarse cells."""
        if shapes.pictures is None:
            cells = torch.from_numpy(shapes.cells(np.arange(len(shapes)))).float()
            grids = cells.view(-1, 1, *[shapes.resolution] * 3)
            return functional.adaptive_avg_pool3d(grids, _POOLED).flatten(1).double().numpy()
        pictures = given_pictures(shapes)
        network = random_conv(self.context.device or "cpu")
        found = features_of(self.context, pictures, [network], "features", every=True)[0].rows.cpu().numpy()
        return found.reshape(len(shapes), -1, found.shape[1]).mean(1)

    def line(self, name: str, guidance: float, count: int) -> ClassLine:
        """Draw samples of a class and judge them."""
        row = Row(
            f"label-{self.attribute.name}={name}-{guidance:g}", f"{name}, guidance {guidance:g}",
            sampler=self.sampler, asked=((self.attribute.name, name),), guidance=guidance, count=count,
        )  # fmt: skip
        made = shapes_of_row(self.context, row, self.shapes.resolution)
        features = self._features(made)
        share = float(np.mean([found == name for found in self.rule(features)]))
        own = np.array([k for k, real in enumerate(self.classes) if real == name])
        real, drawn = (spread(self.rule.places(each)) for each in (self.features[own], features))
        diversity = drawn / real if len(own) > 1 else float("nan")
        return ClassLine(name, guidance, count, share, diversity, self._scores(made, own))

    def _scores(self, made: ShapeSet, own: np.ndarray) -> dict[str, float]:
        count = min(len(made), len(own))
        if count < LEAST_REFERENCES:
            return {}
        generated, real = made.some(np.arange(count)), self.shapes.some(own[:count])
        pairs = {"between": (generated, real), "generated": (generated, generated), "reference": (real, real)}
        return set_scores(
            Distances(**{k: shape_distances(self.context, *pair, CHAMFER, "distances") for k, pair in pairs.items()})
        )


def class_names(context: EvaluationContext, instances: Instances, attribute: str) -> list[str | None]:
    """The class of every instance, from the data's labels; of training instances also from the model's."""
    target = context.target
    table = find_table(target.data)
    known = target.pipe.model.labels
    own = {} if known is None else dict(zip(target.pipe.names, known.columns.get(attribute, ())))
    found: list[dict[str, Any]] = []
    for store in instances.stores:
        labels = store.labels
        if table is not None:
            labels = table_labels(table, dict.fromkeys((*table.names, *store.names)), target.data, store.names)
        column = None if labels is None else labels.columns.get(attribute)
        names = {} if column is None else dict(zip(store.names, column))
        found.append({**names, **(own if store.split == "train" else {})})
    classes = [found[s].get(instances.stores[s].names[row]) for s, row in instances.rows]
    return [name if isinstance(name, str) else None for name in classes]


def judge_labels(
    context: EvaluationContext, attribute: Attribute, guidances: Sequence[float], count: int
) -> LabelFindings:
    """Draw `count` samples of every class at every guidance, and judge them."""
    judge = LabelJudge(context, attribute)
    classes = sorted(judge.rule.counts, key=lambda name: (-judge.rule.counts[name], name))[:_MOST_CLASSES]
    classes = [name for name in classes if name in attribute.classes]
    lines = [judge.line(name, guidance, count) for guidance in guidances for name in classes]
    return LabelFindings(attribute, judge.rule.counts, judge.accuracy, lines)


def labels_section(context: EvaluationContext) -> Section | None:
    """The part of the report; None of a model whose prior knows no classes, or whose data has no solids."""
    target = context.target
    prior = target.pipe.prior
    attributes = [] if prior is None else [each for each in prior.attributes if not each.is_numeric]
    if not attributes or not target.has_solids:
        return None
    count = min(_SAMPLES_OF_CLASS, context.protocol.num_samples)
    body: list[str | Table] = [
        f"{count} samples of every class, guidance {GUIDANCE:g}. Right: share that a rule, learned from pictures (of "
        "voxels: coarse cells) of the data's own instances, puts into the class that was asked for; beside it the "
        "share of real instances of that class which it had not seen and is right about (cross-validation). Diversity: "
        "spread of the samples over that of the class's real instances, in the same features. MMD, COV and 1-NNA are "
        "on Chamfer distances to real instances of the class, those of training among them: there are too few others."
    ]
    facts: dict[str, Any] = {}
    summaries = []
    for attribute in attributes:
        try:
            found = judge_labels(context, attribute, (GUIDANCE,), count)
        except MNIFError as error:
            target.notes.append(f"samples by {attribute.name} are not judged: {error}")
            continue
        body.append(_table(found))
        means = found.means(GUIDANCE)
        summaries.append(f"{attribute.name} {means['share']:.0%} (real: {found.mean_accuracy():.0%})")
        facts[attribute.name] = {
            "accuracy": found.accuracy,
            "real": found.real,
            "lines": [vars(line) for line in found.lines],
            "means": means,
        }
    if not facts:
        return None
    return Section("labels", "Labels", f"labels, samples of the asked class: {', '.join(summaries)}", facts, body)


def _table(found: LabelFindings) -> Table:
    columns = [found.attribute.name, "real", "right", "right of real", "diversity", "MMD x 1e3", "COV", "1-NNA"]
    rows = []
    for line in found.lines:
        scores = [f"{1e3 * line.scores['mmd']:.3g}", f"{line.scores['cov']:.2f}", f"{line.scores['1nna']:.2f}"]
        accuracy = found.accuracy.get(line.name, float("nan"))
        numbers = [str(found.real[line.name]), f"{line.share:.2f}", f"{accuracy:.2f}", f"{line.diversity:.2f}"]
        rows.append([line.name, *numbers, *(scores if line.scores else ["-"] * 3)])
    return Table(columns, rows)
