"""One exception for what a user can put right: it names the thing, the place and the remedy."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any


class MNIFError(ValueError):
    """A mistake in the input, told in one sentence: what is wrong, where, and what to do about it.

    Arguments are named in backticks by their Python names; commands tell their options instead (`run_command`).
    """


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


def require(module: str, extra: str) -> Any:
    """Import a module that only an extra of this package installs, at the moment it is needed.

    Args:
        module: full name of the module.
        extra: the extra that brings it.

    Raises:
        MNIFError: it cannot be imported; the sentence names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise MNIFError(
            f"{package} cannot be imported; it needs the {extra} extra: pip install 'mnif_nerf[{extra}]'."
        ) from None


def first_line(error: BaseException, kind: bool = False) -> str:
    """What an error of another library says first, without a final stop, shortened to 200 characters.

    Args:
        error: the error; one without words is told by its kind.
        kind: whether its kind is put before the words.
    """
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    said = lines[0][:200].rstrip(".") if lines else name
    return f"{name}: {said}" if kind and lines else said


def flag_paths(*settings: Any) -> list[tuple[str, ...]]:
    """The paths of all options that a command makes from settings: `("pipeline", "inner_lr")` is --pipeline.inner-lr.

    Args:
        settings: dataclasses (a class, an instance, or a union of classes as of subcommands); nested ones, and
            dictionaries within instances, are walked.

    Returns:
        The paths, shortest first, so that a name means the option nearest to the top.
    """
    found: dict[tuple[str, ...], None] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), item) for item in settings]
    while waiting:
        path, item = waiting.pop(0)
        if isinstance(item, Mapping):
            found.update({(*path, str(name)): None for name in item})
            waiting += [((*path, str(name)), value) for name, value in item.items()]
        elif dataclasses.is_dataclass(item):
            hints = typing.get_type_hints(item) if isinstance(item, type) else vars(item)
            for field in dataclasses.fields(item):
                inner = (*path, field.name)
                if "Positional" not in str(field.type):  # an argument without a flag
                    found[inner] = None
                waiting.append((inner, hints[field.name]))
        else:
            waiting += [(path, part) for part in typing.get_args(item)]
    return sorted((path for path in found if path), key=len)


def with_flags(text: str, paths: Sequence[tuple[str, ...]], other: Mapping[str, str] = MappingProxyType({})) -> str:
    """A library's sentence as a command says it: an argument's name in backticks becomes its option.

    Args:
        text: names arguments in backticks; where several options end alike, the outer ones tell which:
            "`latents.lr`" is --optimizers.latents.optimizer.lr.
        paths: what `flag_paths` returned. A name without an option loses its backticks.
        other: what an argument is called in the options, where the names differ.
    """

    def flag(match: re.Match[str]) -> str:
        parts = other.get(match[1], match[1]).split(".")
        for path in paths:
            outer = iter(path[:-1])
            if path[-1] == parts[-1] and all(part in outer for part in parts[:-1]):
                return "--" + ".".join(path).replace("_", "-")
        return match[1]

    return re.sub(r"`([a-z][a-z0-9_.]*)`", flag, text)


def run_command(
    main: Callable[[], object], options: Iterable[Any] = (), other: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Run a console script: an `MNIFError` becomes one line and exit code 1, Ctrl-C exit code 130.

    Args:
        main: the command.
        options: the dataclasses of its options, whose flags take the place of the arguments that errors name.
        other: see `with_flags`.
    """
    try:
        main()
    except MNIFError as error:
        print(f"error: {with_flags(str(error), flag_paths(*options), other)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was kept; run the same command again to go on.", file=sys.stderr)
        raise SystemExit(130) from None
