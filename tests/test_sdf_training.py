"""Stage 1 of signed distance and colour: its loss on objects, its scores, and pictures of its data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import tiny_settings, write_tiny_surfaces

from mnif_nerf.fields.losses import DistanceLoss
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.model import LatentSettings, Stage1Model
from mnif_nerf.metrics.surfaces import surface_scores
from mnif_nerf.modalities.sdf_training import SurfaceTask
from mnif_nerf.pipelines.model_folder import read_model
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.rendering.batch import PointBatch
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.splats import render_splats

RADII = torch.tensor([0.2, 0.3])
COLORS = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.3, 0.8]])


def balls(step: int, points: int = 256) -> PointBatch:
    """Two balls, each of one colour."""
    generator = torch.Generator().manual_seed(step)
    way = torch.nn.functional.normalize(torch.randn(2, 3, points, generator=generator), dim=1)
    reach = RADII[:, None] + 0.05 * torch.randn(2, points, generator=generator)
    targets = torch.cat([COLORS[:, :, None].expand(-1, -1, points), (reach - RADII[:, None])[:, None]], dim=1)
    return PointBatch(torch.arange(2), 2 * way * reach[:, None], targets)


class Analytic:
    """A ball that is red, off by `error` in radius and by `shade` in every colour."""

    head = "sdf"

    def __init__(self, error: float = 0.0, shade: float = 0.0) -> None:
        self.error, self.shade, self.weights = error, shade, [torch.zeros(1)]

    def evaluate(self, points: torch.Tensor) -> torch.Tensor:
        raw = -10.0 * (0.5 * points.norm(dim=0) - 0.3 - self.error)
        red = torch.logit(torch.tensor([0.8, 0.2, 0.2]) + self.shade)
        return torch.cat([red[:, None].expand(-1, points.shape[1]), raw[None]])


def ball_points(count: int = 20_000) -> SimpleNamespace:
    generator = np.random.default_rng(0)
    kind = np.repeat([0, 3], count).astype(np.uint8)
    points = generator.uniform(-0.5, 0.5, (2 * count, 3)).astype(np.float32)
    points[count:] *= 0.3 / np.linalg.norm(points[count:], axis=1, keepdims=True)
    distance = np.linalg.norm(points, axis=1) - 0.3
    color = np.tile(np.float32([0.8, 0.2, 0.2]), (2 * count, 1))
    return SimpleNamespace(points=points, distance=distance, color=color, kind=kind)


def test_a_field_learns_two_balls_and_their_colours() -> None:
    spec = FieldSpec(3, 4, width=16, hidden_layers=1, num_bases=4, latent_dim=4, w0=5.0, head="sdf")
    model = Stage1Model(spec, ["a", "b"], SurfaceTask(DistanceLoss()), LatentSettings())
    optimizer = torch.optim.Adam(model.field.parameters(), lr=5e-3)
    rows = torch.optim.SparseAdam(list(model.latents.parameters()), lr=2e-2)
    losses = []
    for step in range(150):
        parts = model(balls(step), step)["losses"]
        assert list(parts) == ["sdf", "latent"]
        loss = sum(parts.values())
        model.zero_grad()
        loss.backward()
        optimizer.step()
        rows.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    for row, radius in enumerate(RADII.tolist()):
        compact = model.field.collapse(model.latents.weight[row].detach())
        points = torch.tensor([[2 * radius - 0.06, 2 * radius + 0.06], [0.0, 0.0], [0.0, 0.0]])
        raw = compact.evaluate(points)
        assert raw[3, 0] > 0 > raw[3, 1], "the last channel is positive inside"
        assert (raw[:3].sigmoid().mean(dim=1) - COLORS[row]).abs().max() < 0.15


def test_scores_of_a_field_that_is_off() -> None:
    known = ball_points()
    perfect = surface_scores(Analytic(), known)
    assert perfect["iou"] > 0.995
    assert perfect["color"] > 60
    assert perfect["distance"] < 1e-5
    off = surface_scores(Analytic(error=0.02, shade=0.1), known)
    assert off["iou"] == pytest.approx((0.3 / 0.32) ** 3, abs=0.01)
    assert off["color"] == pytest.approx(20.0, abs=0.01)
    assert off["distance"] == pytest.approx(0.02, abs=1e-4)
    known.color = None
    assert list(surface_scores(Analytic(), known)) == ["iou", "distance"]


def test_splats_show_the_near_side_of_a_surface_in_its_colours() -> None:
    known = ball_points()
    surface = known.kind == 3
    points = torch.from_numpy(known.points[surface])
    normals = torch.nn.functional.normalize(points, dim=1)
    colors = torch.where(points[:, :1] > 0, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9]))
    camera = Intrinsics.default(48)
    front = render_splats(points, normals, colors, orbit_pose(0.0, 0.0), camera)
    middle = front[24, 24]
    assert middle[0] > 0.5 > middle[2], "+x is the front, and red"
    assert render_splats(points, normals, colors, orbit_pose(0.0, 180.0), camera)[24, 24, 2] > 0.5
    assert (front[0] == 1).all()
    covered = (front < 0.99).any(dim=2)
    radius = 0.3 / (1.3**2 - 0.3**2) ** 0.5 * camera.focal
    assert covered.sum() == pytest.approx(np.pi * radius**2, rel=0.15)
    grey = render_splats(points, normals, None, orbit_pose(0.0, 0.0), camera)
    assert (grey[24, 24] - grey[24, 24, 0]).abs().max() < 1e-6


def test_splats_hide_what_lies_closely_behind_through_the_gaps_of_few_points() -> None:
    generator = np.random.default_rng(0)
    places = torch.from_numpy(generator.uniform(-0.2, 0.2, (3000, 2)).astype(np.float32))
    depth = torch.where(torch.arange(3000) % 2 == 0, 0.03, 0.0)[:, None]
    points = torch.cat([depth, places], dim=1)
    colors = torch.where(depth > 0, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    normals = torch.tensor([1.0, 0.0, 0.0]).expand(3000, 3)
    picture = render_splats(points, normals, colors, orbit_pose(0.0, 0.0), Intrinsics.default(128))
    within = picture[45:83, 45:83].reshape(-1, 3)
    assert (within[:, 2] > within[:, 0]).float().mean() < 0.01, "the blue sheet behind shows through"
    assert (within.min(dim=1).values < 0.9).all(), "holes"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_surfaces(tmp_path_factory.mktemp("data") / "balls", {"train": 6, "test": 3})


@pytest.mark.parametrize("adaptation", ["auto-decoding", "meta-learning"])
def test_a_run_trains_scores_and_leaves_a_model(data: Path, tmp_path: Path, adaptation: str) -> None:
    changes = {"pipeline.adaptation": adaptation, "pipeline.datamanager.on_surface_share": 0.2}
    run = TrainingRun(tiny_settings(data, tmp_path, 60, method="mnif-sdf-lite", **changes), say=lambda text: None)
    before = run.evaluate(0)
    run.train()
    after = run.evaluate(60)
    assert set(after) == {f"{prefix}{name}" for prefix in ("", "unseen_") for name in ("iou", "color", "distance")}
    assert after["distance"] < before["distance"]
    item, collapse = run.evaluation.seen(run.model)[0], run.model.field.collapse
    collapsed: list[int] = []
    run.model.field.collapse = lambda latent: (collapsed.append(1), collapse(latent))[1]
    picture = run.evaluation.score(run.fields, item, with_pictures=True).pictures["img"]
    assert picture.shape == (16, 32, 3)
    assert len(collapsed) <= 1, "what is scored and drawn is collapsed once"
    assert (picture[:, :16] < 0.99).any(), "the data's points stand beside the reconstruction"
    stored = read_model(run.folder / "model")
    assert (stored.modality, stored.grid, stored.adaptation["method"]) == ("sdf", None, adaptation)
    assert stored.field.spec.head == "sdf"
    kept = json.loads((run.folder / "model" / "config.json").read_text())["training"]
    assert (kept["truncation"], kept["on_surface_share"]) == (stored.encoding.truncation, 0.2)
    assert stored.encoding.distance == run.settings.pipeline.model.distance_loss()


def test_data_without_colour_trains_a_field_of_one_channel(tmp_path: Path) -> None:
    data = write_tiny_surfaces(tmp_path / "balls", {"train": 4}, color=False)
    run = TrainingRun(tiny_settings(data, tmp_path, 5, method="mnif-sdf-lite"), say=lambda text: None)
    run.train()
    assert read_model(run.folder / "model").field.spec.out_features == 1
    assert set(run.evaluate(5)) == {"iou", "distance"}
