"""Whether a solid holds together: loose pieces, gaps, holes, roughness and thickness, from distances on a grid."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mnif_nerf.metrics.integrity import Feature, Features

SOLID_FEATURES = (
    Feature("pieces", 1.0, "above", "count", above="loose pieces"),
    Feature("crumbs", 1.0, "above", "count", above="crumbs"),
    Feature("loose", 0.01, "above", above="loose share of the volume"),
    Feature("gap", 0.01, "above", above="a gap"),
    Feature("reach", 0.1, "below", below="its largest piece is only a part of it"),
    Feature("size", 0.15, "both", above="too large", below="too small"),
    Feature("volume", 1.0, "both", "ratio", above="too massive", below="too slight"),
    Feature("holes", 1.0, "above", "count", above="holes through it"),
    Feature("cavities", 1.0, "above", "count", above="cavities in it"),
    Feature("roughness", 0.1, "both", above="rough", below="too smooth"),
    Feature("thin", 0.1, "above", above="thin"),
)
"""What `solid_features` measures. Lengths are in world units (the diagonal of an object of the data is about 1)."""

_TOUCHING = 0.25  # cells: what is nearer than this to the inside counts as connected
_NEAR = 0.5  # cells: what is not nearer than this to any centre of a cell is too small to be seen
_FARTHEST = 0.05  # world units: half of the widest gap that is told from wider ones
_STEPS = 5  # of the search for a gap's width: to a thirty-second of the widest
_THIN = 0.02  # world units: what a ball of this radius does not fit into is thin
_FEWEST_CELLS = 1.5  # radius of that ball, at least
_ALL = np.ones((3, 3, 3), dtype=bool)
_SKIN = 0.87  # cells: half a cell's diagonal


def solid_features(distance: np.ndarray, cell: float) -> Features:
    """Features of a solid; none of an empty one. Takes 0.1 to 0.2 s at 96 cells along an edge.

    pieces     connected pieces, corners touching; what is a quarter of a cell apart still touches
    crumbs     pieces so small that they lie between the centres of cells, seen by the distances around them
    loose      share of the volume outside the largest piece
    gap        the least width of a bridge that would make it one piece, 0 to 0.1
    reach      diagonal of the largest piece's bounding box over that of everything
    size       diagonal of the bounding box of everything
    volume     in cubes of the world unit
    holes      tunnels through it (the genus): pieces + cavities - Euler number
    cavities   hollows without a way out
    roughness  how much normals scatter within two cells: 0 is a plane, 1 is noise
    thin       share of the volume that no ball of radius 0.02 (1.5 cells, at least) inside it reaches

    Args:
        distance: `[X, Y, Z]` at the centres of cells, world units, positive outside; right as far as 0.05 from the
            surface, beyond that its sign is enough.
        cell: edge of a cell, world units.
    """
    if not (distance < 0).any():
        return {}
    distance = _cropped(distance, _FARTHEST, cell)
    inside = distance < 0
    fill = np.clip(0.5 - distance / cell, 0.0, 1.0)
    near = distance < _TOUCHING * cell
    labels, found = ndimage.label(near, _ALL)
    volumes = ndimage.sum_labels(fill, labels, np.arange(1, found + 1))
    solid = ndimage.maximum(inside, labels, np.arange(1, found + 1)) > 0
    volumes = np.where(solid, volumes, 0.0)
    largest = inside & (labels == int(volumes.argmax()) + 1)
    pieces, size = int(solid.sum()), _diagonal(inside)
    closed = distance < _NEAR * cell  # pinholes are no holes
    parts, all_parts = ndimage.label(closed, _ALL)
    hollows = ndimage.label(~closed)[1] - 1
    filled = np.unique(parts[inside])
    return {
        "pieces": float(pieces),
        "crumbs": float(all_parts - len(filled)),
        "loose": float(1.0 - volumes.max() / volumes.sum()),
        "gap": 0.0 if pieces == 1 else _gap(distance, inside),
        "reach": _diagonal(largest) / size,
        "size": size * cell,
        "volume": float(fill.sum()) * cell**3,
        "holes": float(all_parts + hollows - euler_number(closed)),
        "cavities": float(hollows),
        "roughness": _roughness(distance / cell),
        "thin": _thin(distance, inside, cell),
    }


def euler_number(cells: np.ndarray) -> int:
    """Euler number of the union of closed cubes, bool `[X, Y, Z]`: pieces - tunnels + cavities."""
    padded = np.pad(cells, 1)
    total = 0
    for axes in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        grown = padded
        for axis in axes:  # the cubes, then what lies between two, four and eight of them
            first = [slice(None)] * 3
            second = [slice(None)] * 3
            first[axis], second[axis] = slice(None, -1), slice(1, None)
            grown = grown[tuple(first)] | grown[tuple(second)]
        total += (-1) ** (3 - len(axes)) * int(np.count_nonzero(grown))
    return total


def _cropped(distance: np.ndarray, reach: float, cell: float) -> np.ndarray:
    """The part of the grid that holds the solid, with an empty layer around it."""
    parts = tuple(
        slice(max(int(index.min()) - 3, 0), int(index.max()) + 4) for index in np.nonzero(distance < 0.5 * cell)
    )
    return np.pad(distance[parts].astype(np.float32), 2, constant_values=reach)


def _diagonal(cells: np.ndarray) -> float:
    """Diagonal of the bounding box of set cells, in cells."""
    return float(np.linalg.norm([index.max() - index.min() + 1 for index in np.nonzero(cells)]))


def _gap(distance: np.ndarray, inside: np.ndarray) -> float:
    """Twice the least distance up to which a solid has to grow to become one piece."""
    low, high = 0.0, _FARTHEST
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        labels, found = ndimage.label(distance < middle, _ALL)
        apart = found > 1 and len(np.unique(labels[inside])) > 1
        low, high = (middle, high) if apart else (low, middle)
    return 2.0 * high


def _roughness(distance: np.ndarray) -> float:
    """One minus the mean length of normals averaged over their neighbourhood; `distance` is in cells."""
    skin = np.abs(distance) < _SKIN
    slope = np.stack(np.gradient(distance))
    normals = slope / np.maximum(np.linalg.norm(slope, axis=0), 1e-6) * skin
    around = np.stack([ndimage.uniform_filter(part, 5)[skin] for part in normals])
    share = ndimage.uniform_filter(skin.astype(np.float32), 5)[skin]
    return float(1.0 - np.mean(np.linalg.norm(around, axis=0) / np.maximum(share, 1e-6)))


def _thin(distance: np.ndarray, inside: np.ndarray, cell: float) -> float:
    radius = max(_THIN, _FEWEST_CELLS * cell)
    core = distance < -radius
    if not core.any():
        return 1.0
    reached = ndimage.distance_transform_edt(~core) * cell <= radius + 0.5 * cell
    return float(1.0 - np.count_nonzero(reached & inside) / np.count_nonzero(inside))
