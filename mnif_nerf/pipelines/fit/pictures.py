"""Before and after in one picture: the observation, the mean object, the fit or its answers, and the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mnif_nerf.data.geometry.raytrace import Surface, SurfaceRenderer
from mnif_nerf.data.observations.observations import Cells, Photo, Picture, PosedViews, Scan
from mnif_nerf.data.readers.images import composite_white
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.pipelines.fit.scores import photo_render, see, unseen_truth
from mnif_nerf.pipelines.fit.task import SeenMesh
from mnif_nerf.rendering.alpha import over_white
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.voxel_faces import render_cells

if TYPE_CHECKING:
    from PIL import Image

    from mnif_nerf.objects.base import NeuralObject
    from mnif_nerf.pipelines.fit.fitting import Fit

_ANGLES = ((20.0, 45.0), (20.0, 225.0))  # elevation and azimuth: from the front-left and the rear-right
_PIXELS = 160
_SCAN_CELLS = 96
_SHOWN = 2  # views of either kind
_ACROSS = 12  # pictures in a row
_CONTRAST = 4.0  # black is a deviation of a quarter of the range


def before_and_after(
    fit: Fit, truth: PosedViews | Cells | Picture | None = None, field_of_view: float | None = None
) -> Image.Image:
    """The sheet of a fit.

    Args:
        fit: what was found.
        truth: more than was observed; what the observation itself left over when None.
        field_of_view: as the fit of a photo was given it.
    """
    from mnif_nerf.export.pictures import contact_sheet

    around = "fit, pose found" if isinstance(fit.task.seen, Photo) else "fit"
    rows = _rows(fit, truth, field_of_view, {"start (mean)": fit.before, around: fit.best})
    return contact_sheet([[picture for _, picture in row] for row in rows], [[word for word, _ in row] for row in rows])


def answers_sheet(
    fit: Fit, truth: PosedViews | Cells | Picture | None = None, field_of_view: float | None = None
) -> Image.Image:
    """The observation, the fit and its answers, and where the answers differ; the arguments are `before_and_after`'s.

    The last picture of each row is darker where the answers differ more.
    """
    from mnif_nerf.export.pictures import contact_sheet, to_image

    named = {f"answer {k}": item for k, item in enumerate(fit.answers, start=1)}
    rows, captions = [], []
    for cells in _rows(fit, truth, field_of_view, {"fit": fit.best, **named}):
        drawn = [np.asarray(to_image(picture).convert("RGB"), np.float32) for word, picture in cells if word in named]
        if len(drawn) > 1:
            cells.append(("where they differ", _large(_differences(np.stack(drawn)))))
        for first in range(0, len(cells), _ACROSS):
            part = cells[first : first + _ACROSS]
            rows.append([picture for _, picture in part])
            captions.append([word for word, _ in part])
    return contact_sheet(rows, captions)


def _differences(pictures: np.ndarray) -> np.ndarray:
    """Pictures [n, H, W, 3] in [0, 255] to one uint8 [H, W, 3]: white where they are alike, dark where they differ."""
    deviation = pictures.std(axis=0).mean(axis=-1, keepdims=True)
    return np.repeat(255 - np.clip(_CONTRAST * deviation, 0, 255), 3, axis=-1).astype(np.uint8)


def _rows(
    fit: Fit,
    truth: PosedViews | Cells | Picture | None,
    field_of_view: float | None,
    items: dict[str, NeuralObject],
) -> list[list[tuple[str, Any]]]:
    """Rows of captions and pictures: the observation, some objects and, where it is known, the truth."""
    seen, truth = fit.task.seen, unseen_truth(fit, truth)
    if isinstance(seen, PosedViews):
        unseen = truth if isinstance(truth, PosedViews) else None
        return _view_rows("observed", seen, items) + _view_rows("not observed", unseen, items)
    if isinstance(seen, Photo):
        return _photo_rows(fit, seen, truth if isinstance(truth, PosedViews) else None, field_of_view, items)
    if isinstance(seen, Picture):
        return [_picture_row(seen, truth if isinstance(truth, Picture) else None, items)]
    return _shape_rows(seen, truth if isinstance(truth, Cells) else None, items)


def _view_rows(word: str, views: PosedViews | None, items: dict[str, NeuralObject]) -> list[list[tuple[str, Any]]]:
    rows: list[list[tuple[str, Any]]] = []
    if views is None:
        return rows
    for k in _some(len(views.images)):
        row = [(name, _large(see(item, views, k))) for name, item in items.items()]
        rows.append([(word, _large(views.images[k])), *row])
    return rows


def _photo_rows(
    fit: Fit,
    seen: Photo,
    truth: PosedViews | None,
    field_of_view: float | None,
    items: dict[str, NeuralObject],
) -> list[list[tuple[str, Any]]]:
    row: list[tuple[str, Any]] = [("observed", _large(seen.image))]
    row += [(name, _large(photo_render(item, fit, 0, field_of_view))) for name, item in items.items()]
    sides = list(zip(_ANGLES, ("front-left", "rear-right"), strict=True))
    if len(items) > 2:  # answers: each from both sides, below
        rows = [row]
        for angle, side in sides:
            parts = [(name, require_solid(item).render(*angle, _PIXELS)) for name, item in items.items()]
            rows.append([(side, np.full((_PIXELS, _PIXELS, 3), 255, np.uint8)), *parts])
    else:
        row += [(f"fit, {side}", require_solid(fit.best).render(*angle, _PIXELS)) for angle, side in sides]
        rows = [row]
    return rows + _view_rows("not observed", truth, items)


def _picture_row(seen: Picture, truth: Picture | None, items: dict[str, NeuralObject]) -> list[tuple[str, Any]]:
    size = max(seen.pixels.shape[:2])
    pixels = over_white(seen.pixels)
    shown = np.repeat(pixels, 3 // pixels.shape[2], axis=2).copy()
    if seen.known is not None:
        shown[~seen.known] = (150, 170, 210)  # a colour that says: nothing is known here
    row: list[tuple[str, Any]] = [("observed", shown)]
    row += [(name, item.picture(size)) for name, item in items.items()]
    if truth is not None and seen.known is not None and not seen.known.all():
        row.append(("truth", over_white(truth.pixels)))
    return [(name, _large(picture)) for name, picture in row]


def _shape_rows(seen: Cells | Scan, truth: Cells | None, items: dict[str, NeuralObject]) -> list[list[tuple[str, Any]]]:
    if isinstance(seen, Scan):
        place = np.clip(((seen.cloud.points + 0.5) * _SCAN_CELLS).astype(np.int64), 0, _SCAN_CELLS - 1)
        cells = np.zeros((_SCAN_CELLS,) * 3, dtype=bool)
        cells[tuple(place.T)] = True
    else:
        cells = seen.values
    partial = isinstance(seen, Scan) or (seen.known is not None and not bool(seen.known.all()))
    like, rows = next(iter(items.values())), []
    for elevation, azimuth in _ANGLES:
        shown = (
            _draw_mesh(seen.surface, elevation, azimuth, like)
            if isinstance(seen, SeenMesh)
            else _draw(cells, elevation, azimuth, like)
        )
        row: list[tuple[str, Any]] = [("observed", shown)]
        row += [(name, require_solid(item).render(elevation, azimuth, _PIXELS)) for name, item in items.items()]
        if truth is not None and partial:
            row.append(("truth", _draw(truth.values, elevation, azimuth, like)))
        rows.append(row)
    return rows


def _draw_mesh(surface: Surface, elevation: float, azimuth: float, like: NeuralObject) -> np.ndarray:
    camera = Intrinsics.default(_PIXELS, like.camera["focal_over_width"])
    pose = orbit_pose(elevation, azimuth, like.camera["radius"]).numpy()
    return composite_white(SurfaceRenderer(surface).render(pose, camera)[None])[0]


def _draw(cells: np.ndarray, elevation: float, azimuth: float, like: NeuralObject) -> torch.Tensor:
    camera = Intrinsics.default(_PIXELS, like.camera["focal_over_width"])
    return render_cells(torch.from_numpy(cells), orbit_pose(elevation, azimuth, like.camera["radius"]), camera)


def _large(picture: Any) -> Image.Image:
    from mnif_nerf.export.pictures import enlarge

    return enlarge(picture, _PIXELS)


def _some(count: int) -> list[int]:
    from mnif_nerf.data.sampling.views import evenly_spaced

    return [int(k) for k in evenly_spaced(count, _SHOWN)]
