"""Point batches: which points are drawn, what they weigh, and that nothing but seed, step and instance decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnif_nerf.data.sampling.point_sampler import PointChoice, PointSampler
from mnif_nerf.data.stores.grid_distances import GridDistances
from mnif_nerf.data.stores.grid_store import GridStore, open_grid_store, store_of
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.grid_settings import GridDataSettings
from mnif_nerf.modalities.grid_training import GridData

SIZE = 12


def ball(radius: float, size: int = SIZE) -> np.ndarray:
    axis = np.arange(size) - (size - 1) / 2 + 0.3 * radius
    return sum(a**2 for a in np.meshgrid(axis, axis, axis, indexing="ij")) < radius**2


@pytest.fixture(scope="module")
def store() -> GridStore:
    return store_of([ball(radius) for radius in (2.0, 2.5, 3.0, 3.5, 4.0)], "voxel")


@pytest.fixture(scope="module")
def pictures() -> GridStore:
    rng = np.random.default_rng(0)
    return store_of([rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(3)], "image")


def cells_of(points: torch.Tensor, size: int) -> np.ndarray:
    """Numbers of the cells [B, N] whose centres the points [B, n, N] are."""
    index = (points + 1) * size / 2 - 0.5
    whole = index.round().long()
    torch.testing.assert_close(index, whole.float(), atol=1e-4, rtol=0)
    flat = torch.zeros_like(whole[:, 0])
    for axis in range(points.shape[1]):
        flat = flat * size + whole[:, axis]
    return flat.numpy()


def test_points_are_cell_centres_with_their_targets(store: GridStore) -> None:
    batch = PointSampler(store, 3, 200).draw(0)
    assert (batch.points.shape, batch.targets.shape, batch.weights) == ((3, 3, 200), (3, 1, 200), None)
    cells = cells_of(batch.points, SIZE)
    for row, instance in enumerate(batch.instances.tolist()):
        expected = 2.0 * store.values(instance).reshape(-1)[cells[row]] - 1
        np.testing.assert_array_equal(batch.targets[row, 0].numpy(), expected)


@pytest.mark.parametrize("everything", [False, True])
def test_targets_can_be_distances_cut_at_some_cells(store: GridStore, everything: bool, tmp_path: Path) -> None:
    sampler = PointSampler(store, 2, 0 if everything else 300, choice=PointChoice(cut_cells=2.0))
    batch = sampler.draw(0)
    assert batch.cut == 4.0
    assert batch[:1].to("cpu").cut == 4.0
    rows = (batch.targets[:, 0].numpy() / 2, cells_of(batch.points, SIZE), batch.instances.tolist())
    for distances, cells, instance in zip(*rows):
        inside = store.values(instance)
        axes = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        for distance, cell in zip(distances[::29], cells[::29]):
            others = axes[inside.ravel() != inside.ravel()[cell]]
            nearest = np.sqrt(((others - axes[cell]) ** 2).sum(axis=1).min()) - 0.5
            expected = min(nearest, 2.0) * (1 if inside.ravel()[cell] else -1)
            assert distance == pytest.approx(expected, abs=0.02)
    plain = PointSampler(store, 2, 0 if everything else 300).draw(0)
    torch.testing.assert_close(plain.points, batch.points)
    torch.testing.assert_close(plain.targets, batch.targets.sign())
    assert plain.cut == 1.0


def test_distances_keep_their_unit_at_another_resolution() -> None:
    """A solid of twice the cells has the same distances in cells of the field's own grid, up to half of one."""
    small, large = ball(3.0), ball(3.0).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    choice = PointChoice(cut_cells=2.0, unit_cells=SIZE)
    batches = [PointSampler(store_of([cells] * 2, "voxel"), 2, 0, choice=choice).draw(0) for cells in (small, large)]
    assert [batch.cut for batch in batches] == [4.0, 4.0]
    coarse = batches[1].targets[0].reshape((SIZE, 2) * 3).mean(dim=(1, 3, 5))
    fine = batches[0].targets[0].reshape((SIZE,) * 3)
    assert (coarse - fine).abs().max() < 1.0
    assert (coarse - fine).abs().mean() < 0.2
    far = PointSampler(store_of([ball(12.0, 48)] * 2, "voxel"), 2, 0, choice=choice).draw(0)
    assert far.cut == 2.0, "distances are known up to four cells of the store"
    assert far.targets.abs().max() <= 2.0


def test_distances_on_disk_are_computed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train").mkdir()
    for index, radius in enumerate((2.0, 3.0, 4.0)):
        np.save(tmp_path / "train" / f"{index}.npy", ball(radius))
    store = open_grid_store(tmp_path, "train", "voxel", progress=False)
    first = GridDistances(store, progress=False)
    written = (store.folder / "distances.npy").stat().st_mtime_ns
    np.testing.assert_array_equal(GridDistances(store, progress=False).packed, first.packed)
    assert (store.folder / "distances.npy").stat().st_mtime_ns == written
    memory = GridDistances(store_of([store.values(index) for index in range(3)], "voxel"))
    np.testing.assert_array_equal(memory.packed, first.packed)
    (store.folder / "distances.npy").write_bytes(b"damaged")
    np.testing.assert_array_equal(GridDistances(store, progress=False).packed, memory.packed)


def test_pictures_have_no_distances(pictures: GridStore) -> None:
    with pytest.raises(MNIFError, match="image data have no distances"):
        GridDistances(pictures)
    assert PointSampler(pictures, 2, 9, choice=PointChoice(cut_cells=2.0)).draw(0).cut == 1.0


@pytest.mark.parametrize(("share", "least"), [(0.0, 0), (0.25, 50), (1.0, 200)])
def test_share_near_the_surface(store: GridStore, share: float, least: int) -> None:
    batch = PointSampler(store, 5, 200, choice=PointChoice(surface_share=share)).draw(3)
    for row, instance in enumerate(batch.instances.tolist()):
        near = np.isin(cells_of(batch.points, SIZE)[row], store.surface(instance))
        assert near[:least].all()
        natural = len(store.surface(instance)) / SIZE**3
        assert near[least:].mean() == pytest.approx(natural, abs=0.12) if least < 200 else near.all()


@pytest.mark.parametrize("resident", [False, True])
def test_a_third_of_the_near_points_are_inside_at_least(resident: bool) -> None:
    """A rod one cell thick has nine cells outside for one inside; weights take the points as they come."""
    rod = np.zeros((2, 12, 12, 12), bool)
    rod[0, 5, 5, 2:10] = rod[1, 2:9, 2:9, 2:9] = True
    store = store_of([rod[0], rod[1]], "voxel")
    sampler = PointSampler(store, 2, 200, choice=PointChoice(surface_share=0.5))
    batch = (sampler.reside(True) if resident else sampler).draw(0)
    for row, instance in enumerate(batch.instances.tolist()):
        cells = cells_of(batch.points, 12)[row, :100]
        assert np.isin(cells, store.surface(instance)).all()
        natural = rod[instance].reshape(-1)[store.surface(instance)].mean()
        assert rod[instance].reshape(-1)[cells].mean() == pytest.approx(max(1 / 3, natural), abs=0.011)
    weighed = PointSampler(store, 2, 200, choice=PointChoice(surface_share=0.5, reweight=True))
    batch = (weighed.reside(True) if resident else weighed).draw(0)
    cells = cells_of(batch.points, 12)[batch.instances.tolist().index(0), :100]
    assert np.isin(cells, store.surface(0)).all()
    assert rod[0].reshape(-1)[cells].mean() == pytest.approx(8 / len(store.surface(0)), abs=0.03)


def test_every_cell_comes_equally_often(store: GridStore) -> None:
    uniform = PointSampler(store, 5, 300, choice=PointChoice(surface_share=0.0))
    near = PointSampler(store, 5, 100, choice=PointChoice(surface_share=1.0))
    counts, near_counts = np.zeros(SIZE**3), np.zeros(SIZE**3)
    for step in range(200):
        counts += np.bincount(cells_of(uniform.draw(step).points, SIZE).reshape(-1), minlength=SIZE**3)
        near_counts += np.bincount(
            cells_of(near.fixed(torch.tensor([2]), 100, salt=step).points, SIZE)[0], minlength=SIZE**3
        )
    expected = 200 * 5 * 300 / SIZE**3
    assert abs(counts / expected - 1).max() < 0.5  # 174 each, with a deviation of at most 13
    surface = store.surface(2)
    assert near_counts.sum() == near_counts[surface].sum()
    inside = surface[store.targets(np.array([2]), surface[None].astype(np.int64))[0, 0] > 0]
    expected = 200 * 100 * max(1 / 3, len(inside) / len(surface)) / len(inside)
    assert abs(near_counts[inside] / expected - 1).max() < 0.8
    outside = np.setdiff1d(surface, inside)
    assert abs(near_counts[outside] / ((20_000 - expected * len(inside)) / len(outside)) - 1).max() < 0.8


def test_a_draw_depends_on_seed_and_step_alone(store: GridStore) -> None:
    first, again = PointSampler(store, 3, 50, seed=1), PointSampler(store, 3, 50, seed=1)
    for step in (7, 2, 7):
        a, b = first.draw(step), again.draw(step)
        assert torch.equal(a.instances, b.instances)
        assert torch.equal(a.points, b.points)
        again.draw(step + 1)
    assert not torch.equal(first.draw(7).points, first.draw(8).points)
    assert not torch.equal(first.draw(7).points, PointSampler(store, 3, 50, seed=2).draw(7).points)


def test_each_epoch_visits_every_instance_once(store: GridStore) -> None:
    sampler = PointSampler(store, 2, 4)
    visits = torch.cat([sampler.draw(step).instances for step in range(10)]).view(4, 5)
    assert all(sorted(epoch.tolist()) == list(range(5)) for epoch in visits)
    assert len({tuple(epoch.tolist()) for epoch in visits}) > 1


def test_fixed_points_do_not_depend_on_the_batch(store: GridStore) -> None:
    sampler = PointSampler(store, 2, 8, seed=3, choice=PointChoice(reweight=True))
    together = sampler.fixed(torch.tensor([4, 0, 2]), 60)
    alone = PointSampler(store, 1, 99, seed=3, choice=PointChoice(reweight=True)).fixed(torch.tensor([2]), 60)
    for name in ("points", "targets", "weights"):
        assert torch.equal(getattr(together, name)[2], getattr(alone, name)[0])
    assert not torch.equal(together.points[2], sampler.fixed(torch.tensor([2]), 60, salt=1).points[0])
    assert not torch.equal(together.points[0], together.points[1])


@settings(max_examples=20, deadline=None)
@given(share=st.sampled_from([0.1, 0.5, 0.9]), points=st.integers(20, 300), seed=st.integers(0, 999))
def test_weights_have_mean_one(store: GridStore, share: float, points: int, seed: int) -> None:
    batch = PointSampler(store, 4, points, seed=seed, choice=PointChoice(surface_share=share, reweight=True)).draw(seed)
    assert batch.weights is not None
    assert (batch.weights > 0).all()
    torch.testing.assert_close(batch.weights.mean(dim=1), torch.ones(4))


def test_the_weighted_mean_is_unbiased_and_the_plain_one_is_not(store: GridStore) -> None:
    """This holds for any quantity on the grid; the test takes one that is large at the surface."""
    instance = 3
    value = np.random.default_rng(0).random(SIZE**3)
    value[store.surface(instance)] += 5
    sampler = PointSampler(store, 1, 128, choice=PointChoice(reweight=True))
    weighted, plain = [], []
    for salt in range(300):
        batch = sampler.fixed(torch.tensor([instance]), 128, salt)
        at = value[cells_of(batch.points, SIZE)[0]]
        assert batch.weights is not None
        weighted.append((batch.weights[0].numpy() * at).mean())
        plain.append(at.mean())
    error = np.std(weighted) / np.sqrt(len(weighted))
    assert abs(np.mean(weighted) - value.mean()) < 4 * error
    assert np.std(weighted) < 0.1
    assert np.mean(plain) > value.mean() + 1


@pytest.mark.parametrize("points", [0, SIZE**3, 10**6])
def test_all_cells_in_order(store: GridStore, points: int) -> None:
    batch = PointSampler(store, 2, points, choice=PointChoice(reweight=True)).draw(0)
    assert (batch.points.shape, batch.points.stride(0), batch.weights) == ((2, 3, SIZE**3), 0, None)
    np.testing.assert_array_equal(cells_of(batch.points[:1], SIZE)[0], np.arange(SIZE**3))
    expected = 2.0 * store.values(int(batch.instances[1])).reshape(-1) - 1
    np.testing.assert_array_equal(batch.targets[1, 0].numpy(), expected)


def test_pictures_are_drawn_whole_or_in_part(pictures: GridStore) -> None:
    whole = PointSampler(pictures, 3, 0).draw(0)
    assert (whole.points.shape, whole.targets.shape) == ((3, 2, 36), (3, 3, 36))
    part = PointSampler(pictures, 3, 12, choice=PointChoice(reweight=True)).draw(0)
    assert part.weights is None
    cells = cells_of(part.points, 6)
    assert all(len(set(row)) == 12 for row in cells.tolist()), "no pixel twice"
    for row, instance in enumerate(part.instances.tolist()):
        expected = pictures.values(instance).reshape(36, 3)[cells[row]].T / 127.5 - 1
        np.testing.assert_allclose(part.targets[row].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("points", [0, 12, 36, 500])
@pytest.mark.parametrize("channels", [1, 3])
def test_jittered_points_of_pictures(points: int, channels: int) -> None:
    """Each stays within its pixel, and its colour is what torch's own bilinear sampling finds there."""
    rng = np.random.default_rng(0)
    store = store_of([rng.integers(0, 256, (6, 6, channels), dtype=np.uint8) for _ in range(3)], "image")
    sampler = PointSampler(store, 2, points, seed=5, choice=PointChoice(jitter=True))
    count = points if 0 < points < 36 else 36
    for step in range(4):
        batch = sampler.draw(step)
        assert (batch.points.shape, batch.targets.shape) == ((2, 2, count), (2, channels, count))
        assert (batch.points.dtype, batch.targets.dtype) == (torch.float32, torch.float32)
        for row, instance in enumerate(batch.instances.tolist()):
            picture = torch.from_numpy(store.values(instance)).permute(2, 0, 1)[None] / 127.5 - 1
            place = batch.points[row].T.flip(1)[None, None]  # grid_sample wants columns first
            expected = torch.nn.functional.grid_sample(picture, place, padding_mode="border", align_corners=False)
            torch.testing.assert_close(batch.targets[row], expected[0, :, 0], atol=1e-5, rtol=0)
        pixels = ((batch.points + 1) * 3).floor().long()
        assert len({tuple(pixel) for pixel in pixels[0].T.tolist()}) == count, "no pixel twice"
        if count == 36:
            assert torch.equal(pixels[0, 0] * 6 + pixels[0, 1], torch.arange(36)), "every pixel, in order"
    assert torch.equal(sampler.draw(3).points, batch.points), "a function of seed and step"
    assert not torch.equal(sampler.draw(2).points, batch.points)
    offsets = torch.cat([sampler.draw(step).points.flatten() for step in range(50)])
    within = (offsets + 1) * 3 % 1
    counts = torch.histc(within, bins=4, min=0, max=1) / len(within)
    torch.testing.assert_close(counts, torch.full((4,), 0.25), atol=0.06, rtol=0)


def test_only_drawn_pictures_are_jittered(store: GridStore, pictures: GridStore) -> None:
    """What latents are computed and scored from stays at the pixels' centres; voxels have no values in between."""
    everyone = torch.arange(3)
    for points in (0, 12):
        with_it, without = (
            PointSampler(pictures, 2, points, choice=PointChoice(jitter=jitter)) for jitter in (True, False)
        )
        ours, theirs = with_it.fixed(everyone, points), without.fixed(everyone, points)
        assert torch.equal(ours.points, theirs.points)
        assert torch.equal(ours.targets, theirs.targets)
        assert not torch.equal(with_it.draw(0).points, without.draw(0).points)
        assert torch.equal(with_it.draw(0).instances, without.draw(0).instances)
    ours, theirs = (
        PointSampler(store, 2, 50, choice=PointChoice(jitter=jitter, reweight=True)).draw(1) for jitter in (True, False)
    )
    for name in ("points", "targets", "weights"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_fewer_instances_than_a_step_takes_give_more_points_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dozen pictures were refused with the settings that a method has by default."""
    folder = tmp_path / "train"
    folder.mkdir()
    for radius in (2.0, 3.0, 4.0):
        np.save(folder / f"{radius}.npy", ball(radius))

    def batch(instances: int, points: int) -> torch.Tensor:
        settings = GridDataSettings(
            modality="voxel", data=tmp_path, instances_per_step=instances, points_per_instance=points
        )
        data = GridData(settings)
        drawn = data.draw(0).points
        assert data.drawn_per_step() == drawn.shape[0] * drawn.shape[2]
        return drawn

    assert batch(16, 30).shape == (3, 3, 160)
    said = "3 training instances, where a step of this method takes 16: every step takes all of them, and 160 points of"
    assert said in capsys.readouterr().out
    assert batch(16, 0).shape == (3, 3, SIZE**3)
    assert batch(16, 1000).shape == (3, 3, SIZE**3)
    assert batch(3, 30).shape == (3, 3, 30)
    assert "of this method takes 3" not in capsys.readouterr().out


def test_settings_that_make_no_sense(store: GridStore) -> None:
    with pytest.raises(
        MNIFError, match="6 instances per step, but the given split has 5; lower the instances per step to 5"
    ):
        PointSampler(store, 6, 10)
    for options, said in (
        ({"instances_per_step": 0}, "instances per step must be at least 1"),
        ({"points_per_instance": -1}, "points per instance at least 0"),
        ({"surface_share": 1.5}, r"surface share 1\.5: must be between 0 and 1"),
        ({"surface_share": 1.0, "reweight": True}, "a surface share of 1 leaves no other points to weigh"),
    ):
        choice = PointChoice(options.pop("surface_share", 0.5), options.pop("reweight", False))
        with pytest.raises(MNIFError, match=said):
            PointSampler(store, **{"instances_per_step": 1, "points_per_instance": 10, **options}, choice=choice)


def test_a_store_on_disk_gives_the_same_points_as_one_in_memory(store: GridStore, tmp_path: Path) -> None:
    from mnif_nerf.data.generate.writer import write_occupancy
    from mnif_nerf.data.stores.grid_store import open_grid_store

    for index in range(store.num_instances):
        write_occupancy(tmp_path / "train" / f"{index:03d}.npz", store.values(index))
    packed = open_grid_store(tmp_path, "train", "voxel", progress=False)
    ours, theirs = (PointSampler(which, 3, 40).draw(5) for which in (store, packed))
    assert torch.equal(ours.points, theirs.points)
    assert torch.equal(ours.targets, theirs.targets)
