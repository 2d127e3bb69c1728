from __future__ import annotations

import sys

import pytest

from mnif_nerf.errors import MNIFError, first_line, require


def test_a_missing_extra_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)  # another test may have imported it
    with pytest.raises(MNIFError) as caught:
        require("matplotlib.figure", "plots")
    said = "matplotlib cannot be imported; it needs the plots extra: pip install 'mnif_nerf[plots]'."
    assert str(caught.value) == said
    assert require("json", "none").loads("1") == 1


def test_first_lines() -> None:
    assert first_line(OSError("no space.\nmore")) == "no space"
    assert first_line(OSError("no space"), kind=True) == "OSError: no space"
    assert first_line(KeyError(), kind=True) == "KeyError"
    assert len(first_line(ValueError("x" * 999))) == 200
