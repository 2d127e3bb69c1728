"""Ray batches: every ray is checked against the image it claims to come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_srn import write_tiny_srn

from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.stores.scene_store import PackedStore, open_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.rendering.cameras import Intrinsics, pixel_rays
from mnif_nerf.rendering.intervals import cell_index


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> PackedStore:
    root = write_tiny_srn(tmp_path_factory.mktemp("sampler"), scenes=5, views=4, resolution=16)
    return open_store(root, "train", progress=False)


def all_rays(store: PackedStore, scene: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Origins, directions, colours and silhouette of every pixel of an instance."""
    first, last = store.view_range(scene)
    focal, cx, cy = (float(v) for v in store.intrinsics[first])
    camera = Intrinsics(focal, cx, cy, store.height, store.width)
    rays = [pixel_rays(torch.from_numpy(store.poses[view]), camera) for view in range(first, last)]
    colors = torch.from_numpy(np.array(store.images[first:last])).float().view(-1, 3) / 255
    bits = np.unpackbits(store.silhouettes[first:last], axis=1, bitorder="little")[:, : store.height * store.width]
    return torch.cat([o for o, _ in rays]), torch.cat([d for _, d in rays]), colors, torch.from_numpy(bits).flatten()


def test_every_ray_is_a_pixel_of_its_own_instance(store):
    batch = RayBatchSampler(store, 3, 40, seed=5).draw(0)
    assert batch.rgb.shape == (3, 40, 3)
    for row, scene in enumerate(batch.instances.tolist()):
        origins, directions, colors, mask = all_rays(store, scene)
        for ray in range(0, 40, 7):
            distance = (origins - batch.origins[row, ray]).norm(dim=1) + (directions - batch.directions[row, ray]).norm(
                dim=1
            )
            match = distance.argmin()
            assert distance[match] < 1e-5
            torch.testing.assert_close(batch.rgb[row, ray], colors[match])
            assert batch.mask[row, ray] == mask[match]


def test_the_interval_holds_every_hull_cell_on_the_ray(store):
    batch = RayBatchSampler(store, 5, 60, seed=1).draw(3)
    t = torch.linspace(0.3, 2.3, 1500)
    for row, scene in enumerate(batch.instances.tolist()):
        hull = torch.from_numpy(store.hull(scene)).flatten()
        points = batch.origins[row, :, None] + t[:, None] * batch.directions[row, :, None]
        inside = hull[cell_index(points.clone(), store.hull_resolution, 0.5)] & (points.abs() <= 0.5).all(dim=-1)
        # The march's steps are up to 0.036 long: what a ray touches for less may be cut off.
        solid = torch.stack([inside[:, k : k + 1470] for k in range(30)]).all(dim=0)
        for ray in range(60):
            hits = t[:1470][solid[ray]]
            if len(hits):
                assert batch.near[row, ray] <= hits.min() + 0.001
                assert batch.far[row, ray] >= hits.max() - 0.001
    assert (batch.far >= batch.near).all()


def test_rays_are_drawn_where_the_object_is(store):
    batch = RayBatchSampler(store, 5, 200).draw(0)
    overall = np.unpackbits(store.silhouettes, axis=1, bitorder="little").mean()
    assert batch.mask.mean() > 1.3 * overall


def test_carve_points_lie_outside_the_hull_and_inside_the_box(store):
    batch = RayBatchSampler(store, 5, 4, carve_points=50).draw(0)
    assert batch.carve_points.shape == (5, 50, 3)
    assert batch.carve_points.abs().max() <= 0.5
    for row, scene in enumerate(batch.instances.tolist()):
        hull = torch.from_numpy(store.hull(scene)).flatten()
        inside = hull[cell_index(batch.carve_points[row].clone(), store.hull_resolution, 0.5)]
        corner = (batch.carve_points[row] == 0.5).all(dim=-1)
        assert not bool((inside & ~corner).any())


def test_every_instance_is_visited_once_per_epoch(store):
    sampler = RayBatchSampler(store, 5, 2)
    for step in range(7):
        assert sorted(sampler.draw(step).instances.tolist()) == [0, 1, 2, 3, 4]
    sampler = RayBatchSampler(store, 2, 2)
    visits = torch.cat([sampler.draw(step).instances for step in range(10)])
    assert torch.bincount(visits).tolist() == [4] * 5


def test_a_draw_depends_on_seed_and_step_alone(store):
    first, second = RayBatchSampler(store, 2, 8, 3, seed=1), RayBatchSampler(store, 2, 8, 3, seed=1)
    for step in range(9):
        first.draw(step)
    for name in ("instances", "origins", "rgb", "near", "far", "carve_points"):
        assert torch.equal(getattr(first.draw(6), name), getattr(second.draw(6), name))
    other = RayBatchSampler(store, 2, 8, 3, seed=2).draw(6)
    assert not torch.equal(other.directions, second.draw(6).directions)


def test_held_out_views_are_never_drawn(store):
    allowed = torch.ones(store.num_views, dtype=torch.bool)
    allowed[::4] = False  # the first view of every instance
    sampler = RayBatchSampler(store, 5, 30, views=allowed)
    held_out = torch.from_numpy(store.poses[::4, :3, 3].copy())
    for step in range(4):
        origins = sampler.draw(step).origins.view(-1, 3)
        assert torch.cdist(origins, held_out).min() > 1e-4
    with pytest.raises(MNIFError, match="hold out fewer"):
        RayBatchSampler(store, 1, 1, views=torch.zeros(store.num_views, dtype=torch.bool))


def test_counts_below_one_are_refused(store):
    with pytest.raises(MNIFError, match="at least 1"):
        RayBatchSampler(store, 0, 8)
