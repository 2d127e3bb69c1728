"""Make an environment with the core alone: `python .ci/minimal.py FOLDER`, run by the Python of the full environment.

PyTorch and what it declares are linked from the full environment, because a second copy takes 5 GB; everything else is
installed by pip from what pyproject.toml declares, so a dependency that is not declared is not there.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import subprocess
import sys
import venv
from pathlib import Path


def closure(name: str, found: dict[str, metadata.Distribution]) -> dict[str, metadata.Distribution]:
    """The distribution and all that it requires, of those installed here."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # for another system
        return found
    if distribution.name.lower() not in found:
        found[distribution.name.lower()] = distribution
        for requirement in distribution.requires or []:
            if "extra ==" not in requirement:
                closure(re.split(r"[^\w.-]", requirement, maxsplit=1)[0], found)
    return found


def main(folder: Path) -> None:
    """Make or complete the environment `folder`."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    places = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    site = Path(places.strip())
    for distribution in closure("torch", {}).values():
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            source, link = Path(str(distribution.locate_file(top))), site / top
            if source.exists() and not link.exists():
                os.symlink(source.resolve(), link)
    # The constraints hold for Python and torch as they are here.
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
    subprocess.run([*install, "-e", ".", "pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
