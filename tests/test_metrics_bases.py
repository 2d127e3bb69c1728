"""Diversity of bases: ranks and correlations with known answers, and what a layer's instances use of its bases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.metrics.bases import (
    basis_outputs,
    correlations,
    effective_rank,
    mean_absolute_correlation,
    singular_values,
    use_of_bases,
)


def random_rows(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


# --- effective rank and correlation -----------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 1000))
def test_copies_have_rank_one_and_orthogonal_rows_their_number(count: int, seed: int) -> None:
    one = random_rows(1, 50, seed)
    scales = random_rows(count, 1, seed + 1).abs() + 0.1
    assert effective_rank(scales * one) == pytest.approx(1.0, abs=1e-4)
    frame = torch.linalg.qr(random_rows(50, count, seed))[0].T
    assert effective_rank(3 * frame) == pytest.approx(count, rel=1e-4)
    assert effective_rank((3 * frame)[torch.randperm(count)]) == pytest.approx(count, rel=1e-4)


def test_the_rank_is_the_exponential_of_the_entropy() -> None:
    matrix = torch.diag(torch.tensor([6.0, 3.0, 1.0]))
    assert effective_rank(matrix) == pytest.approx(math.exp(scipy.stats.entropy([6.0, 3.0, 1.0])))
    assert effective_rank(torch.zeros(3, 4)) == 0.0


def test_centring_takes_off_what_all_rows_share() -> None:
    shared = 100 * random_rows(1, 20)
    copies = shared.expand(5, -1).clone()
    assert effective_rank(copies, centred=True) == 0.0
    rounding = copies * (1 + 5e-8 * random_rows(5, 20, 7))
    assert effective_rank(rounding, centred=True) == 0.0
    two_ways = copies + torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])[:, None] * random_rows(1, 20, 3)
    assert effective_rank(two_ways, centred=True) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(two_ways, centred=False) > 1.001
    values = two_ways.double().numpy()
    expected = np.linalg.svd(values - values.mean(0), compute_uv=False)
    np.testing.assert_allclose(singular_values(two_ways, centred=True), expected, atol=1e-9)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_correlations_are_numpys(seed: int) -> None:
    rows = random_rows(6, 30, seed) + 5.0
    expected = np.corrcoef(rows.double().numpy())
    np.testing.assert_allclose(correlations(rows), expected, atol=1e-9)
    off = np.abs(expected[~np.eye(6, dtype=bool)])
    assert mean_absolute_correlation(rows) == pytest.approx(off.mean())


def test_constant_and_opposite_rows_correlate_as_they_should() -> None:
    rows = torch.stack([torch.arange(5.0), -2 * torch.arange(5.0) + 1, torch.full((5,), 0.1)])
    expected = [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(correlations(rows), expected, atol=1e-12)
    assert mean_absolute_correlation(rows) == pytest.approx(1 / 3)
    assert mean_absolute_correlation(rows[:1]) == 0.0


def test_damaged_matrices_are_refused() -> None:
    with pytest.raises(MNIFError, match="NaN or infinite"):
        effective_rank(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(MNIFError, match=r"shape \[0, 4\]"):
        correlations(torch.zeros(0, 4))


# --- what the instances use -------------------------------------------------------------------------------


def used(count: int = 40, bases: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Coefficients of mean 1 and deviation 0.5, and bases of equal norm, nearly uncorrelated."""
    coefficients = 1.0 + 0.5 * random_rows(count, bases, seed)
    rows = random_rows(bases, 400, seed + 1)
    return coefficients, rows / rows.norm(dim=1, keepdim=True)


def test_a_planted_dead_and_a_planted_static_basis_are_found() -> None:
    coefficients, bases = used()
    coefficients[:, 2] *= 0.02  # hardly used
    bases[5] *= 0.02  # used, but next to nothing itself
    coefficients[:, 6] = 1.0  # used by all in the same way
    use = use_of_bases(coefficients, bases)
    assert use.dead().nonzero().flatten().tolist() == [2, 5]
    assert use.static().nonzero().flatten().tolist() == [6]


@pytest.mark.parametrize("count", [2, 300])
def test_copies_of_one_basis_are_not_dead(count: int) -> None:
    """They add up, so each is a far smaller part of the mixture than an uncorrelated one."""
    one = random_rows(1, 50)
    use = use_of_bases(torch.full((3, count), 1.0 / count), one.expand(count, -1))
    assert not use.dead().any()
    assert use.static().all()
    assert use.total.tolist() == pytest.approx([1.0 / count] * count)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_use_does_not_depend_on_how_scale_is_shared_out(seed: int) -> None:
    """Twice the basis with half the coefficient is the same mixture."""
    coefficients, bases = used(seed=seed)
    factor = 0.1 + 10 * torch.rand(8, generator=torch.Generator().manual_seed(seed))
    first, second = use_of_bases(coefficients, bases), use_of_bases(coefficients / factor, bases * factor[:, None])
    torch.testing.assert_close(first.contributions, second.contributions, rtol=1e-4, atol=1e-6)
    assert first.latent_share == pytest.approx(second.latent_share, rel=1e-4)


def test_contributions_and_shares_are_those_of_the_mixture_itself() -> None:
    coefficients, bases = (part.double() for part in used())
    use = use_of_bases(coefficients, bases)
    mixed = coefficients @ bases
    size = mixed.square().sum(1).mean().sqrt()
    left_out = (mixed - (coefficients @ bases - coefficients[:, 3:4] * bases[3])).square().sum(1).mean().sqrt()
    assert float(use.total[3]) == pytest.approx(float(left_out / size))
    differing = (mixed - mixed.mean(0)).square().sum(1).mean()
    assert use.network_share == pytest.approx(float(differing / size**2))
    # Mean 1 and deviation 0.5: a fifth of the mean square is spread.
    assert use.latent_share == pytest.approx(0.2, abs=0.05)
    same = use_of_bases(coefficients[:1].expand(5, -1), bases)
    assert (same.latent_share, same.network_share) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_use_refuses_what_does_not_fit() -> None:
    coefficients, bases = used()
    with pytest.raises(MNIFError, match="do not fit 7 bases"):
        use_of_bases(coefficients, bases[:7])
    with pytest.raises(MNIFError, match="at least 2"):
        use_of_bases(coefficients[:1], bases)


# --- outputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final_activation", ["linear", "sine"])
def test_outputs_are_those_of_the_bases_in_the_mixtures_scale(final_activation: str) -> None:
    spec = FieldSpec(width=8, hidden_layers=1, num_bases=20, latent_dim=4, w0=5.0, final_activation=final_activation)
    field = MixtureField(spec, seed=1)
    latents, points = random_rows(6, 4), random_rows(3, 30)
    outputs = basis_outputs(field, points, latents)
    assert outputs.shape == (20, 30 * 4)
    hidden = points
    with torch.no_grad():
        mixed = field.flat_weights(latents)
        for layer, (out, fan_in) in enumerate(spec.shapes):
            norms = [part.square().sum(1).mean().sqrt() for part in (mixed[layer], field.bases[layer])]
            row = field.bases[layer][17] * norms[0] / norms[1]
            hidden = row[: out * fan_in].view(out, fan_in) @ hidden + row[out * fan_in :, None]
            if layer < len(spec.shapes) - 1 or final_activation == "sine":
                hidden = hidden.sin()
    torch.testing.assert_close(outputs[17], hidden.flatten(), rtol=1e-3, atol=1e-4)


def test_copied_bases_have_outputs_of_rank_one() -> None:
    field = MixtureField(FieldSpec(width=8, hidden_layers=1, num_bases=6, latent_dim=4), seed=1)
    diverse = effective_rank(basis_outputs(field, random_rows(3, 200), random_rows(6, 4)))
    with torch.no_grad():
        for rows in field.bases:
            rows[:] = rows[:1].clone()
    outputs = basis_outputs(field, random_rows(3, 200), random_rows(6, 4))
    assert effective_rank(outputs) == pytest.approx(1.0, abs=1e-3)
    assert mean_absolute_correlation(outputs) == pytest.approx(1.0, abs=1e-5)
    assert diverse > 2.5
