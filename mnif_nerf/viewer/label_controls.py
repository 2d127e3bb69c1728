"""Controls of the viewer that say what a sample shall be: a list of classes, or a slider of numbers, per attribute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mnif_nerf.labels import Attribute, Value
from mnif_nerf.viewer.latent_browser import LatentWalk

_MOST_SHOWN = 8  # attributes: more would push all other controls off the screen
_STEPS = 100  # of a slider


class LabelControls:
    """See the module; without labels in the prior there is nothing.

    Args:
        gui: viser's, inside the folder of controls.
        walk: whose prior says what can be asked for.
        touch: told the name of the setting that was touched.
    """

    def __init__(self, gui: Any, walk: LatentWalk, touch: Callable[[str], None]) -> None:
        prior = walk.pipe.prior
        self.attributes: tuple[Attribute, ...] = () if prior is None else prior.attributes[:_MOST_SHOWN]
        self._handles: dict[str, Any] = {}
        self._switches: dict[str, Any] = {}
        self._any = {attribute.name: _entry_for_any(attribute) for attribute in self.attributes}
        for attribute in self.attributes:
            self._add(gui, attribute)
        for handle in (*self._handles.values(), *self._switches.values()):
            handle.on_update(lambda _: touch("label"))

    def _add(self, gui: Any, attribute: Attribute) -> None:
        name = attribute.name
        if not attribute.is_numeric:
            hint, anything = "What samples shall be.", self._any[name]
            self._handles[name] = gui.add_dropdown(name, (anything, *attribute.classes), anything, hint=hint)
            return
        step = (attribute.high - attribute.low) / _STEPS or 1.0
        high = max(attribute.high, attribute.low + step)
        self._switches[name] = gui.add_checkbox(f"Ask for {name}", False, hint="Whether the slider below counts.")
        self._handles[name] = gui.add_slider(name, attribute.low, high, step, attribute.mean, hint="Of samples.")

    @property
    def value(self) -> tuple[tuple[str, Value], ...]:
        """What is asked for, as `Settings.label` has it."""
        found: list[tuple[str, Value]] = []
        for attribute in self.attributes:
            value = self._handles[attribute.name].value
            if not attribute.is_numeric and value != self._any[attribute.name]:
                found.append((attribute.name, str(value)))
            elif attribute.is_numeric and self._switches[attribute.name].value:
                found.append((attribute.name, min(max(float(value), attribute.low), attribute.high)))
        return tuple(found)

    @value.setter
    def value(self, wanted: tuple[tuple[str, Value], ...]) -> None:
        label = dict(wanted)
        for attribute in self.attributes:
            name = attribute.name
            if not attribute.is_numeric:
                self._handles[name].value = label.get(name, self._any[name])
                continue
            self._switches[name].value = name in label
            if name in label:
                self._handles[name].value = label[name]


def _entry_for_any(attribute: Attribute) -> str:
    """The list's entry for what is not asked for: a word that is none of the classes."""
    entry = "any"
    while entry in attribute.classes:
        entry = f"({entry})"
    return entry
