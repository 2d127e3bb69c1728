"""mnif-eval and mnif-sample as two processes: the tables and files of one, and a sentence where one of them dies."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluation import TINY, with_prior, write_grids
from tiny_model import tiny_model, tiny_voxel_model
from tiny_srn import write_tiny_srn
from together import Together

from mnif_nerf.cli import evaluate, sample
from mnif_nerf.cli.processes import working_ranks
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.errors import run_command
from mnif_nerf.evaluation import (
    run,  # noqa: F401  for both processes, before they are forked
    view_pictures,
)
from mnif_nerf.evaluation.protocols import PROTOCOLS
from mnif_nerf.evaluation.shapes import CellShapes
from mnif_nerf.latents.ranks import ONE, started_ranks
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import StoredModel, write_model

KINDS = ("voxels", "scenes")


def write_models(root: Path) -> None:
    """A model of shapes and one of scenes, with their data."""
    pipe = MNIFPipeline(with_prior(tiny_voxel_model(num_instances=8, resolution=12)))
    write_grids(pipe, root / "voxels data")
    write_model(pipe.model, root / "voxels")
    place = write_tiny_srn(root / "scenes data", scenes=4, views=4, heldout_views=2, test_scenes=4, resolution=16)
    model = with_prior(tiny_model(num_instances=4))
    model.training = {**model.training, "fit_steps": 8}  # rounding errors grow from step to step of a fit
    model.names = open_store(place, "train", progress=False).names
    write_model(model, root / "scenes")


def measure(root: Path, kind: str, name: str) -> None:
    """mnif-eval and mnif-sample, but for their options; as one command, since processes come together once."""
    PROTOCOLS["small"] = TINY
    made = root / name / kind
    options = evaluate.EvalOptions(root / kind, root / f"{kind} data", output=made / "evaluation", references="test")
    objects = sample.SampleOptions(
        str(root / kind), num_samples=3, resolution=16, frames=2, turntable_resolution=16, output=made / "samples",
        sampler="gaussian",
    )  # fmt: skip
    encode, fitted = view_pictures.encode_views, []

    def counted(model: StoredModel, unseen: Any, scenes: Any = None) -> torch.Tensor:
        fitted.append(encode(model, unseen, scenes))
        return fitted[-1]

    with working_ranks("cpu", "") as (ranks, device), pytest.MonkeyPatch.context() as patch:
        patch.setattr(view_pictures, "encode_views", counted)
        evaluate.evaluate_together(options, ranks, device)
        sample.sample_together(objects, None, ranks, device)
        if fitted:
            torch.save(fitted, root / f"{name} {ranks.number}.pt")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    write_models(root)
    return root


def numbers(content: Any) -> Any:
    """The floats of a JSON file as pytest compares them: sums in another order differ by rounding."""
    if isinstance(content, dict):
        return {name: numbers(value) for name, value in content.items()}
    if isinstance(content, list):
        return [numbers(value) for value in content]
    return pytest.approx(content, rel=1e-4, abs=1e-6) if isinstance(content, float) else content


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_measure_what_one_does(models: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (code, said, errors), (other, second, others) = Together(models, measure, models, kind, "two").end(400)
    assert (code, other) == (0, 0), errors + others
    assert (second, others) == ("", ""), "one of them speaks"
    assert said.count("metrics.json") == said.count("samples.json") == 1
    monkeypatch.setitem(PROTOCOLS, "small", TINY)
    measure(models, kind, "one")
    one, two = (models / name / kind for name in ("one", "two"))
    names = [sorted(str(path.relative_to(side)) for path in side.rglob("*")) for side in (one, two)]
    assert names[0] == names[1]
    for name in ("evaluation/metrics.json", "samples/samples.json"):
        ours, theirs = (json.loads((side / name).read_text()) for side in (two, one))
        assert ours == numbers(theirs)
    if kind == "scenes":
        (all_of_them,), (even,), (odd,) = (torch.load(models / f"{found}.pt") for found in ("one 0", "two 0", "two 1"))
        assert len(all_of_them) == TINY.unseen_instances
        for own, theirs in ((even, all_of_them[::2]), (odd, all_of_them[1::2])):
            torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)
    tables = [(side / "evaluation" / "report.md").read_text().count("|") for side in (one, two)]
    assert tables[0] == tables[1] > 50
    for picture in (one / "samples").rglob("*.png"):
        sides = [np.asarray(Image.open(path)) for path in (picture, two / picture.relative_to(one))]
        assert np.array_equal(*sides)


def command(root: Path) -> None:
    """mnif-eval, one process of which dies in the middle of its share."""

    PROTOCOLS["small"] = TINY
    if os.environ["RANK"] == "1":
        CellShapes.of_object = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    options = evaluate.EvalOptions(root / "voxels", root / "voxels data", output=root / "dying", references="test")
    options.device = "cpu"
    run_command(lambda: evaluate.main(options))


def test_a_process_that_dies_ends_the_command_with_a_sentence(models: Path, tmp_path: Path) -> None:
    (code, _, errors), (other, _, _) = Together(tmp_path, command, models).end(300)
    assert (code, other) == (1, -signal.SIGKILL), errors
    assert "Traceback" not in errors
    sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
    kept = "what was measured is kept, and the same command goes on."
    assert sentences == [f"error: a process of this command has ended or does not answer; {kept}"]
    assert list((models / "dying" / "cache").glob("*.safetensors"))


def test_a_mistake_of_all_is_told_once(tmp_path: Path) -> None:
    both = Together(tmp_path, mistake, tmp_path / "nowhere").end()
    assert [code for code, *_ in both] == [1, 1]
    assert "".join(errors for *_, errors in both).count("error: ") == 1


def mistake(folder: Path) -> None:
    run_command(lambda: evaluate.main(evaluate.EvalOptions(folder, device="cpu")))


def spread(root: Path) -> None:
    with started_ranks("cpu") as ranks:
        for count in (0, 1, 5):
            assert ranks.spread(range(count), lambda own: [str(k) for k in own]) == [str(k) for k in range(count)]
        assert ranks.collect(ranks.number) == [0, 1]


def test_work_is_spread_in_order(tmp_path: Path) -> None:
    assert ONE.spread([3, 4], lambda own: [-k for k in own]) == [-3, -4]
    assert ONE.collect("own") == ["own"]
    for code, _, errors in Together(tmp_path, spread, tmp_path).end():
        assert code == 0, errors


@pytest.mark.parametrize(("module", "program"), [(evaluate, "evaluate"), (sample, "sample")])
def test_a_command_starts_its_processes(module: Any, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class ReplacedError(Exception):
        pass

    def execv(path: str, command: list[str]) -> None:
        raise ReplacedError(*command)

    monkeypatch.setattr(os, "execv", execv)
    given = ["--load-config", "run", "--num-devices", "2"]
    monkeypatch.setattr(sys, "argv", [program, *given])
    with pytest.raises(ReplacedError) as caught:
        module.entrypoint()
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert caught.value.args == (sys.executable, *launcher, "-m", f"mnif_nerf.cli.{program}", *given)


def test_a_senseless_number_of_processes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mnif-eval", "--load-config", "run", "--num-devices", "0"])
    with pytest.raises(SystemExit):
        evaluate.entrypoint()
    assert "error: --num-devices" in capsys.readouterr().err
