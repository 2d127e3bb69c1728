"""benchmarks/comparison.py: every row on tiny voxels, the results file, and the table."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import comparison

from mnif_nerf.data.generate.writer import write_occupancy
from mnif_nerf.errors import MNIFError


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("boxes")
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 3)):
        for index in range(count):
            solid = np.zeros((8, 8, 8), dtype=bool)
            x, y, z = random.integers(3, 7, 3)
            solid[1:x, 1:y, 1:z] = True
            write_occupancy(root / split / f"{index:02d}.npz", solid)
    return root


def config_of(boxes: Path, folder: Path, **changes: object) -> comparison.Config:
    sizes = {"width": 8, "hidden_layers": 1, "latent_dim": 4, "fit_steps": 2, "seconds": 0.02}
    return comparison.Config("monitors", boxes, **{**sizes, "results": folder / "runs.jsonl", **changes})  # type: ignore[arg-type]


def test_an_interrupted_table_goes_on(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(boxes, tmp_path, rows=("mixture-32", "shift"), seeds=(0, 1))
    measured = []

    def measure(*args: object) -> dict[str, object]:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(args[1])
        return own(*args)  # type: ignore[arg-type]

    own = comparison.measure
    monkeypatch.setattr(comparison, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        comparison.main(config)
    assert [(job.row, job.seed) for job in measured] == [("mixture-32", 0), ("shift", 0), ("mixture-32", 1)]
    with config.results.open("a") as file:
        file.write('{"data": "monitors", "row')  # cut off
    monkeypatch.setattr(comparison, "measure", own)
    runs = comparison.main(config)
    assert [(run["row"], run["seed"]) for run in runs] == [
        ("mixture-32", 0), ("shift", 0), ("mixture-32", 1), ("shift", 1),
    ]  # fmt: skip
    assert [json.loads(line) for line in config.results.read_text().splitlines()] == runs
    shown = capsys.readouterr().out
    assert "| mixture-32 | 2 |" in shown
    assert "| shift | 2 |" in shown
    assert "seeds 0, 1" in shown
    assert "Machine: " in shown
    assert all(run["steps"] >= 1 and len(run["unseen"]) == 3 and len(run["training"]) == 16 for run in runs)

    monkeypatch.setattr(comparison, "measure", lambda *_: pytest.fail("nothing is left to run"))
    comparison.main(dataclasses.replace(config, table=True))
    comparison.main(config)


def test_every_row_trains_what_it_says(boxes: Path, tmp_path: Path) -> None:
    config = config_of(boxes, tmp_path, seeds=(3,))
    runs = {run["row"]: run for run in comparison.main(config)}
    assert tuple(runs) == tuple(comparison.ROWS)
    assert len({run["instance"] for run in runs.values()} - {runs["fourier-mixture-32"]["instance"]}) == 1
    learned = {name: run["learned"] for name, run in runs.items()}
    assert learned["shift"] < learned["mixture-8"] < learned["mixture-32-network-wise"] < learned["mixture-32"]
    assert learned["mixture-32"] < learned["mixture-128"]
    assert runs["finer-mixture-32"]["w0"] == 0.5 * runs["mixture-32"]["w0"]


def test_rates_are_those_of_the_job(boxes: Path, tmp_path: Path) -> None:
    config = config_of(boxes, tmp_path, tune=True, rows=("shift",), seeds=(0,))
    assert [job.factors for job in comparison.jobs_of(config)] == list(comparison.TRIES)
    own, other = (
        comparison.settings_of(config, comparison.Job("shift", 0, factors), tmp_path).optimizers
        for factors in ((1.0, 1.0), (1 / 3, 3.0))
    )
    for group, factor in (("fields", 1 / 3), ("projection", 3.0), ("latents", 3.0)):
        assert other[group]["optimizer"].lr == pytest.approx(factor * own[group]["optimizer"].lr)
    run = comparison.main(config)[-1]
    assert run["tune"]
    assert (
        comparison.matching(dataclasses.replace(config, tune=False), [run], comparison.Job("shift", 0, (1.0, 1.0)))
        is None
    )


def test_intervals() -> None:
    assert comparison.interval([1.0], 2) == "1.00"
    assert comparison.interval([1.0, 2.0, 3.0], 2) == "2.00 ± 2.48"  # 4.303 / sqrt(3)
    base = [{"seed": s, "unseen": {f"{i}": {"iou": 0.1 * i + s} for i in range(9)}} for s in (0, 1)]
    better = [{"seed": s, "unseen": {f"{i}": {"iou": 0.1 * i + s + 0.01 * i} for i in range(9)}} for s in (0, 1, 2)]
    text = comparison.difference(better, base, "unseen", "iou", 3)
    assert text.startswith("+0.040 [+0.0")
    assert comparison.difference(base, base, "unseen", "iou", 3) == "+0.000 [+0.000, +0.000]"
    assert comparison.difference(better, [], "unseen", "iou", 3) == "-"


def test_mistakes_are_told_in_a_sentence(boxes: Path, tmp_path: Path) -> None:
    config = config_of(boxes, tmp_path)
    for changes, words in (
        ({"data": "chairs"}, "choose one of monitors, trees, emoji, digits"),
        ({"rows": ("wavelets",)}, "--rows wavelets: choose of mixture-8"),
        ({"seconds": 0.0}, "--seconds must be positive"),
        ({"path": tmp_path / "none"}, "--path must be the folder"),
    ):
        with pytest.raises(MNIFError, match=words):
            comparison.main(dataclasses.replace(config, **changes))  # type: ignore[arg-type]
    config.results.write_text("no json\n{}\n")
    with pytest.raises(MNIFError, match="line 1 is no JSON"):
        comparison.read(config.results)
