"""Colours on a textured surface: mixed in linear light, given in sRGB."""

from __future__ import annotations

import numpy as np

from mnif_nerf.data.geometry.raytrace import Surface


def linear_from_srgb(values: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to linear light in [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, (np.maximum(values, 0.0) / 1.055 + 0.055 / 1.055) ** 2.4)


def srgb_from_linear(values: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] to sRGB in [0, 1]."""
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * np.maximum(values, 1e-9) ** (1 / 2.4) - 0.055)


def surface_colors(surface: Surface, faces: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colours sRGB float32 [P, 3] in [0, 1] of points on faces.

    Corner colours are interpolated, and multiplied by the texture, in linear light. A texture gives its nearest texel.

    Args:
        surface: its corner colours and textures are sRGB.
        faces: int [P], the face of each point.
        points: [P, 3], on these faces or beside them (then the colour of the nearest point of the face's plane, its
            weights clipped to the face).
    """
    plain = _plain(surface)
    of_plain = np.zeros((len(plain), 3), np.float32)
    of_plain[plain] = _displayed(linear_from_srgb(surface.corner_colors[plain, 0]))
    found, mixed = of_plain[faces], np.flatnonzero(~plain[faces])
    found[mixed] = _mixed_colors(surface, faces[mixed], points[mixed])
    return found


def _mixed_colors(surface: Surface, faces: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Those of `surface_colors` point by point."""
    weights = barycentric(surface.vertices[surface.faces[faces]], points)
    colors = surface.corner_colors[faces]
    flat = (colors == colors[:, :1]).all(axis=(1, 2))
    linear = np.empty((len(faces), 3))
    linear[flat] = linear_from_srgb(colors[flat, 0])
    linear[~flat] = np.einsum("pk,pkc->pc", weights[~flat], linear_from_srgb(colors[~flat]))
    if surface.texture is not None:
        textured = surface.texture[faces] >= 0
        linear[textured] *= linear_from_srgb(surface.texels(faces[textured], weights[textured])[:, :3])
    return _displayed(linear)


def _displayed(linear: np.ndarray) -> np.ndarray:
    """Linear light to sRGB float32 in [0, 1]."""
    return np.clip(srgb_from_linear(linear), 0.0, 1.0).astype(np.float32)


def _plain(surface: Surface) -> np.ndarray:
    """Which faces are of one colour all over: bool [F]."""
    plain = np.asarray((surface.corner_colors == surface.corner_colors[:, :1]).all(axis=(1, 2)))
    return plain if surface.texture is None else plain & (surface.texture < 0)


def barycentric(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Weights [P, 3] >= 0 of sum 1 of points [P, 3] in triangles [P, 3, 3]; of flat triangles, a third each."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    to = points - corners[:, 0]
    a, b, c = (np.einsum("pi,pi->p", *pair) for pair in ((first, first), (first, second), (second, second)))
    d, e = np.einsum("pi,pi->p", to, first), np.einsum("pi,pi->p", to, second)
    area = a * c - b * b
    sound = area > 1e-30
    scale = np.where(sound, 1.0 / np.where(sound, area, 1.0), 0.0)
    u, v = (c * d - b * e) * scale, (a * e - b * d) * scale
    weights = np.clip(np.stack([1.0 - u - v, u, v], axis=1), 0.0, None)
    weights[~sound] = 1.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
