"""The renderer against slow, obvious references: a sphere's formula and a loop over all triangles."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from mnif_nerf.data.geometry import raytrace
from mnif_nerf.data.geometry.raytrace import Surface, SurfaceRenderer, brightness, corner_normals, sample_texture
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose


def coloured(mesh: trimesh.Trimesh, color: tuple[float, float, float] = (0.8, 0.4, 0.2)) -> Surface:
    colors = np.broadcast_to(np.asarray(color), (len(mesh.faces), 3, 3)).copy()
    return Surface(np.asarray(mesh.vertices), np.asarray(mesh.faces), colors)


def soup(count: int = 40, seed: int = 0) -> Surface:
    """Random triangles with a colour per corner."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-0.3, 0.3, (count, 1, 3))
    vertices = (centres + rng.uniform(-0.15, 0.15, (count, 3, 3))).reshape(-1, 3)
    return Surface(vertices, np.arange(3 * count).reshape(-1, 3), rng.uniform(0, 1, (count, 3, 3)))


def trace_slowly(surface: Surface, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Every ray against every triangle by solving three linear equations; flat shading, two-sided."""
    result = np.zeros((len(directions), 4))
    for index, direction in enumerate(directions):
        nearest = np.inf
        for face, colors in zip(surface.faces, surface.corner_colors):
            a, b, c = surface.vertices[face]
            system = np.stack([b - a, c - a, -direction], axis=1)
            u, v, t = np.linalg.solve(system, origin - a)
            if u < 0 or v < 0 or u + v > 1 or not 0 < t < nearest:
                continue
            nearest = t
            normal = np.cross(b - a, c - a)
            normal /= np.linalg.norm(normal) * (-1 if normal @ direction > 0 else 1)
            colour = (1 - u - v) * colors[0] + u * colors[1] + v * colors[2]
            result[index] = [*np.clip(colour * brightness(normal), 0, 1), 1]
    return result


def test_tracing_equals_a_loop_over_all_triangles():
    surface = soup()
    rng = np.random.default_rng(1)
    origin = np.array([0.9, -0.7, 0.8])
    directions = rng.uniform(-0.3, 0.3, (300, 3)) - origin
    expected = trace_slowly(surface, origin, directions)
    assert 0.2 < expected[:, 3].mean() < 1.0
    np.testing.assert_allclose(SurfaceRenderer(surface).trace(origin, directions), expected, atol=2e-4)


@pytest.mark.parametrize(("elevation", "azimuth"), [(20, 40), (-50, 200), (90, 0)])
def test_render_equals_averaging_slow_rays(elevation, azimuth):
    """Also checks where pixels lie, the cropping to what can be seen, and the average of straight colour."""
    surface = soup(12, seed=3)
    surface.vertices = surface.vertices + [0.1, 0.25, 0.0]
    camera = Intrinsics(14.0, 6.5, 5.0, 9, 12)
    pose = orbit_pose(elevation, azimuth).numpy().astype(np.float64)
    expected = np.full((9, 12, 4), 255.0)
    expected[..., 3] = 0
    for row in range(9):
        for column in range(12):
            rays = []
            for i in range(2):
                for j in range(2):
                    x = (column + (j + 0.5) / 2 - camera.cx) / camera.focal
                    y = (row + (i + 0.5) / 2 - camera.cy) / camera.focal
                    rays.append(pose[:3, :3] @ [x, y, 1.0])
            samples = trace_slowly(surface, pose[:3, 3], np.array(rays))
            hit = samples[:, 3] > 0
            if hit.any():
                expected[row, column] = [*(255 * samples[hit, :3].mean(0)), 255 * hit.mean()]
    picture = SurfaceRenderer(surface).render(pose, camera, supersampling=2)
    assert picture.dtype == np.uint8
    assert picture.shape == (9, 12, 4)
    assert (expected[..., 3] > 0).sum() > 5
    np.testing.assert_allclose(picture.astype(float), expected, atol=1.01)


def test_sphere_has_the_analytic_silhouette_and_shading():
    radius, resolution = 0.4, 48
    renderer = SurfaceRenderer(coloured(trimesh.creation.icosphere(5, radius=radius)))
    pose = orbit_pose(25.0, 60.0).numpy().astype(np.float64)
    camera = Intrinsics.default(resolution)
    picture = renderer.render(pose, camera, supersampling=3) / 255.0
    cone = np.arcsin(radius / 1.3)
    area = np.pi * (camera.focal * np.tan(cone)) ** 2
    assert picture[..., 3].sum() == pytest.approx(area, rel=0.01)
    middle = slice(resolution // 2 - 1, resolution // 2 + 1)
    centre = picture[middle, middle, :3].mean((0, 1))
    normal = pose[:3, 3] / 1.3
    np.testing.assert_allclose(centre, np.array([0.8, 0.4, 0.2]) * brightness(normal), atol=0.01)


def test_faces_turned_inside_out_look_the_same():
    mesh = trimesh.creation.box((0.5, 0.3, 0.2))
    surface = coloured(mesh)
    flipped = Surface(surface.vertices, surface.faces[:, ::-1].copy(), surface.corner_colors)
    pose, camera = orbit_pose(30, 30).numpy(), Intrinsics.default(32)
    pictures = [SurfaceRenderer(item).render(pose, camera) for item in (surface, flipped)]
    np.testing.assert_allclose(pictures[0].astype(int), pictures[1].astype(int), atol=1)


def test_edges_keep_the_colour_and_empty_pixels_are_white():
    surface = coloured(trimesh.creation.box((0.6, 0.6, 0.01)))
    picture = SurfaceRenderer(surface).render(orbit_pose(90, 20).numpy(), Intrinsics.default(40))
    alpha = picture[..., 3]
    assert ((alpha > 0) & (alpha < 255)).any()
    assert np.ptp(picture[alpha > 0][:, :3].astype(int), axis=0).max() <= 1
    assert (picture[alpha == 0][:, :3] == 255).all()


def test_shading_does_not_depend_on_the_camera():
    """The roof of a box has one colour from everywhere, as a field without view direction needs."""
    renderer = SurfaceRenderer(coloured(trimesh.creation.box((0.5, 0.5, 0.5))))
    seen = []
    for azimuth in (0, 77, 190, 300):
        picture = renderer.render(orbit_pose(70, azimuth).numpy(), Intrinsics.default(32))
        seen.append(picture[..., :3][picture[..., 3] == 255].max(0))
    assert np.ptp(np.array(seen).astype(int), axis=0).max() <= 1


def test_textures_stand_upright_and_repeat():
    picture = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    uv = np.array([[0.25, 0.75], [0.75, 0.75], [0.25, 0.25], [0.75, 0.25], [1.25, -0.25]])
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 0]]
    np.testing.assert_array_equal(sample_texture(picture, uv), expected)


def test_texture_reaches_the_picture():
    """A horizontal square whose texture is green where x > 0 and red where x < 0."""
    vertices = np.array([[-0.3, -0.3, 0], [0.3, -0.3, 0], [0.3, 0.3, 0], [-0.3, 0.3, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)[faces]
    texture = np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8)
    surface = Surface(vertices, faces, np.ones((2, 3, 3)), uv, np.zeros(2, int), [texture])
    level = brightness(np.array([0.0, 0.0, 1.0]))
    colours = SurfaceRenderer(surface).trace(np.array([0, 0, 1.0]), np.array([[0.1, 0.05, -1], [-0.1, 0.05, -1]]))
    np.testing.assert_allclose(colours[:, :3], [[0, level, 0], [level, 0, 0]], atol=1e-5)


def test_normals_are_smooth_on_a_sphere_and_sharp_on_a_box():
    sphere = trimesh.creation.icosphere(3)
    smooth = corner_normals(np.asarray(sphere.vertices), np.asarray(sphere.faces))
    radial = np.asarray(sphere.vertices)[sphere.faces]
    assert (smooth * radial).sum(-1).min() > 0.999
    box = trimesh.creation.box()
    sharp = corner_normals(np.asarray(box.vertices), np.asarray(box.faces))
    np.testing.assert_allclose(sharp, np.repeat(box.face_normals[:, None], 3, axis=1), atol=1e-9)


def test_bands_of_rows_change_nothing(monkeypatch):
    surface, pose, camera = soup(30), orbit_pose(15, 100).numpy(), Intrinsics.default(24)
    whole = SurfaceRenderer(surface).render(pose, camera)
    monkeypatch.setattr(raytrace, "RAYS_AT_ONCE", 200)
    np.testing.assert_array_equal(SurfaceRenderer(surface).render(pose, camera), whole)


def test_object_out_of_sight_and_camera_inside():
    surface = coloured(trimesh.creation.box((0.2, 0.2, 0.2)))
    pose = orbit_pose(0, 0).numpy().copy()
    pose[:3, 3] = [1.3, 5.0, 0.0]
    assert (SurfaceRenderer(surface).render(pose, Intrinsics.default(8))[..., 3] == 0).all()
    pose[:3, 3] = 0.0
    assert (SurfaceRenderer(surface).render(pose, Intrinsics.default(8))[..., 3] == 255).all()
