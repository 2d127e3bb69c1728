"""Progress bars on standard error, all of one look; and a console for tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")


class Advance(Protocol):
    """Moves a bar on."""

    def __call__(
        self, done: float = 1, *, at: float | None = None, total: float | None = None, note: str | None = None
    ) -> None:
        """Add `done` units, or stand `at` so many of a `total` that became known; show `note` behind the count."""


def silent(done: float = 1, *, at: float | None = None, total: float | None = None, note: str | None = None) -> None:
    """An `Advance` without a bar."""


def plain_console() -> Console:
    """rich's console for tables of names, in which nothing is markup: `[/red]` is a name like any other."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


def say(text: str, warning: bool = False) -> None:
    """Print a line, a warning in yellow; nothing in it is markup."""
    plain_console().print(text, style="yellow" if warning else None, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(
    title: str, total: float | None, unit: str = "", shown: bool = True, transient: bool = False
) -> Iterator[Advance]:
    """A rich progress bar; yields the function that moves it on.

    Args:
        title: words before the bar.
        total: how many units there are; None where nobody knows, and then the bar only pulses.
        unit: the name of what is counted, shown behind the count; "bytes" counts in kB, MB and GB, with the speed.
        shown: False for silence.
        transient: whether the bar disappears at the end.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    count = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *count,
        TextColumn("{task.fields[note]}", markup=False),
    )
    times = (TimeElapsedColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, *times, console=Console(stderr=True), disable=not shown, transient=transient) as bar:
        task = bar.add_task(title, total=total, note="" if unit == "bytes" else unit)

        def advance(
            done: float = 1, *, at: float | None = None, total: float | None = None, note: str | None = None
        ) -> None:
            if note is not None:
                bar.update(task, note=note)
            if at is None:
                bar.update(task, total=total, advance=done)
            else:
                bar.update(task, total=total, completed=at)

        yield advance


def tracked(
    items: Iterable[Item], title: str, total: int, shown: bool = True, transient: bool = False
) -> Iterator[Item]:
    """The items, with a bar that moves on by one each."""
    with progress_bar(title, total, shown=shown, transient=transient) as advance:
        for item in items:
            yield item
            advance()
