"""Commands that run as several processes: how they are started, and that only one of them speaks."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mnif_nerf.errors import MNIFError
from mnif_nerf.limits import require_count

if TYPE_CHECKING:
    from mnif_nerf.latents.ranks import Ranks

_MOST = 1024


@contextlib.contextmanager
def one_voice(ranks: Ranks) -> Iterator[None]:
    """Only the first rank prints, and only one, whichever has a reason, says why a run ends.

    Raises:
        SystemExit: another one says it.
    """
    if ranks.size == 1:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not ranks.is_first:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        except (MNIFError, OSError, MemoryError, SystemExit) as error:
            says_why = not isinstance(error, SystemExit) or isinstance(error.code, str)
            if says_why and not ranks.may_tell():
                raise SystemExit(1) from None
            raise


@contextlib.contextmanager
def working_ranks(device: str | None, what_is_kept: str) -> Iterator[tuple[Ranks, str | None]]:
    """The processes that share the work of a command, and the device of this one; one alone keeps its device.

    Args:
        device: "cpu", "cuda" or None, as the command was told.
        what_is_kept: what is left where one of them ends, and how to go on: the rest of a sentence.

    Raises:
        MNIFError: a process has ended, or more were started than there are devices.
    """
    from mnif_nerf.latents.ranks import RankLostError, started_ranks
    from mnif_nerf.machine import default_device_type

    kind = (device or default_device_type()).partition(":")[0]
    with started_ranks(kind) as ranks, one_voice(ranks):
        if ranks.size == 1:
            yield ranks, device
            return
        try:
            yield ranks, str(ranks.device(kind))
        except (RankLostError, SystemExit) as error:  # torchrun ends the others where one has ended
            raise MNIFError(f"a process of this command has ended or does not answer; {what_is_kept}.") from error


def start_processes(number: int, module: str) -> None:
    """Run this command again as so many processes, by torchrun, which takes the place of this one; unless it is one of
    them, or one is enough.

    Raises:
        MNIFError: a number that nobody can start.
    """
    from mnif_nerf.latents.ranks import is_rank

    require_count("`num_devices`", number, 1, _MOST)
    if number == 1 or is_rank():
        return
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    os.execv(sys.executable, [sys.executable, *launcher, "-m", module, *sys.argv[1:]])


def speaks() -> bool:
    """Whether this process says what is wrong with the options: of those that torchrun has started, one does."""
    return os.environ.get("RANK", "0") == "0"
