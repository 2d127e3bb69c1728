"""The results of a sweep as a table, as curves, and as rank correlations between diversity and quality."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from mnif_nerf import modalities
from mnif_nerf.export.document import Table
from mnif_nerf.export.figures import check_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mnif_nerf.modalities.traits import SweepScores

# Latent sizes differ in marker and shade, kinds of coefficients in the line: none of it needs a colour.
_MARKERS = "osD^vPX"
_LINES = {"layer-wise": "-", "network-wise": "--"}

# Key of a row, title, digits in the table.
_COMMON: tuple[tuple[str, str, int], ...] = (
    ("output_rank", "effective rank of the bases' outputs", 1),
    ("output_correlation", "mean absolute correlation of the bases' outputs", 2),
    ("weight_rank", "effective rank of the bases' weights", 1),
    ("coefficient_rank", "effective rank of the coefficients", 1),
    ("dead", "share of dead bases", 2),
    ("train_seconds", "seconds of training", 1),
)


def sweep_table(rows: list[dict[str, Any]]) -> tuple[Table, str]:
    """The rows of `run_sweep`, and a sentence with the yardstick of their samples."""
    scores = (*_scores(rows).quality, *_COMMON)
    lines = []
    for row in rows:
        first = [str(row[name]) for name in ("bases", "latent_dim", "coefficients", "parameters")]
        lines.append(first + [f"{row[key]:.{digits}f}" for key, _, digits in scores])
    columns = ["bases", "latent size", "coefficients", "parameters", *(title for _, title, _ in scores)]
    real = {key: rows[0][key.replace("sample_", "real_")] for key, _, _ in scores if key.startswith("sample_")}
    yardstick = ", ".join(f"{key.removeprefix('sample_')} {value:.4f}" for key, value in real.items())
    return Table(columns, lines), f"Training instances in the place of samples: {yardstick}."


def relations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How diversity of the bases goes with quality over the grid: Spearman's rank correlation.

    Returns:
        "diversity" and "quality" (keys of a row), "correlation" in [-1, 1] over all grid points with more than one
        basis, or None where one of the two is the same at all of them. Quality is turned so that more is better.
    """
    from scipy.stats import spearmanr

    several = [row for row in rows if row["bases"] > 1]
    judged = _scores(rows)
    found = []
    for diversity in ("output_rank", "output_correlation", "weight_rank", "coefficient_rank"):
        for quality in (judged.reconstruction, judged.generation):
            pairs = [(row[diversity], judged.goodness(quality, row[quality])) for row in several]
            varies = all(len({pair[side] for pair in pairs}) > 1 for side in (0, 1))
            correlation = float(spearmanr(*zip(*pairs)).statistic) if varies else None
            found.append({"diversity": diversity, "quality": quality, "correlation": correlation})
    return found


def relations_table(rows: list[dict[str, Any]]) -> Table:
    """`relations` as a table."""
    titles = {key: title for key, title, _ in (*_scores(rows).quality, *_COMMON)}
    lines = [
        [
            titles[one["diversity"]],
            titles[one["quality"]],
            "-" if one["correlation"] is None else f"{one['correlation']:+.2f}",
        ]
        for one in relations(rows)
    ]
    return Table(["diversity", "quality (turned so that more is better)", "rank correlation"], lines)


def draw_curves(rows: list[dict[str, Any]]) -> Figure:
    """Curves over the number of bases, one line for each latent size and kind of coefficients; readable in grey.

    Where samples have a yardstick (training instances in their place) it is a dotted line.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    judged = _scores(rows)
    titles = {key: title for key, title, _ in (*judged.quality, *_COMMON)}
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    panels = figure.subplots(2, 3).flat
    bases = sorted({row["bases"] for row in rows})
    for panel, key in zip(panels, judged.curves):
        _draw_lines(panel, rows, key)
        panel.set_title(titles[key], fontsize=10)
        panel.set_xscale("log", base=2)
        panel.set_xticks(bases, [str(count) for count in bases])
        panel.set_xlabel("number of bases")
        panel.grid(color="0.9")
        real = rows[0].get(key.replace("sample_", "real_"))
        if key.startswith("sample_") and real is not None:
            panel.axhline(real, color="0.3", linestyle=":", label="training instances")
    handles = {text: line for panel in figure.axes for line, text in zip(*panel.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def draw_relations(rows: list[dict[str, Any]]) -> Figure:
    """Effective rank of the bases' outputs against the quality of reconstructions and of samples."""
    check_matplotlib()
    from matplotlib.figure import Figure

    judged = _scores(rows)
    titles = {key: title for key, title, _ in (*judged.quality, *_COMMON)}
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for panel, key in zip(figure.subplots(1, 2), (judged.reconstruction, judged.generation)):
        for latent_dim, coefficients, part in _lines(rows):
            panel.plot(
                [row["output_rank"] for row in part],
                [row[key] for row in part],
                label=f"latents of {latent_dim}, {coefficients}",
                **_style(rows, latent_dim, coefficients) | {"linestyle": ":", "linewidth": 0.7},
            )
        panel.set_xlabel("effective rank of the bases' outputs")
        panel.set_title(titles[key], fontsize=10)
        panel.grid(color="0.9")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _scores(rows: list[dict[str, Any]]) -> SweepScores:
    """How the modality is judged, by what its data has: colours may be missing."""
    judged = modalities.get(rows[0]["modality"]).sweep
    return dataclasses.replace(judged, quality=tuple(part for part in judged.quality if part[0] in rows[0]))


def _lines(rows: list[dict[str, Any]]) -> list[tuple[int, str, list[dict[str, Any]]]]:
    """Latent size, coefficients, and their rows by number of bases."""
    kinds = sorted({(row["latent_dim"], row["coefficients"]) for row in rows})
    return [
        (latent_dim, coefficients, sorted(part, key=lambda row: row["bases"]))
        for latent_dim, coefficients in kinds
        if (part := [row for row in rows if (row["latent_dim"], row["coefficients"]) == (latent_dim, coefficients)])
    ]


def _style(rows: list[dict[str, Any]], latent_dim: int, coefficients: str) -> dict[str, Any]:
    sizes = sorted({row["latent_dim"] for row in rows})
    place = sizes.index(latent_dim)
    shade = 0.65 * (1 - place / max(len(sizes) - 1, 1))
    return {
        "color": str(shade),
        "marker": _MARKERS[place % len(_MARKERS)],
        "markersize": 5,
        "markerfacecolor": str(shade) if coefficients == "layer-wise" else "white",
        "linestyle": _LINES[coefficients],
    }


def _draw_lines(panel: Any, rows: list[dict[str, Any]], key: str) -> None:
    for latent_dim, coefficients, part in _lines(rows):
        values = [row[key] if math.isfinite(row[key]) else math.nan for row in part]
        panel.plot(
            [row["bases"] for row in part],
            values,
            label=f"latents of {latent_dim}, {coefficients}",
            **_style(rows, latent_dim, coefficients),
        )
