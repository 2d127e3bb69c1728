"""Meshes: a sphere's known volume, orientation, colours, files and limits."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
import trimesh
from tiny_model import Ball, Balls

from mnif_nerf import machine
from mnif_nerf.errors import MNIFError
from mnif_nerf.export import density
from mnif_nerf.export.decimate import decimate
from mnif_nerf.export.density import density_grid, surface_level
from mnif_nerf.export.mesh import MeshOptions, field_to_mesh, mesh_report, surface_colors
from mnif_nerf.export.mesh_files import linear_from_srgb, to_export_axes, write_mesh
from mnif_nerf.export.voxels import field_to_occupancy
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.rendering.occupancy import grid_points

VOLUME = 4 / 3 * np.pi * 0.3**3


def test_sphere_volume_orientation_and_watertightness() -> None:
    mesh = field_to_mesh(Ball(), resolution=48)
    report = mesh_report(mesh)
    assert report["watertight"]
    assert report["components"] == report["components_found"] == 1
    assert report["volume"] == pytest.approx(VOLUME, rel=0.01)
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(0.3, abs=0.004)
    assert (np.einsum("ij,ij->i", mesh.face_normals, mesh.triangles_center) > 0).all()


def test_resolutions_describe_the_same_surface() -> None:
    coarse, fine = (field_to_mesh(Ball(), resolution=r, options=MeshOptions(colors=False)).volume for r in (32, 96))
    assert coarse == pytest.approx(fine, rel=0.02)


def test_object_that_reaches_the_box_is_closed() -> None:
    mesh = field_to_mesh(Ball(radius=0.6), resolution=24)
    assert mesh.is_watertight
    assert mesh.volume > 0
    assert np.abs(mesh.vertices).max() <= 0.5 + 0.5 / 24


def test_the_level_follows_the_head() -> None:
    """The authors' densities end at 10: at the usual level of 22.2 nothing was found in their models."""
    ball = CompactField([torch.zeros(4, 3)], [torch.tensor([0.0, 0.0, 0.0, 30.0])], head="radiance-authors")
    cells = torch.zeros(8, 8, 8, dtype=torch.bool)
    cells[2:6, 2:6, 2:6] = True
    mesh = field_to_mesh(ball, 16, cells=cells)
    assert mesh.metadata["level"] == 5.0
    assert field_to_occupancy(ball, 16, cells=cells).any()


def test_surface_level_makes_a_layer_half_opaque() -> None:
    assert 1 - np.exp(-surface_level(0.5) / 32) == pytest.approx(0.5)
    assert 1 - np.exp(-surface_level(2.0) * 4 / 32) == pytest.approx(0.5)


def test_lower_level_is_fatter() -> None:
    assert (
        field_to_mesh(Ball(), 32, options=MeshOptions(level=5.0)).volume
        > field_to_mesh(Ball(), 32, options=MeshOptions(level=50.0)).volume
    )


def test_density_grid_equals_asking_every_point() -> None:
    field = Ball(center=(0.1, -0.05, 0.0))
    reference = field.density(grid_points(20, 0.5)).view(20, 20, 20)
    assert torch.allclose(density_grid(field, 20, chunk=333), reference)
    assert torch.allclose(density_grid(field, 20, chunk=10**6), reference)


def test_coarse_pass_loses_nothing_near_the_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    field = Balls(Ball(), Ball(0.05, (0.4, 0.4, 0.4)))
    monkeypatch.setattr(density, "COARSE_RESOLUTION", 32)
    skipped = density_grid(field, 64)
    reference = field.density(grid_points(64, 0.5)).view(64, 64, 64)
    assert (skipped == 0).float().mean() > 0.3
    assert torch.equal(skipped > 10, reference > 10)
    assert torch.allclose(skipped[reference > 5], reference[reference > 5])


def test_cells_bound_the_object() -> None:
    cells = torch.zeros(8, 8, 8, dtype=torch.bool)
    cells[4:] = True
    grid = density_grid(Ball(), 24, cells=cells)
    assert (grid[:12] == 0).all()
    assert torch.allclose(grid[12:], density_grid(Ball(), 24)[12:])
    half = field_to_mesh(Ball(), 48, cells=cells)
    assert half.is_watertight
    assert half.volume == pytest.approx(VOLUME / 2, rel=0.05)


def test_largest_shell_is_kept_and_all_are_counted() -> None:
    field = Balls(Ball(0.2, (-0.2, 0, 0)), Ball(0.1, (0.3, 0, 0)))
    largest, everything = (field_to_mesh(field, 48, options=MeshOptions(keep=keep)) for keep in ("largest", "all"))
    assert mesh_report(largest)["components"] == 1
    assert mesh_report(largest)["components_found"] == 2
    assert mesh_report(largest)["volume_lost"] == pytest.approx(1 / 9, abs=0.01)
    assert mesh_report(everything)["volume_lost"] == 0.0
    assert mesh_report(everything)["components"] == 2
    assert largest.vertices[:, 0].max() < 0.05
    assert largest.is_watertight


def test_colors_equal_the_field() -> None:
    field = Ball()
    mesh = field_to_mesh(field, 48)
    expected = field.radiance(torch.tensor(np.array(mesh.vertices), dtype=torch.float32))[0].numpy()
    seen = mesh.visual.vertex_colors[:, :3] / 255
    assert np.abs(seen - expected).max() < 0.05  # the inward normal of a triangle mesh is not exactly radial
    assert np.abs(seen - expected).mean() < 0.005


def test_surface_colors_are_composited_along_the_normal() -> None:
    class Layers(torch.nn.Module):
        def radiance(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            red = (points[:, 2:] > -0.01).float()  # a white-hot skin that is nearly transparent, over black
            return red.expand(-1, 3), torch.where(points[:, 2] > -0.01, 5.0, 500.0)

    color = surface_colors(Layers(), np.zeros((3, 3)), np.array([[0.0, 0, 1]] * 3))
    depths = (np.arange(4) + 0.5) / 4 / 32
    alpha = 1 - np.exp(-np.where(depths < 0.01, 5.0, 500.0) / 128)
    weights = alpha * np.concatenate([[1], np.cumprod(1 - alpha)[:-1]])
    assert color == pytest.approx(weights[depths < 0.01].sum() / weights.sum(), abs=1e-4)


def test_smoothing_keeps_volume_and_decimation_keeps_colors() -> None:
    field = Ball()
    mesh = field_to_mesh(field, 48, options=MeshOptions(smooth=10, max_faces=800))
    assert len(mesh.faces) <= 800
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(VOLUME, rel=0.03)
    expected = field.radiance(torch.tensor(np.array(mesh.vertices), dtype=torch.float32))[0].numpy()
    assert np.abs(mesh.visual.vertex_colors[:, :3] / 255 - expected).mean() < 0.02


def test_export_axes_are_a_rotation() -> None:
    mesh = field_to_mesh(Balls(Ball(0.2), Ball(0.1, (0.25, 0, 0.1))), 32)
    turned = to_export_axes(mesh)
    assert turned.vertices == pytest.approx(np.array(mesh.vertices)[:, [1, 2, 0]])
    assert turned.volume == pytest.approx(mesh.volume)
    assert to_export_axes(turned) is turned
    assert (turned.visual.vertex_colors == mesh.visual.vertex_colors).all()


@pytest.mark.parametrize("kind", ["glb", "ply", "obj", "stl"])
def test_files_read_back(kind: str, tmp_path) -> None:
    mesh = field_to_mesh(Ball(0.2, (0.2, 0.0, 0.1)), 32)
    path = write_mesh(mesh, tmp_path / f"ball.{kind}")
    again = trimesh.load(path, force="mesh", skip_materials=True)
    assert again.is_watertight
    assert again.volume == pytest.approx(mesh.volume, rel=1e-4)
    axes = [1, 2, 0] if kind in ("glb", "obj") else [0, 1, 2]
    assert again.bounds == pytest.approx(mesh.bounds[:, axes], abs=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [f"ball.{kind}"]
    if kind == "stl":
        return
    colors = mesh.visual.vertex_colors[:, :3] / 255
    colors = linear_from_srgb(colors) if kind == "glb" else colors
    turned = np.array(mesh.vertices)[:, axes]
    nearest = np.linalg.norm(turned[:, None] - np.array(again.vertices)[None, :60], axis=-1).argmin(axis=0)
    assert again.visual.vertex_colors[:60, :3] / 255 == pytest.approx(colors[nearest], abs=2 / 255)


def test_glb_is_well_formed_and_names_a_non_metal_material(tmp_path) -> None:
    mesh = field_to_mesh(Ball(), 16)
    content = write_mesh(mesh, tmp_path / "ball.glb").read_bytes()
    magic, version, length = struct.unpack("<4sII", content[:12])
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size = struct.unpack("<I", content[12:16])[0]
    tree = json.loads(content[20 : 20 + size])
    assert size % 4 == 0
    assert tree["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0
    for view, accessor in zip(tree["bufferViews"], tree["accessors"]):
        width = {"VEC3": 12, "SCALAR": 4}[accessor["type"]]
        assert view["byteLength"] == accessor["count"] * width
        assert view["byteOffset"] % 4 == 0
    start = 20 + size + 8 + tree["bufferViews"][0]["byteOffset"]
    positions = np.frombuffer(content[start : start + 12 * len(mesh.vertices)], dtype=np.float32).reshape(-1, 3)
    assert positions == pytest.approx(np.array(mesh.vertices)[:, [1, 2, 0]], abs=1e-6)


def test_object_meshes_export_through_the_same_writer(tmp_path) -> None:
    mesh = to_export_axes(field_to_mesh(Ball(), 16))
    mesh.export(str(tmp_path / "a.glb"))
    assert (tmp_path / "a.glb").read_bytes() == write_mesh(mesh, tmp_path / "b.glb").read_bytes()
    mesh.export(tmp_path / "a.off")  # what we do not write ourselves stays trimesh's
    assert trimesh.load(tmp_path / "a.off").is_watertight


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": -1.0}, "level"),
        ({"level": float("nan")}, "level"),
        ({"level": 1e9}, "reaches"),
        ({"keep": "some"}, "keep"),
        ({"smooth": -1}, "smooth"),
        ({"max_faces": 1}, "`max_faces` 1"),
        ({"resolution": 1}, "resolution"),
        ({"resolution": 100_000}, "GiB"),
    ],
)
def test_bad_requests_are_one_sentence(options: dict, words: str) -> None:
    with pytest.raises(MNIFError, match=words) as caught:
        field_to_mesh(Ball(), options.pop("resolution", 16), options=MeshOptions(**options))
    assert "\n" not in str(caught.value)


def test_memory_limit_names_a_resolution_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 24 * 100**3)
    with pytest.raises(MNIFError, match="use at most 92"):
        field_to_mesh(Ball(), 128)
    assert field_to_mesh(Ball(), 92).is_watertight


def test_damaged_fields_and_meshes_are_refused(tmp_path) -> None:
    class Damaged(Ball):
        def density(self, points: torch.Tensor) -> torch.Tensor:
            return torch.full((len(points),), torch.nan)

    with pytest.raises(MNIFError, match="NaN"):
        field_to_mesh(Damaged(), 16)
    mesh = field_to_mesh(Ball(), 16)
    with pytest.raises(MNIFError, match=r"glb, ply, obj, stl"):
        write_mesh(mesh, tmp_path / "ball.fbx")
    with pytest.raises(MNIFError, match="no triangles"):
        write_mesh(trimesh.Trimesh(), tmp_path / "empty.glb")
    broken = trimesh.Trimesh(np.full((3, 3), np.nan), [[0, 1, 2]], process=False)
    with pytest.raises(MNIFError, match="NaN"):
        write_mesh(broken, tmp_path / "broken.glb")
    assert list(tmp_path.iterdir()) == []


def test_decimation_keeps_every_shell_closed_or_says_what_it_takes() -> None:
    field = Balls(Ball(0.2, (-0.2, 0, 0)), Ball(0.1, (0.3, 0, 0)))
    for faces in (200, 9):
        mesh = field_to_mesh(field, 32, options=MeshOptions(keep="all", max_faces=faces))
        assert len(mesh.faces) == faces - faces % 2  # a closed surface has an even number
        assert mesh_report(mesh)["components"] == 2
        assert mesh.is_watertight
    with pytest.raises(MNIFError, match=r"`max_faces` 6 is fewer than this surface can keep .* at least 8"):
        field_to_mesh(field, 32, options=MeshOptions(keep="all", max_faces=6))


def test_decimation_of_an_edge_with_three_triangles() -> None:
    ball = trimesh.creation.icosphere(3)
    fin = [*ball.faces[0][:2], len(ball.vertices)]
    finned = trimesh.Trimesh(
        np.concatenate([ball.vertices, [[0, 0, 3.0]]]), np.concatenate([ball.faces, [fin]]), process=False
    )
    assert 0 < len(decimate(finned, 300).faces) <= 300
