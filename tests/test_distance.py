"""Distance fields: what they say, their pictures by sphere tracing, and their meshes, against boxes and balls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from tiny_model import Rounded

from mnif_nerf.errors import MNIFError
from mnif_nerf.export import dual_mesh
from mnif_nerf.export.distance_mesh import distance_mesh
from mnif_nerf.export.mesh import MeshOptions, NoSurfaceError, mesh_report
from mnif_nerf.export.voxels import field_to_occupancy
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.distance import TRUNCATION, DistanceField
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.near_cells import near_cells
from mnif_nerf.rendering.occupancy import grid_points
from mnif_nerf.rendering.sphere_tracing import render_distance, render_distance_view
from mnif_nerf.rendering.tracing_grid import distance_grid

_TURN = torch.linalg.qr(torch.tensor([[1.0, 0.4, -0.3], [0.2, 1.0, 0.5], [0.6, -0.1, 1.0]]))[0]
BOX = (0.3, 0.2, 0.1)


class Turned(Rounded):
    """A box whose sides are not those of the grid."""

    def evaluate(self, points: torch.Tensor) -> torch.Tensor:
        return super().evaluate(_TURN @ points)


def wild_field(seed: int, channels: int = 4) -> DistanceField:
    """A random network: a sponge of a solid, whose distances are none."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(24, 3), (24, 24), (channels, 24)]
    gains = (6.0, 1.0, 0.4)
    weights = [gain * torch.randn(*shape, generator=generator) / shape[1] ** 0.5 for gain, shape in zip(gains, shapes)]
    biases = [torch.randn(24, generator=generator), torch.randn(24, generator=generator), torch.zeros(channels)]
    return DistanceField(CompactField(weights, biases, head="sdf"))


def test_distances_colours_and_what_solids_say() -> None:
    field = DistanceField(Rounded(radius=0.3))
    points = torch.tensor([[0.35, 0.0, 0.0], [0.0, 0.28, 0.0], [0.0, 0.0, 0.3]])
    assert field.distance(points).tolist() == pytest.approx([0.05, -0.02, 0.0], abs=1e-6)
    assert field.value(points).tolist() == pytest.approx([-1.0, 0.4, 0.0], abs=1e-6)
    color, density = field.radiance(points)
    assert torch.equal(color, field.color(points))
    assert torch.equal(density, field.density(points))
    assert color[0].tolist() == pytest.approx([torch.sigmoid(torch.tensor(4 * 0.35)).item(), 0.5, 0.5])
    distance, slope = field.distance_and_slope(points)
    assert slope[1].tolist() == pytest.approx([0.0, 1.0, 0.0])
    assert torch.allclose(field.gradient(points), -slope / TRUNCATION)
    grey = DistanceField(Rounded(channels=1))
    assert torch.equal(grey.distance(points), distance)
    assert grey.color(points).unique().numel() == 1
    assert (field.has_color, grey.has_color) == (True, False)


@pytest.mark.parametrize("stretch", [0.7, 1.0, 1.4])
def test_rays_meet_a_ball_where_it_is(stretch: float) -> None:
    """Also where distances grow too slowly, or faster than true ones may."""
    field = DistanceField(Rounded(radius=0.31, stretch=stretch))
    origins, directions = pixel_rays(orbit_pose(25, 40), Intrinsics.default(72))
    out = render_distance(field, origins, directions)
    along = -(origins * directions).sum(-1, keepdim=True)
    aside = (origins.square().sum(-1, keepdim=True) - along.square()).clamp(min=0).sqrt()
    depth = along - (0.31**2 - aside.square()).clamp(min=0).sqrt()
    inside, outside = (aside < 0.308)[:, 0], (aside > 0.3101)[:, 0]
    assert (out["accumulation"][inside] == 1).all()
    assert (out["accumulation"][outside] == 0).all()
    assert (out["depth"] - depth)[inside].abs().max() < 1e-5
    assert (out["normal"] - (origins + depth * directions) / 0.31)[inside].abs().max() < 2e-3
    assert (out["rgb"][outside] == 1).all()


def test_a_sheet_thinner_than_a_step_has_no_holes() -> None:
    """Two thousandths thick, seen from the side, from above and along it, by a field that is not quite a distance."""
    sheet = DistanceField(Rounded((0.3, 0.2, 0.0), radius=0.001, stretch=1.3))
    for elevation in (3.0, 20.0, 70.0):
        pose, camera = orbit_pose(elevation, 40), Intrinsics.default(64)
        origins, directions = pixel_rays(pose, camera)
        t = -origins[:, 2] / directions[:, 2]
        met = ((origins + t[:, None] * directions)[:, :2].abs() < torch.tensor([0.295, 0.195])).all(dim=1)
        assert met.sum() > 20
        assert (render_distance(sheet, origins, directions)["accumulation"][met] == 1).all()


def test_the_paint_is_the_fields_and_is_lit() -> None:
    out = render_distance_view(DistanceField(Rounded(BOX, 0.02)), orbit_pose(0, 0), Intrinsics.default(64))
    grey = render_distance_view(DistanceField(Rounded(BOX, 0.02, channels=1)), orbit_pose(0, 0), Intrinsics.default(64))
    red, green, blue = out["rgb"][32, 32]
    assert red > green + 0.1
    assert blue == pytest.approx(green.item(), abs=0.02)
    assert grey["rgb"][32, 32].std() < 0.05
    assert torch.equal(out["depth"], grey["depth"])
    assert {name: value.shape[-1] for name, value in out.items()} == {
        "rgb": 3,
        "depth": 1,
        "accumulation": 1,
        "normal": 3,
    }


def test_more_rays_only_where_the_picture_changes() -> None:
    field, view = DistanceField(Rounded(BOX, 0.02)), (orbit_pose(20, 45), Intrinsics.default(48))
    plain, finer = (render_distance_view(field, *view, samples=samples) for samples in (1, 2))
    full = render_distance_view(field, view[0], view[1].scaled(2), samples=1)["rgb"]
    full = full.view(48, 2, 48, 2, 3).mean(dim=(1, 3))
    changed = (plain["rgb"] != finer["rgb"]).any(dim=-1)
    assert 0.02 < changed.float().mean() < 0.3
    assert (finer["rgb"] - full).abs().max() < 0.02
    partly = (finer["accumulation"] > 0) & (finer["accumulation"] < 1)
    assert partly.sum() > 20


def test_the_box_cuts_the_solid_and_bounds_hide_it() -> None:
    field = DistanceField(Rounded((0.6, 0.1, 0.1), 0.0))
    out = render_distance(field, torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[-1.0, 0.0, 0.0]]))
    assert out["depth"].item() == pytest.approx(1.5, abs=1e-5)
    assert out["normal"][0].tolist() == [1, 0, 0]
    bounds = torch.ones(8, 8, 8, dtype=torch.bool)
    bounds[4:] = False
    grid = distance_grid(field, bounds=bounds)
    hidden = render_distance(field, torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[-1.0, 0.0, 0.0]]), grid)
    assert hidden["depth"].item() == pytest.approx(2.0, abs=2e-2)


@pytest.mark.parametrize("resolution", [20, 64, 90])
def test_near_cells_miss_no_surface(resolution: int) -> None:
    field = DistanceField(Turned(BOX, 0.004, stretch=1.3))
    near, inside = near_cells(field, resolution)
    points = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    distance = field.distance(points)
    cell = ((points + 0.5) * resolution).long().clamp(max=resolution - 1)
    i, j, k = cell.T
    elsewhere = ~near[i, j, k]
    assert (distance[elsewhere] < 0).equal(inside[i, j, k][elsewhere])
    if resolution >= 64:
        assert near.float().mean() < 0.15


@pytest.mark.parametrize("resolution", [24, 61])
def test_the_mesh_of_a_box_keeps_its_edges(resolution: int) -> None:
    field = DistanceField(Turned(BOX, 0.0))
    meshes = [
        distance_mesh(field, resolution, options=MeshOptions(colors=False), sharp=sharp) for sharp in (False, True)
    ]
    errors = []
    for mesh in meshes:
        assert mesh.is_watertight
        assert mesh.volume > 0
        points, _ = trimesh.sample.sample_surface(mesh, 20_000, seed=0)
        errors.append(float(field.distance(torch.tensor(points, dtype=torch.float32)).square().mean().sqrt()))
    cut, kept = meshes
    assert abs(len(kept.faces) - len(cut.faces)) < 0.02 * len(cut.faces)
    assert errors[1] < 0.3 * errors[0]
    assert kept.volume == pytest.approx(8 * np.prod(BOX), rel=0.1 / resolution)
    assert np.quantile(kept.face_angles.min(axis=1), 0.05) > np.radians(15)
    assert np.quantile(cut.face_angles.min(axis=1), 0.05) < np.radians(5)


def test_the_mesh_of_a_ball_lies_on_it() -> None:
    mesh = distance_mesh(DistanceField(Rounded(radius=0.3, center=(0.1, 0.0, -0.05))), 40)
    radii = np.linalg.norm(mesh.vertices - [0.1, 0.0, -0.05], axis=1)
    assert np.abs(radii - 0.3).max() < 1e-5
    wanted = torch.sigmoid(4 * torch.tensor(np.array(mesh.vertices))).numpy()
    assert np.abs(mesh.visual.vertex_colors[:, :3] / 255 - wanted).max() < 0.003
    assert mesh_report(mesh)["level"] == 0


@pytest.mark.parametrize("seed", [1, 3, 5, 7])
def test_meshes_of_sponges_are_closed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saddles, thin walls and cells that the surface crosses twice; in these, cells also meet along two lines."""
    doubled = []
    find = dual_mesh._doubled_edges
    monkeypatch.setattr(dual_mesh, "_doubled_edges", lambda *given: doubled.append(find(*given)) or doubled[-1])
    field = wild_field(seed)
    mesh = distance_mesh(field, 16, options=MeshOptions(keep="all"))
    assert len(doubled[0]) > 1
    assert len(mesh.faces) > 2000
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    largest = distance_mesh(field, 16)
    assert largest.is_watertight
    assert mesh_report(largest)["components"] == 1


def test_a_level_is_a_distance() -> None:
    field = DistanceField(Rounded(radius=0.3))
    for level in (-0.02, 0.03):
        mesh = distance_mesh(field, 48, options=MeshOptions(level=level))
        assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(0.3 + level, abs=1e-4)


def test_nothing_inside_is_said() -> None:
    field = DistanceField(Rounded(radius=-0.01))
    with pytest.raises(NoSurfaceError, match=r"nothing is inside at the distance 0 \(the least .* is 0\.037"):
        distance_mesh(field, 32)
    broken = CompactField([torch.full((1, 3), float("nan"))], [torch.zeros(1)], head="sdf")
    with pytest.raises(MNIFError, match="damaged"):
        distance_mesh(DistanceField(broken), 32)


def test_voxels_are_where_the_distance_is_negative() -> None:
    field = DistanceField(Turned(BOX, 0.0))
    occupancy = field_to_occupancy(field, 40, skip_empty=False)
    assert (occupancy == (field.distance(grid_points(40, 0.5)) < 0).view(40, 40, 40).numpy()).all()
