"""Stores larger than the free memory: their pages are read alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_streaming import small_shards  # noqa: F401
from test_surface_points import make_store
from tiny_srn import write_tiny_srn

from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.sampling.surface_sampler import SurfaceSampler
from mnif_nerf.data.stores.scene_store import open_store


def advised(path: Path) -> list[bool]:
    """Of every map of a file in this process, whether its pages are read alone."""
    found, ours = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("VmFlags:") and ours:
            found.append("rr" in line.split())
        elif "-" in line.split(" ", 1)[0]:
            ours = line.endswith(str(path.resolve()))
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux alone tells what it was advised")
@pytest.mark.parametrize("sharded", [False, True])
def test_single_rows_are_read_where_a_store_exceeds_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, sharded: bool
) -> None:
    if sharded:
        request.getfixturevalue("small_shards")
    store = make_store(tmp_path, 5)
    size = store.places.nbytes + store.distances.nbytes + store.colors.nbytes
    files = sorted(store.folder.rglob("points.array"))
    assert len(files) == (3 if sharded else 1)
    for free, expected in ((None, False), (size, False), (size - 1, True)):
        monkeypatch.setattr("mnif_nerf.data.sampling.residence.available_memory", lambda free=free: free)
        SurfaceSampler(store, 2, 30).reside()
        assert [flag for file in files for flag in advised(file)] == [expected] * len(files)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux alone tells what it was advised")
def test_pictures_that_exceed_the_memory_are_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(write_tiny_srn(tmp_path / "scenes", scenes=3, views=4, resolution=16), "train", progress=False)
    assert advised(store.folder / "images.npy") == [False]
    monkeypatch.setattr("mnif_nerf.data.sampling.residence.available_memory", lambda: 1)
    RayBatchSampler(store, 2, 8, 4).reside()
    for name in ("images", "hulls", "touching", "silhouettes"):
        assert advised(store.folder / f"{name}.npy") == [True]
