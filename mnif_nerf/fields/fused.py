"""The fused Triton kernel of SIRENs behind `evaluate` and `point_loss` on CUDA, where it is faster than torch there.

Whether it is, a short measurement says: for each form, number of networks, rounded number of points and kind of work
once in a process. Its answers must also agree with torch's. Where Triton is missing or does not compile, torch's
batched products do the work, and the log says so once. Nothing is measured while a CUDA graph is recorded; take a step
before.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.fields import kernel
from mnif_nerf.fields.network import NetworkForm, num_parameters

MAX_WIDTH = 128
_MAX_INPUTS, _LEAST_TILE = 8, 16  # tl.dot wants 16 rows or more
_LEAST_POINTS = 1 << 13  # of all networks together; below, the launch is all there is to gain
_WAVES = 4  # programs of a gradient for each multiprocessor
_REPEATS = 5
# Sums of thousands in another order; in TF32, of numbers with 10 bits through several layers.
_TOLERANCE, _TOLERANCE_TF32 = 1e-3, 3e-2

_log = logging.getLogger(__name__)
_chosen: dict[tuple[Any, ...], Fused | None] = {}
_told: set[str] = set()

Work = Callable[["Fused | None"], Sequence[Tensor]]
"""A piece of work by this backend, or by torch (None), and what came out of it."""


@dataclass(frozen=True)
class Fused:
    """The kernel with the sizes of its programs, a `differentiable.Backend`.

    Attributes:
        block: points of a program at a time.
        warps: of a program.
        splits: programs for the gradient of one network; 0 as many as keep the device busy.
    """

    block: int = 64
    warps: int = 4
    splits: int = 0

    def values(self, form: NetworkForm, points: Tensor, flat: Sequence[Tensor]) -> Tensor:
        """See `Backend`."""
        batch, _, count = points.shape
        values = points.new_empty(batch, form.sizes[-1], count)
        grid = (_cdiv(count, self.block), batch)
        _launch("siren_values", grid, points, (torch.cat(list(flat), dim=1), values), self._sizes(form))
        return values

    def gradient(
        self, form: NetworkForm, points: Tensor, grad_out: Tensor, flat: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """See `Backend`."""
        slots, scratch = self._buffers(form, points, 1)
        packed, seed = torch.cat(list(flat), dim=1), grad_out.contiguous()
        grid = (slots.shape[1], len(points))
        _launch("siren_gradient", grid, points, (packed, seed, slots, scratch), self._sizes(form))
        return _unpacked(form, slots)

    def second(
        self,
        form: NetworkForm,
        points: Tensor,
        grad_out: Tensor,
        flat: Sequence[Tensor],
        along: Sequence[Tensor],
        curvature: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Backend`; `curvature` `[B, out, N]` is what `grad_out` changes by where a value changes by 1."""
        slots, scratch = self._buffers(form, points, 2)
        packed, direction = torch.cat(list(flat), dim=1), torch.cat(list(along), dim=1)
        seed = grad_out.contiguous()
        slopes = torch.empty_like(seed)
        curved = seed if curvature is None else curvature.contiguous()  # something to point at
        tensors = (packed, direction, seed, curved, slopes, slots, scratch)
        grid = (slots.shape[1], len(points))
        sizes = {**self._sizes(form), "CURVED": curvature is not None}
        _launch("siren_second", grid, points, tensors, sizes)
        return slopes, _unpacked(form, slots)

    def _sizes(self, form: NetworkForm) -> dict[str, Any]:
        width, outputs = form.sizes[1], form.sizes[-1]
        return {
            "IN": form.sizes[0],
            "WIDTH": width,
            "HIDDEN": len(form.shapes) - 2,
            "OUT": outputs,
            "FINAL_SINE": form.final_sine,
            "PARAMETERS": num_parameters(form.shapes),
            "D": _tile(width),
            "DO": _tile(outputs),
            "BLOCK": self.block,
            # Three products of TF32 come to single precision; without matrix units the compiler takes minutes.
            "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
            "num_warps": self.warps,
            "num_stages": 1,
        }

    def _buffers(self, form: NetworkForm, points: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
        """Slots `[B, splits, P]` of sums, and the scratch of so many tiles a layer for every program."""
        batch, _, count = points.shape
        splits = self.splits or _cdiv(_WAVES * _multiprocessors(points.device), batch)
        splits = max(1, min(splits, _cdiv(count, self.block)))
        slots = points.new_empty(batch, splits, num_parameters(form.shapes))
        layers = len(form.shapes) - 1
        return slots, points.new_empty(batch * splits * tiles * layers * _tile(form.sizes[1]) * self.block)


def backend(
    form: NetworkForm,
    flat: Sequence[Tensor],
    points: Tensor,
    use: str,
    work: Work,
    others: Sequence[Tensor] = (),
    twice: bool = False,
) -> Fused | None:
    """The kernel for a piece of work, or None where torch is to do it.

    Args:
        form: form of the networks.
        flat: one `[B, out * in + out]` per layer.
        points: `[B, in, N]`.
        use: what the work is, so that it is measured once for each.
        work: it, for the measurement.
        others: further tensors that the work takes.
        twice: whether it takes second derivatives.
    """
    if not usable(form, flat, points, others):
        return None
    batch, _, count = points.shape
    rounded, tf32 = (count - 1).bit_length(), torch.backends.cuda.matmul.allow_tf32
    key = (form, batch, rounded, use, twice, tf32, points.device)
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return None
        _chosen[key] = fastest(candidates(form, twice), work, functools.partial(_seconds, points.device))
    return _chosen[key]


def usable(
    form: NetworkForm, flat: Sequence[Tensor], points: Tensor, others: Sequence[Tensor] = (), device: str = "cuda"
) -> bool:
    """Whether the kernel can take these networks at these points.

    It takes what `kernel.takes`, on CUDA, of networks with one hidden width of at most `MAX_WIDTH`, where there are
    enough points for its launch to pay.
    """
    if points.device.type != device or points.ndim != 3 or points.shape[0] * points.shape[2] < _LEAST_POINTS:
        return False
    sizes = form.sizes
    one_width = len(set(sizes[1:-1])) == 1 and sizes[1] <= MAX_WIDTH
    fits = one_width and sizes[0] <= _MAX_INPUTS and sizes[-1] <= _LEAST_TILE
    return fits and kernel.takes(form, flat, points, others, device)


def candidates(form: NetworkForm, twice: bool = False) -> list[Fused]:
    """Sizes of programs that may be the fastest, most of whose tiles the compiler keeps in registers.

    Args:
        form: form of the networks.
        twice: for second derivatives, whose programs take the compiler the longest: one choice alone.
    """
    sizes = [Fused(32, 8), Fused(64, 8)] if form.sizes[1] <= 64 else [Fused(16, 8), Fused(32, 8)]
    return sizes[:1] if twice else sizes


def fastest(choices: Sequence[Fused], work: Work, seconds: Callable[[Callable[[], Any]], float]) -> Fused | None:
    """The fastest of the choices for a piece of work, or None where that is torch.

    Args:
        choices: what may compute it.
        work: called with each of them, and with None for torch.
        seconds: how long a call takes.
    """
    try:
        wanted = [tensor.detach().clone() for tensor in work(None)]
        best, limit = None, seconds(lambda: work(None))
    except torch.cuda.OutOfMemoryError:  # torch keeps every activation, the kernel none
        wanted, best, limit = [], None, float("inf")
    for choice in choices:
        try:
            found = work(choice)
            wrong = _differs(found, wanted)
            if wrong is not None:
                _tell(f"its results are off by {wrong:.0e}")
                continue
            took = seconds(functools.partial(work, choice))
        except torch.cuda.OutOfMemoryError:
            continue
        except Exception as error:  # whatever Triton's compiler raises: torch goes on
            _tell(f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no words')[:200]}")
            continue
        if took < limit:
            best, limit = choice, took
    return best


def _tell(why: str) -> None:
    """Say once why the kernel is not used."""
    if why not in _told:
        _told.add(why)
        _log.warning("The fused GPU kernel of SIRENs is not used for some networks (%s): torch computes instead.", why)


def tolerance() -> float:
    """How far results may be from torch's: norm of the difference by the norm."""
    return _TOLERANCE_TF32 if torch.backends.cuda.matmul.allow_tf32 else _TOLERANCE


def _differs(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float | None:
    """By how much results are off beyond what rounding explains; None where they are not."""
    bound = tolerance()
    for mine, reference in zip(found, wanted):
        off = float((mine.detach() - reference).norm() / reference.norm().clamp(min=1e-20))
        if not off <= bound:
            return off
    return None


def _seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Wall seconds of a call, the best of a few."""
    times = []
    for _ in range(_REPEATS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


@contextlib.contextmanager
def forgotten() -> Any:
    """Within the block nothing is known of earlier measurements."""
    kept, said = dict(_chosen), set(_told)
    _chosen.clear()
    _told.clear()
    try:
        yield
    finally:
        for now, before in ((_chosen, kept), (_told, said)):
            now.clear()
            now.update(before)  # type: ignore[arg-type]


@functools.cache
def _kernels() -> Any:
    """The module of the kernels, which imports Triton.

    Raises:
        ImportError: Triton is not there.
    """
    return importlib.import_module("mnif_nerf.fields._siren_triton")


def _launch(name: str, grid: tuple[int, int], points: Tensor, tensors: Sequence[Tensor], sizes: dict[str, Any]) -> None:
    with torch.cuda.device_of(points):  # Triton launches on the current device
        getattr(_kernels(), name)[grid](points, *points.stride(), *tensors, points.shape[2], **sizes)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _unpacked(form: NetworkForm, slots: Tensor) -> tuple[Tensor, ...]:
    """Flat weights, one per layer, of the sum of all slots."""
    return slots.sum(dim=1).split([num_parameters([shape]) for shape in form.shapes], dim=1)


def _tile(size: int) -> int:
    """The power of two that a size is padded to."""
    return max(_LEAST_TILE, 1 << (size - 1).bit_length())


def _cdiv(count: int, size: int) -> int:
    return -(-count // size)
