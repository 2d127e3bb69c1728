"""What an evaluation says: its tables, what they mean and cannot say, and its pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mnif_nerf.evaluation.comparison import MAIN_ROWS, Comparison, Line
from mnif_nerf.evaluation.generated import EvaluationContext, row_latents
from mnif_nerf.evaluation.reconstruction import Reconstruction
from mnif_nerf.export.document import Section, Table
from mnif_nerf.export.figures import LINE_STYLES, new_figure
from mnif_nerf.export.pictures import contact_sheet, enlarge, image_grid
from mnif_nerf.metrics.clouds import CHAMFER, EMD, ONE_MINUS_IOU

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

_SHOWN_PIXELS = 128
_PAIRS_ACROSS = 3
_UNITS = {CHAMFER: 1e3, EMD: 1e2, ONE_MINUS_IOU: 1.0}
_SCALED = {CHAMFER: "MMD x 1e3", EMD: "MMD x 1e2", ONE_MINUS_IOU: "MMD"}
_ABOUT = {
    CHAMFER: "squared distances, mean of either side, added",
    EMD: "mean distance under the best matching of points, exact by linear_sum_assignment",
    ONE_MINUS_IOU: "one minus intersection over union of the occupied cells",
}


def reconstruction_section(groups: list[Reconstruction]) -> Section:
    """Scores of what the model gives back."""
    body: list[str | Table] = []
    facts: dict[str, Any] = {}
    pictures = {}
    for group in groups:
        table = group.table()
        columns = ["metric", "mean", "deviation", "5 %", "25 %", "median", "75 %", "95 %"]
        rows = [[name.upper(), *(f"{value:.4g}" for value in values.values())] for name, values in table.items()]
        body += [f"{group.about} {len(group.names)} instances; percentiles are over instances.", Table(columns, rows)]
        facts[group.name] = {
            "about": group.about,
            "summary": table,
            "instances": [{"name": name, **scores} for name, scores in zip(group.names, group.scores)],
            "worst": [name for name, _ in group.worst],
        }
        pictures[f"worst_{group.name}"] = _pairs_sheet(
            [(name, pair) for name, pair in group.worst], f"The worst of {group.name}: data, reconstruction"
        )
    best = groups[-1].table()
    metric = "iou" if "iou" in best else "psnr"
    parts = [f"{group.name} {group.table()[metric]['mean']:.4g}" for group in groups]
    return Section(
        "reconstruction",
        "Reconstruction",
        f"reconstruction, mean {metric.upper()}: {', '.join(parts)}",
        facts,
        body,
        pictures=pictures,
    )


def shapes_section(context: EvaluationContext, comparison: Comparison) -> Section:
    """Set metrics of shapes."""
    found = {name.split("/")[0] for line in comparison.lines for name in line.scores}
    metrics = [name for name in (CHAMFER, EMD, ONE_MINUS_IOU) if name in found]
    points = context.protocol
    only = ", which takes too long for all lines" if points.emd_rows else ""
    body: list[str | Table] = [
        f"{comparison.references} shapes of every line against as many unseen ones (splits "
        f"{', '.join(points.references)} as far as the data has them). {comparison.about} ({points.emd_points} points "
        f"for the earth mover's distance{only}); nothing is moved or scaled. Brackets hold 95 % intervals for sets of "
        "this size.",
        "MMD: how near the nearest sample comes to a real shape (lower is better, but a model that only makes average "
        "shapes does well). COV: share of real shapes that are some sample's nearest (higher is better; a perfect "
        "model does not reach 1, see its line). 1-NNA: how well samples can be told from real shapes by their nearest "
        "neighbour, 0.5 is ideal; its halves (real and fake shapes that are told apart) show what the mean hides.",
    ]
    for metric in metrics:
        columns = [metric, _SCALED[metric], "COV", "1-NNA", "real half", "fake half"]
        rows = [
            [
                line.row.label,
                _cell(line, f"{metric}/mmd", _UNITS[metric]),
                *(_cell(line, f"{metric}/{name}") for name in ("cov", "1nna", "1nna_real", "1nna_fake")),
            ]
            for line in comparison.lines
            if f"{metric}/mmd" in line.scores
        ]
        body += [f"{metric}: {_ABOUT[metric]}.", Table(columns, rows)]
    rows = [
        [line.row.label, _cell(line, "jsd", digits=4), str(line.empty), _cell(line, "novelty_ratio"),
         _cell(line, "suspicious_share")]
        for line in comparison.lines
    ]  # fmt: skip
    body += [
        "JSD compares where the points of all shapes of a set lie together (28 cells along an edge, base 2; 0 is "
        "equal). Empty shapes are counted here and are part of all scores. Novelty is the median distance of samples "
        "to their nearest training shape over that of unseen shapes: 1 is what a perfect model has, 0 is copying. "
        "Suspicious is what lies nearer to training data than 95 % of the unseen shapes; a perfect model has 0.05.",
        Table(["other", "JSD", "empty", "novelty ratio", "suspicious"], rows),
    ]
    main = next((line for line in comparison.lines if line.row.name in MAIN_ROWS), comparison.lines[-1])
    value = main.scores[f"{CHAMFER}/1nna"][0]
    perfect = comparison.lines[0].scores[f"{CHAMFER}/1nna"][0]
    return Section(
        "shapes",
        "Shapes against unseen data",
        f"shapes, 1-NNA on Chamfer distances: {value:.3f} (training data: {perfect:.3f}, ideal 0.5)",
        _facts(comparison),
        body,
        {"novelty_shapes": novelty_figure(comparison, "1 - IoU to the nearest training shape")}
        if comparison.distances
        else {},
        {"nearest_shapes": suspicious_sheet(context, main)} if main.pairs else {},
    )


def pictures_section(context: EvaluationContext, comparison: Comparison, network: str) -> Section:
    """Statistics of pictures in a network's features."""
    names = list(comparison.lines[0].scores)
    names = [name for name in names if name not in ("novelty_ratio", "suspicious_share")]
    per_object = f", {comparison.per_object} views of each" if context.target.kind.has_views else ""
    about = f" {comparison.about}" if comparison.about else ""
    is_inception = any(name.startswith("fid") for name in names)
    warning = (
        "These are Inception features."
        if is_inception
        else f"The features are those of {network}, a network with fixed random weights that needs no download. Its "
        "numbers are no FID and compare only with others of the same network, data and size; read them against the "
        "lines of training data and of training latents."
    )
    first_row = comparison.lines[0].row
    if first_row.kind != "data":
        warning += (
            " The data's pictures of training scenes were taken from other places than those of the unseen scenes, so "
            "they are no yardstick here and left out; the first line has the training scenes seen by the right cameras."
        )
    body: list[str | Table] = [
        f"Pictures of every line against {comparison.references} unseen instances{per_object}.{about} {warning} "
        "Brackets hold 95 % intervals for sets of this size; the Frechet distance is biased upward at small ones, so "
        "compare it with the first line only.",
        Table(
            ["pictures", "N", *names],
            [[line.row.label, str(line.count), *(_cell(line, name) for name in names)] for line in comparison.lines],
        ),
    ]
    if any("novelty_ratio" in line.scores for line in comparison.lines):
        body += [
            "Novelty: median root-mean-square difference of pixels to the nearest training instance, over that of "
            "unseen instances (1: as new as unseen data, 0: copies). Suspicious: share of samples nearer to training "
            "data than 95 % of unseen instances.",
            Table(
                ["novelty", "ratio", "suspicious"],
                [
                    [line.row.label, _cell(line, "novelty_ratio"), _cell(line, "suspicious_share")]
                    for line in comparison.lines
                    if "novelty_ratio" in line.scores
                ],
            ),
        ]
    main = next((line for line in comparison.lines if line.row.name in MAIN_ROWS), comparison.lines[-1])
    figures = {}
    if len(comparison.distances) > 1:
        figures["novelty_pictures"] = novelty_figure(
            comparison, "RMS pixel difference to the nearest training instance"
        )
    pictures = {"nearest_pictures": suspicious_sheet(context, main)} if main.pairs else {}
    first = names[0]
    return Section(
        "pictures",
        "Pictures against unseen data",
        f"pictures, {first}: {main.scores[first][0]:.4g} ({first_row.label}: "
        f"{comparison.lines[0].scores[first][0]:.4g})",
        {**_facts(comparison), "network": network},
        body,
        figures,
        pictures,
    )


def novelty_figure(comparison: Comparison, axis_title: str) -> Figure:
    """Shares of instances up to a distance from the training set: samples beside unseen data."""
    figure, axes = new_figure(1, 6.0, 3.8)
    for style, (name, distances) in zip(LINE_STYLES, comparison.distances.items()):
        ordered = np.sort(distances)
        axes[0].step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", label=name, **style)
    axes[0].set_xlabel(axis_title)
    axes[0].set_ylabel("share of instances")
    axes[0].set_ylim(0, 1.02)
    axes[0].legend(frameon=False, loc="lower right")
    axes[0].grid(alpha=0.3)
    return figure


def suspicious_sheet(context: EvaluationContext, line: Line) -> Image.Image:
    """The samples nearest to training data, each beside that training instance."""
    pipe = context.target.pipe
    latents = row_latents(context, line.row)
    pairs: list[tuple[str, tuple[Any, Any]]] = []
    for sample, training, distance in line.pairs:
        made = pipe.decode(latents[sample], f"sample{sample:03d}")
        name = context.target.pipe.names[training]
        pair = [context.target.kind.beside_data(item, _SHOWN_PIXELS) for item in (made, pipe.instance(name))]
        pairs.append((f"sample{sample:03d}, {name}: {distance:.3f}", (pair[0], pair[1])))
    return _pairs_sheet(pairs, "Samples nearest to training instances: sample, training instance (from its latent)")


def _pairs_sheet(pairs: list[tuple[str, tuple[Any, Any]]], title: str) -> Image.Image:
    cells = [image_grid([enlarge(picture, _SHOWN_PIXELS) for picture in pair], columns=2) for _, pair in pairs]
    rows = [cells[k : k + _PAIRS_ACROSS] for k in range(0, len(cells), _PAIRS_ACROSS)]
    names = [name for name, _ in pairs]
    captions = [names[k : k + _PAIRS_ACROSS] for k in range(0, len(names), _PAIRS_ACROSS)]
    return contact_sheet(rows, captions=captions, title=title)


def _cell(line: Line, name: str, unit: float = 1.0, digits: int = 3) -> str:
    if name not in line.scores:
        return "-"
    value, low, high = (unit * number for number in line.scores[name])
    text = f"{value:.{digits}g}"
    return text if np.isnan(low) else f"{text} [{low:.{digits}g}, {high:.{digits}g}]"


def _facts(comparison: Comparison) -> dict[str, Any]:
    return {
        "references": comparison.references,
        "lines": [line.facts() for line in comparison.lines],
        "distances_to_training": {name: np.sort(values).tolist() for name, values in comparison.distances.items()},
    }
