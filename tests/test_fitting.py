"""Latents of instances by the inner loop, many at a time, and by fitting with frozen networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import FieldSpec, MixtureField
from mnif_nerf.latents.encoding import EncodedLatents, encode
from mnif_nerf.latents.fitting import FitConfig, fit, frozen
from mnif_nerf.latents.meta import LossObjective, MetaConfig, PointObjective, adapt
from mnif_nerf.rendering.batch import PointBatch

SPEC = FieldSpec(in_features=2, out_features=1, width=8, hidden_layers=1, num_bases=4, latent_dim=3, w0=5.0)


def points_of(count: int, points: int = 20) -> PointBatch:
    generator = torch.Generator().manual_seed(0)
    where = 2 * torch.rand(count, 2, points, generator=generator) - 1
    return PointBatch(torch.arange(count), where, torch.randn(count, 1, points, generator=generator))


def chosen(batch: PointBatch, rows: Tensor) -> PointBatch:
    return PointBatch(batch.instances[rows], batch.points[rows], batch.targets[rows])


@settings(max_examples=15, deadline=None)
@given(batch_size=st.integers(1, 9), seed=st.integers(0, 100))
def test_the_batch_size_changes_no_code(batch_size: int, seed: int) -> None:
    field, data = MixtureField(SPEC, seed=seed), points_of(7)
    rates, config = torch.full((3,), 0.5), MetaConfig(inner_steps=3, inner_lr=0.5)
    expected = torch.cat(
        [adapt(PointObjective(field, chosen(data, torch.tensor([i]))), 1, rates, config) for i in range(7)]
    )
    codes = encode(lambda rows: PointObjective(field, chosen(data, rows)), 7, rates, config, batch_size, progress=False)
    assert bool((expected != 0).any())
    torch.testing.assert_close(codes, expected, atol=1e-5, rtol=1e-4)
    assert not codes.requires_grad
    assert all(parameter.grad is None for parameter in field.parameters())


def test_chosen_instances_come_in_the_order_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    def objective(rows: Tensor) -> LossObjective:
        return LossObjective(lambda codes: 0.5 * (codes - rows.float()[:, None]).square().sum(dim=1))

    codes = encode(objective, torch.tensor([4, 1, 2]), torch.ones(2), MetaConfig(1, 1.0), batch_size=2)
    assert codes.tolist() == [[4, 4], [1, 1], [2, 2]]
    with pytest.raises(MNIFError, match="batch size 0"):
        encode(objective, 3, torch.ones(2), batch_size=0)


def test_encoded_latents_have_a_place_in_the_state_but_no_parameters() -> None:
    table = EncodedLatents(4, 3)
    table.weight[2] = 1.0
    assert list(table.parameters()) == []
    assert list(table.state_dict()) == ["weight"]
    assert table(torch.tensor([2, 0])).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_fit_descends_to_each_instances_own_minimum() -> None:
    targets = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 0.0]])
    steps: list[int] = []
    fitted = fit(
        lambda codes, step: (codes - targets).square().sum(dim=1),
        3,
        torch.randn(20, 2, generator=torch.Generator().manual_seed(0)),
        FitConfig(steps=300, lr=0.1, prior_weight=0.0),
        lambda step, loss: steps.append(step),
    )
    torch.testing.assert_close(fitted, targets, atol=0.02, rtol=0)
    assert steps == list(range(300))


def test_a_fit_does_not_depend_on_what_is_fitted_beside_it() -> None:
    field, data = MixtureField(SPEC, seed=1), points_of(4)
    training, config = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), FitConfig(steps=20)
    with frozen(field):
        assert not any(parameter.requires_grad for parameter in field.parameters())
        together = fit(lambda codes, _: PointObjective(field, data).losses(codes), 4, training, config)
        alone = fit(lambda codes, _: PointObjective(field, data[1:2]).losses(codes), 1, training, config)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in field.parameters())
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-3)


def test_a_fit_that_diverges_is_told() -> None:
    with pytest.raises(MNIFError, match="fitting latents diverged at learning rate nan"):
        fit(lambda codes, _: codes.sum(dim=1), 2, torch.zeros(3, 2), FitConfig(steps=2, lr=float("nan")))
