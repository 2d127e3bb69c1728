"""The compiled Chamfer distance (_cloud_kernel.c); `mnif_nerf.metrics.clouds` falls back on k-d trees without it."""

from __future__ import annotations

import ctypes
import functools
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np


@functools.cache
def _library() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_cloud_kernel" + suffix)
        try:
            library = ctypes.CDLL(str(path))
            library.mnif_chamfer.restype = ctypes.c_double
        except (OSError, AttributeError):
            continue
        pointer, count = ctypes.c_void_p, ctypes.c_ssize_t
        library.mnif_chamfer.argtypes = [pointer, count, pointer, count, pointer]
        return library
    return None


def available() -> bool:
    """Whether the compiled kernel is there and not turned off by `MNIF_KERNEL=torch`."""
    return os.environ.get("MNIF_KERNEL") != "torch" and _library() is not None


def chamfer(cloud: np.ndarray, other: np.ndarray) -> float:
    """Squared Chamfer distance, from differences in float32, the sums in float64; threads may call it side by side.

    Args:
        cloud: float32 `[3, n]`, finite, contiguous, n at least 1.
        other: float32 `[3, m]`, likewise.
    """
    library = _library()
    assert library is not None, "ask `available` first"
    back = np.empty(other.shape[1], dtype=np.float32)
    return library.mnif_chamfer(cloud.ctypes.data, cloud.shape[1], other.ctypes.data, other.shape[1], back.ctypes.data)
