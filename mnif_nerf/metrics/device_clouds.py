"""Distances of every shape to every other on a device, in chunks: point clouds by Chamfer, grids by their cells.

Definitions and metrics are those of `mnif_nerf.metrics.clouds`, which asks here for a device. Nothing here waits for
the device but the copy of the result; on CUDA clouds are compared by a kernel in Triton, else and elsewhere by torch.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.machine import chunk_memory

_BLOCK, _TILE = 128, 64  # points of a program of the kernel, and those that they are compared with at a time
_CELLS_OF_A_BYTE = 8
_EXACT = 1 << 24  # whole numbers up to this are exact in float32
_TOLERANCE = 1e-5

_log = logging.getLogger(__name__)

Nearest = Callable[[Tensor, Tensor, int], Tensor]
"""Squared distances float32 `[K, n]` of the points of clouds `[K or 1, 3, n]` to the nearest of others
`[K or 1, 3, m]`, within so many bytes."""


def chamfer_matrix(
    rows: Tensor,
    columns: Tensor,
    advance: Callable[[], None] | None = None,
    memory: int | None = None,
    chosen: Sequence[int] | None = None,
) -> Tensor:
    """Chamfer distances of every cloud of `rows` to every one of `columns`, from differences in float32.

    The same tensor given twice is computed once for each pair, and only what is right of the diagonal is filled.

    Args:
        rows: `[R, 3, n]` float32.
        columns: `[C, 3, m]` float32, on the same device.
        advance: called once per row; on CUDA when it is on its way.
        memory: bytes that a chunk may take beside clouds and result; by default those of `chunk_memory`.
        chosen: the rows that are computed; all when None.

    Returns:
        `[R, C]` float64 (or as many rows as are chosen), on the device.
    """
    same, memory = columns is rows, memory or chunk_memory(rows.device)
    nearest = _fused_nearest if _has_kernel(rows.device) else plain_nearest
    chosen = range(len(rows)) if chosen is None else chosen
    out = torch.zeros(len(chosen), len(columns), dtype=torch.float64, device=rows.device)
    points = rows.shape[2] + columns.shape[2]
    together = max(1, memory // (2 * 16 * points))  # clouds: the nearest in float32, and their mean's float64 beside
    for place, index in enumerate(chosen):
        cloud = rows[index : index + 1]
        for first in range(index + 1 if same else 0, len(columns), together):
            others = columns[first : first + together]
            there = nearest(cloud, others, memory // 2).double().mean(dim=1)
            back = nearest(others, cloud, memory // 2).double().mean(dim=1)
            out[place, first : first + len(others)] = there + back
        if advance is not None:
            advance()
    return out


def plain_nearest(asked: Tensor, others: Tensor, memory: int) -> Tensor:
    """See `Nearest`, by torch: all distances of some points of some clouds at a time."""
    pairs, n, m = max(len(asked), len(others)), asked.shape[2], others.shape[2]
    out = torch.empty(pairs, n, device=asked.device)
    some = max(1, min(n, memory // (12 * m)))  # a difference, its square, and their sum
    for clouds in _parts(pairs, max(1, memory // (12 * some * m))):
        left, right = (side if len(side) == 1 else side[clouds] for side in (asked, others))
        for points in _parts(n, some):
            near = left[:, :, points]
            squared = (near[:, 0, :, None] - right[:, 0, None]).square_()
            for axis in (1, 2):
                squared += (near[:, axis, :, None] - right[:, axis, None]).square_()
            out[clouds, points] = squared.amin(dim=2)
    return out


def _fused_nearest(asked: Tensor, others: Tensor, memory: int) -> Tensor:
    """See `Nearest`, by the kernel, which takes no more than its result."""
    pairs, n, m = max(len(asked), len(others)), asked.shape[2], others.shape[2]
    out = torch.empty(pairs, n, device=asked.device)
    strides = [0 if len(side) == 1 else side.stride(0) for side in (asked, others)]
    grid = (pairs, -(-n // _BLOCK))
    with torch.cuda.device_of(asked):  # Triton launches on the current device
        _kernel().nearest[grid](asked, others, out, *strides, n, m, BLOCK=_BLOCK, TILE=_TILE)
    return out


@functools.cache
def _kernel() -> Any:
    """The module of the kernel, which imports Triton."""
    return importlib.import_module("mnif_nerf.metrics._chamfer_triton")


@functools.cache
def _has_kernel(device: torch.device) -> bool:
    """Whether the kernel works on a device: it is tried once, against torch. Where it does not, the log says why."""
    if device.type != "cuda":
        return False
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(2, 3, count, generator=generator).to(device) for count in (300, 170))
    try:
        wrong = float((_fused_nearest(one, other, 0) - plain_nearest(one, other, 1 << 24)).abs().max())
        why = "" if wrong < _TOLERANCE else f"its distances are off by {wrong:.0e}"
    except Exception as error:  # whatever Triton's compiler raises
        why = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no words')[:200]}"
    if why:
        _log.warning("The GPU kernel of Chamfer distances is not used (%s): torch computes them, more slowly.", why)
    return not why


def one_minus_iou_of_bits(
    rows: np.ndarray, columns: np.ndarray, device: torch.device, memory: int | None = None
) -> np.ndarray:
    """One minus intersection over union of the occupied cells of every pair of grids; 0 of two empty ones.

    Args:
        rows: uint8 `[R, bytes]`, eight cells a byte; what is beyond the last cell is not set.
        columns: uint8 `[C, bytes]`.
        device: where they are counted.
        memory: bytes that a chunk may take beside all bits; by default those of `chunk_memory`.

    Returns:
        `[R, C]` float64 in [0, 1].
    """
    memory = memory or chunk_memory(device)
    left, right = (torch.from_numpy(np.ascontiguousarray(side)).to(device) for side in (rows, columns))
    exact = torch.float32 if _CELLS_OF_A_BYTE * left.shape[1] <= _EXACT else torch.float64
    together = max(1, memory // (2 * 32 * len(right)))  # counts of both, of either, and their shares
    blocks = [_counted(left[part], right, exact, memory // 2).cpu().numpy() for part in _parts(len(left), together)]
    return np.concatenate(blocks)


def _counted(left: Tensor, right: Tensor, exact: torch.dtype, memory: int) -> Tensor:
    both = torch.zeros(len(left), len(right), dtype=exact, device=left.device)
    sums = [torch.zeros(len(side), dtype=exact, device=left.device) for side in (left, right)]
    width = max(1, memory // (_CELLS_OF_A_BYTE * 2 * exact.itemsize * (len(left) + len(right))))
    with _tf32():  # of zeros and ones no product is rounded
        for part in _parts(left.shape[1], width):
            cells = [_unpacked(side[:, part], exact) for side in (left, right)]
            both.addmm_(cells[0], cells[1].T)
            for total, side in zip(sums, cells):
                total += side.sum(dim=1)
    both = both.double()
    either = sums[0].double()[:, None] + sums[1].double() - both
    return torch.where(either > 0, (either - both) / either, 0.0)


def _unpacked(bits: Tensor, exact: torch.dtype) -> Tensor:
    """Cells `[N, 8 K]` of bytes `[N, K]`, 0 or 1."""
    places = torch.arange(_CELLS_OF_A_BYTE, dtype=torch.uint8, device=bits.device)
    return ((bits[:, :, None] >> places) & 1).flatten(1).to(exact)


class _tf32:  # noqa: N801
    """Products of float32 on matrix units within the block."""

    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True

    def __exit__(self, *error: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self._before


def _parts(count: int, each: int) -> Iterator[slice]:
    return (slice(first, min(first + each, count)) for first in range(0, count, each))
