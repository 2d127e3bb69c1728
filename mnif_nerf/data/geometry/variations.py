"""Varied copies of a mesh: what a folder of a dozen things has too little of, made from the things themselves.

Meshes are varied, not what is drawn of them, so distances, silhouettes and filled cells of a copy are as exact as those
of its original.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from mnif_nerf.data.geometry.raytrace import Surface, face_normals

VARIATIONS = ("mirror", "stretch", "bend", "hue", "paint")
"""Left for right; longer, wider, higher; bent to a side; all hues turned; the main colour taken from another mesh."""
_STRETCH = 0.16  # standard deviation of the logarithm of each side's length
_BEND = 0.10  # of the height that the top moves aside, standard deviation
_HUE = 180.0  # degrees to either side
_CLUSTERS, _SAMPLES = 6, 3000  # of colours, and places that they are looked for at
_GREY, _LIGHTNESS = 0.1, 0.25  # how much a part without colour counts, and a difference of lightness
_PIXELS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Variation:
    """What is changed in one copy of a mesh.

    Attributes:
        kinds: of `VARIATIONS`.
        seed: of how much.
    """

    kinds: tuple[str, ...]
    seed: tuple[int, ...] = field(default=(0,))


def varied(surface: Surface, variation: Variation, donor: Surface | None = None) -> Surface:
    """A copy of a mesh, varied, in the same frame (z up, x forward), centred, of diagonal 1.

    Args:
        surface: the mesh.
        variation: what is changed.
        donor: the mesh whose main colour "paint" takes; without one the colours stay.

    Returns:
        a new surface; the given one is as it was.
    """
    generator = np.random.default_rng(variation.seed)
    # Every kind draws its numbers, wanted or not, so that adding one changes none of the others.
    flip, sides, aside, turn = (
        generator.random() < 0.5,
        np.exp(generator.normal(0.0, _STRETCH, 3)),
        generator.normal(0.0, _BEND, 2),
        generator.uniform(-_HUE, _HUE),
    )
    found = replace(surface, vertices=np.array(surface.vertices, np.float64))
    if "stretch" in variation.kinds:
        found.vertices *= sides
    if "bend" in variation.kinds:
        _bend(found.vertices, surface.faces, aside)
    if "mirror" in variation.kinds and flip:
        found = _mirrored(found)
    if "paint" in variation.kinds and donor is not None:
        found = _painted(found, donor, generator)
    if "hue" in variation.kinds:
        found = _recolored(found, lambda colors: _turned(colors, turn))
    used = found.vertices[np.unique(found.faces)]
    low, high = used.min(0), used.max(0)
    found.vertices = (found.vertices - (low + high) / 2) / np.linalg.norm(high - low)
    return found


def _bend(vertices: np.ndarray, faces: np.ndarray, aside: np.ndarray) -> None:
    """Move what is high aside, in place: by the square of the height, so that the foot stays upright."""
    used = vertices[np.unique(faces), 2]
    foot, height = used.min(), max(float(np.ptp(used)), 1e-9)
    vertices[:, :2] += aside * height * np.square((vertices[:, 2:] - foot) / height)


def _mirrored(surface: Surface) -> Surface:
    """Left for right; corners are listed the other way round, so that faces still look outwards."""
    corners = {
        name: value[:, ::-1]
        for name in ("faces", "corner_colors", "uv", "corner_alpha")
        if (value := getattr(surface, name)) is not None
    }
    return replace(surface, vertices=surface.vertices * (1.0, -1.0, 1.0), **corners)


def _painted(surface: Surface, donor: Surface, generator: np.random.Generator) -> Surface:
    """The colour of the largest coloured part moves to that of the other mesh's, its shades along."""
    colors, main = _palette(surface, generator)
    others, chosen = _palette(donor, generator)
    centres, shift = _opponent(colors), others[chosen] - colors[main]

    def paint(given: np.ndarray) -> np.ndarray:
        away = np.square(_opponent(given)[:, None] - centres).sum(-1)
        return np.where((away.argmin(1) == main)[:, None], np.clip(given + shift, 0.0, 1.0), given)

    return _recolored(surface, paint)


def _palette(surface: Surface, generator: np.random.Generator) -> tuple[np.ndarray, int]:
    """The colours of a mesh's parts [K, 3] in [0, 1], and which one is that of its main part: large, and not grey."""
    from scipy.cluster.vq import kmeans2

    area = face_normals(surface.vertices, surface.faces)[1]
    faces = generator.choice(len(area), _SAMPLES, p=area / area.sum())
    weights = generator.dirichlet((1.0, 1.0, 1.0), _SAMPLES)
    colors = np.einsum("fkc,fk->fc", surface.corner_colors[faces], weights) * surface.texels(faces, weights)[:, :3]
    distinct = np.unique(colors.round(2), axis=0)
    if len(distinct) <= _CLUSTERS:
        own = np.square(colors[:, None] - distinct).sum(-1).argmin(1)
    else:
        own = kmeans2(_opponent(colors), _CLUSTERS, minit="++", seed=generator)[1]
    groups = [colors[own == k] for k in np.unique(own)]
    centres = np.stack([group.mean(0) for group in groups])
    share = np.array([len(group) for group in groups])
    return centres, int((share * (_GREY + np.ptp(centres, axis=1))).argmax())


def _opponent(colors: np.ndarray) -> np.ndarray:
    """Colours [N, 3] by red against green, yellow against blue, and a little by lightness, which differs within a part
    that has shades."""
    red, green, blue = colors.T
    return np.stack([red - green, 0.5 * (red + green) - blue, _LIGHTNESS * colors.mean(1)], axis=1)


def _recolored(surface: Surface, change: Callable[[np.ndarray], np.ndarray]) -> Surface:
    """Change colours [N, 3] in [0, 1]: those of pictures, and those of corners where there is no picture."""
    colors = np.array(surface.corner_colors, np.float32)
    plain = np.ones(len(colors), bool) if surface.texture is None else surface.texture < 0
    colors[plain] = change(colors[plain].reshape(-1, 3)).reshape(-1, 3, 3)
    return replace(
        surface, corner_colors=colors, textures=[_recolored_picture(each, change) for each in surface.textures]
    )


def _recolored_picture(picture: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    found = picture.copy()
    pixels = found.reshape(-1, picture.shape[2])
    for first in range(0, len(pixels), _PIXELS_AT_ONCE):
        part = pixels[first : first + _PIXELS_AT_ONCE]
        part[:, :3] = np.rint(255 * change(part[:, :3] / np.float32(255)))
    return found


def _turned(colors: np.ndarray, degrees: float) -> np.ndarray:
    """Colours [N, 3] with another hue: turned about the axis of greys, which stay."""
    angle, axis = np.radians(degrees), np.full(3, 3**-0.5)
    cross = np.cross(np.eye(3), axis)
    turn = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * np.outer(axis, axis) + np.sin(angle) * cross
    return np.clip(colors @ turn.T, 0.0, 1.0).astype(np.float32)
