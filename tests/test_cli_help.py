"""Every console script: found through its entry point, and its --help imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distribution

import pytest

HEAVY = ("torch", "nerfstudio", "trimesh", "diffusers", "scipy", "PIL", "imageio", "torchmetrics", "matplotlib")
SCRIPTS = sorted(point.name for point in distribution("mnif_nerf").entry_points if point.group == "console_scripts")
COMMANDS = {name: [[]] for name in SCRIPTS}
COMMANDS["mnif-data"] += [["procedural-cars"], ["from-meshes"], ["digits"], ["download"], ["check"]]
# Told first where they are missing.
REQUIRED = {"mnif-make": ["folder"], "mnif-import-official": ["model.pth"]}

# Help first, which must import nothing heavy; then the same command with an option that there is not.
PROGRAM = """
import sys
from importlib.metadata import distribution
name, words, required = sys.argv[1], sys.argv[2].split(), sys.argv[3].split()
(point,) = [p for p in distribution("mnif_nerf").entry_points if (p.group, p.name) == ("console_scripts", name)]

def run(*options):
    sys.argv = [name, *words, *options]
    try:
        point.load()()
    except SystemExit as stop:
        return stop.code
    raise AssertionError(f"{options} went on to run the command")

assert not run("--help")
heavy = sorted(set(HEAVY) & set(sys.modules))
assert not heavy, f"--help imports {', '.join(heavy)}"
assert run(*required, "--no-such-option") == 2
"""

# Ctrl-C while the command's own imports are under way.
INTERRUPTED = """
import os, signal, sys
from importlib.metadata import distribution

class Finder:
    def find_spec(self, name, *rest):
        if name == "tyro":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
(point,) = [p for p in distribution("mnif_nerf").entry_points if p.name == "mnif-data"]
sys.argv = ["mnif-data", "--help"]
point.load()()
"""


def test_ctrl_c_before_the_command_begins() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted: nothing was begun.\n")


def test_the_scripts_are_all_there() -> None:
    assert SCRIPTS == [
        "mnif-data",
        "mnif-demo",
        "mnif-diagnose",
        "mnif-eval",
        "mnif-export-mesh",
        "mnif-export-web",
        "mnif-fit",
        "mnif-import-official",
        "mnif-make",
        "mnif-publish",
        "mnif-render",
        "mnif-sample",
        "mnif-sweep",
        "mnif-train",
        "mnif-train-prior",
    ]


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, several in COMMANDS.items() for words in several])
def test_help_is_light_and_unknown_options_are_refused(name: str, words: list[str]) -> None:
    program = PROGRAM.replace("HEAVY", repr(HEAVY))
    command = [sys.executable, "-c", program, name, " ".join(words), " ".join(REQUIRED.get(name, []))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: {' '.join([name, *words])}" in done.stdout
    if not words:  # subcommands tell first what else is missing
        assert "no-such-option" in done.stderr + done.stdout.split("usage:")[-1]
