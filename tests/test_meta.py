"""Meta-learning: the inner loop, its second derivative, and what it must not depend on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.families import forward_reference
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.meta import InnerRates, LossObjective, MetaConfig, PointObjective, adapt
from mnif_nerf.rendering.batch import PointBatch

HEADS = {"mse": ("sine", "signed"), "bce": ("linear", "logit")}
# At the tiny sizes here, a step that moves the codes visibly.
CONFIG = MetaConfig(inner_lr=3.0)


def make(kind: str = "mse", instances: int = 3, points: int = 20, seed: int = 0) -> tuple[MixtureField, PointBatch]:
    activation, head = HEADS[kind]
    spec = FieldSpec(
        in_features=3, out_features=2, width=8, hidden_layers=1, num_bases=4, latent_dim=5, w0=5.0,
        final_activation=activation, head=head,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    batch = PointBatch(
        torch.arange(instances),
        2 * torch.rand(instances, 3, points, generator=generator, dtype=torch.float64) - 1,
        2 * torch.rand(instances, 2, points, generator=generator, dtype=torch.float64).round() - 1,
        0.5 + torch.rand(instances, points, generator=generator, dtype=torch.float64),
    )
    return MixtureField(spec, seed=seed + 1).double(), batch


def plain_losses(field: MixtureField, batch: PointBatch, kind: str) -> Callable[[Tensor], Tensor]:
    """The same losses in the plainest torch, for autograd to differentiate as often as it likes."""

    def losses(latents: Tensor) -> Tensor:
        values = forward_reference(field.form, field.flat_weights(latents), batch.points)
        if kind == "mse":
            each = (values - batch.targets).square()
        else:
            each = F.binary_cross_entropy_with_logits(values, 0.5 * batch.targets + 0.5, reduction="none")
        assert batch.weights is not None
        return (batch.weights.unsqueeze(1) * each).mean(dim=(1, 2))

    return losses


def outer(objective: PointObjective | LossObjective, count: int, rates: InnerRates, config: MetaConfig) -> Tensor:
    return objective.losses(adapt(objective, count, rates(), config, create_graph=True)).sum()


@pytest.mark.parametrize("kind", HEADS)
def test_the_outer_gradient_is_autograds_own(kind: str) -> None:
    field, batch = make(kind)
    rates = InnerRates(5).double()
    parameters = [*field.parameters(), *rates.parameters()]
    ours = outer(PointObjective(field, batch), 3, rates, CONFIG)
    plain = outer(LossObjective(plain_losses(field, batch, kind)), 3, rates, CONFIG)
    assert torch.allclose(ours, plain, rtol=1e-12)
    for mine, its in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(plain, parameters)):
        assert torch.allclose(mine, its, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", HEADS)
def test_the_outer_gradient_agrees_with_finite_differences(kind: str) -> None:
    field, batch = make(kind, instances=2)
    rates = InnerRates(5).double()
    parameters = [*field.parameters(), *rates.parameters()]
    objective = PointObjective(field, batch)
    gradients = torch.autograd.grad(outer(objective, 2, rates, CONFIG), parameters)
    generator = torch.Generator().manual_seed(3)
    for parameter, gradient in zip(parameters, gradients):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-5)
            values.append(float(outer(objective, 2, rates, CONFIG).detach()))
            with torch.no_grad():
                parameter.add_(direction, alpha=-sign * 1e-5)
        numeric = (values[0] - values[1]) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def test_second_order_is_not_first_order() -> None:
    field, batch = make()
    rates = InnerRates(5).double()
    parts = []
    for first_order in (False, True):
        config = MetaConfig(inner_lr=3.0, first_order=first_order)
        loss = outer(PointObjective(field, batch), 3, rates, config)
        parts.append((float(loss.detach()), *torch.autograd.grad(loss, [field.bases[0], rates.rates])))
    assert parts[0][0] == pytest.approx(parts[1][0])
    assert not torch.allclose(parts[0][1], parts[1][1], rtol=1e-3)
    assert bool((parts[1][2] != 0).any()), "the rates learn from first order too"


@settings(max_examples=15)
@given(st.integers(2, 6), st.integers(0, 1000), st.booleans())
def test_a_code_does_not_depend_on_its_batch(instances: int, seed: int, create_graph: bool) -> None:
    field, batch = make(instances=instances, seed=seed)
    rates = InnerRates(5).double()()
    together = adapt(PointObjective(field, batch), instances, rates, CONFIG, create_graph)
    for one in range(instances):
        alone = adapt(PointObjective(field, batch[one : one + 1]), 1, rates, CONFIG, create_graph)
        assert torch.allclose(together[one], alone[0], rtol=1e-9, atol=1e-12)


def test_the_authors_step_is_ours_at_one_over_the_batch() -> None:
    field, batch = make()
    rates = InnerRates(5).double()()
    latents = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    plain = plain_losses(field, batch, "mse")
    for _ in range(3):
        (gradient,) = torch.autograd.grad(plain(latents).mean(), latents)
        latents = (latents - rates * gradient).detach().requires_grad_(True)
    ours = adapt(PointObjective(field, batch), 3, rates, MetaConfig(inner_lr=1 / 3))
    assert torch.allclose(ours, latents, rtol=1e-9)


def test_the_inner_loop_descends_and_learns() -> None:
    field, batch = make("mse", points=64)
    batch.weights = None
    rates = InnerRates(5).double()
    objective = PointObjective(field, batch)
    optimizer = torch.optim.Adam([*field.parameters(), *rates.parameters()], lr=1e-2)
    zero = torch.zeros(3, 5, dtype=torch.float64)
    start = float(objective.losses(zero).mean().detach())
    for _ in range(60):
        optimizer.zero_grad()
        outer(objective, 3, rates, CONFIG).backward()
        optimizer.step()
    adapted = adapt(objective, 3, rates(), CONFIG)
    assert not adapted.requires_grad
    end = float(objective.losses(adapted).mean().detach())
    assert end < 0.5 * start
    assert end < 0.8 * float(objective.losses(zero).mean().detach())


def test_rates_start_and_stay_in_their_range() -> None:
    rates = InnerRates(64, seed=3)
    assert 0.005 <= float(rates().detach().min()) < float(rates().detach().max()) <= 0.1
    with torch.no_grad():
        rates.rates[:2] = torch.tensor([-1.0, 7.0])
    assert rates()[:2].tolist() == [0.0, 1.0]


def test_divergence_names_the_rate_to_lower() -> None:
    field, batch = make()
    rates = torch.full((5,), float("inf"), dtype=torch.float64)
    with pytest.raises(MNIFError, match=r"diverged.*lower `inner_lr` \(now 3\)"):
        adapt(PointObjective(field, batch), 3, rates, CONFIG)


@pytest.mark.parametrize(
    ("values", "words"), [({"inner_steps": 0}, "`inner_steps` 0"), ({"inner_lr": 0.0}, "`inner_lr` 0")]
)
def test_settings_that_make_no_sense(values: dict, words: str) -> None:
    with pytest.raises(MNIFError, match=words):
        MetaConfig(**values)
