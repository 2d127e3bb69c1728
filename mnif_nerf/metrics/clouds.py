"""Distances between shapes: point clouds (Chamfer, earth mover's) and voxel grids (intersection over union).

Papers use several metrics under one name, so a number is given together with the names below. Nothing is moved or
scaled here: coordinates are those of the scene box.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from mnif_nerf.errors import MNIFError
from mnif_nerf.machine import denormals_flushed, num_cores
from mnif_nerf.metrics import cloud_kernel

if TYPE_CHECKING:
    import torch

CHAMFER = "chamfer_l2sq_mean_sum"
EMD = "emd_exact_lsa"
ONE_MINUS_IOU = "one_minus_iou"
_LEAF = 32  # points per leaf; of 8, 16 and 32 the fastest for 2,048 points
_CHUNK_BYTES = 64 * 2**20


@denormals_flushed(False)  # cKDTree overflows the stack otherwise
def distance_matrix(
    rows: Sequence[np.ndarray],
    columns: Sequence[np.ndarray],
    metric: str = CHAMFER,
    advance: Callable[[], None] | None = None,
    workers: int | None = None,
    device: torch.device | None = None,
    chosen: Sequence[int] | None = None,
) -> np.ndarray:
    """Distances of every cloud of `rows` to every cloud of `columns`.

    The same list given twice (`columns is rows`) is computed once for each pair, with zeros on the diagonal. Results
    do not depend on `workers`. Chamfer distances of clouds in float32 take the compiled kernel where it was built
    (0.6 against 5 ms for 2,048 points and one thread), all others k-d trees.

    Chamfer is squared: the mean over either cloud of the squared distance to the other, both added, in squared units
    of the coordinates, as PointFlow (Yang et al. 2019) and mNIF evaluate it; other papers take roots, sums or halves.
    Differences are taken point by point, never as |x|^2 + |y|^2 - 2xy, which is negative for near duplicates in
    float32. EMD is the mean distance (not squared) of matched points over the best of all bijections, exact by
    SciPy's `linear_sum_assignment`; time grows with the third power of n.

    Args:
        rows: R clouds `[n, 3]`.
        columns: C clouds `[n, 3]`.
        metric: `CHAMFER` or `EMD` (all clouds of one size).
        advance: called once per row, by the caller's thread.
        workers: threads, which is what SciPy's k-d tree and its assignment run in parallel on; one per core of this
            process when None (1.5 times as fast on two idle ones).
        device: where Chamfer distances of clouds in float32, all of a side of one size, are taken, in chunks that fit
            its memory; None for the processor's ways.
        chosen: the rows that are computed, where several processes share them: of a set with itself then only what is
            right of the diagonal.

    Returns:
        `[R, C]` float64, or as many rows as are chosen.

    Raises:
        MNIFError: an unknown metric or no clouds; or, named by its index, a cloud of another shape, without points,
            with NaN or infinite ones, or (EMD) of another size than the others.
    """
    if metric not in (CHAMFER, EMD):
        raise MNIFError(f"there is no distance {metric!r} between clouds; use {CHAMFER!r} or {EMD!r}.")
    if len(rows) == 0 or len(columns) == 0:
        raise MNIFError(f"{len(rows)} clouds against {len(columns)} have no distances; give at least one of either.")
    same = columns is rows
    first = [as_cloud(cloud, f"cloud {index} of the rows") for index, cloud in enumerate(rows)]
    second = (
        first if same else [as_cloud(cloud, f"cloud {index} of the columns") for index, cloud in enumerate(columns)]
    )
    if metric == EMD:
        _check_sizes(first, second)
        row_of = _rows(_emd, first, second, same)
    elif device is not None and all(map(_is_single, (*first, *second))) and _one_size(first) and _one_size(second):
        return _on_device((first, second), same, advance, device, chosen)
    elif cloud_kernel.available() and all(_is_single(points) for points in (*first, *second)):
        flat = [np.ascontiguousarray(points.T, dtype=np.float32) for points in first]
        others = flat if same else [np.ascontiguousarray(points.T, dtype=np.float32) for points in second]
        row_of = _rows(cloud_kernel.chamfer, flat, others, same)
    else:
        left = [_Cloud.from_points(points) for points in first]
        row_of = _rows(_chamfer, left, left if same else [_Cloud.from_points(points) for points in second], same)
    wanted = range(len(first)) if chosen is None else chosen
    matrix = np.zeros((len(wanted), len(second)))
    with ThreadPoolExecutor(workers or num_cores()) as pool:
        # An exception here (Ctrl-C) ends the iterator, which cancels the rows that have not begun.
        for index, row in enumerate(pool.map(row_of, wanted)):
            matrix[index] = row
            if advance is not None:
                advance()
    return matrix + matrix.T if same and chosen is None else matrix


def one_minus_iou(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """One minus intersection over union of the occupied cells, of every pair of grids.

    Two empty grids are equal and have distance 0; an empty one has distance 1 to every other.

    Args:
        rows: bool `[R, G, G, G]`, or flattened.
        columns: bool `[C, G, G, G]`, or flattened.

    Returns:
        `[R, C]` float64 in [0, 1], a metric (Jaccard's).

    Raises:
        MNIFError: other types than bool, no grids, or grids of unequal size.
    """
    left, right = (_flat_cells(grids, name) for grids, name in ((rows, "rows"), (columns, "columns")))
    cells = left.shape[1]
    if right.shape[1] != cells:
        raise MNIFError(f"grids of {cells} cells do not compare with {right.shape[1]}; bring both to one resolution.")
    both = np.zeros((len(left), len(right)))
    # Counts below 2^24 are exact in float32, whatever the order of the sum.
    chunk = min(max(_CHUNK_BYTES // (4 * (len(left) + len(right))), 1), 2**24)
    for start in range(0, cells, chunk):
        part = np.s_[:, start : start + chunk]
        both += left[part].astype(np.float32) @ right[part].astype(np.float32).T
    either = left.sum(axis=1)[:, None] + right.sum(axis=1)[None, :] - both
    return np.divide(either - both, either, out=np.zeros_like(both), where=either > 0)


def as_cloud(points: np.ndarray, name: str) -> np.ndarray:
    """Points as float64 `[n, 3]`.

    Args:
        points: points of any floating type.
        name: name of the cloud, in messages.

    Raises:
        MNIFError: another shape, no points, or NaN or infinite ones.
    """
    cloud = np.ascontiguousarray(points, dtype=np.float64)
    if cloud.ndim != 2 or cloud.shape[1] != 3:
        raise MNIFError(f"{name}: an array of shape {list(cloud.shape)}, expected points [n, 3].")
    if len(cloud) == 0:
        raise MNIFError(f"{name}: no points; leave empty shapes out of the comparison and report how many they were.")
    if not np.isfinite(cloud).all():
        raise MNIFError(f"{name}: NaN or infinite points; leave such shapes out and report how many they were.")
    return cloud


def _on_device(
    clouds: tuple[list[np.ndarray], list[np.ndarray]],
    same: bool,
    advance: Callable[[], None] | None,
    device: torch.device,
    chosen: Sequence[int] | None,
) -> np.ndarray:
    import torch

    from mnif_nerf.metrics.device_clouds import chamfer_matrix

    def flat(side: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack([cloud.T for cloud in side]).astype(np.float32)).to(device)

    left = flat(clouds[0])
    matrix = chamfer_matrix(left, left if same else flat(clouds[1]), advance, chosen=chosen)
    return (matrix + matrix.T if same and chosen is None else matrix).cpu().numpy()


def _one_size(clouds: list[np.ndarray]) -> bool:
    return all(len(cloud) == len(clouds[0]) for cloud in clouds)


def _is_single(points: np.ndarray) -> bool:
    """Whether float32 holds these numbers as they are."""
    return bool((points.astype(np.float32) == points).all())


@dataclass(frozen=True)
class _Cloud:
    """A cloud and its tree."""

    points: np.ndarray
    tree: cKDTree

    @classmethod
    def from_points(cls, points: np.ndarray) -> _Cloud:
        tree = cKDTree(points, leafsize=_LEAF)
        # In the tree's order one query finds in the processor's cache what the one before it needed.
        return cls(np.ascontiguousarray(points[tree.indices]), tree)


def _chamfer(cloud: _Cloud, other: _Cloud) -> float:
    there, _ = other.tree.query(cloud.points)
    back, _ = cloud.tree.query(other.points)
    return float(np.square(there).mean() + np.square(back).mean())


def _emd(cloud: np.ndarray, other: np.ndarray) -> float:
    costs = cdist(cloud, other)
    return float(costs[linear_sum_assignment(costs)].mean())


def _rows(
    distance: Callable[..., float], rows: Sequence[object], columns: Sequence[object], same: bool
) -> Callable[[int], np.ndarray]:
    """A function that computes one row of the matrix; only what is right of the diagonal when both are the same."""

    def row(index: int) -> np.ndarray:
        values = np.zeros(len(columns))
        for other in range(index + 1 if same else 0, len(columns)):
            values[other] = distance(rows[index], columns[other])
        return values

    return row


def _check_sizes(rows: Sequence[np.ndarray], columns: Sequence[np.ndarray]) -> None:
    for name, clouds in (("rows", rows), ("columns", columns)):
        for index, cloud in enumerate(clouds):
            if len(cloud) != len(rows[0]):
                raise MNIFError(
                    f"cloud {index} of the {name}: {len(cloud)} points, the first has {len(rows[0])}; the earth "
                    f"mover's distance needs clouds of one size, so draw as many points from each."
                )


def _flat_cells(grids: np.ndarray, name: str) -> np.ndarray:
    cells = np.asarray(grids)
    if cells.dtype != np.bool_ or cells.ndim < 2 or cells.size == 0:
        raise MNIFError(
            f"{name}: an array of {cells.dtype} {list(cells.shape)}, expected occupied cells, bool [N, G, G, G]."
        )
    return cells.reshape(len(cells), -1)
