"""Contact sheets: grids of images with captions, row labels and a title."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_file

_PADDING = 6
_INK = (40, 40, 40)
_FAINT = (110, 110, 110)
_MARK = (200, 90, 60)


def to_image(picture: Any) -> Image.Image:
    """A PIL RGB image from a PIL image, or from an array or tensor (uint8, or float in [0, 1]).

    PIL images are laid on white where they are transparent. Arrays are `[H, W, 3]`, or grey as `[H, W, 1]` or `[H, W]`.

    Raises:
        MNIFError: another shape.
    """
    if isinstance(picture, Image.Image):
        if picture.mode == "RGBA":
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        return picture.convert("RGB")
    array = np.asarray(picture.detach().cpu() if hasattr(picture, "detach") else picture)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise MNIFError(f"a picture of shape {list(array.shape)} cannot be drawn; expected [H, W, 3], or [H, W] grey.")
    if array.dtype != np.uint8:
        array = np.rint(np.nan_to_num(array.astype(np.float32)).clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.repeat(array, 3 // array.shape[2], axis=2))


def enlarge(picture: Any, edge: int = 64) -> Image.Image:
    """A small picture by the least whole factor that makes its shorter edge `edge` pixels or more.

    Pixels stay squares (nearest neighbour); a picture that is large enough already is left as it is.

    Args:
        picture: as `to_image` takes it.
        edge: in pixels.
    """
    image = to_image(picture)
    factor = max(1, -(-edge // min(image.size)))
    return (
        image if factor == 1 else image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    )


def contact_sheet(
    rows: Sequence[Sequence[Any]],
    captions: Sequence[Sequence[str]] | None = None,
    row_labels: Sequence[str] | None = None,
    title: str = "",
) -> Image.Image:
    """Pictures in a grid on white.

    Args:
        rows: pictures as `to_image` takes them; rows may differ in length. Every cell has the size of the
            largest.
        captions: one text under each picture, cut to the cell's width.
        row_labels: one text above each row.
        title: above everything.

    Returns:
        an RGB image.

    Raises:
        MNIFError: no pictures, or captions or labels that do not fit the rows.
    """
    images = [[to_image(picture) for picture in row] for row in rows]
    if not any(images):
        raise MNIFError("a contact sheet needs at least one picture.")
    if captions is not None and [len(row) for row in captions] != [len(row) for row in images]:
        raise MNIFError("captions do not fit the pictures; give one per picture.")
    if row_labels is not None and len(row_labels) != len(images):
        raise MNIFError(f"{len(row_labels)} row labels for {len(images)} rows; give one per row.")
    cell_width = max(image.width for row in images for image in row)
    cell_height = max(image.height for row in images for image in row)
    size = max(10, min(16, cell_width // 9))
    small, large = _font(size), _font(size + 6)
    line = size + 4
    label_height = line if row_labels is not None else 0
    caption_height = line if captions is not None else 0
    row_height = label_height + cell_height + caption_height + _PADDING
    top = _PADDING + (large.getbbox("Ag")[3] + _PADDING if title else 0)
    content_width = max(map(len, images)) * (cell_width + _PADDING)
    width = max(content_width, int(large.getlength(title)) if title else 0) + _PADDING
    sheet = Image.new("RGB", (int(width) + _PADDING, int(top + row_height * len(images) + _PADDING)), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_PADDING, _PADDING), title, fill=_INK, font=large)
    for r, row in enumerate(images):
        y = int(top + r * row_height)
        if row_labels is not None:
            draw.text((_PADDING, y), row_labels[r], fill=_INK, font=small)
        for c, image in enumerate(row):
            x = _PADDING + c * (cell_width + _PADDING)
            sheet.paste(image, (x, y + label_height))
            if captions is not None:
                text = _fit(captions[r][c], small, cell_width)
                draw.text((x, y + label_height + cell_height), text, fill=_FAINT, font=small)
    return sheet


def with_corner(picture: Any) -> Image.Image:
    """A copy of a picture with a small triangle in its upper right corner, which marks it without hiding anything."""
    image = to_image(picture).copy()
    edge = max(4, image.height // 12)
    right = image.width - 1
    ImageDraw.Draw(image).polygon([(right - edge, 0), (right, 0), (right, edge)], fill=_MARK)
    return image


def comparison_rows(groups: Mapping[str, Sequence[Any]], title: str = "") -> Image.Image:
    """One labelled row per group, so that columns can be compared: {"truth": [...], "model": [...]}."""
    return contact_sheet(list(groups.values()), row_labels=list(groups), title=title)


def image_grid(pictures: Sequence[Any], columns: int | None = None) -> Image.Image:
    """Pictures of one size side by side without gaps or text; nearly square unless `columns` is given."""
    images = [to_image(picture) for picture in pictures]
    if not images:
        raise MNIFError("a grid needs at least one picture.")
    columns = columns or grid_columns(len(images))
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for index, image in enumerate(images):
        grid.paste(image, (index % columns * width, index // columns * height))
    return grid


def grid_columns(count: int) -> int:
    """Columns of a nearly square grid of `count` cells, wider than high."""
    return max(1, int(np.ceil(np.sqrt(count))))


def save_png(picture: Any, path: Path | str) -> Path:
    """Write a picture as PNG, atomically; a PIL image that is grey or has alpha stays so.

    Raises:
        MNIFError: another suffix than .png, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise MNIFError(f"{path}: pictures are written as PNG; use the suffix .png.")
    with atomic_file(path) as temporary:
        as_it_is = isinstance(picture, Image.Image) and picture.mode in ("L", "RGBA")
        (picture if as_it_is else to_image(picture)).save(temporary, format="PNG")
    return path


def png_bytes(picture: Any) -> bytes:
    """A picture as the content of a PNG file."""
    content = io.BytesIO()
    to_image(picture).save(content, format="PNG")
    return content.getvalue()


def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):  # Pillow built without FreeType has its small bitmap font only
        return ImageFont.load_default()


def _fit(text: str, font: Any, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
