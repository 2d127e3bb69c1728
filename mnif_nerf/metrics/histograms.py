"""Where points of a set of shapes lie on average: occupancy histograms and their divergence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import jensenshannon

from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics.clouds import as_cloud
from mnif_nerf.scene_box import HALF_EXTENT

RESOLUTION = 28


def jsd_of_clouds(
    generated: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
) -> float:
    """Jensen-Shannon divergence of where two sets of clouds have their points.

    It looks at all points of a set together: a set of equal shapes of the mean's blur would pass. Finite samples of
    one distribution do not reach 0.

    Args:
        generated, reference: clouds `[n, 3]`, world units.

    Returns:
        in [0, 1] (base-2 logarithm): 0 for equal histograms, 1 where no cell is shared.

    Raises:
        MNIFError: as `occupancy_histogram`.

    Source: Achlioptas et al. 2018. Their code also leaves out the cells beyond the sphere in the box;
    here points there count.
    """
    return jensen_shannon(occupancy_histogram(generated), occupancy_histogram(reference))


def occupancy_histogram(clouds: Sequence[np.ndarray], resolution: int = RESOLUTION) -> np.ndarray:
    """Points of all clouds counted at the nearest cell centre of a grid over the scene box.

    Centres stand from face to face of the box, so cells at the faces reach half a cell beyond it; points further out
    count in the nearest cell.

    Args:
        clouds: `[n, 3]` each, world units; a cloud weighs as many points as it has.
        resolution: centres along an axis, at least 2.

    Returns:
        counts, int64 `[resolution, resolution, resolution]`, index [x, y, z].

    Raises:
        MNIFError: no clouds, or one that is empty or has NaN or infinite points, named by its index.
    """
    if len(clouds) == 0:
        raise MNIFError("no clouds have no histogram; give at least one.")
    counts = np.zeros(resolution**3, dtype=np.int64)
    for index, points in enumerate(clouds):
        position = (as_cloud(points, f"cloud {index}") / (2 * HALF_EXTENT) + 0.5) * (resolution - 1)
        cell = np.clip(np.floor(position + 0.5), 0, resolution - 1).astype(np.int64)
        flat = np.ravel_multi_index(tuple(cell.T), (resolution,) * 3)
        counts += np.bincount(flat, minlength=len(counts))
    return counts.reshape((resolution,) * 3)


def jensen_shannon(counts: np.ndarray, other: np.ndarray) -> float:
    """Jensen-Shannon divergence of two histograms, base-2 logarithm, in [0, 1].

    Args:
        counts, other: of one shape, at least 0; each is divided by its sum.

    Raises:
        MNIFError: unequal shapes, or a histogram without counts.
    """
    if counts.shape != other.shape:
        raise MNIFError(f"histograms of {counts.shape} and {other.shape} cells do not compare; use one resolution.")
    if counts.sum() == 0 or other.sum() == 0:
        raise MNIFError("a histogram without counts has no divergence; count at least one point.")
    return float(jensenshannon(counts.ravel(), other.ravel(), base=2) ** 2)
