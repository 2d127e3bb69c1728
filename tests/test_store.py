"""The packed store: what it holds, when it is rebuilt, and that a failed packing leaves nothing behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_srn import write_tiny_srn

from mnif_nerf.data.geometry.hull import HULL_RESOLUTION
from mnif_nerf.data.readers.images import composite_white
from mnif_nerf.data.readers.srn import read_split
from mnif_nerf.data.stores import packing
from mnif_nerf.data.stores.packing import ordered_results, pack_bits, unpack_bits
from mnif_nerf.data.stores.scene_store import PackedStore, open_store
from mnif_nerf.errors import MNIFError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return write_tiny_srn(tmp_path_factory.mktemp("store") / "data", 3, 5, 2, 1, 18)


@pytest.fixture
def data(pristine: Path, tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.delenv("MNIF_CACHE", raising=False)
    return Path(shutil.copytree(pristine, tmp_path / "data", ignore=shutil.ignore_patterns(".mnif")))


def silhouette(store: PackedStore, view: int) -> np.ndarray:
    """bool [H, W], the object."""
    return unpack_bits(store.silhouettes[view], (store.height, store.width))


def touching_pixels(store: PackedStore, view: int) -> np.ndarray:
    """bool [H, W], pixels whose ray meets the hull."""
    return unpack_bits(store.touching[view], (store.height, store.width))


def refusal(data: Path) -> str:
    with pytest.raises(MNIFError) as caught:
        open_store(data, "train", progress=False)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def leftovers(data: Path) -> list[str]:
    """Everything in the cache folder but the lock."""
    return [path.name for path in (data / ".mnif").iterdir() if path.suffix != ".lock"]


def to_rgb(data: Path, background: tuple[int, int, int] = (255, 255, 255)) -> None:
    for path in data.glob("cars_train/*/rgb/*.png"):
        picture = Image.open(path)
        flat = Image.new("RGB", picture.size, background)
        flat.paste(picture, mask=picture.getchannel("A"))
        flat.save(path)


def test_store_equals_the_files(data):
    index, store = read_split(data, "train"), open_store(data, "train", progress=False)
    assert (store.num_scenes, store.num_views, store.height, store.width) == (3, 15, 18, 18)
    assert store.names == index.names
    assert (store.category, store.split) == ("cars", "train")
    assert [store.view_range(scene) for scene in range(3)] == [(0, 5), (5, 10), (10, 15)]
    for name in ("poses", "intrinsics", "view_offsets"):
        np.testing.assert_array_equal(getattr(store, name), getattr(index, name))
    assert store.white_background
    assert store.silhouettes.shape == store.touching.shape == (15, -(-18 * 18 // 8))
    assert store.hulls.shape == (3, HULL_RESOLUTION**3 // 8)
    for view, path in enumerate(index.image_paths):
        rgba = np.asarray(Image.open(path)).astype(float)
        alpha = rgba[..., 3:] / 255
        np.testing.assert_array_equal(store.images[view], np.round(rgba[..., :3] * alpha + 255 * (1 - alpha)))
        assert not ((alpha[..., 0] > 0.02) & ~silhouette(store, view)).any()
        assert not (silhouette(store, view) & ~touching_pixels(store, view)).any()
        assert silhouette(store, view).any()
        assert not touching_pixels(store, view).all()
    with pytest.raises(MNIFError, match="scenes 0 to 2"):
        store.view_range(3)


def test_every_split_has_its_own_store(data):
    assert open_store(data, "train_val", progress=False).num_views == 6
    assert open_store(data, "test", progress=False).num_scenes == 1
    assert sorted(leftovers(data)) == ["test", "train_val"]


def test_rgb_on_white_gives_the_same_masks_and_hulls(data):
    with_alpha = open_store(data, "train", progress=False)
    to_rgb(data)
    without = open_store(data, "train", progress=False)
    assert without.white_background
    for view in range(15):
        differ = silhouette(with_alpha, view) ^ silhouette(without, view)
        assert differ.sum() <= 4, "only nearly transparent edge pixels may differ"
    both = [(with_alpha.hull(s) & without.hull(s)).sum() / without.hull(s).sum() for s in range(3)]
    assert min(both) > 0.95


def test_other_backgrounds_are_said_once_and_not_carved(data, capsys):
    to_rgb(data, (40, 90, 40))
    store = open_store(data, "train", progress=False)
    assert not store.white_background
    assert store.silhouettes is None
    assert store.touching is None
    assert store.hulls is None
    assert store.hull(0).all()
    assert capsys.readouterr().out.count("background is not white") == 1
    open_store(data, "train", progress=False)
    assert capsys.readouterr().out == ""


def test_objects_that_reach_the_border_are_masked_by_alpha(data):
    for path in data.glob("cars_train/*/rgb/*.png"):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[:, :6] = (20, 60, 90, 255)
        pixels[:5] = pixels[-5:] = (20, 60, 90, 255)
        Image.fromarray(pixels).save(path)
    store = open_store(data, "train", progress=False)
    assert store.white_background
    assert silhouette(store, 0)[:, :6].all()


def test_opaque_rgba_on_white_is_masked_by_colour(data):
    with_alpha = silhouette(open_store(data, "train", progress=False), 3)
    to_rgb(data)
    for path in data.glob("cars_train/*/rgb/*.png"):
        Image.open(path).convert("RGBA").save(path)
    store = open_store(data, "train", progress=False)
    assert store.white_background
    assert 0 < silhouette(store, 3).sum() <= with_alpha.sum()


def test_a_scene_that_cannot_be_carved_is_named(data, capsys):
    for number, path in enumerate(sorted((data / "cars_train" / "scene001" / "rgb").iterdir())):
        shift = (6, -6)[number % 2]
        Image.fromarray(np.roll(np.asarray(Image.open(path)), (shift, -shift), axis=(0, 1))).save(path)
    store = open_store(data, "train", progress=False)
    assert store.hull(1).all()
    assert not store.hull(0).all()
    said = capsys.readouterr().out
    assert "no hull explains the silhouettes of scene001" in said
    assert "scene000" not in said


def test_an_up_to_date_store_is_opened_without_reading_the_data(data, monkeypatch, capsys):
    first = open_store(data, "train", progress=False)

    def never(*_):
        raise AssertionError("the data was read again")

    monkeypatch.setattr("mnif_nerf.data.stores.scene_store.read_split", never)
    again = open_store(data, "train", progress=False)
    np.testing.assert_array_equal(first.images, again.images)
    assert capsys.readouterr().out == ""


def test_changed_data_is_packed_again_with_one_line(data, capsys):
    open_store(data, "train", progress=False)
    shutil.rmtree(data / "cars_train" / "scene002")
    assert open_store(data, "train", progress=False).num_scenes == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "the data changed since the store was packed" in lines[0]
    os.utime(data / "cars_train" / "scene000" / "pose" / "000000.txt", (1, 1))
    open_store(data, "train", progress=False)
    assert "the data changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "images.npy").write_bytes(b"x"), "damaged"),
        (lambda f: os.truncate(f / "images.npy", 500), "damaged"),
        (lambda f: (f / "hulls.npy").unlink(), "damaged"),
        (lambda f: (f / "manifest.json").write_text("{"), "damaged"),
        (lambda f: (f / "manifest.json").write_text("[]"), "damaged"),
        (lambda f: (f / "manifest.json").write_text('{"format": "x"}'), "format version None"),
        (lambda f: np.save(f / "poses.npy", np.zeros((2, 4, 4))), "damaged"),
    ],
)
def test_a_damaged_or_foreign_store_is_packed_again(data, capsys, damage, said):
    folder = open_store(data, "train", progress=False).folder
    damage(folder)
    assert open_store(data, "train", progress=False).num_views == 15
    assert said in capsys.readouterr().out


def test_cache_elsewhere(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIF_CACHE", str(tmp_path / "cache"))
    store = open_store(data, "train", progress=False)
    assert (tmp_path / "cache") in store.folder.parents
    assert not (data / ".mnif").exists()


def test_a_cache_that_cannot_be_written_names_the_remedy(data):
    (data / ".mnif").write_text("a file where the folder should be")
    assert "MNIF_CACHE" in refusal(data)


def test_writing_to_the_arrays_does_not_reach_the_disk(data):
    store = open_store(data, "train", progress=False)
    store.images[0] = 7
    assert (open_store(data, "train", progress=False).images[0] != 7).any()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-90]), "cannot be read as an image (truncated"),
        (lambda p: p.write_bytes(b"no picture"), "cannot be read as an image"),
        (lambda p: Image.new("RGB", (9, 18)).save(p), "9x18 pixels, expected 18x18"),
        (lambda p: Image.fromarray(np.zeros((18, 18), np.uint16)).save(p), "more than 8 bits"),
    ],
)
def test_bad_pictures_are_named_and_nothing_is_kept(data, spoil, said):
    path = data / "cars_train" / "scene002" / "rgb" / "000004.png"
    spoil(path)
    message = refusal(data)
    assert said in message
    assert str(path) in message
    assert not leftovers(data)


def test_a_disk_too_small_is_refused_before_packing(data, monkeypatch):
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "free some space" in refusal(data)
    assert not leftovers(data)


def test_a_disk_that_fills_up_while_packing(data, monkeypatch):
    append, calls = packing.GrowingArray.append, []

    def full(self, rows):
        calls.append(1)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, rows)

    monkeypatch.setattr(packing.GrowingArray, "append", full)
    assert "the disk is full" in refusal(data)
    assert not leftovers(data)
    monkeypatch.setattr(packing.GrowingArray, "append", append)
    assert open_store(data, "train", progress=False).num_views == 15


def test_ctrl_c_while_packing_leaves_nothing(data, monkeypatch):
    def interrupt(self, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(packing.GrowingArray, "append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_store(data, "train", progress=False)
    assert not leftovers(data)


def test_kill_while_packing_leaves_nothing_that_counts(data):
    code = (
        "import sys, time; from mnif_nerf.data.stores import packing, scene_store as store\n"
        "append = packing.GrowingArray.append\n"
        "def slow(self, rows):\n    append(self, rows); print('written', flush=True); time.sleep(60)\n"
        "packing.GrowingArray.append = slow\n"
        "store.open_store(sys.argv[1], 'train', progress=False)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(data)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert not (data / ".mnif" / "train").exists()
    assert leftovers(data)
    assert open_store(data, "train", progress=False).num_views == 15
    assert leftovers(data) == ["train"], "the killed packer's files are cleared"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9))
def test_bits_round_trip(seed, height, width):
    mask = np.random.default_rng(seed).random((3, height, width)) < 0.5
    packed = pack_bits(mask)
    np.testing.assert_array_equal(unpack_bits(packed, (height, width)), mask)
    pixel = seed % (height * width)
    assert bool(packed[1, pixel // 8] >> (pixel % 8) & 1) == mask[1].reshape(-1)[pixel]


def test_compositing_is_rounded_to_nearest():
    values = np.array([(c, a) for c in range(0, 256, 5) for a in range(256)])
    pixels = np.concatenate([np.repeat(values[:, :1], 3, 1), values[:, 1:]], 1).astype(np.uint8)[None]
    alpha = values[:, 1] / 255
    expected = np.floor(values[:, 0] * alpha + 255 * (1 - alpha) + 0.5)
    assert np.abs(composite_white(pixels)[0, :, 0] - expected).max() == 0


def test_results_come_in_order_and_the_first_error_ends_the_work():
    def job(number):
        time.sleep(0.002 * (number % 3))
        if number == 12:
            raise MNIFError("twelve.")
        return number

    assert list(ordered_results(((job, n) for n in range(12)), 4)) == list(range(12))
    with pytest.raises(MNIFError, match="twelve"):
        list(ordered_results(((job, n) for n in range(1000)), 4))
