"""What the parts of `gpu.py` share: their settings, the rows they report, and how they run within their time."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import signal
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import common
import report
import torch

from mnif_nerf.files import read_json, write_json

COLUMNS = ("part", "what", "ours", "unit", "against", "ratio", "note")


@dataclass(frozen=True)
class Settings:
    """What every part is told.

    Attributes:
        device: "cpu" or "cuda".
        tiny: sizes for a test of the script: seconds on a CPU.
        work: folder of this run for data and for what one part leaves to another.
        output: folder of the results.
        seed: of everything.
        seconds: wall seconds that the part has; it is ended then.
        cars: how many cars the training would have at most.
    """

    device: str
    tiny: bool
    work: Path
    output: Path
    seed: int = 0
    seconds: float = 60.0
    cars: int = 2458

    def of(self, full: Any, tiny: Any) -> Any:
        """The size to take."""
        return tiny if self.tiny else full

    @property
    def workers(self) -> int:
        """Processes that make data: all cores but the four that measure, where there are that many."""
        return 1 if self.tiny else max(1, len(os.sched_getaffinity(0)))


@dataclass
class Rows:
    """What a part found, kept in a file from row to row: what it found before it ended early is not lost.

    Attributes:
        path: the JSON file.
        rows: one dictionary for each number.
        error: the sentence of what went wrong; None where nothing did.
        facts: whatever else belongs into the JSON.
    """

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def add(
        self, what: str, ours: Any, unit: str, against: Any = None, ratio: float | None = None, note: str = ""
    ) -> None:
        """A number of ours, beside what it is compared with; `ratio` above 1 is in our favour."""
        row = {"what": what, "ours": ours, "unit": unit, "against": against, "ratio": ratio, "note": note}
        self.rows.append(row)
        self.save()

    def save(self) -> None:
        """Write the file."""
        write_json(self.path, {"rows": self.rows, "error": self.error, "facts": self.facts})


def facts_of(settings: Settings, part: str) -> dict[str, Any]:
    """The facts that an earlier part left; empty where it failed."""
    path = settings.work / f"{part}.json"
    return read_json(path)["facts"] if path.is_file() else {}


def child(target: str, settings: Settings, path: Path, cores: list[int], nice: int) -> None:
    """Run "module:function", or "module:function:argument", in this process and leave its rows at `path`."""
    os.setsid()  # so that whatever it starts ends with it
    os.nice(nice)
    if cores:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))
    rows = Rows(path)
    rows.save()
    module, name, *arguments = target.split(":")
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        getattr(importlib.import_module(module), name)(settings, rows, *arguments)
    except BaseException as error:
        traceback.print_exc()
        words = str(error).strip().splitlines()
        rows.error = f"{type(error).__name__}: {words[0][:300] if words else 'no words'}"
    rows.save()


class Part:
    """A part in a process of its own.

    Args:
        name, target: of the part, and its "module:function" or "module:function:argument".
        settings: those of the run; the part's own `seconds` are put in.
        seconds: wall seconds after which it is ended.
        context: "fork" (cheap, before anything has touched CUDA) or "spawn".
        cores: processors that it may use; empty for all.
        nice: how far it stands back behind others.
    """

    def __init__(
        self, name: str, target: str, settings: Settings, seconds: float, context: str, cores: Any = (), nice: int = 0
    ) -> None:
        self.name, self.path = name, settings.work / f"{name}.json"
        self.start, self.seconds = time.perf_counter(), seconds
        told = replace(settings, seconds=seconds)
        make: Any = multiprocessing.get_context(context)
        self.process: BaseProcess = make.Process(target=child, args=(target, told, self.path, list(cores), nice))
        self.process.start()

    def finish(self, until: float | None = None) -> dict[str, Any]:
        """Wait for its end, at most to its own seconds (or `until`, on the clock of `time.perf_counter`).

        Returns: "rows", "error", "facts" and "seconds".
        """
        limit = self.start + self.seconds if until is None else until
        self.process.join(max(limit - time.perf_counter(), 0.0))
        late = self.process.is_alive()
        if late:
            self._kill()
        found = read_json(self.path) if self.path.is_file() else {"rows": [], "error": None, "facts": {}}
        if late:
            found["error"] = f"ended after its {self.seconds:.0f} seconds"
        elif self.process.exitcode and found["error"] is None:
            found["error"] = f"its process ended with code {self.process.exitcode}"
        return {**found, "seconds": round(time.perf_counter() - self.start, 2)}

    def stop(self) -> None:
        """End it now, if it still runs."""
        if self.process.is_alive():
            self._kill()

    def _kill(self) -> None:
        assert self.process.pid is not None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.process.kill()
        self.process.join()


def paces(steps: Callable[[int], Any], device: str, seconds: float, warm: int = 3) -> list[float]:
    """Wall seconds per step, one number for each of a few turns of many steps each.

    Args:
        steps: takes so many steps.
        device: which is waited for at both ends of a turn, and nowhere else.
        seconds: of all turns together, about; one turn is taken at least.
        warm: steps before the clock starts.
    """
    steps(warm)
    count = max(1, int(seconds / 5 / max(common.timed(lambda: steps(1), device), 1e-6)))
    found: list[float] = []
    start = time.perf_counter()
    while not found or time.perf_counter() - start < seconds:
        found.append(common.timed(functools.partial(steps, count), device) / count)
        if len(found) == 1:  # a better guess than that of a single step
            count = max(1, int(seconds / 5 / max(found[0], 1e-6)))
    return found[1:] or found


def pace(steps: Callable[[int], Any], device: str, seconds: float, warm: int = 3) -> float:
    """The median of `paces`."""
    return statistics.median(paces(steps, device, seconds, warm))


def added_memory(work: Callable[[], Any], device: str) -> float | None:
    """MiB of the device that `work` took at most beside what was held before; None on a CPU."""
    if torch.device(device).type != "cuda":
        work()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """The first by the second, where both are known."""
    return None if not ours or not theirs else ours / theirs


def _shown(value: Any) -> Any:
    return f"{value:.1e}" if isinstance(value, float) and 0 < abs(value) < 1e-3 else value


def table(parts: dict[str, dict[str, Any]]) -> str:
    """All rows of all parts, and what went wrong, as one Markdown table."""
    body: list[list[Any]] = []
    for name, part in parts.items():
        for row in part["rows"]:
            factor = None if row["ratio"] is None else f"{report.number(row['ratio'])}x"
            values = [_shown(row["ours"]), row["unit"], _shown(row["against"]), factor, row["note"]]
            body.append([name, row["what"], *values])
        if part["error"] is not None:
            body.append([name, "ERROR", None, "", None, None, part["error"]])
    return report.markdown_table(list(COLUMNS), body)
