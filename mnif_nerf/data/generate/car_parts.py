"""Shapes that cars are put together from: every part is one closed triangle mesh with a colour per face.

Coordinates are metres with x forward, y left, z up and the ground at z = 0. All parts come from one idea,
`loft`: rings of points joined one to the next and capped at both ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Color = tuple[float, float, float]


@dataclass
class Part:
    """A closed mesh: vertices [V, 3], outward faces [F, 3], straight face colours [F, 3] in [0, 1]."""

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray


def loft(
    rings: np.ndarray, colors: np.ndarray, first_cap: np.ndarray, last_cap: np.ndarray, crown: float = 0.0
) -> Part:
    """Join rings into a tube and close both ends with fans.

    Args:
        rings: [S, K, 3] points; ring after ring, each running around in the same direction.
        colors: [S - 1, K, 3]; entry (s, k) colours the cell between rings s and s + 1 and points k and k + 1.
        first_cap, last_cap: [3] or [K, 3] colours of the end fans.
        crown: how far the middle of the last cap rises along z.
    """
    stations, size = rings.shape[:2]
    grid = np.arange(stations * size).reshape(stations, size)
    a, b = grid[:-1], np.roll(grid, -1, axis=1)[:-1]
    c, d = np.roll(grid, -1, axis=1)[1:], grid[1:]
    sides = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], axis=2).reshape(-1, 3)
    side_colors = np.repeat(np.broadcast_to(colors, (stations - 1, size, 3)).reshape(-1, 3), 2, axis=0)
    centres = np.stack([rings[0].mean(0), rings[-1].mean(0) + [0, 0, crown]])
    first, last = stations * size, stations * size + 1
    start = np.stack([np.full(size, first), np.roll(grid[0], -1), grid[0]], axis=-1)
    end = np.stack([np.full(size, last), grid[-1], np.roll(grid[-1], -1)], axis=-1)
    vertices = np.concatenate([rings.reshape(-1, 3), centres])
    faces = np.concatenate([sides, start, end])
    caps = [np.broadcast_to(cap, (size, 3)) for cap in (first_cap, last_cap)]
    face_colors = np.concatenate([side_colors, *caps])
    if signed_volume(vertices, faces) < 0:
        faces = faces[:, ::-1].copy()
    return Part(vertices, faces, face_colors.astype(np.float64))


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume of a closed mesh, positive where the faces turn outwards."""
    corners = vertices[faces]
    return float(np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))) / 6.0


def plain(part_rings: np.ndarray, color: Color) -> Part:
    """A loft in one colour."""
    tint = np.asarray(color, np.float64)
    return loft(part_rings, tint, tint, tint)


def rounded_box(center: Sequence[float], size: Sequence[float], color: Color, bevel: float = 0.3) -> Part:
    """A box whose edges are bevelled by `bevel` times half its smallest side."""
    half = np.asarray(size, np.float64) / 2
    cut = bevel * half.min()
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    rings = []
    for x, shrink in ((-half[0], cut), (-half[0] + cut, 0.0), (half[0] - cut, 0.0), (half[0], cut)):
        y, z = half[1] - shrink, half[2] - shrink
        outline = []
        for index, (sy, sz) in enumerate(signs):
            corners = [(sy * y, sz * (z - cut)), (sy * (y - cut), sz * z)]
            outline.extend(corners if index % 2 == 0 else corners[::-1])
        rings.append([(x, py, pz) for py, pz in outline])
    return plain(np.asarray(rings) + np.asarray(center, np.float64), color)


def wheel(
    center: Sequence[float], radius: float, thickness: float, side: int, rim: Color, tyre: Color, spokes: int
) -> Part:
    """A tyre with a rim and a hub; the outer face looks along y times `side` (1 left, -1 right).

    Args:
        center: center of the wheel.
        radius, thickness: of the tyre.
        spokes: number of spokes; 0 makes a plain disc.
    """
    segments = 30
    half = thickness / 2
    dark = np.array([0.13, 0.13, 0.14])
    # (radius, offset outwards, colour of the band that starts here); the rim lies inside the tyre's shoulder.
    profile = [
        (0.50, -half, tyre),
        (0.90, -half, tyre),
        (1.00, -0.6 * half, tyre),
        (1.00, 0.6 * half, tyre),
        (0.90, half, tyre),
        (0.68, half, rim),
        (0.62, 0.75 * half, None),
        (0.22, 0.85 * half, rim),
        (0.14, 1.0 * half, rim),
    ]
    angle = np.arange(segments) / segments * 2 * np.pi
    rings = np.stack(
        [
            np.stack(
                [r * radius * np.cos(angle), np.full(segments, side * offset), r * radius * np.sin(angle)],
                axis=1,
            )
            for r, offset, _ in profile
        ]
    )
    colors = np.empty((len(profile) - 1, segments, 3))
    period = segments // spokes if spokes else segments
    is_spoke = np.arange(segments) % period < (period + 1) // 2 if spokes else np.ones(segments, bool)
    for band, (_, _, color) in enumerate(profile[:-1]):
        colors[band] = np.where(is_spoke[:, None], rim, dark) if color is None else np.asarray(color)
    return loft(rings + np.asarray(center, np.float64), colors, np.asarray(tyre), np.asarray(rim))


def ribbon(profile: np.ndarray, right: float, left: float, thickness: float, color: Color) -> Part:
    """A thin band lying on a side profile [S, 2] of (x, z), between y = `right` and y = `left`."""
    rings = [
        [
            (x, right, z - thickness),
            (x, left, z - thickness),
            (x, left, z + thickness),
            (x, right, z + thickness),
        ]
        for x, z in profile
    ]
    return plain(np.asarray(rings, np.float64), color)


@dataclass
class BodyColors:
    """Colours of a lower body's bands from the ground up."""

    underside: Color
    lip: Color
    sill: Color
    lower: Color
    stripe: Color
    upper: Color
    top: Color


def body_shell(
    stations: np.ndarray, levels: Sequence[float], shoulder: float, crown: float, colors: BodyColors
) -> Part:
    """The painted lower body, lofted along x.

    Args:
        stations: [S, 4] of (x, bottom z, top z, half width); the bottom rises over the wheels.
        levels: heights of the borders sill | lower | stripe | upper, in that order (3 values).
        shoulder: radius of the rounding between sides and top.
        crown: how much the top arches over its width.
        colors: colors of the bands.
    """
    lip, step = 0.05, 0.004
    widest = levels[1]
    rings = []
    for x, bottom, top, half in stations:
        ceiling = top - shoulder
        heights = [min(bottom + lip, ceiling - 5 * step)]
        for level in levels:
            heights.append(float(np.clip(level, heights[-1] + step, max(ceiling - step, heights[-1] + step))))
        sides = [(half - min(0.5 * (z - widest) ** 2, 0.09), z) for z in heights]
        inset = half - min(0.5 * (ceiling - widest) ** 2, 0.09)
        outline = [
            (0.0, bottom),
            (half - 0.14, bottom),
            *sides,
            (inset, ceiling),
            (inset - 0.29 * shoulder, top - 0.29 * shoulder),
            (inset - shoulder, top),
            (0.45 * half, top + 0.75 * crown),
            (0.0, top + crown),
        ]
        mirrored = [(-y, z) for y, z in outline[-2:0:-1]]
        rings.append([(x, y, z) for y, z in outline + mirrored])
    bands = [
        colors.underside,
        colors.lip,
        colors.sill,
        colors.lower,
        colors.stripe,
        colors.upper,
        colors.upper,
        colors.top,
        colors.top,
        colors.top,
    ]
    row = np.asarray(bands + bands[::-1])
    paint = np.asarray(colors.lower)
    return loft(np.asarray(rings), row[None], paint, paint)


@dataclass
class CabinShape:
    """The part of a car above its belt line: a tapering box with rounded corners.

    Attributes:
        base: (front x, rear x) at the belt; roof: the same at the top.
        base_half, roof_half: half widths.
        bottom, top: heights.
        corner: radius of the corners seen from above.
        edge: radius of the roof's rounding.
        bow: how far windscreen and rear window bulge.
        side: (end fraction, is window) of the stretches from front to rear.
        rear_window: whether the back is glazed.
        glazing: (bottom, top) of the windows as fractions of the height.
    """

    base: tuple[float, float]
    roof: tuple[float, float]
    base_half: float
    roof_half: float
    bottom: float
    top: float
    corner: float
    edge: float
    bow: float
    side: tuple[tuple[float, bool], ...]
    rear_window: bool
    glazing: tuple[float, float]


def cabin_shell(shape: CabinShape, pillar: Color, roof: Color, glass: Color) -> Part:
    """The cabin with its windows as faces of the same closed mesh."""
    low, high = shape.glazing
    levels = [(0.0, 0.0), (low, 0.0), ((low + high) / 2, 0.0), (high, 0.0)]
    levels += [(1 - shape.edge, 0.0), (1 - 0.3 * shape.edge, 0.3), (1.0, 1.0)]
    rings = np.asarray([_cabin_ring(shape, height, inset) for height, inset in levels])
    window = _cabin_columns(shape)
    colors = np.empty((len(levels) - 1, rings.shape[1], 3))
    for row in range(len(levels) - 1):
        glazed = row in (1, 2)
        colors[row] = np.where((window & glazed)[:, None], glass, roof if row > 3 else pillar)
    cap = np.asarray(roof)
    return loft(rings, colors, np.asarray(pillar), cap, crown=0.02)


def _cabin_ring(shape: CabinShape, height: float, inset: float) -> list[tuple[float, float, float]]:
    """Outline at a relative height, counter-clockwise from the front right; `inset` in units of the edge."""
    shrink = inset * shape.edge * (shape.top - shape.bottom)
    front, rear = (a + (b - a) * height for a, b in zip(shape.base, shape.roof))
    front, rear = front - shrink, rear + shrink
    half = shape.base_half + (shape.roof_half - shape.base_half) * height - shrink
    z = shape.bottom + (shape.top - shape.bottom) * height
    corner, bow = shape.corner, shape.bow
    flat = half - corner
    across = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    points = [(front - bow * f * f, f * flat) for f in across]
    start, end = front - bow - corner, rear + bow + corner
    diagonal = corner * (1 - np.sqrt(0.5))
    points.append((front - bow - diagonal, half - diagonal))
    points += [(start + (end - start) * f, half) for f in (0.0, *(f for f, _ in shape.side))]
    points.append((rear + bow + diagonal, half - diagonal))
    points += [(rear + bow * f * f, f * flat) for f in across[::-1]]
    points.append((rear + bow + diagonal, -half + diagonal))
    points += [(start + (end - start) * f, -half) for f in (*(f for f, _ in shape.side[::-1]), 0.0)]
    points.append((front - bow - diagonal, -half + diagonal))
    return [(x, y, z) for x, y in points]


def _cabin_columns(shape: CabinShape) -> np.ndarray:
    """Which of the outline's stretches are windows, in the order of `_cabin_ring`."""
    side = [is_window for _, is_window in shape.side]
    front, rear, pillar = [True] * 4, [shape.rear_window] * 4, [False] * 2
    return np.asarray(front + pillar + side + pillar + rear + pillar + side[::-1] + pillar)
