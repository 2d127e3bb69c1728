"""Figures of reports, readable in grey: what differs, differs in line, marker or hatching.

matplotlib is imported where it is used; figures are made without pyplot, so nothing is kept from one to the next.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.errors import require
from mnif_nerf.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "x")
GREYS = ("0.0", "0.3", "0.5", "0.6", "0.15", "0.4")
LINE_STYLES: list[dict[str, Any]] = [{"linestyle": line, "color": grey} for line, grey in zip(LINES, GREYS)]


def check_matplotlib() -> None:
    """Refuse to begin long work whose figures cannot be drawn.

    Raises:
        MNIFError: matplotlib is not installed.
    """
    require("matplotlib", "plots")


def new_figure(columns: int = 1, width: float = 5.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """An empty figure with plots side by side.

    Args:
        columns: how many plots.
        width, height: inches of one plot.

    Raises:
        MNIFError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def save_figure(figure: Figure, folder: Path | str, name: str) -> list[Path]:
    """Write a figure as `<name>.png` and `<name>.svg`, each whole or not at all; the same figure gives the same files.

    Args:
        figure: a matplotlib figure.
        folder: made where it does not exist.
        name: without suffix.

    Returns:
        both paths.

    Raises:
        MNIFError: a folder that cannot be written.
    """
    import matplotlib

    # Without these the SVG holds the time, and names that are drawn at random.
    metadata: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    paths = [Path(folder) / f"{name}.{kind}" for kind in metadata]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once for both
    with matplotlib.rc_context({"svg.hashsalt": name}):
        for path, (kind, about) in zip(paths, metadata.items()):
            with atomic_file(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=_DPI, metadata=about)
    return paths
