"""The folder of controls on nerfstudio's own viewer, of runs of all modalities and of a training; without a browser."""

from __future__ import annotations

import pickle
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("nerfstudio")

from nerfstudio.cameras.cameras import CameraType
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.viewer.utils import CameraState, get_camera
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException
from nerfstudio_runs import Run, tiny_config
from tiny_runs import write_tiny_pictures, write_tiny_shapes
from tiny_srn import write_tiny_srn
from viewer_page import free_port
from viser import GuiEvent

from mnif_nerf.errors import MNIFError
from mnif_nerf.pipelines.model_folder import read_model, write_prior
from mnif_nerf.priors.prior import LatentPrior, PriorConfig
from mnif_nerf.rendering.cameras import orbit_pose
from mnif_nerf.viewer.nerfstudio_patches import Framing, frame, guard
from mnif_nerf.viewer.panel import escape

COUNTS = {"train": 6, "val": 2}
METHODS = ("mnif-lite", "mnif-voxel-lite", "mnif-image-lite")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    made = (
        write_tiny_srn(folder / "toys", scenes=4, views=5, resolution=16),
        write_tiny_shapes(folder / "shapes", COUNTS),
        write_tiny_pictures(folder / "pictures", COUNTS),
    )
    return dict(zip(METHODS, made))


@pytest.fixture(scope="module")
def runs(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Short runs with priors."""
    folder = tmp_path_factory.mktemp("runs")
    made = {method: Run(tiny_config(data[method], folder, steps=16, method=method)) for method in METHODS}
    for run in made.values():
        add_prior(run.folder)
    return made


def add_prior(folder: Path) -> None:
    latents = read_model(folder / "model").latents
    write_prior(LatentPrior.fit(latents, PriorConfig(steps=3), progress=False), folder / "model")


class Opened:
    """nerfstudio's viewer of a loaded run; its controls are found by their labels."""

    def __init__(self, folder: Path, port: int | None = None, pipeline: Any = None) -> None:
        self.pipeline = pipeline or eval_setup(folder / "config.yml", test_mode="test")[1]
        config = ViewerConfig(websocket_host="127.0.0.1", websocket_port=port or free_port())
        lock = threading.Lock()
        log = folder / "viewer_log_filename.txt"
        self.viewer = Viewer(config, log, folder, self.pipeline, train_lock=lock)
        self.panel = self.pipeline.viewer_panel
        self.walk = self.panel.walk

    def start_again(self) -> None:
        """Controls, walk and picture as at the start; quicker than a new viewer."""
        self.walk.__init__(self.walk.pipe, self.walk.no_prior)
        for name in ("source", "instance", "seed", "steps", "temperature", "first", "second", "mix"):
            self.panel._handles[name]._impl.value = getattr(self.walk.settings, name)
        for slider, position in zip(self.panel._sliders, self.walk.settings.positions):
            slider._impl.value = position
        self.panel._name._impl.value = self.walk.pipe.names[0]
        self.panel._show()
        self.panel._write_status("ready")

    def handle(self, label: str) -> Any:
        handles = self.viewer.viser_server.gui._gui_input_handle_from_id.values()
        (found,) = (handle for handle in handles if handle._impl.label == label)
        return found

    def set(self, label: str, value: Any) -> None:
        """As when a browser sends a value (viser calls back in a thread of its pool)."""
        handle = self.handle(label)
        handle._impl.value = type(handle.value)(value)
        self.press(label)

    def press(self, label: str) -> None:
        handle = self.handle(label)
        for callback in handle._impl.update_cb:
            callback(GuiEvent(None, None, handle))

    @property
    def status(self) -> str:
        return self.panel._status.content.replace("\\", "")

    def picture(self, **changes: Any) -> np.ndarray:
        pose = orbit_pose(0.0, 10.0)[:3].clone()
        pose[:, 1:3] *= -1
        state = CameraState(0.9, 1.0, pose, changes.pop("kind", CameraType.PERSPECTIVE), idx=3)
        camera = get_camera(state, 24, 24)
        outputs = self.pipeline.model.get_outputs_for_camera(camera, **changes)
        assert list(outputs) == ["rgb", "depth", "accumulation"]
        return outputs["rgb"].numpy()

    def close(self) -> None:
        self.viewer.viser_server.stop()


@pytest.fixture(scope="module")
def viewers(runs: dict[str, Run]) -> Iterator[dict[str, Opened]]:
    made = {method: Opened(run.folder) for method, run in runs.items()}
    yield made
    for viewer in made.values():
        viewer.close()


@pytest.fixture
def opened(viewers: dict[str, Opened], request: pytest.FixtureRequest) -> Opened:
    """The viewer of one modality (radiance, where a test does not say), as it is when it opens."""
    viewer = viewers[getattr(request, "param", "mnif-lite")]
    viewer.start_again()
    return viewer


# ------------------------------------------------------------------------------------------------------- the folder


def test_there_is_one_folder_of_controls_in_order(opened: Opened) -> None:
    ids = opened.viewer.viser_server.gui._gui_input_handle_from_id
    folder = opened.handle("Source")._impl.parent_container_id
    labels = [handle._impl.label for handle in ids.values() if handle._impl.parent_container_id == folder]
    directions = [f"Direction {k}" for k in range(1, 5)]  # of four latent numbers there are four
    assert labels == [
        *("Source", "Instance", "Name", "Draw new sample", "Seed", "Sampler steps", "Temperature"),
        *("Hold", "Held share", "Redraw the rest", "Remember this", "A", "B", "A to B", *directions),
        *("Undo directions", "Save latent", "Export mesh"),
    ]
    assert opened.handle("Instance").value == 0
    assert opened.handle("Name").value == opened.walk.pipe.names[0]
    assert opened.status.startswith(f"**Shown:** #0 {opened.walk.pipe.names[0]}")


@pytest.mark.parametrize("opened", METHODS, indirect=True)
def test_every_control_changes_the_picture(opened: Opened) -> None:
    seen = [opened.picture()]

    def changed() -> bool:
        seen.append(opened.picture())
        return not np.array_equal(seen[-1], seen[-2])

    opened.press("Draw new sample")
    assert changed()
    assert "drew seed 0" in opened.status
    assert opened.handle("Source").value == "generated"
    opened.press("Draw new sample")
    assert changed()
    assert opened.handle("Seed").value == 1
    opened.press("Remember this")
    start = opened.handle("Direction 1").value
    opened.set("Direction 1", start + 1 if start < 0 else start - 1)
    assert changed()
    assert "edited" in opened.status
    opened.press("Undo directions")
    assert changed()
    assert opened.handle("Direction 1").value == start
    opened.set("A to B", 0.2)
    assert changed()
    assert opened.handle("Source").value == "from A to B"
    opened.set("Name", opened.walk.pipe.names[2])
    assert changed()
    assert opened.handle("Instance").value == 2
    opened.set("Source", "mean")
    assert changed()


def test_the_shown_code_is_that_of_the_walk_and_of_the_training_table(opened: Opened) -> None:
    model = opened.pipeline.model
    opened.set("Instance", 3)
    assert torch.equal(model.latent_of(None), model.latents.weight[3])
    opened.press("Draw new sample")
    assert torch.equal(model.latent_of(None), opened.walk.latent)
    assert torch.equal(model.latent_of(1), model.latents.weight[1]), "cameras that name a scene get their own"


@pytest.mark.parametrize("opened", METHODS, indirect=True)
def test_saved_files_are_named_in_the_status_and_are_good(opened: Opened, runs: dict[str, Run]) -> None:
    from mnif_nerf.cli.generation_common import read_latents

    opened.press("Draw new sample")
    opened.press("Save latent")
    written = Path(re.search(r"wrote (.*) \(", opened.status)[1])  # type: ignore[index]
    assert written.parent == (opened.panel.run / "viewer").resolve()
    assert torch.equal(read_latents(written)[0], opened.walk.latent)
    image = opened.walk.pipe.modality == "image"
    opened.press("Export picture" if image else "Export mesh")
    if "wrote" in opened.status:  # a run of 16 steps need not have a surface
        suffix = ".png" if image else ".glb"
        assert Path(re.search(r"wrote (.*) \(", opened.status)[1]).suffix == suffix  # type: ignore[index]
    else:
        assert not image
        assert "lower" in opened.status
    assert not list((opened.panel.run / "viewer").glob(".*"))


# --------------------------------------------------------------------------------------------------------- mistakes


def test_a_missing_prior_is_told_and_one_that_comes_later_is_used(
    data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tiny_config(data["mnif-lite"], tmp_path, steps=4))
    opened = Opened(run.folder)
    try:
        opened.press("Draw new sample")
        assert f"mnif-train-prior --load-config {run.folder / 'config.yml'}" in opened.status
        assert opened.handle("Source").value == "training instance"
        add_prior(run.folder)
        opened.press("Draw new sample")
        assert "drew seed 0" in opened.status
        # A prior of other latents draws nonsense.
        other = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
        write_prior(LatentPrior.fit(other, PriorConfig(steps=3), progress=False), run.folder / "model")
        opened.press("Draw new sample")
        assert "other latents" in opened.status
    finally:
        opened.close()
    assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(("label", "value"), [("Seed", -4), ("Instance", 99), ("A to B", 7.0), ("Temperature", -1.0)])
def test_what_is_out_of_range_is_a_sentence_and_the_control_goes_back(opened: Opened, label: str, value: Any) -> None:
    before, handle = opened.picture(), opened.handle(label)
    value_before = handle.value
    opened.set(label, value)
    assert re.search(r"Status:\*\* .*(range|exist|outside|expected)", opened.status)
    for timer in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        timer.join()
    assert handle.value == value_before
    assert np.array_equal(opened.picture(), before)


def test_an_unknown_name_is_a_sentence_and_is_left_to_be_corrected(opened: Opened) -> None:
    opened.set("Name", "nonesuch")
    assert "no training instance is named 'nonesuch'" in opened.status
    assert opened.handle("Name").value == "nonesuch"
    opened.set("Name", "")
    assert opened.walk.row == 0


def test_what_goes_wrong_inside_is_a_sentence_too(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no more memory\nand much more text")

    monkeypatch.setattr(opened.panel.viewed, "show", broken)
    opened.set("Instance", 1)
    assert "RuntimeError: no more memory" in opened.status
    assert "much more" not in opened.status
    monkeypatch.undo()
    opened.set("Instance", 2)
    assert "done" in opened.status


def test_a_viewer_opens_even_where_its_controls_cannot(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = eval_setup(runs["mnif-lite"].folder / "config.yml", test_mode="test")[1]

    def broken(_: Path) -> None:
        raise MNIFError("the model is not there.")

    monkeypatch.setattr(pipeline.viewer_panel.viewed, "generation", broken)
    opened = Opened(runs["mnif-lite"].folder, pipeline=pipeline)
    opened.close()
    assert opened.viewer.ready
    assert "could not be set up: the model is not there." in capsys.readouterr().out.replace("\n", " ")


def test_rendering_survives_every_kind_of_camera_and_crop(opened: Opened) -> None:
    from nerfstudio.data.scene_box import OrientedBox

    for kind in (CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.EQUIRECTANGULAR):
        assert np.isfinite(opened.picture(kind=kind)).all()
    nothing = OrientedBox(torch.eye(3), torch.zeros(3), torch.zeros(3))
    np.testing.assert_array_equal(opened.picture(obb_box=nothing), 1.0)


def test_a_render_thread_takes_any_failure_for_an_interruption() -> None:
    said: list[str] = []
    calls = {"render": ValueError("no such view"), "send": KeyError("depths")}

    def fail(name: str) -> Any:
        raise calls[name]

    machine = SimpleNamespace(_render_img=lambda _: fail("render"), _send_output_to_viewer=lambda *_: fail("send"))
    guard(machine, said.append)
    with pytest.raises(IOChangeException):
        machine._render_img(None)
    machine._send_output_to_viewer({})
    assert "no such view" in said[0]
    assert "depths" in said[1]
    calls["render"] = IOChangeException()
    with pytest.raises(IOChangeException):
        machine._render_img(None)
    assert len(said) == 2


def test_interruptions_end_with_the_picture_and_reach_no_other() -> None:
    """A trace that nerfstudio leaves behind would raise anywhere in the thread, also where viser holds a lock."""
    import sys

    def render(_: Any) -> str:
        seen.append(machine.interrupt_render_flag)
        sys.settrace(lambda *_: None)
        return "picture"

    seen: list[bool] = []
    machine = SimpleNamespace(
        _render_img=render, _send_output_to_viewer=lambda *_: None, interrupt_render_flag=True, target_fps=30
    )
    guard(machine, pytest.fail)
    before = sys.gettrace()
    try:
        assert machine._render_img(None) == "picture"
        assert sys.gettrace() is None
    finally:
        sys.settrace(before)
    assert seen == [False], "what was asked to be interrupted was the picture before"


def test_controls_touched_faster_than_pictures_are_made_are_read_once(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows = []
    original = opened.panel.viewed.show
    monkeypatch.setattr(opened.panel.viewed, "show", lambda *a: shows.append(a) or original(*a))
    handle = opened.handle("Instance")
    with opened.viewer.train_lock:
        threads = []
        for value in (1, 2, 3):
            handle._impl.value = value
            threads.append(threading.Thread(target=opened.press, args=("Instance",)))
            threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(shows) == 1
    assert opened.walk.row == 3


# ----------------------------------------------------------------------------------------------- around the controls


def test_frustums_are_few_of_one_scene_and_hidden_at_first(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnif_nerf.viewer import nerfstudio_patches as screen

    assert opened.viewer.config.max_num_display_images == screen.MAX_FRUSTUMS
    opened.viewer.init_scene(opened.pipeline.datamanager.train_dataset, "completed")
    frustums = opened.viewer.camera_handles
    assert 0 < len(frustums) <= 5
    assert not any(handle.visible for handle in frustums.values())
    assert opened.viewer.show_images.visible


def test_a_port_in_use_is_told_and_the_true_address_printed(
    runs: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        opened = Opened(runs["mnif-lite"].folder, port=port)
        opened.close()
    printed = capsys.readouterr().out.replace("\n", " ")
    taken = opened.viewer.viser_server.get_port()
    assert f"Port {port} is in use by something else, so this viewer has port {taken}." in printed
    assert f"Open http://localhost:{taken} in a browser." in printed
    assert all(f":{taken}" in line and f":{port}" not in line for line in opened.viewer.viewer_info)


@pytest.mark.parametrize(("aspect", "distance"), [(1.6, 13.0), (0.5, 26.0)])
def test_the_first_view_shows_the_whole_object(aspect: float, distance: float) -> None:
    import contextlib

    camera = SimpleNamespace(aspect=aspect, fov=0.0, position=None, look_at=None, up_direction=None)
    frame(SimpleNamespace(camera=camera, atomic=contextlib.nullcontext), Framing(1.3, 0.9))
    assert np.linalg.norm(camera.position) == pytest.approx(distance)
    assert not camera.look_at.any()
    assert camera.fov == 0.9
    assert camera.position[2] > 0


def test_images_are_seen_from_the_front(runs: dict[str, Run]) -> None:
    framing = {m: eval_setup(runs[m].folder / "config.yml")[1].viewer_panel.viewed.framing() for m in METHODS}
    assert (framing["mnif-image-lite"].elevation, framing["mnif-image-lite"].azimuth) == (0.0, 0.0)
    assert framing["mnif-lite"].elevation > 0
    assert framing["mnif-voxel-lite"].radius == pytest.approx(1.3)


def test_names_and_paths_are_shown_letter_by_letter() -> None:
    assert escape("a_b{c}<d>`e`") == r"a\_b\{c\}\<d\>\`e\`"


def test_without_a_viewer_the_panel_is_idle_and_out_of_checkpoints(runs: dict[str, Run]) -> None:
    pipeline = eval_setup(runs["mnif-lite"].folder / "config.yml", test_mode="inference")[1]
    assert pipeline.viewer_panel.walk is None
    pipeline.viewer_panel.refresh()
    assert not [name for name in pipeline.state_dict() if "viewer" in name or "panel" in name]
    config = yaml.load((runs["mnif-lite"].folder / "config.yml").read_text(), Loader=yaml.Loader)
    assert pickle.loads(pickle.dumps(config)).method_name == "mnif-lite"


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("method", ["mnif-lite", "mnif-image-lite"])
def test_the_viewer_of_a_training(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Controls work from the first step on; the picture follows the training; the prior is there at its end."""
    from mnif_nerf.pipelines.training import base

    monkeypatch.setattr(base, "_STEPS_BETWEEN_SHOWN", 5)
    monkeypatch.setattr(LatentPrior, "fit", _quick(LatentPrior.fit))
    config = tiny_config(data[method], tmp_path, steps=20, method=method, **{"pipeline.train_prior": True})
    config.vis, config.viewer.quit_on_train_completion = "viewer", True
    config.viewer.websocket_port, config.viewer.websocket_host = free_port(), "127.0.0.1"
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    panel = trainer.pipeline.viewer_panel
    opened = object.__new__(Opened)
    opened.pipeline, opened.viewer, opened.panel, opened.walk = (
        trainer.pipeline,
        trainer.viewer_state,
        panel,
        panel.walk,
    )
    opened.press("Draw new sample")
    assert "trained at the end of this run" in opened.status
    opened.set("Source", "mean")
    shown = []
    original = panel.refresh

    def recorded(**options: Any) -> None:
        trainer.viewer_state.render_statemachines.setdefault(0, SimpleNamespace(action=lambda *_: None))
        original(**options)
        shown.append(trainer.pipeline.model.latent_of(None).clone())
        # The elements say what is shown, so that touching one slider moves that one and no other.
        assert tuple(slider.value for slider in panel._sliders) == panel.walk.settings.positions

    panel.refresh = recorded
    trainer.train()
    assert len(shown) >= 4
    assert not torch.equal(shown[1], shown[-1])
    torch.testing.assert_close(shown[-1], trainer.pipeline.model.latents.weight.mean(dim=0))
    opened.press("Draw new sample")
    assert "drew seed 0" in opened.status
    opened.set("Instance", 2)
    assert torch.equal(trainer.pipeline.model.latent_of(None), trainer.pipeline.model.latents.weight[2])
    opened.viewer.viser_server.stop()


def test_a_client_that_has_left_holds_nobody_up(opened: Opened) -> None:
    """A message of its camera may be handled later; an exception there would keep viser's lock for good."""
    machines = opened.viewer.render_statemachines
    machines[7] = SimpleNamespace(action=lambda *_: None, running=True)
    opened.viewer.handle_disconnect(SimpleNamespace(client_id=7))
    assert 7 not in machines
    machines[7].action("move")
    assert 7 not in machines


def test_a_second_file_waits_for_the_first(opened: Opened, runs: dict[str, Run]) -> None:
    with opened.panel._saving:
        opened.press("Save latent")
        assert "still writing the last file" in opened.status
    opened.press("Save latent")
    assert "wrote" in opened.status


def test_a_late_echo_of_a_name_does_not_go_back(opened: Opened) -> None:
    """viser calls back for a name that the panel itself has set, perhaps when the instance is another one already."""
    opened.set("Instance", 1)
    own = opened.handle("Name").value
    opened.walk.change(instance=2)
    opened.set("Name", own)
    assert opened.walk.settings.instance == 2


def _quick(fit: Any) -> Any:
    return lambda latents, config, **_: fit(latents, PriorConfig(steps=3), progress=False)


def test_the_benchmark_runs(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import viewer

    monkeypatch.setattr(viewer, "REPEATS", 1)
    result = viewer.main(["--load-config", str(runs["mnif-lite"].folder / "config.yml")])
    assert set(result["controls"]) >= {"Draw new sample", "Direction 1", "A to B", "Instance"}
    assert all(0 < row["control"] < row["first"] <= row["full"] for row in result["controls"].values())
