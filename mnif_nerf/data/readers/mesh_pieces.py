"""Pieces of one mesh: giving them a picture, leaving out what is not seen, and joining them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mnif_nerf.data.geometry.raytrace import Surface

UNCOLOURED = 0.65
"""Grey of meshes that carry no colour."""
SEE_THROUGH = 0.05
"""Alpha below which a blended face counts as not there."""
_LOOKED_AT = 6  # rows of places on a face where its alpha is looked at


def with_corners(surface: Surface, uv: np.ndarray, picture: np.ndarray, wrap: tuple[str, str]) -> Surface:
    """A piece with one picture on all its faces; uv [F, 3, 2], v upwards."""
    texture = np.zeros(len(surface.faces), np.int64)
    return replace(surface, uv=uv, texture=texture, textures=[picture], wraps=[wrap])


def chosen_faces(surface: Surface, chosen: np.ndarray) -> Surface:
    """Some of the faces: bool [F], or their numbers; all vertices and pictures stay."""

    def kept(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[chosen]

    return replace(
        surface,
        faces=surface.faces[chosen],
        corner_colors=surface.corner_colors[chosen],
        uv=kept(surface.uv),
        texture=kept(surface.texture),
        corner_alpha=kept(surface.corner_alpha),
        cutoff=kept(surface.cutoff),
    )


def seen_faces(surface: Surface) -> np.ndarray:
    """Which faces may be seen: bool [F]; False where all texels around a face are cut out, or all but clear."""
    seen = np.ones(len(surface.faces), dtype=bool)
    if surface.cutoff is None or surface.corner_alpha is None:
        return seen
    least = np.where(surface.cutoff > 0, surface.cutoff, SEE_THROUGH)
    own = surface.corner_alpha.max(axis=1)
    doubtful = surface.cutoff >= 0
    seen[doubtful] = (own >= least)[doubtful]
    if surface.texture is None or surface.uv is None:
        return seen
    for index, picture in enumerate(surface.textures):
        chosen = np.flatnonzero(doubtful & seen & (surface.texture == index))
        if len(chosen) and picture.shape[2] == 4:
            needed = float((least[chosen] / own[chosen]).min())
            wrap = surface.wraps[index] if surface.wraps else ("repeat", "repeat")
            seen[chosen] = _any_texel(picture[..., 3] >= 255 * needed, surface.uv[chosen], wrap)
    return seen


def _any_texel(mask: np.ndarray, uv: np.ndarray, wrap: tuple[str, str]) -> np.ndarray:
    """Whether a mask [h, w] is set anywhere in the box around each face's texture coordinates [F, 3, 2]: bool [F]."""
    sums = np.pad(mask.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    uv = np.nan_to_num(np.stack([uv[..., 0], 1.0 - uv[..., 1]], axis=-1), posinf=0.0, neginf=0.0)
    left, right = _texels_between(uv[..., 0], mask.shape[1], wrap[0])
    top, bottom = _texels_between(uv[..., 1], mask.shape[0], wrap[1])
    count = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return np.asarray(count > 0)


def _texels_between(places: np.ndarray, count: int, wrap: str) -> tuple[np.ndarray, np.ndarray]:
    """First texel and the one after the last, of `count`, that places [F, 3] span; all where they go over an edge."""
    low, high = places.min(axis=1), places.max(axis=1)
    base = np.floor(low) if wrap == "repeat" else np.zeros_like(low)
    whole = (high > base + 1) | (low < base)
    first = np.clip(np.floor((low - base) * count) - 1, 0, count - 1).astype(np.int64)
    last = np.clip(np.floor((high - base) * count) + 2, 1, count).astype(np.int64)
    return np.where(whole, 0, first), np.where(whole, count, last)


def sampled_alpha(surface: Surface) -> np.ndarray:
    """The largest alpha found on each face, by a look at several places of it: [F]."""
    found = np.zeros(len(surface.faces))
    steps = np.arange(_LOOKED_AT)
    for i in steps:
        for j in steps[: _LOOKED_AT - i]:
            # A little inside: texels beside a face belong to others.
            weights = np.array([i, j, _LOOKED_AT - 1 - i - j]) / (_LOOKED_AT - 1) * 0.94 + 0.02
            alpha = surface.alpha(np.arange(len(found)), np.tile(weights, (len(found), 1)))
            found = np.maximum(found, alpha)
    return found


def join(pieces: Sequence[Surface]) -> Surface:
    """All pieces as one."""
    offsets = np.cumsum([0, *(len(piece.vertices) for piece in pieces[:-1])])
    textures: list[np.ndarray] = []
    wraps: list[tuple[str, str]] = []
    uvs, texture = [], []
    see_through = any(piece.cutoff is not None for piece in pieces)
    for piece in pieces:
        count = len(piece.faces)
        if piece.texture is None or piece.uv is None:
            uvs.append(np.zeros((count, 3, 2)))
            texture.append(np.full(count, -1))
            continue
        uvs.append(piece.uv)
        number = _numbers(piece, textures, wraps)
        texture.append(np.where(piece.texture >= 0, number[piece.texture], -1))
    alphas = [np.ones((len(p.faces), 3)) if p.corner_alpha is None else p.corner_alpha for p in pieces]
    cutoffs = [np.full(len(piece.faces), -1.0) if piece.cutoff is None else piece.cutoff for piece in pieces]
    return Surface(
        vertices=np.concatenate([piece.vertices for piece in pieces]),
        faces=np.concatenate([piece.faces + offset for piece, offset in zip(pieces, offsets)]),
        corner_colors=np.concatenate([piece.corner_colors for piece in pieces]),
        uv=np.concatenate(uvs) if textures else None,
        texture=np.concatenate(texture) if textures else None,
        textures=textures,
        wraps=wraps,
        corner_alpha=np.concatenate(alphas) if see_through else None,
        cutoff=np.concatenate(cutoffs) if see_through else None,
    )


def _numbers(piece: Surface, textures: list[np.ndarray], wraps: list[tuple[str, str]]) -> np.ndarray:
    """Where a piece's pictures are in the joined list; those that it has already are not added again."""
    numbers = []
    for index, picture in enumerate(piece.textures):
        wrap = piece.wraps[index] if piece.wraps else ("repeat", "repeat")
        same = [k for k, other in enumerate(textures) if other is picture and wraps[k] == wrap]
        if not same:
            same = [len(textures)]
            textures.append(picture)
            wraps.append(wrap)
        numbers.append(same[0])
    return np.array(numbers, np.int64)


def flat_and_large(pieces: Sequence[Surface]) -> int | None:
    """Number of the piece that is flat and more than four times as wide as all others together, or None."""
    if len(pieces) < 2:
        return None
    boxes = [_box(piece) for piece in pieces]
    sizes = [float(np.linalg.norm(high - low)) for low, high in boxes]
    largest = int(np.argmax(sizes))
    low, high = boxes[largest]
    others = [box for number, box in enumerate(boxes) if number != largest]
    rest = np.max([box[1] for box in others], axis=0) - np.min([box[0] for box in others], axis=0)
    flat = (high - low).min() < 0.01 * sizes[largest]
    return largest if flat and sizes[largest] > 4 * np.linalg.norm(rest) else None


def is_shadow(piece: Surface, up: int, sign: float, floor: float, height: float) -> bool:
    """Whether a piece is a picture of a shadow: flat, on the ground, blended, dark and never opaque.

    Args:
        piece: the piece.
        up, sign: the axis that points up, and which way.
        floor: the lowest place of all pieces along it.
        height: how far all pieces reach above it.
    """
    if piece.cutoff is None or (piece.cutoff != 0).any():
        return False
    used = sign * piece.vertices[np.unique(piece.faces)][:, up]
    if np.ptp(used) > 0.02 * height or used.min() > floor + 0.05 * height:
        return False
    weights = np.full((len(piece.faces), 3), 1 / 3)
    every = np.arange(len(piece.faces))
    texels = piece.texels(every, weights)
    dark = (piece.corner_colors.mean(axis=1) * texels[:, :3]).max(axis=1)
    return bool((dark < 0.15).all() and np.percentile(sampled_alpha(piece), 50) < 0.9)


def _box(piece: Surface) -> tuple[np.ndarray, np.ndarray]:
    used = piece.vertices[np.unique(piece.faces)]
    return used.min(axis=0), used.max(axis=0)
