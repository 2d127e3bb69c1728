"""What this machine is, and how to make the best of it: device, threads, denormals."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mnif_nerf.errors import MNIFError

if TYPE_CHECKING:
    import torch

R = TypeVar("R")


def default_device_type() -> str:
    """ "cuda" where a CUDA device is usable, "cpu" everywhere else."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def use_tf32(wanted: bool, device: torch.device) -> None:
    """Let products of matrices on a CUDA device be of TF32 from now on, or of float32; nothing on any other device."""
    import torch

    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted


def flushes_denormals() -> bool:
    """Whether this thread's processor takes denormal numbers as zero at this moment."""
    return sys.float_info.min * 0.5 == 0.0


@contextlib.contextmanager
def denormals_flushed(flushed: bool = True) -> Iterator[None]:
    """Within the block, or the function it decorates, this thread takes denormal numbers as zero (or keeps them).

    Transmittance behind a surface and the squared gradients of unused weights underflow to denormals, on which
    processors are tens of times slower. Nothing else may run like this: SciPy's k-d tree, for one, recurses for ever
    where many points share the coordinate 0.0, because the number after 0 is a denormal. So the block holds tensor
    arithmetic only, and the thread's own setting is back at its end, also after an exception. Threads that are started
    within the block inherit the setting: the compiled kernel's live for one call, torch's pool serves torch alone.

    Args:
        flushed: False keeps denormals within the block, whatever the caller has set.
    """
    import torch

    before = flushes_denormals()
    torch.set_flush_denormal(flushed)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def threads_are_given() -> bool:
    """Whether the number of threads is not ours to choose: OMP_NUM_THREADS is set, or there is one processor."""
    return "OMP_NUM_THREADS" in os.environ or num_cores() == 1


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tune_threads(step: Callable[[], object], repeats: int = 3) -> int:
    """Time `step` with one, half and all of the available threads, and keep the fastest setting.

    On an idle machine two threads are nearly twice as fast; on a busy one they can be twenty times slower, because
    they wait for each other. So the choice is measured where the program runs, never assumed. Where OMP_NUM_THREADS
    is set, the user has decided, and nothing is timed.

    The compiled field kernel has threads of its own (`fields.kernel.set_num_threads`), which take work as they come
    and do not spin; they are not changed here.

    Args:
        step: a piece of the real work without lasting effects; called `1 + repeats` times per setting.
        repeats: timed calls per setting; their median counts.

    Returns:
        the number of torch's intra-op threads now set.
    """
    import torch

    available = num_cores()
    candidates = sorted({1, max(available // 2, 1), available})
    if threads_are_given():
        return torch.get_num_threads()
    times = {}
    for threads in candidates:
        torch.set_num_threads(threads)
        step()
        durations = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            durations.append(time.perf_counter() - start)
        times[threads] = sorted(durations)[len(durations) // 2]
    best = min(times, key=lambda threads: times[threads])
    torch.set_num_threads(best)
    return best


class ThreadTuner:
    """Times a loop's steps, and chooses the number of threads again where the machine became busy or idle.

    A choice is made again when a hundred steps took half as long again as the fastest hundred since then, ten seconds
    of steps later at the earliest, and after five minutes. A machine that stays busy is so not timed again and again.

    Args:
        probe: see `tune_threads`; called between steps.
        say: prints a line when another number is chosen.
    """

    _STEPS, _SLOWER, _LEAST, _MOST = 100, 1.5, 10.0, 300.0  # steps, ratio, seconds, seconds

    def __init__(self, probe: Callable[[], object], say: Callable[[str], None]) -> None:
        self._probe, self._say = probe, say
        self.threads = 0
        self._forget()

    def _forget(self) -> None:
        self._steps, self._seconds, self._since, self._fastest = 0, 0.0, 0.0, float("inf")

    def choose(self) -> int:
        """Time the probe, set the faster number of threads, and say so where it is another than before."""
        before, self.threads = self.threads, tune_threads(self._probe)
        self._forget()
        if self.threads != before:
            plural = "s" if self.threads > 1 else ""
            self._say(f"Training on {self.threads} thread{plural}, the faster choice just now.")
        return self.threads

    def step_took(self, seconds: float) -> None:
        """Take the duration of a step, in seconds."""
        self._steps, self._seconds, self._since = self._steps + 1, self._seconds + seconds, self._since + seconds
        if self._steps < self._STEPS:
            return
        slow = self._seconds > self._SLOWER * self._fastest
        self._fastest, self._steps, self._seconds = min(self._fastest, self._seconds), 0, 0.0
        if self._since > self._MOST or (slow and self._since > self._LEAST):
            self.choose()


def in_threads(function: Callable[..., R], *items: Iterable[Any]) -> Iterator[R]:
    """What `map` yields, of as many items at a time as there are cores.

    For independent pieces of a tenth of a second and more whose arithmetic leaves Python's lock alone (torch, scipy,
    the compiled kernels), but that are too small each to keep two threads busy. Torch takes one thread in each, unless
    the number of threads is given: then items are taken one by one.
    """
    import torch

    if threads_are_given():
        yield from map(function, *items)
        return
    before, grad = torch.get_num_threads(), torch.is_grad_enabled()

    def begin() -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(grad)  # of this thread

    pool = ThreadPoolExecutor(num_cores(), initializer=begin)
    try:
        yield from pool.map(function, *items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: sums are taken in one order, and the same seed gives the same numbers everywhere.

    It is also the safe choice beside other work: two OpenMP threads that wait for each other on a busy machine can
    take ten times as long. The compiled kernel has threads of its own, and gives the same bits with any number.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def describe() -> dict[str, Any]:
    """Processor, cores, accelerator, Python and library versions, as JSON-ready values."""
    import torch

    info: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
    }
    for package in ("mnif_nerf", "torch", "numpy", "diffusers", "nerfstudio"):
        try:
            info[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            info[package] = None
    return info


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def check_memory(resolution: int, bytes_per_cell: int, dimensions: int, name: str = "resolution") -> None:
    """Refuse a picture (2 dimensions) or a grid (3) that this machine's free memory cannot hold.

    The sentence calls the argument `name`.

    Raises:
        MNIFError: with the largest resolution that fits.
    """
    needed, available = bytes_per_cell * resolution**dimensions, available_memory()
    if available is not None and needed > 0.8 * available:
        fitting = int((0.8 * available / bytes_per_cell) ** (1 / dimensions))
        raise MNIFError(
            f"{name} {resolution} needs about {needed / 2**30:.1f} GiB of memory and "
            f"{available / 2**30:.1f} GiB are free; use at most {fitting}."
        )


def available_memory() -> int | None:
    """Free bytes: the kernel's MemAvailable, or a container's lower limit; None if unknown."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        in_container = _group_memory(Path("/sys/fs/cgroup"))
        if in_container is not None:
            found.append(in_container)
    except (OSError, ValueError, IndexError):
        pass  # not Linux, or no such control group: whatever was found before stands
    return max(min(found), 0) if found else None


_CHUNK_ON_CPU = 64 * 2**20
_CHUNK_SHARE = 4  # a chunk may take one of so many parts of what a device has left


def chunk_memory(device: torch.device | str) -> int:
    """Bytes that one chunk of a long computation may take: a quarter of what is free on a CUDA device, what torch's
    allocator holds without use included; on the CPU, where larger chunks are no faster, 64 MiB."""
    import torch

    device = torch.device(device)
    if device.type != "cuda":
        return _CHUNK_ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + unused) // _CHUNK_SHARE


def _group_memory(group: Path) -> int | None:
    """Bytes a control group (version 2) may still take, or None without a limit.

    Cached files count as used there, and a packed store fills that cache; but the system drops them on demand.
    """
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
        return None
    statistics = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
    cached = int(statistics.get("active_file", 0)) + int(statistics.get("inactive_file", 0))
    return int(limit) - int((group / "memory.current").read_text()) + cached
