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
        said = [line for line in iter(process.stdout.readline, "half\n") if line]
        process.send_signal(how)
        errors = process.stderr.read()
        assert process.wait(timeout=60) is not None, said
    return process.returncode, errors


TRAINING = """
import sys, time
from pathlib import Path
from nerfstudio_runs import Run, tiny_config
from mnif_nerf.pipelines.training import trainer

whole = trainer.save

def save(state, file):
    whole(state, file)
    if state["step"] == 16:
        file.truncate(file.tell() // 2)
        file.flush()
        print("\\nhalf", flush=True)
        time.sleep(600)

trainer.save = save
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
