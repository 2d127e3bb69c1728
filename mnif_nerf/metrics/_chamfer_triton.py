"""Nearest points between clouds in Triton: no distance leaves the registers, where torch writes and reads every one.

Importing this module imports Triton; `mnif_nerf.metrics.device_clouds` does so when it is first needed.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nearest(asked, others, out, asked_stride, others_stride, ASKED, OTHERS, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Squared distances `out` `[pairs, ASKED]` of points to the nearest of another cloud, a block of points a program.

    Clouds lie coordinate by coordinate: `[pairs, 3, ASKED]` and `[pairs, 3, OTHERS]`, or of one cloud for all pairs,
    whose stride is then 0.
    """
    pair = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = at < ASKED
    first = asked + pair * asked_stride + at
    x = tl.load(first, mask=within, other=0.0)
    y = tl.load(first + ASKED, mask=within, other=0.0)
    z = tl.load(first + 2 * ASKED, mask=within, other=0.0)
    # Kept for each place of a tile, so that places are compared with each other once, at the end.
    least = tl.full((BLOCK, TILE), float("inf"), dtype=tl.float32)
    for begin in range(0, OTHERS, TILE):
        near = begin + tl.arange(0, TILE)
        there = near < OTHERS
        second = others + pair * others_stride + near
        dx = x[:, None] - tl.load(second, mask=there, other=float("inf"))[None, :]
        dy = y[:, None] - tl.load(second + OTHERS, mask=there, other=float("inf"))[None, :]
        dz = z[:, None] - tl.load(second + 2 * OTHERS, mask=there, other=float("inf"))[None, :]
        least = tl.minimum(least, dx * dx + dy * dy + dz * dz)
    tl.store(out + pair * ASKED + at, tl.min(least, axis=1), mask=within)
