"""Reconstruction quality of signals."""

from __future__ import annotations

import numpy as np


def signal_scores(made: np.ndarray, truth: np.ndarray, low: float, high: float) -> dict[str, float]:
    """How near `made` comes to `truth`, both `[*shape]` or `[*shape, C]` in the data's own units.

    Args:
        made: the reconstruction.
        truth: the data.
        low: lowest value of the data's range.
        high: highest value of the data's range.

    Returns:
        `psnr` in dB, relative to the range, and `rmse` in the data's units.
    """
    error = float(np.square(made.astype(np.float64) - truth).mean())
    return {"psnr": float(-10.0 * np.log10(max(error / (high - low) ** 2, 1e-20))), "rmse": error**0.5}
