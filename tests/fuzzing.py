"""Trying readers on damaged files: a few in the suite; `MNIF_FUZZ_SECONDS=600 pytest` goes on for so long with each."""

from __future__ import annotations

import os
import re
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from mnif_nerf.errors import MNIFError

SECONDS = float(os.environ.get("MNIF_FUZZ_SECONDS", "0"))


def explore(title: str, contents: SearchStrategy[bytes], attempt: Callable[[bytes], str], examples: int) -> None:
    """Hand drawn files to `attempt`, which returns the sentence that refuses one: `examples`, or for SECONDS of CPU."""
    began, said = time.process_time(), Counter[str]()

    def count(content: bytes) -> None:
        said[re.sub(r"[\"'(].*|\S*\d\S*", "", attempt(content))] += 1  # numbers and what is quoted differ each time

    often = settings(
        max_examples=400 if SECONDS else examples,
        derandomize=not SECONDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(contents)(count))
    often()
    while time.process_time() - began < SECONDS:
        often()
    tried, read = said.total(), said.pop("", 0)
    print(f"{title}: {tried} files, {read} read, {len(said)} sentences, {time.process_time() - began:.0f} CPU seconds")


def reads_or_tells(path: Path, content: bytes, read: Callable[[Path], object]) -> str:
    """Write a file and read it; the sentence that this ended in, if any. Anything but a result or one sentence fails.

    What numpy and Python allocate meanwhile is bounded: 48 MiB (tables of libraries, a picture decoded) and 1,200 times
    the file's size.
    """
    path.write_bytes(content)
    started = tracemalloc.is_tracing()
    if not started:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    said = ""
    try:
        read(path)
    except MNIFError as error:
        said = str(error)
    finally:
        taken = tracemalloc.get_traced_memory()[1] - before
        if not started:
            tracemalloc.stop()
    assert not said or (said.endswith(".") and "\n" not in said and len(said) < 1200), said
    said.encode()  # what cannot be printed is no sentence
    assert taken < 48 * 2**20 + 1200 * len(content), f"{taken} bytes for a file of {len(content)}"
    return said
