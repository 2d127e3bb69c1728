"""Generated sets against unseen data: shapes and pictures, line by line, and how near samples come to training data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mnif_nerf.data.sampling.views import evenly_spaced
from mnif_nerf.evaluation.generated import (
    EvaluationContext,
    Pictures,
    PictureSet,
    shape_maker,
    shapes_of_instances,
    shapes_of_row,
    unseen_splits,
)
from mnif_nerf.evaluation.grid_pictures import GridPictures
from mnif_nerf.evaluation.picture_features import features_of, is_streamed, scores_of
from mnif_nerf.evaluation.protocols import MAIN_ROWS, Row
from mnif_nerf.evaluation.shapes import ShapeSet
from mnif_nerf.evaluation.surface_pictures import SurfacePictures
from mnif_nerf.evaluation.view_pictures import ViewPictures
from mnif_nerf.metrics.clouds import CHAMFER, EMD, ONE_MINUS_IOU, distance_matrix, one_minus_iou
from mnif_nerf.metrics.device_clouds import one_minus_iou_of_bits
from mnif_nerf.metrics.device_pictures import nearest_pictures
from mnif_nerf.metrics.features import FeatureNetwork
from mnif_nerf.metrics.histograms import jsd_of_clouds
from mnif_nerf.metrics.sets import Distances, bootstrap, coverage, min_distances, novelty_of_nearest, set_scores
from mnif_nerf.priors.baselines import BASELINES
from mnif_nerf.scene_box import HALF_EXTENT

_FLOW = Row(MAIN_ROWS[1], "flow matching, Heun", sampler="flow-heun")
LEAST_REFERENCES = 4  # that sets can be compared by
Nearest = tuple[np.ndarray, np.ndarray]
"""Index and distance of the nearest for every item, `[N]` both."""
_NOVELTY = ("novelty_ratio", "suspicious_share")
_CHUNK = 32


@dataclass
class Line:
    """One line of a table.

    Attributes:
        row: what was compared.
        count: how many instances.
        empty: how many of them were without any surface.
        scores: by name "<distance>/<score>" or "<score>": (value, low, high), low and high NaN where there is no
            interval.
        pairs: of the samples nearest to training data, (sample, training instance, distance), the nearest first.
    """

    row: Row
    count: int
    empty: int = 0
    scores: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    pairs: list[tuple[int, int, float]] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        scores = {
            name: {"value": value} if np.isnan(low) else {"value": value, "low": low, "high": high}
            for name, (value, low, high) in self.scores.items()
        }
        pairs = [{"sample": a, "training": b, "distance": d} for a, b, d in self.pairs]
        return {"row": self.row.name, "label": self.row.label, "count": self.count, "empty": self.empty,
                "scores": scores, "nearest_pairs": pairs}  # fmt: skip


@dataclass
class Comparison:
    """A table, and what its sentences need.

    Attributes:
        lines: in the protocol's order.
        references: how many reference instances.
        distances: the novelty plot's data: name of a set to its distances to the nearest training instance.
        about: how the two sides were brought to one form.
        per_object: pictures of each instance.
    """

    lines: list[Line]
    references: int
    distances: dict[str, np.ndarray]
    about: str = ""
    per_object: int = 1


def rows_of(context: EvaluationContext) -> list[Row]:
    """The protocol's lines that this model can fill: no samples without a prior."""
    prior = context.target.pipe.prior
    if prior is None:
        return [row for row in context.protocol.rows if row.kind != "samples"]
    if prior.default_sampler != _FLOW.sampler:
        return list(context.protocol.rows)
    # Diffusion's samplers do not fit a flow; those without a denoiser do.
    return [row for row in context.protocol.rows if row.kind != "samples" or row.sampler in BASELINES] + [_FLOW]


def num_references(context: EvaluationContext) -> int:
    """How many instances samples can be compared with."""
    target, protocol = context.target, context.protocol
    if target.kind.by_instance:
        return len(target.references(protocol.references, protocol.max_references))
    return sum(target.scenes(split).num_scenes for split in protocol.references if split in target.splits)


# ---------------------------------------------------------------------------------------------------------- shapes


def compare_shapes(context: EvaluationContext) -> Comparison:
    """MMD, COV, 1-NNA and JSD of every line against the reference shapes, and novelty against the training shapes.

    All sets are cut to the size of the smallest. An empty shape counts: its distance to every other shape is larger
    than any distance within the box, and it covers no reference.
    """
    target, protocol = context.target, context.protocol
    instances = target.references(protocol.references, protocol.max_references, solids=True)
    real = shapes_of_instances(context, instances, "reference shapes")
    everyone = target.training(len(target.pipe.names), solids=True)
    count = min(protocol.num_samples, len(real), len(everyone))
    train = shapes_of_instances(context, everyone, "training shapes", points=0)
    spread_real = real.some(evenly_spaced(len(real), count))
    unseen: ShapeSet | None = real
    if "train" in protocol.references:  # which are their own copies, and no yardstick of novelty
        splits = unseen_splits(context)
        unseen = None
        if splits:
            others = target.references(splits, protocol.max_references, solids=True)
            unseen = shapes_of_instances(context, others, "unseen shapes", points=0)
    yardstick = None if unseen is None else _nearest_shapes(context, unseen, train)[1]
    metrics = [metric for metric in (CHAMFER, EMD, ONE_MINUS_IOU) if metric != EMD or protocol.emd_points > 0]
    among_real = {m: shape_distances(context, spread_real, spread_real, m, f"{m}: references") for m in metrics}
    lines, distances = [], {} if yardstick is None else {"unseen data": yardstick}
    for row in rows_of(context):
        made = shapes_of_row(context, row, real.resolution)
        kept = made.some(np.arange(count))
        line = Line(row, count, int(kept.empty.sum()))
        for metric in metrics:
            if metric == EMD and protocol.emd_rows and row.name not in protocol.emd_rows:
                continue
            _add_set_scores(context, line, kept, spread_real, metric, among_real[metric])
        solid = [cloud for cloud, empty in zip(kept.points, kept.empty) if not empty]
        if solid:
            jsd = jsd_of_clouds(solid, list(spread_real.points))
            line.scores["jsd"] = (jsd, float("nan"), float("nan"))
        if row.kind == "samples" and yardstick is not None:
            to_train = _nearest_shapes(context, made, train)
            _add_novelty(line, to_train, yardstick)
            if row.name in MAIN_ROWS:
                distances[row.label] = to_train[1]
        lines.append(line)
    return Comparison(lines, count, distances, shape_maker(context, real.resolution).about)


def _add_set_scores(
    context: EvaluationContext, line: Line, made: ShapeSet, real: ShapeSet, metric: str, among_real: np.ndarray
) -> None:
    distances = Distances(
        between=shape_distances(context, made, real, metric, f"{metric}: {line.row.label}"),
        generated=shape_distances(context, made, made, metric, f"{metric}: {line.row.label}, among themselves"),
        reference=among_real,
    )
    scores = set_scores(distances)
    intervals = bootstrap(distances, context.protocol.resamples, seed=context.protocol.seed, device=context.device)
    if made.empty.any():  # an empty shape is equally far from all, and the first of them would count as covered
        solid = distances.between[~made.empty]
        scores["cov"] = coverage(solid) if len(solid) else 0.0
        intervals["cov"] = (float("nan"), float("nan"))
    for name, value in scores.items():
        line.scores[f"{metric}/{name}"] = (value, *intervals[name])


def shape_distances(
    context: EvaluationContext, rows: ShapeSet, columns: ShapeSet, metric: str, title: str
) -> np.ndarray:
    """Distances `[R, C]` between two sets of shapes, empty ones included; kept in the cache."""
    if metric == ONE_MINUS_IOU:
        own = context.ranks.spread(range(len(rows)), lambda some: _by_cells(context, rows, columns, some))
        return np.stack(own)
    same = columns is rows
    count = context.protocol.emd_points if metric == EMD else rows.points.shape[1]
    key = {"metric": metric, "rows": _digest(rows), "columns": _digest(columns), "points": count}

    def make() -> dict[str, np.ndarray]:
        # Points are in random order along the surface, so the first of them are an even sample too.
        left = [cloud[:count] for cloud, empty in zip(rows.points, rows.empty) if not empty]
        right = left if same else [cloud[:count] for cloud, empty in zip(columns.points, columns.empty) if not empty]
        diagonal = 2 * HALF_EXTENT * 3**0.5
        matrix = np.full((len(rows), len(columns)), 2 * diagonal**2 if metric == CHAMFER else diagonal)
        if left and right:

            def distances(some: Sequence[int], advance: Callable[[], None]) -> Iterable[np.ndarray]:
                return distance_matrix(left, right, metric, advance, device=context.device, chosen=some)

            found = np.stack(context.share(title, range(len(left)), distances))
            matrix[np.ix_(~rows.empty, ~columns.empty)] = found + found.T if same else found
        matrix[np.ix_(rows.empty, columns.empty)] = 0.0
        return {"matrix": matrix}

    return context.cache.get("distances", key, make)["matrix"]


def one_minus_iou_of(rows: ShapeSet, columns: ShapeSet, device: torch.device | None = None) -> np.ndarray:
    """One minus intersection over union `[R, C]`, some rows at a time, which bounds the memory; on a device, if any."""
    if device is not None and rows.resolution == columns.resolution:
        return one_minus_iou_of_bits(rows.bits, columns.bits, device)
    blocks = []
    for start in range(0, len(rows), _CHUNK):
        part = rows.cells(np.arange(start, min(start + _CHUNK, len(rows))))
        across = [
            one_minus_iou(part, columns.cells(np.arange(first, min(first + 8 * _CHUNK, len(columns)))))
            for first in range(0, len(columns), 8 * _CHUNK)
        ]
        blocks.append(np.concatenate(across, axis=1))
    return np.concatenate(blocks)


def _nearest_shapes(context: EvaluationContext, rows: ShapeSet, columns: ShapeSet) -> Nearest:
    """The nearest of other shapes to every shape, by their cells."""

    def nearest(some: Sequence[int]) -> Iterable[tuple[int, float]]:
        return zip(*min_distances(_by_cells(context, rows, columns, some))) if some else ()

    index, distance = (np.array(part) for part in zip(*context.ranks.spread(range(len(rows)), nearest)))
    return index, distance


def _by_cells(context: EvaluationContext, rows: ShapeSet, columns: ShapeSet, some: Sequence[int]) -> np.ndarray:
    """The rows of `one_minus_iou_of` that are asked for."""
    if not some:
        return np.empty((0, len(columns)))
    return one_minus_iou_of(rows.some(np.array(some, dtype=int)), columns, context.device)


def _digest(shapes: ShapeSet) -> str:
    return hashlib.sha256(shapes.bits.tobytes() + shapes.points.tobytes()).hexdigest()[:20]


# -------------------------------------------------------------------------------------------------------- pictures


def compare_pictures(context: EvaluationContext, networks: list[FeatureNetwork]) -> list[Comparison]:
    """Fréchet and kernel distance, precision, recall, density and coverage of every line's pictures, by network."""
    source = pictures_of(context)
    reference, per_object = source.references(), source.per_object
    real = features_of(context, reference, networks, "features: references")
    tables: list[list[Line]] = [[] for _ in networks]
    streamed = is_streamed(context, reference)
    for row in rows_of(context):
        if row.kind == "data" and not source.training_is_yardstick():
            continue
        pictures = source.of_row(row, reference)
        streamed |= is_streamed(context, pictures)
        fake = features_of(context, pictures, networks, f"features: {row.label}")
        for k, network in enumerate(networks):
            line = Line(row, pictures.objects)
            line.scores = scores_of(context, real[k], fake[k], network.name)
            tables[k].append(line)
    about = " ".join(part for part in (source.about, _kept_sentence(context) if streamed else "") if part)
    novelty_of_pictures = _picture_novelty(context, tables[0], source, reference)
    for lines in tables[1:]:
        for line, known in zip(lines, tables[0]):
            line.pairs = known.pairs
            line.scores |= {name: known.scores[name] for name in _NOVELTY if name in known.scores}
    return [Comparison(lines, reference.objects, novelty_of_pictures, about, per_object) for lines in tables]


def _kept_sentence(context: EvaluationContext) -> str:
    protocol = context.protocol
    return (
        f"The Fréchet distance, which has no interval here, is of all pictures; where a line has more than "
        f"{protocol.most_pictures:,}, all else is of {protocol.kept_pictures:,} of them, spread evenly."
    )


def pictures_of(context: EvaluationContext) -> Pictures:
    """What is compared of this model's objects as pictures."""
    kind = context.target.kind
    if kind.has_points:
        return SurfacePictures(context)
    return GridPictures(context) if kind.is_grid else ViewPictures(context)


def _picture_novelty(
    context: EvaluationContext, lines: list[Line], source: Pictures, reference: PictureSet
) -> dict[str, np.ndarray]:
    """Root-mean-square pixel differences to the nearest training instance, added to the lines of samples."""
    sets = source.for_novelty([line.row for line in lines if line.row.kind == "samples"], reference)
    if sets is None:
        return {}
    device = context.device
    yardstick = _nearest(sets.unseen, sets.train, device)[1]
    distances = {"unseen data": yardstick}
    for line in lines:
        if line.row.name in sets.samples:
            nearest = _nearest(sets.samples[line.row.name], sets.train, device)
            _add_novelty(line, nearest, yardstick)
            if line.row.name in MAIN_ROWS:
                distances[line.row.label] = nearest[1]
    return distances


def _nearest(rows: np.ndarray, columns: np.ndarray, device: torch.device | None) -> Nearest:
    """The nearest of uint8 columns to every row, by root-mean-square difference."""
    return min_distances(_rmse(rows, columns)) if device is None else nearest_pictures(rows, columns, device)


def _rmse(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Root-mean-square differences `[R, C]` of uint8 rows, in [0, 1], from differences: no cancellation."""
    from scipy.spatial.distance import cdist

    return cdist(rows.astype(np.float32), columns.astype(np.float32)) / (255.0 * rows.shape[1] ** 0.5)


def _add_novelty(line: Line, to_train: Nearest, yardstick: np.ndarray) -> None:
    found = novelty_of_nearest(to_train, yardstick)
    nothing = float("nan")
    for name, score in zip(_NOVELTY, (found["ratio"], found["suspicious_share"])):
        line.scores[name] = (score, nothing, nothing)
    order = np.argsort(found["distance"], kind="stable")[:6]
    line.pairs = [(int(k), int(found["nearest"][k]), float(found["distance"][k])) for k in order]
