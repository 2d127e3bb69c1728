"""Pictures of all kinds: other formats than PNG and JPEG, colour profiles, and what file servers put among them."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from mnif_nerf.data.readers.color_profiles import to_srgb
from mnif_nerf.data.readers.images import IMAGE_SUFFIXES, inspect_background, read_image
from mnif_nerf.data.readers.picture_files import find_pictures, read_picture
from mnif_nerf.data.stores.grid_layout import locate_grids
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.data_report import check

RED = (200, 40, 40)
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def profile(primaries: tuple[tuple[float, float, float], ...] = ADOBE, gamma: float = 2.2) -> bytes:
    """A matrix profile, version 2."""

    def fixed(numbers: tuple[float, ...]) -> bytes:
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    white = (0.9642, 1.0, 0.8249)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = [
        (b"desc", b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + bytes(78)),
        (b"cprt", b"text\0\0\0\0none\0"),
        (b"wtpt", b"XYZ \0\0\0\0" + fixed(white)),
        *((name, b"XYZ \0\0\0\0" + fixed(xyz)) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries)),
        *((name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")),
    ]
    offset, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags:
        value += b"\0" * (-len(value) % 4)
        table += name + struct.pack(">II", offset + len(data), len(value))
        data += value
    head = struct.pack(">I4sI4s4s4s", offset + len(data), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(white)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def in_srgb(color: tuple[int, int, int]) -> tuple[int, ...]:
    picture = Image.new("RGB", (1, 1), color)
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile()))
    found = ImageCms.profileToProfile(picture, given, ImageCms.createProfile("sRGB"))
    assert found is not None
    return tuple(found.getpixel((0, 0)))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jfif", ".jpe", ".webp", ".bmp", ".gif", ".tif"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix)
    Image.new("RGB", (32, 32), RED).save(path, kind)
    assert find_pictures(tmp_path) == [path]
    for pixels in (read_picture(path, 16, 3), read_image(path, 32, 32)[..., :3]):
        assert np.abs(pixels.astype(int) - RED).max() <= 6


def test_lossless_formats_have_sharp_silhouettes(tmp_path: Path) -> None:
    for suffix, threshold in ((".bmp", 6), (".tif", 6), (".webp", 24)):
        Image.new("RGB", (32, 32), "white").save(tmp_path / f"a{suffix}")
        assert inspect_background([tmp_path / f"a{suffix}"], 32, 32).threshold == threshold


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_profiles_are_applied(tmp_path: Path, mode: str) -> None:
    assert in_srgb(RED)[0] > 225, "the profile matters"
    picture = Image.new("RGB", (32, 32), RED)
    if mode == "RGBA":
        picture.putalpha(200)
    elif mode == "P":
        picture = picture.quantize(4)
    picture.save(tmp_path / "a.png", icc_profile=profile())
    pixels = read_picture(tmp_path / "a.png", 16, 4 if mode == "RGBA" else 3)
    wanted = np.array(in_srgb(RED)) * (200 / 255 if mode == "RGBA" else 1)
    assert np.abs(pixels[0, 0, :3] - wanted).max() <= 2
    assert np.abs(read_image(tmp_path / "a.png", 32, 32)[0, 0, :3].astype(int) - in_srgb(RED)).max() <= 2
    if mode == "RGBA":
        assert pixels[0, 0, 3] == 200


def test_profiles_that_change_nothing() -> None:
    picture = Image.new("RGB", (2, 2), RED)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for content in (b"", srgb, b"damaged" * 50, profile()[:200]):
        picture.info["icc_profile"] = content
        assert to_srgb(picture).getpixel((0, 0)) == RED
    grey = Image.new("L", (2, 2), 77)
    grey.info["icc_profile"] = profile()  # of another kind of picture
    assert to_srgb(grey).getpixel((0, 0)) == 77


def test_a_folder_of_everything(tmp_path: Path) -> None:
    for k, suffix in enumerate((".png", ".webp", ".bmp", ".gif")):
        Image.new("RGB", (32, 32), (40 * k, 0, 0)).save(tmp_path / f"p{k}{suffix}")
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "raw.cr2").write_bytes(b"x")
    (tmp_path / "phone.heic").write_bytes(b"x")
    thumbs = tmp_path / "@eaDir" / "p0.png"
    thumbs.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(thumbs / "SYNOPHOTO_THUMB_M.jpg")
    if ".heic" in IMAGE_SUFFIXES:
        (tmp_path / "phone.heic").unlink()
    report = check(tmp_path, progress=False)
    assert not report.problems
    said = str(report)
    assert "train: 5 pictures" in said
    assert "1 files are of kinds that are not read as pictures: 1 .cr2." in said
    assert "1 files are films (film.gif, ...)" in said
    assert ("mnif_nerf[heic]" in said) == (".heic" not in IMAGE_SUFFIXES)
    assert read_picture(tmp_path / "film.gif", 16, 3)[0, 0].tolist() == [255, 0, 0]


def test_one_picture_in_two_formats(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".webp"):
        Image.new("RGB", (32, 32), RED).save(tmp_path / f"a{suffix}")
    Image.new("RGB", (32, 32)).save(tmp_path / "b.jpg")
    layout = locate_grids(tmp_path, "image")
    assert [source.path.name for source in layout.every()] == ["a.jpg", "b.jpg"]
    assert "1 instances are there as several files" in layout.notes[0]


def test_photographs_that_say_adobe_rgb_in_their_notes(tmp_path: Path) -> None:
    notes = Image.Exif()
    notes.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] = 0xFFFF
    notes.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = {1: "R03"}
    picture = Image.new("RGB", (32, 32), RED)
    picture.save(tmp_path / "a.jpg", exif=notes, quality=95)
    found = read_picture(tmp_path / "a.jpg", 16, 3)[0, 0]
    assert np.abs(found.astype(int) - in_srgb(RED)).max() <= 4
    notes.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] = 1
    picture.save(tmp_path / "a.jpg", exif=notes, quality=95)
    assert np.abs(read_picture(tmp_path / "a.jpg", 16, 3)[0, 0].astype(int) - RED).max() <= 4


def test_a_header_that_claims_too_much_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "a.bmp")
    content = bytearray((tmp_path / "a.bmp").read_bytes())
    content[18:26] = struct.pack("<ii", 9000, 9000)
    (tmp_path / "a.bmp").write_bytes(content)
    with pytest.raises(MNIFError, match="cannot be read as an image"):
        read_picture(tmp_path / "a.bmp", 16, 3)


def test_floats_are_read_by_their_range(tmp_path: Path) -> None:
    for top in (1.0, 255.0, 65535.0):
        Image.fromarray(np.array([[0.5 * top, top]] * 2, np.float32)).save(tmp_path / "a.tif")
        np.testing.assert_array_equal(read_picture(tmp_path / "a.tif", 2, 1)[0, :, 0], [128, 255])


@pytest.mark.parametrize(("shown", "maps", "left"), [("images", "masks", 3), (".", "depth", 3), ("mask", "no_mask", 6)])
def test_folders_of_masks_are_left_out(tmp_path: Path, shown: str, maps: str, left: int) -> None:
    for folder in (shown, maps):
        (tmp_path / folder).mkdir(exist_ok=True)
        for k in range(3):
            Image.new("RGB", (8, 8), RED).save(tmp_path / folder / f"{k}.png")
    layout = locate_grids(tmp_path, "image")
    assert sum(map(len, layout.splits.values())) == left
    assert any("go with others of the same names" in note for note in layout.notes) == (left == 3)


@pytest.mark.parametrize(
    ("name", "said"), [("transforms_train.json", "mnif-fit reads"), ("sparse", "COLMAP's cameras")]
)
def test_pictures_of_one_scene_are_no_pictures_to_learn_from(tmp_path: Path, name: str, said: str) -> None:
    for k in range(3):
        Image.new("RGB", (8, 8), RED).save(tmp_path / f"{k}.png")
    (tmp_path / name).mkdir() if name == "sparse" else (tmp_path / name).write_text("{}")
    with pytest.raises(MNIFError, match=said):
        check(tmp_path, progress=False)
