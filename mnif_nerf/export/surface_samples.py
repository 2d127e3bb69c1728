"""Points spread evenly over the surface of a distance field, with normals and colours, as data has them of meshes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from mnif_nerf.data.geometry.surface_points import ON_SURFACE, SurfacePoints
from mnif_nerf.export.distance_mesh import distance_mesh
from mnif_nerf.export.mesh import MeshOptions, NoSurfaceError
from mnif_nerf.fields.distance import DistanceField
from mnif_nerf.rendering.near_cells import field_device

_FLATTEST = 0.05  # least squared slope that a step is divided by
_CHUNK = 1 << 13  # points differentiated together


def surface_samples(
    field: DistanceField, count: int, generator: np.random.Generator, resolution: int, cells: Tensor | None = None
) -> SurfacePoints | None:
    """Points of all shells of the surface, in random order; None where nothing is inside.

    They are drawn evenly over a mesh and then moved by one Newton step to the zero of the field, whose slope gives
    their normals: their mean distance from it is 0.00003 of an object's diagonal.

    Args:
        field: the field.
        count: P.
        generator: where they come from.
        resolution: of the mesh, cells along an edge of the scene box.
        cells: bool `[C, C, C]` where the object can be, or None.
    """
    options = MeshOptions(None, "all", 0, None, False)
    try:
        mesh = distance_mesh(field, resolution, cells, options, sharp=False)
    except NoSurfaceError:
        return None
    drawn, _ = trimesh.sample.sample_surface(mesh, count, seed=generator)
    points, normals, colors = [], [], []
    for part in torch.from_numpy(np.asarray(drawn, np.float32)).to(field_device(field)).split(_CHUNK):
        distance, slope = field.distance_and_slope(part)
        with torch.no_grad():
            # The mesh is nearer than a cell; where the field is flat, a longer step leads astray.
            longest = 2 * field.half_extent / resolution
            step = distance / slope.square().sum(dim=1).clamp(min=_FLATTEST).sqrt()
            way = F.normalize(slope, dim=1)
            moved = part - step.clamp(-longest, longest)[:, None] * way
            points.append(moved.cpu().numpy())
            normals.append(way.cpu().numpy())
            colors.append(field.color(moved).cpu().numpy())
    color = np.concatenate(colors) if field.has_color else None
    kind = np.full(count, ON_SURFACE, np.uint8)
    return SurfacePoints(np.concatenate(points), np.zeros(count, np.float32), color, kind, np.concatenate(normals))
