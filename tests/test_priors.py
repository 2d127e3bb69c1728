"""Whitening, the denoiser, and the latent prior from fit to file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.priors.baselines import BASELINES, near_neighbours
from mnif_nerf.priors.denoiser import Denoiser, DenoiserSpec, time_embedding
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.schedulers import PREDICTIONS, SAMPLERS
from mnif_nerf.priors.training import PriorConfig, default_steps
from mnif_nerf.priors.whitening import MODES, Whitening

SMALL = PriorConfig(steps=30, width=32, blocks=1, batch_size=32, explained_variance=1.0)


def crescents(count: int, seed: int) -> Tensor:
    """Two half circles in 2-D, the second with a quarter of the points."""
    g = torch.Generator().manual_seed(seed)
    angle = torch.rand(count, generator=g) * torch.pi
    second = torch.rand(count, generator=g) < 0.25
    arc = torch.stack((angle.cos(), angle.sin()), 1)
    points = torch.where(second[:, None], torch.tensor([4.0, 0.5]) - arc, arc)
    return 0.05 * (points + 0.05 * torch.randn(count, 2, generator=g)) + torch.tensor([3.0, -1.0])


@pytest.fixture(scope="module")
def small_prior() -> LatentPrior:
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(20, 6, generator=g) @ torch.randn(6, 6, generator=g) * 0.1
    return LatentPrior.fit(latents, SMALL, progress=False)


@pytest.fixture(scope="module")
def flow_prior(small_prior: LatentPrior) -> LatentPrior:
    latents = small_prior.whitening.unwhiten(small_prior.train)
    return LatentPrior.fit(latents, dataclasses.replace(SMALL, prediction="flow"), progress=False)


@pytest.fixture
def prior_of(small_prior: LatentPrior, flow_prior: LatentPrior) -> Callable[[str], LatentPrior]:
    return lambda sampler: flow_prior if sampler == "flow-heun" else small_prior


# --- whitening -------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 12),
    dim=st.integers(1, 8),
    mode=st.sampled_from(MODES),
    constant=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_whitening_inverts_on_what_it_keeps(
    count: int, dim: int, mode: str, constant: bool, scale: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    z = scale * (torch.randn(count, dim, generator=g) + 0.5)
    if constant:
        z[:, 0] = 0.25
    whitening = Whitening.fit(z, mode)
    w = whitening.whiten(z)
    assert w.shape == (count, whitening.dim)
    assert torch.isfinite(w).all()
    assert torch.allclose(whitening.unwhiten(w), z, rtol=1e-3, atol=1e-4 * scale)
    new = torch.randn(3, whitening.dim, generator=g)
    assert torch.allclose(whitening.whiten(whitening.unwhiten(new)), new, atol=0.05)
    if mode != "none":
        assert whitening.dim <= min(dim - constant, dim if mode == "per-dimension" else max(count - 1, 0))
        if whitening.dim:
            assert torch.allclose(w.mean(0), torch.zeros(whitening.dim), atol=1e-3)
            assert torch.allclose(w.std(0), torch.ones(whitening.dim), atol=1e-2)


def test_pca_decorrelates_and_truncates() -> None:
    g = torch.Generator().manual_seed(1)
    z = torch.randn(400, 5, generator=g) * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1])
    z = z @ torch.linalg.qr(torch.randn(5, 5, generator=g)).Q
    full = Whitening.fit(z)
    assert torch.allclose(torch.cov(full.whiten(z).T), torch.eye(5), atol=1e-3)
    assert Whitening.fit(z, rank=2).dim == 2
    variance = full.scale.square()
    share = float(variance[:3].sum() / variance.sum())
    assert Whitening.fit(z, explained_variance=share - 1e-4).dim == 3
    assert Whitening.fit(z, explained_variance=share + 1e-4).dim == 4
    assert Whitening.fit(z, explained_variance=1.0).dim == 5
    kept = Whitening.fit(z, rank=3)
    residual = kept.unwhiten(kept.whiten(z)) - z
    assert float(residual.square().sum()) == pytest.approx(float(variance[3:].sum()) * 399, rel=1e-3)


def test_whitening_of_equal_latents_keeps_nothing() -> None:
    for mode in ("pca", "per-dimension"):
        whitening = Whitening.fit(torch.full((4, 3), 0.7), mode)
        assert whitening.dim == 0
        assert torch.allclose(whitening.unwhiten(torch.zeros(2, 0)), torch.full((2, 3), 0.7))


def test_bad_whitening_requests() -> None:
    z = torch.zeros(3, 2)
    for arguments in ({"mode": "zca"}, {"rank": 0}, {"explained_variance": 1.5}):
        with pytest.raises(MNIFError, match="whitening"):
            Whitening.fit(z, **arguments)
    with pytest.raises(MNIFError, match=r"shape \(0, 2\)"):
        Whitening.fit(z[:0])


# --- denoiser --------------------------------------------------------------------------------------------


def test_denoiser_starts_as_the_gaussian_one_and_sees_time() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserSpec(5, 16, 2))
    x = torch.randn(4, 5)
    assert torch.equal(denoiser(x, torch.tensor(7)), torch.zeros(4, 5))
    torch.nn.init.normal_(denoiser.output.weight)
    torch.nn.init.normal_(denoiser.blocks[0].second.weight)
    early, late = denoiser(x, torch.full((4,), 3)), denoiser(x, torch.full((4,), 900))
    assert (early - late).abs().max() > 1e-3
    assert torch.allclose(denoiser(x, torch.tensor(3)), early)
    assert time_embedding(torch.arange(1000), 64).unique(dim=0).shape == (1000, 64)


def test_denoiser_sizes() -> None:
    def parameters(spec: DenoiserSpec) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in Denoiser(spec).parameters())

    sizes = [parameters(DenoiserSpec.for_data(n, 64)) for n in (12, 128, 2458, 40_000)]
    assert sizes == sorted(sizes)
    assert sizes[1] < 300_000
    assert sizes[2] < 2_000_000
    assert 2.65e8 < parameters(DenoiserSpec(dim=128, width=4096, blocks=8)) < 2.80e8  # the authors': 271.8 M
    spec = DenoiserSpec(3, 32, 2)
    assert DenoiserSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(MNIFError, match="denoiser"):
        DenoiserSpec(0)
    assert DenoiserSpec.from_dict({"dim": 3}) == DenoiserSpec(3)
    for unreadable, words in (({"width": 3}, "lacks 'dim'"), ({"dim": 3, "depth": 2}, "unknown 'depth'")):
        with pytest.raises(MNIFError, match=words):
            DenoiserSpec.from_dict(unreadable)


# --- fitting ---------------------------------------------------------------------------------------------


def test_the_rule_for_threads_sees_the_network_that_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """With latents held out the two were sized by different counts."""
    seen: list[DenoiserSpec] = []

    def remember(spec: DenoiserSpec) -> contextlib.AbstractContextManager[None]:
        seen.append(spec)
        return contextlib.nullcontext()

    monkeypatch.setattr("mnif_nerf.priors.prior.threads_for", remember)
    config = PriorConfig(steps=1, held_out=0.5, explained_variance=1.0, calibrate=False)
    prior = LatentPrior.fit(torch.randn(400, 60), config, progress=False)
    assert seen == [prior.denoiser.spec]


@pytest.mark.parametrize("prediction", ["v_prediction", "flow"])
def test_prior_recovers_two_crescents(prediction: str) -> None:
    train, fresh = crescents(160, 0), crescents(4000, 1)
    losses: list[float] = []
    config = PriorConfig(steps=500, width=64, explained_variance=1.0, prediction=prediction)
    prior = LatentPrior.fit(train, config, progress=False, on_step=lambda _, loss: losses.append(loss))
    assert len(losses) == 500
    samples = prior.sample(400, seed=1)
    assert ((samples.mean(0) - train.mean(0)) / train.std(0)).abs().max() < 0.15
    assert (samples.std(0) / train.std(0) - 1).abs().max() < 0.12
    assert (torch.cov(samples.T) - torch.cov(train.T)).abs().max() < 0.2 * torch.cov(train.T).abs().max()
    share = ((train[:, 0] - 3.0) / 0.05 > 2).float().mean()
    assert abs(((samples[:, 0] - 3.0) / 0.05 > 2).float().mean() - share) < 0.1
    gaussian = prior.sample(400, seed=1, sampler="gaussian")
    distance = [float(torch.cdist(x, fresh).min(1).values.mean()) for x in (samples, gaussian)]
    assert distance[0] < 0.5 * distance[1]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("whitening", MODES)
def test_every_setting_trains(prediction: str, whitening: str) -> None:
    config = PriorConfig(
        steps=20,
        width=16,
        blocks=1,
        prediction=prediction,
        whitening=whitening,
        latent_noise=0.1,
        held_out=0.2,
    )
    prior = LatentPrior.fit(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), config, progress=False)
    assert prior.report is not None
    assert prior.report.steps == 20
    assert prior.report.gaussian_loss is not None
    # The zero function is the Gaussian's exact v denoiser; after 20 steps the two losses are still of a size.
    assert prior.report.held_out_loss == pytest.approx(prior.report.gaussian_loss, rel=2.0)
    assert torch.isfinite(prior.sample(5)).all()


def test_fit_repeats_and_leaves_global_randomness_alone() -> None:
    latents = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    first = LatentPrior.fit(latents, SMALL, progress=False).state()
    torch.manual_seed(2)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    second = LatentPrior.fit(latents, SMALL, progress=False).state()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = LatentPrior.fit(latents, PriorConfig(**{**SMALL.to_dict(), "seed": 1}), progress=False).state()
    assert not torch.equal(first["denoiser.input.weight"], other["denoiser.input.weight"])


def test_two_latents_and_steps_by_data() -> None:
    prior = LatentPrior.fit(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), SMALL, progress=True)
    assert prior.whitening.dim == 1
    for sampler in ("dpm-solver++", *BASELINES):
        assert torch.isfinite(prior.sample(3, sampler=sampler)).all()
    assert [default_steps(n) for n in (2, 128, 512, 2048, 10**9)] == [500, 3000, 6000, 7500, 20_000]


# --- sampling --------------------------------------------------------------------------------------------


def steps_of(sampler: str) -> int | None:
    return None if sampler in BASELINES else 20


@pytest.mark.parametrize("sampler", [*SAMPLERS, *BASELINES])
def test_samples_do_not_depend_on_how_many(prior_of: Callable[[str], LatentPrior], sampler: str) -> None:
    prior = prior_of(sampler)
    many = prior.sample(16, seed=5, sampler=sampler, steps=steps_of(sampler))
    assert many.shape == (16, 6)
    assert torch.allclose(many[:4], prior.sample(4, seed=5, sampler=sampler, steps=steps_of(sampler)), atol=1e-4)
    assert torch.allclose(many, prior.sample(16, seed=5, sampler=sampler, steps=steps_of(sampler), batch=3), atol=1e-4)
    assert torch.equal(many, prior.sample(16, seed=5, sampler=sampler, steps=steps_of(sampler)))
    assert not torch.allclose(many, prior.sample(16, seed=6, sampler=sampler, steps=steps_of(sampler)), atol=1e-2)


@pytest.mark.parametrize("sampler", [*SAMPLERS, *BASELINES])
def test_prior_temperature(prior_of: Callable[[str], LatentPrior], sampler: str) -> None:
    spreads = [
        float(prior_of(sampler).sample(64, sampler=sampler, steps=steps_of(sampler), temperature=t).std(0).norm())
        for t in (0.0, 0.5, 0.8, 1.0)
    ]
    assert spreads == sorted(spreads)
    assert spreads[0] < 0.01 * spreads[-1]


def test_a_diverged_prior_is_refused(prior_of: Callable[[str], LatentPrior]) -> None:
    latents = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    for prediction in PREDICTIONS:
        LatentPrior.fit(latents, PriorConfig(steps=1, prediction=prediction), progress=False).require_sound()
    for broken in (1e30, 1e3):
        prior = LatentPrior.fit(latents, PriorConfig(steps=20, learning_rate=broken), progress=False)
        with pytest.raises(MNIFError, match=r"has diverged .*so it is not written"):
            prior.require_sound()
    for name, value in (
        ("latent_noise", float("inf")),
        ("learning_rate", float("nan")),
        ("seed", -1),
        ("blocks", 10**9),
    ):
        with pytest.raises(MNIFError, match=f"`{name}`"):
            PriorConfig(**{name: value})
    with pytest.raises(MNIFError, match="GiB"):
        LatentPrior.fit(latents, PriorConfig(batch_size=10**9), progress=False)
    with pytest.raises(MNIFError, match="the sampler gaussian has none"):
        prior_of("gaussian").sample(2, sampler="gaussian", steps=5)


@pytest.mark.parametrize("sampler", ["dpm-solver++", "flow-heun"])
def test_calibration_matches_the_latents(prior_of: Callable[[str], LatentPrior], sampler: str) -> None:
    prior = prior_of(sampler)
    samples = prior.whitening.whiten(prior.sample(2000, seed=9))
    assert (samples.std(0) - 1).abs().max() < 0.12
    assert samples.mean(0).abs().max() < 0.12


def test_baselines(small_prior: LatentPrior) -> None:
    train = small_prior.train
    gaussian = small_prior.whitening.whiten(small_prior.sample(4000, sampler="gaussian"))
    assert (torch.cov(gaussian.T) - torch.cov(train.T)).abs().max() < 0.12
    mixed = small_prior.whitening.whiten(small_prior.sample(50, sampler="interpolation"))
    near = near_neighbours(train, 8)
    for point in mixed:  # on the middle part of a segment from a latent to one of its eight nearest
        start, end = train[:, None], train[near]
        along = ((point - start) * (end - start)).sum(-1) / (end - start).square().sum(-1)
        off = (start + along[..., None] * (end - start) - point).norm(dim=-1)
        assert ((off < 1e-3) & (along > 0.29) & (along < 0.71)).any()


def test_spacing_of_the_training_latents(small_prior: LatentPrior) -> None:
    spacing = [(small_prior.train - row).square().mean(1).sqrt().sort().values[1] for row in small_prior.train]
    assert small_prior.spacing() == pytest.approx(float(torch.stack(spacing).median()), rel=1e-4)


# --- files -----------------------------------------------------------------------------------------------


def test_saved_prior_draws_the_same(small_prior: LatentPrior, tmp_path: Path) -> None:
    folder = tmp_path / "model" / "prior"
    small_prior.save(folder)
    small_prior.save(folder)  # a second time replaces the first
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"prior.json", "prior.safetensors", "scheduler/scheduler_config.json"}
    loaded = LatentPrior.load(folder)
    for sampler in ("dpm-solver++", "ddim", *BASELINES):
        ours = small_prior.sample(3, seed=2, sampler=sampler)
        assert torch.equal(loaded.sample(3, seed=2, sampler=sampler), ours)
    assert loaded.config == small_prior.config
    assert loaded.report == small_prior.report
    assert sorted(path.name for path in folder.parent.iterdir()) == ["prior"]


def test_unusable_folders(small_prior: LatentPrior, tmp_path: Path) -> None:
    with pytest.raises(MNIFError, match="holds no latent prior"):
        LatentPrior.load(tmp_path / "absent")
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("important")
    with pytest.raises(MNIFError, match="not a prior folder"):
        small_prior.save(occupied)
    assert (occupied / "thesis.txt").exists()
    folder = tmp_path / "prior"

    def broken(change) -> None:
        small_prior.save(folder)
        content = json.loads((folder / "prior.json").read_text())
        change(content)
        (folder / "prior.json").write_text(json.dumps(content))

    for change, message in (
        (lambda c: c.update(format_version=2), "format version 2"),
        (lambda c: c.update(format="other"), "not the description"),
        (lambda c: c.update(latent_dim=7), "whitening.basis has shape"),
        (lambda c: c["denoiser"].update(width=64), "has shape"),
        (lambda c: c.pop("num_latents"), "num_latents"),
        (lambda c: c.update(whitening="x"), r"prior\.json: whitening 'x' is not known"),
        (lambda c: c["training"].update(steps="x"), r"prior\.json: steps 'x': expected"),
        (lambda c: c["training"].update(colour="red"), "unknown 'colour'"),
        (lambda c: c["report"].update(colour="red"), "unknown 'colour'"),
    ):
        broken(change)
        with pytest.raises(MNIFError, match=message):
            LatentPrior.load(folder)
    small_prior.save(folder)
    (folder / "prior.safetensors").write_bytes(b"not tensors")
    with pytest.raises(MNIFError, match=r"not a readable safetensors file.*train the prior again"):
        LatentPrior.load(folder)


def test_bad_requests(small_prior: LatentPrior) -> None:
    for arguments, message in (
        ({"n": 0}, "number of samples: 0"),
        ({"n": 2, "steps": 0}, "`steps` 0"),
        ({"n": 2, "steps": 1001}, "at most 1000"),
        ({"n": 2, "sampler": "euler"}, "unknown name 'euler'.*interpolation"),
        ({"n": 2, "temperature": -1.0}, "temperature"),
        ({"n": 2, "temperature": float("nan")}, "temperature"),
        ({"n": 2, "batch": 0}, "batch"),
        ({"n": 2, "seed": -1}, "seed"),
    ):
        with pytest.raises(MNIFError, match=message):
            small_prior.sample(**arguments)


def test_bad_latents_and_settings() -> None:
    latents = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(MNIFError, match="at least 2"):
        LatentPrior.fit(latents[:1], progress=False)
    with pytest.raises(MNIFError, match="all 5 are equal"):
        LatentPrior.fit(torch.ones(5, 3), progress=False)
    with pytest.raises(MNIFError, match=r"expected \[N, D\]"):
        LatentPrior.fit(latents[0], progress=False)
    latents[3, 1] = float("nan")
    with pytest.raises(MNIFError, match="row 3"):
        LatentPrior.fit(latents, progress=False)
    for arguments in (
        {"steps": 0},
        {"batch_size": 0},
        {"prediction": "x"},
        {"whitening": "zca"},
        {"held_out": 1.0},
        {"latent_noise": -1.0},
    ):
        with pytest.raises(MNIFError):
            PriorConfig(**arguments)
