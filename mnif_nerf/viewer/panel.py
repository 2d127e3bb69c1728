"""The folder of controls in nerfstudio's viewer; what they mean is in `mnif_nerf.viewer.latent_browser`.

The folder stands at the top of the panel. It is built where nerfstudio hands over the viewer, and in runs without a
viewer nothing is built at all. Callbacks come from several threads, in any order, and often faster than a picture can
be made. Updates are coalesced: each callback notes which control was touched, and the next one to get the lock reads
the present values of all touched controls.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nerfstudio.viewer.viewer_elements import ViewerControl

from mnif_nerf.errors import MNIFError, first_line
from mnif_nerf.pipelines.fit.held import SIDES
from mnif_nerf.progress import say
from mnif_nerf.viewer.directions import POSITION_STEP, REACH
from mnif_nerf.viewer.label_controls import LabelControls
from mnif_nerf.viewer.latent_browser import SOURCES, LatentWalk, Settings
from mnif_nerf.viewer.nerfstudio_patches import (
    Connected,
    Framing,
    few_hidden_frustums,
    frame,
    guard,
    own_export_command,
    true_address,
)
from mnif_nerf.viewer.saving import export_object, save_latent

if TYPE_CHECKING:
    from torch import Tensor

    from mnif_nerf.objects.base import NeuralObject
    from mnif_nerf.pipelines.generation import MNIFPipeline

_TITLE = "mNIF: walk through latent space"
_MOST_STEPS = 100
_LATE = 0.2  # seconds


class Viewed(Protocol):
    """The model that is looked at."""

    def generation(self, run: Path) -> tuple[MNIFPipeline, str]:
        """The model as it is now, with the prior in the run's folder; and what to say where there is none."""
        ...

    def show(self, latent: Tensor, row: int | None) -> None:
        """Render this latent `[D]` from now on; `row` where it is that of a training instance, as it is."""
        ...

    def first_row(self) -> int:
        """The training instance to start from."""
        ...

    def framing(self) -> Framing:
        """The first view."""
        ...

    def get_ready(self) -> None:
        """Whatever makes rendering quick on this machine."""
        ...


class ViewerPanel(ViewerControl):
    """See the module. A public attribute of a pipeline, where nerfstudio's viewer looks for a `ViewerControl`."""

    def __init__(self, viewed: Viewed) -> None:
        self.viewed = viewed
        self.walk: LatentWalk | None = None
        self._handles: dict[str, Any] = {}
        self._sliders: list[Any] = []
        self._touched: set[str] = set()
        self._noting = threading.Lock()
        self._working = threading.RLock()
        self._saving = threading.Lock()
        self._said = self._own_name = ""

    def _setup(self, viewer: Any) -> None:
        """Called once by nerfstudio's viewer, before it draws the cameras."""
        super()._setup(viewer)
        self.run = Path(viewer.log_filename).parent
        few_hidden_frustums(viewer)
        own_export_command()
        viewer.render_statemachines = Connected(viewer.render_statemachines)
        try:
            self.walk = LatentWalk(*self._generation(), self.viewed.first_row())
            self._build(self.walk)
            self.viewed.get_ready()
            self._show()
            self._write_status("ready")
        except Exception as error:  # a viewer without these controls is better than none
            say(f"The controls for generation could not be set up: {_sentence(error)}", warning=True)
        viewer.viser_server.on_client_connect(self._welcome)
        for sentence in true_address(viewer):
            say(sentence)

    def _generation(self) -> tuple[MNIFPipeline, str]:
        return self.viewed.generation(self.run)

    def _welcome(self, client: Any) -> None:
        """A browser has connected; viser holds its lock of clients meanwhile."""
        try:
            guard(self.viewer.render_statemachines[client.client_id], self._tell)
            frame(client, self.viewed.framing())
        except Exception as error:
            say(f"The first view could not be set: {_sentence(error)}", warning=True)

    # ------------------------------------------------------------------------------------------------ elements

    def _build(self, walk: LatentWalk) -> None:
        gui, now = self.viser_server.gui, walk.settings
        names, labels = walk.pipe.names, tuple(walk.remembered)
        with gui.add_folder(_TITLE, order=-1.0):
            self._status = gui.add_markdown("")
            self._add("source", gui.add_dropdown("Source", SOURCES, now.source, hint="What is shown."))
            hint = "Index of the training instance."
            if len(names) > 1:
                index = gui.add_slider("Instance", 0, len(names) - 1, 1, now.instance, hint=hint)
            else:
                index = gui.add_number("Instance", 0, min=0, max=0, step=1, disabled=True, hint=hint)
            self._add("instance", index)
            self._name = gui.add_text("Name", names[now.instance], hint="Its name; type another, or a part of one.")
            self._name.on_update(lambda _: self._name_typed())
            self._button("Draw new sample", lambda: walk.draw(), "The next seed, from the latent prior.")
            hint = "The seed of the sample; mnif-sample --seed draws the same one."
            self._add("seed", gui.add_number("Seed", now.seed, min=0, step=1, hint=hint))
            hint = "Evaluations of the denoiser: 30 are enough."
            self._add("steps", gui.add_slider("Sampler steps", 10, _MOST_STEPS, 1, now.steps, hint=hint))
            hint = "Below 1: more typical, less varied."
            self._add("temperature", gui.add_slider("Temperature", 0.0, 1.5, 0.05, now.temperature, hint=hint))
            self._labels = LabelControls(gui, walk, self._touch)
            if self._labels.attributes:
                hint = "How strongly samples are drawn to their label; more is less varied."
                guidance = gui.add_slider("Guidance", 0.0, 6.0, 0.25, now.guidance, hint=hint)
                self._add("guidance", guidance)
            hint = "The side that stays when the rest is redrawn, as the label says where one is chosen."
            self._add("hold", gui.add_dropdown("Hold", SIDES, now.hold, hint=hint))
            hint = "How much of the box stays, from that side on."
            self._add("share", gui.add_slider("Held share", 0.05, 0.95, 0.05, now.share, hint=hint))
            hint = "Keep that part of what is shown; the latent prior draws the rest. Again: another rest."
            self._button("Redraw the rest", lambda: walk.redraw(), hint)
            self._button("Remember this", lambda: walk.remember(), "Keep what is shown, to interpolate from or to.")
            self._add("first", gui.add_dropdown("A", labels, now.first, hint="A remembered object."))
            self._add("second", gui.add_dropdown("B", labels, now.second, hint="A remembered object."))
            self._add("mix", gui.add_slider("A to B", 0.0, 1.0, 0.01, now.mix, hint="0 is A, 1 is B."))
            hint = "Standard deviations along a principal direction of the training latents."
            for k, position in enumerate(now.positions):
                slider = gui.add_slider(f"Direction {k + 1}", -REACH, REACH, POSITION_STEP, position, hint=hint)
                slider.on_update(lambda _: self._touch("positions"))
                self._sliders.append(slider)
            self._button("Undo directions", lambda: walk.reset(), "Back to the object itself.")
            what = "Export mesh" if walk.pipe.model.kind.has_surface else "Export picture"
            self._file_button("Save latent", save_latent, "A .safetensors file, for mnif-export-mesh --source latent.")
            self._file_button(what, export_object, "A .glb file (of images, a .png) in the run's folder viewer.")

    def _add(self, name: str, handle: Any) -> None:
        """An element that says one of the attributes of `Settings`."""
        self._handles[name] = handle
        handle.on_update(lambda _: self._touch(name))

    def _button(self, label: str, action: Callable[[], object], hint: str) -> None:
        self.viser_server.gui.add_button(label, hint=hint).on_click(lambda _: self._act(action))

    def _file_button(self, label: str, write: Callable[[NeuralObject, Path], Path], hint: str) -> None:
        self.viser_server.gui.add_button(label, hint=hint).on_click(lambda _: self._save(write))

    def _value(self, name: str) -> Any:
        if name == "positions":
            return tuple(round(float(slider.value), 2) for slider in self._sliders)
        if name == "label":
            return self._labels.value
        return self._handles[name].value

    # --------------------------------------------------------------------------------------------------- events

    def _touch(self, name: str) -> None:
        """An element was changed, by the user or by `_sync`."""
        with self._noting:
            self._touched.add(name)
        self._act(None)

    def _name_typed(self) -> None:
        walk, text = self.walk, str(self._name.value).strip()
        if walk is None or not text or text == self._own_name:  # which `_sync` wrote there, and nobody typed
            return
        if text != walk.pipe.names[walk.settings.instance]:
            self._act(lambda: walk.find(text), typed=True)

    def _act(self, action: Callable[[], object] | None, typed: bool = False) -> None:
        """Apply what was touched (no action), or an action; show the result, or say why there is none."""
        assert self.walk is not None
        with self._locked():
            before, asked = self.walk.settings, {} if action else self._asked()
            if action is None and not asked:
                return
            start, said = time.perf_counter(), ""
            try:
                self.walk.adopt(*self._generation())
                (action or (lambda: self.walk.change(**asked)))()  # type: ignore[union-attr]
                self._show()
                said = f"{self.walk.said or 'done'} in {time.perf_counter() - start:.2f} s"
            except Exception as error:  # a traceback in a thread would help nobody
                said = _sentence(error)
            self._sync(before, asked, typed)
            self._write_status(said)
        self.viewer._trigger_rerender()

    def _asked(self) -> dict[str, Any]:
        """What the touched elements say by now, where that is not what holds already."""
        with self._noting:
            touched, self._touched = self._touched, set()
        now = {name: self._value(name) for name in touched}
        return {name: value for name, value in now.items() if value != getattr(self.walk.settings, name)}  # type: ignore[union-attr]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # A training lets go of its lock for a moment after the camera was moved; so it does for a control.
        self.viewer.last_move_time = time.time()
        with self.viewer.train_lock or contextlib.nullcontext(), self._working:
            yield

    def _show(self) -> None:
        assert self.walk is not None
        self.viewed.show(self.walk.latent, self.walk.row)

    def refresh(self, locked: bool = True) -> None:
        """While training: let controls and picture follow the model as it is now.

        Args:
            locked: whether the caller holds nerfstudio's lock of training; else it is taken here.
        """
        if self.walk is None or not self.viewer.render_statemachines:
            return
        lock = contextlib.nullcontext() if locked else self.viewer.train_lock or contextlib.nullcontext()
        with lock, self._working:
            before = self.walk.settings
            try:
                self.walk.adopt(*self._generation())
                self.walk.refresh()
                if self.walk.row is None:  # an instance itself moves with training
                    self._show()
                self._sync(before, {}, typed=False)
                self._write_status(self._said)
            except Exception as error:
                self._tell(_sentence(error))

    def _save(self, write: Callable[[NeuralObject, Path], Path]) -> None:
        assert self.walk is not None
        if not self._saving.acquire(blocking=False):  # one at a time; waiting would use up viser's threads
            self._tell("still writing the last file; press again when it is there.")
            return
        try:
            start = time.perf_counter()
            with self._locked():
                item = self.walk.item()
            self._tell(f"writing {item.name} ...")
            path = write(item, self.run / "viewer")
            self._tell(f"wrote {path.resolve()} ({time.perf_counter() - start:.1f} s)")
        except Exception as error:
            self._tell(_sentence(error))
        finally:
            self._saving.release()

    # --------------------------------------------------------------------------------------------------- status

    def _sync(self, before: Settings, asked: dict[str, Any], typed: bool) -> None:
        """Bring the elements to what the walk says, but for those that the user has just set: these may move on."""
        assert self.walk is not None
        labels = tuple(self.walk.remembered)
        for name in ("first", "second"):
            if self._handles[name].options != labels:
                self._handles[name].options = labels
        now = self.walk.settings
        for field in dataclasses.fields(Settings):
            value = getattr(now, field.name)
            if value == asked.get(field.name, getattr(before, field.name)):
                continue
            if field.name == "positions":
                for k, (slider, position) in enumerate(zip(self._sliders, value, strict=True)):
                    if slider.value != position:
                        self._put(slider, partial(_position, k), late="positions" in asked)
            elif field.name == "label":
                self._labels.value = value
            elif field.name in self._handles:
                self._put(self._handles[field.name], attrgetter(field.name), late=field.name in asked)
        name = self.walk.pipe.names[now.instance]
        if not typed and now.instance != before.instance and self._name.value != name:
            self._own_name = name
            self._name.value = name

    def _put(self, handle: Any, read: Callable[[Settings], Any], late: bool) -> None:
        """Set an element to what the settings say of it; `late` where this is its own callback, after which viser
        repeats what the user set. By then the settings may say something else again."""
        assert self.walk is not None
        walk = self.walk
        if late:
            threading.Timer(_LATE, lambda: setattr(handle, "value", read(walk.settings))).start()
        else:
            handle.value = read(walk.settings)

    def _tell(self, said: str) -> None:
        with contextlib.suppress(Exception), self._working:
            self._write_status(said)

    def _write_status(self, said: str) -> None:
        assert self.walk is not None
        self._said, nearest = said, escape(self.walk.nearest)
        lines = (f"**Shown:** {escape(self.walk.shown)}", f"**Nearest:** {nearest}", f"**Status:** {escape(said)}")
        self._status.content = "\n\n".join(lines)


def _position(index: int, settings: Settings) -> float:
    return settings.positions[index]


def escape(text: str) -> str:
    """Text as viser's Markdown (MDX) shows it letter by letter: names and paths hold what it takes for markup."""
    return re.sub(r"([\\`*_{}\[\]<>#~|!&$])", r"\\\1", text)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, MNIFError) else f"that did not work ({first_line(error, kind=True)})."
