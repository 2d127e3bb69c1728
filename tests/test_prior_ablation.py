"""The ablation of the latent prior: its rows, its scores on sets whose answer is known, and what no prior may see."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mnif_nerf.diagnosis import prior_ablation
from mnif_nerf.diagnosis.prior_ablation import (
    AblationConfig,
    Reference,
    ablation_table,
    num_variants,
    run_ablation,
    variants,
)
from mnif_nerf.errors import MNIFError
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.training import PriorConfig
from mnif_nerf.priors.whitening import Whitening

BASE = PriorConfig(steps=6, width=16, blocks=1, batch_size=32, explained_variance=1.0)
CONFIG = AblationConfig(BASE, held_out=0.25, draws=2)


def clusters(count: int, dim: int = 4, seed: int = 0) -> Tensor:
    """Two separate clusters, three to one."""
    g = torch.Generator().manual_seed(seed)
    side = (torch.rand(count, 1, generator=g) < 0.25).float() * 6
    return side + torch.randn(count, dim, generator=g)


class Run:
    """One ablation, with what went on in it."""

    def __init__(self) -> None:
        self.latents, self.advanced, self.seen = clusters(48), 0, []
        fit = LatentPrior.fit

        def spy(latents: Tensor, *arguments: Any, **options: Any) -> LatentPrior:
            self.seen.append(latents)
            return fit(latents, *arguments, **options)

        def advance() -> None:
            self.advanced += 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LatentPrior, "fit", spy)
            self.rows = run_ablation(self.latents, CONFIG, advance)


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


def test_one_row_per_variant_and_two_of_real_latents(run: Run) -> None:
    assert run.advanced == num_variants(CONFIG) == len(run.rows) - 2
    assert [row["change"] for row in run.rows[:3]] == ["real latents", "real latents", "default"]
    assert len({(row["change"], row["variant"]) for row in run.rows}) == len(run.rows)
    changes = {row["change"] for row in run.rows}
    assert changes >= {"denoiser", "training", "prediction", "whitening", "weights", "samples", "sampler"}
    for row in run.rows[2:]:
        assert row["sample_seconds"] > 0
        assert (row["train_seconds"] is None) == (row["variant"] in ("gaussian", "interpolation"))
        for part in ("train", "held_out"):
            halves = row[f"{part}_1nna_real"] + row[f"{part}_1nna_fake"]
            assert row[f"{part}_1nna"] == pytest.approx(halves / 2)
            assert math.isfinite(row[f"{part}_kernel"])
            assert row[f"{part}_kernel_sd"] >= 0
            assert row[f"{part}_frechet"] > -1e-6


def test_the_held_out_latents_are_seen_by_no_prior(run: Run) -> None:
    first = run.seen[0]
    assert len(first) == 36
    assert all(torch.equal(seen, first) for seen in run.seen)
    held = ~(run.latents[:, None] == first).all(dim=2).any(dim=1)
    assert int(held.sum()) == 12
    # The row of the held-out ones is made of just these.
    space = Whitening.fit(first, "pca", None, 1.0)
    real = Reference(space, first, run.latents[held], seed=0)
    expected = real.latent_scores(space.whiten(run.latents[held]))
    for name in ("novelty", "spread", "train_frechet"):  # which do not depend on the order
        assert run.rows[0][name] == pytest.approx(expected[name], rel=1e-3)
    assert run.rows[0]["held_out_kernel"] is None
    assert run.rows[1]["novelty"] == 0  # training latents drawn again


def test_the_non_diffusion_samplers_are_told_apart(run: Run) -> None:
    rows = {row["variant"]: row for row in run.rows}
    # Mixtures of neighbours stay near the data and are spread less; the Gaussian fills the gap between clusters.
    assert rows["interpolation"]["novelty"] < 0.8 * rows["gaussian"]["novelty"]
    assert rows["interpolation"]["spread"] < rows["gaussian"]["spread"]


def test_the_same_seed_gives_the_same_rows(run: Run) -> None:
    torch.manual_seed(99)
    again = run_ablation(run.latents, CONFIG)
    clock = {"train_seconds": 0, "sample_seconds": 0}
    assert [{**row, **clock} for row in again] == [{**row, **clock} for row in run.rows]


def test_samples_that_are_not_finite_leave_the_scores_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = LatentPrior.sample

    def broken(prior: LatentPrior, *arguments: Any, **options: Any) -> Tensor:
        drawn = sample(prior, *arguments, **options)
        return drawn.fill_(float("nan")) if prior.config.prediction == "epsilon" else drawn

    monkeypatch.setattr(LatentPrior, "sample", broken)
    monkeypatch.setattr(prior_ablation, "_SAMPLERS", ())
    rows = run_ablation(clusters(48), dataclasses.replace(CONFIG, base=dataclasses.replace(BASE, steps=1)))
    bad = [row for row in rows[2:] if row["novelty"] is None]
    assert [row["variant"] for row in bad] == ["epsilon"]
    assert "| prediction | epsilon | - | - | - | - | - | - | - | - |" in ablation_table(bad).markdown()


def test_one_change_at_a_time() -> None:
    found = variants(BASE, width=64, steps=100)
    default = dataclasses.replace(BASE, width=64, steps=100)
    assert found[0].prior == default
    for variant in found[1:]:
        changed = [
            field.name
            for field in dataclasses.fields(default)
            if getattr(variant.prior, field.name) != getattr(default, field.name)
        ]
        assert len(changed) + (variant.sampler is not None) == 1, variant
    assert {v.prior.width for v in found} == {16, 64, 256}
    assert {v.prior.prediction for v in found} == {"v_prediction", "sample", "epsilon", "flow"}
    assert {v.prior.whitening for v in found} == {"pca", "per-dimension", "none"}
    assert {v.steps for v in found if v.sampler == "dpm-solver++"} == {10, 20, 50}  # and 30 of the default
    # A prior of flows cannot be drawn from with the samplers of diffusion.
    flow = dataclasses.replace(BASE, prediction="flow")
    assert {v.sampler for v in variants(flow, 64, 100)} == {None, "gaussian", "interpolation"}
    assert "v_prediction" in {v.prior.prediction for v in variants(flow, 64, 100)}


def test_known_models() -> None:
    """A perfect model, a memoriser, a shrunken one, a collapsed one and a shifted one."""
    g = torch.Generator().manual_seed(0)
    training, held, perfect = (torch.randn(count, 4, generator=g) for count in (300, 100, 100))
    space = Whitening.fit(training, "pca", None, 1.0)
    real = Reference(space, training, held, seed=0)

    def scores(points: Tensor) -> dict[str, float]:
        return real.latent_scores(space.whiten(points))

    good, copied, shrunk = scores(perfect), scores(training[:100]), scores(0.4 * perfect)
    collapsed, shifted = scores(training[:1] + 0.01 * perfect), scores(perfect + 1.5)
    assert good["spread"] == pytest.approx(1, abs=0.15)
    assert good["novelty"] == pytest.approx(1, abs=0.25)
    for part in ("train", "held_out"):
        assert abs(good[f"{part}_kernel"]) < 0.3
        assert good[f"{part}_1nna"] == pytest.approx(0.5, abs=0.12)
        assert shifted[f"{part}_kernel"] > 3
        assert shifted[f"{part}_frechet"] == pytest.approx(9, rel=0.3)  # 4 * 1.5^2
        assert shifted[f"{part}_1nna"] > 0.75
        assert shrunk[f"{part}_1nna"] > 0.7
    assert copied["novelty"] == 0
    assert copied["train_1nna"] < 0.45  # copies of the very points they are compared with
    assert copied["held_out_1nna"] == pytest.approx(0.5, abs=0.12)
    assert shrunk["spread"] == pytest.approx(0.4, abs=0.06)
    assert shrunk["novelty"] < 0.85
    assert collapsed["spread"] < 0.05
    assert collapsed["held_out_1nna_fake"] == 1.0


def test_table(run: Run) -> None:
    table = ablation_table(run.rows).markdown()
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(run.rows)
    assert len({line.count("|") for line in lines}) == 1
    assert "nan" not in table
    assert "dpm-solver++, 20 steps" in table
    broken = {**run.rows[2], "train_kernel": 1.234e17, "train_kernel_sd": 5e16}
    assert "| 1.2e+17 ± 5.0e+16 |" in ablation_table([broken]).markdown()


def test_bad_requests() -> None:
    with pytest.raises(MNIFError, match=r"30 latents with a share of 0.2 held out compares with 6 of them"):
        run_ablation(clusters(30))
    with pytest.raises(MNIFError, match="at most half"):
        run_ablation(clusters(40), dataclasses.replace(CONFIG, held_out=0.6))
    with pytest.raises(MNIFError, match="held-out share 1"):
        AblationConfig(held_out=1)
    with pytest.raises(MNIFError, match="draws 0"):
        AblationConfig(draws=0)
    broken = clusters(48)
    broken[7] = float("nan")
    with pytest.raises(MNIFError, match="NaN"):
        run_ablation(broken, CONFIG)
