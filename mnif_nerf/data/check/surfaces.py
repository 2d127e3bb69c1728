"""What `mnif-data check` says about points with signed distance and colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mnif_nerf.data.geometry.surface_points import (
    HALF_EXTENT,
    NEAR,
    NEAR_NOISE,
    ON_SURFACE,
    UNIFORM,
    SurfacePoints,
)
from mnif_nerf.data.stores.surface_store import SurfaceStore, open_surface_store, surface_splits
from mnif_nerf.errors import MNIFError
from mnif_nerf.progress import tracked

_FURTHEST = 10 * NEAR_NOISE  # that a point near the surface may be from it


def check_surfaces(root: Path | str, progress: bool = True) -> tuple[list[str], list[str]]:
    """Read all instances of a data set.

    Returns: lines that describe it, and the problems found, each by its split and name.

    Raises:
        MNIFError: nothing there, or nothing readable.
    """
    splits = surface_splits(root)
    lines, problems = [f"{root}: objects, {len(splits)} split(s)"], []
    stores = []
    for split in splits:
        try:
            stores.append(open_surface_store(root, split, progress=progress))
        except MNIFError as error:
            problems.append(str(error))
            lines.append(f"{split}: nothing readable")
            continue
        described, found = _check_split(stores[-1], progress)
        lines.append(described)
        problems += found
    if not stores:
        raise MNIFError(problems[0])
    if len({store.channels for store in stores}) > 1:
        problems.append(f"{root}: one split has colour and another has none; make them together.")
    return lines, problems


def _check_split(store: SurfaceStore, progress: bool) -> tuple[str, list[str]]:
    filled, problems = [], []
    numbers = tracked(range(store.num_instances), f"checking {store.split}", store.num_instances, progress, True)
    for number in numbers:
        points = store.points(number)
        inside = points.distance < 0
        filled.append(100 * float(inside[points.kind == UNIFORM].mean()) if store.counts.uniform else 0.0)
        fault = _fault(points)
        if fault:
            problems.append(f"{store.folder}, {store.names[number]}: {fault}")
    counts = store.counts
    return (
        f"{store.split}: {store.num_instances} objects, {counts.total:,} points each ({counts.uniform:,} in the cube, "
        f"{counts.wide + counts.near:,} around the surface, {counts.surface:,} on it), "
        f"{'with' if store.has_color else 'without'} colour; filled {np.mean(filled):.1f} % of the cube "
        f"({min(filled):.1f} to {max(filled):.1f})"
    ), problems


def _fault(points: SurfacePoints) -> str:
    """What is wrong with an instance; empty where nothing is."""
    distance, kind = points.distance, points.kind
    if not np.isfinite(distance).all():
        return "a distance is NaN or infinite; make the points again."
    if not (distance < 0).any():
        return "no point is inside, so there is no solid; make the points again."
    if not (distance > 0).any():
        return "no point is outside; make the points again."
    if (np.abs(distance[kind == NEAR]) > _FURTHEST).any():
        return "points near the surface have distances far from it; make the points again."
    on = points.points[kind == ON_SURFACE]
    if len(on) and np.mean(np.abs(on).max(axis=1) > HALF_EXTENT - 1e-5) > 0.01:
        return f"is cut off at the side of the cube of half size {HALF_EXTENT}; scale it down."
    return ""
