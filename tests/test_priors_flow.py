"""Flow matching as the prediction of a latent prior, and the forward process of every prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mnif_nerf.cli import train_prior
from mnif_nerf.cli.train_prior import TrainPriorOptions
from mnif_nerf.errors import MNIFError
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.schedulers import PREDICTIONS
from mnif_nerf.priors.training import Noising, PriorConfig


@pytest.fixture(scope="module")
def priors() -> dict[str, LatentPrior]:
    latents = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = {}
    for prediction in ("v_prediction", "flow"):
        config = PriorConfig(steps=30, width=32, blocks=1, batch_size=32, prediction=prediction)
        found[prediction] = LatentPrior.fit(latents, config, progress=False)
    return found


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_gaussian_model_is_the_best_one_for_a_gaussian(prediction: str) -> None:
    g = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 60_000, 2, generator=g)
    noising = Noising(prediction, 1000)
    for time in (30, 400, 900):
        times = torch.full((len(clean),), time)

        def loss(gain: float, at: Tensor = times) -> float:
            return float(noising.loss(lambda x, t: noising.gaussian(x, t) + gain * x, clean, noise, at, "cpu"))

        # Of all linear models, none is better: the loss is a parabola with its lowest point there.
        low, middle, high = loss(-0.2), loss(0.0), loss(0.2)
        assert abs(low - high) / (0.5 * (low + high) - middle) < 0.4
        assert middle < min(low, high)


def test_the_default_sampler_follows_the_prediction(priors: dict[str, LatentPrior]) -> None:
    small_prior, flow_prior = priors["v_prediction"], priors["flow"]
    for prior, name in ((small_prior, "dpm-solver++"), (flow_prior, "flow-heun")):
        assert prior.default_sampler == name
        assert torch.equal(prior.sample(3), prior.sample(3, sampler=name, steps=30))
    with pytest.raises(MNIFError, match=r"ddim cannot draw .* prediction flow; use flow-heun"):
        flow_prior.sample(2, sampler="ddim")
    with pytest.raises(MNIFError, match=r"flow-heun cannot draw .* prediction v_prediction; use dpm-solver"):
        small_prior.sample(2, sampler="flow-heun")


def test_saved_flow_prior_draws_the_same(priors: dict[str, LatentPrior], tmp_path: Path) -> None:
    flow_prior = priors["flow"]
    flow_prior.save(tmp_path / "prior")
    loaded = LatentPrior.load(tmp_path / "prior")
    assert loaded.config.prediction == "flow"
    assert torch.equal(loaded.sample(3, seed=2), flow_prior.sample(3, seed=2))


def test_train_prior_with_a_flow(folder: Path) -> None:
    target = train_prior.main(TrainPriorOptions(folder, steps=5, prediction="flow"))
    prior = LatentPrior.load(target)
    assert prior.default_sampler == "flow-heun"
    assert torch.isfinite(prior.sample(2)).all()
