"""Where console scripts start: `mnif-export-mesh` is `mnif_nerf.start:export_mesh`.

A command's imports take half a second, in which Ctrl-C would be answered by Python's traceback.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable


def __getattr__(name: str) -> Callable[[], None]:
    if name.startswith("_"):
        raise AttributeError(f"module 'mnif_nerf.start' has no attribute {name!r}")
    return functools.partial(_start, f"mnif_nerf.cli.{name}")


def _start(module: str) -> None:
    try:
        command = importlib.import_module(module)
    except KeyboardInterrupt:
        print("interrupted: nothing was begun.", file=sys.stderr)
        raise SystemExit(130) from None
    command.entrypoint()
