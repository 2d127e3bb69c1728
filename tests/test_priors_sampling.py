"""Schedulers and the reverse process, on targets whose exact denoiser is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.priors.schedulers import (
    DEFAULT_STEPS,
    PREDICTIONS,
    SAMPLERS,
    default_sampler,
    draw_noise,
    make_scheduler,
    reverse_process,
    sample_streams,
    scheduler_config,
    scheduler_from_config,
)
from mnif_nerf.priors.training import spread_times


class ExactMixture:
    """The posterior mean of a mixture of diagonal Gaussians, in whatever form the scheduler asks for."""

    def __init__(
        self, weights: list[float], means: list[list[float]], deviations: list[list[float]], schedule: str = "cosine"
    ) -> None:
        self.weights, self.means = torch.tensor(weights), torch.tensor(means)
        self.variances = torch.tensor(deviations) ** 2
        self.scheduler = make_scheduler("ddpm", schedule=schedule)

    def model(self, prediction: str):
        def predict(x: Tensor, t: Tensor) -> Tensor:
            if prediction == "flow":
                sigma = t[:, None] / 1000
                alpha = 1 - sigma
            else:
                abar = self.scheduler.alphas_cumprod[t][:, None]
                alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
            clean = self.clean(x, alpha, sigma)
            noise = (x - alpha * clean) / sigma
            return {
                "sample": clean,
                "epsilon": noise,
                "v_prediction": alpha * noise - sigma * clean,
                "flow": noise - clean,
            }[prediction]

        return predict

    def clean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        spread = alpha[..., None] ** 2 * self.variances + sigma[..., None] ** 2  # [n, components, K]
        offset = x[:, None] - alpha[..., None] * self.means
        log_likelihood = -0.5 * (offset**2 / spread + spread.log()).sum(-1) + self.weights.log()
        posterior = self.means + alpha[..., None] * self.variances / spread * offset
        return (log_likelihood.softmax(1)[..., None] * posterior).sum(1)


PAIRS = [(s, p) for s in SAMPLERS for p in PREDICTIONS if (s == "flow-heun") == (p == "flow")]


def prediction_for(sampler: str) -> str:
    return "flow" if sampler == "flow-heun" else "v_prediction"


def draw(target: ExactMixture, sampler: str, prediction: str, count: int, steps: int | None = None) -> Tensor:
    return reverse_process(
        target.model(prediction),
        make_scheduler(sampler, prediction),
        steps or DEFAULT_STEPS[sampler],
        sample_streams(count, seed=0),
        target.means.shape[1],
    )


GAUSSIAN = ExactMixture([1.0], [[-1.0, 0.0, 0.5, 2.0]], [[0.2, 0.5, 1.0, 1.5]])
TWO = ExactMixture([0.3, 0.7], [[-1.5, 0.5], [0.8, -0.2]], [[0.3, 0.4], [0.3, 0.4]])


@pytest.mark.parametrize(("sampler", "prediction"), PAIRS)
def test_gaussian_target(sampler: str, prediction: str) -> None:
    # 1,000 ancestral steps are checked once, below.
    count, steps = (1000, 150) if sampler == "ddpm" else (2000, None)
    samples = draw(GAUSSIAN, sampler, prediction, count, steps)
    deviation = GAUSSIAN.variances[0].sqrt()
    error = (samples.mean(0) - GAUSSIAN.means[0]) / deviation
    assert error.abs().max() < 0.08
    assert (samples.std(0) / deviation - 1).abs().max() < 0.08
    correlation = torch.corrcoef(samples.T) - torch.eye(4)
    assert correlation.abs().max() < 0.08


def test_the_linear_schedule_is_sampled_as_it_was_trained() -> None:
    """Through a stored configuration, also by another sampler than the stored one."""
    target = ExactMixture([1.0], [[-1.0, 0.0, 0.5, 2.0]], [[0.2, 0.5, 1.0, 1.5]], schedule="linear")
    assert not torch.allclose(target.scheduler.alphas_cumprod, GAUSSIAN.scheduler.alphas_cumprod, atol=0.1)
    stored = scheduler_config(make_scheduler("dpm-solver++", "v_prediction", schedule="linear"))
    for sampler in ("dpm-solver++", "ddim"):
        samples = reverse_process(
            target.model("v_prediction"), scheduler_from_config(stored, sampler), 100, sample_streams(2000, seed=0), 4
        )
        assert ((samples.mean(0) - target.means[0]) / target.variances[0].sqrt()).abs().max() < 0.1
        assert (samples.std(0) / target.variances[0].sqrt() - 1).abs().max() < 0.15
    with pytest.raises(MNIFError, match="schedule: unknown name 'square'; choose one of cosine, linear"):
        make_scheduler(schedule="square")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_components_keep_their_shares(sampler: str) -> None:
    count, steps = (1500, 150) if sampler == "ddpm" else (2000, None)
    samples = draw(TWO, sampler, prediction_for(sampler), count, steps)
    left = samples[:, 0] < -0.4
    assert abs(left.float().mean() - 0.3) < 0.04
    for component, chosen in enumerate((left, ~left)):
        assert (samples[chosen].mean(0) - TWO.means[component]).abs().max() < 0.08
        assert (samples[chosen].std(0) / TWO.variances[component].sqrt() - 1).abs().max() < 0.15
    mean = (TWO.weights[:, None] * TWO.means).sum(0)
    within = torch.diag((TWO.weights[:, None] * TWO.variances).sum(0))
    between = ((TWO.means - mean).T * TWO.weights) @ (TWO.means - mean)
    assert (torch.cov(samples.T) - within - between).abs().max() < 0.1


def test_a_thousand_ancestral_steps() -> None:
    samples = draw(GAUSSIAN, "ddpm", "sample", 400)
    assert (samples.std(0) / GAUSSIAN.variances[0].sqrt() - 1).abs().max() < 0.1


def cosine_process(total: int = 1000) -> tuple[Tensor, Tensor]:
    """Betas and their cumulated products as Nichol and Dhariwal define them, in float64."""

    def level(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((i + 1) / total) / level(i / total), 0.999) for i in range(total)]
    table = torch.tensor(betas, dtype=torch.float64)
    return table, (1 - table).cumprod(0)


@pytest.mark.parametrize("t", [999, 500, 10, 1, 0])
def test_ddpm_is_the_authors_process(t: int) -> None:
    betas, abar = cosine_process()
    scheduler = make_scheduler("ddpm", "sample")
    assert (scheduler.betas.double() - betas).abs().max() < 1e-6
    scheduler.set_timesteps(1000)
    g = torch.Generator().manual_seed(t)
    x, clean = torch.randn(64, 8, generator=g), torch.randn(64, 8, generator=g)
    streams = sample_streams(64, seed=t)
    stepped = scheduler.step(clean, t, x, generator=streams).prev_sample
    noise = draw_noise(sample_streams(64, seed=t), 8)
    before = abar[t - 1] if t > 0 else torch.tensor(1.0, dtype=torch.float64)
    mean = before.sqrt() * betas[t] / (1 - abar[t]) * clean
    mean = mean + (1 - betas[t]).sqrt() * (1 - before) / (1 - abar[t]) * x
    expected = mean + (betas[t].sqrt() * noise if t > 0 else 0)  # fixed large variance, none at the last step
    assert (stepped - expected).abs().max() < 2e-3


def test_predictions_are_never_clipped() -> None:
    for sampler in SAMPLERS:
        config = make_scheduler(sampler, prediction_for(sampler)).config
        assert not config.get("clip_sample", False)
        assert not config.get("thresholding", False)
    loaded = scheduler_from_config({**scheduler_config(make_scheduler("ddim")), "clip_sample": True})
    assert loaded.config.clip_sample is False
    far = ExactMixture([1.0], [[5.0, -5.0]], [[0.5, 0.5]])
    for sampler in SAMPLERS:
        prediction = "flow" if sampler == "flow-heun" else "sample"
        assert (draw(far, sampler, prediction, 64, 50).mean(0) - far.means[0]).abs().max() < 0.3


@pytest.mark.parametrize("name", SAMPLERS)
def test_scheduler_config_round_trip(name: str, tmp_path) -> None:
    import diffusers

    prediction = "flow" if name == "flow-heun" else "epsilon"
    scheduler = make_scheduler(name, prediction, 500)
    config = scheduler_config(scheduler)
    again = scheduler_from_config(config)
    assert type(again) is type(scheduler)
    assert scheduler_config(again) == config
    scheduler.save_pretrained(tmp_path)  # diffusers reads the same content under the same name
    assert dict(type(scheduler).from_pretrained(tmp_path).config) == dict(again.config)
    if prediction == "flow":
        assert scheduler_from_config(config, name).config.num_train_timesteps == 500
        return
    other = scheduler_from_config(config, "ddpm")
    assert isinstance(other, diffusers.DDPMScheduler)
    assert (other.config.prediction_type, other.config.num_train_timesteps) == ("epsilon", 500)


def test_bad_scheduler_requests() -> None:
    with pytest.raises(MNIFError, match="unknown name 'euler'"):
        make_scheduler("euler")
    with pytest.raises(MNIFError, match="prediction: unknown type 'x'"):
        make_scheduler("ddim", "x")
    with pytest.raises(MNIFError, match="num_train_timesteps"):
        make_scheduler("ddim", num_train_timesteps=1)
    foreign = {**scheduler_config(make_scheduler("ddpm")), "beta_schedule": "scaled_linear"}
    with pytest.raises(MNIFError, match="'scaled_linear' betas"):
        scheduler_from_config(foreign)
    with pytest.raises(MNIFError, match="EulerDiscreteScheduler"):
        scheduler_from_config({"_class_name": "EulerDiscreteScheduler"})


def test_samplers_and_predictions_that_do_not_go_together() -> None:
    for sampler in SAMPLERS:
        for prediction in PREDICTIONS:
            if (sampler, prediction) in PAIRS:
                assert make_scheduler(sampler, prediction).config.num_train_timesteps == 1000
                continue
            with pytest.raises(MNIFError, match=f"sampler: .*{prediction}; use ") as told:
                make_scheduler(sampler, prediction)
            assert ("flow-heun" in str(told.value).split("; use ")[1]) == (prediction == "flow")
    for prediction in PREDICTIONS:
        assert (default_sampler(prediction), prediction) in PAIRS
    with pytest.raises(MNIFError, match=r"ddim cannot draw .* prediction flow; use flow-heun"):
        scheduler_from_config(scheduler_config(make_scheduler("flow-heun", "flow")), "ddim")


@pytest.mark.parametrize(("asked", "taken"), [(1, 1), (2, 1), (9, 9), (30, 29)])
def test_heun_takes_no_more_evaluations_than_asked_for(asked: int, taken: int) -> None:
    calls = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t[0]))
        return GAUSSIAN.model("flow")(x, t)

    x = reverse_process(model, make_scheduler("flow-heun", "flow"), asked, sample_streams(3, 0), 4)
    assert torch.isfinite(x).all()
    assert len(calls) == taken
    assert calls[0] == 1000.0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_temperature_shrinks_the_spread(sampler: str) -> None:
    prediction = prediction_for(sampler)
    scheduler, streams = make_scheduler(sampler, prediction), lambda: sample_streams(200, 0)
    spreads = []
    for temperature in (0.0, 0.4, 0.7, 1.0, 1.3):
        x = reverse_process(GAUSSIAN.model(prediction), scheduler, 40, streams(), 4, temperature)
        spreads.append(float(x.std(0).norm()))
    # Zero noise must leave no trace: it would show a wrong deviation taken off the ancestral steps.
    assert spreads[0] < 1e-4
    assert all(low < high for low, high in itertools.pairwise(spreads))
    assert spreads[1] / spreads[3] == pytest.approx(0.4, abs=0.02)  # linear on a Gaussian


def test_streams_depend_on_seed_and_index_only() -> None:
    many, few = draw_noise(sample_streams(6, 3), 5), draw_noise(sample_streams(2, 3, first=4), 5)
    assert torch.equal(many[4:], few)
    assert len({tuple(row.tolist()) for row in many}) == 6
    assert not torch.equal(many, draw_noise(sample_streams(6, 4), 5))


def test_times_stay_below_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest draw below 1 lands on the next whole number: training once stopped there, at the end of a run."""
    generator = torch.Generator().manual_seed(0)
    times = spread_times(128, 1000, generator)
    stretches = torch.arange(129) * 1000 // 128
    assert (stretches[:-1] <= times).all()
    assert (times <= stretches[1:]).all()
    nearly_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    monkeypatch.setattr(torch, "rand", lambda count, **_: nearly_one.expand(count))
    assert spread_times(128, 1000, generator).max() == 999
