"""benchmarks/answers.py runs on a tiny model, and its measures are what they say."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import answers
from answers_cases import cases_of
from test_fit_command import written
from test_posterior import with_prior
from tiny_model import tiny_image_model, tiny_surface_model, tiny_voxel_model

from mnif_nerf.errors import MNIFError
from mnif_nerf.pipelines.fit.posterior import AnswerConfig
from mnif_nerf.pipelines.generation import MNIFPipeline


def test_the_measures_of_draws_of_the_truth() -> None:
    """Where truth and answers are draws of the same, spread and error are the same, and the shares are right."""
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(9, 40_000)).astype(np.float32)
    seen = np.zeros(40_000, bool)
    seen[:100] = True
    case = answers.Case("", None, 0.0, 0.0, draws[0], draws[0], seen)  # type: ignore[arg-type]
    found = answers.measures(draws[1:], case)
    assert found["unseen"]["spread"] == pytest.approx(found["unseen"]["error"], rel=0.02)
    assert found["unseen"]["brier"] == pytest.approx(0.25, abs=0.01)
    assert found["unseen"]["energy"] == pytest.approx(2**0.5 / 2, abs=0.02)
    blunt = answers.measures(0.2 * draws[1:], case)  # too sure, and a worse score for it
    assert blunt["unseen"]["spread"] < 0.4 * blunt["unseen"]["error"]
    assert blunt["unseen"]["energy"] > found["unseen"]["energy"]
    assert sum(count for count, _ in found["inside"]) == 39_900


def test_the_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(answers, "AnswerConfig", lambda: AnswerConfig(candidates=2, steps=2))
    model = written(with_prior(tiny_voxel_model(8, head="logit")), tmp_path)
    (tmp_path / "shapes").mkdir()
    np.save(tmp_path / "shapes/a.npy", MNIFPipeline.from_pretrained(model, device="cpu").instance(0).occupancy(16))
    config = answers.Config(
        voxel=Path(model), voxels=tmp_path / "shapes", parts=("voxels",), instances=1, answers=3,
        figure=tmp_path / "figure.png", output=tmp_path / "numbers.json",
    )  # fmt: skip
    rows = answers.main(config)["voxels"]
    assert [row["method"] for row in rows] == list(answers.METHODS)
    assert json.loads((tmp_path / "numbers.json").read_text())["results"]["voxels"][0]["method"] == "fit"
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert "| voxels | loss of what was seen" in capsys.readouterr().out
    with pytest.raises(MNIFError, match="`parts` nothing: unknown"):
        answers.main(dataclasses.replace(config, parts=("nothing",)))
    with pytest.raises(MNIFError, match="a spread needs two or more"):
        answers.main(dataclasses.replace(config, answers=1))


@pytest.mark.parametrize(("part", "make"), [("scans", tiny_surface_model), ("pictures", tiny_image_model)])
def test_what_is_shown_in_part(part: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "AnswerConfig", lambda: AnswerConfig(candidates=2, steps=2))
    model = Path(written(with_prior(make(8)), tmp_path))
    pipe = MNIFPipeline.from_pretrained(model, device="cpu")
    (tmp_path / "pictures").mkdir()
    if part == "pictures":
        pipe.instance(0).own_picture().save(tmp_path / "pictures/a.png")
    config = answers.Config(
        model=model, image=model, pictures=tmp_path / "pictures", parts=(part,), instances=1, answers=2, points=300,
        methods=("fit", "answers"),
    )  # fmt: skip
    (fit, several) = answers.main(config)[part]
    assert 0 < fit["seen_error"] < 2
    assert several["spread"] > 0
    (case,) = cases_of(part, pipe, config)
    assert len(case.truth) == len(case.seen)
    assert 0.2 < case.seen.mean() < 0.9
    if part == "scans":  # nothing hides air, a wall hides what is in it
        assert case.truth[case.seen].mean() > case.truth[~case.seen].mean() + 0.3
