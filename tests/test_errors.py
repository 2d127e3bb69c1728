from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mnif_nerf.errors import MNIFError, first_line, in_file, require, with_flags


def test_a_missing_extra_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)  # another test may have imported it
    with pytest.raises(MNIFError) as caught:
        require("matplotlib.figure", "plots")
    said = "matplotlib cannot be imported; it needs the plots extra: pip install 'mnif_nerf[plots]'."
    assert str(caught.value) == said
    assert require("json", "none").loads("1") == 1


def test_what_a_file_says_is_not_told_as_an_option() -> None:
    place = Path("run/prior.json")
    error = in_file(place, MNIFError("`steps` 'x': expected a whole number."))
    assert with_flags(str(error), [("steps",)]) == "run/prior.json: steps 'x': expected a whole number."
    assert str(in_file(place, error)) == str(error)


def test_first_lines() -> None:
    assert first_line(OSError("no space.\nmore")) == "no space"
    assert first_line(OSError("no space"), kind=True) == "OSError: no space"
    assert first_line(KeyError(), kind=True) == "KeyError"
    assert len(first_line(ValueError("x" * 999))) == 200


def test_long_values_are_shortened_in_every_sentence() -> None:
    path = "/data/" + "folder/" * 30 + "model"
    for value in ("x" * 5000, "x" * 255 + "/" + "y" * 5000, " ".join("word" for _ in range(5000)), "\x1b[2J" * 999):
        said = str(MNIFError(f"{path}: holds {value!r} where a name is expected; give the run's folder."))
        assert len(said) <= 1500
        assert said.startswith(f"{path}: holds ")
        assert said.endswith("is expected; give the run's folder.")
        assert said.isprintable()
    short = f"{path}: no such file; give one."
    assert str(MNIFError(short)) == short
