"""Faces that a picture cuts out (leaves on cards, fences), cut along its outlines so that what is not there goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from mnif_nerf.data.geometry.raytrace import Surface, face_normals

_MOST_FACES = 500_000
_OPAQUE = 250  # alpha of 255
_GLASS = 0.05  # alpha from which on what is blended counts as there
_INWARD = 1e-3  # of the way to a face's middle, where its corners are looked at: pictures repeat at their edges
_ENDS = 0.1  # nearest that an outline comes to a corner, of an edge: slivers do no good


def without_cut_outs(surface: Surface, edge: float, most: int = _MOST_FACES) -> Surface:
    """The surface without what its pictures cut out.

    Faces with alpha are cut in four until their edges are at most `edge` long, and there along the outline, between
    corners that are there and corners that are not. Alpha is averaged over about `edge`. Faces that are all there, and
    those that are blended all over (glass), stay as they are. Where pictures show nothing, the colour of the nearest
    place where they do is put, so that outlines have no fringe.

    Args:
        surface: any; where no picture cuts anything it is given back itself.
        edge: world units.
        most: faces; where more would be needed, edges stay longer.
    """
    if surface.cutoff is None or surface.corner_alpha is None or surface.texture is None or surface.uv is None:
        return surface
    clear = [picture.shape[2] == 4 and bool((picture[..., 3] < _OPAQUE).any()) for picture in surface.textures]
    chosen = (surface.cutoff >= 0) & np.array([*clear, False])[surface.texture]
    if not chosen.any():
        return surface
    small, number, weights = _cut(surface.vertices[surface.faces[chosen]], edge, most)
    faces = np.flatnonzero(chosen)[number]
    level = _level(replace(surface, textures=_averaged(surface, chosen, edge)), faces, weights)
    uncut = np.bincount(number, (level < 0).any(axis=1)) == 0  # of those chosen
    if uncut.all():
        return surface
    whole = ~chosen
    whole[np.flatnonzero(chosen)[uncut]] = True
    cut = ~uncut[number]
    small, weights, kept = _clip(small[cut], weights[cut], level[cut])
    faces = faces[cut][kept]
    corners = len(surface.vertices) + np.arange(3 * len(small)).reshape(-1, 3)

    def joined(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[whole], values[faces]])

    def mixed(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[whole], np.einsum("fkc,fc...->fk...", weights, values[faces])])

    return replace(
        surface,
        vertices=np.concatenate([surface.vertices, small.reshape(-1, 3)]),
        faces=np.concatenate([surface.faces[whole], corners]),
        corner_colors=mixed(surface.corner_colors),
        uv=mixed(surface.uv),
        texture=joined(surface.texture),
        textures=[_bled(picture) if cuts else picture for picture, cuts in zip(surface.textures, clear)],
        corner_alpha=mixed(surface.corner_alpha),
        cutoff=joined(surface.cutoff),
    )


def _averaged(surface: Surface, chosen: np.ndarray, edge: float) -> list[np.ndarray]:
    """The pictures, alpha averaged over blocks of texels that are about `edge` wide on the chosen faces."""
    assert surface.texture is not None
    assert surface.uv is not None
    found = []
    double = face_normals(surface.vertices, surface.faces)[1]
    for index, picture in enumerate(surface.textures):
        own = chosen & (surface.texture == index)
        if own.any():
            one, other = surface.uv[own, 1] - surface.uv[own, 0], surface.uv[own, 2] - surface.uv[own, 0]
            texels = np.abs(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]).sum() * picture[..., 0].size
            wide = edge * np.sqrt(texels / max(float(double[own].sum()), 1e-12))
            factor = int(np.clip(wide, 1, max(1, min(picture.shape[:2]) // 4)))
            picture = np.asarray(Image.fromarray(picture[..., 3]).reduce(factor))[..., None].repeat(4, axis=2)
        found.append(picture)
    return found


def _level(surface: Surface, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How much more than needed is there at corners with these weights [G, 3, 3] in `faces` [G]: [G, 3], below 0 where
    nothing is."""
    assert surface.cutoff is not None
    assert surface.corner_alpha is not None
    face = np.repeat(faces, 3)
    places = (1 - _INWARD) * weights.reshape(-1, 3) + _INWARD / 3
    texel = surface.texels(face, places)[:, 3]
    alpha = np.einsum("rk,rk->r", surface.corner_alpha[face], places) * texel
    cutoff = surface.cutoff[face]
    return np.where(cutoff > 0, alpha - cutoff + 1e-6, texel - _GLASS).reshape(-1, 3)


def _clip(triangles: np.ndarray, weights: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The parts of triangles [G, 3, 3] where a level, given at the corners [G, 3], is not below 0: triangles, weights
    that go with them, and the numbers of those that they come from."""
    inside = level >= 0
    count = inside.sum(axis=1)
    parts = [(triangles[count == 3], weights[count == 3], np.flatnonzero(count == 3))]
    for inner in (1, 2):
        chosen = np.flatnonzero(count == inner)
        odd = np.argmax(inside[chosen] == (inner == 1), axis=1)  # the corner that is unlike the others comes first
        order = (odd[:, None] + np.arange(3)) % 3
        levels = np.take_along_axis(level[chosen], order, axis=1)
        shapes = []
        for values in (triangles[chosen], weights[chosen]):
            a, b, c = np.moveaxis(np.take_along_axis(values, order[..., None], axis=1), 1, 0)
            ab, ac = _between(a, b, levels[:, 0], levels[:, 1]), _between(a, c, levels[:, 0], levels[:, 2])
            pieces = [(a, ab, ac)] if inner == 1 else [(b, c, ac), (b, ac, ab)]
            shapes.append(np.concatenate([np.stack(piece, axis=1) for piece in pieces]))
        parts.append((shapes[0], shapes[1], np.tile(chosen, inner)))
    return (
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] for part in parts]),
    )


def _between(a: np.ndarray, b: np.ndarray, level_a: np.ndarray, level_b: np.ndarray) -> np.ndarray:
    """Places [N, 3] between a and b where the level is 0; the same, to the bit, whichever of them comes first."""
    swapped = (level_a < level_b)[:, None]
    a, b = np.where(swapped, b, a), np.where(swapped, a, b)
    high, low = np.maximum(level_a, level_b), np.minimum(level_a, level_b)
    share = np.clip(high / np.maximum(high - low, 1e-12), _ENDS, 1 - _ENDS)
    return np.asarray(a + share[:, None] * (b - a))


def _bled(picture: np.ndarray) -> np.ndarray:
    """A picture [h, w, 4] whose clear texels have the colour of the nearest that are not."""
    from scipy import ndimage

    there = picture[..., 3] >= 128
    if there.all() or not there.any():
        return picture
    rows, columns = ndimage.distance_transform_edt(~there, return_distances=False, return_indices=True)
    filled = picture.copy()
    filled[..., :3] = picture[rows, columns, :3]
    return filled


def _cut(triangles: np.ndarray, edge: float, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles [F, 3, 3] cut in four until their edges are short: the new ones [G, 3, 3], the numbers of those that
    they are cut from [G], and their corners' weights there [G, 3, 3]."""
    done: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    number = np.arange(len(triangles))
    weights = np.tile(np.eye(3), (len(triangles), 1, 1))
    count = len(triangles)
    while len(triangles):
        longest = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=2).max(axis=1)
        long = longest > edge
        count += 3 * int(long.sum())
        if count > most:
            long[:] = False
        done.append((triangles[~long], number[~long], weights[~long]))
        triangles, weights = _quarters(triangles[long]), _quarters(weights[long])
        number = np.repeat(number[long], 4)
    return (
        np.concatenate([part[0] for part in done]),
        np.concatenate([part[1] for part in done]),
        np.concatenate([part[2] for part in done]),
    )


def _quarters(corners: np.ndarray) -> np.ndarray:
    """[4F, 3, 3] of [F, 3, 3]."""
    a, b, c = (corners[:, k] for k in range(3))
    ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
    return np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], axis=1).reshape(-1, 3, 3)
