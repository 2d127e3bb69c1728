"""A configuration in a process of its own (so that its peak memory is its own), driven by the benchmark.

`Worker("train_step:Stepper", {...})` starts this file, which imports the class, notes its memory, builds the
object and then answers calls, one JSON line each. An idle worker sleeps; several can be timed in turns.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve()


def process_mb(field: str) -> float:
    """A size in MiB from /proc/self/status: VmRSS (resident), VmHWM (its peak), RssAnon (private).

    `ru_maxrss` only where that file is missing: a child process starts with its parent's.
    """
    try:
        with open("/proc/self/status", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


class Worker:
    """The benchmark's side: start, call, stop.

    Args:
        target: "module:class" in the benchmarks folder.
        arguments: JSON-ready keyword arguments of the class.
    """

    def __init__(self, target: str, arguments: dict[str, Any]) -> None:
        self.target = target
        self.process = subprocess.Popen(
            [sys.executable, str(_HERE), target, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def call(self, method: str, **arguments: Any) -> Any:
        """The result of a method of the worker's object ("memory" is every worker's own)."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is told by what it answered last, if anything
            self.process.stdin.write(json.dumps([method, arguments]) + "\n")
            self.process.stdin.flush()
        return self._read()

    def memory(self) -> dict[str, float]:
        """MiB: "peak", "added" (peak less imports), "private" (now, less imports); on CUDA "device" (peak)."""
        return self.call("memory")

    def _read(self) -> Any:
        from mnif_nerf.errors import MNIFError

        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise MNIFError(
                f"the process of {self.target} ended with code {code} (its own message is above; -9 often "
                "means too little memory); make the configuration smaller."
            )
        answer = json.loads(line)
        if "error" in answer:
            raise MNIFError(answer["error"])
        return answer["value"]

    def close(self) -> None:
        """Let the process end, and wait for it."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.process.poll() is None:
            self.process.kill()
        self.close()


def memory(resident: float, private: float) -> dict[str, float]:
    """See `Worker.memory`; the arguments are what the process held after its imports."""
    import torch

    found = {"peak": process_mb("VmHWM"), "private": process_mb("RssAnon") - private}
    found["added"] = found["peak"] - resident
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["device"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def warm_torch(device: str) -> None:
    """Let torch load what it loads on first use (tens of MiB), so that it counts with the imports."""
    import torch

    layer = torch.nn.Linear(8, 8).to(device)
    for optimizer in (torch.optim.Adam, torch.optim.AdamW):
        layer(torch.randn(4, 8, device=device)).sum().backward()
        optimizer(layer.parameters()).step()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()


def serve(target: str, arguments: dict[str, Any]) -> None:
    """Answer calls until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not get between the answers

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    from mnif_nerf.errors import MNIFError
    from mnif_nerf.machine import denormals_flushed

    try:
        module, name = target.split(":")
        build = getattr(importlib.import_module(module), name)
        warm_torch(arguments.get("device", "cpu"))
        at_start = process_mb("VmRSS"), process_mb("RssAnon")
        with denormals_flushed():
            subject = build(**arguments)
            answer({"value": None})
            for line in sys.stdin:
                method, given = json.loads(line)
                value = memory(*at_start) if method == "memory" else getattr(subject, method)(**given)
                answer({"value": value})
    except MNIFError as error:
        answer({"error": str(error)})


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
