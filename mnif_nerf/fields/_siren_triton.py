"""The fused SIREN in Triton: a block of points goes through all layers of its network without leaving the processor.

Each program works on one network's block of points (forward), or on every `splits`-th block of it (gradients), with
features along the rows and points along the columns. Activations are computed again for gradients; the pre-activations
of one block wait in a scratch buffer of the program, small enough to stay in the cache. Every program sums what its
blocks say of the weights in a slot of its own, so that results do not depend on the order of programs.

Networks are *packed*: the flat weights of all layers in one row. The first layer has few inputs and is computed in full
precision without matrix units: there, sines of w0 times a rounded coordinate would be another function. All else goes
through `tl.dot`, padded with zeros: padded features are sines of zero, and padded points have no gradient.

Importing this module imports Triton; `mnif_nerf.fields.fused` does so when it is first needed.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _reduced(x):
    """What is left of `x` beyond the nearest multiple of pi, and the sign that goes with it.

    Pi comes in three parts (Cody and Waite) of which the first two have few bits, so that their products are exact.
    """
    n = tl.floor(x * 0.31830988618 + 0.5)
    r = ((x - n * 3.140625) - n * 9.675025939941406e-4) - n * 1.5099579909783765e-7
    return r, 1.0 - 2.0 * (n - 2.0 * tl.floor(0.5 * n))


@triton.jit
def _sine(x):
    """Within 2e-7 for |x| below 1e4. CUDA's own takes care of any number, which makes programs of minutes to compile.

    The polynomials are minimax fits on half a turn.
    """
    r, sign = _reduced(x)
    s = r * r
    p = ((2.6348741e-06 * s - 1.9822783e-04) * s + 8.333242e-03) * s - 1.6666666e-01
    return sign * (r + r * s * p)


@triton.jit
def _cosine(x):
    r, sign = _reduced(x)
    s = r * r
    p = (((-2.629865e-07 * s + 2.4774637e-05) * s - 1.3888653e-03) * s + 4.1666660e-02) * s - 0.5
    return sign * (1.0 + s * p)


@triton.jit
def _matrix(at, rows, columns, OUT: tl.constexpr, FAN: tl.constexpr):
    """The weights of a layer that begins at `at`, zero beyond its size."""
    inside = (rows < OUT)[:, None] & (columns < FAN)[None, :]
    return tl.load(at + rows[:, None] * FAN + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _bias(at, rows, OUT: tl.constexpr, FAN: tl.constexpr):
    return tl.load(at + OUT * FAN + rows, mask=rows < OUT, other=0.0)[:, None]


@triton.jit
def _first(x, x_feature, x_point, points, inside, at, rows, IN: tl.constexpr, WIDTH: tl.constexpr):
    """Pre-activations of the first layer, a product of full precision."""
    inputs = tl.load(x + points * x_point, mask=inside, other=0.0)
    u = _bias(at, rows, WIDTH, IN) + tl.load(at + rows * IN, mask=rows < WIDTH, other=0.0)[:, None] * inputs[None, :]
    for k in tl.static_range(1, IN):
        inputs = tl.load(x + k * x_feature + points * x_point, mask=inside, other=0.0)
        u += tl.load(at + rows * IN + k, mask=rows < WIDTH, other=0.0)[:, None] * inputs[None, :]
    return u


@triton.jit
def _add(at, value, rows, columns, earlier, OUT: tl.constexpr, FAN: tl.constexpr):
    """Put a layer's matrix into the program's slot; on top of what is there, where `earlier` is above 0."""
    place = at + rows[:, None] * FAN + columns[None, :]
    inside = (rows < OUT)[:, None] & (columns < FAN)[None, :]
    there = inside & (rows * 0 + earlier > 0)[:, None]
    tl.store(place, value + tl.load(place, mask=there, other=0.0), mask=inside)


@triton.jit
def _add_row(at, value, rows, step: tl.constexpr, earlier, OUT: tl.constexpr):
    inside = rows < OUT
    there = inside & (rows * 0 + earlier > 0)
    tl.store(at + rows * step, value + tl.load(at + rows * step, mask=there, other=0.0), mask=inside)


@triton.jit
def _add_first(
    slot, delta, x, x_feature, x_point, points, inside, rows, earlier, IN: tl.constexpr, WIDTH: tl.constexpr
):
    """What `delta` at the first layer's pre-activations says of its weights."""
    for k in tl.static_range(IN):
        inputs = tl.load(x + k * x_feature + points * x_point, mask=inside, other=0.0)
        _add_row(slot + k, tl.sum(delta * inputs[None, :], axis=1), rows, IN, earlier, WIDTH)
    _add_row(slot + WIDTH * IN, tl.sum(delta, axis=1), rows, 1, earlier, WIDTH)


@triton.jit
def _down(
    own, weights, delta, u, outs, rows, earlier, OUT: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """From `delta`, the gradient at a layer's outputs before its sine, to that at the pre-activations `u` below it.

    What it says of the layer's weights goes into the slot at `own`.
    """
    _add(own, tl.dot(delta, tl.trans(_sine(u)), input_precision=PRECISION), outs, rows, earlier, OUT, WIDTH)
    _add_row(own + OUT * WIDTH, tl.sum(delta, axis=1), outs, 1, earlier, OUT)
    return tl.dot(tl.trans(weights), delta, input_precision=PRECISION) * _cosine(u)


@triton.jit
def _down_twice(
    own, weights, weights_dot, delta, delta_dot, u, u_dot, outs, rows, earlier,
    OUT: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same of `delta` and of its slope `delta_dot`; the slope of the weights' gradient goes into the slot."""
    gradient = tl.dot(delta_dot, tl.trans(_sine(u)), input_precision=PRECISION)
    gradient += tl.dot(delta, tl.trans(_cosine(u) * u_dot), input_precision=PRECISION)
    _add(own, gradient, outs, rows, earlier, OUT, WIDTH)
    _add_row(own + OUT * WIDTH, tl.sum(delta_dot, axis=1), outs, 1, earlier, OUT)
    below_dot = tl.dot(tl.trans(weights), delta_dot, input_precision=PRECISION)
    below_dot += tl.dot(tl.trans(weights_dot), delta, input_precision=PRECISION)
    below = tl.dot(tl.trans(weights), delta, input_precision=PRECISION)
    return below * _cosine(u), below_dot * _cosine(u) - below * _sine(u) * u_dot


@triton.jit
def _up_twice(
    at, at_dot, weights, weights_dot, u, u_dot, outs, OUT: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """From pre-activations and their slope to those of the next layer."""
    h, h_dot = _sine(u), _cosine(u) * u_dot
    next_dot = tl.dot(weights, h_dot, input_precision=PRECISION)
    next_dot += tl.dot(weights_dot, h, input_precision=PRECISION) + _bias(at_dot, outs, OUT, WIDTH)
    return tl.dot(weights, h, input_precision=PRECISION) + _bias(at, outs, OUT, WIDTH), next_dot


@triton.jit
def siren_values(
    x, x_batch, x_feature, x_point, packed, values, count,
    IN: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, FINAL_SINE: tl.constexpr,
    PARAMETERS: tl.constexpr, D: tl.constexpr, DO: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Values `[B, OUT, count]`; a program for every block of points (axis 0) of every network (axis 1)."""
    batch = tl.program_id(1).to(tl.int64)
    points = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = points < count
    rows, outs = tl.arange(0, D), tl.arange(0, DO)
    at = packed + batch * PARAMETERS
    h = _sine(_first(x + batch * x_batch, x_feature, x_point, points, inside, at, rows, IN, WIDTH))
    at += WIDTH * IN + WIDTH
    for _ in range(HIDDEN):
        u = tl.dot(_matrix(at, rows, rows, WIDTH, WIDTH), h, input_precision=PRECISION)
        h = _sine(u + _bias(at, rows, WIDTH, WIDTH))
        at += WIDTH * WIDTH + WIDTH
    v = tl.dot(_matrix(at, outs, rows, OUT, WIDTH), h, input_precision=PRECISION) + _bias(at, outs, OUT, WIDTH)
    if FINAL_SINE:
        v = _sine(v)
    place = values + batch * OUT * count + outs[:, None] * count + points[None, :]
    tl.store(place, v, mask=(outs < OUT)[:, None] & inside[None, :])


@triton.jit
def siren_gradient(
    x, x_batch, x_feature, x_point, packed, seed, slots, scratch, count,
    IN: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, FINAL_SINE: tl.constexpr,
    PARAMETERS: tl.constexpr, D: tl.constexpr, DO: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient, in the packed weights, of the values times `seed` `[B, OUT, count]`: slots `[B, splits, PARAMETERS]`.

    Axis 0 of the programs are the splits; there are no more of them than blocks. Scratch: `[B, splits, HIDDEN + 1, D,
    BLOCK]`.
    """
    split, splits, batch = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    program = batch * splits + split
    rows, outs, columns = tl.arange(0, D), tl.arange(0, DO), tl.arange(0, BLOCK)
    first, slot = packed + batch * PARAMETERS, slots + program * PARAMETERS
    x += batch * x_batch
    tile = scratch + program * (HIDDEN + 1) * D * BLOCK + rows[:, None] * BLOCK + columns[None, :]
    start = WIDTH * IN + WIDTH  # of the hidden layers
    size = WIDTH * WIDTH + WIDTH
    for block in range(split, tl.cdiv(count, BLOCK), splits):
        earlier = block - split
        points = block * BLOCK + columns
        inside = points < count
        u = _first(x, x_feature, x_point, points, inside, first, rows, IN, WIDTH)
        for layer in range(HIDDEN):
            tl.store(tile + layer * D * BLOCK, u)
            at = first + start + layer * size
            u = tl.dot(_matrix(at, rows, rows, WIDTH, WIDTH), _sine(u), input_precision=PRECISION)
            u += _bias(at, rows, WIDTH, WIDTH)
        last, last_slot = first + start + HIDDEN * size, slot + start + HIDDEN * size
        head = _matrix(last, outs, rows, OUT, WIDTH)
        seen = (outs < OUT)[:, None] & inside[None, :]
        place = seed + batch * OUT * count + outs[:, None] * count + points[None, :]
        seeded = tl.load(place, mask=seen, other=0.0)
        if FINAL_SINE:
            v = tl.dot(head, _sine(u), input_precision=PRECISION) + _bias(last, outs, OUT, WIDTH)
            seeded *= _cosine(v)
        delta = _down(last_slot, head, seeded, u, outs, rows, earlier, OUT, WIDTH, PRECISION)
        tl.debug_barrier()  # what was stored above may be read by other threads below
        for back in range(HIDDEN):
            layer = HIDDEN - 1 - back
            weights = _matrix(first + start + layer * size, rows, rows, WIDTH, WIDTH)
            u = tl.load(tile + layer * D * BLOCK)
            own = slot + start + layer * size
            delta = _down(own, weights, delta, u, rows, rows, earlier, WIDTH, WIDTH, PRECISION)
        _add_first(slot, delta, x, x_feature, x_point, points, inside, rows, earlier, IN, WIDTH)
        tl.debug_barrier()


@triton.jit
def siren_second(
    x, x_batch, x_feature, x_point, packed, along, seed, curvature, slopes, slots, scratch, count,
    IN: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, FINAL_SINE: tl.constexpr,
    PARAMETERS: tl.constexpr, D: tl.constexpr, DO: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    CURVED: tl.constexpr,
):  # fmt: skip
    """Slope of the values, and of that gradient, as the weights move along `along` (packed): forward over reverse.

    A name with `_dot` is the slope of the one without. Where CURVED the seed moves too, by `curvature` times the
    values. Scratch: `[B, splits, 2, HIDDEN + 1, D, BLOCK]`; the rest is as in `siren_gradient`.
    """
    split, splits, batch = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    program = batch * splits + split
    rows, outs, columns = tl.arange(0, D), tl.arange(0, DO), tl.arange(0, BLOCK)
    first, first_dot, slot = packed + batch * PARAMETERS, along + batch * PARAMETERS, slots + program * PARAMETERS
    x += batch * x_batch
    tile = scratch + program * 2 * (HIDDEN + 1) * D * BLOCK + rows[:, None] * BLOCK + columns[None, :]
    tile_dot = tile + (HIDDEN + 1) * D * BLOCK
    start = WIDTH * IN + WIDTH
    size = WIDTH * WIDTH + WIDTH
    for block in range(split, tl.cdiv(count, BLOCK), splits):
        earlier = block - split
        points = block * BLOCK + columns
        inside = points < count
        u = _first(x, x_feature, x_point, points, inside, first, rows, IN, WIDTH)
        u_dot = _first(x, x_feature, x_point, points, inside, first_dot, rows, IN, WIDTH)
        for layer in range(HIDDEN):
            tl.store(tile + layer * D * BLOCK, u)
            tl.store(tile_dot + layer * D * BLOCK, u_dot)
            at, at_dot = first + start + layer * size, first_dot + start + layer * size
            weights, weights_dot = _matrix(at, rows, rows, WIDTH, WIDTH), _matrix(at_dot, rows, rows, WIDTH, WIDTH)
            u, u_dot = _up_twice(at, at_dot, weights, weights_dot, u, u_dot, rows, WIDTH, WIDTH, PRECISION)
        last, last_dot = first + start + HIDDEN * size, first_dot + start + HIDDEN * size
        last_slot = slot + start + HIDDEN * size
        head, head_dot = _matrix(last, outs, rows, OUT, WIDTH), _matrix(last_dot, outs, rows, OUT, WIDTH)
        v, v_dot = _up_twice(last, last_dot, head, head_dot, u, u_dot, outs, OUT, WIDTH, PRECISION)
        seen = (outs < OUT)[:, None] & inside[None, :]
        place = batch * OUT * count + outs[:, None] * count + points[None, :]
        seeded = tl.load(seed + place, mask=seen, other=0.0)
        slope, seeded_dot = v_dot, tl.zeros_like(seeded)
        if FINAL_SINE:
            slope = _cosine(v) * v_dot
        if CURVED:
            seeded_dot = tl.load(curvature + place, mask=seen, other=0.0) * slope
        if FINAL_SINE:
            seeded_dot = seeded_dot * _cosine(v) - seeded * _sine(v) * v_dot
            seeded *= _cosine(v)
        tl.store(slopes + place, slope, mask=seen)
        delta, delta_dot = _down_twice(
            last_slot, head, head_dot, seeded, seeded_dot, u, u_dot, outs, rows, earlier, OUT, WIDTH, PRECISION
        )
        tl.debug_barrier()
        for back in range(HIDDEN):
            layer = HIDDEN - 1 - back
            weights = _matrix(first + start + layer * size, rows, rows, WIDTH, WIDTH)
            weights_dot = _matrix(first_dot + start + layer * size, rows, rows, WIDTH, WIDTH)
            u, u_dot = tl.load(tile + layer * D * BLOCK), tl.load(tile_dot + layer * D * BLOCK)
            own = slot + start + layer * size
            delta, delta_dot = _down_twice(
                own, weights, weights_dot, delta, delta_dot, u, u_dot, rows, rows, earlier, WIDTH, WIDTH, PRECISION
            )
        _add_first(slot, delta_dot, x, x_feature, x_point, points, inside, rows, earlier, IN, WIDTH)
        tl.debug_barrier()
