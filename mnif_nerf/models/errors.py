"""How a user's mistake leaves a nerfstudio command: one sentence and exit code 1, without a traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from mnif_nerf.errors import MNIFError

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
            raise SystemExit(f"error: {error}") from error

    return wrapper
