"""One exception for what a user can put right: it names the thing, the place and the remedy."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import io
import os
import re
import select
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from mnif_nerf.names import brief


class MNIFError(ValueError):
    """A mistake in the input, told in one sentence: what is wrong, where, and what to do about it.

    Arguments are named in backticks by their Python names; commands tell their options instead (`run_command`). Long
    values in it are shortened.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(brief(sentence))


def in_file(place: object, error: MNIFError) -> MNIFError:
    """What is told of an argument, as told of a file that it was read from: no option of a command is meant."""
    text = str(error).replace("`", "")
    return MNIFError(text if text.startswith(str(place)) else f"{place}: {text}")


_DISK = {
    errno.ENOSPC: "the disk is full; free some space and run the command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
    errno.EFBIG: "the file is larger than the system allows (ulimit -f); raise that limit or write elsewhere",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EEXIST: "something else has this name; choose another one",
    errno.ENAMETOOLONG: "the name is longer than the file system takes; choose a shorter one",
    errno.ENOTDIR: "part of this path is a file; choose another place",
    errno.ELOOP: "its symbolic links lead round in a circle; choose another place",
}
"""What writing meets that a user can put right, by error number."""


_AGAIN = 1.0  # seconds after which a swallowed end is asked for again


@contextlib.contextmanager
def disk_errors(where: object) -> Iterator[None]:
    """Turn a full or read-only disk met while writing `where` into an `MNIFError`.

    Nested, the outermost place is named: what lies within is a temporary name that means nothing to the user.

    Raises:
        MNIFError: for what `_DISK` lists; every other OSError passes through.
    """
    try:
        yield
    except MNIFError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _DISK:
            raise MNIFError(f"{where}: {_DISK[error.__cause__.errno]}.") from error.__cause__
        raise
    except OSError as error:
        if error.errno in _DISK:
            raise MNIFError(f"{where}: {_DISK[error.errno]}.") from error
        raise


def system_error(error: OSError) -> str:
    """An error of the system as a sentence: which file, what is wrong with it, and a remedy where one is known."""
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    remedy = _DISK.get(error.errno or 0, first_line(error) if error.strerror is None else error.strerror.lower())
    return brief(f"{where}{remedy}.")


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
    """Run a console script: a user's mistake becomes one line and exit code 1, Ctrl-C exit code 130.

    An error of the system (a full disk, a name too long) and a lack of memory are told like an `MNIFError`. SIGTERM
    ends the command as Ctrl-C does, so that nothing temporary stays behind. Where the reader of standard output has
    gone (`| head`), the command ends without a word.

    Args:
        main: the command.
        options: the dataclasses of its options, whose flags take the place of the arguments that errors name.
        other: see `with_flags`.
    """
    _prepare_streams()
    try:
        try:
            with _terminated_as_exit():
                main()
        finally:
            sys.stdout.flush()  # here, where it can be told that nobody reads it
    except MNIFError as error:
        _fail(f"error: {with_flags(str(error), flag_paths(*options), other)}")
    except KeyboardInterrupt:
        _fail("interrupted: nothing half-written was kept; run the same command again to go on.", 130)
    except BrokenPipeError as error:
        if not _reader_gone():
            _fail(f"error: {system_error(error)}")
        _end_unread()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # of rich, which ends a program itself
            _end_unread()
        raise
    except MemoryError:
        _fail("error: there is not enough memory for this; ask for less (a lower resolution, a smaller number).")
    except OSError as error:
        if error.errno is None:  # raised by a program, not by the system: a bug, which keeps its traceback
            raise
        _fail(f"error: {system_error(error)}")


def _fail(text: str, code: int = 1) -> NoReturn:
    print(text, file=sys.stderr)
    raise SystemExit(code) from None


def _end_unread() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it ends
    raise SystemExit(128 + 13) from None  # as a program that SIGPIPE ends


def _reader_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in watch.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows, or no file at all
        return True


def _prepare_streams() -> None:
    """Let names that are no text (bytes of other encodings) be printed, escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """Within the block, SIGTERM raises `SystemExit`, so that every `finally` runs; the exit code is a shell's, 143.

    A library may swallow it (trimesh catches everything in places): then it is raised again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = SystemExit(128 + signal.SIGTERM)
    may_repeat = hasattr(signal, "setitimer")
    # torchrun asks twice within a moment, and kills what has not ended after half a minute.
    repeated = signal.SIG_IGN if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_DFL

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, repeated)  # a second one is not held up
        if may_repeat:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        handled = sys.exc_info()[1]
        while handled is not None and handled is not ending:
            handled = handled.__context__
        if handled is None:  # else things are being put in order
            raise ending

    before = [(signal.SIGTERM, signal.signal(signal.SIGTERM, end))]
    if may_repeat:
        before.append((signal.SIGALRM, signal.signal(signal.SIGALRM, end)))
    try:
        yield
    finally:
        if may_repeat:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before:
            keeps = number == signal.SIGTERM and repeated is signal.SIG_IGN  # until what is to be said is said
            signal.signal(number, repeated if keeps else handler)
