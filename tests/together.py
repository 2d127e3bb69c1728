"""Two processes that train together, started as torchrun does; for the tests of several ranks."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


def _process(function: Callable[..., Any], environment: dict[str, str], said: Path, arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(os.open(f"{said}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    torch.set_num_threads(1)
    function(*arguments)


class Together:
    """Two processes of a function that a test file defines.

    What they tell each other is kept by the one that starts them, as torchrun's is. They are forked from a server that
    has imported the file, which takes a second instead of ten.

    Args:
        place: folder for what they print.
        function: what both call.
        arguments: its arguments.
    """

    def __init__(self, place: Path, function: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([function.__module__])
        self.store = torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
        found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), "WORLD_SIZE": "2"}
        found["TORCHELASTIC_RUN_ID"] = "test"
        self.places = [place / f"said{rank}" for rank in range(2)]
        self.processes = []
        with pytest.MonkeyPatch.context() as patch:
            paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
            patch.setenv("PYTHONPATH", os.pathsep.join(paths))  # for the server
            patch.setenv("OMP_NUM_THREADS", "1")
            for rank, said in enumerate(self.places):
                own = {**found, "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": str(rank), "LOCAL_RANK": str(rank)}
                self.processes.append(context.Process(target=_process, args=(function, own, said, arguments)))
                self.processes[-1].start()

    def end(self, seconds: float = 120.0) -> list[tuple[int | None, str, str]]:
        """Wait for both, each so long at most: exit code, output and errors of each."""
        for process in self.processes:
            process.join(seconds)
            process.kill()
            process.join()
        return [
            (process.exitcode, *(Path(f"{said}.{number}").read_text() for number in (1, 2)))
            for process, said in zip(self.processes, self.places)
        ]
