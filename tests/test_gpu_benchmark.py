"""benchmarks/gpu.sh: all of it in tiny sizes on a CPU, without nerfstudio; and what happens when a part goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from no_nerfstudio import WITHOUT_NERFSTUDIO
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu
import gpu_report
from gpu_report import Part, Rows, Settings

from mnif_nerf.errors import MNIFError

ROOT = Path(__file__).resolve().parents[1]


def test_the_script_runs_without_nerfstudio_and_no_part_goes_wrong(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(WITHOUT_NERFSTUDIO)
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    environment |= {"WHEELS": str(tmp_path / "none"), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--tiny", "--device", "cpu", "--minutes", "9"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())
    parts = results["parts"]
    assert list(parts) == [*(name for name, *_ in gpu.PARTS), "cars", "training"]
    assert {name: part["error"] for name, part in parts.items()} == dict.fromkeys(parts)
    assert all(part["rows"] for name, part in parts.items() if name != "machine")
    assert results["machine"]["seed"] == 0
    assert results["machine"]["torch"]
    for name in gpu.gpu_steps.METHODS:
        rows = {row["what"]: row for row in parts[name]["rows"]}
        assert rows["points/s"]["ratio"] == pytest.approx(rows["points/s"]["ours"] / rows["points/s"]["against"])
        assert ("rays/s" in rows) == (name in ("mnif", "mnif-srn-cars-s"))
    scores = [row["ours"] for row in parts["training"]["rows"] if row["unit"] == "dB"]
    assert len(scores) == 2
    assert all(5 < score < 50 for score in scores)
    assert "| mnif-sdf | points/s |" in (tmp_path / "out" / "gpu.md").read_text()
    assert len(parts["training"]["facts"]["sheet"]["rows"]) >= 3
    with Image.open(tmp_path / "out" / "cars.png") as sheet:
        assert min(sheet.size) > 30


def dies(settings: Settings, rows: Rows) -> None:
    """A part that goes wrong after its first row."""
    rows.add("first", 1.0, "s")
    raise MNIFError("this went wrong.")


def hangs(settings: Settings, rows: Rows) -> None:
    """A part that takes too long."""
    rows.add("first", 1.0, "s")
    time.sleep(600)


def ends(settings: Settings, rows: Rows) -> None:
    """A part whose process is killed."""
    os._exit(7)


@pytest.mark.parametrize(
    ("target", "seconds", "error", "rows"),
    [
        ("dies", 60.0, "MNIFError: this went wrong.", 1),
        ("hangs", 2.0, "ended after its 2 seconds", 1),
        ("ends", 60.0, "its process ended with code 7", 0),
    ],
)
def test_what_a_part_found_before_it_went_wrong_counts(
    tmp_path: Path, target: str, seconds: float, error: str, rows: int
) -> None:
    settings = Settings("cpu", True, tmp_path, tmp_path)
    found = Part(target, f"{__name__}:{target}", settings, seconds, "fork").finish()
    assert found["error"] == error
    assert len(found["rows"]) == rows
    text = gpu_report.table({target: found})
    assert f"| {target} | ERROR | - |  | - | - | {error} |" in text
    assert ("| first | 1.00 | s |" in text) == bool(rows)


def test_parts_run_in_new_interpreters_too(tmp_path: Path) -> None:
    """Where CUDA does not work in forked processes."""
    settings = Settings("cpu", True, tmp_path, tmp_path)
    found = Part("peaks", "gpu_checks:peaks", settings, 120.0, "spawn").finish()
    assert found["error"] is None
    assert found["facts"]["gflops"] > 0


def test_unknown_parts_are_refused(tmp_path: Path) -> None:
    config = gpu.Config("cpu", True, output=tmp_path, work=tmp_path, parts=("nonsense",))
    with pytest.raises(MNIFError, match="nonsense: not known; choose of machine, data"):
        gpu.main(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_load_early", lambda device: None)
    with pytest.raises(MNIFError, match="nothing was measured: MNIFError: torch finds no CUDA device here"):
        gpu.main(gpu.Config("cuda", True, output=tmp_path / "out"))
    assert list(json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]) == ["machine"]
