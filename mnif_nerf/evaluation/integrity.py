"""Which share of a set is broken: samples beside decoded training latents, and beside data that can be measured.

See `mnif_nerf.metrics.integrity`. Where the data's instances are measured like objects (voxels, pictures, signals) the
ranges are theirs, so a blurred decoder shows; else they are those of decoded training instances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.comparison import rows_of
from mnif_nerf.evaluation.generated import EvaluationContext, row_decoder, row_latents, row_length
from mnif_nerf.evaluation.protocols import MAIN_ROWS, Row
from mnif_nerf.export.document import Section, Table
from mnif_nerf.export.pictures import contact_sheet
from mnif_nerf.metrics.integrity import LIMIT, Features, Judgement, Yardstick
from mnif_nerf.pipelines.integrity import FEWEST_INSTANCES, VERSION, measure, yardstick_of

_SHOWN, _ACROSS, _PIXELS = 12, 4, 160


def integrity_section(context: EvaluationContext) -> Section | None:
    """The part of the report; None of a model with too few training instances for a range, or with empty ones."""
    target = context.target
    if len(target.pipe.names) < FEWEST_INSTANCES:
        return None
    data = _features_of_data(context)
    lines: list[tuple[str, str, list[Features]]] = []
    if data is None:
        try:
            with context.ranks.one_first():  # which keeps it in the model folder
                yardstick = yardstick_of(target.pipe, target.pipe.folder, context.stage)
        except MNIFError as error:
            target.notes.append(f"integrity is not judged: {error}")
            return None
        source = "decoded training instances"
    else:
        yardstick, source = Yardstick.of(target.kind.integrity_features, data), "the training data"
        lines.append(("data", "training data", data))
    rows = [row for row in rows_of(context) if row.kind == "latents" or row.name in MAIN_ROWS]
    lines += [(row.name, row.label, _features_of_row(context, row)) for row in rows]
    judged = [(name, label, [yardstick.judge(found) for found in measured]) for name, label, measured in lines]
    body: list[str | Table] = [
        f"An object is broken where a feature lies outside the range of {source} (2.5th to 97.5th percentile of "
        f"{yardstick.count}) by {LIMIT:g} widths of that range or more: see docs/evaluation.md. Read every line "
        "against the first.",
        Table(
            ["integrity", "N", "broken", "mean score", "why (how many)"],
            [[label, str(len(found)), _share(found), f"{_mean(found):.2f}", _reasons(found)]
             for _, label, found in judged],
        ),
        Table(
            ["mean of", *(feature.name for feature in yardstick.features)],
            [[label, *(_mean_feature(measured, feature.name) for feature in yardstick.features)]
             for _, label, measured in lines]
            + [["range", *("{:.3g} to {:.3g}".format(*yardstick.ranges[f.name]) for f in yardstick.features)]],
        ),
    ]  # fmt: skip
    summary = ", ".join(f"{label} {_share(found)}" for _, label, found in judged)
    facts = {
        "yardstick": {"of": source, "count": yardstick.count, "ranges": yardstick.ranges},
        "lines": [
            {"row": name, "label": label, "broken": _broken(found), "count": len(found), "mean_score": _mean(found),
             "objects": [judgement.facts() for judgement in found]}
            for name, label, found in judged
        ],
    }  # fmt: skip
    sheet = _sheet(context, rows, judged)
    pictures = {} if sheet is None else {"broken": sheet}
    return Section("integrity", "Integrity", f"integrity, broken: {summary}", facts, body, pictures=pictures)


def _features_of_data(context: EvaluationContext) -> list[Features] | None:
    target = context.target
    if not target.kind.by_instance:
        return None
    grid = target.pipe.model.grid
    dims = target.pipe.model.field.spec.in_features
    facts = None if grid is None else GridFacts.from_dict(grid, dims, target.data)
    instances = target.training(context.protocol.num_samples)
    if target.kind.measure_data(instances.value(0), facts) is None:
        return None

    def features(k: int) -> Features:
        return target.kind.measure_data(instances.value(k), facts) or {}

    return context.share_each("integrity: training data", range(len(instances)), features)


def _features_of_row(context: EvaluationContext, row: Row) -> list[Features]:
    names = [feature.name for feature in context.target.kind.integrity_features]
    key = context.key(
        row=row.name, sampler=row.sampler, steps=row.steps, count=context.protocol.num_samples, features=names,
        version=VERSION,
    )  # fmt: skip

    def make() -> dict[str, np.ndarray]:
        decode = row_decoder(context, row)

        def features(k: int) -> list[float]:
            found = measure(decode(k))
            return [found.get(name, np.nan) for name in names]

        table = context.share_each(f"integrity: {row.label}", range(row_length(context, row)), features)
        return {"features": np.array(table, dtype=np.float64)}

    table = context.cache.get("integrity", key, make)["features"]
    return [{} if np.isnan(values).any() else dict(zip(names, values.tolist())) for values in table]


def _sheet(context: EvaluationContext, rows: list[Row], judged: list[tuple[str, str, list[Judgement]]]) -> Any:
    """The most broken samples; None where there are none."""
    row = next((row for row in rows if row.name in MAIN_ROWS), None)
    if row is None:
        return None
    found = next(part for name, _, part in judged if name == row.name)
    worst = [k for k in np.argsort([-each.score for each in found], kind="stable")[:_SHOWN] if found[k].broken]
    if not worst:
        return None
    target, latents = context.target, row_latents(context, row)
    pictures = [target.kind.portrait(target.pipe.decode(latents[int(k)]), _PIXELS) for k in worst]
    captions = [f"{k}: {found[k].reason}" for k in worst]
    starts = range(0, len(worst), _ACROSS)
    return contact_sheet(
        [pictures[k : k + _ACROSS] for k in starts],
        captions=[captions[k : k + _ACROSS] for k in starts],
        title=f"The most broken of {len(found)} samples ({row.label})",
    )


def _broken(found: Iterable[Judgement]) -> int:
    return sum(judgement.broken for judgement in found)


def _share(found: list[Judgement]) -> str:
    return f"{_broken(found)} of {len(found)}"


def _mean(found: list[Judgement]) -> float:
    return float(np.mean([judgement.score for judgement in found]))


def _reasons(found: list[Judgement]) -> str:
    """What is wrong with the broken ones, the most frequent first."""
    counts = Counter(judgement.reason.split(" (")[0] for judgement in found if judgement.broken)
    return ", ".join(f"{reason} ({count})" for reason, count in counts.most_common(4)) or "-"


def _mean_feature(measured: list[Features], name: str) -> str:
    values = [features[name] for features in measured if features]
    return f"{np.mean(values):.3g}" if values else "-"
