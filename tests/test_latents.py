"""The latent table's row-wise optimiser, and fitting with frozen networks."""

from __future__ import annotations

import pytest
import torch

from mnif_nerf.fields import FieldSpec, MixtureField
from mnif_nerf.latents.encoding_settings import EncodingSettings
from mnif_nerf.latents.evidence import ViewEvidence
from mnif_nerf.latents.fitting import FitConfig, fit_latents
from mnif_nerf.latents.meta import MetaConfig
from mnif_nerf.latents.scenes import latents_of_scenes, radiance_objective
from mnif_nerf.latents.table import LatentTable, RowAdam, summed_rows
from mnif_nerf.rendering.batch import RayBatch
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.intervals import box_interval
from mnif_nerf.rendering.radiance_losses import LossConfig, render_batch, sample_offsets


def test_row_adam_equals_torch_adam_on_each_rows_own_visits():
    torch.manual_seed(0)
    table = LatentTable(6, 3, init_std=1.0)
    start = table.weight.detach().clone()
    optimizer = RowAdam(table.parameters(), lr=0.1, betas=(0.9, 0.99), eps=1e-10)
    rows = [torch.nn.Parameter(start[i].clone()) for i in range(6)]
    singles = [torch.optim.Adam([row], lr=0.1, betas=(0.9, 0.99), eps=1e-10) for row in rows]
    target = torch.randn(6, 3)
    for step in range(12):
        visited = torch.tensor([[0, 1], [2, 0], [3, 4], [1, 3]][step % 4])
        optimizer.zero_grad()
        (table(visited) - target[visited]).square().sum().backward()
        optimizer.step()
        for i in visited.tolist():
            singles[i].zero_grad()
            (rows[i] - target[i]).square().sum().backward()
            singles[i].step()
    torch.testing.assert_close(table.weight.detach(), torch.stack([row.detach() for row in rows]))
    assert torch.equal(table.weight[5], start[5])  # never visited, never moved


def test_rows_are_summed_as_by_coalescing() -> None:
    table = LatentTable(6, 3)
    rows = torch.tensor([4, 1, 4, 0, 1, 4])
    (table(rows) * torch.arange(18.0).view(6, 3)).sum().backward()
    assert table.weight.grad is not None
    found, values = summed_rows(table.weight.grad)
    assert torch.equal(found, rows)
    assert torch.equal(values, table.weight.grad.to_dense()[rows])


def test_row_adam_sums_the_gradients_of_a_row_drawn_twice():
    table = LatentTable(3, 2)
    optimizer = RowAdam(table.parameters(), lr=0.1)
    table(torch.tensor([1, 1])).sum().backward()
    optimizer.step()
    assert torch.allclose(table.weight[1], torch.tensor(-0.1))
    assert torch.equal(table.weight[0], torch.zeros(2))


def test_row_adam_state_survives_a_round_trip():
    def run(break_at: int | None) -> torch.Tensor:
        torch.manual_seed(1)
        table = LatentTable(4, 2, init_std=1.0)
        optimizer = RowAdam(table.parameters(), lr=0.05)
        for step in range(8):
            if step == break_at:
                state = optimizer.state_dict()
                optimizer = RowAdam(table.parameters(), lr=0.05)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            table(torch.tensor([step % 4])).square().sum().backward()
            optimizer.step()
        return table.weight.detach()

    assert torch.equal(run(None), run(5))


def test_the_divergence_of_gaussian_latents_is_that_from_the_prior() -> None:
    table = LatentTable(4, 3, init_std=0.05, variational=True)
    with torch.no_grad():
        table.log_spread.copy_(0.2 * torch.randn(4, 3, generator=torch.Generator().manual_seed(1)))
    rows = torch.tensor([2, 0]).repeat_interleave(20_000)
    codes, divergence = table.draw(rows, torch.Generator().manual_seed(0))
    drawn = codes.view(2, -1, 3)
    torch.testing.assert_close(drawn.mean(dim=1), table.weight[[2, 0]], atol=1e-3, rtol=0)
    spread = 0.04 * 0.3 * torch.exp(3 * table.log_spread[[2, 0]])
    torch.testing.assert_close(drawn.std(dim=1), spread, atol=0, rtol=0.03)
    gaussians = torch.distributions.Normal(table.weight[[2, 0]], spread)
    expected = torch.distributions.kl_divergence(gaussians, torch.distributions.Normal(0.0, 0.04)).sum(dim=1)
    torch.testing.assert_close(divergence.view(2, -1)[:, 0], expected)


def test_what_no_instance_needs_is_left_to_noise() -> None:
    """Only the first coordinate says anything: its spread shrinks, those of the others become the prior's."""
    table = LatentTable(8, 3, variational=True)
    optimizer = RowAdam(table.parameters(), lr=1e-2)
    truth, generator = torch.linspace(-0.06, 0.06, 8), torch.Generator().manual_seed(0)
    for _ in range(400):
        codes, divergence = table.draw(torch.arange(8), generator)
        optimizer.zero_grad()
        (1e4 * (codes[:, 0] - truth).square() + 1e-1 * divergence).mean().backward()
        optimizer.step()
    assert table.log_spread is not None
    spread = (0.3 * torch.exp(3 * table.log_spread)).detach()
    assert spread[:, 0].max() < 0.25
    assert spread[:, 1:].mean() == pytest.approx(1.0, abs=0.1)
    assert table.weight[:, 1:].abs().max() < 0.01
    assert torch.corrcoef(torch.stack([table.weight[:, 0], truth]))[0, 1] > 0.99


class RenderedInstances:
    """Rays of known instances of a field, as an observation source."""

    def __init__(self, field: MixtureField, latents: torch.Tensor) -> None:
        self.num_scenes = len(latents)
        camera = Intrinsics.default(12)
        rays = [pixel_rays(orbit_pose(20, azimuth), camera) for azimuth in (0, 120, 240)]
        origins = torch.cat([o for o, _ in rays]).expand(self.num_scenes, -1, 3)
        directions = torch.cat([d for _, d in rays]).expand(self.num_scenes, -1, 3)
        near, far = box_interval(origins, directions, 0.5)
        hit = (far > near)[0]
        origins, directions, near, far = (v[:, hit] for v in (origins, directions, near, far))
        empty = torch.zeros(self.num_scenes, 0, 3)
        self.batch = RayBatch(
            torch.arange(self.num_scenes), origins, directions, near, far, origins, torch.ones_like(near), empty
        )
        with torch.no_grad():
            head = field.spec.head
            rgb, self.batch.mask, _ = render_batch(
                field.networks(latents), self.batch, sample_offsets(self.batch, 8, None), head=head
            )
        self.batch.rgb = rgb.transpose(1, 2)

    def draw(self, step: int) -> RayBatch:
        return self.batch


def visible_field(head: str) -> MixtureField:
    """An untrained field hardly varies; this one's instances look different."""
    field = MixtureField(FieldSpec(num_bases=4, latent_dim=2, width=16, hidden_layers=1, w0=3.0, head=head), seed=0)
    with torch.no_grad():
        field.bases[-1].mul_(3.0)
    return field


@pytest.mark.parametrize("head", ["radiance", "radiance-authors"])
def test_the_inner_loop_and_the_evidence_render_with_the_fields_own_head(head: str):
    """A latent explains its own rendering: every loss of it is zero, whatever the head."""
    field, truth = visible_field(head), torch.tensor([[1.0, -0.5]])
    rays, config = RenderedInstances(field, truth).batch, LossConfig(8, 0.02, 0.0)
    assert radiance_objective(field, rays, config).losses(truth).item() < 1e-10
    scored = ViewEvidence(field, rays, config, rays_per_step=64)
    # The evidence draws jittered samples, so that its loss is small beside that of another latent, not zero.
    own, other = scored.score(torch.cat([truth, -truth]))
    assert own < 0.05 * other


@pytest.mark.parametrize("head", ["radiance", "radiance-authors"])
def test_fitting_recovers_known_latents_and_leaves_the_field_alone(head: str):
    field = visible_field(head)
    before = [p.clone() for p in field.parameters()]
    truth = torch.tensor([[1.0, -0.5], [-1.0, 0.8]])
    training = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    source = RenderedInstances(field, truth)
    losses: list[float] = []
    fitted = fit_latents(
        field, source, training, FitConfig(steps=200, lr=0.05, prior_weight=0.0), LossConfig(8, 0.02, 0.0),
        on_step=lambda _, loss: losses.append(loss),
    )  # fmt: skip
    assert losses[-1] < 0.05 * losses[0]
    torch.testing.assert_close(fitted, truth, atol=0.15, rtol=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, field.parameters()))
    assert all(p.requires_grad and p.grad is None for p in field.parameters())


class ShuffledInstances(RenderedInstances):
    """Their rays in another order in every step."""

    def draw(self, step: int) -> RayBatch:
        return self.batch[torch.randperm(self.num_scenes, generator=torch.Generator().manual_seed(step))]


@pytest.mark.parametrize("inner", [False, True], ids=["fit", "inner loop"])
def test_latents_of_some_scenes_are_those_that_all_together_get(inner: bool) -> None:
    field = visible_field("radiance")
    truth, training = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0)).unbind()
    source = ShuffledInstances(field, truth)
    source.fixed = lambda scenes: source.batch[scenes]  # type: ignore[attr-defined]
    loop = (MetaConfig(inner_steps=2), torch.full((2,), 0.1)) if inner else None
    settings = EncodingSettings(fit_steps=20, fit_samples_per_ray=8)

    def found(*scenes: int) -> torch.Tensor:
        chosen = torch.tensor(scenes) if scenes else None
        return latents_of_scenes(field, source, training, settings, loop, chosen)

    together = found()
    assert (together - training.mean(dim=0)).abs().min() > 1e-4, "all have moved"
    torch.testing.assert_close(found(3, 0), together[[3, 0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found(1, 2, 4), together[[1, 2, 4]], rtol=1e-4, atol=1e-5)
