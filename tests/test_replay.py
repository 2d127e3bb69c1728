"""Steps that are recorded and played: here on the CPU, where a tape stands in for a CUDA graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tape import Tape
from tiny_runs import tiny_settings, write_tiny_pictures, write_tiny_shapes, write_tiny_surfaces
from tiny_srn import write_tiny_srn

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import kernel
from mnif_nerf.latents import replay
from mnif_nerf.latents.pacing import Pacer
from mnif_nerf.latents.ranks import ONE, Ranks
from mnif_nerf.latents.recording import Again
from mnif_nerf.latents.stage1 import Stage1Trainer
from mnif_nerf.pipelines.checkpoints import read_checkpoint
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.random import KeptSeed

RADIANCE, SDF, VOXEL, IMAGE = "mnif-lite", "mnif-sdf-lite", "mnif-voxel-lite", "mnif-image-lite"
STEPS = 13
Losses = dict[int, dict[str, float]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, counts = tmp_path_factory.mktemp("data"), {"train": 6}
    return {
        RADIANCE: write_tiny_srn(folder / "scenes", scenes=5, views=4, resolution=16),
        SDF: write_tiny_surfaces(folder / "surfaces", counts),
        VOXEL: write_tiny_shapes(folder / "shapes", counts),
        IMAGE: write_tiny_pictures(folder / "pictures", counts),
    }


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tape knows no compiled kernel; and how long a turn is shall not hang on how busy this machine is."""
    monkeypatch.setattr(replay, "_SECONDS", 1e9)
    with kernel.reference_only():
        yield


def new_run(
    data: Path, output: Path, method: str, resident: bool = True, ranks: Ranks = ONE, **changes: Any
) -> TrainingRun:
    changes = {"pipeline.adaptation": "auto-decoding", **changes}
    settings = tiny_settings(data, output, STEPS, method=method, **changes)
    if method == SDF:  # rounding grows fast under a loss that has corners
        for group in settings.optimizers.values():
            group["optimizer"].lr /= 50
    run = TrainingRun(settings, lambda line: None, ranks)
    (run.data.rays if method == RADIANCE else run.data.points).reside(resident)  # type: ignore[attr-defined]
    run.model.train()
    return run


def taken(run: TrainingRun, stops: tuple[int, ...] | None = None, first: int = 0, last: int = STEPS) -> Losses:
    """Loss, parts and metrics of the last step of every turn."""
    found: Losses = {}

    def report(step: int, result: Any) -> None:
        values = {"loss": result.loss, **result.losses, **result.metrics}
        found[step] = {name: float(value) for name, value in values.items()}

    run.trainer.train(first, last, report, stops)
    return found


def assert_close(ours: TrainingRun, theirs: TrainingRun, atol: float = 1e-5) -> None:
    """Parameters and what optimisers know of them."""
    found, expected = ours.optimizers.tensors(), theirs.optimizers.tensors()
    assert found.keys() == expected.keys()
    for name, part in found.items():
        for own, other in zip(part, expected[name]):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


CASES = [
    (RADIANCE, True, {}),
    (RADIANCE, False, {"pipeline.model.latent_kl": 1e-4}),
    (RADIANCE, True, {"pipeline.adaptation": "meta-learning"}),
    (VOXEL, True, {"pipeline.model.latent_noise": 1e-2}),
    (VOXEL, False, {"pipeline.adaptation": "meta-learning"}),
    (IMAGE, True, {"pipeline.datamanager.jitter": True}),
    (SDF, True, {}),
    (SDF, False, {}),
]


@pytest.mark.parametrize(("method", "resident", "changes"), CASES)
def test_played_steps_are_the_steps(
    data: dict[str, Path], tmp_path: Path, method: str, resident: bool, changes: dict[str, Any]
) -> None:
    """Another rate, seed and batch in each of them; in turns of several steps as well."""
    plain = new_run(data[method], tmp_path, method, resident, **changes)
    expected = taken(plain)
    run, tape, said = new_run(data[method], tmp_path, method, resident, **changes), Tape(), list[str]()
    run.trainer.replay(said.append, tape)
    found = taken(run, (5,))
    assert said == []
    assert sorted(found) == [0, 1, 2, 3, 5, 10, 12]
    assert tape.recorded == (2 if resident else 1)
    for step, values in found.items():
        assert values == pytest.approx(expected[step], rel=1e-4, abs=1e-6), step
    assert_close(run, plain)
    assert run.optimizers.rates() == plain.optimizers.rates()
    assert all(type(rate) is float for rate in run.optimizers.rates().values())


def test_turns_of_any_length_are_the_same_steps(data: dict[str, Path], tmp_path: Path) -> None:
    runs = [new_run(data[RADIANCE], tmp_path, RADIANCE) for _ in range(3)]
    for run, stops in zip(runs, (None, (4,), ())):
        run.trainer.replay(recorder=Tape())
        taken(run, stops)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), runs[0].model.parameters()))


class Refusing(Again):
    def record(self, work: Any, generators: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


class Forgetful(Again):
    """Plays a step that does nothing."""

    def record(self, work: Any, generators: Any) -> Any:
        return lambda: None


class Stale(Tape):
    """Forgets that a batch is another one in every step."""

    def record(self, work: Any, generators: Any) -> Any:
        work_again = super().record(work, generators)

        def play() -> None:
            seeds = [each.initial_seed() for each in generators]
            for each in generators:
                each.manual_seed(0)
            work_again()
            for each, seed in zip(generators, seeds):
                each.manual_seed(seed)

        return play


@pytest.mark.parametrize(
    ("recorder", "why"),
    [
        (Refusing, r"RuntimeError: operation not permitted when stream is capturing\)"),
        (Forgetful, "off"),
        (Stale, "off"),
    ],
)
def test_what_cannot_be_played_is_taken_as_ever_and_said_once(
    data: dict[str, Path], tmp_path: Path, recorder: Callable[[], Any], why: str
) -> None:
    plain, run = (new_run(data[RADIANCE], tmp_path, RADIANCE) for _ in range(2))
    said: list[str] = []
    run.trainer.replay(said.append, recorder())
    expected, found = taken(plain), taken(run, ())
    (sentence,) = said
    assert sentence.startswith("A training step cannot be played as one CUDA graph (")
    torch.testing.assert_close(torch.tensor(list(found[12].values())), torch.tensor(list(expected[12].values())))
    assert sorted(found) == list(range(STEPS))
    assert_close(run, plain)
    assert re.search(why, sentence)


def test_a_cpu_plays_nothing(data: dict[str, Path], tmp_path: Path) -> None:
    run = new_run(data[RADIANCE], tmp_path, RADIANCE)
    assert run.settings.pipeline.cuda_graph
    assert run.trainer._replays is None
    assert run.trainer.turn(0, 100) == 1


def test_a_step_is_recorded_again_where_it_changes(data: dict[str, Path], tmp_path: Path) -> None:
    plain, run = (new_run(data[IMAGE], tmp_path, IMAGE) for _ in range(2))
    tape = Tape()
    run.trainer.replay(recorder=tape)
    for each in (plain, run):
        taken(each, (), 0, 6)
        each.data.take_points(32)
        each.data.points.reside(True)  # type: ignore[attr-defined]
        taken(each, (), 6, 12)
    assert tape.recorded == 4, "draw and step, twice"
    for each in (plain, run):
        each.model.load_state_dict(each.model.state_dict())  # other tensors of latents
        taken(each, (), 12, 18)
    assert tape.recorded == 6
    assert_close(run, plain)


def test_batches_of_another_shape_are_recorded_again(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, run = (new_run(data[IMAGE], tmp_path, IMAGE, resident=False) for _ in range(2))
    tape, results = Tape(), []
    run.trainer.replay(recorder=tape)
    for each in (plain, run):
        whole = each.data.draw
        monkeypatch.setattr(each.data, "draw", lambda step, whole=whole: whole(step)[: 4 if step < 7 else 3])
        results.append(taken(each, ()))
    assert tape.recorded == 2
    assert results[1][12] == pytest.approx(results[0][12], rel=1e-4)
    assert_close(run, plain)


def latest(run: TrainingRun) -> dict[str, Any]:
    return read_checkpoint(sorted(run.settings.checkpoint_folder().iterdir())[-1])


def test_runs_go_on_and_keep_what_is_due(data: dict[str, Path], tmp_path: Path) -> None:
    """mnif-train's loop: checkpoints and evaluations at their steps, and a resume by the other way of taking steps."""

    def trained(name: str, played: bool, **changes: Any) -> tuple[TrainingRun, list[str]]:
        said: list[str] = []
        changes = {"steps_per_save": 5, "steps_per_eval_all_images": 8, "save_only_latest_checkpoint": False, **changes}
        run = TrainingRun(tiny_settings(data[RADIANCE], tmp_path, 22, name, RADIANCE, **changes), said.append)
        if played:
            run.trainer.replay(said.append, Tape())
        run.train()
        return run, [line for line in said if line.startswith("step")]

    straight, told = trained("straight", False)
    first, _ = trained("first", True, max_num_iterations=12)
    folder = {"load_dir": first.settings.checkpoint_folder()}
    second, third = (trained(f"on{played}", played, **folder) for played in (True, False))
    assert [line.split(":")[0] for line in told] == ["step 0", "step 8", "step 16"]
    assert [line.split(":")[0] for line in second[1]] == ["step 16"]
    for run in (second[0], third[0]):
        names = sorted(path.name for path in run.settings.checkpoint_folder().iterdir())
        assert names == [f"step-{step:09d}.ckpt" for step in (15, 20, 21)]
        ours, theirs = latest(run), latest(straight)
        assert ours["schedulers"] == theirs["schedulers"]
        assert ours["optimizers"]["fields"]["param_groups"] == theirs["optimizers"]["fields"]["param_groups"]
        for name, value in theirs["pipeline"].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(ours["pipeline"][name], value, rtol=1e-4, atol=1e-5)


def test_nerfstudios_loop_takes_turns(data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nerfstudio")
    from nerfstudio.engine import trainer as loop
    from nerfstudio.utils import writer
    from nerfstudio_runs import Run, tiny_config

    changes = {"steps_per_save": 8, "logging.steps_per_log": 10, "max_num_iterations": 19}
    plain = Run(tiny_config(data[RADIANCE], tmp_path / "plain", **changes))
    original, tape, times = Stage1Trainer.replay, Tape(), []
    monkeypatch.setattr(Stage1Trainer, "replay", lambda trainer, say: original(trainer, say, tape))
    put_time = writer.put_time
    monkeypatch.setattr(writer, "put_time", lambda **event: (times.append(event), put_time(**event)))
    run = Run(tiny_config(data[RADIANCE], tmp_path / "played", **changes))
    assert list(run.losses) == [0, 1, 2, 3, 8, 10, 16, 18]
    assert run.losses == pytest.approx({step: plain.losses[step] for step in run.losses}, rel=1e-4)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000000018.ckpt"]
    assert run.checkpoint()["step"] == 18
    assert [each["step"] for each in times if each["name"] == writer.EventName.ITER_TRAIN_TIME] == list(run.losses)
    assert not hasattr(loop, "range")
    assert loop.TimeWriter is writer.TimeWriter


def test_turns_end_where_something_is_due(data: dict[str, Path], tmp_path: Path) -> None:
    trainer = new_run(data[IMAGE], tmp_path, IMAGE).trainer
    trainer.replay(recorder=Again())
    assert trainer.turn(0, 1000) == 1
    trainer.train(0, 4)
    assert trainer.turn(4, 1000) == 96, "up to where losses are read out"
    assert trainer.turn(4, 10) == 6
    assert trainer.turn(10, 1000, (10, 0)) == 1, "step 10 alone"
    assert trainer.turn(11, 1000, (10, 50)) == 10
    trainer.pacer = Pacer(1e9, lambda steps: None)
    assert trainer.turn(4, 10) == 96
    trainer.pacer.steps = 20
    assert trainer.turn(4, 10) == 16


@pytest.mark.parametrize("recorder", [Tape, Refusing])
def test_the_step_that_will_run_is_timed(
    data: dict[str, Path], tmp_path: Path, recorder: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played where steps are played, and nothing is changed by it; else an operation at a time."""
    plain, run = (new_run(data[RADIANCE], tmp_path, RADIANCE) for _ in range(2))
    used, gradients = recorder(), list[Any]()
    gradient = run.trainer._gradient
    monkeypatch.setattr(run.trainer, "_gradient", lambda batch: (gradients.append(batch), gradient(batch)))
    run.trainer.replay(lambda text: None, used)
    before = [each.clone() for each in run.model.parameters()]
    assert run.trainer.seconds_of_step() > 0
    assert len(gradients) == (0 if recorder is Tape else 7)
    assert all(map(torch.equal, run.model.parameters(), before))
    assert not any(each.state for each in run.optimizers.optimizers.values())
    assert all(each.grad is None for each in run.model.parameters())
    if isinstance(used, Tape):
        assert (used.recorded, used.played) == (2, 18), "draws of four steps each, and 14 steps"
    taken(run, ())
    taken(plain)
    assert_close(run, plain)


def test_steps_of_a_turn_are_paced_together() -> None:
    now, plans = [0.0], list[int]()
    pacer = Pacer(100.0, plans.append, clock=lambda: now[0])
    for step in range(4):  # the first steps are slow, then one is recorded
        now[0] += 2.0
        pacer.step_took(step, 2.0)
    pacer.forget()
    step = 3
    while not pacer.over(step):
        step += 50
        now[0] += 0.5
        pacer.step_took(step, 0.5, 50)
    assert now[0] == pytest.approx(100.0, abs=1.5)
    assert step == pytest.approx(9200, rel=0.02)


def test_a_loss_that_is_no_number_ends_training_within_a_hundred_played_steps(
    data: dict[str, Path], tmp_path: Path
) -> None:
    run = new_run(data[IMAGE], tmp_path, IMAGE)
    run.trainer.replay(recorder=Again())
    taken(run, ())
    with torch.no_grad():
        run.model.latents.weight.fill_(float("nan"))
    with pytest.raises(MNIFError, match="training has diverged at step 99"):
        run.trainer.train(STEPS, 200)


def test_latents_are_watched_at_their_steps(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, watched = new_run(data[IMAGE], tmp_path, IMAGE), list[int]()
    run.trainer.replay(recorder=Again())
    monkeypatch.setattr(run.trainer.watch, "due", lambda step: step in (1, 3, 7))
    monkeypatch.setattr(run.trainer.watch, "latents", lambda step, *_: watched.append(step))
    version = run.model.version
    taken(run, ())
    assert watched == [1, 3, 7]
    assert run.model.version > version


def test_a_kept_seed_gives_the_numbers_of_the_seed() -> None:
    device = torch.device("cpu")
    kept = KeptSeed(device)
    for seed in (3, 4):
        kept.restart(seed)
        drawn = [torch.rand(2, generator=kept.generator()) for _ in range(2)]
        expected = torch.rand(2, generator=torch.Generator().manual_seed(seed))
        assert all(torch.equal(each, expected) for each in drawn)
    assert len(kept.generators) == 2
