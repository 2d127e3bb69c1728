"""Signals: their files, their store, points of them, and objects that write them back in their own units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from mnif_nerf.data.check.grids import check_grids, grid_modality
from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.readers.signals import read_signal
from mnif_nerf.data.sampling.point_sampler import PointChoice, PointSampler
from mnif_nerf.data.stores.grid_store import GridStore, grid_splits, open_grid_store, store_of
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.objects.base import NeuralObject, ObjectFacts
from mnif_nerf.objects.signal import NeuralSignal
from mnif_nerf.rendering.grids import cell_centres


def write(folder: Path, arrays: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, array in enumerate(arrays):
        np.save(folder / f"s{index}.npy", array)
    return folder


def opened(root: Path, split: str = "train", **options: int | tuple[int, ...] | None) -> GridStore:
    return open_grid_store(root, split, "signal", progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(12,), (6, 9), (4, 6, 5), (3, 4, 2, 5)])
@pytest.mark.parametrize("dtype", ["float64", "uint16", "int8"])
def test_arrays_of_one_to_four_axes(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [(100 * rng.random(shape)).astype(dtype) for _ in range(3)]
    store = opened(write(tmp_path, arrays))
    assert (store.shape, store.channels, store.values_kind) == (shape, 1, "floats")
    assert (store.facts.low, store.facts.high) == (
        np.float32(min(a.min() for a in arrays)),
        np.float32(max(a.max() for a in arrays)),
    )
    assert store.facts.dtype == (None if dtype == "float64" else dtype)
    np.testing.assert_array_equal(store.values(1), arrays[1].astype(np.float32))
    targets = store.all_targets(np.arange(3))
    assert (targets.min(), targets.max()) == (-1, pytest.approx(1))
    batch = PointSampler(store, 2, 7).draw(0)
    centres = cell_centres(shape)
    for row, instance in enumerate(batch.instances):
        for point, target in zip(batch.points[row].T, batch.targets[row, 0]):
            cell = int((centres.T - point).abs().sum(dim=1).argmin())
            assert float(target) == pytest.approx(float(targets[int(instance), 0, cell]))
    again = store_of([store.values(k) for k in range(3)], "signal", store.facts)
    np.testing.assert_array_equal(again.all_targets(np.arange(3)), targets)


def test_jitter_interpolates_between_cells_of_any_grid(tmp_path: Path) -> None:
    x, y, z = np.indices((6, 4, 3)).astype(float)
    store = opened(write(tmp_path, [2 * x - y + 0.5 * z, np.zeros((6, 4, 3))]))
    sampler = PointSampler(store, 2, 0, choice=PointChoice(jitter=True))
    batch = sampler.draw(0)
    row = batch.instances.tolist().index(0)
    place = (batch.points[row] + torch.tensor([1, 4 / 6, 3 / 6])[:, None]) * 3 - 0.5
    inner = ((place > 0) & (place < torch.tensor([[5], [3], [2]]))).all(dim=0)
    expected = 2 * place[0] - place[1] + 0.5 * place[2]
    found = store.facts.low + (batch.targets[row, 0] + 1) / 2 * (store.facts.high - store.facts.low)
    assert inner.sum() > 3
    torch.testing.assert_close(found[inner], expected[inner], atol=1e-4, rtol=1e-4)


def test_sounds_keep_their_rate_and_channels(tmp_path: Path) -> None:
    stereo = (1000 * np.sin(np.arange(64)[:, None] / np.array([3, 5]))).astype(np.int16)
    for name in ("a", "b"):
        wavfile.write(tmp_path / f"{name}.wav", 4000, stereo if name == "a" else -stereo)
    store = opened(tmp_path)
    assert store.facts == GridFacts((64,), 2, store.facts.low, store.facts.high, 4000, "int16")
    np.testing.assert_array_equal(store.values(0), stereo)
    coarse = opened(tmp_path, resolution=16)
    assert (coarse.shape, coarse.facts.rate) == ((16,), 1000)
    np.testing.assert_allclose(coarse.values(0), stereo.reshape(16, 4, 2).mean(axis=1), rtol=1e-6)
    with pytest.raises(MNIFError, match="cannot be brought to 10"):
        opened(tmp_path, resolution=10)


def test_the_last_axis_counts_channels_where_asked(tmp_path: Path) -> None:
    write(tmp_path, [np.random.default_rng(k).random((8, 3)) for k in range(2)])
    assert opened(tmp_path).shape == (8, 3)
    assert (opened(tmp_path, channels=3).shape, opened(tmp_path, channels=3).channels) == ((8,), 3)
    with pytest.raises(MNIFError, match="the last axis should be 2 channels"):
        opened(tmp_path, channels=2)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([1.0, np.nan, 2.0]), "NaN or infinite"),
        (np.array([1.0, np.inf, 2.0]), "NaN or infinite"),
        (np.array([1j, 2j, 0]), "complex128; signals are real-valued"),
        (np.array(["a", "b", "c"]), "signals are real-valued"),
        (np.zeros((1, 1, 1, 1, 3)), "5 axes"),
        (np.zeros(0), "or empty"),
        (np.array(3.0), "0 axes"),
        (np.zeros(4), "4 values, but .*s0.npy has 3 values; cut or resample"),
    ],
)
def test_what_is_no_signal_is_named(tmp_path: Path, array: np.ndarray, words: str) -> None:
    write(tmp_path, [np.arange(3.0)])
    np.save(tmp_path / "z.npy", array)
    with pytest.raises(MNIFError, match=words) as caught:
        opened(tmp_path)
    assert str(tmp_path / "z.npy") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files_and_constant_data(tmp_path: Path) -> None:
    write(tmp_path / "flat", [np.ones(4)] * 2)
    with pytest.raises(MNIFError, match="every value is 1, so there is nothing to learn"):
        opened(tmp_path / "flat")
    for name in ("a.npy", "a.npz", "a.wav"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(MNIFError, match="cannot be read as a signal"):
            read_signal(tmp_path / name)
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(MNIFError, match="arrays a, b; expected a single one"):
        read_signal(tmp_path / "two.npz")


def test_folders_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    assert grid_modality(write(tmp_path / "series", [rng.random(9)])) == "signal"
    assert grid_modality(write(tmp_path / "grey", [rng.random((4, 4, 4))])) == "signal"
    assert grid_modality(write(tmp_path / "solid", [rng.random((4, 4, 4)) > 0.5])) == "voxel"
    write(tmp_path / "series" / "train", [rng.random(9) for _ in range(3)])
    lines, problems = check_grids(write(tmp_path / "some", [rng.random(9) for _ in range(3)]), "signal", False)
    assert (lines[0].endswith("signals, 1 split(s)"), problems) == (True, [])
    assert "3 signals of 9 values, from 0." in lines[1]
    assert grid_splits(write(tmp_path / "many", [rng.random(4) for _ in range(20)]), "signal") == {
        "train": 16,
        "val": 2,
        "test": 2,
    }


# --- objects ----------------------------------------------------------------------------------------------


def linear(weights: list[float], facts: GridFacts) -> NeuralSignal:
    """A signal whose value in [-1, 1] is the weighted sum of its coordinates."""
    field = CompactField([torch.tensor([weights])], [torch.zeros(1)], False, "signed")
    return NeuralSignal(torch.zeros(2), field, "line", ObjectFacts(grid=facts))


def test_values_are_in_the_datas_units(tmp_path: Path) -> None:
    item = linear([1.0], GridFacts((4,), 1, 10.0, 20.0))
    np.testing.assert_allclose(item.values(), [11.25, 13.75, 16.25, 18.75])
    np.testing.assert_allclose(item.values(2), [12.5, 17.5])
    wide = linear([0.0, 1.0], GridFacts((2, 4)))
    assert wide.values().shape == (2, 4)
    assert wide.values(8).shape == (4, 8)
    assert wide.values((3, 5)).shape == (3, 5)
    again = NeuralObject.load(item.save(tmp_path / "a.safetensors"))
    assert type(again) is NeuralSignal
    np.testing.assert_array_equal(again.values(), item.values())
    with pytest.raises(MNIFError, match="ask for 2 numbers of 1 or more"):
        wide.values((3,))
    with pytest.raises(MNIFError, match="does not know the grid"):
        NeuralSignal(None, item.field).values()


def test_signals_are_written_as_they_came(tmp_path: Path) -> None:
    item = linear([1.0], GridFacts((8,), 1, -1000.0, 1000.0, 4000, "int16"))
    rate, sound = wavfile.read(item.save_as(tmp_path / "a.wav"))
    assert (rate, sound.dtype) == (4000, np.int16)
    np.testing.assert_array_equal(sound, item.values())
    assert wavfile.read(item.save_as(tmp_path / "b.wav", 16))[0] == 8000
    assert np.load(item.save_as(tmp_path / "a.npy")).dtype == np.int16
    volume = linear([0.0, 0.0, 1.0], GridFacts((4, 4, 6), 1, 0.0, 1.0))
    assert np.load(volume.save_as(tmp_path / "v.npy")).dtype == np.float32
    for signal in (item, linear([1.0, 0.0], GridFacts((4, 6))), volume, linear([1.0] * 4, GridFacts((2, 3, 4, 2)))):
        assert signal.picture(60).mode == "RGB"
        assert max(signal.picture(60).size) <= 60
        assert signal.save_as(tmp_path / "p.png").stat().st_size > 50
    with pytest.raises(MNIFError, match="holds one axis, and the signal has 3"):
        volume.save_as(tmp_path / "v.wav")
    with pytest.raises(MNIFError, match=r"unknown format '\.mp3'; use one of npy, wav, png"):
        item.save_as(tmp_path / "a.mp3")


def test_days_of_demand(tmp_path: Path) -> None:
    pytest.importorskip("sktime", reason="the days come with it")
    from mnif_nerf.data.generate.power_days import SPLIT_SIZES, make_power_days

    folder = make_power_days(tmp_path / "days")
    assert grid_modality(folder) == "signal"
    assert grid_splits(folder, "signal") == SPLIT_SIZES
    store = opened(folder)
    assert store.shape == (24,)
    assert abs(float(store.packed.mean())) < 1e-3
    assert make_power_days(folder) == folder
    with pytest.raises(MNIFError, match="seed"):
        make_power_days(folder, seed=1)
