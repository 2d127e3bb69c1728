"""The compiled CPU kernel behind `siren_forward`: finding it, threads, and its place in autograd.

The library (`_siren_kernel.c`, an optional extension of this package) is loaded with ctypes, needs no Python
headers to build, and releases the interpreter lock while it runs. Without it torch does all the work, slower.

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
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError

_VERSION = 1
MAX_LAYERS = 32
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
        ("restraint", ctypes.c_int32),
        ("batch", ctypes.c_int64),
        ("points", ctypes.c_int64),
        ("x_batch", ctypes.c_int64),
        ("x_feature", ctypes.c_int64),
        ("x_point", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("grad_out", ctypes.c_void_p),
        ("sizes", ctypes.c_int32 * (MAX_LAYERS + 1)),
        ("weights", ctypes.c_void_p * MAX_LAYERS),
        ("biases", ctypes.c_void_p * MAX_LAYERS),
        ("weight_batch", ctypes.c_int64 * MAX_LAYERS),
        ("bias_batch", ctypes.c_int64 * MAX_LAYERS),
        ("grads", ctypes.c_void_p * MAX_LAYERS),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled kernel, or None (said once on the log) where it was not built or is of another version."""
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
    return os.environ.get("MNIF_KERNEL") != "torch" and _library() is not None


def num_threads() -> int:
    """Threads of the kernel: `set_num_threads`, else OMP_NUM_THREADS, else the cores this process may use."""
    global _threads
    if _threads == 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        wish = os.environ.get("OMP_NUM_THREADS", "")
        _threads = min(int(wish) if wish.isdecimal() and int(wish) > 0 else cores, _MAX_THREADS)
    return _threads


def set_num_threads(count: int) -> None:
    """Set the threads of the kernel; torch's own are separate. Results are bit-equal for any number.

    Raises:
        MNIFError: less than one thread.
    """
    if count < 1:
        raise MNIFError(f"{count} threads for the kernel; it needs at least 1.")
    global _threads
    _threads = min(count, _MAX_THREADS)


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Within the block (and this thread) torch computes.

    Saves work where gradients are differentiated again (create_graph): torch then has to compute them anyway.
    """
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


def usable(params: Sequence[Tensor], points: Tensor) -> bool:
    """Whether the kernel can take these tensors: float32 on the CPU, no gradient of points, no tracing."""
    if _reference.get() or (points.requires_grad and torch.is_grad_enabled()):
        return False
    # A trace (ONNX export), a compiler and torch.func must see torch operations.
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    for tensor in (points, *params):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.numel() == 0:
            return False
    return len(params) >= 2 and available()


def run(sizes: tuple[int, ...], final_sine: bool, params: Sequence[Tensor], points: Tensor) -> Tensor:
    """Values `[B, out, N]` at `points` `[B, in, N]`; differentiable in the parameters.

    The caller has asked `usable`, and has checked that the shapes fit `sizes`: the kernel reads them unseen.

    Args:
        sizes: features before and after every one of 2 to `MAX_LAYERS` layers.
        final_sine: whether the output layer is a sine.
        params: L rows `[B, out * in + out]` (weights, then biases), or L weights `[B, out, in]` followed by L
            biases `[B, out, 1]`.
        points: any strides.

    Raises:
        MemoryError: no memory for the kernel's buffers (about a megabyte per thread).
    """
    # Before autograd sees them: a copy made inside the function could not be differentiated a second time.
    params = _inner_contiguous(params)
    if torch.is_grad_enabled() and any(param.requires_grad for param in params):
        return _Siren.apply(sizes, final_sine, points, *params)
    return _call(sizes, final_sine, points, params)


class _Siren(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: tuple[int, ...], final_sine: bool, points: Tensor, *params: Tensor) -> Tensor:
        ctx.sizes, ctx.final_sine = sizes, final_sine
        ctx.save_for_backward(points, *params)
        return _call(sizes, final_sine, points, params)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        points, *params = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: someone will differentiate this gradient
            return (
                None,
                None,
                None,
                *_differentiable_gradient(ctx.sizes, ctx.final_sine, points, params, grad_out),
            )
        layers = [(out, fan_in) for fan_in, out in pairwise(ctx.sizes)]
        rows = [points.new_empty(len(points), out * fan_in + out) for out, fan_in in layers]
        _call(ctx.sizes, ctx.final_sine, points, params, grad_out.contiguous(), rows)
        if len(params) == len(layers):
            return (None, None, None, *rows)
        weights = [row[:, : out * fan_in].unflatten(1, (out, fan_in)) for row, (out, fan_in) in zip(rows, layers)]
        biases = [row[:, out * fan_in :].unsqueeze(-1) for row, (out, fan_in) in zip(rows, layers)]
        return (None, None, None, *weights, *biases)


def _differentiable_gradient(
    sizes: tuple[int, ...], final_sine: bool, points: Tensor, params: Sequence[Tensor], grad_out: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradient by torch, which can be differentiated again."""
    from mnif_nerf.fields.siren import siren_forward_reference, split_rows  # that module imports this one

    layers = [(out, fan_in) for fan_in, out in pairwise(sizes)]
    half = len(layers)
    weights, biases = split_rows(params, layers) if len(params) == half else (params[:half], params[half:])
    values = siren_forward_reference(weights, biases, points, final_sine)
    wanted = [param for param in params if param.requires_grad]
    gradients = iter(torch.autograd.grad(values, wanted, grad_out, create_graph=True))
    return tuple(next(gradients) if param.requires_grad else None for param in params)


def _inner_contiguous(params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same, copied where the numbers of one instance do not lie in a row (instances may lie anywhere)."""
    return tuple(param if _lies_in_a_row(param) else param.contiguous() for param in params)


def _lies_in_a_row(param: Tensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(param.shape[1:]), reversed(param.stride()[1:])):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


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
    call.restraint = {"avx2": 1, "plain": 2}.get(os.environ.get("MNIF_KERNEL", ""), 0)
    call.x, (call.x_batch, call.x_feature, call.x_point) = points.data_ptr(), points.stride()
    call.sizes[: layers + 1] = sizes
    work = batch * count * (1 if grad_out is None else 3)
    packed = len(params) == layers
    for layer, (fan_in, out) in enumerate(pairwise(sizes)):
        weight = params[layer]
        call.weights[layer], call.weight_batch[layer] = weight.data_ptr(), weight.stride(0)
        if packed:
            call.biases[layer] = weight.data_ptr() + 4 * out * fan_in
            call.bias_batch[layer] = weight.stride(0)
        else:
            bias = params[layers + layer]
            call.biases[layer], call.bias_batch[layer] = bias.data_ptr(), bias.stride(0)
    work *= sum(fan_in * out for fan_in, out in pairwise(sizes))
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
