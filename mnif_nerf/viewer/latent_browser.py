"""Where a viewer stands in latent space, and why: the logic behind the viewer's controls, without any of them.

A `LatentWalk` holds what the controls say (`Settings`) and the latent that follows from it. Each change either
succeeds as a whole or raises and leaves everything as it was, so that controls and picture always agree.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.labels import GUIDANCE, Value, Wish, label_text
from mnif_nerf.viewer.directions import REACH, Directions

if TYPE_CHECKING:
    from mnif_nerf.objects.base import NeuralObject
    from mnif_nerf.pipelines.generation import MNIFPipeline

TRAINING, GENERATED, REMEMBERED = "training instance", "generated", "remembered A"
INTERPOLATION, MEAN, REDRAWN = "from A to B", "mean", "a part held"
SOURCES = (TRAINING, GENERATED, REMEMBERED, INTERPOLATION, MEAN, REDRAWN)
MAX_REMEMBERED = 100
_NUM_DIRECTIONS = 6
_HIGHEST_SEED = 2**31 - 1
_MANY_NAMES = 5000  # above which names that are merely similar are not looked for
# Moving one of these controls means that one wants to see what it controls.
_SOURCE_OF = {"instance": TRAINING, "seed": GENERATED, "steps": GENERATED, "temperature": GENERATED}
_SOURCE_OF |= {"label": GENERATED, "guidance": GENERATED}
_SOURCE_OF |= {"first": INTERPOLATION, "second": INTERPOLATION, "mix": INTERPOLATION}
_READ_BY = {
    TRAINING: ("instance",),
    GENERATED: ("seed", "steps", "temperature", "label", "guidance"),
    REMEMBERED: ("first",),
    INTERPOLATION: ("first", "second", "mix"),
    MEAN: (),
    REDRAWN: ("redrawn",),
}


@dataclass(frozen=True)
class Settings:
    """What the controls say.

    Attributes:
        source: one of `SOURCES`.
        instance: index of a training instance.
        seed, steps, temperature: of generation, as in `MNIFPipeline.sample_latents`.
        label, guidance: what samples are asked to be, by attribute; nothing takes what comes.
        first, second: labels of remembered objects, A and B.
        mix: the share of B between them, 0 to 1.
        hold: which side of what is shown stays when the rest is redrawn, one of `SIDES`.
        share: how much of the scene box that is.
        redrawn: how often the rest was redrawn.
        positions: where the shown latent lies along the principal directions, in standard deviations.
    """

    source: str = TRAINING
    instance: int = 0
    seed: int = 0
    steps: int = 30
    temperature: float = 1.0
    label: tuple[tuple[str, Value], ...] = ()
    guidance: float = GUIDANCE
    first: str = ""
    second: str = ""
    mix: float = 0.5
    hold: str = "front"
    share: float = 0.5
    redrawn: int = 0
    positions: tuple[float, ...] = ()

    @property
    def wish(self) -> Wish | None:
        """What samples and redrawn rests are asked to be; None for what comes."""
        return Wish(dict(self.label), self.guidance) if self.label else None


class LatentWalk:
    """See the module.

    Args:
        pipe: the model, with at least one training instance.
        no_prior: what to tell where something shall be generated and there is no prior.
        instance: index of the training instance to start from.

    Attributes:
        settings: what the controls say.
        latent: `[D]`, what is shown.
        row: index of the training instance that is shown as it is; None where something else is.
        said: what happened last, one sentence, or nothing.
        remembered: latents `[D]` by label, in the order in which they were remembered.
    """

    def __init__(self, pipe: MNIFPipeline, no_prior: str = "there is no latent prior.", instance: int = 0) -> None:
        self.pipe, self.no_prior = pipe, no_prior
        self.said = ""
        self.remembered: dict[str, Tensor] = {}
        self.row: int | None = instance
        self._drawn: tuple[Any, Tensor] | None = None
        self._nearest: tuple[Tensor, str] | None = None
        self._held: tuple[Tensor, str] | None = None  # what a part of is held, and its name
        self._redrawn: Tensor | None = None
        self._directions = Directions.from_latents(pipe.latents, _NUM_DIRECTIONS)
        self._stale = False
        self._start_memory(instance)
        labels = list(self.remembered)
        self.settings = Settings(instance=instance, first=labels[0], second=labels[-1])
        self.latent = pipe.latents[instance]
        self._origin: tuple[float, ...] = ()
        self._show(self.settings, fresh=True)

    def _start_memory(self, instance: int) -> None:
        """The first instance and the one farthest from it, so that A and B are something from the start."""
        latents = self.pipe.latents
        farthest = int((latents - latents[instance]).square().sum(dim=1).argmax())
        for row in dict.fromkeys((instance, farthest)):
            self._keep(self.pipe.names[row], latents[row])
        self._given = len(self.remembered)

    # ------------------------------------------------------------------------------------------------- changes

    def adopt(self, pipe: MNIFPipeline, no_prior: str) -> None:
        """Go on with the model as it is now; what is shown stays until the next change or `refresh`."""
        if pipe.model is not self.pipe.model:
            self._stale, self._nearest = True, None
        self.pipe, self.no_prior = pipe, no_prior

    def refresh(self) -> None:
        """Take the shown latent anew from the (trained on) model; moved sliders stay moved."""
        if self._directions.flat and len(self.remembered) == self._given:
            # What A and B were given at the start is nothing worth remembering: all latents were alike.
            self.remembered.clear()
            self._start_memory(self.settings.instance)
            labels = list(self.remembered)
            self.settings = dataclasses.replace(self.settings, first=labels[0], second=labels[-1])
        self._show(self.settings, fresh=not self.edited)

    def change(self, **asked: Any) -> None:
        """Apply what the user set, attributes of `Settings` by name.

        A change of something that the source does not read changes the source to what reads it. A new object puts
        the positions to where it lies.

        Raises:
            MNIFError: a value out of range, or no prior to generate from; nothing has changed then.
        """
        wanted = dataclasses.replace(self.settings, **asked)
        if wanted.source not in SOURCES:
            raise MNIFError(f"source {wanted.source!r} is not known; choose one of {', '.join(SOURCES)}.")
        implied = [_SOURCE_OF[name] for name in asked if name in _SOURCE_OF and name not in _READ_BY[wanted.source]]
        if implied and "source" not in asked:
            wanted = dataclasses.replace(wanted, source=implied[0])
        self._show(wanted, fresh=_identity(wanted) != _identity(self.settings))
        self.said = ""

    def draw(self) -> None:
        """Show a new sample: the next seed, or the seed that stands there if it was not drawn yet.

        Raises:
            MNIFError: no prior to generate from.
        """
        drawn = self._drawn is not None and self._drawn[0][0] == self.settings.seed
        seed = (self.settings.seed + 1) % _HIGHEST_SEED if drawn else self.settings.seed
        self.change(source=GENERATED, seed=seed)
        self.said = f"drew seed {seed}"

    def redraw(self) -> None:
        """Keep the chosen side of what is shown, and draw the rest anew, as the label says; once more, and it is drawn
        once more.

        Raises:
            MNIFError: no prior to draw from, or nothing of the object on that side.
        """
        from mnif_nerf.pipelines.fit.held import redraw

        if self.pipe.prior is None:
            raise MNIFError(self.no_prior)
        now = self.settings
        again = now.source == REDRAWN and not self.edited and self._held is not None
        held, name = self._held if again and self._held is not None else (self.latent.detach().clone(), self.short)
        found = redraw(self.pipe, held, now.hold, now.share, seed=now.redrawn, wish=now.wish)[0]
        self._held, self._redrawn = (held, name), found
        self.change(source=REDRAWN, redrawn=now.redrawn + 1)
        asked = f" as {label_text(dict(now.label))}" if now.label else ""
        self.said = f"held {now.share:.0%} of {name} from the {now.hold}, drew the rest{asked}"

    def find(self, text: str) -> None:
        """Show the training instance of this name, index, or part of a name that only one has.

        Raises:
            MNIFError: none or several such instances; some of them are named.
        """
        names, text = self.pipe.names, text.strip()
        if text in names:
            return self.change(instance=names.index(text))
        if text.isdecimal() and int(text) < len(names):
            return self.change(instance=int(text))
        with_it = [row for row, name in enumerate(names) if text and text.lower() in name.lower()]
        if len(with_it) == 1:
            return self.change(instance=with_it[0])
        close = [names[row] for row in with_it[:3]]
        if not close and len(names) <= _MANY_NAMES:
            close = difflib.get_close_matches(text, names, n=3, cutoff=0.0)
        count = f"{len(with_it)} training instances have {text!r} in their name" if with_it else ""
        wrong = count or f"no training instance is named {text!r}"
        raise MNIFError(f"{wrong}; there are {len(names)}, such as {', '.join(close or names[:3])}.")

    def reset(self) -> None:
        """Put the positions back to where the object of the source lies."""
        self.change(positions=self._origin)

    def remember(self) -> str:
        """Keep what is shown under a label of its own, and make it B (and B before it A) unless they are shown now.

        Raises:
            MNIFError: `MAX_REMEMBERED` objects are remembered already.
        """
        if len(self.remembered) >= MAX_REMEMBERED:
            raise MNIFError(f"{MAX_REMEMBERED} objects are remembered, which is all there is room for; save latents.")
        label = self._keep(self.short, self.latent)
        settings = self.settings
        if settings.source not in (REMEMBERED, INTERPOLATION):
            self.settings = dataclasses.replace(settings, first=settings.second, second=label)
        self.said = f"remembered as {label}"
        return label

    def _keep(self, short: str, latent: Tensor) -> str:
        label = f"{len(self.remembered) + 1}: {short}"
        self.remembered[label] = latent.detach().clone()
        return label

    # -------------------------------------------------------------------------------------------------- latents

    def _show(self, wanted: Settings, fresh: bool) -> None:
        """Find the latent of `wanted` and make both current; `fresh` where the positions follow the latent."""
        base = self._base(wanted)
        if not bool(torch.isfinite(base).all()):
            raise MNIFError("this gives a latent with NaN or infinite numbers; use a lower temperature.")
        directions, origin = self._directions, self._origin
        if fresh:
            if self._stale:
                directions = Directions.from_latents(self.pipe.latents, _NUM_DIRECTIONS)
            origin = directions.positions(base)
            wanted = dataclasses.replace(wanted, positions=origin)
        moved = [round(now - start, 6) for now, start in zip(wanted.positions, origin, strict=True)]
        if any(moved) and directions.flat:
            raise MNIFError("all latents are alike so far, so there are no directions yet; train for some steps.")
        if any(abs(now) > REACH for now in wanted.positions):
            raise MNIFError(f"positions go from {-REACH:g} to {REACH:g} standard deviations; use one within.")
        latent = base + directions.offset(moved) if any(moved) else base
        if fresh:
            self._stale = False
        self._directions, self._origin = directions, origin
        self.settings, self.latent = wanted, latent
        self.row = wanted.instance if wanted.source == TRAINING and not any(moved) else None

    def _base(self, wanted: Settings) -> Tensor:
        """The latent `[D]` of the source, before any slider along a direction."""
        latents = self.pipe.latents
        if wanted.source == TRAINING:
            if not 0 <= wanted.instance < len(latents):
                raise MNIFError(
                    f"training instance {wanted.instance} does not exist; there are {len(latents)}, numbered from 0."
                )
            return latents[wanted.instance]
        if wanted.source == GENERATED:
            return self._sample(wanted)
        if wanted.source == MEAN:
            return latents.mean(dim=0)
        if wanted.source == REDRAWN:
            if self._redrawn is None:
                raise MNIFError("no part is held yet; press Redraw the rest on something first.")
            return self._redrawn
        first = self._recall(wanted.first)
        if wanted.source == REMEMBERED:
            return first
        if not 0 <= wanted.mix <= 1:
            raise MNIFError(f"mix {wanted.mix:g} lies outside A and B; use 0 to 1.")
        return torch.lerp(first, self._recall(wanted.second), wanted.mix)

    def _recall(self, label: str) -> Tensor:
        if label not in self.remembered:
            raise MNIFError(f"nothing is remembered as {label!r}; press Remember this on something first.")
        return self.remembered[label]

    def _sample(self, wanted: Settings) -> Tensor:
        if self.pipe.prior is None:
            raise MNIFError(self.no_prior)
        if not 0 <= wanted.seed <= _HIGHEST_SEED:
            raise MNIFError(f"seed {wanted.seed} is out of range; use 0 to {_HIGHEST_SEED}.")
        key = (wanted.seed, wanted.steps, wanted.temperature, wanted.label, wanted.guidance, self.pipe.prior)
        if self._drawn is None or self._drawn[0] != key:
            how: dict[str, Any] = {"steps": wanted.steps, "temperature": wanted.temperature, "wish": wanted.wish}
            drawn = self.pipe.sample_latents(1, wanted.seed, **how)[0]
            self._drawn = (key, drawn)
        return self._drawn[1]

    # -------------------------------------------------------------------------------------------- what is shown

    @property
    def edited(self) -> bool:
        """Whether sliders along the directions were moved away from the object of the source."""
        return self.settings.positions != self._origin

    @property
    def short(self) -> str:
        """What is shown, in a few words; settings that are not mentioned have their defaults."""
        now, default = self.settings, Settings()
        sample = f"seed {now.seed}" + (f" {label_text(dict(now.label))}" if now.label else "")
        if now.label and now.guidance != default.guidance:
            sample += f" guidance {now.guidance:.2f}"
        if now.temperature != default.temperature:
            sample += f" temperature {now.temperature:.2f}"
        if now.steps != default.steps:
            sample += f" steps {now.steps}"
        text = {
            TRAINING: self.pipe.names[now.instance],
            GENERATED: sample,
            REMEMBERED: now.first.partition(": ")[2],
            INTERPOLATION: f"{now.first.partition(':')[0]} to {now.second.partition(':')[0]} at {now.mix:.2f}",
            MEAN: "mean",
            REDRAWN: f"{now.hold} of {self._held[1]} redraw {now.redrawn}" if self._held else "",
        }[now.source]
        return text + (" edited" if self.edited and not text.endswith(" edited") else "")

    @property
    def shown(self) -> str:
        """What is shown, in a line that is short: a panel whose lines wrap moves the buttons beneath them."""
        now = self.settings
        if now.source == INTERPOLATION:
            text = f"{1 - now.mix:.0%} A, {now.mix:.0%} B"
            return text + (" edited" if self.edited else "")
        return f"#{now.instance} {self.short}" if now.source == TRAINING else self.short

    @property
    def nearest(self) -> str:
        """The nearest training instance and the distance to it (see `MNIFPipeline.nearest`), in a line."""
        if self.row is not None:
            return "itself"
        if self._nearest is None or self._nearest[0] is not self.latent:
            name, distance = self.pipe.nearest(self.latent)
            self._nearest = (self.latent, f"{name}, {distance:.2f} away")
        return self._nearest[1]

    def item(self) -> NeuralObject:
        """What is shown, as an object to save or to export; its name is good for a file."""
        with torch.no_grad():
            return self.pipe.decode(self.latent.detach().clone(), self.short.replace(" ", "-"))


def _identity(settings: Settings) -> tuple[Any, ...]:
    """What the latent of the source depends on."""
    return (settings.source, *(getattr(settings, name) for name in _READ_BY[settings.source]))
