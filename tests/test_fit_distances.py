"""Fits of models of signed distance and colour: evidence of meshes, voxels, clouds and pictures."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from tiny_model import tiny_surface_model

from mnif_nerf import modalities
from mnif_nerf.data.geometry.hull import cell_centres
from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.observations.free_space import free_cells
from mnif_nerf.data.observations.observations import Cells, MeshShape, Scan
from mnif_nerf.data.observations.observed_region import Region
from mnif_nerf.data.readers.cloud_files import PointCloud
from mnif_nerf.fields.losses import DistanceLoss
from mnif_nerf.latents.distance_evidence import DistanceEvidence
from mnif_nerf.latents.evidence import PointPool, ViewEvidence, radiance_view_losses, view_rays
from mnif_nerf.latents.search import search
from mnif_nerf.pipelines.fit import fitting
from mnif_nerf.pipelines.fit.distances import fit_to_cells, fit_to_mesh, fit_to_scan
from mnif_nerf.pipelines.fit.fitting import FitSettings
from mnif_nerf.pipelines.fit.preparation import voxelise
from mnif_nerf.pipelines.fit.task import FitTask, SeenMesh
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.radiance_losses import LossConfig
from mnif_nerf.rendering.surface_losses import surface_losses

RADIUS = 0.25
RED = (0.8, 0.2, 0.1)


class BallField:
    """Balls whose radius is the latent, red all over, as a field in field coordinates."""

    spec = SimpleNamespace(in_features=3, out_features=4, head="sdf")

    def networks(self, latents: torch.Tensor) -> Any:
        return lambda points: self.evaluate(latents, points)

    def evaluate(self, latents: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        raw = -10.0 * (0.5 * points.norm(dim=1, keepdim=True) - latents[:, None, :1])
        red = torch.logit(torch.tensor(RED)).view(1, 3, 1).expand(len(points), -1, points.shape[2])
        return torch.cat([red, raw], dim=1)


def model() -> Any:
    from mnif_nerf.latents.encoding_settings import EncodingSettings

    return SimpleNamespace(field=BallField(), latents=torch.zeros(2, 1), encoding=EncodingSettings())


def ball() -> MeshShape:
    mesh = trimesh.creation.icosphere(4, RADIUS)
    colors = np.tile(np.float32(RED), (len(mesh.faces), 3, 1))
    return MeshShape(Surface(np.asarray(mesh.vertices), np.asarray(mesh.faces), colors))


def best_radius(task: FitTask) -> float:
    radii = torch.linspace(0.15, 0.35, 41)
    assert task.evidence is not None
    return float(radii[task.evidence.score(radii[:, None]).argmin()])


def test_intervals_count_for_what_they_say() -> None:
    nan, far = float("nan"), float("inf")
    rows = {
        "outside": [nan, nan, nan, 0.0, far],
        "inside": [nan, nan, nan, -far, 0.0],
        "on": [nan, nan, nan, 0.0, 0.0],
        "blue": [0.1, 0.2, 0.8, 0.0, 0.0],
        "far off": [nan, nan, nan, 0.4, 0.4],
    }
    found = {}
    for name, row in rows.items():
        pool = PointPool(torch.tensor([[0.25, 0.0, 0.0]]), torch.tensor([row]), 1.0)
        evidence = DistanceEvidence(BallField(), [pool], 4, distance=DistanceLoss(0.05, 0.02, 10.0))  # type: ignore[arg-type]
        losses = evidence.losses(torch.tensor([[0.23], [0.25], [0.27]]), 0)
        found[name] = [round(float(each), 4) for each in losses]
    assert found["outside"] == [0.0, 0.0, 0.4]
    assert found["inside"] == [0.4, 0.0, 0.0]
    assert found["on"] == [0.4, 0.0, 0.4]
    color = 10 * (0.7**2 + 0.7**2) / 3
    assert found["blue"] == pytest.approx([color + 0.4, color, color + 0.4], abs=1e-3)
    assert found["far off"] == pytest.approx([0.6, 1.0, 1.4], abs=1e-3), "at least the truncation away"


def test_a_mesh_says_where_its_surface_is_and_its_colour() -> None:
    shape = ball()
    cells = voxelise(shape, 24)
    task = fit_to_mesh(model(), shape, cells, Region(), 0)
    assert task.complete
    assert isinstance(task.seen, SeenMesh)
    assert best_radius(task) == pytest.approx(RADIUS, abs=0.006)
    assert task.evidence is not None
    assert float(task.evidence.score(torch.tensor([[RADIUS]]))[0]) < 0.02, "distances and colours agree with the field"


def test_half_a_mesh_tells_nothing_of_the_other_half() -> None:
    shape = ball()
    task = fit_to_mesh(model(), shape, voxelise(shape, 24), Region("front"), 0)
    assert not task.complete
    assert isinstance(task.seen, SeenMesh)
    assert (task.seen.points.points[:, 0] > 0).all()
    assert isinstance(task.evidence, DistanceEvidence)
    (pool,) = task.evidence.pools
    assert (pool.points[:, 0] > 0).all()
    # Beside the cut only the side is known, as the nearest surface may lie in the half that was not seen.
    low, high = pool.targets[:, 3:].T
    exact = low == high
    assert (low[exact].abs() <= pool.points[exact, 0] + 1e-5).all()
    assert bool((low[~exact].isinf() | high[~exact].isinf()).all())
    assert (~exact).sum() > 100
    assert torch.isnan(pool.targets[~exact][:, :3]).all()
    assert best_radius(task) == pytest.approx(RADIUS, abs=0.006)


def test_voxels_say_where_the_surface_is_and_bounds_beside_the_unknown() -> None:
    cells = voxelise(ball(), 32)
    task = fit_to_cells(model(), cells, np.ones_like(cells.values), 0)
    assert best_radius(task) == pytest.approx(RADIUS, abs=0.011)
    assert "no colour" in task.notes[0]
    half = np.zeros_like(cells.values)
    half[16:] = True
    task = fit_to_cells(model(), Cells(cells.values), half, 0)
    assert not task.complete
    assert isinstance(task.evidence, DistanceEvidence)
    for pool in task.evidence.pools:
        assert (pool.points[:, 0] > 0).all()
        exact = pool.targets[:, 3] == pool.targets[:, 4]
        assert (pool.targets[exact, 3].abs() <= pool.points[exact, 0] + 1e-5).all()


@pytest.mark.parametrize("given", ["all", "bare"])
def test_clouds_say_where_the_surface_is(given: str) -> None:
    generator = np.random.default_rng(0)
    normals = generator.normal(size=(3000, 3))
    normals = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32)
    cloud = PointCloud(RADIUS * normals)
    if given == "all":
        cloud = replace(cloud, normals=normals, colors=np.tile(np.float32(RED), (3000, 1)))
    task = fit_to_scan(model(), Scan(cloud), (), 0)
    assert task.complete
    assert best_radius(task) == pytest.approx(RADIUS, abs=0.006)
    assert task.evidence is not None
    red = task.evidence.pools[0].targets[:, :3]  # type: ignore[attr-defined]
    assert bool(torch.isnan(red).all()) == (given == "bare")
    assert any("no colour" in note for note in task.notes) == (given == "bare")


SCANNER = np.float32([1.2, 0.3, 0.4])


def scan_of_ball(cut: bool = False) -> Scan:
    """First hits of a grid of rays from one place; `cut`: those on its left half alone."""
    forward = -SCANNER / np.linalg.norm(SCANNER)
    right = np.cross(forward, [0, 0, 1]) / np.linalg.norm(np.cross(forward, [0, 0, 1]))
    u, v = (0.004 * (each - 60) for each in np.mgrid[:121, :121].reshape(2, -1))
    ways = forward + u[:, None] * right + v[:, None] * np.cross(right, forward)
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    along = -(SCANNER * ways).sum(axis=1)
    gap = RADIUS**2 - (SCANNER**2).sum() + along**2
    hit = (gap > 0) & ((u < 0) if cut else True)
    points = SCANNER + (along - np.sqrt(np.maximum(gap, 0)))[hit, None] * ways[hit]
    return Scan(PointCloud(points.astype(np.float32)), SCANNER)


def test_a_scanner_says_what_is_empty() -> None:
    points, centres = scan_of_ball().cloud.points, cell_centres(48)
    away = np.linalg.norm(centres, axis=1) - RADIUS
    along = centres @ (SCANNER / np.linalg.norm(SCANNER))
    aside = np.linalg.norm(np.cross(SCANNER - centres, SCANNER), axis=1) / np.linalg.norm(SCANNER - centres, axis=1)
    free = free_cells(points, SCANNER).reshape(-1)
    assert not free[away < 0].any()
    assert not free[(aside < RADIUS - 0.01) & (along < 0)].any(), "what lies behind the ball is not known"
    assert free[(aside < RADIUS - 0.03) & (along > 0) & (away > 0.08)].all(), "what lies before it is empty"
    assert free[aside > RADIUS + 0.05].all(), "past the outline nothing was met"
    cut = free_cells(points, SCANNER, outline=False).reshape(-1)
    assert cut.any()
    assert not cut[aside > RADIUS + 0.05].any()
    around = np.random.default_rng(0).normal(size=(500, 3))
    assert not free_cells(0.3 * around / np.linalg.norm(around, axis=1, keepdims=True), np.zeros(3)).any()


def test_bounds_of_a_scan_from_one_side_hold() -> None:
    task = fit_to_scan(model(), scan_of_ball(), (), 0)
    assert not task.complete
    assert best_radius(task) == pytest.approx(RADIUS, abs=0.006)
    assert any("outline" in note for note in task.notes)
    assert isinstance(task.evidence, DistanceEvidence)
    assert len(task.evidence.pools) == 3
    for pool in task.evidence.pools[1:]:
        away, (low, high) = pool.points.norm(dim=1) - RADIUS, pool.targets[:, 3:].T
        assert (low - away).max() < 0.01
        assert (away - high).max() < 0.01
        assert low.max() > 0.02, "free space is far from the surface, not only outside"
    # Rays past the border of a cloud that was cut may have met the object.
    task = fit_to_scan(model(), scan_of_ball(cut=True), (), 0, outline=False)
    assert best_radius(task) == pytest.approx(RADIUS, abs=0.006)
    assert not any("outline" in note for note in task.notes)


def test_the_seen_half_of_large_faces_ends_at_the_border() -> None:
    """Faces that cross the border are divided, not kept whole."""
    box = trimesh.creation.box((0.8, 0.4, 0.3))
    colors = np.tile(np.float32(RED), (len(box.faces), 3, 1))
    shape = MeshShape(Surface(np.asarray(box.vertices), np.asarray(box.faces), colors))
    task = fit_to_mesh(model(), shape, voxelise(shape, 32), Region(half="front"), 0)
    assert isinstance(task.seen, SeenMesh)
    surface = task.seen.surface
    corners = surface.vertices[surface.faces]
    assert -0.03 < corners[..., 0].min() <= 0.0
    areas = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    assert areas.sum() == pytest.approx(0.4 * (0.8 + 0.6) + 0.12, rel=0.03)
    assert surface.corner_colors.shape == (len(surface.faces), 3, 3)


def _ball_rays(light: float) -> Any:
    """Two pictures of the ball in a light."""
    images, masks, poses = [], [], []
    camera = Intrinsics.default(40)
    for azimuth in (0.0, 100.0):
        pose = orbit_pose(20, azimuth)
        origins, directions = pixel_rays(pose, camera)
        along = -(origins * directions).sum(dim=1)
        hit = (origins.square().sum(dim=1) - along.square()).sqrt() < RADIUS
        picture = torch.where(hit[:, None], light * torch.tensor(RED), 1.0)
        images.append((picture * 255).round().to(torch.uint8).view(40, 40, 3))
        masks.append(hit.view(40, 40))
        poses.append(pose)
    lens = torch.tensor([[camera.focal, camera.cx, camera.cy]]).expand(2, -1)
    return view_rays(torch.stack(images), torch.stack(masks), torch.stack(poses), lens)


@pytest.mark.parametrize("light", [1.0, 0.7])
def test_pictures_tell_the_radius_in_any_light(light: float) -> None:
    field: Any = BallField()
    evidence = ViewEvidence(field, _ball_rays(light), LossConfig(samples_per_ray=24), surface_losses)
    radii = torch.linspace(0.2, 0.3, 41)[:, None]
    losses = evidence.score(radii)
    assert float(radii[losses.argmin()]) == pytest.approx(RADIUS, abs=0.004)
    assert losses.min() < 0.2 * losses.max()
    wrong = torch.tensor([[0.22], [0.28]], requires_grad=True)
    (slope,) = torch.autograd.grad(evidence.losses(wrong, 0).sum(), wrong)
    assert slope[0] < 0 < slope[1]


def test_what_silhouettes_rule_out_must_be_empty_and_fields_without_colour_fit_too() -> None:
    field: Any = BallField()
    batch = _ball_rays(1.0)
    far = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=1) * 0.27
    plain, held = (
        ViewEvidence(field, batch, LossConfig(24), surface_losses, outside=outside) for outside in (None, far)
    )
    large = torch.tensor([[0.3]])
    assert held.score(large) > plain.score(large) + 0.05
    assert held.score(torch.tensor([[RADIUS]])) == pytest.approx(float(plain.score(torch.tensor([[RADIUS]]))), abs=0.01)

    class Grey(BallField):
        def evaluate(self, latents: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
            return super().evaluate(latents, points)[:, 3:]

    grey: Any = Grey()
    losses = ViewEvidence(grey, batch, LossConfig(24), surface_losses).score(torch.tensor([[0.2], [0.25], [0.3]]))
    assert losses.argmin() == 1


def test_models_of_distance_take_pictures() -> None:
    kind = modalities.get("sdf")
    kind.check_observation("views")
    kind.check_observation("photo")
    assert kind.view_losses is surface_losses
    assert modalities.get("radiance").view_losses is radiance_view_losses


def test_what_lies_far_outside_is_held_more_strongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """An artist's toys came out of a model of cars dented and in mottled paint, for a hundredth of IoU."""
    weights: list[float] = []

    def searched(evidence: Any, starts: torch.Tensor, space: Any, config: Any, *rest: Any) -> torch.Tensor:
        weights.append(config.weight)
        return search(evidence, starts, space, config, *rest)

    monkeypatch.setattr(fitting, "search", searched)
    pipe = MNIFPipeline(tiny_surface_model())
    usual = FitSettings(restarts=1, steps=2)
    fit = fitting.fit_observation(pipe, ball(), usual)
    assert (weights, fit.task.notes) == ([3e-3], ())
    far = fit.best.latent + 100.0 * (fit.best.latent - pipe.latents.mean(dim=0))
    monkeypatch.setattr(fitting, "choose_starts", lambda *_: (far[None], ["mean"]))
    weights.clear()
    fit = fitting.fit_observation(pipe, ball(), usual)
    assert weights == [3e-3, 3e-2]
    assert "10 times as strongly as usual; --prior-weight 0.003 follows" in fit.task.notes[0]
    weights.clear()
    assert fitting.fit_observation(pipe, ball(), replace(usual, prior_weight=3e-3)).task.notes == ()
    assert fitting.fit_observation(pipe, ball(), replace(usual, region=Region("front"))).task.notes == ()
    assert weights == [3e-3, 3e-2], "of a part it is held as strongly from the start"
