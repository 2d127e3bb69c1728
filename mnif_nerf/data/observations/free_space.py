"""What a scan from one place says about space: what lies before its points is empty, and what lies past its outline."""

from __future__ import annotations

import math

import numpy as np

from mnif_nerf.data.geometry.hull import cell_centres

# A picture of the scan from the scanner's place: its pixels are this many times as wide as points lie apart there.
_PIXEL = 1.5
_MOST_PIXELS = 512
_CLOSED = 2  # pixels between points that count as seen
_WIDEST = math.radians(70)  # from the middle of the scan: beyond, a plane holds no picture
_BEFORE = 1.5  # cells before a point from where on space is certainly empty


def free_cells(points: np.ndarray, scanner: np.ndarray, resolution: int = 48, outline: bool = True) -> np.ndarray:
    """Cells of the scene box that are certainly empty: bool [G, G, G].

    Args:
        points: [N, 3] in the scene box, at least 10.
        scanner: [3], where they were scanned from.
        resolution: G.
        outline: whether the scan holds all that can be seen from there, so that rays past its outline met nothing.
            Where it was cut, they say nothing.

    Returns:
        all False where the scan surrounds the scanner.
    """
    from scipy import ndimage
    from scipy.spatial import cKDTree

    empty = np.zeros((resolution,) * 3, dtype=bool)
    axes = _axes(points - scanner)
    if axes is None:
        return empty
    place, depth, wide = _projected(points - scanner, axes)
    if wide.any():
        return empty
    centres = cell_centres(resolution)
    spacing = float(np.median(cKDTree(place).query(place, k=2)[0][:, 1]))
    low, extent = place.min(axis=0), float(np.ptp(place, axis=0).max())
    pixel = max(_PIXEL * spacing, extent / (_MOST_PIXELS - 2 * _CLOSED - 2), 1e-6)
    margin = _CLOSED + 2
    size = np.ceil(np.ptp(place, axis=0) / pixel).astype(int) + 2 * margin + 1
    nearest = np.full(tuple(size), np.inf)
    rows, columns = (((place - low) / pixel).astype(int) + margin).T
    np.minimum.at(nearest, (rows, columns), depth)
    seen = np.isfinite(nearest)
    around = np.ones((3, 3), dtype=bool)
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(seen, around, iterations=_CLOSED))
    # Between points it is as far as at the nearest of them, and everywhere as far as the nearest pixel around.
    filled = nearest[tuple(ndimage.distance_transform_edt(~seen, return_indices=True)[1])]
    limit = ndimage.minimum_filter(filled, 3)
    covered = ndimage.binary_dilation(closed, around)
    place, depth, wide = _projected(centres - scanner, axes)
    at = np.floor((place - low) / pixel).astype(int) + margin
    within = ((at >= 0) & (at < size)).all(axis=1) & ~wide
    at[~within] = 0
    on = within & covered[tuple(at.T)]
    free = on & (depth < limit[tuple(at.T)] - _BEFORE / resolution)
    if outline:
        free |= ~on & ~wide
    return np.asarray(free.reshape(empty.shape))


def _axes(ways: np.ndarray) -> np.ndarray | None:
    """Right, up and forward [3, 3] (rows) of a picture of `ways` [N, 3]; None where they have no middle."""
    lengths = np.linalg.norm(ways, axis=1, keepdims=True)
    forward = (ways / np.maximum(lengths, 1e-9)).mean(axis=0)
    if lengths.min() < 1e-6 or np.linalg.norm(forward) < 1e-3:
        return None
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, np.eye(3)[np.abs(forward).argmin()])
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(right, forward), forward])


def _projected(ways: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places [N, 2] on the plane at distance 1, lengths [N], and which are too far from the middle for one [N]."""
    local = ways @ axes.T
    length = np.linalg.norm(ways, axis=1)
    wide = local[:, 2] < math.cos(_WIDEST) * np.maximum(length, 1e-9)
    return local[:, :2] / np.where(wide, 1.0, local[:, 2])[:, None], length, wide
