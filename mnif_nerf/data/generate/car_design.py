"""What a procedural car looks like: proportions of seven body types, paint, and extras, drawn from a seed."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnif_nerf.data.generate.car_parts import Color
from mnif_nerf.errors import MNIFError

BODY_TYPES = ("sedan", "hatchback", "suv", "pickup", "van", "bus", "sports")
SPLIT_CODES = {"train": 0, "val": 1, "test": 2}
BRIGHTEST = 0.82
"""No paint is brighter: white cars must stay distinguishable from the white background."""


@dataclass(frozen=True)
class Proportions:
    """A car's shape, in metres with the ground at z = 0 and the middle of its length at x = 0.

    Attributes:
        body: one of `BODY_TYPES`.
        length, width, height: outer size.
        clearance: height of the underside; wheel_radius: of the tyres; axles: x of (front, rear).
        nose, cowl, belt, tail: heights of the bonnet's front edge, its rear edge, the windows' lower edge and
            the rear deck.
        cabin_base, cabin_roof: (front, rear) x of the cabin at belt height and at the roof.
        tumblehome: how much narrower the roof is than the belt, as a fraction of the half width.
        shoulder: radius of the rounding along the body's upper edge; corner: of the cabin seen from above.
        roof_edge: rounding of the roof as a fraction of the cabin's height.
        side: (end fraction, is window) of the stretches along the cabin's side, front to rear.
        rear_window: whether the back is glazed.
    """

    body: str
    length: float
    width: float
    height: float
    clearance: float
    wheel_radius: float
    axles: tuple[float, float]
    nose: float
    cowl: float
    belt: float
    tail: float
    cabin_base: tuple[float, float]
    cabin_roof: tuple[float, float]
    tumblehome: float
    shoulder: float
    corner: float
    roof_edge: float
    side: tuple[tuple[float, bool], ...]
    rear_window: bool


@dataclass(frozen=True)
class CarParameters(Proportions):
    """One car: its shape, its colours and its extras.

    Attributes:
        paint, second, roof_paint, trim, glass, rim: straight colours in [0, 1].
        stripes, side_stripe, cladding, roof_rails, spoiler: extras; spokes: of the wheels, 0 for a disc.
    """

    paint: Color
    second: Color
    roof_paint: Color
    trim: Color
    glass: Color
    rim: Color
    stripes: bool
    side_stripe: bool
    cladding: bool
    roof_rails: bool
    spoiler: bool
    spokes: int


def body_type(seed: int, split: str, index: int) -> str:
    """Body type of car `index`: each block of seven holds every type once, in an order of its own."""
    block, place = divmod(index, len(BODY_TYPES))
    order = np.random.default_rng([seed, SPLIT_CODES[split], 7, block]).permutation(len(BODY_TYPES))
    return BODY_TYPES[int(order[place])]


def sample_car(seed: int | Sequence[int], body: str | None = None) -> CarParameters:
    """Draw a car; the same seed gives the same car on every machine.

    Args:
        seed: one number or several (as for `numpy.random.default_rng`), none negative.
        body: one of `BODY_TYPES`; drawn from the seed where None.

    Raises:
        MNIFError: `body` is not a known type, or the seed is negative.
    """
    if body is not None and body not in BODY_TYPES:
        raise MNIFError(f"body type {body!r}: unknown; choose one of {', '.join(BODY_TYPES)}.")
    if min([seed] if isinstance(seed, int) else seed) < 0:
        raise MNIFError(f"seed {seed}: negative; choose 0 or more.")
    rng = np.random.default_rng(seed)
    drawn = BODY_TYPES[int(rng.integers(len(BODY_TYPES)))]
    draw = _Draw(rng)
    body = body or drawn
    shape = _SHAPES[body](draw)
    return CarParameters(**vars(shape), **_looks(draw, body))  # type: ignore[arg-type]


class _Draw:
    """Short names for the few distributions used below."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def __call__(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *options: object) -> object:
        return options[int(self.rng.integers(len(options)))]


def _windows(*stops: float) -> tuple[tuple[float, bool], ...]:
    """Stretches that alternate paint, window, paint, ... up to 1, ending with paint."""
    return tuple((stop, index % 2 == 1) for index, stop in enumerate((*stops, 1.0)))


def _sedan(d: _Draw) -> Proportions:
    length, width = d(4.45, 5.05), d(1.76, 1.9)
    height, belt = d(1.38, 1.5), d(0.88, 0.96)
    front, rear = length / 2, -length / 2
    base = (front - d(1.3, 1.5), rear + d(0.55, 0.8))
    split = d(0.46, 0.52)
    return Proportions(
        body="sedan", length=length, width=width, height=height, clearance=d(0.16, 0.2),
        wheel_radius=d(0.33, 0.37), axles=(front - d(0.82, 0.95), rear + d(0.92, 1.08)),
        nose=belt - d(0.2, 0.27), cowl=belt - d(0.0, 0.05), belt=belt, tail=belt - d(0.0, 0.06),
        cabin_base=base, cabin_roof=(base[0] - d(0.75, 0.95), base[1] + d(0.6, 0.85)),
        tumblehome=d(0.16, 0.24), shoulder=d(0.07, 0.12), corner=d(0.12, 0.2), roof_edge=d(0.14, 0.22),
        side=_windows(0.03, split - 0.02, split + 0.03, d(0.9, 0.95)), rear_window=True,
    )  # fmt: skip


def _hatchback(d: _Draw) -> Proportions:
    length, width = d(3.6, 4.2), d(1.66, 1.8)
    height, belt = d(1.44, 1.58), d(0.9, 0.98)
    front, rear = length / 2, -length / 2
    base = (front - d(0.9, 1.15), rear + d(0.06, 0.12))
    split = d(0.48, 0.56)
    return Proportions(
        body="hatchback", length=length, width=width, height=height, clearance=d(0.16, 0.2),
        wheel_radius=d(0.31, 0.35), axles=(front - d(0.7, 0.8), rear + d(0.62, 0.72)),
        nose=belt - d(0.2, 0.26), cowl=belt - d(0.0, 0.04), belt=belt, tail=belt, cabin_base=base,
        cabin_roof=(base[0] - d(0.6, 0.8), base[1] + d(0.3, 0.5)), tumblehome=d(0.16, 0.22),
        shoulder=d(0.08, 0.12), corner=d(0.12, 0.2), roof_edge=d(0.14, 0.22),
        side=_windows(0.03, split - 0.025, split + 0.025, d(0.84, 0.92)), rear_window=True,
    )  # fmt: skip


def _suv(d: _Draw) -> Proportions:
    length, width = d(4.3, 4.95), d(1.84, 1.98)
    height, belt = d(1.7, 1.9), d(1.02, 1.1)
    front, rear = length / 2, -length / 2
    base = (front - d(1.15, 1.35), rear + d(0.06, 0.12))
    split = d(0.34, 0.4)
    return Proportions(
        body="suv", length=length, width=width, height=height, clearance=d(0.24, 0.31),
        wheel_radius=d(0.37, 0.42), axles=(front - d(0.82, 0.92), rear + d(0.86, 0.98)),
        nose=belt - d(0.05, 0.1), cowl=belt - d(0.0, 0.03), belt=belt, tail=belt, cabin_base=base,
        cabin_roof=(base[0] - d(0.45, 0.7), base[1] + d(0.14, 0.36)), tumblehome=d(0.1, 0.17),
        shoulder=d(0.06, 0.1), corner=d(0.1, 0.16), roof_edge=d(0.12, 0.18),
        side=_windows(0.03, split - 0.02, split + 0.025, 2 * split - 0.04, 2 * split + 0.01, 0.96),
        rear_window=True,
    )  # fmt: skip


def _pickup(d: _Draw) -> Proportions:
    length, width = d(5.0, 5.6), d(1.86, 2.0)
    height, belt = d(1.72, 1.88), d(1.08, 1.16)
    front, rear = length / 2, -length / 2
    base_front = front - d(1.25, 1.45)
    double = d.chance(0.5)
    base = (base_front, base_front - (d(2.1, 2.3) if double else d(1.45, 1.65)))
    side = _windows(0.04, 0.46, 0.53, 0.94) if double else _windows(0.06, 0.92)
    return Proportions(
        body="pickup", length=length, width=width, height=height, clearance=d(0.27, 0.34),
        wheel_radius=d(0.38, 0.43), axles=(front - d(0.85, 0.95), rear + d(1.1, 1.25)),
        nose=belt - d(0.03, 0.07), cowl=belt - d(0.0, 0.03), belt=belt, tail=belt - d(0.28, 0.4),
        cabin_base=base, cabin_roof=(base[0] - d(0.5, 0.7), base[1] + d(0.05, 0.14)),
        tumblehome=d(0.12, 0.18), shoulder=d(0.05, 0.08), corner=d(0.1, 0.15), roof_edge=d(0.14, 0.2),
        side=side, rear_window=True,
    )  # fmt: skip


def _van(d: _Draw) -> Proportions:
    length, width = d(4.6, 5.3), d(1.9, 2.05)
    height, belt = d(1.9, 2.3), d(1.14, 1.24)
    front, rear = length / 2, -length / 2
    base = (front - d(0.5, 0.75), rear + d(0.04, 0.08))
    cargo = d.chance(0.5)
    side = _windows(0.03, d(0.25, 0.3)) if cargo else _windows(0.03, 0.27, 0.31, 0.62, 0.66, 0.95)
    return Proportions(
        body="van", length=length, width=width, height=height, clearance=d(0.19, 0.24),
        wheel_radius=d(0.35, 0.39), axles=(front - d(0.8, 0.9), rear + d(0.9, 1.05)),
        nose=belt - d(0.2, 0.3), cowl=belt - d(0.0, 0.04), belt=belt, tail=belt, cabin_base=base,
        cabin_roof=(base[0] - d(0.55, 0.9), base[1] + d(0.04, 0.12)), tumblehome=d(0.06, 0.12),
        shoulder=d(0.03, 0.05), corner=d(0.1, 0.15), roof_edge=d(0.1, 0.16), side=side,
        rear_window=not cargo or d.chance(0.5),
    )  # fmt: skip


def _bus(d: _Draw) -> Proportions:
    length, width = d(7.2, 9.2), d(2.35, 2.5)
    height, belt = d(2.75, 3.15), d(1.15, 1.35)
    front, rear = length / 2, -length / 2
    count = int(d.pick(4, 5, 6))  # type: ignore[call-overload]
    stops: list[float] = []
    for index in range(count):
        stops += [index / count + 0.012, (index + 1) / count - 0.012]
    return Proportions(
        body="bus", length=length, width=width, height=height, clearance=d(0.28, 0.34),
        wheel_radius=d(0.46, 0.52), axles=(front - d(1.6, 2.2), rear + d(1.8, 2.3)), nose=belt - 0.02,
        cowl=belt, belt=belt, tail=belt, cabin_base=(front - d(0.03, 0.1), rear + 0.03),
        cabin_roof=(front - d(0.1, 0.3), rear + d(0.05, 0.12)), tumblehome=d(0.02, 0.06), shoulder=0.02,
        corner=d(0.12, 0.2), roof_edge=d(0.08, 0.14), side=_windows(*stops), rear_window=d.chance(0.7),
    )  # fmt: skip


def _sports(d: _Draw) -> Proportions:
    length, width = d(4.15, 4.6), d(1.86, 1.98)
    height, belt = d(1.14, 1.24), d(0.77, 0.82)
    front, rear = length / 2, -length / 2
    base = (front - d(1.35, 1.6), rear + d(0.2, 0.5))
    return Proportions(
        body="sports", length=length, width=width, height=height, clearance=d(0.12, 0.15),
        wheel_radius=d(0.33, 0.36), axles=(front - d(0.85, 0.98), rear + d(0.85, 0.95)),
        nose=belt - d(0.2, 0.26), cowl=belt - d(0.01, 0.05), belt=belt, tail=belt + d(-0.02, 0.05),
        cabin_base=base, cabin_roof=(base[0] - d(0.65, 0.8), base[1] + d(0.75, 1.0)),
        tumblehome=d(0.2, 0.28), shoulder=d(0.1, 0.14), corner=d(0.18, 0.26), roof_edge=d(0.18, 0.26),
        side=_windows(0.04, d(0.6, 0.85)), rear_window=True,
    )  # fmt: skip


_SHAPES = {
    "sedan": _sedan,
    "hatchback": _hatchback,
    "suv": _suv,
    "pickup": _pickup,
    "van": _van,
    "bus": _bus,
    "sports": _sports,
}


# Red, orange, yellow, green, teal, blue, violet, pink, red: even steps to the eye; HSV is a third green.
_HUES = (-0.03, 0.06, 0.14, 0.33, 0.49, 0.6, 0.72, 0.87, 0.97)


def _paint(d: _Draw, neutral_share: float) -> Color:
    if d.chance(neutral_share):
        value = float(d.pick(d(0.12, 0.18), d(0.32, 0.45), d(0.6, 0.7), d(0.78, BRIGHTEST)))  # type: ignore[arg-type]
        hue, saturation = d(0.0, 1.0), d(0.0, 0.05)
    else:
        hue = float(np.interp(d(0.0, 1.0), np.linspace(0.0, 1.0, len(_HUES)), _HUES))
        saturation, value = d(0.6, 0.92), d(0.5, BRIGHTEST)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return red, green, blue


def _contrast(d: _Draw, paint: Color) -> Color:
    """A second colour that stands out from the first."""
    light, dark = (0.82, 0.82, 0.8), (0.12, 0.12, 0.13)
    if d.chance(0.35):
        other = _paint(d, 0.0)
        if max(abs(a - b) for a, b in zip(other, paint)) > 0.35:
            return other
    return dark if sum(paint) / 3 > 0.45 else light


def _looks(d: _Draw, body: str) -> dict[str, object]:
    paint = _paint(d, 0.12 if body in ("sports", "bus") else 0.28)
    second = _contrast(d, paint)
    tint = d(0.0, 0.05)
    shine = d(0.55, 0.78)
    two_tone = {
        "hatchback": 0.4,
        "suv": 0.3,
        "van": 0.25,
        "bus": 0.5,
        "sedan": 0.1,
        "pickup": 0.1,
        "sports": 0.15,
    }
    stripes = {"sports": 0.55, "hatchback": 0.2, "sedan": 0.1, "pickup": 0.15}
    side = {"bus": 0.7, "van": 0.4, "pickup": 0.25, "sedan": 0.1, "suv": 0.1}
    spoiler = {"sports": 0.65, "hatchback": 0.5, "sedan": 0.1, "suv": 0.3}
    return {
        "paint": paint,
        "second": second,
        "roof_paint": second if d.chance(two_tone[body]) else paint,
        "trim": (0.16, 0.16, 0.17),
        "glass": (0.17 + tint, 0.24 + tint, 0.31 + tint),
        "rim": (shine, shine, shine + 0.02),
        "stripes": d.chance(stripes.get(body, 0.0)),
        "side_stripe": d.chance(side.get(body, 0.0)),
        "cladding": d.chance({"suv": 0.6, "pickup": 0.4, "van": 0.3, "hatchback": 0.15}.get(body, 0.0)),
        "roof_rails": d.chance({"suv": 0.6, "van": 0.2, "hatchback": 0.1}.get(body, 0.0)),
        "spoiler": d.chance(spoiler.get(body, 0.0)),
        "spokes": 0 if body == "bus" else int(d.pick(5, 5, 6, 10, 0)),  # type: ignore[call-overload]
    }
