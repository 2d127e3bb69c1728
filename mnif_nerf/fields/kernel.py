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
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError

_VERSION = 2
MAX_LAYERS = 32
_MAX_THREADS = 64
# Multiplications one thread does in about a tenth of a millisecond; for less, starting another does not pay.
_WORK_PER_THREAD = 4_000_000
# The modes of a call, and how many products of a weight matrix with all points each of them takes.
_FORWARD, _GRADIENT, _SECOND = range(3)
_PRODUCTS = (1, 3, 8)
_LOSSES = ("", "mse", "bce")

_log = logging.getLogger(__name__)
_reference: ContextVar[bool] = ContextVar("mnif_reference", default=False)
_threads = 0


class _Call(ctypes.Structure):
    """Mirror of `struct call` in _siren_kernel.c."""

    _fields_ = [
        ("mode", ctypes.c_int32),
        ("loss", ctypes.c_int32),
        ("layers", ctypes.c_int32),
        ("final_sine", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("restraint", ctypes.c_int32),
        ("batch", ctypes.c_int64),
        ("points", ctypes.c_int64),
        ("x_batch", ctypes.c_int64),
        ("x_feature", ctypes.c_int64),
        ("x_point", ctypes.c_int64),
        ("target_batch", ctypes.c_int64),
        ("target_output", ctypes.c_int64),
        ("target_point", ctypes.c_int64),
        ("point_weight_batch", ctypes.c_int64),
        ("point_weight_point", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("grad_out", ctypes.c_void_p),
        ("targets", ctypes.c_void_p),
        ("point_weights", ctypes.c_void_p),
        ("losses", ctypes.c_void_p),
        ("sizes", ctypes.c_int32 * (MAX_LAYERS + 1)),
        ("weights", ctypes.c_void_p * MAX_LAYERS),
        ("biases", ctypes.c_void_p * MAX_LAYERS),
        ("weight_batch", ctypes.c_int64 * MAX_LAYERS),
        ("bias_batch", ctypes.c_int64 * MAX_LAYERS),
        ("along_weights", ctypes.c_void_p * MAX_LAYERS),
        ("along_biases", ctypes.c_void_p * MAX_LAYERS),
        ("along_weight_batch", ctypes.c_int64 * MAX_LAYERS),
        ("along_bias_batch", ctypes.c_int64 * MAX_LAYERS),
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
    params = inner_contiguous(params)
    if torch.is_grad_enabled() and any(param.requires_grad for param in params):
        return _Siren.apply(sizes, final_sine, points, *params)
    values = points.new_empty(len(points), sizes[-1], points.shape[2])
    _call(_FORWARD, sizes, final_sine, points, params, out=values)
    return values


@dataclass(frozen=True)
class PointLoss:
    """A loss per instance: the mean, over points and outputs, of how far values lie from targets.

    Attributes:
        kind: "mse", the squared error, or "bce", the binary cross entropy of logits.
        targets: `[B, out, N]`, any strides.
        weights: `[B, N]`, any strides, or None.
    """

    kind: str
    targets: Tensor
    weights: Tensor | None = None


def loss_and_gradient(
    sizes: tuple[int, ...], final_sine: bool, rows: Sequence[Tensor], points: Tensor, loss: PointLoss
) -> tuple[Tensor, list[Tensor]]:
    """Losses `[B]` and their gradients, one tensor like each of `rows`; neither differentiable. See `run`."""
    gradient, losses = _new_rows(sizes, points), points.new_empty(len(points))
    _call(_GRADIENT, sizes, final_sine, points, rows, grads=gradient, seed=loss, losses=losses)
    return losses, gradient


def hessian_product(
    sizes: tuple[int, ...],
    final_sine: bool,
    rows: Sequence[Tensor],
    along: Sequence[Tensor],
    points: Tensor,
    loss: PointLoss,
) -> list[Tensor]:
    """Second derivative of every loss in its weights times `along`, one tensor like each of `rows`. See `run`."""
    product = _new_rows(sizes, points)
    _call(_SECOND, sizes, final_sine, points, rows, grads=product, seed=loss, along=along)
    return product


class _Siren(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: tuple[int, ...], final_sine: bool, points: Tensor, *params: Tensor) -> Tensor:
        ctx.sizes, ctx.final_sine = sizes, final_sine
        ctx.save_for_backward(points, *params)
        values = points.new_empty(len(points), sizes[-1], points.shape[2])
        _call(_FORWARD, sizes, final_sine, points, params, out=values)
        return values

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        points, *params = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: someone will differentiate this gradient
            gradient = _SirenGradient.apply(ctx.sizes, ctx.final_sine, points, grad_out, *params)
        else:
            gradient = _gradient(ctx.sizes, ctx.final_sine, points, grad_out, params)
        return (None, None, None, *gradient)


class _SirenGradient(torch.autograd.Function):
    """The gradient, in the parameters, of the values times `grad_out`; differentiable in both."""

    @staticmethod
    def forward(
        ctx: Any, sizes: tuple[int, ...], final_sine: bool, points: Tensor, grad_out: Tensor, *params: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.sizes, ctx.final_sine = sizes, final_sine
        ctx.save_for_backward(points, grad_out, *params)
        return _gradient(sizes, final_sine, points, grad_out, params)

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Any, ...]:
        points, grad_out, *params = ctx.saved_tensors
        if torch.is_grad_enabled():  # a third derivative: torch's own
            second = _differentiable_second(ctx.sizes, ctx.final_sine, points, grad_out, params, along)
            return (None, None, None, *second)
        # The sum over (gradient times `along`) is also (slope of the values along it) times grad_out.
        slopes = points.new_empty(grad_out.shape)
        product = _new_rows(ctx.sizes, points)
        _call(
            _SECOND,
            ctx.sizes,
            ctx.final_sine,
            points,
            params,
            out=slopes,
            grads=product,
            seed=grad_out.contiguous(),
            along=inner_contiguous(along),
        )
        return (None, None, None, slopes, *_like_params(ctx.sizes, product, params))


def _gradient(
    sizes: tuple[int, ...], final_sine: bool, points: Tensor, grad_out: Tensor, params: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    rows = _new_rows(sizes, points)
    _call(_GRADIENT, sizes, final_sine, points, params, grads=rows, seed=grad_out.contiguous())
    return _like_params(sizes, rows, params)


def _new_rows(sizes: tuple[int, ...], points: Tensor) -> list[Tensor]:
    return [points.new_empty(len(points), out * fan_in + out) for fan_in, out in pairwise(sizes)]


def _like_params(sizes: tuple[int, ...], rows: list[Tensor], params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Rows, or what they hold as weights and biases where `params` come apart."""
    if len(params) == len(rows):
        return tuple(rows)
    layers = [(out, fan_in) for fan_in, out in pairwise(sizes)]
    weights = [row[:, : out * fan_in].unflatten(1, (out, fan_in)) for row, (out, fan_in) in zip(rows, layers)]
    biases = [row[:, out * fan_in :].unsqueeze(-1) for row, (out, fan_in) in zip(rows, layers)]
    return (*weights, *biases)


def _differentiable_second(
    sizes: tuple[int, ...],
    final_sine: bool,
    points: Tensor,
    grad_out: Tensor,
    params: Sequence[Tensor],
    along: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """What `_SirenGradient.backward` gives, by torch, which can differentiate it again and again."""
    from mnif_nerf.fields.siren import siren_forward_reference, split_rows  # that module imports this one

    layers = [(out, fan_in) for fan_in, out in pairwise(sizes)]
    half = len(layers)
    # Views, so that they are inputs of the graph below whether or not anyone wants their gradient.
    given = [tensor.view_as(tensor) if tensor.requires_grad else tensor for tensor in (grad_out, *params)]
    grad_out, *params = [tensor if tensor.requires_grad else tensor.detach().requires_grad_() for tensor in given]
    weights, biases = split_rows(params, layers) if len(params) == half else (params[:half], params[half:])
    values = siren_forward_reference(weights, biases, points, final_sine)
    gradient = torch.autograd.grad(values, params, grad_out, create_graph=True)
    return torch.autograd.grad(gradient, (grad_out, *params), along, create_graph=True, allow_unused=True)


def inner_contiguous(params: Sequence[Tensor]) -> tuple[Tensor, ...]:
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
    mode: int,
    sizes: tuple[int, ...],
    final_sine: bool,
    points: Tensor,
    params: Sequence[Tensor],
    *,
    out: Tensor | None = None,
    grads: Sequence[Tensor] = (),
    seed: Tensor | PointLoss | None = None,
    losses: Tensor | None = None,
    along: Sequence[Tensor] = (),
) -> None:
    """Fill in the struct and run.

    Args:
        out: contiguous, filled with values (with slopes of values in a second-order call).
        grads: contiguous rows, filled with the gradient, or its slope along `along`.
        seed: what the gradient is of: values times this contiguous tensor, or a loss.
        losses: `[B]`, filled with the loss.
        along: the direction, tensors like `params`.
    """
    library = _library()
    assert library is not None, "callers ask `usable` first"
    layers, batch, count = len(sizes) - 1, points.shape[0], points.shape[2]
    call = _Call(mode=mode, layers=layers, final_sine=final_sine, batch=batch, points=count)
    call.restraint = {"avx2": 1, "plain": 2}.get(os.environ.get("MNIF_KERNEL", ""), 0)
    call.x, (call.x_batch, call.x_feature, call.x_point) = points.data_ptr(), points.stride()
    call.sizes[: layers + 1] = sizes
    _point_at(call.weights, call.weight_batch, call.biases, call.bias_batch, sizes, params)
    if along:
        _point_at(call.along_weights, call.along_weight_batch, call.along_biases, call.along_bias_batch, sizes, along)
    work = batch * count * _PRODUCTS[mode] * sum(fan_in * out for fan_in, out in pairwise(sizes))
    call.threads = max(1, min(num_threads(), work // _WORK_PER_THREAD))
    if isinstance(seed, PointLoss):
        call.loss, call.targets = _LOSSES.index(seed.kind), seed.targets.data_ptr()
        call.target_batch, call.target_output, call.target_point = seed.targets.stride()
        if seed.weights is not None:
            call.point_weights = seed.weights.data_ptr()
            call.point_weight_batch, call.point_weight_point = seed.weights.stride()
    elif seed is not None:
        call.grad_out = seed.data_ptr()
    call.out = None if out is None else out.data_ptr()
    call.losses = None if losses is None else losses.data_ptr()
    for layer, grad in enumerate(grads):
        call.grads[layer] = grad.data_ptr()
    if library.mnif_siren_run(ctypes.byref(call)):
        raise MemoryError("the SIREN kernel found no memory for its buffers (about a megabyte per thread)")


def _point_at(
    weights: Any, weight_batch: Any, biases: Any, bias_batch: Any, sizes: tuple[int, ...], params: Sequence[Tensor]
) -> None:
    """Addresses and batch strides of every layer's weights and biases, in rows or apart."""
    layers = len(sizes) - 1
    packed = len(params) == layers
    for layer, (fan_in, out) in enumerate(pairwise(sizes)):
        weight = params[layer]
        weights[layer], weight_batch[layer] = weight.data_ptr(), weight.stride(0)
        if packed:
            biases[layer], bias_batch[layer] = weight.data_ptr() + 4 * out * fan_in, weight.stride(0)
        else:
            bias = params[layers + layer]
            biases[layer], bias_batch[layer] = bias.data_ptr(), bias.stride(0)
