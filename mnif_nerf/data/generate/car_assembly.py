"""Putting a procedural car together: from `CarParameters` to closed, coloured parts."""

from __future__ import annotations

import math

import numpy as np

from mnif_nerf.data.generate.car_design import CarParameters
from mnif_nerf.data.generate.car_parts import (
    BodyColors,
    CabinShape,
    Color,
    Part,
    body_shell,
    cabin_shell,
    ribbon,
    rounded_box,
    wheel,
)

TYRE: Color = (0.11, 0.11, 0.12)
DARK: Color = (0.14, 0.14, 0.15)
HEADLIGHT: Color = (0.95, 0.93, 0.82)
TAIL_LIGHT: Color = (0.78, 0.06, 0.05)
PLATE: Color = (0.8, 0.8, 0.76)


def build_car(car: CarParameters) -> list[Part]:
    """All parts of a car in metres (x forward, y left, z up, ground at z = 0), each closed on its own."""
    parts = [_body(car), _cabin(car), _chassis(car), *_wheels(car), *_front(car), *_rear(car), *_extras(car)]
    if car.body == "pickup":
        parts += _bed(car)
    if car.body == "bus":
        parts += _bus_details(car)
    return parts


def _arch_radius(car: CarParameters) -> float:
    return 1.12 * car.wheel_radius + 0.01


def _tyre_width(car: CarParameters) -> float:
    return (0.68 if car.body != "sports" else 0.8) * car.wheel_radius


def _top_profile(car: CarParameters) -> np.ndarray:
    """[C, 2] of (x, z) along the body's upper edge from rear to front."""
    front, rear = car.length / 2, -car.length / 2
    round_front, round_rear = (0.1, 0.06) if car.body not in ("bus", "van") else (0.06, 0.03)
    points = [(rear, car.tail - round_rear), (rear + 0.07, car.tail - 0.2 * round_rear)]
    if car.body == "pickup":
        points += [
            (rear + 0.14, car.tail),
            (car.cabin_base[1] - 0.08, car.tail),
            (car.cabin_base[1] - 0.07, car.belt),
        ]
    elif car.cabin_base[1] - rear > 0.3:
        points += [(rear + 0.25, car.tail)]
    points += [(max(car.cabin_base[1], rear + 0.1), car.belt), (car.cabin_base[0], car.cowl)]
    bonnet = front - 0.1 - car.cabin_base[0]
    if bonnet > 0.25:
        for along, fall in ((0.35, 0.16), (0.7, 0.5)):
            points.append((car.cabin_base[0] + along * bonnet, car.cowl + (car.nose - car.cowl) * fall))
    if bonnet > 0.0:
        points.append((front - 0.1, car.nose))
    points.append((front, car.nose - round_front))
    # Low cars carry their wings over the wheels; without this the arch would cut through the bonnet.
    profile = np.asarray(sorted(points))
    needed = car.wheel_radius + _arch_radius(car) + 0.05
    swell = [(axle + dx, needed - 0.4 * dx**2) for axle in car.axles for dx in (-0.45, -0.3, -0.15, 0, 0.15, 0.3, 0.45)]
    wings = [(x, z) for x, z in swell if np.interp(x, profile[:, 0], profile[:, 1]) < z]
    return np.asarray(sorted([*map(tuple, profile), *wings]))


def _body(car: CarParameters) -> Part:
    front, rear = car.length / 2, -car.length / 2
    profile = _top_profile(car)
    arch, hub = _arch_radius(car), car.wheel_radius
    marks = [*profile[:, 0], *np.linspace(rear, rear + 0.6, 6), *np.linspace(front - 0.6, front, 6)]
    stations: list[tuple[float, float]] = []
    for axle in car.axles:
        angles = np.linspace(math.pi, 0.0, 13)
        stations += [(axle + arch * math.cos(a), hub + arch * math.sin(a)) for a in angles]
        stations += [(axle - arch - 1e-4, car.clearance), (axle + arch + 1e-4, car.clearance)]
    for x in marks:
        if all(abs(x - axle) > arch + 1e-3 for axle in car.axles):
            rise = max(0.0, abs(x) - (car.length / 2 - 0.4)) / 0.4
            stations.append((float(x), car.clearance + 0.07 * rise**2))
        else:
            axle = min(car.axles, key=lambda a: abs(a - x))
            stations.append((float(x), hub + math.sqrt(max(arch**2 - (x - axle) ** 2, 0.0))))
    rows = []
    for x, bottom in sorted(set(stations)):
        top = float(np.interp(x, profile[:, 0], profile[:, 1]))
        rows.append((x, min(bottom, top - car.shoulder - 0.04), top, _half_width(car, x)))
    lower = car.clearance + 0.16
    levels = (lower, 0.5 * car.belt, 0.5 * car.belt + (0.16 if car.body != "bus" else 0.3))
    if car.body == "bus":
        levels = (lower, 0.62 * car.belt, 0.86 * car.belt)
    lip = car.trim if car.cladding else car.paint
    colors = BodyColors(
        underside=DARK,
        lip=lip,
        sill=lip,
        lower=car.paint,
        stripe=car.second if car.side_stripe else car.paint,
        upper=car.paint,
        top=car.paint,
    )
    crown = 0.03 if car.body not in ("pickup", "bus") else 0.0
    return body_shell(np.asarray(rows), levels, car.shoulder, crown, colors)


def _half_width(car: CarParameters, x: float) -> float:
    """Seen from above the body narrows towards nose and tail."""
    reach, narrow_front, narrow_rear = (0.8, 0.2, 0.12) if car.body not in ("bus", "van") else (0.35, 0.12, 0.05)
    if car.body == "pickup":
        narrow_rear = 0.04
    beyond = max(0.0, (abs(x) - (car.length / 2 - reach)) / reach)
    return car.width / 2 - (narrow_front if x > 0 else narrow_rear) * beyond**2.5


def _cabin(car: CarParameters) -> Part:
    half = car.width / 2 - (0.04 if car.body == "bus" else 0.6 * car.shoulder + 0.03)
    shape = CabinShape(
        base=car.cabin_base,
        roof=car.cabin_roof,
        base_half=half,
        roof_half=half - car.tumblehome * car.width / 2,
        bottom=min(car.belt, car.cowl) - 0.06,
        top=car.height - 0.02,
        corner=car.corner,
        edge=car.roof_edge,
        bow=0.05 if car.body != "bus" else 0.08,
        side=car.side,
        rear_window=car.rear_window,
        glazing=(0.2, 0.8) if car.body not in ("van", "bus") else (0.14, 0.74),
    )
    pillar = car.roof_paint if car.body == "bus" else car.paint  # dark pillars would swallow the windows
    return cabin_shell(shape, pillar, car.roof_paint, car.glass)


def _chassis(car: CarParameters) -> Part:
    """A dark block between the wheels: fills the arches, which run through the whole body."""
    half = car.width / 2 - _tyre_width(car) - 0.05
    top = min(car.wheel_radius + _arch_radius(car) + 0.03, car.nose - 0.04)
    bottom = car.clearance + 0.02
    length = car.length - 0.5
    return rounded_box((0, 0, (top + bottom) / 2), (length, 2 * half, top - bottom), DARK, 0.1)


def _wheels(car: CarParameters) -> list[Part]:
    thickness = _tyre_width(car)
    parts = []
    for axle in car.axles:
        for side in (1, -1):
            center = (axle, side * (car.width / 2 - 0.03 - thickness / 2), car.wheel_radius)
            parts.append(wheel(center, car.wheel_radius, thickness, side, car.rim, TYRE, car.spokes))
    return parts


def _front(car: CarParameters) -> list[Part]:
    front = car.length / 2
    half = _half_width(car, front)
    tall = car.body in ("suv", "pickup", "van", "bus")
    lamp = (0.24, 0.36 * half, 0.22 if tall else 0.16)
    height = car.nose - (0.17 if car.body != "bus" else 0.42) - (0.04 if tall else 0.0)
    parts = [rounded_box((front - 0.07, side * 0.8 * half, height), lamp, HEADLIGHT, 0.5) for side in (1, -1)]
    grille = (0.12, 0.95 * half, 0.2 if tall else 0.1)
    parts.append(rounded_box((front - 0.04, 0, height - 0.01), grille, car.trim, 0.3))
    bumper_color = car.trim if car.cladding or car.body == "bus" else car.paint
    bumper_z = max(car.clearance + 0.18, 0.33) if car.body != "bus" else 0.5
    parts.append(rounded_box((front - 0.03, 0, bumper_z), (0.16, 1.86 * half, 0.2), bumper_color, 0.6))
    parts.append(rounded_box((front + 0.03, 0, bumper_z - 0.01), (0.06, 0.9 * half, 0.1), DARK, 0.2))
    for side in (1, -1):
        if car.body == "bus":
            spot = (front - 0.14, side * (car.width / 2 + 0.03), 0.66 * car.height)
            size = (0.14, 0.24, 0.36)
        else:
            spot = (car.cabin_base[0] - 0.34, side * (car.width / 2 - 0.02), car.belt + 0.05)
            size = (0.14, 0.34, 0.14)
        parts.append(rounded_box(spot, size, car.trim if tall else car.paint, 0.6))
    return parts


def _rear(car: CarParameters) -> list[Part]:
    rear = -car.length / 2
    half = _half_width(car, rear)
    tall = car.body in ("suv", "van", "bus", "hatchback", "pickup")
    size = (0.14, 0.2 * half, 0.34) if tall else (0.14, 0.42 * half, 0.14)
    height = (car.belt if car.body == "pickup" else car.tail) - (0.26 if tall else 0.15)
    if car.body == "bus":
        height = car.belt - 0.4
    reach = 0.84 if tall else 0.74
    parts = [rounded_box((rear + 0.04, side * reach * half, height), size, TAIL_LIGHT, 0.4) for side in (1, -1)]
    parts.append(rounded_box((rear - 0.0, 0, height - (0.06 if tall else 0.02)), (0.06, 0.5, 0.13), PLATE, 0.2))
    bumper_z = max(car.clearance + 0.16, 0.36) if car.body != "bus" else 0.5
    color = car.trim if car.cladding or car.body in ("pickup", "bus") else car.paint
    parts.append(rounded_box((rear + 0.02, 0, bumper_z), (0.16, 1.9 * half, 0.2), color, 0.6))
    parts.append(rounded_box((rear - 0.03, 0, bumper_z - 0.06), (0.06, 1.1 * half, 0.09), DARK, 0.2))
    return parts


def _extras(car: CarParameters) -> list[Part]:
    parts: list[Part] = []
    rear = -car.length / 2
    roof = car.cabin_roof
    if car.stripes:
        parts += _racing_stripes(car)
    if car.roof_rails:
        half = (car.width / 2) * (1 - car.tumblehome) - 0.2
        length, middle = 0.72 * (roof[0] - roof[1]), (roof[0] + roof[1]) / 2
        for side in (1, -1):
            parts.append(rounded_box((middle, side * half, car.height + 0.03), (length, 0.07, 0.09), car.trim, 0.4))
        for along in (-0.3, 0.3):
            spot = (middle + along * length, 0.0, car.height + 0.05)
            parts.append(rounded_box(spot, (0.09, 2 * half, 0.05), car.trim, 0.3))
    if car.spoiler and car.body in ("suv", "hatchback"):
        width = 2 * (car.width / 2) * (1 - car.tumblehome) - 0.25
        parts.append(rounded_box((roof[1] - 0.06, 0, car.height - 0.06), (0.4, width, 0.07), car.roof_paint, 0.6))
    elif car.spoiler:
        deck, width = car.tail, car.width - 0.16
        lift = 0.24 if car.body == "sports" else 0.12
        parts.append(rounded_box((rear + 0.18, 0, deck + lift), (0.34, width, 0.07), car.second, 0.5))
        for side in (1, -1):
            spot = (rear + 0.22, side * 0.36 * width, deck + lift / 2 - 0.02)
            parts.append(rounded_box(spot, (0.18, 0.07, lift + 0.08), car.trim, 0.2))
    return parts


def _racing_stripes(car: CarParameters) -> list[Part]:
    """Two bands over bonnet, roof and rear deck."""
    profile = _top_profile(car)
    lift = 0.028
    bonnet = profile[profile[:, 0] >= car.cabin_base[0] - 0.02]
    deck = profile[(profile[:, 0] <= car.cabin_base[1] + 0.02) & (car.body != "pickup")]
    edge = car.roof_edge * (car.height - min(car.belt, car.cowl)) + 0.03
    roof = np.asarray([(car.cabin_roof[1] + edge, car.height - 0.014), (car.cabin_roof[0] - edge, car.height - 0.014)])
    parts = []
    for right, left in ((-0.34, -0.1), (0.1, 0.34)):
        for line in (bonnet, deck):
            if len(line) > 1:
                parts.append(ribbon(line + [0, lift - 0.012], right, left, 0.014, car.second))
        parts.append(ribbon(roof, right, left, 0.016, car.second))
    return parts


def _bed(car: CarParameters) -> list[Part]:
    """Walls around a pickup's load bed and its dark floor."""
    rear, end = -car.length / 2, car.cabin_base[1] - 0.04
    bottom = car.tail - 0.12
    half = car.width / 2
    wall, middle, length = car.belt - bottom, (rear + end) / 2 + 0.02, end - rear - 0.04
    parts = [rounded_box((middle, 0, car.tail), (length - 0.1, 2 * half - 0.3, 0.06), car.trim, 0.1)]
    for side in (1, -1):
        spot = (middle, side * (half - 0.1), bottom + wall / 2)
        parts.append(rounded_box(spot, (length, 0.13, wall), car.paint, 0.35))
    parts.append(rounded_box((rear + 0.07, 0, bottom + wall / 2), (0.13, 2 * half - 0.16, wall), car.paint, 0.35))
    return parts


def _bus_details(car: CarParameters) -> list[Part]:
    """Doors on the right-hand side and a destination sign."""
    front, half = car.length / 2, car.width / 2
    parts = []
    low, high = car.clearance + 0.12, 0.72 * car.height
    for x in (front - 0.75, (car.axles[0] + car.axles[1]) / 2 - 0.2):
        spot = (x, -half + 0.03, (low + high) / 2)
        parts.append(rounded_box(spot, (0.95, 0.12, high - low), car.glass, 0.2))
    sign = (car.cabin_roof[0] - 0.02, 0, car.height - 0.33)
    parts.append(rounded_box(sign, (0.24, 0.62 * car.width, 0.28), DARK, 0.3))
    parts.append(rounded_box((sign[0] + 0.1, 0, sign[2]), (0.08, 0.5 * car.width, 0.14), (0.95, 0.72, 0.15), 0.2))
    return parts
