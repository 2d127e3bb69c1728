"""What this machine has to give."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

from mnif_nerf.data.readers.cloud_files import read_cloud
from mnif_nerf.data.readers.mesh_files import read_surface
from mnif_nerf.latents.encoding import encode
from mnif_nerf.latents.fitting import FitConfig, fit
from mnif_nerf.latents.meta import LossObjective
from mnif_nerf.latents.search import LatentSpace, SearchConfig, search
from mnif_nerf.machine import _group_memory, available_memory, denormals_flushed, flushes_denormals
from mnif_nerf.priors.training import PriorConfig, train_denoiser


def test_cached_files_of_a_container_count_as_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    (tmp_path / "memory.stat").write_text("anon 190\nfile 800\nactive_file 300\ninactive_file 400\nshmem 100\n")
    assert _group_memory(tmp_path) == 1000 - 990 + 300 + 400
    (tmp_path / "memory.max").write_text("max\n")
    assert _group_memory(tmp_path) is None


def test_some_memory_is_free() -> None:
    free = available_memory()
    assert free is None or free > 0


def test_flushing_ends_with_its_block() -> None:
    with denormals_flushed():
        assert flushes_denormals()
        assert float(torch.tensor([1e-39]) * 1.0) == 0.0
        with denormals_flushed(False):
            assert not flushes_denormals()
        assert flushes_denormals()
    assert not flushes_denormals()

    @denormals_flushed()
    def fails() -> None:
        raise ValueError("within the block")

    with pytest.raises(ValueError, match="within"):
        fails()
    assert not flushes_denormals()


def test_training_flushes_and_leaves_the_thread_as_it_was() -> None:
    seen: list[bool] = []
    latents = torch.randn(6, 3)

    def note(*_: object) -> None:
        seen.append(flushes_denormals())

    fit(lambda codes, step: codes.square().mean(dim=1), 2, latents, FitConfig(steps=1), note)
    train_denoiser(latents, PriorConfig(steps=1, width=8, blocks=1), note)

    def losses(chosen: torch.Tensor) -> LossObjective:
        note()
        return LossObjective(lambda codes: codes.square().sum(dim=1))

    encode(losses, 1, torch.ones(3))
    search(Bowl(seen), latents[:2], LatentSpace.from_latents(latents), SearchConfig(steps=1))
    assert seen == [True] * 4
    assert not flushes_denormals()


class Bowl:
    """Evidence that is best explained by zero, and notes how it was asked."""

    def __init__(self, seen: list[bool]) -> None:
        self.seen = seen

    def losses(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        """Squared lengths."""
        self.seen.append(flushes_denormals())
        return latents.square().sum(dim=1)

    def score(self, latents: torch.Tensor) -> torch.Tensor:
        """Squared lengths."""
        return latents.square().sum(dim=1)


def test_readers_leave_trimeshs_log_as_it_was(tmp_path: Path) -> None:
    log = logging.getLogger("trimesh")
    log.setLevel(logging.INFO)
    trimesh.creation.icosphere().export(tmp_path / "ball.ply")
    trimesh.PointCloud(np.random.default_rng(0).normal(size=(50, 3))).export(tmp_path / "cloud.ply")
    read_surface(tmp_path / "ball.ply")
    assert len(read_cloud(tmp_path / "cloud.ply").points) == 50
    assert log.level == logging.INFO


# Where denormals are flushed, cKDTree recurses until the process dies: so in a process of its own.
_CLOUDS = """
import sys
import threading
import numpy as np, torch
from scipy.spatial import cKDTree
from mnif_nerf.cli.generation_common import load_pipeline
from mnif_nerf.metrics.clouds import distance_matrix

plane = np.zeros((64, 3))  # 40 points share the coordinate 0 exactly, as points of marching cubes may
plane[40:, 2] = 0.3  # no float32 number, so trees are used
load_pipeline(sys.argv[1], "cpu")
cKDTree(plane, leafsize=32)
torch.set_flush_denormal(True)  # by the user
assert not distance_matrix([plane], [plane.copy()]).any()
print("alive")
"""


def test_clouds_with_many_points_at_zero(trained: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _CLOUDS, str(trained)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "alive", f"exit {done.returncode}: {done.stderr[-500:]}"


def test_threads_that_the_user_gave_are_no_choice_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "the faster choice just now" was said where OMP_NUM_THREADS had decided."""
    from mnif_nerf.latents.stage1 import Stage1Trainer

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = SimpleNamespace(parameters=lambda: iter([torch.zeros(1)]), zero_grad=lambda set_to_none: None)
    trainer = SimpleNamespace(model=model, source=SimpleNamespace(draw=lambda step: None))
    assert Stage1Trainer.choose_threads(trainer) is None  # type: ignore[arg-type]


def test_threads_are_chosen_again_where_steps_become_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice made on an idle machine cost the rest of the run its speed: 30 ms became 500 once others came."""
    from mnif_nerf import machine

    faster, said, timed = [2], [], []

    def tune(probe: Callable[[], object]) -> int:
        timed.append(faster[0])
        return faster[0]

    monkeypatch.setattr(machine, "tune_threads", tune)
    tuner = machine.ThreadTuner(lambda: None, said.append)
    assert tuner.choose() == 2
    for _ in range(400):
        tuner.step_took(0.03)
    faster[0] = 1
    assert tuner.threads == 2
    for _ in range(100):
        tuner.step_took(0.5)
    assert tuner.threads == 1
    for _ in range(300):
        tuner.step_took(0.5)
    assert timed == [2, 1], "timed anew though nothing had changed since"
    assert [line.split(",")[0] for line in said] == ["Training on 2 threads", "Training on 1 thread"]
    faster[0] = 2  # idle again: steps are no slower, so it takes the five minutes
    for _ in range(3100):
        tuner.step_took(0.1)
    assert tuner.threads == 2


def test_items_are_taken_on_all_cores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from mnif_nerf import machine

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "num_cores", lambda: 2)
    before, meeting = torch.get_num_threads(), threading.Barrier(2)

    def take(item: int, factor: int) -> tuple[int, int, bool]:
        if item < 2:
            meeting.wait(timeout=30)  # breaks where they are taken one after the other
        return item * factor, torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        found = list(machine.in_threads(take, range(5), itertools.repeat(3)))
    assert found == [(3 * item, 1, False) for item in range(5)]
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError):
        list(machine.in_threads(lambda item: 1 // item, [1, 0, 1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert set(machine.in_threads(lambda _: threading.current_thread(), range(3))) == {threading.main_thread()}


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_idle_threads_of_openmp_sleep_unless_the_user_says_otherwise(given: dict[str, str], policy: str) -> None:
    """Spinning ones made measuring four times and pictures eight times slower on a machine that did anything else."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    code = "import sys, os, mnif_nerf; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.split() == [policy, "False"]
