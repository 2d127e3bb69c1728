"""Pictures with alpha: the one place that knows what their four channels are.

Stores, fields and metrics hold red, green and blue times alpha ("premultiplied"), and alpha. So the colour below
transparent pixels, which no one sees, is never learned, and pictures are reduced, enlarged and blended without a fringe
of it. Files and users have straight colours. Pictures of one or three channels pass through all functions unchanged.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

CHANNELS = 4
"""Of a picture with alpha."""

_LEVELS = 255
_ANY = TypeVar("_ANY", np.ndarray, Tensor)


def has_alpha(values: np.ndarray | Tensor) -> bool:
    """Whether pictures `[..., C]` have alpha."""
    return values.shape[-1] == CHANNELS


def premultiplied(pixels: np.ndarray) -> np.ndarray:
    """Straight colours and alpha, uint8 `[..., 4]`, as stores have them: uint8 `[..., 4]`, rounded."""
    if not has_alpha(pixels):
        return pixels
    wide = pixels.astype(np.uint16)
    colors = (wide[..., :3] * wide[..., 3:] + _LEVELS // 2) // _LEVELS
    return np.concatenate([colors.astype(np.uint8), pixels[..., 3:]], axis=-1)


def straight(pixels: np.ndarray) -> np.ndarray:
    """Premultiplied uint8 `[..., 4]` as files have them: uint8 `[..., 4]`. What is quite transparent becomes black, and
    colours that a field made stronger than their alpha, which no straight colour gives, become as strong as it."""
    if not has_alpha(pixels):
        return pixels
    alpha = pixels[..., 3:]
    levels = np.maximum(alpha, 1).astype(np.uint16)
    colors = (np.minimum(pixels[..., :3], alpha).astype(np.uint16) * _LEVELS + levels // 2) // levels
    return np.concatenate([colors.astype(np.uint8), alpha], axis=-1)


def over_white(values: _ANY) -> _ANY:
    """Premultiplied pictures laid on white: `[..., 3]` of `[..., 4]`, uint8 or floats in [0, 1] as they were given."""
    if not has_alpha(values):
        return values
    alpha = values[..., 3:]
    white = _LEVELS if "uint8" in str(values.dtype) else 1
    return white - (alpha - values[..., :3].clip(max=alpha))  # so ordered, bytes do not run over
