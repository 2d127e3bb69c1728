"""Figures of a diagnosis, readable in grey: what differs, differs in line, marker or hatching.

matplotlib is imported where it is used; figures are made without pyplot, so nothing is kept from one to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnif_nerf.diagnosis.smoothness import KINDS
from mnif_nerf.export.figures import GREYS, LINES, MARKERS, new_figure
from mnif_nerf.metrics.bases import DEAD_BELOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

    from mnif_nerf.diagnosis.bases import BasesDiagnosis
    from mnif_nerf.diagnosis.smoothness import SmoothnessDiagnosis, SmoothnessSettings
    from mnif_nerf.pipelines.generation import MNIFPipeline

_MEASURES = {"loose": "share of the volume in loose parts", "nearest": "distance to the nearest training latent"}
_STRIPS = 2  # paths of each kind that are pictured


def plot_spectra(diagnosis: BasesDiagnosis) -> Figure:
    """Singular values of bases and of used coefficients, a line per layer."""
    figure, (left, right) = new_figure(2)
    layers = diagnosis.layers
    _spectra(left, [layer.weights.spectrum.numpy() for layer in layers], "weights of the bases")
    values = diagnosis.outputs.spectrum.numpy()
    left.plot(
        np.arange(1, len(values) + 1), values / values.max(), color="0.65", linewidth=4, label="outputs", zorder=0
    )
    _spectra(right, [layer.coefficients.spectrum.numpy() for layer in layers], "coefficients the instances use")
    left.legend(fontsize="small")
    return figure


def plot_use(diagnosis: BasesDiagnosis) -> Figure:
    """How many bases of each layer are used, the same for all, or dead; and how much every one adds."""
    figure, (left, right) = new_figure(2)
    uses = [layer.use for layer in diagnosis.layers]
    dead = np.array([int(use.dead().sum()) for use in uses])
    static = np.array([int(use.static().sum()) for use in uses])
    used = np.array([len(use.total) for use in uses]) - dead - static
    at, floor = np.arange(1, len(uses) + 1), np.zeros(len(uses))
    kinds = (
        (used, "differ between instances", "white", ""),
        (static, "the same for all (static)", "0.75", "//"),
        (dead, "dead", "0.25", "xx"),
    )
    for count, label, color, hatch in kinds:
        left.bar(at, count, bottom=floor, label=label, color=color, edgecolor="black", hatch=hatch, linewidth=0.8)
        floor = floor + count
    left.set(xlabel="layer", ylabel="bases", title="bases by their use", xticks=at, ylim=(0, 1.35 * floor.max()))
    left.legend(fontsize="small", loc="upper center", ncols=1)
    typical = [use.total.square().mean().sqrt().clamp(min=1e-30) for use in uses]
    for layer, (use, size) in enumerate(zip(uses, typical)):
        for values, marker, color, shift in ((use.total, "o", "0.0", -0.14), (use.spread, "x", "0.45", 0.14)):
            heights = (values / size).clamp(min=1e-3).numpy()
            right.plot(
                np.full(len(heights), at[layer] + shift), heights, marker, color=color, markersize=4, fillstyle="none"
            )
    right.plot([], [], "o", color="0.0", fillstyle="none", label="in all")
    right.plot([], [], "x", color="0.45", label="difference between instances")
    right.axhline(
        DEAD_BELOW, color="black", linestyle="--", linewidth=1, label="limit of dead (in all), static (difference)"
    )
    right.set(yscale="log", xlabel="layer", ylabel="share of a typical basis", title="what each basis adds", xticks=at)
    right.set_ylim(top=60)
    right.legend(fontsize="small", loc="upper center")
    return figure


def plot_correlations(diagnosis: BasesDiagnosis) -> Figure:
    """|Correlation| of every pair of basis networks' outputs, as a picture."""
    figure, (axis,) = new_figure(1, width=4.8, height=4.0)
    picture = axis.imshow(
        diagnosis.output_correlations.abs().numpy(), cmap="Greys", vmin=0.0, vmax=1.0, interpolation="nearest"
    )
    axis.set(xlabel="basis", ylabel="basis", title="|correlation| of the bases' outputs")
    figure.colorbar(picture, ax=axis)
    return figure


def plot_lipschitz(diagnosis: SmoothnessDiagnosis) -> Figure:
    """Local Lipschitz constants of instances and of the middles of paths, and against the quality of samples."""
    relations = _relations_to_show(diagnosis)
    figure, axes = new_figure(1 + len(relations), width=4.4)
    groups = [(name, group.lipschitz.numpy()) for name, group in diagnosis.instances.items()]
    groups += [
        ("middle:\n" + kind.replace(" to ", "\nto "), paths.lipschitz.numpy())
        for kind, paths in diagnosis.paths.items()
    ]
    axes[0].boxplot([values for _, values in groups], widths=0.6, medianprops={"color": "black", "linewidth": 2})
    axes[0].set_xticks(range(1, len(groups) + 1), [name for name, _ in groups], fontsize="x-small")
    axes[0].set(ylabel="local Lipschitz constant", title="how fast values can change", ylim=(0, None))
    for axis, relation in zip(axes[1:], relations):
        instances = diagnosis.instances[relation["group"]]
        axis.plot(
            instances.lipschitz.numpy(),
            instances.measures[relation["measure"]],
            "o",
            color="black",
            fillstyle="none",
        )
        found = "" if relation["rho"] is None else f": rho {relation['rho']:.2f}, p {relation['p']:.2g}"
        axis.set(xlabel="local Lipschitz constant", ylabel=_MEASURES[relation["measure"]])
        axis.set_title(relation["group"] + found)
    return figure


def plot_paths(diagnosis: SmoothnessDiagnosis) -> Figure:
    """Along paths: curvature (medians, and the quartiles of one kind), and means of what is measured of the shapes."""
    measures = next(iter(diagnosis.paths.values())).measures
    shown = [name for name in _MEASURES if name in measures]
    figure, axes = new_figure(1 + len(shown), width=4.4)
    for (kind, paths), line, marker, grey in zip(diagnosis.paths.items(), LINES, MARKERS, GREYS):
        style: dict[str, Any] = {"linestyle": line, "marker": marker, "color": grey, "markersize": 4}
        bend = paths.curvature.numpy()
        at = np.linspace(0, 1, bend.shape[1])
        low, middle, high = np.quantile(bend, (0.25, 0.5, 0.75), axis=0)
        axes[0].plot(at, middle, label=kind, **style)
        if kind == "training":
            axes[0].fill_between(at, low, high, color="0.85", linewidth=0, label="its quartiles", zorder=0)
        for axis, name in zip(axes[1:], shown):
            values = np.nan_to_num(paths.measures[name]).mean(axis=0)
            axis.plot(np.linspace(0, 1, len(values)), values, **style)
    for axis, name in zip(axes[1:], shown):
        axis.set(xlabel="position on the path", ylabel=_MEASURES[name], title="mean", ylim=(0, None))
    axes[0].set(xlabel="position on the path", ylabel="curvature", title="median", ylim=(0, None))
    axes[0].legend(fontsize="small")
    return figure


def interpolation_strips(
    pipe: MNIFPipeline, diagnosis: SmoothnessDiagnosis, size: int = 128, advance: Callable[[], None] | None = None
) -> Image.Image:
    """The first two paths of every kind as rows of pictures, from one end to the other.

    Args:
        pipe: the model.
        diagnosis: diagnosis of that model.
        size: pixels along an edge of one picture.
        advance: called once per picture, `strips_steps` times.
    """
    from mnif_nerf.export.pictures import contact_sheet, enlarge

    rows, labels, kind = [], [], pipe.model.kind
    for name, paths in diagnosis.paths.items():
        for index, latents in enumerate(paths.latents[:_STRIPS]):
            pictures = []
            for step, latent in enumerate(latents):
                item = pipe.decode(latent, f"step{step}")
                seen = item.picture(size) if kind.has_views else kind.beside_data(item, size)
                pictures.append(enlarge(seen, size))
                if advance is not None:
                    advance()
            rows.append(pictures)
            turn, way = number(float(paths.degrees[index]), 0), number(float(paths.detour[index]), 2)
            labels.append(f"{name}: turns by {turn}°, {way} times the straight distance")
    if kind.has_views:
        rows = _without_margins(rows)
    return contact_sheet(rows, row_labels=labels, title="straight paths between latents")


def strips_steps(pipe: MNIFPipeline, settings: SmoothnessSettings) -> int:
    """How often `interpolation_strips` advances, for the diagnosis of these settings."""
    kinds = 1 if pipe.prior is None else len(KINDS)
    return kinds * min(_STRIPS, settings.num_pairs) * ((settings.positions + 1) // 2)


def number(value: float, digits: int) -> str:
    """`value` with that many decimals; very large ones, as broken models have, with a power of ten."""
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.1e}"


def _spectra(axis: Axes, spectra: Sequence[np.ndarray], title: str) -> None:
    for layer, values in enumerate(spectra):
        values = values / max(float(values.max()), 1e-30)
        kept = values > 1e-6  # below lies rounding
        axis.plot(
            np.arange(1, len(values) + 1)[kept],
            values[kept],
            linestyle=LINES[layer % len(LINES)],
            marker=MARKERS[layer % len(MARKERS)],
            color=GREYS[layer % len(GREYS)],
            markersize=4,
            fillstyle="none",
            markevery=max(1, len(values) // 12),
            label=f"layer {layer + 1}",
        )
    axis.set(yscale="log", xlabel="number of the singular value", ylabel="size, relative to the largest", title=title)


def _relations_to_show(diagnosis: SmoothnessDiagnosis) -> list[dict[str, Any]]:
    """Those of the samples, or of the training instances where there are no samples."""
    group = "samples" if "samples" in diagnosis.instances else "training"
    return [row for row in diagnosis.relations() if row["group"] == group]


def _without_margins(rows: list[list[Image.Image]], margin: int = 4) -> list[list[Image.Image]]:
    """Pictures of one size without what is white at the edges of all of them, but for `margin` pixels."""
    used = np.any([np.asarray(picture).min(axis=2) < 255 for row in rows for picture in row], axis=0)
    if not used.any():
        return rows
    down, across = used.any(axis=1).nonzero()[0], used.any(axis=0).nonzero()[0]
    box = (across[0] - margin, down[0] - margin, across[-1] + 1 + margin, down[-1] + 1 + margin)
    width, height = rows[0][0].size
    cut = (max(0, int(box[0])), max(0, int(box[1])), min(width, int(box[2])), min(height, int(box[3])))
    return [[picture.crop(cut) for picture in row] for row in rows]
