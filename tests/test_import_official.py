"""Import of the authors' checkpoints: files in their key layout, and their forward passes restated in plain torch."""

from __future__ import annotations

import math
import pickle
import zipfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mnif_nerf import modalities
from mnif_nerf.cli.import_official import ImportOptions, main
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.mesh import field_to_mesh, surface_colors
from mnif_nerf.export.voxels import field_to_occupancy
from mnif_nerf.fields.heads import color_from_raw, density_from_raw
from mnif_nerf.latents.meta import InnerRates
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.official.convert import KINDS, import_official, map_field, released_w0
from mnif_nerf.priors.functa import FunctaDenoiser, FunctaSpec
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.schedulers import draw_noise, sample_streams, scheduler_from_config
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.depth_samples import DepthSamples, render_view_at_depths
from mnif_nerf.rendering.views import render_rays

ENDS = {"srn-cars": (3, 4), "shapenet": (3, 1), "celeba-hq": (2, 3)}
BASES, WIDTH, HIDDEN, LATENT, CARS = 6, 16, 2, 12, 5


# --- their files ------------------------------------------------------------------------------------------


def their_stage1(
    kind: str, bases: int = BASES, width: int = WIDTH, hidden: int = HIDDEN, latent: int = LATENT, seed: int = 0
) -> dict[str, Tensor]:
    """A stage-1 state dict of random numbers, the sines' arguments about as large as trained ones."""
    generator = torch.Generator().manual_seed(seed)
    into, out = ENDS[kind]
    ends = [into, *[width] * (hidden + 1), out]
    state = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(ends)):
        bound = 0.5 / fan_in if layer == 0 else 0.8 * math.sqrt(6 / fan_in) / 30
        bound = 10 * bound if kind == "srn-cars" and layer == hidden + 1 else bound  # no sine's w0 behind it
        weight = torch.empty(bases, fan_out, fan_in).uniform_(-bound, bound, generator=generator)
        state[f"model.net.{layer}.0.weight"] = torch.zeros(fan_out, fan_in)
        state[f"model.net.{layer}.0.bias"] = torch.zeros(fan_out)
        state[f"model_param.net.{layer}.0.weight"] = math.sqrt(bases) * weight
        state[f"model_param.net.{layer}.0.bias"] = 0.02 * torch.randn(bases, fan_out, generator=generator)
    rows = bases * (hidden + 2)
    state["latent_to_mixture.weight"] = torch.randn(rows, latent, generator=generator) / (bases * math.sqrt(latent))
    state["latent_to_mixture.bias"] = torch.full((rows,), 1 / bases)
    if kind != "srn-cars":
        state["meta_sgd_lrs.meta_sgd_lrs"] = 0.3 * torch.randn(latent, generator=generator)
    return state


def their_denoiser(dim: int = LATENT, width: int = 64, blocks: int = 4, time: int = 8, seed: int = 1) -> dict[str, Any]:
    """The parameters of their stage-2 network, without prefix."""
    generator = torch.Generator().manual_seed(seed)
    linear = {"block_time.0": (time, time), "block_input": (width, dim), "block_output.2": (dim, width)}
    norms = ["block_output.0"]
    for block in range(blocks):
        linear |= {f"blocks.{block}.block1.2": (width, width), f"blocks.{block}.block2.3": (width, width)}
        linear |= {f"blocks.{block}.blockt.1": (width, time)}
        norms += [f"blocks.{block}.block1.0", f"blocks.{block}.block2.0"]
    state = {}
    for name, shape in linear.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    for name in norms:
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)
    return state


def their_stage2(stage1: dict[str, Tensor], plain: dict[str, Tensor], averaged: dict[str, Tensor]) -> dict[str, Any]:
    """A Lightning checkpoint, as their callback writes it."""
    state = {f"model.{name}": value for name, value in plain.items()}
    state |= {f"decoder.{name}": value for name, value in stage1.items()}
    state |= {f"model_ema.{name.replace('.', '')}": value for name, value in averaged.items()}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return {"epoch": 999, "global_step": 39000, "pytorch-lightning_version": "1.5.7", "state_dict": state}


class Release:
    """A folder of their files, laid out as they lay it out."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root, self.kind = root, kind
        self.stage1 = their_stage1(kind)
        self.plain, self.averaged = their_denoiser(seed=1), their_denoiser(seed=2)
        generator = torch.Generator().manual_seed(3)
        self.latents = 0.3 + (0.2 + torch.rand(LATENT, generator=generator)) * torch.randn(
            CARS, LATENT, generator=generator
        )
        self.checkpoint = self.write("metainits/epoch9.pth", self.stage1)
        self.contexts = self.write("contexts/context-epoch9.pth", self.latents)
        content = their_stage2(self.stage1, self.plain, self.averaged)
        self.stage2 = self.write("ckpt/lddimepoch=999.ckpt", content)

    def write(self, name: str, content: Any) -> Path:
        """Save something under the release."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        return path

    def load(self, **options: Any) -> MNIFPipeline:
        """Import, write, and read back."""
        options = {"checkpoint": self.checkpoint, "kind": self.kind, "output": self.root / "model", **options}
        return MNIFPipeline.from_pretrained(main(ImportOptions(**options)), device="cpu")


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A release of ShapeNet."""
    return Release(tmp_path, "shapenet")


# --- their arithmetic -------------------------------------------------------------------------------------


def their_field(state: dict[str, Tensor], kind: str, latents: Tensor, points: Tensor, w0: float) -> Tensor:
    """Values `[B, N, out]` at points `[N, in]`: mix by broadcasting, then sin(w0 (x W^T + b)) layer by layer."""
    layers = sum(name.startswith("model_param.") for name in state) // 2
    bases = len(state["model_param.net.0.0.weight"])
    alpha = latents @ state["latent_to_mixture.weight"].T + state["latent_to_mixture.bias"]
    alpha = alpha.view(len(latents), bases, layers)
    hidden = points.expand(len(latents), -1, -1)
    for layer in range(layers):
        share = alpha[:, :, layer]
        weight = (share[:, :, None, None] * state[f"model_param.net.{layer}.0.weight"]).sum(dim=1)
        bias = (share[:, :, None] * state[f"model_param.net.{layer}.0.bias"]).sum(dim=1)
        hidden = hidden @ weight.mT + bias[:, None]
        if layer < layers - 1 or kind != "srn-cars":
            hidden = torch.sin(w0 * hidden)
    return hidden


def their_prediction(state: dict[str, Tensor], noisy: Tensor, times: Tensor) -> Tensor:
    """The clean latents `[B, D]` that their network predicts."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        grouped = x.view(len(x), 16, -1)
        centred = grouped - grouped.mean(dim=2, keepdim=True)
        scaled = centred / (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()
        return scaled.view_as(x) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def silu(x: Tensor) -> Tensor:
        return x / (1 + (-x).exp())

    half = len(state["block_time.0.bias"]) // 2
    angles = times[:, None].float() * 10_000.0 ** (-torch.arange(half) / half)
    time = linear("block_time.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    count = sum(name.endswith("blockt.1.bias") for name in state)
    hidden, stack = linear("block_input", noisy), []
    for block in range(count):
        if block < count // 2:
            stack.append(hidden)
        else:
            hidden = hidden + stack[count - 1 - block]
        inner = linear(f"blocks.{block}.block1.2", silu(norm(f"blocks.{block}.block1.0", hidden)))
        inner = inner + linear(f"blocks.{block}.blockt.1", silu(time))
        hidden = hidden + linear(f"blocks.{block}.block2.3", silu(norm(f"blocks.{block}.block2.0", inner)))
    return linear("block_output.2", silu(norm("block_output.0", hidden)))


def both_coordinates(kind: str) -> tuple[Tensor, Tensor]:
    """The same points `[N, in]` in their coordinates and in ours."""
    if kind == "celeba-hq":  # pixel (row, column) of 64
        pixel = torch.cartesian_prod(torch.arange(0, 64, 7), torch.arange(0, 64, 9)).float()
        return pixel / 63 * 2 - 1, (pixel + 0.5) / 32 - 1
    generator = torch.Generator().manual_seed(4)
    if kind == "shapenet":  # cell p of 256
        cell = torch.randint(256, (50, 3), generator=generator).float()
        return (cell + 1) / 128 - 1, (cell + 0.5) / 128 - 1
    world = torch.rand(50, 3, generator=generator) - 0.5
    return world, world


# --- the field --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_imported_model_equals_theirs(tmp_path: Path, kind: str) -> None:
    release = Release(tmp_path, kind)
    pipe = release.load()
    theirs_at, ours_at = both_coordinates(kind)
    theirs = their_field(release.stage1, kind, release.latents, theirs_at, 30.0)
    assert theirs.std() > 0.05
    model = pipe.model
    torch.testing.assert_close(model.field(model.latents, ours_at.expand(CARS, -1, -1)), theirs, rtol=0, atol=1e-5)
    for index in range(CARS):
        collapsed = pipe.instance(index).field
        torch.testing.assert_close(collapsed(ours_at), theirs[index], rtol=0, atol=1e-5)
    assert torch.equal(model.latents, release.latents)
    assert pipe.names[1] == f"{kind}-00001"
    expected = {"srn-cars": ("radiance", None), "shapenet": ("voxel", 1), "celeba-hq": ("image", 3)}[kind]
    assert model.modality == expected[0]
    assert model.grid == (None if expected[1] is None else {"resolution": 64, "channels": expected[1]})


def test_radiance_has_their_colours_and_densities(tmp_path: Path) -> None:
    release = Release(tmp_path, "srn-cars")
    release.stage1[f"model_param.net.{HIDDEN + 1}.0.weight"].mul_(6)
    release.write("metainits/epoch9.pth", release.stage1)
    points = both_coordinates("srn-cars")[0]
    raw = their_field(release.stage1, "srn-cars", release.latents, points, 30.0)[0]
    colour, density = release.load().instance(0).field.radiance(points)
    assert raw[:, :3].abs().max() > 1.2, "some colours are beyond what a picture shows"
    torch.testing.assert_close(colour, (raw[:, :3] + 1) / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(density, (F.elu(raw[:, 3], alpha=0.1) + 0.1).clip(0, 10), rtol=0, atol=1e-5)


def test_samples_beyond_white_brighten_the_picture_and_meshes_are_clamped() -> None:
    """Colour 1.5 behind a veil of colour -0.5 that hides three quarters of it: the mixture is black."""

    class Veiled(torch.nn.Module):
        def density(self, points: Tensor) -> Tensor:
            return torch.where(points[:, 0] < 0, math.log(4.0) / 0.5, 1e4)

        def radiance(self, points: Tensor) -> tuple[Tensor, Tensor]:
            raw = torch.where(points[:, :1] < 0, -2.0, 2.0).expand(-1, 3)
            return color_from_raw(raw, "radiance-authors"), self.density(points)

    ray = torch.tensor([[-1.3, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    rgb = render_rays(Veiled(), *ray, step=1 / 512)["rgb"]
    torch.testing.assert_close(rgb, torch.zeros(1, 3), rtol=0, atol=1e-3)  # clamped samples: 0.25
    assert float(render_rays(Veiled(), ray[0] + 1.3 * ray[1], ray[1])["rgb"].max()) == 1.0
    colours = surface_colors(Veiled(), np.array([[-0.2, 0, 0], [0.2, 0, 0]]), np.array([[-1.0, 0, 0], [-1.0, 0, 0]]))
    np.testing.assert_array_equal(colours, [[0, 0, 0], [1, 1, 1]])


def test_surfaces_of_imported_cars_are_found_without_a_level() -> None:
    class Foggy(torch.nn.Module):
        head = "radiance-authors"

        def density(self, points: Tensor) -> Tensor:
            return density_from_raw(100 * (0.3 - points.norm(dim=1)), self.head)

        def radiance(self, points: Tensor) -> tuple[Tensor, Tensor]:
            return points, self.density(points)

    mesh = field_to_mesh(Foggy(), 24)
    assert mesh.metadata["level"] == 5.0
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 0.25, atol=0.05)
    assert field_to_occupancy(Foggy(), 24).any()


def their_picture(state: dict[str, Tensor], latents: Tensor, pose: Tensor, size: int, focal: float) -> Tensor:
    """Their render `[size, size, 3]` of one car: 32 unjittered depths, the last interval endless, white behind."""
    row, column = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    local = torch.stack([(column - size / 2) / focal, (row - size / 2) / focal, torch.ones(size, size)], dim=-1)
    rays = (local @ pose[:3, :3].T).view(-1, 1, 3)  # of length 1 along the camera's axis, not unit rays
    depths = torch.linspace(0.8, 1.8, 32)
    points = pose[:3, 3] + depths[None, :, None] * rays
    raw = their_field(state, "srn-cars", latents, points.view(-1, 3), 30.0)[0].view(len(rays), 32, 4)
    density = (F.elu(raw[..., 3], alpha=0.1) + 0.1).clip(0, 10)
    spacing = torch.cat([depths[1:] - depths[:-1], torch.tensor([1e10])]) * rays.norm(dim=-1)
    opacity = 1 - torch.exp(-density * spacing)
    through = torch.cumprod(1 - opacity + 1e-10, dim=1)
    weights = opacity * torch.cat([torch.ones(len(rays), 1), through[:, :-1]], dim=1)
    signed = (weights[..., None] * raw[..., :3]).sum(dim=1) + 1 - weights.sum(dim=1, keepdim=True)
    return ((signed + 1) / 2).clip(0, 1).view(size, size, 3)


def test_their_quadrature_gives_their_picture(tmp_path: Path) -> None:
    release = Release(tmp_path, "srn-cars")
    release.stage1[f"model_param.net.{HIDDEN + 1}.0.weight"].mul_(12)
    release.write("metainits/epoch9.pth", release.stage1)
    item = release.load().instance(2)
    pose, camera = orbit_pose(25.0, 70.0), Intrinsics.default(24)
    theirs = their_picture(release.stage1, release.latents[2:3], pose, 24, camera.focal)
    assert theirs.std() > 0.05
    ours = render_view_at_depths(item.field, pose, camera, chunk=100)
    torch.testing.assert_close(ours["rgb"], theirs, rtol=0, atol=1e-4)
    assert float(ours["accumulation"].min()) > 0.999
    as_usual = np.asarray(item.view(pose, camera), dtype=float)
    item.depth_samples = DepthSamples()
    np.testing.assert_allclose(np.asarray(item.view(pose, camera)), 255 * theirs.numpy(), atol=0.51)
    assert np.abs(as_usual - 255 * theirs.numpy()).max() > 10
    with pytest.raises(MNIFError, match="near < far"):
        DepthSamples(near=1.8, far=0.8)
    with pytest.raises(MNIFError, match="`samples` is 1"):
        DepthSamples(samples=1)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    bases=st.integers(1, 9),
    width=st.integers(1, 20),
    hidden=st.integers(0, 3),
    latent=st.integers(1, 9),
    w0=st.floats(1, 60),
    seed=st.integers(0, 99),
)
def test_any_size_maps(kind: str, bases: int, width: int, hidden: int, latent: int, w0: float, seed: int) -> None:
    state = their_stage1(kind, bases, width, hidden, latent, seed)
    field, rates, _ = map_field(state, kind, w0, "file")
    theirs_at, ours_at = (points.double() for points in both_coordinates(kind))
    codes = torch.randn(2, latent, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    theirs = their_field({name: value.double() for name, value in state.items()}, kind, codes, theirs_at, w0)
    ours = field.double()(codes, ours_at.expand(2, -1, -1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)  # rounded once, then amplified
    assert (field.spec.num_bases, field.spec.width, field.spec.hidden_layers) == (bases, width, hidden)
    assert (rates is None) == (kind == "srn-cars")


def test_one_coefficient_per_basis_maps_too() -> None:
    state = their_stage1("celeba-hq")
    small = {name: value.view(BASES, HIDDEN + 2, -1)[:, 0] for name, value in state.items() if "latent_to" in name}
    small["latent_to_mixture.bias"] = small["latent_to_mixture.bias"].flatten()
    field, _, _ = map_field({**state, **small}, "celeba-hq", None, "file")
    assert field.spec.coefficients == "network-wise"
    repeated = {name: value.repeat_interleave(HIDDEN + 2, dim=0) for name, value in small.items()}
    theirs_at, ours_at = both_coordinates("celeba-hq")
    code = torch.randn(1, LATENT, generator=torch.Generator().manual_seed(0))
    theirs = their_field({**state, **repeated}, "celeba-hq", code, theirs_at, 30.0)
    torch.testing.assert_close(field(code, ours_at[None]), theirs, rtol=0, atol=1e-5)


def test_pixels_lie_where_theirs_do() -> None:
    factor = KINDS["celeba-hq"].turn[0][0]
    for pixel in range(64):
        theirs, ours = Fraction(2 * pixel, 63) - 1, Fraction(2 * pixel + 1, 64) - 1
        assert float(ours) * factor == pytest.approx(float(theirs), abs=1e-12)


def test_the_inner_loop_comes_along(release: Release) -> None:
    model = release.load().model
    assert model.adaptation["method"] == "meta-learning"
    assert (model.adaptation["inner_steps"], model.adaptation["inner_lr"]) == (3, 1 / 32)
    rates = InnerRates(LATENT)
    rates.load_state_dict({"rates": release.stage1["meta_sgd_lrs.meta_sgd_lrs"]})
    assert torch.equal(model.rates, rates())
    assert model.rates.min() == 0


def test_auto_decoded_cars_have_no_rates(tmp_path: Path) -> None:
    model = Release(tmp_path, "srn-cars").load().model
    assert model.rates is None
    assert model.adaptation == {"method": "auto-decoding"}


@pytest.mark.parametrize(
    ("kind", "bases", "width", "w0"),
    [
        ("shapenet", 256, 64, 50.0),
        ("shapenet", 512, 128, 30.0),
        ("celeba-hq", 256, 64, 30.0),
        ("celeba-hq", 384, 128, 30.0),
        ("srn-cars", 256, 64, 30.0),
    ],
)
def test_released_frequencies(kind: str, bases: int, width: int, w0: float) -> None:
    assert released_w0(kind, bases, width)[0] == w0


# --- the prior --------------------------------------------------------------------------------------------


def test_the_prior_equals_theirs(release: Release, tmp_path: Path) -> None:
    prior = release.load(stage2=release.stage2).prior
    generator = torch.Generator().manual_seed(5)
    noisy, times = torch.randn(7, LATENT, generator=generator), torch.randint(1000, (7,), generator=generator)
    theirs = their_prediction(release.averaged, noisy, times)
    torch.testing.assert_close(prior.denoiser(noisy, times), theirs, rtol=0, atol=1e-5)
    mean, deviation = release.latents.mean(dim=0), release.latents.std(dim=0)
    torch.testing.assert_close(prior.train, (release.latents - mean) / (deviation + 1e-8), rtol=0, atol=1e-5)
    assert (prior.scheduler["prediction_type"], prior.scheduler["beta_schedule"]) == ("sample", "squaredcos_cap_v2")
    prior.save(tmp_path / "again")
    again = LatentPrior.load(tmp_path / "again")
    assert isinstance(again.denoiser, FunctaDenoiser)
    assert all(torch.equal(value, again.state()[name]) for name, value in prior.state().items())
    assert again.config == prior.config


def test_ancestral_steps_equal_theirs(release: Release) -> None:
    """Their step, from a prediction of x0: the posterior's mean plus sqrt(beta) times noise, nothing clipped.

    Single steps, because a thousand of them through a random network double every rounding error many times.
    """
    prior = release.load(stage2=release.stage2).prior
    scheduler = scheduler_from_config(prior.scheduler, "ddpm")
    scheduler.set_timesteps(1000)
    assert scheduler.config.variance_type == "fixed_large"
    assert scheduler.timesteps.tolist() == list(reversed(range(1000)))
    angle = ((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * math.pi / 2).cos().square()
    beta = (1 - angle[1:] / angle[:-1]).clamp(max=0.999)
    kept = torch.cumprod(1 - beta, dim=0)
    for t in (999, 998, 500, 20, 1, 0):
        x = 3 * draw_noise(sample_streams(4, t), LATENT)
        times = torch.full((4,), t)
        step, now, before = float(beta[t]), float(kept[t]), float(kept[t - 1]) if t else 1.0
        towards, back = math.sqrt(before) * step / (1 - now), math.sqrt(1 - step) * (1 - before) / (1 - now)
        theirs = towards * their_prediction(release.averaged, x, times) + back * x
        if t:
            theirs = theirs + math.sqrt(step) * draw_noise(sample_streams(4, 7), LATENT)
        ours = scheduler.step(prior.denoiser(x, times), t, x, generator=sample_streams(4, 7)).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=0, atol=4e-3)  # diffusers has beta = 1 - ratio in float32


def their_process(release: Release, steps: int, stochastic: bool) -> Tensor:
    """Whitened latents by their respaced sampler, in float64 but for the network, from noise of `sample_streams`.

    They keep the training steps 0 .. 999 evenly spaced and rounded for DDPM, and multiples of 1000 / steps for DDIM.
    Betas of the kept steps come from the ratios of what is left of the signal there.
    """
    angle = ((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * math.pi / 2).cos().square()
    kept = torch.cumprod(1 - (1 - angle[1:] / angle[:-1]).clamp(max=0.999), dim=0)
    times = [round(k * 999 / (steps - 1)) if stochastic else k * 1000 // steps for k in range(steps)]
    streams = sample_streams(3, 11)
    x = draw_noise(streams, LATENT).double()
    for index in reversed(range(steps)):
        now, before = float(kept[times[index]]), float(kept[times[index - 1]]) if index else 1.0
        clean = their_prediction(release.averaged, x.float(), torch.full((3,), times[index])).double()
        if not stochastic:
            x = math.sqrt(before) * clean + math.sqrt(1 - before) * (x - math.sqrt(now) * clean) / math.sqrt(1 - now)
            continue
        beta = 1 - now / before
        x = (math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * x) / (1 - now)
        x = x + math.sqrt(beta) * draw_noise(streams, LATENT) if index else x
    return x


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 50), ("ddpm", 7), ("ddim", 50), ("ddim", 8)])
def test_few_steps_are_their_few_steps(release: Release, sampler: str, steps: int) -> None:
    # A network that follows its input closely, so that rounding is not doubled at every step.
    for name in ("blocks.0.block2.3.weight", "blocks.1.block2.3.weight", "block_output.2.weight"):
        release.averaged[name].mul_(0.3)
    content = their_stage2(release.stage1, release.plain, release.averaged)
    release.load(stage2=release.write("ckpt/smooth.ckpt", content))
    prior = LatentPrior.load(release.root / "model" / "prior")
    ours = prior._draw(sample_streams(3, 11), sampler, steps, 1.0, prior.denoiser)
    torch.testing.assert_close(ours.double(), their_process(release, steps, sampler == "ddpm"), rtol=0, atol=2e-3)


def test_sampling_gives_shapes(release: Release) -> None:
    pipe = release.load(stage2=release.stage2)
    for options in ({}, {"sampler": "ddpm", "steps": 1000}, {"sampler": "ddim", "steps": 20}):
        shapes = pipe(num_samples=3, seed=0, **options)
        assert len(shapes) == 3
        assert all(torch.isfinite(shape.latent).all() for shape in shapes)
        assert not torch.equal(shapes[0].latent, shapes[1].latent)
    assert pipe.nearest(shapes[0])[0] in pipe.names


def test_weights_that_are_not_averaged(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    noisy, times = torch.ones(2, LATENT), torch.tensor([3, 700])
    prior = release.load(stage2=release.stage2, weights="model").prior
    torch.testing.assert_close(
        prior.denoiser(noisy, times), their_prediction(release.plain, noisy, times), rtol=0, atol=1e-5
    )
    assert "not averaged" in capsys.readouterr().out
    bare = {f"model.{name}": value for name, value in release.plain.items()}  # and a state dict alone
    prior = release.load(stage2=release.write("bare.pth", bare)).prior
    torch.testing.assert_close(
        prior.denoiser(noisy, times), their_prediction(release.plain, noisy, times), rtol=0, atol=1e-5
    )


def test_the_released_size_of_the_denoiser() -> None:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in FunctaDenoiser(FunctaSpec(dim)).parameters()) for dim in (128, 512, 1024)]
    assert [round(count / 1e6, 1) for count in counts] == [271.8, 275.0, 279.2]


# --- what is said -----------------------------------------------------------------------------------------


def test_the_report_names_everything(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    odd = release.write("metainits/epoch9.pth", {**release.stage1, "last_layer.weight": torch.ones(2), "note": 3})
    folder = main(ImportOptions(odd, "shapenet", release.root / "out", stage2=release.stage2))
    said = capsys.readouterr().out
    for expected in (
        "6 bases of 4 layers of width 16, latents of 12 numbers",
        "w0 30, ",
        "8 tensors model.net.* (a template",
        f"not known, left out of {odd}: last_layer.weight, note",
        f"5 latents from {release.contexts} (found beside metainits/)",
        "averaged (EMA) weights",
        "tensors model.* (the weights that were not chosen)",
        "2 tensors model_ema.*",
        "(a copy of stage 1, equal to the checkpoint)",
        f"left out of {release.stage2}: epoch, global_step, pytorch-lightning_version",
        f"wrote {folder}",
        f"next: mnif-sample --load-config {folder} --num-samples 16 --seed 0",
    ):
        assert expected in said, expected


def test_without_stage2_the_next_step_is_a_prior(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = Release(tmp_path, "srn-cars")
    pipe = release.load(w0=25.0)
    said = capsys.readouterr().out
    assert "w0 25, as given" in said
    assert "next: mnif-train-prior" in said
    assert pipe.prior is None
    assert pipe.model.field.spec.w0 == 25.0


def test_unknown_parts_and_test_latents_are_named(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(release.stage2, weights_only=True)
    content["state_dict"]["something.else"] = torch.ones(2)
    release.load(
        stage2=release.write("odd.ckpt", content), contexts=release.write("context-epoch9-test.pth", release.latents)
    )
    said = capsys.readouterr().out
    assert "not known, left out of" in said
    assert "something.else" in said
    assert "equal to the checkpoint" in said
    assert "latents of test instances" in said


@pytest.mark.parametrize("kind", list(KINDS))
def test_kinds_fit_their_modality(kind: str) -> None:
    rule, field = KINDS[kind], map_field(their_stage1(kind), kind, None, "file")[0]
    modality = modalities.get(rule.modality)
    modality.check_field(field.spec, None, "file")
    assert modality.is_grid == (rule.resolution is not None)


def test_contexts_are_found_from_inside_the_folder(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(release.checkpoint.parent)
    assert torch.equal(import_official(Path("epoch9.pth"), "shapenet").model.latents, release.latents)


def test_instances_can_have_their_names(release: Release) -> None:
    listing = release.root / "all_vox256_img_train.txt"
    listing.write_text("".join(f"chair-{k}\n" for k in range(CARS)))
    assert release.load(names=listing).names == tuple(f"chair-{k}" for k in range(CARS))
    folder = release.root / "cars_train"
    for name in "badce":
        (folder / name).mkdir(parents=True)
    assert import_official(release.checkpoint, "shapenet", names=folder).model.names == tuple("abcde")


# --- bad input --------------------------------------------------------------------------------------------


def refuse(release: Release, sentence: str, **options: Any) -> None:
    """The import fails with this sentence, and writes nothing."""
    with pytest.raises(MNIFError, match=sentence) as caught:
        release.load(**options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", ").", "...)."))
    assert not (release.root / "model").exists()


def test_contexts_are_needed(release: Release) -> None:
    release.contexts.unlink()
    refuse(release, r"`contexts` is missing: .* names, neighbours and the prior rest")


def test_files_that_are_no_checkpoints(release: Release) -> None:
    refuse(release, "absent.pth: no such file", checkpoint=release.root / "absent.pth")
    text = release.root / "notes.pth"
    text.write_text("not a checkpoint")
    refuse(release, "notes.pth: not a checkpoint", checkpoint=text)
    empty = release.root / "empty.pth"
    empty.touch()
    refuse(release, "empty.pth: not a checkpoint", checkpoint=empty)
    half = release.root / "half.pth"
    half.write_bytes(release.checkpoint.read_bytes()[:5000])
    refuse(release, "half.pth: not a checkpoint", checkpoint=half)
    refuse(release, "list.pth: holds no named tensors", checkpoint=release.write("list.pth", [1, 2]))
    refuse(release, "no basis networks", checkpoint=release.write("other.pth", {"weight": torch.ones(2)}))


class Config:
    """Some object that a checkpoint may hold."""


def test_other_python_objects_are_not_loaded(release: Release) -> None:
    content = {"state_dict": {"model.x": torch.ones(2)}, "hyper_parameters": Config()}
    path = release.write("objects.ckpt", content)
    refuse(release, r"objects.ckpt: holds a Python object \(.*Config\) that is not loaded", stage2=path)
    plain = release.root / "plain.pkl"
    plain.write_bytes(pickle.dumps(Config()))
    refuse(release, r"plain.pkl: (holds a Python object|not a checkpoint)", checkpoint=plain)


def test_files_given_in_each_others_place(release: Release) -> None:
    refuse(release, r"context-epoch9.pth: holds one tensor .* `contexts`", checkpoint=release.contexts)
    refuse(release, r"ckpt: is a Lightning checkpoint.* `stage2`", checkpoint=release.stage2)
    refuse(release, r"epoch9.pth: holds no single tensor", contexts=release.checkpoint)
    refuse(release, r"epoch9.pth: holds no denoiser", stage2=release.write("epoch9.pth", {"decoder.x": torch.ones(1)}))
    refuse(release, "`weights` chooses among", weights="ema")


def test_another_kind(release: Release) -> None:
    refuse(release, "maps 3 coordinates to 1 values, not celeba-hq's; give shapenet as `kind`", kind="celeba-hq")
    refuse(release, "give shapenet as `kind`", kind="srn-cars")
    with pytest.raises(MNIFError, match="`kind` 'chairs' is not known"):
        import_official(release.checkpoint, "chairs")


@pytest.mark.parametrize(
    "name",
    ["model_param.net.1.0.weight", "model_param.net.2.0.bias", "latent_to_mixture.bias", "meta_sgd_lrs.meta_sgd_lrs"],
)
def test_missing_keys_and_wrong_shapes(release: Release, name: str) -> None:
    state = dict(release.stage1)
    wrong = {**state, name: state[name][:-1]}
    refuse(release, f"{name} has shape .* but the other tensors ask for", checkpoint=release.write("a.pth", wrong))
    broken = {**state, name: state[name] * float("nan")}
    refuse(release, f"{name} has NaN or infinite", checkpoint=release.write("b.pth", broken))
    del state[name]
    refuse(release, f"c.pth: has no {name}; it is incomplete", checkpoint=release.write("c.pth", state))


def test_a_projection_of_two_layers(release: Release) -> None:
    state = {**release.stage1, "latent_to_mixture.0.weight": torch.ones(2, 2)}
    refuse(release, "projection has two layers", checkpoint=release.write("two.pth", state))


def test_latents_that_do_not_fit(release: Release) -> None:
    narrow = release.write("narrow.pth", release.latents[:, :5])
    refuse(release, "latents of 5 numbers, but the checkpoint takes 12", contexts=narrow)
    broken = release.write("broken.pth", release.latents * float("inf"))
    refuse(release, "broken.pth: the latents has NaN|broken.pth: .*NaN or infinite", contexts=broken)
    flat = release.write("flat.pth", release.latents.flatten())
    refuse(release, r"holds a tensor of shape \[60\], expected latents \[instances, 12\]", contexts=flat)


def test_denoisers_that_do_not_fit(release: Release) -> None:
    def stage2(name: str, plain: dict[str, Tensor], averaged: dict[str, Tensor]) -> Path:
        return release.write(name, their_stage2(release.stage1, plain, averaged))

    other = their_denoiser(dim=9)
    refuse(release, "for latents of 9 numbers, but the contexts have 12", stage2=stage2("d9.ckpt", other, other))
    cut = {name: value for name, value in release.plain.items() if name != "blocks.1.block2.3.bias"}
    path = stage2("cut.ckpt", cut, {})
    refuse(release, r"has no blocks.1.block2.3.bias; only the residual MLP", stage2=path)
    refuse(release, r'48 of 48 averaged weights .* `weights` "model"', stage2=path, weights="ema")
    wrong = {**release.plain, "block_output.2.weight": torch.ones(3, 3)}
    refuse(release, r"block_output.2.weight has shape \[3, 3\]", stage2=stage2("w.ckpt", wrong, {}))
    flat = {**release.plain, "block_input.weight": torch.ones(3)}
    refuse(release, r"block_input.weight has shape \[3\], expected a matrix", stage2=stage2("f.ckpt", flat, {}))
    narrow = their_denoiser(width=24)
    refuse(release, "width 24, groups 16", stage2=stage2("n.ckpt", narrow, {}))
    broken = {**release.plain, "block_input.bias": torch.full((64,), float("nan"))}
    refuse(release, "block_input.bias has NaN", stage2=stage2("b.ckpt", broken, {}))


def test_the_output_keeps_what_is_no_model(release: Release) -> None:
    thing = release.root / "thing"
    thing.touch()
    refuse(release, "thing: is a file", output=thing)
    refuse(release, "holds something else than a model", output=release.contexts.parent)
    assert release.contexts.is_file()


def test_networks_with_more_than_the_released_ones(release: Release) -> None:
    def stage2(**more: Tensor) -> Path:
        plain = {**release.plain, **{name.replace("__", "."): value for name, value in more.items()}}
        return release.write("more.ckpt", their_stage2(release.stage1, plain, release.averaged))

    refuse(
        release,
        r"has block_time.2.weight \(num_time_layers above 1\)",
        stage2=stage2(block_time__2__weight=torch.ones(8, 8)),
    )
    other = stage2(blocks__0__affine_time__std__1__weight=torch.ones(64, 8))
    refuse(release, r"\(net_type functa-affine\); only the residual MLP", stage2=other, weights="model")
    refuse(release, "its denoiser has index_embed.weight; only", stage2=stage2(index_embed__weight=torch.ones(2)))


def test_stages_of_different_runs(release: Release) -> None:
    other = their_stage2(their_stage1("shapenet", seed=8), release.plain, release.averaged)
    path = release.write("other.ckpt", other)
    refuse(release, r"another stage 1 \(decoder.model.* differs from the checkpoint\)", stage2=path)


def test_what_is_mistaken_for_a_checkpoint(release: Release) -> None:
    refuse(release, r"is a folder; .* such as .*metainits/epoch9.pth", checkpoint=release.root)
    archive = release.root / "CelebAHQ-small.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.write(release.checkpoint, "metainits/epoch9.pth")
    refuse(release, "is an archive of files, not a checkpoint; unpack it", checkpoint=archive)
    averaged = {f"model.net.{layer}.0.weight": torch.ones(2, 2) for layer in range(3)}
    path = release.write("metainits/ema-epoch9.pth", averaged)
    refuse(release, r"averaged over training \(ema-epochN.pth\)", checkpoint=path)


def test_names_that_do_not_fit(release: Release) -> None:
    listing = release.root / "names.txt"
    refuse(release, "names.txt: no such file or folder", names=listing)
    listing.write_text("a\nb\n")
    refuse(release, "has 2 names for 5 latents", names=listing)
    listing.write_text("a\nb\na\nc\nd\n")
    refuse(release, "names a twice", names=listing)


def test_a_prior_of_an_unknown_network(release: Release) -> None:
    release.load(stage2=release.stage2)
    path = release.root / "model" / "prior" / "prior.json"
    path.write_text(path.read_text().replace('"network": "functa"', '"network": "transformer"'))
    with pytest.raises(MNIFError, match="network 'transformer' is not known"):
        LatentPrior.load(path.parent)
