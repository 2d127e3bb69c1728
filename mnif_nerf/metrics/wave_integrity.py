"""Whether a picture or a signal is as sharp and as strong as the data: features of its power spectrum."""

from __future__ import annotations

import numpy as np

from mnif_nerf.metrics.integrity import Feature, Features

WAVE_FEATURES = (
    Feature("sharpness", 3.0, "both", above="noisy", below="blurred"),
    Feature("contrast", 1.5, "both", above="too much contrast", below="faint"),
    Feature("brightness", 0.1, "both", above="too bright", below="too dark"),
)
"""What `wave_features` measures."""

_HIGH = 0.5  # of the highest frequency: what is above is taken as detail
_SILENT = 1e-12


def wave_features(values: np.ndarray, dims: int) -> Features:
    """Features of values on a grid.

    sharpness   share of the power (without the mean) above half of the highest frequency, in dB
    contrast    standard deviation of the values, in dB of their full range
    brightness  mean of the values

    A window takes away what a picture has because its ends do not meet.

    Args:
        values: `[*shape]` or `[*shape, C]`, the full range of the data being 0 to 1.
        dims: how many of the first axes are axes of the grid.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values.reshape(*values.shape[:dims], -1)
    axes = tuple(range(dims))
    centred = values - values.mean(axis=axes, keepdims=True)
    spread = float(np.square(centred).mean())
    radius = np.zeros(values.shape[:dims])
    for axis, length in enumerate(values.shape[:dims]):
        shape = [1] * dims
        shape[axis] = length
        if length > 2:
            centred = centred * np.hanning(length + 2)[1:-1].reshape(*shape, 1)
        radius = radius + np.square(2.0 * np.fft.fftfreq(length)).reshape(shape)
    power = np.square(np.abs(np.fft.fftn(centred, axes=axes))).sum(axis=-1)
    share = power[radius > _HIGH**2].sum() / max(float(power.sum()), _SILENT)
    return {
        "sharpness": float(10.0 * np.log10(max(share, 1e-8))),
        "contrast": float(10.0 * np.log10(max(spread, 1e-8))),
        "brightness": float(values.mean()),
    }
