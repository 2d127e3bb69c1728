"""Finding, inspecting and decoding pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mnif_nerf.data.readers.picture_files import find_pictures, grey_among_color, inspect_pictures, read_picture
from mnif_nerf.errors import MNIFError


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_png16(path: Path, pixels: np.ndarray, *chunks: bytes) -> Path:
    """A PNG of uint16 [H, W, 1 to 4], which Pillow itself can only read."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))]
    parts += [chunk(kind, data) for kind, data in zip(chunks[::2], chunks[1::2])]
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_pictures_are_found_sorted_at_any_depth_and_hidden_ones_skipped(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "deep/er/c.jpeg", ".hidden.png", ".mnif/d.png", "notes.txt", "e.psd"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [str(path.relative_to(tmp_path)) for path in find_pictures(tmp_path)] == [
        "a.jpg", "b.PNG", "deep/er/c.jpeg"
    ]  # fmt: skip
    with pytest.raises(MNIFError, match="no such folder"):
        find_pictures(tmp_path / "missing")


def test_resolution_is_the_files_own_where_they_agree_and_are_small(tmp_path: Path) -> None:
    square = [save(tmp_path / f"{i}.png", noise(24, 24)) for i in range(3)]
    wide = save(tmp_path / "wide.png", noise(70, 100))
    large = [save(tmp_path / f"large{i}.png", noise(128, 128)) for i in range(2)]
    assert inspect_pictures(square) == ((24, 24), 1)
    assert inspect_pictures(square, 16) == ((16, 16), 1)
    assert inspect_pictures(large) == ((64, 64), 1)
    assert inspect_pictures([*large, wide]) == ((64, 64), 1)
    with pytest.raises(MNIFError, match=r"0\.png: 24x24 pixels, smaller than 64x64; .* at most 24"):
        inspect_pictures([*large, *square])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16"])
def test_grey_modes_count_as_grey(mode: str, tmp_path: Path) -> None:
    grey = Image.fromarray(noise(9, 9))
    path = tmp_path / "x.png"
    (Image.fromarray(noise(9, 9).astype(np.uint16)) if mode == "I;16" else grey.convert(mode)).save(path)
    assert inspect_pictures([path], at_least=1) == ((9, 9), 1)
    assert read_picture(path, 9, 1).shape == (9, 9, 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_color_modes_count_as_color(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.fromarray(noise(9, 9, 3)).convert(mode).save(path)
    assert inspect_pictures([path], at_least=1) == ((9, 9), 3)
    assert read_picture(path, 9, 3).shape == (9, 9, 3)


def test_a_mixture_of_grey_and_color_is_in_color(tmp_path: Path) -> None:
    grey, color = save(tmp_path / "grey.png", noise(8, 8)), save(tmp_path / "color.png", noise(8, 8, 3))
    assert inspect_pictures([color, grey]) == ((8, 8), 3)
    assert inspect_pictures([color, grey], channels=1) == ((8, 8), 1)
    assert grey_among_color([color, grey]) == [grey]
    assert not grey_among_color([grey, grey])
    np.testing.assert_array_equal(read_picture(grey, 8, 3), noise(8, 8)[..., None].repeat(3, axis=2))
    luma = noise(8, 8, 3).astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(read_picture(color, 8, 1)[..., 0] - luma).max() <= 1


def test_unreadable_missing_and_lone_pictures_are_named(tmp_path: Path) -> None:
    good = [save(tmp_path / f"{i}.png", noise(8, 8)) for i in range(2)]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    with pytest.raises(MNIFError, match=r"bad\.png: cannot be read as an image"):
        inspect_pictures([*good, bad])
    with pytest.raises(MNIFError, match=r"holds one of 2 pictures that can be read; .* needs 2"):
        inspect_pictures([good[0], bad])
    with pytest.raises(MNIFError, match="holds one picture; a model needs 2 or more"):
        inspect_pictures(good[:1])
    assert inspect_pictures(good[:1], at_least=1) == ((8, 8), 1)
    with pytest.raises(MNIFError, match="no pictures"):
        inspect_pictures([])
    with pytest.raises(MNIFError, match="`channels` is 2"):
        inspect_pictures(good, channels=2)
    with pytest.raises(MNIFError, match="`resolution` is 0"):
        inspect_pictures(good, 0)


def test_decoding_faults_are_one_sentence(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", noise(40, 40, 3))
    path.write_bytes(path.read_bytes()[:-2000])
    assert inspect_pictures([path], at_least=1) == ((40, 40), 3)  # its header is whole
    with pytest.raises(MNIFError, match=r"x\.png: cannot be read as an image \(truncated"):
        read_picture(path, 40, 3)
    with pytest.raises(MNIFError, match=r"12x20 pixels, smaller than 16x16"):
        read_picture(save(tmp_path / "small.png", noise(20, 12)), 16, 1)


@given(st.integers(4, 40), st.integers(4, 40))
@settings(max_examples=25, deadline=None)
def test_the_middle_square_is_kept_pixel_by_pixel(tmp_path_factory, height: int, width: int) -> None:
    path = save(tmp_path_factory.getbasetemp() / "crop.png", noise(height, width, 3))
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    expected = noise(height, width, 3)[top : top + edge, left : left + edge]
    np.testing.assert_array_equal(read_picture(path, edge, 3), expected)


def test_reducing_averages_what_is_too_fine_to_show(tmp_path: Path) -> None:
    """Stripes of 1.25 periods per new pixel would, read at every eighth pixel, show as broad stripes."""
    columns = np.arange(512) / 8
    for periods, kept in ((1.25, (0.0, 0.02)), (0.1, (0.9, 1.1))):
        stripes = np.rint(128 + 100 * np.cos(2 * np.pi * periods * columns)).astype(np.uint8)
        path = save(tmp_path / f"{periods}.png", np.tile(stripes, (512, 1)))
        reduced = read_picture(path, 64, 1)[8:-8, 8:-8].astype(float)
        assert kept[0] <= reduced.std() / (100 / 2**0.5) <= kept[1]
        assert abs(reduced.mean() - 128) < 2


def test_a_large_jpeg_is_reduced_like_a_png(tmp_path: Path) -> None:
    """It is decoded at a fraction of its size, which must not show."""
    smooth = np.asarray(Image.fromarray(noise(24, 32, 3)).resize((512, 384), Image.Resampling.BICUBIC))
    exact = read_picture(save(tmp_path / "x.png", smooth), 32, 3).astype(int)
    reduced = read_picture(save(tmp_path / "x.jpg", smooth, quality=95, subsampling=0), 32, 3)
    assert np.abs(reduced - exact).mean() < 1.5


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8] = 255  # top left
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)  # what a tilted camera stores
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    stored.save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert np.abs(read_picture(tmp_path / "x.jpg", 16, 3).astype(int) - upright).max() < 30


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode: str, tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4, 3] = 255
    pixels[:, 4:6, 3] = 128
    Image.fromarray(pixels).convert(mode).save(tmp_path / "x.png")
    for channels in (1, 3):
        row = read_picture(tmp_path / "x.png", 8, channels)[0, :, 0]
        assert row.tolist() == [0] * 4 + [127] * 2 + [255] * 2


def test_a_transparent_palette_entry_or_grey_level_shows_white(tmp_path: Path) -> None:
    palette = Image.fromarray(np.eye(4, dtype=np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.save(tmp_path / "p.png", transparency=0)
    assert inspect_pictures([tmp_path / "p.png"], at_least=1) == ((4, 4), 4)
    assert read_picture(tmp_path / "p.png", 4, 3)[0, :2].tolist() == [[200, 0, 0], [255, 255, 255]]
    Image.fromarray(np.eye(4, dtype=np.uint8) * 9).save(tmp_path / "l.png", transparency=9)
    assert read_picture(tmp_path / "l.png", 4, 1)[0, :2, 0].tolist() == [255, 0]


def test_sixteen_bits_are_rounded_not_cut_off(tmp_path: Path) -> None:
    values = np.array([0, 257, 1000, 30000, 40000, 65000, 65278, 65535] * 8, np.uint16).reshape(8, 8, 1)
    expected = np.rint(values[0, :, 0] / 257.0)
    grey = write_png16(tmp_path / "grey.png", values)
    assert inspect_pictures([grey], at_least=1) == ((8, 8), 1)
    np.testing.assert_array_equal(read_picture(grey, 8, 1)[0, :, 0], expected)
    keyed = write_png16(tmp_path / "keyed.png", values, b"tRNS", struct.pack(">H", 1000))
    assert read_picture(keyed, 8, 1)[0, 2, 0] == 255
    alpha = np.concatenate([values, np.full_like(values, 65535)], axis=2)
    with_alpha = write_png16(tmp_path / "alpha.png", alpha)
    assert inspect_pictures([with_alpha], at_least=1) == ((8, 8), 1)
    assert np.abs(read_picture(with_alpha, 8, 1)[0, :, 0] - expected).max() <= 1
    color = write_png16(tmp_path / "color.png", values.repeat(3, axis=2))
    assert inspect_pictures([color], at_least=1) == ((8, 8), 3)
    assert np.abs(read_picture(color, 8, 3)[0, :, 1] - expected).max() <= 1
