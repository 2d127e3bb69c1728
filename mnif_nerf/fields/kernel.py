"""The compiled CPU kernel behind `siren_forward`: finding it, threads, and its place in autograd.

The library (`_siren_kernel.c`, an optional extension of this package) is loaded with ctypes, needs no Python headers
to build, and releases the interpreter lock while it runs. Without it everything works on torch alone, slower.

`MNIF_KERNEL=torch` in the environment turns it off (`avx2` and `plain` make it run as on a lesser processor).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mnif_nerf.errors import MNIFError

_VERSION = 1
_MAX_LAYERS = 32
_MAX_THREADS = 64
# Multiplications one thread does in about a tenth of a millisecond; for less, starting another does not pay.
_WORK_PER_THREAD = 4_000_000

_log = logging.getLogger(__name__)
_reference: ContextVar[bool] = ContextVar("mnif_reference", default=False)
_threads = 0


class _Call(ctypes.Structure):
    """Mirror of `struct call` in _siren_kernel.c."""

    _fields_ = [
        ("layers", ctypes.c_int32),
        ("final_sine", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("batch", ctypes.c_int64),
        ("points", ctypes.c_int64),
        ("x_batch", ctypes.c_int64),
        ("x_feature", ctypes.c_int64),
        ("x_point", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("grad_out", ctypes.c_void_p),
        ("sizes", ctypes.c_int32 * (_MAX_LAYERS + 1)),
        ("weights", ctypes.c_void_p * _MAX_LAYERS),
        ("biases", ctypes.c_void_p * _MAX_LAYERS),
        ("weight_batch", ctypes.c_int64 * _MAX_LAYERS),
        ("bias_batch", ctypes.c_int64 * _MAX_LAYERS),
        ("grads", ctypes.c_void_p * _MAX_LAYERS),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled kernel, or None (said once on the log) where it was not built or is of another version."""
    if os.environ.get("MNIF_KERNEL") == "torch":
        return None
    reason = "it was not built"
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_siren_kernel" + suffix)
        if not path.is_file():
            continue
        try:
            library = ctypes.CDLL(str(path))
            if library.mnif_siren_version() == _VERSION:
                library.mnif_siren_run.argtypes = [ctypes.POINTER(_Call)]
                return library
            reason = f"{path} is of another version"
        except (OSError, AttributeError) as error:
            reason = str(error)
    _log.warning(
        "The compiled CPU kernel is not there (%s): torch computes instead, two to four times slower. "
        "Install a C compiler and then mnif_nerf again.",
        reason,
    )
    return None


def available() -> bool:
    """Whether the compiled kernel is there and not turned off by `MNIF_KERNEL=torch`."""
    return _library() is not None


def num_threads() -> int:
    """Threads of the kernel: `set_num_threads`, else OMP_NUM_THREADS, else the cores this process may use."""
    global _threads
    if _threads == 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        wish = os.environ.get("OMP_NUM_THREADS", "")
        _threads = min(int(wish) if wish.isdecimal() and int(wish) > 0 else cores, _MAX_THREADS)
    return _threads


def set_num_threads(count: int) -> None:
    """Set the threads of the kernel (torch's own are separate). Results do not depend on it, not in the last bit.

    Raises:
        MNIFError: less than one thread.
    """
    if count < 1:
        raise MNIFError(f"{count} threads for the kernel; it needs at least 1.")
    global _threads
    _threads = min(count, _MAX_THREADS)


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Within the block (and this thread) torch computes, so that gradients can be differentiated again."""
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


def usable(params: Sequence[Tensor], points: Tensor) -> bool:
    """Whether the kernel can take these tensors: float32 on the CPU, points without gradient, no tracing."""
    if _reference.get() or (points.requires_grad and torch.is_grad_enabled()) or points.ndim != 3 or points.numel() == 0:
        return False
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # a trace must see torch operations (ONNX export)
        return False
    for tensor in (points, *params):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.numel() == 0:
            return False
    return available()


def layer_sizes(weights: Sequence[Tensor], biases: Sequence[Tensor], points: Tensor) -> tuple[int, ...] | None:
    """Features before and after every layer, or None for shapes that torch should take (or complain about)."""
    batch, fan_in = points.shape[0], points.shape[1]
    if not 2 <= len(weights) <= _MAX_LAYERS or len(biases) != len(weights):
        return None
    sizes = [fan_in]
    for weight, bias in zip(weights, biases):
        if weight.ndim != 3 or weight.shape[0] != batch or weight.shape[2] != sizes[-1]:
            return None
        if bias.shape != (batch, weight.shape[1], 1):
            return None
        sizes.append(weight.shape[1])
    return tuple(sizes)


def run(sizes: tuple[int, ...], final_sine: bool, params: Sequence[Tensor], points: Tensor) -> Tensor:
    """Values `[B, out, N]` at `points` `[B, in, N]`; differentiable (once) in the parameters.

    Args:
        sizes: features before and after every one of L layers.
        final_sine: whether the output layer is a sine.
        params: L rows `[B, out * in + out]` (weights, then biases), or L weights `[B, out, in]` followed by L
            biases `[B, out, 1]`.
        points: any strides.

    Raises:
        MemoryError: no memory for the kernel's buffers (about a megabyte per thread).
    """
    if torch.is_grad_enabled() and any(param.requires_grad for param in params):
        return _Siren.apply(sizes, final_sine, points, *params)
    return _call(sizes, final_sine, points, _inner_contiguous(params))


class _Siren(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: tuple[int, ...], final_sine: bool, points: Tensor, *params: Tensor) -> Tensor:
        params = _inner_contiguous(params)
        ctx.sizes, ctx.final_sine = sizes, final_sine
        ctx.save_for_backward(points, *params)
        return _call(sizes, final_sine, points, params)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        points, *params = ctx.saved_tensors
        layers = [(out, fan_in) for fan_in, out in zip(ctx.sizes, ctx.sizes[1:])]
        rows = [points.new_empty(len(points), out * fan_in + out) for out, fan_in in layers]
        _call(ctx.sizes, ctx.final_sine, points, params, grad_out.contiguous(), rows)
        if len(params) == len(layers):
            return (None, None, None, *rows)
        weights = [row[:, : out * fan_in].unflatten(1, (out, fan_in)) for row, (out, fan_in) in zip(rows, layers)]
        biases = [row[:, out * fan_in :].unsqueeze(-1) for row, (out, fan_in) in zip(rows, layers)]
        return (None, None, None, *weights, *biases)


def _inner_contiguous(params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same, copied where the numbers of one instance do not lie in a row."""
    return tuple(param if param[0].is_contiguous() else param.contiguous() for param in params)


def _call(
    sizes: tuple[int, ...],
    final_sine: bool,
    points: Tensor,
    params: Sequence[Tensor],
    grad_out: Tensor | None = None,
    grads: Sequence[Tensor] = (),
) -> Tensor:
    """Fill in the struct and run; without `grad_out` returns the values, with it fills `grads`."""
    library = _library()
    assert library is not None, "callers ask `usable` first"
    layers, batch, count = len(sizes) - 1, points.shape[0], points.shape[2]
    call = _Call(layers=layers, final_sine=final_sine, batch=batch, points=count)
    call.x, (call.x_batch, call.x_feature, call.x_point) = points.data_ptr(), points.stride()
    call.sizes[: layers + 1] = sizes
    work = batch * count * (1 if grad_out is None else 3)
    packed = len(params) == layers
    for layer, (fan_in, out) in enumerate(zip(sizes, sizes[1:])):
        weight = params[layer]
        call.weights[layer], call.weight_batch[layer] = weight.data_ptr(), weight.stride(0)
        if packed:
            call.biases[layer] = weight.data_ptr() + 4 * out * fan_in
            call.bias_batch[layer] = weight.stride(0)
        else:
            bias = params[layers + layer]
            call.biases[layer], call.bias_batch[layer] = bias.data_ptr(), bias.stride(0)
    work *= sum(fan_in * out for fan_in, out in zip(sizes, sizes[1:]))
    call.threads = max(1, min(num_threads(), work // _WORK_PER_THREAD))
    values = points.new_empty(batch, sizes[-1], count) if grad_out is None else grad_out
    call.out = values.data_ptr()
    if grad_out is not None:
        call.grad_out = grad_out.data_ptr()
        for layer, grad in enumerate(grads):
            call.grads[layer] = grad.data_ptr()
    if library.mnif_siren_run(ctypes.byref(call)):
        raise MemoryError("the SIREN kernel found no memory for its buffers (about a megabyte per thread)")
    return values
