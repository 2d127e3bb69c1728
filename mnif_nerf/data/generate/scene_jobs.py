"""Rendering many scenes on all cores: jobs that can be stopped at any moment and taken up again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mnif_nerf.data.generate.writer import write_scene
from mnif_nerf.data.geometry.raytrace import Camera, Surface, SurfaceRenderer
from mnif_nerf.errors import MNIFError
from mnif_nerf.machine import num_cores
from mnif_nerf.progress import tracked

Job = TypeVar("Job")
Result = TypeVar("Result")

SHARE_ABOVE = 0.75
"""Share of training cameras above the ground plane: whole sphere, but more of it where people look from."""


@dataclass(frozen=True)
class Pictures:
    """One scene folder to fill: where, and from which poses [V, 4, 4]."""

    folder: Path
    poses: np.ndarray


class ViewPlan:
    """Which pictures each scene of a data set gets, for a category, numbers of views and a resolution.

    Training scenes get `train_views` over the whole sphere, and `heldout_views` from a spiral in a folder of
    their own (`<category>_train_val`; none where 0); other scenes get `test_views` from a spiral.
    """

    def __init__(
        self,
        output: Path,
        category: str,
        train_views: int,
        heldout_views: int,
        test_views: int,
        resolution: int,
    ) -> None:
        from mnif_nerf.rendering.cameras import (
            Intrinsics,
        )  # late, so that mistakes are told before torch loads

        self.prefix = output / category
        self.train_views = train_views
        self.camera: Camera = Intrinsics.default(resolution)
        self._heldout = heldout_poses(heldout_views) if heldout_views else None
        self._spiral = heldout_poses(test_views)

    def pictures(self, split: str, name: str, seed: Sequence[int]) -> tuple[Pictures, ...]:
        """Folders and poses of one scene; `seed` turns the training cameras."""
        if split != "train":
            return (Pictures(self._folder(split, name), self._spiral),)
        training = training_poses(self.train_views, np.random.default_rng(seed))
        found = [Pictures(self._folder("train", name), training)]
        if self._heldout is not None:
            found.append(Pictures(self._folder("train_val", name), self._heldout))
        return tuple(found)

    def _folder(self, split: str, name: str) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}_{split}") / name


def training_poses(count: int, rng: np.random.Generator) -> np.ndarray:
    """Cameras float32 [count, 4, 4] over the whole sphere, three quarters of them above the ground plane.

    A golden-angle lattice with a random turn and a random offset in height: no two scenes share views.
    """
    from mnif_nerf.rendering.cameras import orbit_pose

    golden = 180.0 * (3.0 - np.sqrt(5.0))
    turn, offset = rng.uniform(0, 360), rng.uniform(0, 1)
    share = (np.arange(count) + offset) / count
    below = 1.0 - SHARE_ABOVE
    height = np.where(share < below, share / below - 1.0, (share - below) / SHARE_ABOVE)
    elevation = np.degrees(np.arcsin(np.clip(height, -0.999, 0.999)))
    poses = [orbit_pose(float(e), float(turn + golden * i)) for i, e in enumerate(elevation)]
    return np.stack([pose.numpy() for pose in poses]).astype(np.float32)


def heldout_poses(count: int) -> np.ndarray:
    """Cameras float32 [count, 4, 4] on a spiral over the upper hemisphere."""
    from mnif_nerf.rendering.cameras import spiral_poses

    # A golden angle a step where there are few, else four turns and a bit: whole turns show one side only.
    return spiral_poses(count, turns=min(0.381966 * count, 4.2)).numpy().astype(np.float32)


def render_pictures(surface: Surface, pictures: Sequence[Pictures], camera: Camera) -> bool:
    """Render and write those scene folders that are not there yet.

    Returns: whether anything of the surface is seen; a folder in which all pictures would be blank is not written.
    """
    missing = [item for item in pictures if not item.folder.exists()]
    renderer = SurfaceRenderer(surface) if missing else None
    for item in missing:
        assert renderer is not None
        images = np.stack([renderer.render(pose, camera) for pose in item.poses])
        if not images[..., 3].any():
            return False
        write_scene(item.folder, images, item.poses, camera)
    return True


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int | None,
    progress: bool,
    title: str,
    done: Callable[[Job, Result], object] | None = None,
) -> list[Result]:
    """Run `function` over `jobs` in worker processes and return the results in order.

    Ctrl-C lets the running jobs finish and drops the others, so that no temporary folder stays behind.

    Args:
        function: importable (top-level) function of one picklable job.
        jobs: what to do.
        workers: processes; None for one per core; 1 works in this process.
        progress: whether to show a bar.
        title: the bar's words.
        done: told here of each job as it ends, in any order.

    Raises:
        MNIFError: `workers` is below 1, or a worker process died; and whatever `function` raises.
    """
    if workers is not None and workers < 1:
        raise MNIFError(f"`workers` {workers}: must be 1 or more.")
    if not jobs:
        return []
    count = min(workers or num_cores(), len(jobs))
    if count <= 1:
        return [_run_here(function, job, done) for job in tracked(jobs, title, len(jobs), progress)]
    context = _context(function.__module__)
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_quiet_worker)
    try:
        futures = {executor.submit(function, job): job for job in jobs}
        for future in tracked(as_completed(futures), title, len(jobs), progress):
            _raise_early(future)
            if done is not None:
                done(futures[future], future.result())
        return [future.result() for future in futures]
    except BrokenProcessPool:
        # Workers import the main script, and one that makes them itself while it is imported fails there.
        script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
        guard = f', or in {script.name} call this below `if __name__ == "__main__":`' if script.suffix == ".py" else ""
        raise MNIFError(
            f"{title}: a worker process was killed, perhaps for want of memory; run again with `workers` 1{guard}."
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _run_here(function: Callable[[Job], Result], job: Job, done: Callable[[Job, Result], object] | None) -> Result:
    result = function(job)
    if done is not None:
        done(job, result)
    return result


def _context(module: str) -> BaseContext:
    """How workers start: never forked from here, where a thread of torch or Embree may hold a lock for ever."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    # Loaded once for all workers: the jobs hold cameras, whose module loads torch.
    context.set_forkserver_preload([module, "mnif_nerf.rendering.cameras"])
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        forkserver.ensure_running()  # it inherits what is ignored: Ctrl-C while it loads is the parent's alone
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
    return context


def _raise_early(future: Future[Any]) -> None:
    error = future.exception()
    if error is not None:
        raise error


def _quiet_worker() -> None:
    """Ctrl-C reaches the whole process group; only the parent acts on it. Where that was killed, the worker ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the process that asked for the jobs, and end at once: nobody would take the results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
