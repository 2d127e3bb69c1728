"""The compiled CPU kernel of SIRENs behind `evaluate`: finding it, threads, and its place in autograd.

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
from mnif_nerf.fields.differentiable import differentiable_values, inner_contiguous
from mnif_nerf.fields.heads import DENSITY_GAIN, DENSITY_SCALE, DENSITY_SHIFT, DISTANCE_SCALE
from mnif_nerf.fields.losses import KINDS, PointLoss, RayLoss
from mnif_nerf.fields.network import NetworkForm, num_parameters
from mnif_nerf.machine import num_cores

_VERSION = 4
MAX_LAYERS = 32
_MAX_THREADS = 64
MAX_SAMPLES = 64  # of a ray: those of a block
# Multiplications one thread does in about a tenth of a millisecond; for less, starting another does not pay.
_WORK_PER_THREAD = 4_000_000
# The modes of a call, and how many products of a weight matrix with all points each of them takes.
_FORWARD, _GRADIENT, _SECOND = range(3)
_PRODUCTS = (1, 3, 8)

_log = logging.getLogger(__name__)
_reference: ContextVar[bool] = ContextVar("mnif_reference", default=False)
_threads = 0


class _Rays(ctypes.Structure):
    """Mirror of `struct rays` in _siren_kernel.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("count", "samples", "carve_points")),
        *((name, ctypes.c_void_p) for name in ("origins", "directions", "near", "far", "offsets")),
        *((name, ctypes.c_void_p) for name in ("colors", "mask", "carve", "shares")),
        *((name, ctypes.c_float) for name in ("share", "mask_weight", "carve_weight", "carve_length")),
        *((name, ctypes.c_float) for name in ("density_scale", "density_gain", "density_shift")),
    ]


class _Call(ctypes.Structure):
    """Mirror of `struct call` in _siren_kernel.c."""

    _fields_ = [
        ("mode", ctypes.c_int32),
        ("loss", ctypes.c_int32),
        ("layers", ctypes.c_int32),
        ("final_sine", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("restraint", ctypes.c_int32),
        ("distance_scale", ctypes.c_float),
        ("truncation", ctypes.c_float),
        ("near", ctypes.c_float),
        ("color_weight", ctypes.c_float),
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
        ("rays", ctypes.POINTER(_Rays)),
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
        wish = os.environ.get("OMP_NUM_THREADS", "")
        _threads = min(int(wish) if wish.isdecimal() and int(wish) > 0 else num_cores(), _MAX_THREADS)
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


def usable(form: NetworkForm, flat: Sequence[Tensor], points: Tensor, others: Sequence[Tensor] = ()) -> bool:
    """Whether the kernel can take these networks at these points.

    It takes SIRENs in float32 on the CPU whose flat weights fit their form and the points (it performs no bounds
    checks), where points need no gradient and nothing traces.

    Args:
        form, flat, points: as of `run`.
        others: tensors that must be float32 and on the CPU too.
    """
    return len(form.shapes) <= MAX_LAYERS and takes(form, flat, points, others, "cpu") and available()


def takes(form: NetworkForm, flat: Sequence[Tensor], points: Tensor, others: Sequence[Tensor], device: str) -> bool:
    """What `usable` says, of any kernel of SIRENs for this type of device."""
    if form.family != "siren" or _reference.get() or (points.requires_grad and torch.is_grad_enabled()):
        return False
    # A trace (ONNX export), a compiler and torch.func must see torch operations.
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    for tensor in (points, *flat, *others):
        if tensor.dtype != torch.float32 or tensor.device.type != device or tensor.numel() == 0:
            return False
    return len(form.shapes) >= 2 and _fits(form, flat, points)


def _fits(form: NetworkForm, flat: Sequence[Tensor], points: Tensor) -> bool:
    sizes = form.sizes
    if (
        points.ndim != 3
        or points.shape[1] != sizes[0]
        or any(s != (b, a) for s, (a, b) in zip(form.shapes, pairwise(sizes)))
    ):
        return False
    return [tuple(part.shape) for part in flat] == [(len(points), num_parameters([shape])) for shape in form.shapes]


def run(form: NetworkForm, flat: Sequence[Tensor], points: Tensor) -> Tensor:
    """Values `[B, out, N]` at `points` `[B, in, N]`; differentiable in the flat weights.

    The caller has asked `usable`.

    Args:
        form: of SIRENs.
        flat: one `[B, out * in + out]` per layer.
        points: any strides.

    Raises:
        MemoryError: no memory for the kernel's buffers (about a megabyte per thread).
    """
    return differentiable_values(_Compiled(), form, points, flat)


def loss_and_gradient(
    form: NetworkForm, flat: Sequence[Tensor], points: Tensor, loss: PointLoss
) -> tuple[Tensor, list[Tensor]]:
    """Losses `[B]` and their gradients, one tensor like each of `flat`; neither differentiable. See `run`."""
    gradient, losses = _new_flat(form, points), points.new_empty(len(points))
    _call(_Task(_GRADIENT, form, points, flat, grads=gradient, seed=loss, losses=losses))
    return losses, gradient


def ray_losses(
    form: NetworkForm, flat: Sequence[Tensor], loss: RayLoss, shares: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Losses of rendered rays `[B, 3]` (colours, mask, carve points: weighted means over an instance's rays or points),
    and the gradient of their sum in the flat weights; neither differentiable.

    The caller has asked `usable`, and that shapes fit; there are `MAX_SAMPLES` samples at most.

    Args:
        form: of radiance fields.
        flat: one `[B, out * in + out]` per layer.
        loss: of contiguous tensors.
        shares: contiguous `[B, 3]`, what each loss counts in the gradient instead of `loss.share`.
    """
    points = loss.origins.transpose(1, 2)
    gradient, losses = _new_flat(form, points), points.new_empty(len(points), 3)
    _call(_Task(_GRADIENT, form, points, flat, grads=gradient, seed=loss, losses=losses, shares=shares))
    return losses, gradient


def hessian_product(
    form: NetworkForm, flat: Sequence[Tensor], along: Sequence[Tensor], points: Tensor, loss: PointLoss
) -> list[Tensor]:
    """Second derivative of every loss in its weights times `along`, one tensor like each of `flat`. See `run`."""
    product = _new_flat(form, points)
    _call(_Task(_SECOND, form, points, flat, grads=product, seed=loss, along=along))
    return product


class _Compiled:
    """The kernel as `differentiable.differentiable_values` asks for one."""

    def values(self, form: NetworkForm, points: Tensor, flat: Sequence[Tensor]) -> Tensor:
        """See `Backend`."""
        values = points.new_empty(len(points), form.sizes[-1], points.shape[2])
        _call(_Task(_FORWARD, form, points, flat, out=values))
        return values

    def gradient(
        self, form: NetworkForm, points: Tensor, grad_out: Tensor, flat: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """See `Backend`."""
        gradient = _new_flat(form, points)
        _call(_Task(_GRADIENT, form, points, flat, grads=gradient, seed=grad_out.contiguous()))
        return tuple(gradient)

    def second(
        self, form: NetworkForm, points: Tensor, grad_out: Tensor, flat: Sequence[Tensor], along: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """See `Backend`."""
        slopes, product = points.new_empty(grad_out.shape), _new_flat(form, points)
        seed, along = grad_out.contiguous(), inner_contiguous(along)
        _call(_Task(_SECOND, form, points, flat, out=slopes, grads=product, seed=seed, along=along))
        return slopes, product


def _new_flat(form: NetworkForm, points: Tensor) -> list[Tensor]:
    return [points.new_empty(len(points), num_parameters([shape])) for shape in form.shapes]


@dataclass(frozen=True)
class _Task:
    """What one call computes.

    Attributes:
        mode: `_FORWARD`, `_GRADIENT` or `_SECOND`.
        form, points, flat: the networks, and where.
        out: contiguous, filled with values (with slopes of values in a second-order call).
        grads: contiguous flat weights, filled with the gradient, or its slope along `along`.
        seed: what the gradient is of: values times this contiguous tensor, or a loss. The points of rays are made
            by the kernel.
        losses: `[B]` or, of rays, `[B, 3]`, filled with the loss.
        shares: see `ray_losses`.
        along: the direction, tensors like `flat`.
    """

    mode: int
    form: NetworkForm
    points: Tensor
    flat: Sequence[Tensor]
    out: Tensor | None = None
    grads: Sequence[Tensor] = ()
    seed: Tensor | PointLoss | RayLoss | None = None
    losses: Tensor | None = None
    shares: Tensor | None = None
    along: Sequence[Tensor] = ()


def _call(task: _Task) -> None:
    """Fill in the struct and run."""
    library = _library()
    assert library is not None, "callers ask `usable` first"
    form, points, seed = task.form, task.points, task.seed
    layers, batch, count = len(form.shapes), points.shape[0], points.shape[2]
    if isinstance(seed, RayLoss):
        count = seed.offsets.shape[1] * seed.offsets.shape[2] + seed.carve_points.shape[1]
    call = _Call(mode=task.mode, layers=layers, final_sine=form.final_sine, batch=batch, points=count)
    call.restraint = {"avx2": 1, "plain": 2}.get(os.environ.get("MNIF_KERNEL", ""), 0)
    call.x, (call.x_batch, call.x_feature, call.x_point) = points.data_ptr(), points.stride()
    call.sizes[: layers + 1] = form.sizes
    _point_at(call.weights, call.weight_batch, call.biases, call.bias_batch, form, task.flat)
    if task.along:
        _point_at(
            call.along_weights, call.along_weight_batch, call.along_biases, call.along_bias_batch, form, task.along
        )
    work = batch * count * _PRODUCTS[task.mode] * sum(out * fan_in for out, fan_in in form.shapes)
    call.threads = max(1, min(num_threads(), work // _WORK_PER_THREAD))
    if isinstance(seed, RayLoss):
        call.loss, call.x_feature, call.x_point = 1 + len(KINDS), 1, 3  # of the points that the kernel makes
        call.rays = ctypes.pointer(_rays(seed, task.shares))
    elif isinstance(seed, PointLoss):
        call.loss, call.targets = 1 + KINDS.index(seed.kind), seed.targets.data_ptr()
        call.distance_scale = DISTANCE_SCALE
        call.truncation, call.near = seed.distance.truncation, seed.distance.near
        call.color_weight = seed.distance.color_weight
        call.target_batch, call.target_output, call.target_point = seed.targets.stride()
        if seed.weights is not None:
            call.point_weights = seed.weights.data_ptr()
            call.point_weight_batch, call.point_weight_point = seed.weights.stride()
    elif seed is not None:
        call.grad_out = seed.data_ptr()
    call.out = None if task.out is None else task.out.data_ptr()
    call.losses = None if task.losses is None else task.losses.data_ptr()
    for layer, grad in enumerate(task.grads):
        call.grads[layer] = grad.data_ptr()
    if library.mnif_siren_run(ctypes.byref(call)):
        raise MemoryError("the SIREN kernel found no memory for its buffers (about a megabyte per thread)")


def _rays(loss: RayLoss, shares: Tensor | None) -> _Rays:
    tensors = (*loss.tensors, shares)
    return _Rays(
        *loss.offsets.shape[1:],
        loss.carve_points.shape[1],
        *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
        loss.share,
        loss.mask_weight,
        loss.carve_weight,
        loss.carve_length,
        DENSITY_SCALE,
        DENSITY_GAIN,
        DENSITY_SHIFT,
    )


def _point_at(
    weights: Any, weight_batch: Any, biases: Any, bias_batch: Any, form: NetworkForm, flat: Sequence[Tensor]
) -> None:
    """Addresses and batch strides of every layer's weights and biases."""
    for layer, (part, (out, fan_in)) in enumerate(zip(flat, form.shapes)):
        weights[layer], weight_batch[layer] = part.data_ptr(), part.stride(0)
        biases[layer], bias_batch[layer] = part.data_ptr() + 4 * out * fan_in, part.stride(0)
