"""benchmarks/rates.py on four cars and three steps."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
pytest.importorskip("igl")

import rates

from mnif_nerf.data.generate.points import make_procedural_points
from mnif_nerf.data.generate.settings import CarCounts


def test_sizes_by_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_procedural_points(tmp_path / "cars", CarCounts(16, 0, 1, 0), 300)
    config = rates.Config(
        data=tmp_path / "cars", factors=(1.0, 4.0), widths=(8,), bases=(4,), latents=(), steps=3, points=32,
        figure=tmp_path / "rates.png", output=tmp_path / "rates.json",
    )  # fmt: skip
    rates.main(config)
    assert "| width 64, 64 bases, latents of 64 |" in capsys.readouterr().out
    results = json.loads((tmp_path / "rates.json").read_text())["results"]
    own = {name: rows["width 64, 64 bases, latents of 64"] for name, rows in results.items()}
    # At the method's own size both parametrisations are the same training, but for Adam's eps and rounding.
    assert own["plain"] == pytest.approx(own["scaled"], rel=1e-3)
    other = {name: rows["width 64, 4 bases, latents of 64"] for name, rows in results.items()}
    assert other["plain"] != pytest.approx(other["scaled"], rel=1e-3)
    assert (tmp_path / "rates.png").stat().st_size > 1000


def test_the_methods_own_rates_are_the_middle() -> None:
    config = rates.Config(data=Path("x"))
    settings = rates.settings_of(config, (64, 64, 64), "scaled", 4.0)
    own = rates.get_method("mnif-sdf-lite").new_run().optimizers
    assert settings.optimizers["projection"]["optimizer"].lr == 4 * own["projection"]["optimizer"].lr
    assert settings.optimizers["fields"]["optimizer"].lr == own["fields"]["optimizer"].lr
    signals = dataclasses.replace(config, method="mnif-signal-lite")
    plain = rates.settings_of(signals, (48, 32, 32), "plain", 1.0)
    assert plain.optimizers["projection"]["optimizer"].lr == 1e-3
