"""Contact sheets, PNGs and videos."""

from __future__ import annotations

import weakref

import imageio
import numpy as np
import pytest
import torch
from PIL import Image

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.pictures import comparison_rows, contact_sheet, enlarge, image_grid, save_png, to_image
from mnif_nerf.export.video import write_video

RED = Image.new("RGB", (20, 16), (255, 0, 0))
BLUE = Image.new("RGB", (20, 16), (0, 0, 255))


def test_every_kind_of_picture_is_taken() -> None:
    floats = torch.tensor([[[0.0, 0.5, 1.0]]])
    assert to_image(floats).getpixel((0, 0)) == (0, 128, 255)
    assert to_image(np.array([[[1, 2, 3]]], dtype=np.uint8)).getpixel((0, 0)) == (1, 2, 3)
    assert to_image(np.array([[[np.nan, -1.0, 2.0]]])).getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(MNIFError, match=r"\[H, W, 3\]"):
        to_image(np.zeros((4, 4, 2)))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1)])
def test_grey_pictures_are_taken_with_and_without_their_axis(shape: tuple[int, ...]) -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(shape)
    for picture in (grey, torch.from_numpy(grey), grey / 255.0):
        image = to_image(picture)
        assert image.size == (3, 2)
        assert image.getpixel((2, 1)) == (5, 5, 5)


def test_enlarging_keeps_every_pixel_a_square() -> None:
    small = np.arange(8 * 10, dtype=np.uint8).reshape(8, 10)
    large = np.asarray(enlarge(small, 60))
    assert large.shape == (64, 80, 3)
    np.testing.assert_array_equal(large[..., 0], np.kron(small, np.ones((8, 8), np.uint8)))
    assert enlarge(RED, 16).size == RED.size


def test_contact_sheet_holds_the_pictures_in_order() -> None:
    plain = np.asarray(contact_sheet([[RED, BLUE], [BLUE, RED]]))
    assert (plain == [255, 0, 0]).all(axis=-1).sum() == 2 * 20 * 16
    red_columns = np.flatnonzero((plain[:16] == [255, 0, 0]).all(axis=-1).any(axis=0))
    blue_columns = np.flatnonzero((plain[:16] == [0, 0, 255]).all(axis=-1).any(axis=0))
    assert red_columns.max() < blue_columns.min()


def test_captions_labels_and_title_take_space_and_leave_ink() -> None:
    plain = contact_sheet([[RED]])
    full = contact_sheet([[RED]], captions=[["a very long caption"]], row_labels=["row"], title="title")
    assert full.height > plain.height + 20
    dark = (np.asarray(full).max(axis=-1) < 150).sum()
    assert dark > 20
    assert (np.asarray(full) == [255, 0, 0]).all(axis=-1).sum() == 20 * 16  # no text over a picture


def test_comparison_rows_and_uneven_rows() -> None:
    sheet = comparison_rows({"truth": [RED, RED, RED], "model": [BLUE]})
    assert (np.asarray(sheet) == [0, 0, 255]).all(axis=-1).sum() == 20 * 16


def test_grid_is_nearly_square_and_gapless() -> None:
    grid = image_grid([RED, BLUE, RED])
    assert grid.size == (40, 32)
    assert grid.getpixel((39, 0)) == (0, 0, 255)
    assert grid.getpixel((39, 31)) == (255, 255, 255)


@pytest.mark.parametrize(
    "arguments",
    [
        {"rows": []},
        {"rows": [[]]},
        {"rows": [[RED]], "captions": [["a", "b"]]},
        {"rows": [[RED]], "row_labels": ["a", "b"]},
    ],
)
def test_bad_sheets_are_refused(arguments: dict) -> None:
    with pytest.raises(MNIFError):
        contact_sheet(**arguments)


def test_png_round_trip(tmp_path) -> None:
    again = Image.open(save_png(RED, tmp_path / "deep" / "red.png"))
    assert again.size == (20, 16)
    assert again.getpixel((3, 3)) == (255, 0, 0)
    with pytest.raises(MNIFError, match=r"\.png"):
        save_png(RED, tmp_path / "red.bmp")


def test_mp4_without_ffmpeg_on_the_path_and_with_odd_sizes(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    frames = (Image.new("RGB", (33, 17), (k * 20, 100, 50)) for k in range(10))
    path = write_video(frames, tmp_path / "turn.mp4", fps=10)
    read = [frame for frame in imageio.get_reader(path)]  # noqa: C416  (its length is infinite)
    assert len(read) == 10
    assert read[0].shape == (18, 34, 3)
    assert np.abs(read[9].mean(axis=(0, 1)) - [180, 100, 50]).max() < 12
    assert imageio.get_reader(path).get_meta_data()["pix_fmt"].startswith("yuv420p")


def test_gif(tmp_path) -> None:
    path = write_video([RED, BLUE, RED], tmp_path / "turn.gif", fps=5)
    with Image.open(path) as movie:
        assert movie.n_frames == 3
        assert movie.info["duration"] == 200


def test_a_gif_does_not_keep_its_frames(tmp_path, monkeypatch):
    """A film of a thousand pictures of 1024 x 1024 pixels would take 3 GB."""
    alive: list[weakref.ref] = []

    def remembered(picture):
        assert sum(reference() is not None for reference in alive) <= 3
        copy = picture.copy()
        alive.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr("mnif_nerf.export.video.to_image", remembered)
    frames = (Image.new("RGB", (8, 8), (shade * 10, 0, 0)) for shade in range(24))
    with Image.open(write_video(frames, tmp_path / "long.gif")) as film:
        assert film.n_frames > 12  # Pillow merges frames that look the same


def test_interrupted_or_bad_videos_leave_nothing(tmp_path) -> None:
    def interrupted():
        yield RED
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(interrupted(), tmp_path / "turn.mp4")
    with pytest.raises(MNIFError, match="one size"):
        write_video([RED, Image.new("RGB", (5, 5))], tmp_path / "turn.mp4")
    with pytest.raises(MNIFError, match="at least one frame"):
        write_video([], tmp_path / "turn.gif")
    with pytest.raises(MNIFError, match=r"\.mp4 or \.gif"):
        write_video([RED], tmp_path / "turn.avi")
    with pytest.raises(MNIFError, match="fps"):
        write_video([RED], tmp_path / "turn.mp4", fps=0)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_breaks_off_is_one_sentence(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def append_data(self, _: np.ndarray) -> None:
            raise BrokenPipeError(32, "Broken pipe\n\nFFMPEG COMMAND: ...")

        def close(self) -> None:
            pass

    monkeypatch.setattr(imageio, "get_writer", lambda *_, **__: Broken())
    with pytest.raises(MNIFError, match="free some space") as caught:
        write_video([RED], tmp_path / "turn.mp4")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
