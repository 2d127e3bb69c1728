"""Losses of rendered rays in one pass of the kernel against torch: values, gradients, and what training makes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_srn import write_tiny_srn
from torch import Tensor

from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.fields import kernel
from mnif_nerf.fields.modulations import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.table import LatentTable, RowAdam
from mnif_nerf.rendering.batch import RayBatch
from mnif_nerf.rendering.radiance_losses import LossConfig, radiance_losses

needs_kernel = pytest.mark.skipif(not kernel.available(), reason="the kernel was not built")


def rays(batch: int, count: int, carved: int, seed: int = 0) -> RayBatch:
    """Rays of which one in five meets nothing."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator)

    directions = torch.nn.functional.normalize(draw(count, 3) - 0.5, dim=-1)
    near = draw(count)
    far = near + draw(count) * (draw(count) > 0.2)
    mask = (draw(count) > 0.5).float()
    carve = draw(carved, 3) - 0.5
    return RayBatch(torch.arange(batch), draw(count, 3) - 0.5, directions, near, far, draw(count, 3), mask, carve)


def mixture(width: int = 20, hidden: int = 1, density: float = 0.0) -> MixtureField:
    field = MixtureField(FieldSpec(width=width, hidden_layers=hidden, num_bases=4, latent_dim=5), seed=0)
    with torch.no_grad():
        field.bases[-1].mul_(2.0)
        field.bases[-1][:, -1] += density
    return field


def codes(batch: int) -> Tensor:
    return torch.randn(batch, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()


def losses(field: MixtureField, latents: Tensor, batch: RayBatch, config: LossConfig, **more: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return radiance_losses(field.networks(latents), batch, config, generator, head=field.spec.head, **more)


def both(
    field: MixtureField, batch: RayBatch, config: LossConfig, weigh: Any = None, **more: Any
) -> list[list[Tensor]]:
    """Losses, and the gradients of their (weighed) sum, by the kernel and by torch in float64."""
    found = []
    for reference in (False, True):
        if reference:
            field = field.double()
            batch = RayBatch(*(v.double() if v.is_floating_point() else v for v in vars(batch).values()))
        latents = codes(len(batch.instances)).detach().to(field.bases[0].dtype).requires_grad_()
        # The jitter is drawn in float32 for both.
        middles = {**more, "generator": None}
        terms = radiance_losses(field.networks(latents), batch, config, head=field.spec.head, **middles)
        total = sum(value.sum() for value in terms.values()) if weigh is None else weigh(terms)
        wanted = [latents, *field.parameters()]
        found.append([*(value.detach() for value in terms.values()), *torch.autograd.grad(total, wanted)])
    return found


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 2e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= tolerance * other.norm() + 1e-7


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Modes of the kernel's calls."""
    calls: list[int] = []
    compiled = kernel._call
    monkeypatch.setattr(kernel, "_call", lambda task: (calls.append(task.mode), compiled(task)))
    return calls


@needs_kernel
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    count=st.one_of(st.integers(1, 70), st.just(300)),
    carved=st.sampled_from([0, 1, 64, 70]),
    samples=st.sampled_from([1, 2, 5, 8, 24, 33, 64]),
    width=st.sampled_from([7, 16, 33, 48]),
    instruction_set=st.sampled_from(["", "avx2", "plain"]),
    weights=st.sampled_from([(0.02, 0.1), (0.0, 0.1), (0.02, 0.0), (0.0, 0.0)]),
    reduce=st.booleans(),
)
def test_one_pass_equals_torch(batch, count, carved, samples, width, instruction_set, weights, reduce):
    config = LossConfig(samples, *weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIF_KERNEL", instruction_set)
        found, expected = both(mixture(width), rays(batch, count, carved), config, reduce=reduce)
    assert_close(found, expected)


@needs_kernel
def test_it_is_one_pass_and_jitters_as_torch_does(passes, monkeypatch):
    field, batch, config = mixture(), rays(3, 20, 9), LossConfig(4)

    def gradients() -> list[Tensor]:
        latents = codes(3)
        terms = losses(field, latents, batch, config)
        return [*terms.values(), *torch.autograd.grad(sum(terms.values()), [latents, *field.parameters()])]

    found = gradients()
    assert passes == [kernel._GRADIENT]
    monkeypatch.setenv("MNIF_KERNEL", "torch")
    expected = gradients()
    assert passes == [kernel._GRADIENT]
    assert_close(found, expected)


@needs_kernel
@pytest.mark.parametrize(
    ("weigh", "calls"),
    [
        (lambda terms: sum(value.sum() for value in terms.values()), 1),
        (lambda terms: 0.25 * sum(value.mean() for value in terms.values()), 1),
        (lambda terms: (torch.arange(3.0).to(terms["rgb"]) * sum(terms.values())).sum(), 1),
        (lambda terms: terms["rgb"].sum() + 2.0 * terms["carve"].sum(), 2),
    ],
)
def test_any_use_of_the_losses(weigh, calls, passes):
    found, expected = both(mixture(), rays(3, 20, 9), LossConfig(4), weigh, reduce=False)
    assert passes == [kernel._GRADIENT] * calls
    assert_close(found, expected)


@needs_kernel
@pytest.mark.parametrize("density", [-200.0, 200.0])
def test_nothing_and_walls(density):
    """All empty: white, no gradient of densities; all full: the first sample's colour."""
    found, expected = both(mixture(density=density), rays(2, 12, 5), LossConfig(8))
    assert all(bool(value.isfinite().all()) for value in found)
    assert_close(found, expected, 1e-4)


@needs_kernel
def test_a_ray_that_misses_is_white_and_moves_nothing(passes):
    batch, field = rays(2, 6, 0), mixture()
    batch = dataclasses.replace(batch, far=batch.near.clone(), rgb=torch.zeros_like(batch.rgb))
    latents = codes(2)
    terms = losses(field, latents, batch, LossConfig(8, mask_weight=0.0))
    (gradient,) = torch.autograd.grad(terms["rgb"], latents)
    assert passes == [kernel._GRADIENT]
    assert terms["rgb"] == 1.0
    assert gradient.abs().max() == 0.0


@needs_kernel
def test_nan_stays_nan():
    field = mixture()
    with torch.no_grad():
        field.bases[0][1, 3] = torch.nan
    latents = codes(2)
    terms = losses(field, latents, rays(2, 12, 5), LossConfig(8))
    assert all(bool(value.isnan()) for value in terms.values())
    assert bool(torch.autograd.grad(sum(terms.values()), latents)[0].isnan().all())


@needs_kernel
def test_threads_change_no_bit():
    field, batch = mixture(48, 3), rays(2, 300, 64)
    before, found = kernel.num_threads(), []
    try:
        for threads in (1, 3):
            kernel.set_num_threads(threads)
            latents = codes(2)
            terms = losses(field, latents, batch, LossConfig(8))
            found.append([*terms.values(), *torch.autograd.grad(sum(terms.values()), [latents, *field.parameters()])])
    finally:
        kernel.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found))


@needs_kernel
def test_what_the_pass_cannot_do_is_torchs(passes):
    field, config = mixture(), LossConfig(4)
    batch = rays(2, 6, 3)
    moving = dataclasses.replace(batch, origins=batch.origins.clone().requires_grad_())
    torch.autograd.grad(losses(field, codes(2), moving, config)["rgb"], moving.origins)
    assert passes == []
    with torch.no_grad():
        losses(field, codes(2), batch, config)
    assert passes == [kernel._FORWARD]  # no gradient wanted
    losses(field, codes(2), batch, LossConfig(65))
    losses(field, codes(2), dataclasses.replace(batch, mask=batch.mask[:, :1]), config)
    assert passes == [kernel._FORWARD] * 3


@needs_kernel
def test_second_derivatives(passes, monkeypatch):
    field, batch, config = mixture(), rays(2, 6, 3), LossConfig(4)

    def second() -> list[Tensor]:
        latents = codes(2)
        total = sum(losses(field, latents, batch, config).values())
        (gradient,) = torch.autograd.grad(total, latents, create_graph=True)
        return [gradient.detach(), *torch.autograd.grad(gradient.square().sum(), [latents, *field.parameters()])]

    found = second()
    assert passes[0] == kernel._GRADIENT
    monkeypatch.setenv("MNIF_KERNEL", "torch")
    assert_close(found, second(), 1e-3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = write_tiny_srn(tmp_path_factory.mktemp("ray_loss"), scenes=5, views=4, resolution=24)
    return open_store(root, "train", progress=False)


def trained(store: Any) -> list[Tensor]:
    """Parameters and losses of 20 steps on drawn rays."""
    field, table = mixture(), LatentTable(5, 5)
    sampler = RayBatchSampler(store, 3, 24, 8, seed=1)
    optimizers = [torch.optim.Adam(field.parameters(), lr=1e-3, fused=True), RowAdam(table.parameters())]
    history = []
    for step in range(20):
        batch = sampler.draw(step)
        generator = torch.Generator().manual_seed(step)
        terms = radiance_losses(field.networks(table(batch.instances)), batch, LossConfig(), generator, head="radiance")
        total = torch.stack(list(terms.values())).sum()
        history.append(total.detach())
        for optimizer in optimizers:
            optimizer.zero_grad()
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
    return [torch.stack(history), *(value.detach() for value in (*field.parameters(), *table.parameters()))]


@needs_kernel
def test_training_is_the_same_with_and_without_it(store, monkeypatch):
    found = trained(store)
    monkeypatch.setenv("MNIF_KERNEL", "torch")
    expected = trained(store)
    assert expected[0][-1] < 0.9 * expected[0][0]  # it learns
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-6)
    assert_close(found[1:], expected[1:], 1e-3)


@needs_kernel
@pytest.mark.parametrize("hulls", [True, False])
def test_the_kernel_draws_what_torch_draws(store, monkeypatch, hulls):
    parts = {} if hulls else {"hulls": None, "touching": None, "silhouettes": None}
    store = dataclasses.replace(store, **parts)
    compiled, plain = (RayBatchSampler(store, 3, 60, 8, seed=seed) for seed in (2, 2))
    drawn = [compiled.draw(step) for step in range(8)]
    fixed = compiled.fixed(torch.tensor([4, 1]))
    monkeypatch.setenv("MNIF_KERNEL", "torch")
    for one, other in zip(
        [*drawn, fixed], [*(plain.draw(step) for step in range(8)), plain.fixed(torch.tensor([4, 1]))]
    ):
        for name, value in vars(other).items():
            assert torch.equal(getattr(one, name), value), name
            assert getattr(one, name).dtype == value.dtype


@needs_kernel
def test_rays_through_and_beside_a_hull(store, monkeypatch):
    """Spans of rays from anywhere, many of which miss the hull or the box, axis-parallel ones among them."""
    sampler = RayBatchSampler(store, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    origins = 2 * torch.rand(3, 400, 3, generator=generator) - 1
    directions = torch.nn.functional.normalize(torch.randn(3, 400, 3, generator=generator), dim=-1)
    directions[:, :30] = torch.eye(3).repeat(10, 1)
    scenes = torch.tensor([4, 0, 2])
    found = sampler._hull_span(scenes, origins, directions)
    monkeypatch.setenv("MNIF_KERNEL", "torch")
    expected = sampler._hull_span(scenes, origins, directions)
    assert bool((expected[1] == expected[0]).any())
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
