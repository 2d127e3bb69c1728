"""kill -9 and Ctrl-C while something is being written: what is there afterwards is whole, and work goes on.

Packing a store and rendering data are killed in test_store.py and test_from_meshes.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import tiny_model
from tiny_srn import write_tiny_srn

from mnif_nerf.cli import export_mesh
from mnif_nerf.files import atomic_folder
from mnif_nerf.pipelines.model_folder import read_model, write_model


def stop_when_half_written(program: str, *arguments: str, how: signal.Signals) -> tuple[int, str]:
    """Run Python code until it says "half" on its standard output, then send the signal."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = []
        for line in process.stdout:  # ends where the program does: a failure is told below, and not waited for
            said.append(line)
            if line == "half\n":
                break
        process.send_signal(how)
        errors = process.stderr.read()
        assert process.wait(timeout=60) is not None, said
    return process.returncode, errors


TRAINING = """
import sys, time
from pathlib import Path
from nerfstudio_runs import Run, tiny_config
import torch

whole = torch.save

def save(state, file):
    whole(state, file)
    if state["step"] == 16:
        file.truncate(file.tell() // 2)
        file.flush()
        print("\\nhalf", flush=True)
        time.sleep(600)

torch.save = save
Run(tiny_config(Path(sys.argv[1]), Path(sys.argv[2]), steps=20, **{"steps_per_save": 8}))
"""


def test_kill_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    pytest.importorskip("nerfstudio")
    from nerfstudio_runs import Run, tiny_config

    data = write_tiny_srn(tmp_path / "data", scenes=3, views=4, resolution=16)
    code, _ = stop_when_half_written(TRAINING, str(data), str(tmp_path / "out"), how=signal.SIGKILL)
    assert code == -signal.SIGKILL
    folder = next(tmp_path.glob("out/tiny/mnif-lite/run"))
    assert [path.name for path in (folder / "nerfstudio_models").iterdir()] == ["step-000000008.ckpt"]
    assert read_model(folder / "model").names == ("scene000", "scene001", "scene002")

    changes = {"load_dir": folder / "nerfstudio_models"}
    resumed = Run(tiny_config(data, tmp_path / "out", steps=20, **changes))  # into the same folder
    straight = Run(tiny_config(data, tmp_path / "straight", steps=20))
    assert resumed.losses == {step: straight.losses[step] for step in range(9, 20)}
    assert resumed.checkpoint()["step"] == 19
    assert not (folder / ".checkpoint.tmp").exists()


MODEL = """
import sys, time
from tiny_model import tiny_model
from mnif_nerf.pipelines import model_folder

whole = model_folder.write_tensors

def write_tensors(path, tensors):
    whole(path, tensors)
    if path.name == "latents.safetensors":
        print("half", flush=True)
        time.sleep(600)

model_folder.write_tensors = write_tensors
model_folder.write_model(tiny_model(seed=1), sys.argv[1])
"""


def test_kill_while_a_model_is_written_keeps_the_old_one(tmp_path: Path) -> None:
    folder = write_model(tiny_model(seed=0), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _ = stop_when_half_written(MODEL, str(folder), how=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    read_model(folder)
    write_model(tiny_model(seed=1), folder)
    assert (folder / "latents.safetensors").read_bytes() != before["latents.safetensors"]


REPLACEMENTS = """
import itertools, os, signal, sys
from pathlib import Path
from mnif_nerf import files
from mnif_nerf.files import atomic_folder

target, exchange = Path(sys.argv[1]) / "model", sys.argv[2] == "exchange"
if not exchange:
    files._exchange_names = lambda first, second: False

def write(text):
    with atomic_folder(target, replace=True) as temporary:
        for name in "ab":
            (temporary / name).write_text(text)

def killed_at(number):
    lines = itertools.count()

    def trace(frame, event, argument):
        if "mnif_nerf" not in frame.f_code.co_filename:
            return None
        if event == "line" and next(lines) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    write("new")
    os._exit(0)

for number in itertools.count():
    write("old")
    assert os.listdir(target.parent) == ["model"], os.listdir(target.parent)
    child = os.fork()
    if child == 0:
        killed_at(number)
    _, status = os.waitpid(child, 0)
    if not exchange:
        files.recover_folder(target)  # what readers do
    content = {name: (target / name).read_text() for name in sorted(os.listdir(target))}
    assert content in ({"a": "old", "b": "old"}, {"a": "new", "b": "new"}), (number, content)
    if status == 0:
        break
print(number)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems cannot exchange two names at once")
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_folder_that_is_replaced_is_there_wherever_the_process_is_killed(tmp_path: Path, way: str) -> None:
    """Killed at every line of files.py in turn; the next write removes what was left."""
    command = [sys.executable, "-c", REPLACEMENTS, str(tmp_path), way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40, "every line was tried"


def test_what_a_living_process_writes_is_not_swept(tmp_path: Path) -> None:
    program = """if True:
        import sys, time
        from mnif_nerf.files import atomic_file, atomic_folder
        with atomic_folder(sys.argv[1] + "/a") as folder, atomic_file(sys.argv[1] + "/a.txt") as file:
            print("half", flush=True)
            sys.stdin.readline()
    """
    command = [sys.executable, "-c", program, str(tmp_path)]
    for killed in (False, True):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "half\n"
            with atomic_folder(tmp_path / f"b{killed}"):
                assert len(list(tmp_path.glob(".a.*.tmp*"))) == 2
            if killed:
                process.kill()
            else:
                process.stdin.write("\n")
        if killed:
            assert len(list(tmp_path.glob(".a.*.tmp*"))) == 2
            with atomic_folder(tmp_path / "c"):
                assert not list(tmp_path.glob(".a.*"))
        else:
            (tmp_path / "a").rmdir()


EXPORT = """
import sys, time
from pathlib import Path
from mnif_nerf.cli import export_mesh

whole = Path.write_bytes

def write_bytes(path, content):
    if "sample001" not in path.name:
        return whole(path, content)
    whole(path, content[: len(content) // 2])
    print("half", flush=True)
    time.sleep(600)

Path.write_bytes = write_bytes
sys.argv[1:] = ["--load-config", sys.argv[1], "--num-samples", "3", "--resolution", "16", "--output", sys.argv[2]]
export_mesh.entrypoint()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_export_leaves_no_half_file(trained: Path, tmp_path: Path, how: signal.Signals) -> None:
    output = tmp_path / "meshes"
    code, errors = stop_when_half_written(EXPORT, str(trained), str(output), how=how)
    # What kill -9 leaves is hidden; Ctrl-C leaves nothing.
    assert [path.name for path in output.iterdir() if not path.name.startswith(".")] == ["sample000.glb"]
    if how == signal.SIGINT:
        assert code == 130
        assert errors.strip().splitlines()[-1].startswith("interrupted: ")
        assert "Traceback" not in errors
        assert not list(output.glob(".*"))
    else:
        assert code == -signal.SIGKILL
    first = (output / "sample000.glb").read_bytes()
    again = export_mesh.ExportOptions(str(trained), num_samples=3, resolution=16, output=output)
    export_mesh.main(again)
    assert (output / "sample000.glb").read_bytes() == first
    assert len(list(output.glob("[!.]*.glb"))) == 3
    assert (output / "report.json").is_file()
