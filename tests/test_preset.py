"""`preset` "auto": sizes by rungs, what the user gave stays, and runs that go on keep their sizes."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_tiny_shapes

from mnif_nerf.pipelines import preset
from mnif_nerf.pipelines.checkpoints import read_checkpoint
from mnif_nerf.pipelines.methods import METHODS, Rung, get_method
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.pipelines.run_settings import RunSettings

LARGE, SMALL = "mnif-voxel", "mnif-voxel-lite"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_shapes(tmp_path_factory.mktemp("preset") / "shapes", {"train": 6, "val": 2})


def settings_of(data: Path, output: Path, name: str = "run", method: str = LARGE) -> RunSettings:
    settings: Any = get_method(method).new_run()
    settings.data, settings.output_dir, settings.timestamp, settings.vis = data, output, name, "none"
    settings.machine.device_type, settings.pipeline.threads, settings.pipeline.train_prior = "cpu", 1, False
    settings.pipeline.preset, settings.pipeline.datamanager.points_per_instance = "auto", 64
    return settings


def with_rungs(monkeypatch: pytest.MonkeyPatch, *rungs: Rung) -> None:
    monkeypatch.setitem(METHODS, SMALL, dataclasses.replace(METHODS[SMALL], rungs=rungs))
    monkeypatch.setattr(preset, "method_of", lambda modality: METHODS[SMALL])


def test_a_preset_begins_with_the_small_form_and_leaves_what_was_given(shapes: Path, tmp_path: Path) -> None:
    before = copy.deepcopy(get_method(LARGE).settings)
    settings, said = settings_of(shapes, tmp_path), []
    settings.pipeline.model.num_bases = 5
    settings.optimizers["fields"]["optimizer"].lr = 7e-4
    preset.choose(settings, 0, said.append)
    small, own = get_method(SMALL).settings, settings.pipeline
    assert own.model.head == small.pipeline.model.head == "distance"
    assert own.adaptation == "auto-decoding"
    assert own.model.parametrization == small.pipeline.model.parametrization
    assert settings.max_num_iterations == small.max_num_iterations
    assert settings.optimizers["projection"]["optimizer"].lr == small.optimizers["projection"]["optimizer"].lr
    assert (own.model.num_bases, own.datamanager.points_per_instance) == (5, 64)
    assert settings.optimizers["fields"]["optimizer"].lr == 7e-4
    assert len(said) == 1
    assert "6 instances" in said[0]
    assert "5 bases" in said[0]
    assert get_method(LARGE).settings == before, "the method itself was changed"


def test_rungs_follow_instances_and_time(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Rung("little time", {"pipeline.model.width": 24}, steps=(0, 1000))
    long = Rung("much time", {"pipeline.model.width": 40}, steps=(100_000, float("inf")))
    many = Rung("many", {"pipeline.model.num_bases": 99}, instances=7)
    some = Rung("some", {"pipeline.model.latent_dim": 33, "pipeline.datamanager.points_per_instance": 9}, instances=6)
    with_rungs(monkeypatch, short, long, many, some)
    widths = []
    for minutes in (1e-5, 1e6):
        settings, said = settings_of(shapes, tmp_path), []
        preset.choose(settings, minutes, said.append)
        model = settings.pipeline.model
        widths.append(model.width)
        assert (model.num_bases, model.latent_dim) == (64, 33)
        assert settings.pipeline.datamanager.points_per_instance == 64, "what the user gave was replaced"
        assert "some" in said[0]
        assert "many" not in said[0]
    assert widths == [24, 40]


def test_every_rung_names_settings_that_there_are() -> None:
    for method in METHODS.values():
        places = {".".join(path) for path, _ in preset._values(method.settings)}
        for rung in method.rungs:
            assert set(rung.settings) <= places
            assert rung.why


def test_a_run_goes_on_with_the_sizes_it_began_with(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_rungs(monkeypatch, Rung("tiny", {"pipeline.model.width": 8, "pipeline.model.num_bases": 4}))
    settings = settings_of(shapes, tmp_path)
    settings.max_num_iterations = 3
    TrainingRun(settings, say=lambda _: None).train()
    checkpoints = settings.checkpoint_folder()
    assert read_checkpoint(next(checkpoints.glob("*.ckpt")))["time_plan"]["preset"]["pipeline.model.width"] == 8

    with_rungs(monkeypatch, Rung("other", {"pipeline.model.width": 16}))
    again = settings_of(shapes, tmp_path, "again")
    again.pipeline.preset, again.load_dir, again.max_num_iterations = "none", checkpoints, 5
    run = TrainingRun(again, say=lambda _: None)
    assert run.first_step == 3
    assert (run.model.field.spec.width, run.model.field.spec.num_bases) == (8, 4)
    run.train()
