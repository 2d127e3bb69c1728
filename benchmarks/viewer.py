"""How soon nerfstudio's viewer shows a change: python benchmarks/viewer.py --load-config <run>/config.yml

A run is opened in nerfstudio's own viewer, with its render thread, and a client that keeps the times at which pictures
were handed to it in place of a browser. Three times are taken of every control: until the control is done
(`control`: its latent found, collapsed and made ready), until the first picture (which has a lower resolution, as while
the camera moves) and until the one in full resolution, which nerfstudio begins no sooner than 0.4 s after the last
change. All are seconds from the moment the value arrives; a browser adds its own.

The baseline of the same run is the picture of full resolution where nothing is collapsed beforehand and the empty
space of radiance fields is not skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mnif_nerf.machine import describe

ASPECT = 1.5
REPEATS = 5


class Client:
    """Stands in for a browser; the camera is at the first view, and pictures are noted with their time and size."""

    def __init__(self) -> None:
        camera: dict[str, Any] = {"fov": 0.9, "aspect": ASPECT, "position": None, "look_at": None, "up_direction": None}
        self.camera = SimpleNamespace(**camera, wxyz=None)
        self.scene = SimpleNamespace(set_background_image=self._show)
        self.client_id = 0
        self.pictures: list[tuple[float, int, int]] = []
        self.lock = threading.Lock()

    def atomic(self) -> Any:
        return self.lock

    def _show(self, picture: Any, **_: Any) -> None:
        self.pictures.append((time.perf_counter(), *picture.shape[:2]))

    def wait(self, after: float, rows: int, limit: float = 60.0) -> tuple[float, int]:
        """Seconds from `after` until a picture of at least `rows` rows, and its rows."""
        while time.perf_counter() - after < limit:
            for moment, height, _ in list(self.pictures):
                if moment > after and height >= rows:
                    return moment - after, height
            time.sleep(0.002)
        raise SystemExit(f"no picture of {rows} rows within {limit:g} s")


def open_viewer(config: Path) -> tuple[Any, Any, Client, dict[str, float]]:
    """nerfstudio's viewer of a run with one client, and what its start took."""
    from nerfstudio.configs.base_config import ViewerConfig
    from nerfstudio.utils.eval_utils import eval_setup
    from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
    from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer
    from viser import transforms

    start = time.perf_counter()
    settings, pipeline, _, _ = eval_setup(config, test_mode="test")
    loaded = time.perf_counter()
    log = settings.get_base_dir() / "viewer_log_filename.txt"
    viewer = Viewer(ViewerConfig(), log, Path("."), pipeline, train_lock=threading.Lock())
    opened = time.perf_counter()
    client = Client()
    machine: Any = RenderStateMachine(viewer, VISER_NERFSTUDIO_SCALE_RATIO, client)  # type: ignore[arg-type]
    viewer.render_statemachines[0] = machine
    viewer.viser_server.get_clients = lambda: {0: client}  # type: ignore[method-assign,dict-item,return-value]
    pipeline.viewer_panel._welcome(client)
    position = torch.as_tensor(client.camera.position) / client.camera.position.dot(client.camera.position) ** 0.5
    right = torch.linalg.cross(-position, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    right /= right.norm()
    rotation = torch.stack([right, torch.linalg.cross(-position, right), -position], dim=1)
    client.camera.wxyz = transforms.SO3.from_matrix(rotation.numpy()).wxyz
    connected = time.perf_counter()
    machine.start()
    machine.action(RenderAction("move", viewer.get_camera_state(client)))  # type: ignore[arg-type]
    first, _ = client.wait(connected, 1)
    client.wait(connected, full_rows())
    return viewer, pipeline, client, {"load": loaded - start, "open": opened - loaded, "first picture": first}


def full_rows() -> int:
    """Rows of a picture at rest: 512 pixels along its longer side."""
    return int(512 / ASPECT)


def controls(panel: Any) -> dict[str, Callable[[int], None]]:
    """What is timed, by name: functions of a counter that change one control and return when it is done."""
    gui = panel.viser_server.gui

    def change(label: str, value: Any = None) -> None:
        handles = gui._gui_input_handle_from_id.values()
        handle = next(one for one in handles if one._impl.label == label)
        if value is not None:
            handle._impl.value = value
        for callback in handle._impl.update_cb:
            callback(SimpleNamespace(target=handle, client=None, client_id=None))

    count = len(panel.walk.pipe.names)
    return {
        "Draw new sample": lambda k: change("Draw new sample"),
        "Direction 1": lambda k: change("Direction 1", -1.5 + 0.4 * k),
        "A to B": lambda k: change("A to B", 0.1 + 0.15 * k),
        "Instance": lambda k: change("Instance", (7 * k + 1) % count),
        "Sampler steps 100": lambda k: change("Sampler steps", 100 - k),
    }


def measure(panel: Any, client: Client) -> dict[str, dict[str, float]]:
    """Medians over `REPEATS` changes of every control."""
    rows: dict[str, dict[str, float]] = {}
    for name, act in controls(panel).items():
        taken: list[tuple[float, float, float, float]] = []
        for k in range(REPEATS):
            start = time.perf_counter()
            act(k)
            done = time.perf_counter() - start
            first, low = client.wait(start, 1)
            full, _ = client.wait(start, full_rows())
            taken.append((done, first, low, full))
        control, first_picture, height, full_picture = (statistics.median(part) for part in zip(*taken))
        rows[name] = {"control": control, "first": first_picture, "rows": height, "full": full_picture}
    return rows


def baseline(pipeline: Any) -> dict[str, float]:
    """Seconds of one picture of 512 x 341, with what the viewer keeps, and with nothing of it."""
    from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays

    model = pipeline.model
    intrinsics = Intrinsics(350.0, 256.0, full_rows() / 2, full_rows(), 512)
    rays = [part.contiguous() for part in pixel_rays(orbit_pose(25.0, 35.0), intrinsics)]
    field, _ = model.collapsed(model.latent_of(None))

    def kept() -> None:
        model.render(*rays, None)

    def without() -> None:
        model.collapsed.clear()
        if pipeline.datamanager.facts().get("modality", "radiance") == "radiance":
            model.field.collapse(model.latent_of(None))
            model.modality.render(field, None, *rays, model.config)
        else:
            model.render(*rays, None)

    with torch.no_grad():
        return {name: median_time(run) for name, run in {"as the viewer does": kept, "without": without}.items()}


def median_time(run: Callable[[], None]) -> float:
    """Median seconds of three calls, after one that does not count."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--load-config", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    viewer, pipeline, client, start = open_viewer(options.load_config)
    result: dict[str, Any] = {
        "machine": describe(),
        "config": str(options.load_config),
        "start": start,
        "controls": measure(pipeline.viewer_panel, client),
        "baseline": baseline(pipeline),
    }
    viewer.viser_server.stop()
    print(json.dumps(result["machine"]))
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in start.items()))
    for name, row in result["controls"].items():
        print(
            f"{name:20} control {row['control']:.3f} s, first picture {row['first']:.3f} s ({row['rows']:.0f} rows), "
            f"full picture {row['full']:.2f} s ({full_rows()} rows)"
        )
    print("picture of 512 x 341: " + ", ".join(f"{name} {s:.3f} s" for name, s in result["baseline"].items()))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    assert all(math.isfinite(row["full"]) for row in result["controls"].values())
    return result


if __name__ == "__main__":
    main()
