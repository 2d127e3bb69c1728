"""scikit-learn's digits as a folder of pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnif_nerf.data.generate.digits import SPLIT_SIZES, make_digits
from mnif_nerf.data.readers.labels import read_labels
from mnif_nerf.data.readers.picture_files import find_pictures, inspect_pictures, read_picture
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import read_json
from mnif_nerf.labels import Labels

datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "digits")


def names(folder: Path) -> dict[str, list[str]]:
    return {split: sorted(path.name for path in (folder / split).iterdir()) for split in SPLIT_SIZES}


def test_every_digit_is_in_one_split_under_its_label(digits: Path) -> None:
    found = names(digits)
    assert {split: len(files) for split, files in found.items()} == {"train": 1500, "val": 97, "test": 200}
    labels = datasets.load_digits().target
    together = sorted(name for files in found.values() for name in files)
    assert together == [f"{row:04d}-{label}.png" for row, label in enumerate(labels)]
    for files in found.values():  # drawn by chance: every digit in every split, and no run of rows
        assert {name[5] for name in files} == set("0123456789")
    assert inspect_pictures(find_pictures(digits / "train")) == ((8, 8), 1)
    assert read_json(digits / "dataset.json")["complete"] is True
    table = read_labels(digits / "labels.csv")
    assert table.labels == Labels({"digit": tuple(name[5] for name in together)})


def test_pixels_are_the_tables_ink(digits: Path) -> None:
    images = datasets.load_digits().images
    for path in find_pictures(digits / "val"):
        with Image.open(path) as picture:
            assert picture.mode == "L"
        pixels = read_picture(path, 8, 1)[..., 0]
        np.testing.assert_array_equal(pixels, np.rint(images[int(path.name[:4])] * 255 / 16))


def test_a_second_run_changes_nothing_and_the_seed_decides(digits: Path, tmp_path: Path) -> None:
    file = next((digits / "train").iterdir())
    before = file.stat().st_mtime_ns
    assert make_digits(digits) == digits
    assert file.stat().st_mtime_ns == before
    assert names(make_digits(tmp_path / "again")) == names(digits)
    assert names(make_digits(tmp_path / "other", seed=1)) != names(digits)
    with pytest.raises(MNIFError, match="made with seed 0, asked for 1"):
        make_digits(digits, seed=1)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = Image.Image.save, []

    def breaks(picture: Image.Image, path: Path, *rest: object, **more: object) -> None:
        saved.append(path)
        if len(saved) == 1550:
            raise KeyboardInterrupt
        save(picture, path, *rest, **more)

    monkeypatch.setattr(Image.Image, "save", breaks)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / "digits")
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == ["dataset.json", "train"]
    make_digits(tmp_path / "digits")
    assert len(saved) == 1550 + 97 + 200  # train was there already
    assert {split: len(files) for split, files in names(tmp_path / "digits").items()} == SPLIT_SIZES


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(MNIFError, match="not empty"):
        make_digits(tmp_path)


def test_without_scikit_learn_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MNIFError, match="pip install scikit-learn"):
        make_digits(tmp_path / "digits")
    assert not (tmp_path / "digits").exists()
