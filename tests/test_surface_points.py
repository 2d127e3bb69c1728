"""Points with signed distance and colour: solids of overlapping pieces, the packed store, the sampler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.geometry.solid_mesh import solid_of_pieces, solid_of_surface
from mnif_nerf.data.geometry.surface_colors import surface_colors
from mnif_nerf.data.geometry.surface_points import NEAR, ON_SURFACE, PointCounts, SurfacePoints, draw_points
from mnif_nerf.data.sampling.surface_sampler import KindShares, SurfaceSampler
from mnif_nerf.data.stores.surface_pack import encode, write_part
from mnif_nerf.data.stores.surface_store import SurfaceStore, open_surface_store, surface_splits, write_store
from mnif_nerf.errors import MNIFError

pytest.importorskip("igl")
pytest.importorskip("manifold3d")

COUNTS = PointCounts.of(3000)
RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def boxes(*pieces: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]) -> tuple:
    """A surface of boxes (centre, size, colour), and the piece of every face."""
    import trimesh

    vertices, faces, colors = [], [], []
    for index, (centre, size, color) in enumerate(pieces):
        box = trimesh.creation.box(size)
        vertices.append(np.asarray(box.vertices) + centre)
        faces.append(np.asarray(box.faces) + 8 * index)
        colors.append(np.broadcast_to(color, (12, 3, 3)))
    surface = Surface(np.concatenate(vertices), np.concatenate(faces), np.concatenate(colors).astype(float))
    return surface, np.repeat(np.arange(len(pieces)), 12)


def box_distance(points: np.ndarray, half: np.ndarray) -> np.ndarray:
    """The signed distance of a box around the origin."""
    beyond = np.abs(points) - half
    return np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)


def test_distances_of_overlapping_boxes_are_those_of_their_union() -> None:
    """Two halves of one box that overlap, with a hidden box of another colour within."""
    surface, piece = boxes(
        ((-0.1, 0, 0), (0.4, 0.3, 0.2), RED), ((0.1, 0, 0), (0.4, 0.3, 0.2), RED), ((0, 0, 0), (0.5, 0.26, 0.16), BLUE)
    )
    solid = solid_of_pieces(surface.vertices, surface.faces, piece)
    found = draw_points(surface, solid, COUNTS, np.random.default_rng(0))
    expected = box_distance(found.points.astype(np.float64), np.array([0.3, 0.15, 0.1]))
    np.testing.assert_allclose(found.distance, expected, atol=3e-5)
    assert found.color is not None
    np.testing.assert_allclose(found.color, np.broadcast_to(RED, found.color.shape), atol=1e-5)  # never the hidden blue
    on = found.kind == 3
    assert np.bincount(found.kind).tolist() == list(COUNTS.by_kind)
    np.testing.assert_allclose(np.linalg.norm(found.normals[on], axis=1), 1, atol=1e-6)
    steps = found.points[on] + 0.001 * found.normals[on]
    np.testing.assert_allclose(box_distance(steps, np.array([0.3, 0.15, 0.1])), 0.001, atol=3e-5)
    assert np.isnan(found.normals[~on]).all()


def test_gaps_between_pieces_are_filled() -> None:
    """Six plates around a hollow, in which a box hangs: nobody sees the hollow, so there is none."""
    thick, reach = 0.05, 0.2
    plates = []
    for axis in range(3):
        for side in (-1, 1):
            centre, size = np.zeros(3), np.full(3, 2 * reach)
            centre[axis], size[axis] = side * (reach - thick / 2), thick
            plates.append((tuple(centre), tuple(size), RED))
    surface, piece = boxes(*plates, ((0, 0, 0), (0.1, 0.1, 0.1), BLUE))
    solid = solid_of_pieces(surface.vertices, surface.faces, piece)
    found = draw_points(surface, solid, COUNTS, np.random.default_rng(0))
    expected = box_distance(found.points.astype(np.float64), np.full(3, reach))
    np.testing.assert_allclose(found.distance, expected, atol=3e-5)
    assert found.color is not None
    np.testing.assert_allclose(found.color, np.broadcast_to(RED, found.color.shape), atol=1e-5)


@pytest.mark.parametrize(("slit", "filled"), [(0.002, True), (0.05, False)])
def test_a_room_that_only_a_slit_leads_into_is_filled(slit: float, filled: bool) -> None:
    """The load bay of a van, between whose doors a hair of air is left; one with its doors open is a room."""
    wall, (long, wide) = 0.02, (0.4, 0.3)
    plates = []
    for side in (-1, 1):
        plates += [
            ((0, 0, side * (wide - wall) / 2), (long, wide, wall), RED),
            ((0, side * (wide - wall) / 2, 0), (long, wall, wide), RED),
            ((long / 2, side * (wide + slit) / 4, 0), (wall, (wide - slit) / 2, wide), RED),
        ]
    surface, _ = boxes(*plates, ((-long / 2, 0, 0), (wall, wide, wide), RED), ((0, 0, 0), (0.1, 0.1, 0.1), BLUE))
    found = draw_points(surface, solid_of_surface(surface), COUNTS, np.random.default_rng(0))
    outer = box_distance(found.points.astype(np.float64), np.array([long + wall, wide, wide]) / 2)
    deep = (outer < -0.03) & (found.kind == 0)
    assert (found.distance[deep] < 0).mean() == (1 if filled else pytest.approx(0.04, abs=0.04))
    if filled:
        assert found.color is not None
        np.testing.assert_allclose(found.color, np.broadcast_to(RED, found.color.shape), atol=1e-5)
        away = (np.abs(found.points[:, 1]) > 0.05) & (outer > -0.05)  # the slit itself is air
        np.testing.assert_allclose(found.distance[away], outer[away], atol=3e-3)


def test_a_piece_that_folds_through_itself_keeps_its_signs() -> None:
    """A tube whose end is turned inside out: what is there twice, or inside out, is no wall."""
    from mnif_nerf.data.generate.car_parts import rounded_box

    part = rounded_box((0, 0, 0), (0.05, 0.4, 0.4), (0.5, 0.5, 0.5), bevel=3.0)  # bevels as wide as the box itself
    surface = Surface(part.vertices, part.faces, np.repeat(part.colors[:, None], 3, axis=1))
    solid = solid_of_pieces(surface.vertices, surface.faces, np.zeros(len(part.faces), np.int64))
    assert not solid.sure.all()
    found = draw_points(surface, solid, COUNTS, np.random.default_rng(0))
    import igl

    near = found.kind < 3
    winding = igl.winding_number(part.vertices, part.faces.astype(np.int64), found.points[near].astype(np.float64))
    clear = np.abs(found.distance[near]) > 1e-4
    assert ((winding > 0.5) == (found.distance[near] < 0))[clear].all()


def test_colours_are_mixed_in_linear_light() -> None:
    corners = np.array([[[0.0, 0, 0], [1.0, 1, 1], [1.0, 1, 1]]])
    surface = Surface(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]), corners)
    middle = surface_colors(surface, np.zeros(1, int), np.array([[0.5, 0.0, 0.2]]))
    np.testing.assert_allclose(middle, 0.7353, atol=1e-3)  # half the light is sRGB 0.735, not 0.5


def fake(seed: int, color: bool = True) -> SurfacePoints:
    """Points whose distance and colour are functions of the place."""
    generator = np.random.default_rng(seed)
    points = generator.uniform(-0.5, 0.5, (COUNTS.total, 3)).astype(np.float32)
    kind = np.repeat(np.arange(4, dtype=np.uint8), COUNTS.by_kind)
    normals = np.where(kind[:, None] == 3, np.float32([0, 0.6, 0.8]), np.float32("nan"))
    return SurfacePoints(points, points[:, 0] / 3, points + 0.5 if color else None, kind, normals)


def make_store(root: Path, count: int = 3, color: bool = True) -> SurfaceStore:
    parts = {f"o{index}": root / f"{index}.npz" for index in range(count)}
    for index, path in enumerate(parts.values()):
        write_part(path, encode(fake(index, color)))
    write_store(root / "points" / "train", "train", parts, COUNTS, color)
    return open_surface_store(root, "train")


def test_a_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    store, expected = make_store(tmp_path), fake(1)
    assert surface_splits(tmp_path) == ("train",)
    assert (store.names, store.num_instances, store.has_color, store.channels) == (("o0", "o1", "o2"), 3, True, 4)
    found = store.points(1)
    np.testing.assert_allclose(found.points, expected.points, atol=1e-5)
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.color, expected.color, atol=0.002)
    np.testing.assert_allclose(found.normals, expected.normals, atol=0.01)
    assert (found.kind == expected.kind).all()
    with pytest.raises(MNIFError, match=r"instance 3: the train split of .* has instances 0 to 2"):
        store.points(3)
    with pytest.raises(MNIFError, match=r"no val split .*name a split that is there \(train\)"):
        open_surface_store(tmp_path, "val")
    array = tmp_path / "points" / "train" / "distance.array"
    array.write_bytes(array.read_bytes()[:-10])
    with pytest.raises(MNIFError, match="damaged"):
        open_surface_store(tmp_path, "train")


def test_batches_hold_field_coordinates_colours_and_distances(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    sampler = SurfaceSampler(store, 2, 200, seed=4)
    batch = sampler.draw(5)
    assert (batch.points.shape, batch.targets.shape) == ((2, 3, 200), (2, 4, 200))
    world = batch.points / 2
    torch.testing.assert_close(batch.targets[:, 3], world[:, 0] / 3, atol=2e-4, rtol=0)
    torch.testing.assert_close(batch.targets[:, :3], world + 0.5, atol=3e-3, rtol=0)
    again = SurfaceSampler(store, 2, 200, seed=4).draw(5)
    assert torch.equal(batch.points, again.points)
    assert torch.equal(batch.instances, again.instances)
    assert not torch.equal(batch.points, sampler.draw(6).points)
    # A kind without a share does not come.
    far = SurfaceSampler(store, 1, 50, shares=KindShares(1, 0, 0, 0)).fixed(torch.tensor([2]), 50)
    uniform = torch.from_numpy(store.points(2).points[: COUNTS.uniform])
    nearest = (far.points[0].T[:, None] / 2 - uniform).abs().amax(dim=2).amin(dim=1)
    assert nearest.max() < 1e-6


def test_fixed_points_depend_on_their_instance_alone(tmp_path: Path) -> None:
    sampler = SurfaceSampler(make_store(tmp_path), 2, 200)
    both, one = sampler.fixed(torch.tensor([2, 0]), 70), sampler.fixed(torch.tensor([0]), 70)
    assert torch.equal(both.points[1], one.points[0])
    assert not torch.equal(one.points, sampler.fixed(torch.tensor([0]), 70, salt=1).points)
    everything = sampler.fixed(torch.tensor([1]), 0)
    assert everything.points.shape[2] == COUNTS.total


def test_data_without_colour_has_distances_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path, color=False)
    assert store.points(0).color is None
    assert SurfaceSampler(store, 1, 10).draw(0).targets.shape == (1, 1, 10)


def test_settings_of_a_sampler_that_make_no_sense(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with pytest.raises(MNIFError, match="4 instances per step, but the train split has 3"):
        SurfaceSampler(store, 4, 10)
    with pytest.raises(MNIFError, match="must be 0 or more each, and one above 0"):
        SurfaceSampler(store, 1, 10, shares=KindShares(0, 0, 0, 0))
    bare = replace(store, counts=PointCounts(COUNTS.total, 0, 0, 0))
    with pytest.raises(MNIFError, match="has no wide points"):
        SurfaceSampler(bare, 1, 10)
    with pytest.raises(MNIFError, match="`points` 5: must be 100 or more"):
        PointCounts.of(5)


def test_cars_are_made_taken_up_again_and_equal(tmp_path: Path) -> None:
    from mnif_nerf.data.generate.points import car_points, make_procedural_points
    from mnif_nerf.data.generate.settings import CarCounts

    counts = CarCounts(2, 0, 1)
    folder = make_procedural_points(tmp_path / "a", counts, 1000, workers=1, progress=False)
    assert surface_splits(folder) == ("train", "test")
    store = open_surface_store(folder, "train")
    body = store.names[1].split("-")[1]
    again = car_points((0, 0, 1), body, PointCounts.of(1000))
    np.testing.assert_allclose(store.points(1).distance, again.distance, rtol=1e-3, atol=1e-6)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.array")}
    make_procedural_points(folder, counts, 1000, workers=1, progress=False)
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*.array")}
    assert not list(folder.rglob("*.parts"))
    with pytest.raises(MNIFError, match="made with points 1000, asked for 900"):
        make_procedural_points(folder, counts, 900, workers=1, progress=False)


def test_points_for_pictures_lie_on_the_surface_and_are_several_times_as_many() -> None:
    generator = np.random.default_rng(0)
    ways = generator.normal(size=(6000, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    off = np.where(np.arange(6000) < 5000, generator.normal(0.0, 0.006, 6000), 0.0)
    kind = np.where(np.arange(6000) < 5000, NEAR, ON_SURFACE).astype(np.uint8)
    normals = np.where(kind[:, None] == NEAR, np.nan, ways)
    parts = ((0.3 + off)[:, None] * ways, off, np.full((6000, 3), 0.5), normals)
    points, distance, color, normals = (part.astype(np.float32) for part in parts)
    ball = SurfacePoints(points, distance, color, kind, normals)
    shown = ball.to_be_seen()
    assert shown.num_points > 3 * ball.on_surface().num_points
    assert np.abs(np.linalg.norm(shown.points, axis=1) - 0.3).max() < 0.002
    assert (shown.points * shown.normals).sum(axis=1).min() > 0.29
    assert shown.color is not None
    assert shown.color.shape == shown.points.shape
    assert (shown.kind == ON_SURFACE).all()
    alone = ball.where(ball.kind != NEAR)
    assert alone.to_be_seen().num_points == alone.on_surface().num_points
