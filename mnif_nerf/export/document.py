"""Reports made of sections: numbers as JSON, text and tables as Markdown and as one HTML page, figures beside them."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.export.figures import save_figure
from mnif_nerf.export.pictures import save_png
from mnif_nerf.files import atomic_file, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

_DIGITS = 6  # significant ones: what lies below differs between processors
# Nothing runs and nothing is fetched from elsewhere, whatever the names of a stranger's instances say.
_POLICY = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'"
_STYLE = (
    "body{font-family:sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222;line-height:1.45}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}"
    "td,th{border-bottom:1px solid #ccc;padding:.25rem .6rem;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


@dataclass(frozen=True)
class Table:
    """Rows of text under column titles."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in Markdown; the first column is aligned to the left, the others to the right."""
        lines = [list(self.columns), ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        key: key of its numbers in the JSON file.
        title: title of its part of the text.
        summary: one sentence for the console.
        facts: its numbers, JSON-ready.
        body: paragraphs (with **bold** and *slanted*) and tables; the figures follow.
        figures: by file name without suffix.
        pictures: the same, of pictures.
    """

    key: str
    title: str
    summary: str
    facts: dict[str, Any]
    body: Sequence[str | Table]
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    pictures: Mapping[str, Image.Image] = dataclasses.field(default_factory=dict)


def write_document(
    folder: Path | str,
    name: str,
    title: str,
    about: Mapping[str, Any],
    lead: Sequence[str],
    sections: Sequence[Section],
) -> list[Path]:
    """Write `<name>.json`, report.md, report.html and all figures, each whole or not at all; the JSON comes last.

    Floats in the JSON have six significant digits, and nothing in it depends on the time: equal results give equal
    files.

    Args:
        folder: where to.
        name: name of the JSON file, without suffix.
        title: title of the report.
        about: the beginning of the JSON file: format, settings, versions.
        lead: paragraphs before the first section.
        sections: in order.

    Returns:
        the files' paths.

    Raises:
        MNIFError: a folder that cannot be written.
    """
    from markdown_it import MarkdownIt

    folder = Path(folder)
    paths: list[Path] = []
    text = [f"# {title}\n", *(f"{line}\n" for line in lead)]
    for section in sections:
        text.append(f"## {section.title}\n")
        text += [block.markdown() if isinstance(block, Table) else f"{block}\n" for block in section.body]
        for figure_name, figure in section.figures.items():
            paths += save_figure(figure, folder, figure_name)
        for picture_name, picture in section.pictures.items():
            paths.append(save_png(picture, folder / f"{picture_name}.png"))
        text += [f"![{shown}]({shown}.png)\n" for shown in (*section.figures, *section.pictures)]
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    head = f"<!doctype html><meta charset='utf-8'>{policy}<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    for path, content in (
        (folder / "report.md", "\n".join(text)),
        (folder / "report.html", head + MarkdownIt("js-default").render("\n".join(text))),
    ):
        with atomic_file(path) as temporary:
            temporary.write_text(content, encoding="utf-8", errors="replace")
        paths.append(path)
    facts = {section.key: section.facts for section in sections}
    write_json(folder / f"{name}.json", rounded({**about, **facts}))
    return [*paths, folder / f"{name}.json"]


def rounded(value: Any) -> Any:
    """`value` with every float in it, however deep, to six significant digits; None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
