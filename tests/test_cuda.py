"""The same step and the same picture on CUDA as on the CPU; skipped, saying so, where there is no CUDA device."""

from __future__ import annotations

import pytest
import torch
from tiny_model import tiny_model
from tiny_srn import write_tiny_srn

from mnif_nerf.cli.demo import DemoConfig
from mnif_nerf.cli.demo_pages import _radiance_rows
from mnif_nerf.data.sampler import RayBatchSampler
from mnif_nerf.data.store import open_store
from mnif_nerf.fields import FieldSpec, MixtureField
from mnif_nerf.latents.fitting import FitConfig, fit_latents
from mnif_nerf.latents.table import LatentTable, RowAdam
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.training import LossConfig, radiance_losses
from mnif_nerf.rendering.views import render_view

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = write_tiny_srn(tmp_path_factory.mktemp("cuda"), scenes=3, views=4, resolution=16)
    return open_store(root, "train", progress=False)


def test_training_steps_agree(store):
    torch.backends.cuda.matmul.allow_tf32 = False
    results = []
    for device in ("cpu", "cuda"):
        field = MixtureField(FieldSpec(num_bases=4, latent_dim=6, width=16, hidden_layers=2), seed=0).to(device)
        table = LatentTable(3, 6, init_std=0.1).to(device)
        networks, codes = torch.optim.Adam(field.parameters(), lr=1e-3), RowAdam(table.parameters(), lr=5e-3)
        rays = RayBatchSampler(store, 3, 32, 8, device=device, seed=0)
        generator = torch.Generator().manual_seed(0)
        losses = []
        for step in range(5):
            batch = rays.draw(step)
            latents = table(batch.scenes)
            terms = radiance_losses(lambda p, z=latents, f=field: f.evaluate(z, p), batch, LossConfig(), generator)
            loss = torch.stack(list(terms.values())).sum()
            networks.zero_grad()
            codes.zero_grad()
            loss.backward()
            networks.step()
            codes.step()
            losses.append(loss.detach().cpu())
        results.append((torch.stack(losses), table.weight.detach().cpu()))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(results[0][1], results[1][1], atol=2e-3, rtol=1e-2)


def test_pictures_agree():
    field = MixtureField(FieldSpec(num_bases=4, latent_dim=6, width=16, hidden_layers=2), seed=0)
    with torch.no_grad():
        field.bases[-1].mul_(5.0)
    pictures = []
    for device in ("cpu", "cuda"):
        small = field.to(device).collapse(torch.linspace(-1, 1, 6, device=device))
        grid = OccupancyGrid.from_field(small, resolution=24, device=device)
        pose = orbit_pose(20, 45).to(device)
        pictures.append({k: v.cpu() for k, v in render_view(small, pose, Intrinsics.default(32), grid).items()})
    for name in ("rgb", "depth", "accumulation"):
        torch.testing.assert_close(pictures[0][name], pictures[1][name], atol=5e-3, rtol=0)


def test_fitted_latents_agree(store):
    fitted = []
    for device in ("cpu", "cuda"):
        field = MixtureField(FieldSpec(num_bases=4, latent_dim=6, width=16, hidden_layers=2), seed=0).to(device)
        known = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).to(device)
        rays = RayBatchSampler(store, 3, 32, device=device, seed=0)
        fitted.append(fit_latents(field, rays, known, FitConfig(steps=5)))
        assert fitted[-1].device.type == device
    torch.testing.assert_close(fitted[0], fitted[1].cpu(), atol=5e-3, rtol=1e-2)


def test_generation_agrees(trained, tmp_path):
    pipes = [MNIFPipeline.from_pretrained(trained, device) for device in ("cpu", "cuda")]
    for sampler in ("dpm-solver++", "ddpm", "gaussian", "interpolation"):
        codes = [pipe.sample_latents(2, seed=3, sampler=sampler, steps=10).cpu() for pipe in pipes]
        torch.testing.assert_close(codes[0], codes[1], atol=1e-3, rtol=1e-3)
    pipe, other = pipes[1], pipes[0].instance(2)  # an object of the CPU's pipeline serves as an end here
    assert pipe.nearest(other)[0] == pipe.names[2]
    middle = pipe.interpolate(other, 0, num=3)[1]
    assert middle.latent.device.type == middle.field.weights[0].device.type == "cuda"
    assert middle.render(resolution=16).size == (16, 16)
    assert len(middle.mesh(resolution=32).faces) > 0
    middle.save(tmp_path / "middle.safetensors")
    assert pipe.save_pretrained(tmp_path / "model").is_dir()


def test_the_demo_scores_on_the_pipelines_device(tmp_path):
    root = write_tiny_srn(tmp_path, scenes=3, views=4, resolution=16)
    model = tiny_model(num_instances=3)
    model.names = open_store(root, "train_val", progress=False).names
    scores = []
    for device in ("cpu", "cuda"):
        model.field, model.latents, model.cells = (x.to(device) for x in (model.field, model.latents, model.cells))
        overview = _radiance_rows(DemoConfig(data=root), MNIFPipeline(model))
        assert [len(pictures) for pictures in overview.rows.values()] == [3, 3]
        scores.append(float(overview.scores[0].split(": ")[1].split(" dB")[0]))
    assert abs(scores[0] - scores[1]) < 0.15  # rounded to a tenth
