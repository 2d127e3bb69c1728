"""One exception for what a user can put right: it names the thing, the place and the remedy."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator


class MNIFError(ValueError):
    """A mistake in the input, told in one sentence: what is wrong, where, and what to do about it."""


@contextlib.contextmanager
def disk_errors(where: object) -> Iterator[None]:
    """Turn a full or read-only disk met while writing `where` into an `MNIFError`.

    Nested, the outermost place is named: what lies within is a temporary name that means nothing to the user.

    Raises:
        MNIFError: for ENOSPC, EDQUOT, EROFS and EACCES; every other OSError passes through.
    """
    remedies = {
        errno.ENOSPC: "the disk is full; free some space and run the command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.EACCES: "no permission to write there; choose another folder",
    }
    try:
        yield
    except MNIFError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in remedies:
            raise MNIFError(f"{where}: {remedies[error.__cause__.errno]}.") from error.__cause__
        raise
    except OSError as error:
        if error.errno in remedies:
            raise MNIFError(f"{where}: {remedies[error.errno]}.") from error
        raise


def run_command(main: Callable[[], object]) -> None:
    """Run a console script: an `MNIFError` becomes one line and exit code 1, Ctrl-C exit code 130."""
    try:
        main()
    except MNIFError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was kept; run the same command again to go on.", file=sys.stderr)
        raise SystemExit(130) from None
