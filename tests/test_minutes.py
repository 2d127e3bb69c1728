"""`--minutes`: steps that fit into a time, planned anew on a busy machine, kept by a resumed run; and nonsense."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerfstudio_runs import Run, tiny_config
from tiny_runs import tiny_settings, write_tiny_pictures, write_tiny_shapes

from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.optimizer_settings import optimizer_settings
from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.pacing import Pacer
from mnif_nerf.pipelines.checkpoints import read_checkpoint
from mnif_nerf.pipelines.methods import METHODS, POINTS, Rung, get_method
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.pipelines.run_settings import read_config
from mnif_nerf.pipelines.time_plan import TimePlan, prior_speed

IMAGE, VOXEL = "mnif-image-lite", "mnif-voxel-lite"
COUNTS = {"train": 6, "val": 3}


class Machine:
    """A clock, and steps whose durations a function of the step says."""

    def __init__(self, seconds_of: Any, budget: float, pauses: dict[int, float] | None = None) -> None:
        self.now, self.plans, self.said = 0.0, [], []
        self.pacer = Pacer(budget, self.plans.append, lambda steps, per: self.said.append(steps), lambda: self.now)
        step, complete = 0, False
        while not complete:
            self.now += seconds_of(step)
            self.pacer.step_took(step, seconds_of(step))
            complete = self.pacer.over(step)
            self.now += (pauses or {}).get(step, 0.0)
            step += 1
        self.taken = step


def test_steady_steps_are_planned_once_and_end_in_time() -> None:
    run = Machine(lambda step: 0.05 if step > 1 else 3.0, 100.0)  # the first steps set up caches
    assert len(run.plans) == 1
    assert run.said == run.plans
    assert run.taken == run.plans[0]
    assert run.now == pytest.approx(100.0, rel=0.02)


@pytest.mark.parametrize("factor", [4.0, 0.4])
def test_a_machine_that_becomes_slower_or_faster_is_planned_anew(factor: float) -> None:
    run = Machine(lambda step: 0.05 * (factor if step > 600 else 1.0), 100.0)
    assert run.now == pytest.approx(100.0, rel=0.06)
    assert abs(run.plans[-1] - run.plans[0]) > 0.2 * run.plans[0], "the plan did not follow"
    assert 2 <= len(run.said) <= 8, "told too often, or never"


def test_a_run_ends_where_its_last_steps_are_slow() -> None:
    """Ten times as long for the last tenth would be twice the time."""
    run = Machine(lambda step: 0.05 * (10.0 if step > 1800 else 1.0), 100.0)
    assert run.now < 110.0


def test_pauses_count_but_make_no_step_slower() -> None:
    run = Machine(lambda step: 0.05, 100.0, dict.fromkeys(range(400, 4000, 400), 5.0))
    assert run.now == pytest.approx(100.0, rel=0.06)
    single = Machine(lambda step: 0.05, 100.0, {500: 5.0})
    assert single.taken * 0.05 > 90.0, "an evaluation was taken for a slow machine"


def test_time_that_a_run_stood_still_does_not_count() -> None:
    now = [0.0]
    pacer = Pacer(100.0, lambda steps: None, clock=lambda: now[0])
    step = 0
    while not pacer.over(step - 1):
        now[0] += 0.05
        pacer.step_took(step, 0.05)
        if step == 300:
            now[0] += 1000.0
            pacer.rested(1000.0)
        step += 1
    assert step * 0.05 == pytest.approx(100.0, rel=0.05)


def test_steps_longer_than_the_time_end_the_run_at_once() -> None:
    run = Machine(lambda step: 30.0, 10.0)
    assert run.taken == 1
    assert run.plans == [1]


def test_schedules_follow_the_planned_length() -> None:
    settings = optimizer_settings(1e-3, 1e-3, 5e-3, 2)
    settings["projection"]["scheduler"] = dataclasses.replace(settings["projection"]["scheduler"], max_steps=50)
    weights = {name: [torch.nn.Parameter(torch.zeros(1))] for name in ("fields", "projection")}
    groups = OptimizerGroups.from_settings(weights, settings, 100_000)

    def rates(steps: int) -> dict[str, float]:
        for optimizer in groups.optimizers.values():
            optimizer.step()
        for _ in range(steps):
            for schedule in groups.schedules.values():
                schedule.step()
        return {name: schedule.get_last_lr()[0] for name, schedule in groups.schedules.items()}

    assert rates(10)["fields"] == pytest.approx(1e-3, rel=1e-3)
    groups.set_length(50)
    assert rates(15)["fields"] == pytest.approx(rates(0)["projection"])
    groups.set_length(30)
    rates(5)
    assert rates(0)["fields"] == pytest.approx(0.03 * 1e-3)
    assert rates(0)["projection"] > 1e-4, "an end that was given has moved"


# ------------------------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pictures(tmp_path_factory.mktemp("data") / "pictures", COUNTS)


def timed(settings: Any, minutes: float, **changes: Any) -> Any:
    """Settings as a user has them who gives minutes and nothing else of the length."""
    settings.minutes = minutes
    settings.max_num_iterations = get_method(settings.method_name).settings.max_num_iterations
    for group in settings.optimizers.values():
        group["scheduler"] = dataclasses.replace(group["scheduler"], max_steps=0)
    for name, value in changes.items():
        setattr(settings, name, value)
    return settings


def latest(run: Path) -> dict[str, Any]:
    return read_checkpoint(sorted((run / "nerfstudio_models").iterdir())[-1])


def final_rate(state: dict[str, Any]) -> float:
    return state["optimizers"]["fields"]["param_groups"][0]["lr"]


def test_a_run_takes_its_minutes_and_says_what_it_planned(pictures: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = timed(tiny_settings(pictures, tmp_path, method=IMAGE), 0.05)
    start = time.perf_counter()
    run = TrainingRun(settings, said.append).train()
    took = time.perf_counter() - start
    assert 1.5 < took < 6.0
    state, config = latest(run), read_config(run / "config.yml")
    steps = state["step"] + 1
    assert steps != 8000
    assert config["max_num_iterations"] == steps == state["time_plan"]["steps"]
    assert config["minutes"] == 0.0, "read back, the config would plan again"
    assert final_rate(state) < 0.05 * settings.optimizers["fields"]["optimizer"].lr, "the rate has not fallen"
    told = [line for line in said if line.startswith("0.05 minutes: a step takes")]
    assert len(told) == 1
    assert "(mnif-image-lite has 8,000 by default)" in told[0]
    again: list[str] = []
    resumed = timed(tiny_settings(pictures, tmp_path, name="on", method=IMAGE), 0.05)
    resumed.load_dir = run / "nerfstudio_models"
    TrainingRun(resumed, again.append).train()
    assert any(f"goes on to step {steps}, as planned for 0.05 minutes" in line for line in again)
    assert any(f"The run has its {steps} steps" in line for line in again)


def test_an_interrupted_run_keeps_its_plan(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = timed(tiny_settings(pictures, tmp_path, method=IMAGE), 0.2, steps_per_save=40)
    first = TrainingRun(settings, lambda text: None)
    original = first.trainer.steps

    def interrupted(step: int, count: int) -> Any:
        if step == 60:
            raise KeyboardInterrupt
        if step == 30:  # so that the time need not be waited for
            assert first.trainer.pacer is not None
            first.trainer.pacer._take(90)
            monkeypatch.setattr(first.trainer.pacer, "step_took", lambda step, seconds, count: None)
        return original(step, count)

    monkeypatch.setattr(first.trainer, "steps", interrupted)
    with pytest.raises(SystemExit, match="go on from there with the same command"):
        first.train()
    folder = first.settings.checkpoint_folder()
    for name, minutes in (("same", 0.2), ("without", 0.0)):
        resumed = timed(tiny_settings(pictures, tmp_path, name=name, method=IMAGE), minutes, load_dir=folder)
        run = TrainingRun(resumed, lambda text: None).train()
        assert latest(run)["step"] == 89
        assert latest(run)["time_plan"]["minutes"] == 0.2
        assert final_rate(latest(run)) < 0.05 * settings.optimizers["fields"]["optimizer"].lr
    longer = tiny_settings(pictures, tmp_path, 100, name="longer", method=IMAGE, load_dir=folder)
    assert latest(TrainingRun(longer, lambda text: None).train())["step"] == 99, "what the user says counts"


def test_a_short_run_draws_fewer_points_where_its_method_says_so(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tiny_settings(pictures, tmp_path, 8000, method=IMAGE)  # what the method is taken to be: 64 points
    rung = Rung("short", {POINTS: 32}, steps=(0, 10**9))
    monkeypatch.setitem(METHODS, IMAGE, dataclasses.replace(METHODS[IMAGE], settings=own, rungs=(rung,)))
    said: list[str] = []
    run = TrainingRun(timed(tiny_settings(pictures, tmp_path, method=IMAGE), 0.02), said.append).train()
    assert any("of 32 points an instance, fewer than by default" in line for line in said)
    assert read_config(run / "config.yml")["pipeline"]["datamanager"]["points_per_instance"] == 32
    assert latest(run)["time_plan"]["points"] == 32
    resumed = timed(tiny_settings(pictures, tmp_path, name="on", method=IMAGE), 0.02)
    resumed.load_dir = run / "nerfstudio_models"
    on = TrainingRun(resumed, said.append)
    assert on.data.draw(0).points.shape[-1] == 32
    chosen = timed(tiny_settings(pictures, tmp_path, name="chosen", method=IMAGE), 0.02)
    chosen.pipeline.datamanager.points_per_instance = 48
    given = TrainingRun(chosen, said.append)
    assert read_config(given.train() / "config.yml")["pipeline"]["datamanager"]["points_per_instance"] == 48
    rung = Rung("short", {POINTS: 32}, steps=(0, 10))
    monkeypatch.setitem(METHODS, IMAGE, dataclasses.replace(METHODS[IMAGE], rungs=(rung,)))
    long = TrainingRun(timed(tiny_settings(pictures, tmp_path, name="long", method=IMAGE), 0.02), said.append)
    assert read_config(long.train() / "config.yml")["pipeline"]["datamanager"]["points_per_instance"] == 64


def test_nerfstudio_runs_take_their_minutes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = write_tiny_shapes(tmp_path / "shapes", COUNTS)
    config = timed(tiny_config(shapes, tmp_path, method=VOXEL), 0.05)
    run = Run(config)
    state = run.checkpoint()
    steps = state["step"] + 1
    assert sorted(run.losses) == list(range(steps)), "a step was left out, or one counted that was not taken"
    assert state["time_plan"]["steps"] == steps == config.max_num_iterations
    written = yaml.load((run.folder / "config.yml").read_text(), yaml.Loader)
    assert (written.max_num_iterations, written.minutes) == (steps, 0.0)
    again = Run(timed(tiny_config(shapes, tmp_path, name="on", method=VOXEL), 0.05, load_dir=run.checkpoints))
    assert not again.losses


@pytest.mark.parametrize("minutes", [-1.0, float("nan"), float("inf")])
def test_minutes_that_are_none(minutes: float) -> None:
    settings = timed(get_method(IMAGE).new_run(), minutes)
    with pytest.raises(MNIFError, match=r"`minutes` is .*; give the minutes"):
        TimePlan(settings, print)


def test_two_lengths_of_one_run(pictures: Path, tmp_path: Path) -> None:
    settings = timed(get_method(IMAGE).new_run(), 3.0, max_num_iterations=500)
    with pytest.raises(MNIFError, match="`minutes` 3 and `max_num_iterations` 500 both say"):
        TimePlan(settings, print)
    run = TrainingRun(tiny_settings(pictures, tmp_path, 10, method=IMAGE), lambda text: None).train()
    later = timed(get_method(IMAGE).new_run(), 3.0, load_dir=run / "nerfstudio_models")
    with pytest.raises(MNIFError, match="given when it began"):
        TimePlan(later, print)


def test_the_prior_gets_its_share_of_the_time() -> None:
    fixed, per_step = prior_speed(64, 16, 0.95)
    assert 0 < per_step < 1
    assert 0 <= fixed < 10
