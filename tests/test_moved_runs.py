"""Run folders and data that were moved, seen by nerfstudio's commands and ours from any working directory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nerfstudio")

from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio_runs import Run, tiny_config
from tiny_runs import write_tiny_shapes, write_tiny_surfaces
from tiny_srn import write_tiny_srn

from mnif_nerf.cli import train
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.target import find_data
from mnif_nerf.models.moved_runs import DATA, take_data_option
from mnif_nerf.pipelines.methods import get_method
from mnif_nerf.pipelines.run_data import place_of_data
from mnif_nerf.viewer.nerfstudio_patches import EVERYWHERE, LOOPBACK


def train_in(project: Path, method: str = "mnif-lite") -> Path:
    """A run in `<project>/outputs`, with paths relative to the project, which is the working directory."""
    writers = {"mnif-lite": lambda root: write_tiny_srn(root, scenes=3, views=4, resolution=16)}
    writers["mnif-voxel-lite"] = lambda root: write_tiny_shapes(root, {"train": 4, "test": 2})
    writers["mnif-sdf-lite"] = lambda root: write_tiny_surfaces(root, {"train": 4, "test": 2})
    writers[method](project / "data" / "toys")
    config = tiny_config(Path("data/toys"), Path("outputs"), steps=6, method=method)
    return Run(config).folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run of radiance fields in it."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_in(folder)
    return folder


def run_of(project: Path) -> Path:
    return next(project.glob("outputs/*/*/run"))


def test_a_whole_project_is_moved(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(project, tmp_path / "my runs é")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = Path("..") / run_of(tmp_path / "my runs é").relative_to(tmp_path) / "config.yml"
    ComputePSNR(config, tmp_path / "eval.json").main()
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["checkpoint"].endswith("my runs é/outputs/tiny/mnif-lite/run/nerfstudio_models/step-000000005.ckpt")
    assert find_data(config).resolve() == tmp_path / "my runs é" / "data" / "toys"
    # The project that the working directory belongs to has other data of the same name.
    monkeypatch.chdir(write_tiny_srn(tmp_path / "other" / "data" / "toys", scenes=2, views=4, resolution=16).parents[1])
    assert find_data(tmp_path / "elsewhere" / config).resolve() == tmp_path / "my runs é" / "data" / "toys"


@pytest.mark.parametrize("method", ["mnif-lite", "mnif-voxel-lite", "mnif-sdf-lite"])
def test_a_run_without_its_data(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    run = train_in(tmp_path / "project", method)
    shutil.copytree(run, tmp_path / "car")
    monkeypatch.chdir(tmp_path)
    shutil.move(tmp_path / "project" / "data", tmp_path / "moved")

    loaded, pipeline, checkpoint, step = eval_setup(Path("car/config.yml"), test_mode="test")
    assert (checkpoint, step) == (Path("car/nerfstudio_models/step-000000005.ckpt"), 5)
    assert loaded.get_base_dir() == Path("car")
    told = " ".join(capsys.readouterr().out.split())
    assert "data/toys: no such folder (named by car/config.yml); give the data with --data." in told
    # What the viewer needs is there: instances, cameras, pictures to draw them with.
    assert len(pipeline.model.names) == len(pipeline.datamanager.names)
    assert pipeline.datamanager.train_dataset[0]["image"].shape[2] == 3
    camera, _ = pipeline.datamanager.eval_dataloader.get_camera(0)
    assert pipeline.model.get_outputs_for_camera(camera.to("cpu"))["rgb"].shape[2] == 3
    generation, _ = pipeline.viewer_panel.viewed.generation(Path("car"))
    assert generation.instance(1).field is not None
    with pytest.raises(SystemExit, match=r"no such folder \(named by car/config.yml\); give the data with"):
        ComputePSNR(Path("car/config.yml"), tmp_path / "eval.json").main()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["/bin/ns-render", "dataset", "--load-config", "car/config.yml"])
        with pytest.raises(SystemExit, match="give the data with --data"):  # no pictures to render beside
            eval_setup(Path("car/config.yml"), test_mode="inference")
    with pytest.raises(MNIFError, match="give the data with `data`"):
        find_data(Path("car/config.yml"))

    monkeypatch.setattr(sys, "argv", ["/bin/ns-eval", "--load-config", "car/config.yml", "--data", "moved/toys"])
    monkeypatch.setenv(DATA, "")  # so that it is as it was after the test
    take_data_option(sys.argv)
    assert sys.argv == ["/bin/ns-eval", "--load-config", "car/config.yml"]
    ComputePSNR(Path("car/config.yml"), tmp_path / "eval.json").main()
    assert json.loads((tmp_path / "eval.json").read_text())["results"]


def test_which_commands_data_is_taken_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, left, named in (
        (["ns-viewer", "--data=a b", "--load-config", "c"], ["ns-viewer", "--load-config", "c"], "a b"),
        (["ns-train", "mnif", "--data", "a"], ["ns-train", "mnif", "--data", "a"], ""),
        (["ns-render", "dataset", "--data", "a"], ["ns-render", "dataset", "--data", "a"], ""),
        (["ns-render", "spiral", "--data", "a"], ["ns-render", "spiral"], "a"),
        (["x/nerfstudio/scripts/eval.py", "--data", "a"], ["x/nerfstudio/scripts/eval.py"], "a"),
        (["my/eval.py", "--data", "a"], ["my/eval.py", "--data", "a"], ""),
        (["ns-eval", "--data"], ["ns-eval", "--data"], ""),
    ):
        monkeypatch.setenv(DATA, "")
        arguments = list(given)
        take_data_option(arguments)
        assert (arguments, os.environ[DATA]) == (left, named)


def test_where_data_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new" / "outputs" / "a" / "m" / "t").mkdir(parents=True)
    (tmp_path / "new" / "data" / "cars_train").mkdir(parents=True)
    config = tmp_path / "new" / "outputs" / "a" / "m" / "t" / "config.yml"
    old = Path("/home/old/outputs/a/m/t")
    found = tmp_path / "new" / "data" / "cars"
    assert place_of_data(Path("/home/old/data/cars"), config, old) == found  # the beginning of a category's name
    assert place_of_data(Path("data/cars"), config, Path("outputs/a/m/t")) == found
    assert place_of_data(Path("data/cars"), config, old) is None  # nobody knows where "data" was
    monkeypatch.chdir(tmp_path / "new")
    assert place_of_data(Path("data/cars"), config, old) == Path("data/cars")
    assert place_of_data(Path("x" * 300), config) is None


def test_mnif_train_takes_the_data_that_is_named_again(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is trained again by its config.yml finds its data as the run is found, or where --data says."""
    seen: dict[str, Any] = {}

    class Seen:
        def __init__(self, settings: Any, say: Any, ranks: Any) -> None:
            seen["data"] = settings.data

        def train(self) -> Path:
            return Path()

    monkeypatch.setattr("mnif_nerf.pipelines.run.TrainingRun", Seen)
    monkeypatch.chdir(tmp_path)
    settings = get_method("mnif-lite").new_run()
    settings.load_config = run_of(project) / "config.yml"
    train.main(settings)
    assert Path(seen["data"]).resolve() == project / "data" / "toys"
    settings.data = Path("named")
    train.main(settings)
    assert seen["data"] == Path("named")


def test_a_viewer_listens_on_this_machine_unless_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nerfstudio.configs.base_config import ViewerConfig

    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["ns-viewer"])
    loaded = eval_setup(run_of(project) / "config.yml", test_mode="test")[0]
    assert loaded.viewer.websocket_host == LOOPBACK
    loaded.viewer = ViewerConfig()  # as ns-viewer does
    assert loaded.viewer.websocket_host == LOOPBACK
    monkeypatch.setattr(sys, "argv", ["ns-viewer", "--viewer.websocket-host", EVERYWHERE])
    loaded.viewer = ViewerConfig()
    assert loaded.viewer.websocket_host == EVERYWHERE
    loaded.viewer = SimpleNamespace(websocket_host="127.0.0.2")
    assert loaded.viewer.websocket_host == "127.0.0.2"
    for host, port, words in (
        ("no.such.host.invalid", None, "is no address of this machine"),
        ("a..b", None, "is no address of this machine"),
        ("192.0.2.1", None, "is no address of this machine"),  # of documentation, and of nobody
        (LOOPBACK, 99_999, "websocket-port 99,999: there are no more ports"),
        (LOOPBACK, -1, "websocket-port -1: expected a whole number of at least 1"),
        (LOOPBACK, 0, "websocket-port 0"),
    ):
        with pytest.raises(SystemExit, match=f"error: --viewer.*{words}"):
            loaded.viewer = SimpleNamespace(websocket_host=host, websocket_port=port)


def test_a_flipped_byte_in_a_checkpoint(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(shutil.copytree(run_of(project), tmp_path / "run"))
    file = next((run / "nerfstudio_models").iterdir())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit, match=r"step-000000005.ckpt: is damaged \(.* is not what was written\)"):
        eval_setup(run / "config.yml", test_mode="test")
    config = tiny_config(project / "data" / "toys", tmp_path / "out", steps=9, load_dir=run / "nerfstudio_models")
    with pytest.raises(SystemExit, match="is damaged"):
        Run(config)
