"""Searching latents for observations: the space, the evidence, starts, cameras, and what a whole fit finds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_model import tiny_image_model, tiny_model, tiny_voxel_model
from torch import Tensor

from mnif_nerf.data.observations.observations import Cells, Photo, Picture, PosedViews, Scan
from mnif_nerf.data.observations.observed_region import Region
from mnif_nerf.data.readers.cloud_files import PointCloud
from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.evidence import PointEvidence, PointPool, ViewEvidence, view_rays
from mnif_nerf.latents.poses import PhotoEvidence, PhotoSearch, PoseSearchConfig, Round, camera_poses
from mnif_nerf.latents.search import LatentSpace, SearchConfig, choose_starts, search
from mnif_nerf.pipelines.fit.fitting import FitSettings, fit_observation, total_steps
from mnif_nerf.pipelines.fit.preparation import prepare
from mnif_nerf.pipelines.fit.scores import agreement, scores, views_psnr
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.radiance_losses import LossConfig
from mnif_nerf.rendering.views import render_view

CAMERA = Intrinsics.default(16)


def table(count: int = 40, dim: int = 4) -> Tensor:
    """Latents that vary a lot along one slanted direction, and little along the others."""
    generator = torch.Generator().manual_seed(0)
    widths = torch.tensor([2.0, 0.5, 0.1, 0.02][:dim])
    turn, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    return 0.3 + (torch.randn(count, dim, generator=generator) * widths) @ turn.T


class Bowl:
    """Evidence with its minimum at a target; only some directions are observed."""

    def __init__(self, target: Tensor, observed: Tensor) -> None:
        self.target, self.observed = target, observed

    def losses(self, latents: Tensor, step: int) -> Tensor:
        return (self.observed * (latents - self.target)).square().sum(dim=1)

    def score(self, latents: Tensor) -> Tensor:
        return self.losses(latents, 0)


# -------------------------------------------------------------------------------------------------------- the search


def test_coordinates_are_white_and_go_back() -> None:
    latents = table()
    for per_dimension in (False, True):
        space = LatentSpace.from_latents(latents, per_dimension)
        white = space.coordinates(latents)
        torch.testing.assert_close(space.latents(white), latents, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(white.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(white.std(dim=0), torch.ones(4), atol=1e-2, rtol=0)
    covariance = torch.cov(LatentSpace.from_latents(latents).coordinates(latents).T)
    torch.testing.assert_close(covariance, torch.eye(4), atol=1e-2, rtol=0)
    few = LatentSpace.from_latents(latents[:2])
    assert torch.isfinite(few.coordinates(latents)).all()
    with pytest.raises(MNIFError, match="came with 1 latents"):
        LatentSpace.from_latents(latents[:1])


def test_a_search_descends_from_every_start_by_itself() -> None:
    latents, target = table(), torch.tensor([0.5, 0.2, 0.1, 0.4])
    bowl, config = Bowl(target, torch.ones(4)), SearchConfig(steps=300, weight=0.0)
    space, starts = LatentSpace.from_latents(latents), latents[:3]
    found = search(bowl, starts, space, config)
    torch.testing.assert_close(found, target.expand(3, -1), atol=0.02, rtol=0)
    short = dataclasses.replace(config, steps=10)
    alone = search(bowl, starts[1:2], space, short)
    torch.testing.assert_close(search(bowl, starts, space, short)[1:2], alone, atol=1e-6, rtol=1e-5)


def test_what_is_not_observed_follows_along_principal_directions() -> None:
    """One coordinate of a training latent is seen: the whitened prior finds others, the prior per dimension cannot."""
    latents = table()
    errors = {}
    for regulariser in ("whitened", "per-dimension", "none"):
        config = SearchConfig(steps=300, weight=1e-3, regulariser=regulariser)
        space, mean = config.space(latents), latents.mean(dim=0)
        observed = torch.tensor([1.0, 0.0, 0.0, 0.0])
        found = search(Bowl(latents[:8], observed), mean.expand(8, -1), space, config)
        errors[regulariser] = float((found - latents[:8]).norm(dim=1).mean())
    assert errors["whitened"] < 0.5 * errors["per-dimension"]
    assert errors["whitened"] <= errors["none"]


def test_starts_come_from_mean_data_and_prior() -> None:
    latents = table()
    bowl = Bowl(latents[7], torch.ones(4))
    starts, names = choose_starts(bowl, latents, torch.full((2, 4), 9.0), 4)
    assert names[0] == "mean"
    assert names[1] == "nearest 7"
    assert names[2] == "sample 0"
    torch.testing.assert_close(starts[0], latents.mean(dim=0))
    torch.testing.assert_close(starts[1], latents[7])
    assert choose_starts(bowl, latents, latents[:0], 1)[1] == ["mean"]
    many, words = choose_starts(bowl, latents[:2], latents[:0], 6)
    assert len(many) == 6
    assert len(many.unique(dim=0)) == 6
    assert words[3:] == ["draw 3", "draw 4", "draw 5"]


def test_settings_out_of_range() -> None:
    for message, settings in {
        "`steps` is 0": {"steps": 0},
        "`lr` 0": {"lr": 0.0},
        "`weight` -1": {"weight": -1.0},
        "`regulariser` nothing": {"regulariser": "nothing"},
    }.items():
        with pytest.raises(MNIFError, match=message):
            SearchConfig(**settings)  # type: ignore[arg-type]
    for message, settings in {
        "`restarts` 0 leaves nothing to do": {"restarts": 0},
        "`restarts` 100": {"restarts": 100},
        "`radius` 0.1": {"radius": 0.1},
        "`steps` is 0": {"steps": 0},
        "`seed` -1: must be 0 to 2147483647": {"seed": -1},
        "`seed` 100000000000000": {"seed": 10**14},
    }.items():
        with pytest.raises(MNIFError, match=message):
            FitSettings(**settings)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ the evidence


@pytest.fixture(scope="module")
def radiance() -> MNIFPipeline:
    """A random radiance model without bounds."""
    return MNIFPipeline(dataclasses.replace(tiny_model(12), cells=None))


def views_of(pipe: MNIFPipeline, latent: Tensor, angles: tuple[tuple[float, float], ...]) -> PosedViews:
    """Pictures of the model's own object: a fit can explain them exactly."""
    item = pipe.decode(latent)
    poses = torch.stack([orbit_pose(*angle) for angle in angles])
    outs = [render_view(item.field, pose, CAMERA, None, 0.5) for pose in poses]
    images = np.stack([np.rint(255 * out["rgb"].numpy()).astype(np.uint8) for out in outs])
    masks = np.stack([out["accumulation"][..., 0].numpy() > 0.5 for out in outs])
    intrinsics = np.tile(np.float32([CAMERA.focal, CAMERA.cx, CAMERA.cy]), (len(poses), 1))
    return PosedViews(images, masks, poses.numpy(), intrinsics, tuple(map(str, range(len(poses)))))


def test_rays_are_those_of_the_pixels_and_cut_to_the_cells() -> None:
    images = torch.arange(2 * 16 * 16 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, 16, 16, 3)
    poses = torch.stack([orbit_pose(20, 30), orbit_pose(10, 200)])
    intrinsics = torch.tensor([[CAMERA.focal, 8.0, 8.0]] * 2)
    rays = view_rays(images, None, poses, intrinsics)
    assert (rays.far > rays.near).all()
    assert (rays.mask == 1).all()
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones_like(rays.near), atol=1e-5, rtol=0)
    cells = torch.zeros(8, 8, 8, dtype=torch.bool)
    cells[3:5, 3:5, 3:5] = True
    cut = view_rays(images, None, poses, intrinsics, cells)
    assert 0 < cut.near.shape[1] < 0.5 * rays.near.shape[1]
    middle = cut.origins + 0.5 * (cut.near + cut.far).unsqueeze(-1) * cut.directions
    assert float(middle.abs().max()) < 0.2
    # A ray keeps its own pixel.
    first = cut.directions[0, 0]
    row = (rays.directions[0] - first).norm(dim=1).argmin()
    torch.testing.assert_close(rays.rgb[0, row], cut.rgb[0, 0])


def test_the_right_latent_explains_its_pictures_best(radiance: MNIFPipeline) -> None:
    views = views_of(radiance, radiance.latents[3], ((20, 0), (30, 120)))
    rays = view_rays(*(torch.from_numpy(x) for x in (views.images, views.silhouettes, views.poses, views.intrinsics)))
    evidence = ViewEvidence(radiance.model.field, rays, LossConfig(samples_per_ray=48))
    losses = evidence.score(radiance.latents)
    assert int(losses.argmin()) == 3
    assert float(losses[3]) < 0.2 * float(losses.topk(2, largest=False).values[1])
    rays.near = rays.near[:, :0]
    with pytest.raises(MNIFError, match="no pixel of the pictures looks into the scene box"):
        ViewEvidence(radiance.model.field, rays, LossConfig())


@pytest.mark.parametrize("head", ["signed", "logit", "distance"])
def test_points_of_solids_are_explained_by_their_latent(head: str) -> None:
    model = tiny_voxel_model(head=head)
    pipe = MNIFPipeline(model)
    cells = pipe.instance(2).occupancy(16)
    prepared = prepare(model, Cells(cells), Region())
    assert isinstance(prepared.evidence, PointEvidence)
    assert int(prepared.evidence.score(pipe.latents).argmin()) == 2
    batch = prepared.evidence.draw(2, 0)
    assert batch.points.abs().max() <= 1
    assert set(batch.targets.unique().tolist()) == {-1.0, 1.0}


def test_whole_solids_are_fitted_by_distances_where_those_were_learned() -> None:
    model = tiny_voxel_model(head="distance")
    model.training = {"cut_cells": 2.0, "unit_cells": 8}
    cells = np.zeros((16, 16, 16), dtype=bool)
    cells[4:12, 4:12, 4:12] = True
    whole = prepare(model, Cells(cells), Region()).evidence
    assert isinstance(whole, PointEvidence)
    batch = whole.draw(1, 0)
    assert batch.cut == 4.0
    off = (0.25 - batch.points[0].abs().amax(dim=0) * 0.5).clamp(max=0.25) * 16  # half cells of the field's eight
    inside = batch.targets[0, 0] > 0
    torch.testing.assert_close(batch.targets[0, 0][inside], off[inside].clamp(max=4.0), atol=1e-4, rtol=0)
    assert batch.targets.min() == -4.0
    part = prepare(model, Cells(cells), Region("front")).evidence
    assert isinstance(part, PointEvidence)
    assert part.draw(1, 0).cut == 1.0


def test_pools_share_the_points() -> None:
    pools = [
        PointPool(torch.zeros(5, 3), torch.ones(5, 1), 0.75),
        PointPool(torch.ones(500, 3), -torch.ones(500, 1), 0.25),
        PointPool(torch.zeros(0, 3), torch.zeros(0, 1), 1.0),
    ]
    evidence = PointEvidence(tiny_voxel_model().field, pools, 40)
    targets = evidence.draw(1, 0).targets
    assert (targets > 0).sum() == 30
    assert (targets < 0).sum() == 10
    with pytest.raises(MNIFError, match="nothing was observed"):
        PointEvidence(tiny_voxel_model().field, pools[2:])


# ---------------------------------------------------------------------------------------------------------- cameras


def test_camera_poses_are_orbit_poses_and_stay_rigid() -> None:
    plain = torch.tensor([[0.7, 0.3, 0.0, 0.0, 0.0, 0.0]])
    expected = orbit_pose(float(torch.rad2deg(plain[0, 1])), float(torch.rad2deg(plain[0, 0])), 1.3)
    torch.testing.assert_close(camera_poses(plain, 1.3)[0], expected, atol=1e-5, rtol=0)
    moved = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    poses = camera_poses(moved, 1.3)
    rotation = poses[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(5, -1, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(5), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(poses.square().sum() + poses.sum(), moved)
    assert bool((gradient != 0).any(dim=0).all())
    # The origin is seen where the shift says: to the left and above for a negative one.
    shifted = camera_poses(torch.tensor([[0.0, 0.2, 0.0, 0.0, -0.5, -0.25]]), 1.3)[0]
    origin = torch.linalg.inv(shifted) @ torch.tensor([0.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(origin[:2] / origin[2], torch.tensor([-0.1, -0.05]), atol=1e-5, rtol=0)


def test_the_camera_of_a_known_object_is_found(radiance: MNIFPipeline) -> None:
    """With the latent near, the search has only to find the pose; the object is no solid of revolution."""
    angle = (25.0, 130.0)
    views = views_of(radiance, radiance.latents[1], (angle,))
    assert views.silhouettes is not None
    config = PoseSearchConfig(
        azimuths=12,
        elevations=(0.0, 30.0),
        schedule=(Round(24, 8, 96, 12, moving=False), Round(6, 25, 128, 16, moving=True)),
        last=Round(2, 30, 128, 24, moving=True),
    )
    space = LatentSpace.from_latents(radiance.latents)
    for parameter in radiance.model.field.parameters():
        parameter.requires_grad_(False)
    photo = PhotoEvidence(
        torch.from_numpy(views.images[0]).float() / 255, torch.from_numpy(views.silhouettes[0]), CAMERA, radius=1.3
    )
    searcher = PhotoSearch(radiance.model.field, photo, space, SearchConfig(lr=0.01, weight=1e-3), config)
    steps: list[int] = []
    found = searcher.run(radiance.latents[1:2], 2, lambda: steps.append(1))
    assert len(steps) == config.total_steps()
    assert found.losses[0] <= found.losses[1]
    truth = orbit_pose(*angle)[:3, 3] / 1.3
    position = torch.nn.functional.normalize(found.poses[0, :3, 3], dim=0)
    assert float(torch.rad2deg(torch.acos((truth @ position).clamp(-1, 1)))) < 12


# ------------------------------------------------------------------------------------------------------- whole fits


def test_pictures_are_fitted(radiance: MNIFPipeline) -> None:
    latent = torch.lerp(radiance.latents.mean(dim=0), radiance.latents[0], 0.3)  # no training instance
    angles = ((20.0, 0.0), (30.0, 120.0), (10.0, 240.0), (40.0, 60.0))
    views = views_of(radiance, latent, angles)
    settings = FitSettings(restarts=3, steps=80, views=(0, 2), lr=0.05)
    steps: list[int] = []
    fit = fit_observation(radiance, views, settings, on_step=lambda: steps.append(1))
    assert len(steps) == total_steps(views, settings) == 80
    assert fit.losses == sorted(fit.losses)
    assert "mean" in fit.starts
    assert len(fit.objects) == 3
    assert isinstance(fit.task.truth, PosedViews)
    assert fit.task.truth.names == ("1", "3")
    found = scores(fit)
    assert found["fit"]["psnr_seen"] > found["before"]["psnr_seen"] + 4
    assert found["fit"]["psnr_unseen"] > found["before"]["psnr_unseen"] + 1
    again = fit_observation(radiance, views, settings)
    torch.testing.assert_close(again.best.latent, fit.best.latent, rtol=0, atol=0)
    assert views_psnr(fit.best, views.take(np.array([0, 2]))) == pytest.approx(found["fit"]["psnr_seen"])
    model = dataclasses.replace(radiance.model, training={"carve_length": 0.3})
    evidence = prepare(model, views, Region(), (0, 2)).evidence
    assert evidence.config.carve_length == 0.3, "as in training"
    with pytest.raises(MNIFError, match="`views` 9: there are 4 pictures"):
        fit_observation(radiance, views, FitSettings(views=(9,)))
    with pytest.raises(MNIFError, match="choose pictures with `views`"):
        fit_observation(radiance, views, FitSettings(region=Region("front")))


def test_half_a_shape_is_completed() -> None:
    pipe = MNIFPipeline(tiny_voxel_model(num_instances=10, head="logit"))
    cells = pipe.decode(pipe.latents[:2].mean(dim=0)).occupancy(16)
    fit = fit_observation(pipe, cells, FitSettings(restarts=2, steps=80, region=Region("front")))
    assert isinstance(fit.task.seen, Cells)
    assert not fit.task.complete
    assert "inner loop" not in fit.starts
    found = scores(fit)
    assert found["fit"]["iou_seen"] > 0.85
    assert found["fit"]["iou_unseen"] > found["before"]["iou_unseen"] + 0.1
    whole = fit_observation(pipe, cells, FitSettings(restarts=2, steps=20))
    assert "inner loop" in whole.starts
    assert set(agreement(whole)) == {"equally_good", "spread", "measure", "agree"}
    nothing = cells.copy()
    nothing[8:] = False
    with pytest.raises(MNIFError, match="holds no cell that is inside"):
        fit_observation(pipe, nothing, FitSettings(region=Region("front")))


def test_starts_that_disagree_are_told_apart() -> None:
    pipe = MNIFPipeline(tiny_voxel_model(num_instances=10, head="logit"))
    cells = pipe.instance(0).occupancy(16)
    fit = fit_observation(pipe, cells, FitSettings(restarts=2, steps=2))
    other = dataclasses.replace(fit, objects=[pipe.instance(0), pipe.instance(3)], losses=[1.0, 1.1])
    told = agreement(other)
    assert told["equally_good"] == 2
    assert told["spread"] < 0.9
    assert told["agree"] is False
    assert agreement(dataclasses.replace(other, objects=[pipe.instance(0)] * 2))["agree"] is True
    assert agreement(dataclasses.replace(other, losses=[1.0, 2.0]))["equally_good"] == 1


def test_a_scan_is_fitted_by_both_kinds_of_models(radiance: MNIFPipeline) -> None:
    pipe = MNIFPipeline(tiny_voxel_model(num_instances=10, head="logit"))
    for model in (pipe, radiance):
        mesh = model.instance(1).mesh(24, colors=False)
        points = np.asarray(mesh.vertices)[:, [2, 0, 1]].astype(np.float32)
        normals = np.asarray(mesh.vertex_normals)[:, [2, 0, 1]].astype(np.float32)
        fit = fit_observation(model, Scan(PointCloud(points, normals)), FitSettings(restarts=2, steps=60))
        found = scores(fit)
        assert found["fit"]["distance_seen"] < 0.7 * found["before"]["distance_seen"]
        back = fit_observation(model, Scan(PointCloud(points)), FitSettings(restarts=1, steps=2, region=Region("back")))
        assert isinstance(back.task.seen, Scan)
        assert (back.task.seen.cloud.points[:, 0] < 0).all()
        assert any("estimated" in note for note in back.task.notes)


def test_a_picture_is_fitted_and_its_seen_half_alone() -> None:
    pipe = MNIFPipeline(tiny_image_model(num_instances=10))
    pixels = np.asarray(pipe.decode(pipe.latents[:2].mean(dim=0)).picture(8))
    fit = fit_observation(pipe, pixels, FitSettings(restarts=1, steps=150))
    found = scores(fit)
    assert found["fit"]["psnr_seen"] > found["before"]["psnr_seen"] + 6
    spoiled = pixels.copy()
    spoiled[4:] = 255 - spoiled[4:]
    settings = FitSettings(restarts=1, steps=60, region=Region("top"))
    first, second = (fit_observation(pipe, each, settings).best.latent for each in (pixels, spoiled))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_observations_of_another_modality(radiance: MNIFPipeline) -> None:
    shape, picture = MNIFPipeline(tiny_voxel_model()), MNIFPipeline(tiny_image_model())
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(
        MNIFError, match=r"a plain picture cannot be fitted with this model of modality 'voxel'.*voxels"
    ):
        fit_observation(shape, Picture(pixels))
    with pytest.raises(
        MNIFError, match="a single picture of an object cannot be fitted with this model of modality 'voxel'"
    ):
        fit_observation(shape, Photo(pixels, None))
    with pytest.raises(
        MNIFError, match=r"voxels cannot be fitted with this model of modality 'image'.*give a plain picture"
    ):
        fit_observation(picture, Cells(np.eye(8, dtype=bool)[None].repeat(8, 0)))
    with pytest.raises(MNIFError, match=r"a plain picture .* modality 'radiance'"):
        fit_observation(radiance, Picture(pixels))
    with pytest.raises(MNIFError, match="a picture of 1 channels"):
        fit_observation(picture, Picture(pixels[..., :1]))
    with pytest.raises(MNIFError, match="`views` chooses among posed pictures"):
        fit_observation(shape, np.eye(8, dtype=bool)[None].repeat(8, 0), FitSettings(views=(1,)))


def test_the_pipelines_method_returns_objects(radiance: MNIFPipeline) -> None:
    views = views_of(radiance, radiance.latents[0], ((20.0, 0.0),))
    objects = radiance.fit(views, restarts=2, steps=3)
    assert [item.name for item in objects] == ["fit", "fit-1"]
    assert objects[0].render(resolution=8).size == (8, 8)
