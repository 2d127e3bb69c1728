"""How well a field of signed distance and colour gives back the points of a mesh."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.heads import color_from_raw, distance_from_raw
from mnif_nerf.machine import denormals_flushed
from mnif_nerf.metrics.clouds import CHAMFER, as_cloud, distance_matrix
from mnif_nerf.metrics.grids import iou
from mnif_nerf.metrics.images import psnr
from mnif_nerf.scene_box import HALF_EXTENT

# Kinds of points, as `mnif_nerf.data.stores.surface_store` counts them.
UNIFORM, ON_SURFACE = 0, 3
_CHUNK = 1 << 15  # points evaluated together


class KnownPoints(Protocol):
    """Points of an object with what is true there: `mnif_nerf.data.stores.surface_store.SurfacePoints`."""

    points: np.ndarray
    distance: np.ndarray
    color: np.ndarray | None
    kind: np.ndarray


@torch.no_grad()
def surface_scores(compact: CompactField, known: KnownPoints) -> dict[str, float]:
    """Scores of a field with head "sdf".

    Args:
        compact: the field.
        known: points in world units, of all kinds.

    Returns:
        "iou" at the points that are spread evenly over the box; on the surface, "color" (PSNR of sRGB colours, dB;
        absent without colours) and "distance", the mean size of what the field says there, in world units.
    """
    uniform, surface = known.kind == UNIFORM, known.kind == ON_SURFACE
    said = distance_from_raw(raw_values(compact, known.points[uniform])[-1])
    scores = {"iou": float(iou(said < 0, torch.from_numpy(known.distance[uniform] < 0)))}
    raw = raw_values(compact, known.points[surface])
    if known.color is not None:
        truth = torch.from_numpy(np.ascontiguousarray(known.color[surface]).T).float()
        scores["color"] = float(psnr(color_from_raw(raw[:-1], compact.head), truth))
    scores["distance"] = float(distance_from_raw(raw[-1]).abs().mean())
    return scores


@denormals_flushed(False)  # cKDTree overflows the stack otherwise
def surface_agreement(
    points: np.ndarray, normals: np.ndarray, other_points: np.ndarray, other_normals: np.ndarray
) -> tuple[float, float]:
    """How near two sampled surfaces are, and how alike they lie there.

    Both numbers depend on how many points there are: two draws of one surface are not at 0 and 1. Compare them with
    what those have.

    Args:
        points, other_points: `[n, 3]` and `[m, 3]` world units.
        normals, other_normals: unit vectors of the same shapes.

    Returns:
        the Chamfer distance `CHAMFER` of `mnif_nerf.metrics.clouds` (squared, both ways, added), and the normal
        consistency: the mean size of the cosine between a normal and that at the other surface's nearest point, both
        ways, averaged (Mescheder et al. 2019).

    Raises:
        MNIFError: no points, or NaN ones.
    """
    clouds = [as_cloud(points, "points"), as_cloud(other_points, "other_points")]
    chamfer = float(distance_matrix(clouds[:1], clouds[1:], CHAMFER)[0, 0])
    sides = [(clouds[0], normals, clouds[1], other_normals), (clouds[1], other_normals, clouds[0], normals)]
    cosines = []
    for asked, own, cloud, others in sides:
        nearest = cKDTree(cloud).query(asked)[1]
        cosines.append(float(np.abs((own * others[nearest]).sum(axis=1)).mean()))
    return chamfer, 0.5 * (cosines[0] + cosines[1])


def raw_values(compact: CompactField, points: np.ndarray) -> Tensor:
    """Raw values `[out, P]` of a field at points `[P, 3]` in world units, on the CPU."""
    device = compact.weights[0].device
    columns = torch.from_numpy(np.ascontiguousarray(points, np.float32)).T.to(device) / HALF_EXTENT
    return torch.cat([compact.evaluate(part).cpu() for part in columns.split(_CHUNK, dim=1)], dim=1)
