"""The same step and the same picture on CUDA as on the CPU; skipped, saying so, where there is no CUDA device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_model import tiny_image_model, tiny_model, tiny_voxel_model
from tiny_runs import tiny_settings, write_tiny_pictures, write_tiny_shapes
from tiny_srn import write_tiny_srn

from mnif_nerf.cli.demo_pages import _radiance_rows
from mnif_nerf.data.sampling import point_sampler, ray_sampler
from mnif_nerf.data.sampling.point_sampler import PointChoice, PointSampler
from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.stores.grid_store import store_of
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.fields import FieldSpec, MixtureField
from mnif_nerf.latents.fitting import FitConfig, fit_latents
from mnif_nerf.latents.meta import InnerRates, MetaConfig, PointObjective, adapt
from mnif_nerf.latents.table import LatentTable, RowAdam
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import write_model
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.grids import cell_coordinates
from mnif_nerf.rendering.intervals import cell_index
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.radiance_losses import LossConfig, radiance_losses
from mnif_nerf.rendering.views import render_view

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Training turns TF32 on, for the whole process."""
    for part in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(part, "allow_tf32", False)


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
            latents = table(batch.instances)
            terms = radiance_losses(
                lambda p, z=latents, f=field: f.evaluate(z, p), batch, LossConfig(), generator, head="radiance"
            )
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


def test_rays_drawn_on_the_device_are_valid(store):
    host = RayBatchSampler(store, 3, 32, 8, seed=0)
    resident = RayBatchSampler(store, 3, 32, 8, device="cuda", seed=0).reside()
    assert resident.resident, "three tiny scenes fit"
    again = RayBatchSampler(store, 3, 32, 8, device="cuda", seed=0).reside()
    resident.draw(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [resident.draw(step) for step in range(9)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step in (7, 2):
        assert torch.equal(again.draw(step).origins, batches[step].origins)
    for step, batch in enumerate(batches):
        assert batch.rgb.device.type == "cuda"
        here = batch.to("cpu")
        assert torch.equal(here.instances, host.draw(step).instances)
        span = host._hull_span(here.instances, here.origins, here.directions)
        for ours, theirs in zip((here.near, here.far), span):
            off = (ours - theirs).abs()  # a march may take another cell where it grazes one
            assert (off < 1e-4).float().mean() > 0.98
        hull = host.hulls[here.instances[:, None], cell_index(here.carve_points, host.hull_resolution, 0.5) >> 3]
        bit = (cell_index(here.carve_points, host.hull_resolution, 0.5) & 7).to(torch.uint8)
        outside = here.carve_points.abs().amax(dim=-1) >= 0.5
        assert (((hull >> bit) & 1 == 0) | outside).float().mean() > 0.99
        assert 0 <= float(here.rgb.min()) <= float(here.rgb.max()) <= 1


@pytest.mark.parametrize("modality", ["voxel", "image"])
def test_points_drawn_on_the_device_are_the_stores(modality):
    whole = store_of(grids(modality), modality)
    choices = [PointChoice(reweight=True), PointChoice(cut_cells=2.0)] if modality == "voxel" else [PointChoice()]
    for choice in choices:
        host = PointSampler(whole, 3, 100, choice=choice)
        sampler = PointSampler(whole, 3, 100, "cuda", choice=choice).reside()
        assert sampler._resident is not None
        sampler.draw(0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch = sampler.draw(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        here = batch.to("cpu")
        assert torch.equal(here.instances, host.draw(1).instances)
        centres = cell_coordinates(torch.arange(whole.num_cells), whole.shape)
        cells = (here.points[:, :, :, None] - centres[:, None]).abs().sum(dim=1).argmin(dim=2).numpy()
        torch.testing.assert_close(here.targets, torch.from_numpy(host._targets(here.instances.numpy(), cells)))
        if here.weights is not None:
            expected = torch.from_numpy(host._weights(here.instances.numpy(), cells))
            torch.testing.assert_close(here.weights, expected)


@pytest.mark.parametrize("kind", ["rays", "points", "all points"])
def test_what_is_drawn_ahead_on_the_host_is_what_the_host_draws(store, kind):
    def made(device):
        if kind == "rays":
            return RayBatchSampler(store, 3, 32, 8, device=device, seed=0)
        return PointSampler(store_of(grids("voxel"), "voxel"), 3, 100 if kind == "points" else 0, device)

    host, ahead = made("cpu"), made("cuda").draw_ahead()
    ahead.draw(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [ahead.draw(step) for step in range(1, 40)]
        sums = [batch.instances.sum() for batch in batches]  # on the stream that reads what another one copied
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step, (batch, total) in enumerate(zip(batches, sums), start=1):
        expected = host.draw(step)
        assert int(total) == int(expected.instances.sum())
        for name, value in vars(expected).items():
            if isinstance(value, torch.Tensor):
                assert getattr(batch, name).device.type == "cuda"
                torch.testing.assert_close(getattr(batch, name).cpu(), value, atol=1e-6, rtol=0)


PLAYED = [
    ("mnif-lite", {}),
    ("mnif-lite", {"pipeline.model.latent_kl": 1e-4}),
    ("mnif-lite", {"pipeline.adaptation": "meta-learning", "pipeline.inner_lr": 0.01}),
    ("mnif-voxel-lite", {"pipeline.adaptation": "auto-decoding", "pipeline.model.latent_noise": 1e-2}),
    ("mnif-voxel-lite", {}),
    ("mnif-image-lite", {"pipeline.adaptation": "auto-decoding", "pipeline.datamanager.jitter": True}),
]


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(("method", "changes"), PLAYED)
def test_played_steps_are_the_steps(tmp_path, method, changes, resident, monkeypatch):
    """A CUDA graph of a step, against its operations one by one: draws, rates, seeds, parameters."""
    if not resident:
        for room in (ray_sampler, point_sampler):
            monkeypatch.setattr(room, "fits", lambda device, stored: False)
    make = {"mnif-lite": lambda root: write_tiny_srn(root, scenes=4, views=4, resolution=16)}
    make |= {"mnif-voxel-lite": lambda root: write_tiny_shapes(root, {"train": 6})}
    make |= {"mnif-image-lite": lambda root: write_tiny_pictures(root, {"train": 6})}
    data, runs, said = make[method](tmp_path / "data"), [], []
    for graph in (False, True):
        own = {**changes, "pipeline.cuda_graph": graph, "pipeline.tf32": False}
        settings = tiny_settings(data, tmp_path, 40, method=method, **own)
        settings.machine.device_type = "cuda"
        run = TrainingRun(settings, say=said.append)
        assert run.trainer.plays == graph
        run.model.train()
        run.trainer.train(0, 40)
        runs.append(run)
    assert not [line for line in said if "CUDA graph" in line]
    assert runs[1].trainer._replays.playing
    plain, played = (run.optimizers.tensors() for run in runs)
    assert plain.keys() == played.keys()
    for name, part in plain.items():
        for own, other in zip(played[name], part):
            torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-2, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("adaptation", ["auto-decoding", "meta-learning"])
@pytest.mark.parametrize("graph", [True, False])
def test_a_training_step_does_not_wait(tmp_path, adaptation, graph):
    data = write_tiny_srn(tmp_path / "scenes", scenes=4, views=4, resolution=16)
    changes = {"pipeline.adaptation": adaptation, "pipeline.inner_lr": 0.01, "pipeline.cuda_graph": graph}
    settings = tiny_settings(data, tmp_path, 100, **changes)
    settings.machine.device_type = "cuda"
    trainer = TrainingRun(settings).trainer
    first = [float(trainer.step(step).loss) for step in range(5)]  # states of optimisers are made, a step is recorded
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [trainer.step(step) for step in range(5, 60)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(results[-1].loss) < first[0]


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


def grids(modality):
    axes = (np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij")) + 0.5) / 8 - 0.5
    if modality == "voxel":
        return [((axes - shift) ** 2).sum(axis=0) < 0.1 for shift in (-0.1, 0.0, 0.1)]
    ramp = np.linspace(0, 255, 8)[:, None, None] * np.ones((1, 8, 3))
    return [(share * ramp).astype(np.uint8) for share in (1.0, 0.7, 0.4)]


@pytest.mark.parametrize("head", ["signed", "logit", "distance"])
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_learning_steps_agree(head, first_order):
    store, gradients = store_of(grids("voxel"), "voxel"), []
    for device in ("cpu", "cuda"):
        field = tiny_voxel_model(head=head).field.to(device)
        rates = InnerRates(5).to(device)
        batch = PointSampler(store, 3, 100, device, choice=PointChoice(reweight=True)).draw(0)
        objective, config = PointObjective(field, batch), MetaConfig(3, 1.0, first_order)
        codes = adapt(objective, 3, rates(), config, create_graph=True)
        objective.losses(codes).sum().backward()
        gradients.append([p.grad.cpu() for p in (*field.parameters(), *rates.parameters())] + [codes.detach().cpu()])
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("make", [tiny_voxel_model, tiny_image_model])
def test_shapes_and_pictures_agree(make, tmp_path):
    """By the inner loop (voxels) and by a fit (images); and what is rendered and exported of the codes."""
    folder = write_model(make(), tmp_path / "model")
    pipes = [MNIFPipeline.from_pretrained(folder, device) for device in ("cpu", "cuda")]
    ours, theirs = (pipe.encode(*grids(pipe.modality), points=0) for pipe in pipes)
    if pipes[0].modality == "voxel":
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a.latent, b.latent.cpu(), atol=1e-3, rtol=1e-2)
    assert theirs[0].latent.device.type == "cuda"
    a, b = (pipe.instance(1) for pipe in pipes)
    pictures = [np.asarray(item.picture(24)).astype(float) for item in (a, b)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.5
    if pipes[0].modality == "voxel":
        assert (a.occupancy(24) != b.occupancy(24)).mean() < 1e-3
        assert abs(a.mesh(24, keep="all").volume - b.mesh(24, keep="all").volume) < 1e-3


def test_the_demo_scores_on_the_pipelines_device(tmp_path):
    root = write_tiny_srn(tmp_path, scenes=3, views=4, resolution=16)
    model = tiny_model(num_instances=3)
    model.names = open_store(root, "train_val", progress=False).names
    scores = []
    for device in ("cpu", "cuda"):
        model.field, model.latents, model.cells = (x.to(device) for x in (model.field, model.latents, model.cells))
        overview = _radiance_rows(MNIFPipeline(model), root)
        assert [len(pictures) for pictures in overview.rows.values()] == [3, 3]
        scores.append(float(overview.scores[0].split(": ")[1].split(" dB")[0]))
    assert abs(scores[0] - scores[1]) < 0.15  # rounded to a tenth
