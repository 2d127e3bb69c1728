"""How a user's mistake leaves a nerfstudio command: one sentence and exit code 1, without a traceback; and warnings."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from mnif_nerf.errors import MNIFError, flag_paths, system_error, with_flags
from mnif_nerf.progress import say

Result = TypeVar("Result")


def tell_user(function: Callable[..., Result]) -> Callable[..., Result]:
    """Decorate what nerfstudio calls directly: an `MNIFError` becomes `SystemExit("error: ...")`.

    nerfstudio's commands catch no errors, so this is the only place where the traceback can be kept away.
    Python prints a `SystemExit`'s text to stderr and exits with code 1.
    """

    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> Result:
        try:
            return function(*args, **kwargs)
        except MNIFError as error:
            raise SystemExit(f"error: {_as_told(error)}") from error

    return wrapper


def tell_in_commands(program: str) -> None:
    """Let what nobody catches end a command of nerfstudio's with a sentence: Ctrl-C, a full disk, a mistake.

    Args:
        program: `sys.argv[0]`; nothing is changed in other programs.
    """
    if not Path(program).name.startswith("ns-"):
        return
    before = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, MNIFError):
            print(f"error: {_as_told(error)}", file=sys.stderr)
        elif isinstance(error, OSError) and error.errno is not None:
            print(f"error: {system_error(error)}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            print("interrupted: nothing half-written was kept; run the same command again.", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = tell


def _as_told(error: MNIFError) -> str:
    """With ns-train's options, which are those of mnif-train, for the arguments that the library names."""
    from mnif_nerf.pipelines.methods import METHODS

    return with_flags(str(error), flag_paths(*(method.new_run() for method in METHODS.values())))


class WarnOnce:
    """Prints each text once, in yellow: a render loop would say it for every picture."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, text: str) -> None:
        """Print `text`, unless that was done before."""
        if text not in self._said:
            self._said.add(text)
            say(text, warning=True)
