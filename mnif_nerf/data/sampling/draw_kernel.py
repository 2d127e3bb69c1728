"""The compiled part of drawing rays (_draw_kernel.c); `ray_sampler` draws the same numbers by torch without it."""

from __future__ import annotations

import ctypes
import functools
import math
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.residence import HostRows
from mnif_nerf.data.stores.shards import ShardedRows
from mnif_nerf.scene_box import HALF_EXTENT

_VERSION = 2
_MAX_STEPS = 64


class _Rows(ctypes.Structure):
    """Mirror of `struct rows` in _draw_kernel.c."""

    _fields_ = [
        ("parts", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("starts", ctypes.POINTER(ctypes.c_int64)),
        ("data", ctypes.POINTER(ctypes.c_void_p)),
    ]

    @classmethod
    def of(cls, stored: Tensor | HostRows | None) -> _Rows:
        """Where the bytes of an array `[N, ...]` lie; `stored` has to outlive it."""
        if stored is None:
            return cls()
        rows = stored.rows if isinstance(stored, HostRows) else ShardedRows([stored.numpy()])
        parts = rows.parts
        assert all(part.dtype == np.uint8 and part.flags.c_contiguous for part in parts)
        return cls(
            len(parts),
            math.prod(rows.shape[1:]),
            (ctypes.c_int64 * len(parts))(*rows.starts[:-1].tolist()),
            (ctypes.c_void_p * len(parts))(*(part.ctypes.data for part in parts)),
        )


class _Pixels(ctypes.Structure):
    """Mirror of `struct pixels`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("instances", "candidates", "wanted")),
        *((name, ctypes.c_void_p) for name in ("scenes", "view_list", "view_starts", "view_counts")),
        *((name, ctypes.c_void_p) for name in ("places", "positions")),
        *((name, _Rows) for name in ("touching", "silhouettes", "images")),
        *((name, ctypes.c_void_p) for name in ("view", "pixel", "colors", "mask")),
    ]


class _Hulls(ctypes.Structure):
    """Mirror of `struct hulls`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("instances", "count", "wanted", "size", "steps")),
        ("half_extent", ctypes.c_float),
        ("scenes", ctypes.c_void_p),
        ("hulls", _Rows),
        *((name, ctypes.c_void_p) for name in ("origins", "directions")),
        *((name, ctypes.c_void_p) for name in ("numbers", "near", "far", "points")),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        try:
            library = ctypes.CDLL(str(Path(__file__).with_name("_draw_kernel" + suffix)))
            if library.mnif_draw_version() != _VERSION:
                continue
        except (OSError, AttributeError):
            continue
        for function in (library.mnif_draw_pixels, library.mnif_hull_spans, library.mnif_carve_points):
            function.restype = None
        return library
    return None


def takes(*stored: Any) -> bool:
    """Whether the kernel is there, not turned off by `MNIF_KERNEL=torch`, and can read all of this: tensors of the CPU
    or rows in shards; None is nothing to read."""
    if os.environ.get("MNIF_KERNEL") == "torch" or _library() is None:
        return False
    return all(one is None or isinstance(one, HostRows) or one.device.type == "cpu" for one in stored)


def pixels(
    candidates: tuple[Tensor, Tensor],
    wanted: int,
    scenes: Tensor,
    views: tuple[Tensor, Tensor, Tensor],
    packed: tuple[Tensor | HostRows | None, Tensor | HostRows | None],
    images: Tensor | HostRows,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first pixels that meet the hull among candidates, and what is seen there.

    Args:
        candidates: places in [0, 1) among an instance's views and flat pixels, `[K, candidates]`.
        wanted: R.
        scenes: `[K]`.
        views: the list of views, where an instance's begin, and how many it has.
        packed: bits `[V, bytes]` of pixels that touch the hull, and of silhouettes; None where there are none.
        images: uint8 `[V, H, W, 3]`.

    Returns:
        view and flat pixel `[K, R]`, colours `[K, R, 3]` in [0, 1], mask `[K, R]`.
    """
    library, count = _library(), candidates[0].shape[1]
    assert library is not None, "callers ask `takes` first"
    shape = (len(scenes), wanted)
    view, pixel = scenes.new_empty(shape), scenes.new_empty(shape)
    colors, mask = candidates[0].new_empty(*shape, 3), candidates[0].new_empty(shape)
    whole = (scenes, *views, candidates[1])
    assert all(tensor.dtype == torch.int64 for tensor in whole)
    stored, drawn = map(_Rows.of, (*packed, images)), map(_at, (view, pixel, colors, mask))
    draw = _Pixels(len(scenes), count, wanted, *map(_at, (scenes, *views, *candidates)), *stored, *drawn)
    library.mnif_draw_pixels(ctypes.byref(draw))
    return view, pixel, colors, mask


def spans(
    scenes: Tensor, hulls: Tensor | HostRows, size: int, origins: Tensor, directions: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Near and far `[K, R]` of rays `[K, R, 3]` in packed hulls `[scenes, bytes]`; see `RayBatchSampler._hull_span`."""
    shape = origins.shape[:2]
    assert steps <= _MAX_STEPS
    near, far = origins.new_empty(shape), origins.new_empty(shape)
    tensors = (origins.contiguous(), directions.contiguous(), None, near, far, None)
    draw = _Hulls(*shape, 0, size, steps, HALF_EXTENT, _at(scenes), _Rows.of(hulls), *map(_at, tensors))
    _run("mnif_hull_spans", draw)
    return near, far


def carve_points(scenes: Tensor, hulls: Tensor | HostRows, size: int, numbers: Tensor, wanted: int) -> Tensor:
    """Points `[K, C, 3]` outside of packed hulls, of random numbers `[K, candidates, 3]`."""
    points = numbers.new_empty(len(scenes), wanted, 3)
    tensors = (None, None, numbers, None, None, points)
    draw = _Hulls(*numbers.shape[:2], wanted, size, 0, HALF_EXTENT, _at(scenes), _Rows.of(hulls), *map(_at, tensors))
    _run("mnif_carve_points", draw)
    return points


def _run(name: str, draw: _Hulls) -> None:
    library = _library()
    assert library is not None, "callers ask `takes` first"
    assert draw.hulls.bytes == (draw.size**3 + 7) // 8, "a bit for every cell"
    getattr(library, name)(ctypes.byref(draw))


def _at(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers are."""
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()
