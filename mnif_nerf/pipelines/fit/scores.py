"""How well a fit explains what was seen and, where it is known, what was not; and whether its starts agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mnif_nerf import modalities
from mnif_nerf.data.observations.observations import Cells, Photo, Picture, PosedViews, Scan
from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics.grids import iou
from mnif_nerf.metrics.images import psnr
from mnif_nerf.objects.image import NeuralImage
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.pipelines.fit.preparation import photo_intrinsics
from mnif_nerf.pipelines.fit.task import SeenMesh
from mnif_nerf.rendering.cameras import Intrinsics

if TYPE_CHECKING:
    from mnif_nerf.objects.base import NeuralObject
    from mnif_nerf.pipelines.fit.fitting import Fit

_MOST_CELLS = 128  # grids are scored at this resolution or below
_MESH_CELLS = 64
_NEARLY = 1.5  # starts whose loss is within this factor of the best one's explain the observation as well


def scores(
    fit: Fit, truth: PosedViews | Cells | Picture | None = None, field_of_view: float | None = None
) -> dict[str, Any]:
    """Numbers of the mean object ("before") and of the best one ("fit").

    Args:
        fit: the fit.
        truth: more than was observed; what the observation itself left over when None.
        field_of_view: as the fit of a photo was given it.

    Returns:
        {"before": {...}, "fit": {...}}: PSNR in dB of pictures (`psnr_seen`, `psnr_unseen`), IoU of voxels, and of
        scans the mean distance of the points from the surface (`distance_seen`, world units); of coloured meshes that
        are fitted to by points, the PSNR of their surface's colours (`color_seen`, dB).
    """
    truth = unseen_truth(fit, truth)
    result = {}
    for key, item in (("before", fit.before), ("fit", fit.best)):
        result[key] = scores_of(item, fit, truth, field_of_view)
    return result


def unseen_truth(fit: Fit, truth: PosedViews | Cells | Picture | None) -> PosedViews | Cells | Picture | None:
    """`truth`, or what the observation left over; without the pictures that the fit has seen."""
    truth, seen = truth or fit.task.truth, fit.task.seen
    if not isinstance(truth, PosedViews) or not isinstance(seen, (PosedViews, Photo)):
        return truth
    known = seen.images if isinstance(seen, PosedViews) else seen.image[None]
    new = [k for k, image in enumerate(truth.images) if not any(np.array_equal(image, each) for each in known)]
    return truth.take(np.array(new)) if new else None


def scores_of(
    item: NeuralObject, fit: Fit, truth: PosedViews | Cells | Picture | None, field_of_view: float | None
) -> dict[str, float]:
    """Numbers of one object, as `scores` has them; `truth` without what the fit has seen (`unseen_truth`)."""
    seen, found = fit.task.seen, {}
    if isinstance(seen, PosedViews):
        found["psnr_seen"] = views_psnr(item, seen)
    elif isinstance(seen, Photo):
        rendered = photo_render(item, fit, 0, field_of_view)
        found["psnr_seen"] = float(psnr(rendered, torch.from_numpy(seen.image.copy()).float() / 255))
    elif isinstance(seen, Cells):
        found.update(cells_scores(item, seen, truth if isinstance(truth, Cells) else None))
        if isinstance(seen, SeenMesh) and seen.points.color is not None and require_solid(item).has_color:
            colors = require_solid(item).surface_colors(seen.points.points, seen.points.normals)
            found["color_seen"] = float(psnr(torch.from_numpy(colors), torch.from_numpy(seen.points.color)))
    elif isinstance(seen, Scan):
        distance = surface_distance(item, seen.cloud.points)
        if distance is not None:
            found["distance_seen"] = distance
    else:
        found.update(picture_scores(item, seen, truth if isinstance(truth, Picture) else None))
    if isinstance(truth, PosedViews) and isinstance(seen, (PosedViews, Photo)):
        found["psnr_unseen"] = views_psnr(item, truth)
    if isinstance(truth, Cells) and not isinstance(seen, Cells):
        found["iou"] = grid_iou(item, truth.values, truth.known)
    return found


def views_psnr(item: NeuralObject, views: PosedViews) -> float:
    """Mean over the views of the PSNR, dB."""
    values = [
        float(psnr(see(item, views, k), torch.from_numpy(views.images[k].copy()).float() / 255))
        for k in range(len(views.images))
    ]
    return float(np.mean(values))


def see(item: NeuralObject, views: PosedViews, view: int) -> torch.Tensor:
    """The object through the camera of a view: `[H, W, 3]` in [0, 1]."""
    height, width = views.images.shape[1:3]
    focal, cx, cy = (float(value) for value in views.intrinsics[view])
    return _view(item, torch.from_numpy(np.array(views.poses[view])), Intrinsics(focal, cx, cy, height, width))


def photo_render(item: NeuralObject, fit: Fit, which: int = 0, field_of_view: float | None = None) -> torch.Tensor:
    """An object through the camera that was found with hypothesis `which`: `[H, W, 3]` in [0, 1]."""
    assert fit.poses is not None
    assert isinstance(fit.task.seen, Photo)
    camera = photo_intrinsics(fit.task.seen, item.camera["focal_over_width"], field_of_view)
    return _view(item, fit.poses[which], camera)


def _view(item: NeuralObject, pose: torch.Tensor, camera: Intrinsics) -> torch.Tensor:
    picture = require_solid(item).view(pose, camera)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)


def cells_scores(item: NeuralObject, seen: Cells, truth: Cells | None) -> dict[str, float]:
    """IoU over the cells that were seen and, given a truth, over the others and over all.

    Cells that are unknown in the truth count nowhere.

    Raises:
        MNIFError: a truth of another size.
    """
    made, known = (
        torch.from_numpy(require_solid(item).occupancy_in_cube(min(len(seen.values), _MOST_CELLS))),
        seen.known,
    )
    values = torch.from_numpy(_reduced(seen.values, len(made)))
    mask = torch.ones_like(values) if known is None else torch.from_numpy(_reduced(known, len(made)))
    found = {"iou_seen": float(iou(made[mask], values[mask]))}
    if truth is not None:
        require_same_size(truth, len(seen.values))
        every = torch.from_numpy(_reduced(truth.values, len(made)))
        counted = torch.ones_like(every)
        if truth.known is not None:
            counted = torch.from_numpy(_reduced(truth.known, len(made)))
        others = counted & ~mask
        if bool(others.any()):
            found["iou_unseen"] = float(iou(made[others], every[others]))
        if bool(counted.any()):
            found["iou"] = float(iou(made[counted], every[counted]))
    return found


def require_same_size(truth: Cells, wanted: int) -> None:
    """Refuse a truth whose cells are not those of the observation, `wanted` along an edge.

    Raises:
        MNIFError: with both sizes.
    """
    given = len(truth.values)
    if given != wanted:
        raise MNIFError(
            f"a truth of {given}^3 cells cannot be scored against an observation of {wanted}^3; give a grid of that "
            "size, or a mesh."
        )


def grid_iou(item: NeuralObject, values: np.ndarray, known: np.ndarray | None = None) -> float:
    """IoU with voxels bool [G, G, G], over the cells `known` (bool [G, G, G]; all when None)."""
    made = torch.from_numpy(require_solid(item).occupancy_in_cube(min(len(values), _MOST_CELLS)))
    every = torch.from_numpy(_reduced(values, len(made)))
    counted = torch.ones_like(every) if known is None else torch.from_numpy(_reduced(known, len(made)))
    return float(iou(made[counted], every[counted]))


def picture_scores(item: NeuralObject, seen: Picture, truth: Picture | None) -> dict[str, float]:
    """PSNR over the pixels that were seen and, given a truth, over the others; all channels count."""
    assert isinstance(item, NeuralImage)
    shape = seen.pixels.shape[:2]
    made = item.pixels(max(shape)).astype(np.float32) / 255
    known = np.ones(shape, dtype=bool) if seen.known is None else seen.known
    found = {"psnr_seen": _masked_psnr(made, seen.pixels, known)}
    if truth is not None and not known.all():
        found["psnr_unseen"] = _masked_psnr(made, truth.pixels, ~known)
    return found


def surface_distance(item: NeuralObject, points: np.ndarray) -> float | None:
    """Mean distance of points [N, 3] from the object's surface, world units; None where it has none."""
    import trimesh
    from scipy.spatial import cKDTree

    try:
        mesh = require_solid(item).mesh(_MESH_CELLS, colors=False)
    except MNIFError:
        return None
    on_surface, _ = trimesh.sample.sample_surface(mesh, 20_000, seed=0)
    # The mesh has y up and +z forward; the points z up and +x forward.
    ours = np.asarray(on_surface)[:, [2, 0, 1]]
    return float(cKDTree(ours).query(points)[0].mean())


def agreement(fit: Fit) -> dict[str, Any]:
    """Whether the starts that explain the observation nearly as well as the best one show the same thing.

    Returns:
        `equally_good`: how many there are, the best included; `spread`: the likeness of the best and the one least
        like it (`Modality.likeness`), None where there is only one; `measure`; and `agree`.
    """
    equal = [k for k, loss in enumerate(fit.losses) if loss <= _NEARLY * fit.losses[0] + 1e-9]
    modality = modalities.get(fit.best.modality)
    measure = modality.fitting.measure
    if len(equal) < 2:
        return {"equally_good": 1, "spread": None, "measure": measure, "agree": True}
    spread = min(modality.likeness(fit.objects[0], fit.objects[k]) for k in equal[1:])
    return {
        "equally_good": len(equal),
        "spread": spread,
        "measure": measure,
        "agree": spread >= modality.fitting.agreement,
    }


def _masked_psnr(made: np.ndarray, pixels: np.ndarray, mask: np.ndarray) -> float:
    error = np.square(made[mask] - pixels[mask].astype(np.float32) / 255).mean()
    return float(-10.0 * np.log10(max(float(error), 1e-10)))


def _reduced(values: np.ndarray, resolution: int) -> np.ndarray:
    """Cells at a lower resolution: of every new cell the one in its middle."""
    size = len(values)
    if size == resolution:
        return values
    rows = ((np.arange(resolution) + 0.5) * size / resolution).astype(np.int64)
    return values[np.ix_(rows, rows, rows)]
