"""What the reader of meshes makes of every mesh below a folder, counted by outcome.

Each file is read as `mnif-data from-meshes` reads it and drawn from four sides. It is "read", "read, and something
told" (a missing picture, a part left out), "left out" with its reason, or one of what should never be: "blank" (read,
but a picture does not show it), "traceback", "crashed" (the process died) or "too slow". The exit status is 1 where one
of these occurs. What else lies in the folder is told as `from-meshes` tells it. Run:
`python benchmarks/corpus.py MESHES`.
"""

from __future__ import annotations

import multiprocessing
import re
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as TooSlow
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from mnif_nerf.data.generate.mesh_folder import MeshFolder, list_folder
from mnif_nerf.data.geometry.raytrace import SurfaceRenderer
from mnif_nerf.data.readers.mesh_files import read_mesh
from mnif_nerf.data.readers.mesh_notes import MeshNote, table
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.files import write_json
from mnif_nerf.progress import tracked
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose

READ, TOLD, LEFT_OUT = "read", "read, and something told", "left out"
NEVER = ("blank", "traceback", "crashed", "too slow")
_VIEWS = ((20, 30), (-20, 120), (35, 210), (5, 300))  # elevation and azimuth in degrees


@dataclass(frozen=True)
class Config:
    """Read every mesh below a folder.

    Attributes:
        folder: the folder.
        resolution: pixels along an edge of the pictures.
        seconds: that a file may take.
        output: JSON file for the outcome of every file.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    resolution: int = 64
    seconds: float = 120.0
    output: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a file: one of the words above, why, notes, files used beside it, faces, the share of its pictures
    that it covers, and seconds."""

    outcome: str
    reason: str = ""
    notes: tuple[MeshNote, ...] = ()
    used: tuple[str, ...] = ()
    faces: int = 0
    covered: float = 0.0
    seconds: float = 0.0


def look_at(path: Path, root: Path, resolution: int) -> Outcome:
    """Read a file and draw it."""
    start = time.perf_counter()
    try:
        content = read_mesh(path, root=root)
        renderer, camera = SurfaceRenderer(content.surface), Intrinsics.default(resolution)
        pictures = [renderer.render(orbit_pose(*view).numpy(), camera, supersampling=1) for view in _VIEWS]
    except MNIFError as error:
        return Outcome(LEFT_OUT, str(error).replace(str(path), path.name), seconds=time.perf_counter() - start)
    except Exception:
        return Outcome("traceback", traceback.format_exc(limit=-2), seconds=time.perf_counter() - start)
    shares = [float((picture[..., 3] > 0).mean()) for picture in pictures]
    word = "blank" if min(shares) == 0 else TOLD if content.notes else READ
    inside = tuple(item.relative_to(root).as_posix() for item in content.used if item.is_relative_to(root))
    seconds = time.perf_counter() - start
    return Outcome(word, "", content.notes, inside, len(content.surface.faces), float(np.mean(shares)), seconds)


def look_at_all(folder: MeshFolder, resolution: int, seconds: float) -> dict[Path, Outcome]:
    """The outcome of every mesh, each read in a process that may die or hang."""
    found: dict[Path, Outcome] = {}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context)
    try:
        for path in tracked(folder.meshes, "Reading meshes", len(folder.meshes)):
            try:
                found[path] = pool.submit(look_at, path, folder.root, resolution).result(seconds)
                continue
            except TooSlow:
                found[path] = Outcome("too slow", f"took more than {seconds:g} s")
                for process in list(pool._processes.values()):
                    process.kill()
            except BrokenProcessPool:
                found[path] = Outcome("crashed", "the process died")
            pool.shutdown(wait=False, cancel_futures=True)
            pool = ProcessPoolExecutor(1, mp_context=context)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def report(folder: MeshFolder, found: dict[Path, Outcome]) -> list[str]:
    """The lines that are printed."""
    counts = Counter(one.outcome for one in found.values())
    lines = ["| outcome | meshes |", "|---|---:|"]
    lines += [f"| {word} | {counts.get(word, 0)} |" for word in (READ, TOLD, LEFT_OUT, *NEVER)]
    names = {path: path.relative_to(folder.root).as_posix() for path in found}
    reasons: dict[str, list[str]] = {}
    for path, one in found.items():
        if one.reason:
            plain = one.reason if one.outcome in NEVER else re.sub(r"\d[\d,.]*", "N", one.reason.partition(": ")[2])
            reasons.setdefault(f"{one.outcome}: {plain}", []).append(names[path])
    lines += ["", *(f"{len(paths)} {reason} ({', '.join(paths[:3])})" for reason, paths in sorted(reasons.items()))]
    lines += [f"blank: {names[path]}" for path, one in found.items() if one.outcome == "blank"]
    lines += table([(names[path], one.notes) for path, one in found.items() if one.outcome in (READ, TOLD)])
    lines += folder.mentions(name for one in found.values() for name in one.used)
    slow = max(found, key=lambda path: found[path].seconds, default=None)
    if slow is not None:
        total = sum(one.seconds for one in found.values())
        lines.append(f"{total:.0f} s; the slowest: {names[slow]}, {found[slow].seconds:.1f} s")
    return lines


def main(config: Config) -> None:
    """Print the table; exit status 1 where something happened that never should."""
    root = Path(config.folder).resolve()
    folder = list_folder(root)
    found = look_at_all(folder, config.resolution, config.seconds)
    print("\n".join(report(folder, found)))
    if config.output is not None:
        write_json(config.output, {path.relative_to(root).as_posix(): asdict(one) for path, one in found.items()})
    if any(one.outcome in NEVER for one in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)), [Config])
