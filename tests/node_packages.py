"""Packages of JavaScript that look at written files: glTF's validator and three.js.

`npm install --prefix .ci --no-package-lock` puts them into .ci/node_modules (`.ci/run` does so), and
`MNIF_NODE_MODULES` names another folder. Tests that need one are skipped where it is absent, and say so.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_INSTALLED = Path(__file__).parents[1] / ".ci" / "node_modules"


def node_package(name: str) -> Path:
    """The folder of an installed package; the test is skipped where there is none."""
    folder = Path(os.environ.get("MNIF_NODE_MODULES", _INSTALLED)) / name
    if not (folder / "package.json").is_file():
        pytest.skip(f"NO {name}: npm install --prefix .ci --no-package-lock brings it")
    return folder


def node() -> str:
    """Node's program; the test is skipped where there is none."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("NO NODE: install Debian's package nodejs to run this test")
    return found
