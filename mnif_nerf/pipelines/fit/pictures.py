"""Before and after in one picture: the observation, the mean object, the fit, and the truth where it is known."""

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

    seen, truth = fit.task.seen, unseen_truth(fit, truth)
    if isinstance(seen, PosedViews):
        rows, captions = _view_rows(fit, seen, truth if isinstance(truth, PosedViews) else None)
    elif isinstance(seen, Photo):
        rows, captions = _photo_rows(fit, seen, truth if isinstance(truth, PosedViews) else None, field_of_view)
    elif isinstance(seen, Picture):
        rows, captions = _picture_rows(fit, seen, truth if isinstance(truth, Picture) else None)
    else:
        rows, captions = _shape_rows(fit, seen, truth if isinstance(truth, Cells) else None)
    return contact_sheet(rows, captions)


def _view_rows(fit: Fit, seen: PosedViews, truth: PosedViews | None) -> tuple[list[list[Any]], list[list[str]]]:
    rows, captions = [], []
    for views, word in ((seen, "observed"), (truth, "not observed")):
        if views is None:
            continue
        for k in _some(len(views.images)):
            rows.append(
                [_large(part) for part in (views.images[k], see(fit.before, views, k), see(fit.best, views, k))]
            )
            captions.append([word, "start (mean)", "fit"])
    return rows, captions


def _photo_rows(
    fit: Fit, seen: Photo, truth: PosedViews | None, field_of_view: float | None
) -> tuple[list[list[Any]], list[list[str]]]:
    made = [photo_render(item, fit, 0, field_of_view) for item in (fit.before, fit.best)]
    around = [require_solid(fit.best).render(elevation, azimuth, _PIXELS) for elevation, azimuth in _ANGLES]
    row = [_large(seen.image), *(_large(each) for each in made), *around]
    rows, captions = [row], [["observed", "start (mean)", "fit, pose found", "fit, front-left", "fit, rear-right"]]
    if truth is not None:
        for k in _some(len(truth.images)):
            parts = (truth.images[k], see(fit.before, truth, k), see(fit.best, truth, k))
            rows.append([_large(part) for part in parts])
            captions.append(["not observed", "start (mean)", "fit"])
    return rows, captions


def _picture_rows(fit: Fit, seen: Picture, truth: Picture | None) -> tuple[list[list[Any]], list[list[str]]]:
    size = max(seen.pixels.shape[:2])
    pixels = over_white(seen.pixels)
    shown = np.repeat(pixels, 3 // pixels.shape[2], axis=2).copy()
    captions = ["observed", "start (mean)", "fit"]
    if seen.known is not None:
        shown[~seen.known] = (150, 170, 210)  # a colour that says: nothing is known here
    row = [shown, fit.before.picture(size), fit.best.picture(size)]
    if truth is not None and seen.known is not None and not seen.known.all():
        row.append(over_white(truth.pixels))
        captions.append("truth")
    return [[_large(part) for part in row]], [captions]


def _shape_rows(fit: Fit, seen: Cells | Scan, truth: Cells | None) -> tuple[list[list[Any]], list[list[str]]]:
    if isinstance(seen, Scan):
        place = np.clip(((seen.cloud.points + 0.5) * _SCAN_CELLS).astype(np.int64), 0, _SCAN_CELLS - 1)
        cells = np.zeros((_SCAN_CELLS,) * 3, dtype=bool)
        cells[tuple(place.T)] = True
    else:
        cells = seen.values
    partial = isinstance(seen, Scan) or (seen.known is not None and not bool(seen.known.all()))
    rows, captions = [], []
    for elevation, azimuth in _ANGLES:
        row = [
            _draw_mesh(seen.surface, elevation, azimuth, fit.best)
            if isinstance(seen, SeenMesh)
            else _draw(cells, elevation, azimuth, fit.best)
        ]
        row += [require_solid(item).render(elevation, azimuth, _PIXELS) for item in (fit.before, fit.best)]
        names = ["observed", "start (mean)", "fit"]
        if truth is not None and partial:
            row.append(_draw(truth.values, elevation, azimuth, fit.best))
            names.append("truth")
        rows.append(row)
        captions.append(names)
    return rows, captions


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
