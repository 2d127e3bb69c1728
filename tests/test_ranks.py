"""Several processes that train one model: equal to one with a batch as large, whatever their number; a lost one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import DISTANCES, tiny_settings, write_tiny_pictures, write_tiny_shapes, write_tiny_surfaces
from tiny_srn import write_tiny_srn
from together import Together

from mnif_nerf.cli.train import entrypoint, main
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.latents.ranks import ONE, Ranks, started_ranks
from mnif_nerf.pipelines.checkpoints import read_checkpoint, verify_checkpoint
from mnif_nerf.pipelines.model_folder import read_model
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.pipelines.run_checks import check_run
from mnif_nerf.random import Share

COUNTS = {"train": 6, "val": 3, "test": 3}  # four of six instances a step: steps lie across epochs
STEPS, HALF = 10, 5
EACH = 2  # instances per step of each of two processes
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rays": ("mnif-lite", {"pipeline.model.latent_noise": 0.01}),
    "Gaussians": ("mnif-lite", {"pipeline.model.latent_kl": 1e-4}),
    "rays by the inner loop": ("mnif-lite", {"pipeline.adaptation": "meta-learning", "pipeline.inner_lr": 0.01}),
    "cells by the inner loop": ("mnif-voxel-lite", {}),
    "distances": ("mnif-voxel-lite", DISTANCES),
    "moved pixels": ("mnif-image-lite", {"pipeline.datamanager.jitter": True}),
    # The larger steps of "centred" fields let rounding errors grow faster than the bound below.
    "surfaces": ("mnif-sdf-lite", {"pipeline.model.parametrization": "scaled"}),
}
RESUMED = ("Gaussians", "cells by the inner loop")
FOLDERS = {"mnif-lite": "scenes", "mnif-voxel-lite": "shapes", "mnif-image-lite": "pictures", "mnif-sdf-lite": "balls"}


def settings_of(root: Path, case: str, instances: int, name: str, steps: int = STEPS, **more: Any) -> Any:
    """Settings of a case, with so many instances per step of a process."""
    method, changes = CASES[case]
    per_step = "scenes_per_step" if method == "mnif-lite" else "instances_per_step"
    changes = {**changes, f"pipeline.datamanager.{per_step}": instances, **more}
    settings = tiny_settings(root / FOLDERS[method], root / case, STEPS, name, method, **changes)
    settings.max_num_iterations = steps
    return settings


def checkpoints_of(settings: Any) -> Path:
    return settings.run_folder() / "nerfstudio_models"


def stepped(root: Path, case: str, instances: int, ranks: Ranks = ONE) -> dict[str, Any]:
    """Parameters before and after some steps, and the losses and PSNR of the first ones."""
    run = TrainingRun(settings_of(root, case, instances, "stepped"), lambda text: None, ranks)
    before = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    results = [run.trainer.step(step) for step in range(STEPS)]
    losses = [float(v) for each in results[:3] for v in (each.loss, *each.losses.values(), *each.metrics.values())]
    return {"before": before, "after": dict(run.model.named_parameters()), "losses": losses}


def train(root: Path, case: str, instances: int, *run: Any, ranks: Ranks = ONE, **more: Any) -> None:
    TrainingRun(settings_of(root, case, instances, *run, **more), lambda text: None, ranks).train()


def train_together(root: Path) -> None:
    """What both processes do: steps of every case; whole runs, half of one, and the rest of what one has begun."""
    with started_ranks("cpu") as ranks:
        assert ranks.size == 2
        for case in CASES:
            torch.save(stepped(root, case, EACH, ranks), root / f"{case} {ranks.number}.pt")
        for case in RESUMED:
            train(root, case, EACH, "two", ranks=ranks)
            train(root, case, EACH, "two, half", HALF, ranks=ranks)
            before = checkpoints_of(settings_of(root, case, EACH, "one, half"))
            train(root, case, EACH, "one, then two", ranks=ranks, load_dir=before)


def command(root: Path, name: str, steps: int, every: int) -> None:
    """mnif-train, but for its options."""
    run_command(lambda: main(settings_of(root, "rays", EACH, name, steps, steps_per_save=every)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case as two processes; some begun as one and gone on with as two, and the other way round."""
    root = tmp_path_factory.mktemp("ranks")
    write_tiny_srn(root / "scenes", scenes=6, views=4, resolution=16)
    write_tiny_shapes(root / "shapes", COUNTS)
    write_tiny_pictures(root / "pictures", COUNTS)
    write_tiny_surfaces(root / "balls", COUNTS)
    for case in RESUMED:
        train(root, case, 2 * EACH, "one")
        train(root, case, 2 * EACH, "one, half", HALF)
    for code, output, errors in Together(root, train_together, root).end():
        assert (code, output) == (0, ""), errors
        assert "Traceback" not in errors
    for case in RESUMED:
        before = checkpoints_of(settings_of(root, case, EACH, "two, half"))
        train(root, case, 2 * EACH, "two, then one", load_dir=before)
    return root


@pytest.mark.parametrize("case", CASES)
def test_ranks_are_one_process_with_a_larger_batch(trained: Path, case: str) -> None:
    first, second = (torch.load(trained / f"{case} {rank}.pt") for rank in range(2))
    one = stepped(trained, case, 2 * EACH)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for name, value in one["after"].items():
        assert torch.equal(first["after"][name], second["after"][name])
        moved = (value - one["before"][name]).abs().max()
        # Where a loss has kinks, rounding errors grow from step to step.
        assert (value - first["after"][name]).abs().max() < (5e-3 if case == "surfaces" else 2e-4) * moved, name


def state_of(root: Path, case: str, name: str) -> dict[str, Any]:
    return read_checkpoint(checkpoints_of(settings_of(root, case, EACH, name)) / f"step-{STEPS - 1:09d}.ckpt")


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("way", ["two", "two, then one", "one, then two"])
def test_a_run_goes_on_with_another_number_of_ranks(trained: Path, case: str, way: str) -> None:
    ours, theirs = state_of(trained, case, way), state_of(trained, case, "one")
    assert ours["schedulers"] == theirs["schedulers"]
    for name, value in theirs["pipeline"].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours["pipeline"][name], value, rtol=1e-4, atol=1e-6)
    for name, group in theirs["optimizers"].items():
        for number, state in group["state"].items():
            for what, value in state.items():
                torch.testing.assert_close(ours["optimizers"][name]["state"][number][what], value, rtol=1e-2, atol=1e-6)


def test_one_of_them_writes(trained: Path) -> None:
    model = read_model(settings_of(trained, RESUMED[0], EACH, "two").run_folder() / "model")
    assert model.training["steps"] == STEPS
    assert not list((trained / RESUMED[0]).rglob(".*")), "temporary files are left"


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_ends_the_run_with_a_sentence(trained: Path, tmp_path: Path, killed: int) -> None:
    name = f"killed {killed}"
    folder = checkpoints_of(settings_of(trained, "rays", EACH, name))
    both = Together(tmp_path, command, trained, name, 1_000_000, 25)
    until = time.monotonic() + 60
    while not list(folder.glob("*.ckpt")) and time.monotonic() < until:
        time.sleep(0.05)
    both.processes[killed].kill()
    for _ in range(2):  # as torchrun does
        time.sleep(0.1)
        both.processes[1 - killed].terminate()
    results = both.end()
    assert results[killed][0] == -signal.SIGKILL
    code, _, errors = results[1 - killed]
    assert code == 1, errors
    (kept,) = folder.glob("*.ckpt")
    verify_checkpoint(kept)
    (sentence,) = (line for line in errors.splitlines() if not line.startswith("Training"))  # the bar
    assert re.fullmatch(
        rf"error: a process of this run has ended .* interrupted at step \d+; {kept} is kept: .* --load-dir {folder}\.",
        sentence,
    )


def test_a_mistake_of_both_is_told_once(tmp_path: Path) -> None:
    (code, _, first), (other, _, second) = Together(tmp_path, command, tmp_path / "nowhere", "mistake", 10, 0).end()
    assert (code, other) == (1, 1)
    assert "Traceback" not in first + second
    assert (first + second).count("no such folder") == 1


def test_a_command_starts_its_own_processes(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ReplacedError(Exception):
        pass

    def execv(program: str, command: list[str]) -> None:
        raise ReplacedError(*command)

    monkeypatch.setattr(os, "execv", execv)
    given = ["mnif-lite", "--data", str(trained / "scenes"), "--machine.num-devices", "2"]
    monkeypatch.setattr(sys, "argv", ["mnif-train", *given])
    with pytest.raises(ReplacedError) as caught:
        entrypoint()
    assert caught.value.args == (sys.executable, *TORCHRUN, *given)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mnif_nerf.cli.train")


def test_a_command_by_torchrun(trained: Path, tmp_path: Path) -> None:
    """One folder, one voice, a prior trained once."""
    settings = {
        "data": trained / "shapes", "output-dir": tmp_path, "timestamp": "run", "max-num-iterations": 6,
        "machine.device-type": "cpu", "logging.steps-per-log": 1,
        "pipeline.model.width": 8, "pipeline.model.num-bases": 4, "pipeline.model.latent-dim": 4,
        "pipeline.datamanager.instances-per-step": 4, "pipeline.prior-steps": 5, "steps-per-eval-all-images": 5,
        "pipeline.datamanager.points-per-instance": 64, "pipeline.fit-steps": 2,
    }  # fmt: skip
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, *TORCHRUN, "mnif-voxel-lite", *flags]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for once in ("Run folder: ", "Model folder: ", "step 5: ", "every step takes all of them"):
        assert done.stdout.count(once) == 1, (once, done.stdout)
    (run,) = (tmp_path / "shapes" / "mnif-voxel-lite").iterdir()
    model = read_model(run / "model")
    assert model.training["steps"] == 6
    assert model.prior is not None
    assert "num_devices: 2" in (run / "config.yml").read_text()


def test_what_several_processes_cannot_do(trained: Path, tmp_path: Path) -> None:
    data = TrainingRun(settings_of(trained, "rays", 2, "many")).data
    data.share = Share(0, 7)
    with pytest.raises(MNIFError, match="6 training instances cannot be shared by 7 processes; start 6 at most"):
        data.most_of_step(6)
    settings = settings_of(trained, "rays", 2, "minutes", minutes=1.0)
    with pytest.raises(MNIFError, match="`minutes` plans a run by the clock of one process"):
        check_run(settings, tmp_path, Ranks(0, 2))


def test_shares_of_random_numbers_make_the_whole() -> None:
    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(3))

    whole = draw((2, 6, 3))
    parts = [Share(part, 3).draw(draw, (2, 2, 3), axis=1) for part in range(3)]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(torch.cat([Share(part, 2).draw(draw, (1, 6, 3)) for part in range(2)]), whole)
