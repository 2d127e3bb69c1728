"""Observations as points with signed distances and colours, for models that learned those."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.geometry.hull import cell_centres
from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.geometry.solid_mesh import solid_of_surface
from mnif_nerf.data.geometry.surface_points import ON_SURFACE, PointCounts, SurfacePoints, draw_points
from mnif_nerf.data.observations.free_space import free_cells
from mnif_nerf.data.observations.observations import Cells, MeshShape, Scan
from mnif_nerf.data.observations.observed_region import Region, SolidPoints, points_of_scan
from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.distance_evidence import DistanceEvidence
from mnif_nerf.latents.evidence import PointPool
from mnif_nerf.pipelines.fit.task import FitTask, SeenMesh

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

    from mnif_nerf.pipelines.model_folder import StoredModel

_MESH_POINTS = 20_000
_DIVISIONS = 5  # of faces across the border of what was seen, so that a sheet shows no spikes
_NEAR_CELLS = 2.5  # cells from the surface up to which a voxel counts as near
# Of a scan: the share of points at its surface, the grid of what is certainly empty, and what counts as its edge.
_NEAR_SHARE, _FREE_CELLS, _EDGE_CELLS = 0.75, 48, 2.0
# Weights of the prior: the less was seen, the more it has to say (docs/sdf.md has what was tried).
_WHOLE, _PART = 3e-3, 3e-2
# Colours count a tenth of what they do in training: at full weight strange paint bends the shape (docs/sdf.md).
_COLOR_SHARE = 0.1
_SHAPE_ONLY = "it has no colour: only the shape is fitted to, and the colours are those of the prior."


def fit_to_mesh(model: StoredModel, shape: MeshShape, cells: Cells, region: Region, seed: int) -> FitTask:
    """A mesh: points in and around it, those whose nearest surface was not seen with their side alone.

    Args:
        model: of signed distances.
        shape: in the scene box.
        cells: the same in voxels, to score against.
        region: what was seen of it.
        seed: random seed of the points.

    Raises:
        MNIFError: nothing of it was seen.
    """
    surface = shape.surface
    points = draw_points(
        surface, solid_of_surface(surface), PointCounts.of(_MESH_POINTS), np.random.default_rng([seed, 6])
    )
    known = region.cells(len(cells.values))
    where = points.points
    seen = region.contains(where)
    on = points.kind == ON_SURFACE
    if not (seen & on).any():
        raise MNIFError("the observed region holds nothing of the mesh's surface; widen it.")
    sure = seen.copy()  # the nearest surface was seen, too: half-spaces and boxes hold the ball around the point
    for axis in range(3):
        for sign in (-1.0, 1.0):
            reach = where.copy()
            reach[:, axis] += sign * np.abs(points.distance)
            sure &= region.contains(reach)
    colors = np.full((len(where), 3), np.nan, np.float32) if points.color is None else points.color.copy()
    colors[~sure | (np.abs(points.distance) >= model.encoding.near)] = np.nan
    targets = np.concatenate([colors, _interval(points.distance, sure)], axis=1)
    evidence = _evidence(model, [(where[seen], targets[seen], 1.0)], seed)
    part = _part(surface, region)
    ours = _take(points, seen & on)
    observed = SeenMesh(cells.values & known, known, surface=part, points=ours)
    complete = region.everything
    return FitTask(observed, evidence, cells, complete, notes=(), **_weights(complete))


def fit_to_cells(model: StoredModel, given: Cells, seen: np.ndarray, seed: int) -> FitTask:
    """Voxels: distances at the centres of known cells, but bounds where unknown cells are nearer than the surface.

    Args:
        model: of signed distances.
        given: the voxels.
        seen: bool [G, G, G], those that count as known.
        seed: random seed of the draws.
    """
    from scipy import ndimage

    cell = 1.0 / len(seen)
    inside, outside = given.values & seen, ~given.values & seen
    away = np.where(given.values, _cells_to(outside), _cells_to(inside))
    distance = np.where(given.values, -1.0, 1.0) * (away - 0.5) * cell
    reach = np.full(seen.shape, np.inf) if seen.all() else (ndimage.distance_transform_edt(seen) - 0.5) * cell
    sure = np.abs(distance) <= reach
    interval = _interval(distance.reshape(-1), sure.reshape(-1))
    flat = seen.reshape(-1)
    near = flat & (np.abs(distance).reshape(-1) < _NEAR_CELLS * cell)
    targets = np.concatenate([np.full((len(flat), 3), np.nan, np.float32), interval], axis=1)
    centres = cell_centres(len(seen))
    parts = [(centres[near], targets[near], 0.7), (centres[flat & ~near], targets[flat & ~near], 0.3)]
    complete = bool(seen.all())
    truth = given if given.known is None else None
    notes = (_SHAPE_ONLY,) if model.field.spec.out_features > 1 else ()
    evidence, known = _evidence(model, parts, seed), Cells(given.values & seen, seen)
    return FitTask(known, evidence, truth, complete, notes=notes, **_weights(complete))


def _weights(complete: bool) -> dict[str, float]:
    """Weights of the prior. What lies far outside of the training data is held to it as a part is: followed as far as
    a whole, it comes out dented and in mottled paint, for a hundredth of IoU."""
    return {"weight": _WHOLE, "far_weight": _PART} if complete else {"weight": _PART}


def fit_to_scan(model: StoredModel, scan: Scan, notes: tuple[str, ...], seed: int, outline: bool = True) -> FitTask:
    """A point cloud: its points on the surface, points before and behind them, and what is certainly empty or full.

    Args:
        model: of signed distances.
        scan: what was seen of it.
        notes: sentences for the report.
        seed: random seed of the draws.
        outline: whether the cloud holds all that the scanner saw, so that what lies past its outline is empty.
    """
    from scipy.spatial import cKDTree

    found, whole = points_of_scan(scan.cloud, scan.scanner, seed)
    tree = cKDTree(scan.cloud.points)
    colors = np.full((len(found.near), 3), np.nan, np.float32)
    if scan.cloud.colors is not None:
        colors[:] = np.tile(scan.cloud.colors, (3, 1))
    # Nothing is farther from the surface than from the cloud; before and behind a point it is about as near.
    to_cloud = tree.query(found.near)[0].astype(np.float32)
    near = _interval(found.near_targets * -to_cloud, np.ones(len(to_cloud), dtype=bool))
    parts = [(found.near, np.concatenate([colors, near], axis=1), _NEAR_SHARE)]
    told = ["the scan encloses a volume: all outside it counts as empty." if whole else "the scan is partial."]
    free = None
    if scan.scanner is not None and not whole:
        free = free_cells(scan.cloud.points, scan.scanner, _FREE_CELLS, outline)
    if free is not None and free.any():
        parts += _empty_parts(free, tree)
        if outline:
            told.append("what the scanner sees past the outline of the cloud counts as empty.")
    elif len(found.far):
        parts.append((found.far, _far_targets(found, tree, whole), 1.0 - _NEAR_SHARE))
    told += notes
    if scan.cloud.colors is None and model.field.spec.out_features > 1:
        told.append(_SHAPE_ONLY)
    evidence = _evidence(model, parts, seed)
    return FitTask(scan, evidence, None, whole, notes=tuple(told), **_weights(whole))


def _far_targets(found: SolidPoints, tree: cKDTree, whole: bool) -> np.ndarray:
    """Targets of points far from a cloud, `[N, 5]`: bounds by their side and by how far the cloud is."""
    distance = tree.query(found.far)[0].astype(np.float32)
    spacing = float(np.median(tree.query(tree.data, k=2)[0][:, 1]))
    least = np.maximum(distance - spacing, 0.0) if whole else np.zeros_like(distance)
    inside = found.far_targets > 0
    bounds = np.stack([np.where(inside, -distance, least), np.where(inside, -least, distance)], axis=1)
    return np.concatenate([np.full((len(bounds), 3), np.nan, np.float32), bounds], axis=1)


def _empty_parts(free: np.ndarray, tree: cKDTree) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Cells that a scanner has looked through: at least as far from the surface as from what it has not looked through,
    and at most as far as from the cloud. Those near what is not known come up as often as all the others.
    """
    cell = 1.0 / len(free)
    centres = cell_centres(len(free))[free.reshape(-1)]
    least = np.maximum(_cells_to(~free).reshape(-1)[free.reshape(-1)] - 0.5, 0.0) * cell
    most = np.maximum(tree.query(centres)[0], least)
    unknown = np.full((len(centres), 3), np.nan)
    targets = np.concatenate([unknown, least[:, None], most[:, None]], axis=1).astype(np.float32)
    edge = least < _EDGE_CELLS * cell
    share = 0.5 * (1.0 - _NEAR_SHARE)
    return [(centres[edge], targets[edge], share), (centres[~edge], targets[~edge], share)]


def _evidence(model: StoredModel, parts: list[tuple[np.ndarray, np.ndarray, float]], seed: int) -> DistanceEvidence:
    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(model.latents.device)

    pools = [PointPool(tensor(where), tensor(targets), share) for where, targets, share in parts]
    distance = model.encoding.distance
    distance = replace(distance, color_weight=_COLOR_SHARE * distance.color_weight)
    return DistanceEvidence(model.field, pools, seed=seed, distance=distance)


def _interval(distance: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Least and greatest distance float32 [N, 2]: the distance itself where that is sure, else its side."""
    low = np.where(sure, distance, np.where(distance < 0, -np.inf, 0.0))
    high = np.where(sure, distance, np.where(distance < 0, 0.0, np.inf))
    return np.stack([low, high], axis=1).astype(np.float32)


def _cells_to(chosen: np.ndarray) -> np.ndarray:
    """Distances to the nearest chosen cell, in cells; infinite where there is none."""
    from scipy import ndimage

    if not chosen.any():
        return np.full(chosen.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~chosen))


def _part(surface: Surface, region: Region) -> Surface:
    """The seen part of a surface: faces across the border of the region are divided until they are small."""
    for _ in range(_DIVISIONS):
        corners = region.contains(surface.vertices[surface.faces].reshape(-1, 3)).reshape(-1, 3)
        across = corners.any(axis=1) & ~corners.all(axis=1)
        if not across.any():
            break
        surface = _divided(surface, across)
    return _faces(surface, region.contains(surface.vertices[surface.faces].mean(axis=1)))


def _divided(surface: Surface, chosen: np.ndarray) -> Surface:
    """Some faces of a surface in four, through the middles of their edges."""

    def parts(corners: np.ndarray) -> np.ndarray:
        a, b, c = (corners[:, k] for k in range(3))
        ab, bc, ca = 0.5 * (a + b), 0.5 * (b + c), 0.5 * (c + a)
        fans = ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
        return np.concatenate([np.stack(fan, axis=1) for fan in fans]).astype(corners.dtype)

    places = parts(surface.vertices[surface.faces[chosen]])
    added = len(surface.vertices) + np.arange(3 * len(places)).reshape(-1, 3)
    colors, uv, texture = surface.corner_colors, surface.uv, surface.texture
    return replace(
        surface,
        vertices=np.concatenate([surface.vertices, places.reshape(-1, 3)]),
        faces=np.concatenate([surface.faces[~chosen], added.astype(surface.faces.dtype)]),
        corner_colors=np.concatenate([colors[~chosen], parts(colors[chosen])]),
        uv=None if uv is None else np.concatenate([uv[~chosen], parts(uv[chosen])]),
        texture=None if texture is None else np.concatenate([texture[~chosen], np.tile(texture[chosen], 4)]),
    )


def _faces(surface: Surface, chosen: np.ndarray) -> Surface:
    """Some faces of a surface."""
    uv = None if surface.uv is None else surface.uv[chosen]
    texture = None if surface.texture is None else surface.texture[chosen]
    return replace(
        surface, faces=surface.faces[chosen], corner_colors=surface.corner_colors[chosen], uv=uv, texture=texture
    )


def _take(points: SurfacePoints, chosen: np.ndarray) -> SurfacePoints:
    color = None if points.color is None else points.color[chosen]
    return SurfacePoints(
        points.points[chosen], points.distance[chosen], color, points.kind[chosen], points.normals[chosen]
    )
