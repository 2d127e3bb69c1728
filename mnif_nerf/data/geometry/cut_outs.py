"""Faces that a picture cuts out (leaves on cards, fences), cut small so that what is not there can be left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mnif_nerf.data.geometry.raytrace import Surface

_MOST_FACES = 2_000_000
_HALF = 0.5  # alpha of what is blended from which on it counts as solid


def without_cut_outs(surface: Surface, edge: float) -> Surface:
    """The surface without what its pictures cut out: faces with alpha are cut until their edges are at most `edge`
    long, and those go whose middle is clear.

    Faces that are blended all over (glass) stay. Where more than two million faces would be needed, edges stay longer.

    Args:
        surface: any; without alpha it is given back.
        edge: world units.
    """
    if surface.cutoff is None or surface.corner_alpha is None or surface.texture is None or surface.uv is None:
        return surface
    clear = np.array([picture.shape[2] == 4 for picture in surface.textures] + [False])
    chosen = (surface.cutoff >= 0) & clear[surface.texture]
    if not chosen.any():
        return surface
    small, number, weights = _cut(surface.vertices[surface.faces[chosen]], edge)
    faces = np.flatnonzero(chosen)[number]
    middles = weights.mean(axis=1)
    texels = surface.texels(faces, middles)
    alpha = np.einsum("rk,rk->r", surface.corner_alpha[faces], middles) * texels[:, 3]
    glass = (surface.cutoff[faces] == 0) & (texels[:, 3] > 0.05)
    kept = np.where(surface.cutoff[faces] > 0, alpha >= surface.cutoff[faces], (alpha >= _HALF) | glass)
    small, faces, weights = small[kept], faces[kept], weights[kept]
    whole, first = ~chosen, len(surface.vertices)
    corners = first + np.arange(3 * len(small)).reshape(-1, 3)

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
        corner_alpha=mixed(surface.corner_alpha),
        cutoff=joined(surface.cutoff),
    )


def _cut(triangles: np.ndarray, edge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        if count > _MOST_FACES:
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
