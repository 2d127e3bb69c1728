"""What a viewer needs around its controls: a first view, a render thread that lives, and an honest address."""

from __future__ import annotations

import functools
import math
import re
import shlex
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException

from mnif_nerf.errors import MNIFError, first_line
from mnif_nerf.limits import require_count
from mnif_nerf.names import shown
from mnif_nerf.rendering.cameras import orbit_pose

MAX_FRUSTUMS = 16
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
_MOST_PORT = 65535
_HOST = "--viewer.websocket-host"
_OPEN = f"{_HOST} {EVERYWHERE}"
# Pictures a second while something moves, which decides how coarse they are. nerfstudio's 30 would be 60 rows on two
# cores; a browser is sent no more than about a dozen anyway.
_MOVING_FPS = 12
_EXPORTED = {"mesh": "glb", "point cloud": "ply"}


@dataclass(frozen=True)
class Framing:
    """Where a client looks from at first: towards the origin, with z up.

    Attributes:
        radius: distance from the origin, world units.
        field_of_view: radians, of the smaller side of the picture.
        elevation, azimuth: degrees, as in `orbit_pose`.
    """

    radius: float
    field_of_view: float
    elevation: float = 25.0
    azimuth: float = 35.0


class Connected(dict[int, Any]):
    """nerfstudio's render threads by client; one that has just left has one that does nothing.

    A message of a camera can be handled after its client has left. nerfstudio then fails on the missing thread while it
    holds viser's lock, which viser does not give back after an exception: all other pages would stand still for good.
    """

    def __missing__(self, client_id: int) -> Any:
        return SimpleNamespace(action=lambda *_: None, running=False)


def frame(client: Any, framing: Framing) -> None:
    """Put the camera of a viser client to its first view."""
    # viser's angle is that of the height: in a tall window the object would be cut off at its sides.
    farther = 1.0 / min(1.0, max(float(client.camera.aspect), 0.2))
    position = orbit_pose(framing.elevation, framing.azimuth, framing.radius * farther)[:3, 3].double().numpy()
    with client.atomic():
        client.camera.fov = framing.field_of_view
        client.camera.up_direction = np.array([0.0, 0.0, 1.0])
        client.camera.position = position * VISER_NERFSTUDIO_SCALE_RATIO
        client.camera.look_at = np.zeros(3)


def guard(machine: Any, tell: Callable[[str], None]) -> None:
    """Keep a client's render thread alive whatever happens in a picture; `tell` gets a sentence about it.

    The thread also renders fewer but finer pictures while something moves.

    Every exception except an interruption ends nerfstudio's thread, and the page then freezes silently. Interruptions
    come from a trace function that may raise at any line of Python. They have two flaws:

    - An interruption that arrives while the trace is being removed leaves the trace installed. The next one is then
      raised wherever the thread happens to be, for example where viser holds the lock of its messages, and the page
      freezes for good. So the trace is removed once more.
    - At rest, a change requests the interruption of a picture that is already finished, so the next picture is thrown
      away and the change shows a fifth of a second later. So earlier requests are discarded.

    Args:
        machine: a `RenderStateMachine`.
        tell: shows a sentence to the user.
    """
    machine.target_fps = _MOVING_FPS
    render, send = machine._render_img, machine._send_output_to_viewer

    @functools.wraps(render)
    def guarded_render(*args: Any, **kwargs: Any) -> Any:
        machine.interrupt_render_flag = False
        try:
            try:
                return render(*args, **kwargs)
            finally:
                sys.settrace(None)
        except IOChangeException:
            raise
        except Exception as error:
            reason = first_line(error, kind=True)
            tell(f"this view could not be rendered ({reason}); change it back or move the camera.")
            raise IOChangeException from error

    @functools.wraps(send)
    def guarded_send(*args: Any, **kwargs: Any) -> None:
        try:
            send(*args, **kwargs)
        except Exception as error:
            reason = first_line(error, kind=True)
            tell(f"this picture could not be shown ({reason}); change Output type or the render options.")

    machine._render_img, machine._send_output_to_viewer = guarded_render, guarded_send


def few_hidden_frustums(viewer: Any) -> None:
    """Let the viewer draw few of the shown scene's cameras, and hide them until "Show Train Cams" is pressed.

    They belong to one training instance, and stand in the way of all else that is looked at.
    """
    limit = viewer.config.max_num_display_images
    viewer.config.max_num_display_images = MAX_FRUSTUMS if limit < 0 else min(limit, MAX_FRUSTUMS)
    draw = viewer.init_scene

    @functools.wraps(draw)
    def draw_hidden(*args: Any, **kwargs: Any) -> None:
        draw(*args, **kwargs)
        viewer.set_camera_visibility(False)
        viewer.toggle_cameravis_button()

    viewer.init_scene = draw_hidden


def own_export_command() -> None:
    """Let the buttons of the tab "Export" give our command in place of `ns-export`, which knows nothing of latents."""
    from nerfstudio.viewer import export_panel

    show = export_panel.show_command_modal
    if getattr(show, "ours", False):
        return

    def show_own(client: Any, what: Any, command: str) -> None:
        run = re.search(r"--load-config (.*?) --output-dir", command)
        if run is not None and what in _EXPORTED:
            command = f"mnif-export-mesh --load-config {shlex.quote(run[1])} --format {_EXPORTED[what]}"
        show(client, what, command)

    show_own.ours = True  # type: ignore[attr-defined]
    export_panel.show_command_modal = show_own


def true_address(viewer: Any) -> list[str]:
    """Correct what the viewer will print of its address, and give sentences for the console.

    Where the port that was asked for is in use, viser takes the next free one, and nerfstudio goes on to print the one
    that was asked for; where nothing was asked for and the usual port is in use, it takes any, without a word.
    """
    port, config = viewer.viser_server.get_port(), viewer.config
    wanted = config.websocket_port or config.websocket_port_default
    sentences = []
    if port != wanted:
        viewer.viewer_info = [line.replace(f":{wanted}", f":{port}") for line in viewer.viewer_info]
        sentences.append(f"Port {wanted} is in use by something else, so this viewer has port {port}.")
    sentences.append(f"Open http://localhost:{port} in a browser.")
    if config.websocket_host == LOOPBACK:
        return [*sentences, f"Other machines cannot; {_OPEN} lets all of the network in, to press Save and Export too."]
    return [*sentences, f"It listens on {config.websocket_host}: whoever reaches it can press Save and Export too."]


def on_this_machine(config: Any) -> Any:
    """Let a viewer's configuration listen on the loopback, unless the command line says which address to listen on.

    nerfstudio's default is every address of the machine.
    """
    asked = any(text.replace("_", "-").startswith(_HOST) for text in sys.argv[1:])
    if config.websocket_host == EVERYWHERE and not asked:
        config.websocket_host = LOOPBACK
    return config


def require_address(config: Any) -> None:
    """Refuse an address or a port that nothing can listen on: viser's thread would fail, and its caller wait for ever.

    Args:
        config: a viewer's configuration.

    Raises:
        MNIFError: a port that there is not, or a host that is no address of this machine.
    """
    port, host = getattr(config, "websocket_port", None), config.websocket_host
    if port is not None:
        require_count("--viewer.websocket-port", port, 1, _MOST_PORT, "there are no more ports")
    if host in (LOOPBACK, EVERYWHERE):
        return
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except (OSError, UnicodeError) as error:
        raise MNIFError(
            f"{_HOST} {shown(host)}: is no address of this machine ({first_line(error)}); leave it "
            f"out, or use {EVERYWHERE} to let all of the network in."
        ) from None


def field_of_view(focal: float, size: float) -> float:
    """The angle in radians that `size` pixels take up at a focal length of `focal` pixels."""
    return 2.0 * math.atan(0.5 * size / focal)
