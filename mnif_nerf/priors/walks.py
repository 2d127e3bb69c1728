"""Smooth closed walks through latent space, and the timing of paths between given objects."""

from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.priors.whitening import Whitening

_DENSE = 200  # points per leg on which lengths are measured


def closed_walk(whitening: Whitening, stops: Tensor, frames: int) -> Tensor:
    """A smooth closed path through latents, at an even pace.

    In whitened coordinates the path is a periodic cubic spline whose distance from the origin is set to that of the
    stops, itself a spline. A straight way between two independent draws passes near the mean, at 0.7 of their distance
    from it: the typical object, over and over. On this one every frame is as far out as what the prior draws.

    Args:
        whitening: whitening of the prior.
        stops: `[S, D]`, S >= 2 different latents, as the prior draws them; what the whitening drops of them is lost.
        frames: F; the walk begins at the first stop, and frame F would be frame 0 again.

    Returns:
        latents `[F, D]`.

    Raises:
        MNIFError: fewer than 2 stops or 1 frame, or stops that are all the same.
    """
    if len(stops) < 2:
        raise MNIFError(f"a walk with {len(stops)} stops goes nowhere; use at least 2.")
    if frames < 1:
        raise MNIFError(f"a walk of {frames} frames leaves nothing to do; use at least 1.")
    keys = whitening.whiten(stops).double().cpu().numpy()
    if np.ptp(keys, axis=0).max(initial=0.0) < 1e-6:
        raise MNIFError("all stops of the walk are the same object; use another seed or a higher temperature.")
    times = np.arange(len(keys) + 1)
    closed = np.concatenate([keys, keys[:1]])
    way = CubicSpline(times, closed, bc_type="periodic")
    distance = CubicSpline(times, np.log(np.linalg.norm(closed, axis=1).clip(1e-9)), bc_type="periodic")

    def at(time: np.ndarray) -> np.ndarray:
        points = way(time)
        lengths = np.linalg.norm(points, axis=1, keepdims=True)
        return points * (np.exp(distance(time))[:, None] / lengths.clip(1e-9))

    dense = np.linspace(0, len(keys), _DENSE * len(keys) + 1)
    walked = np.concatenate([[0.0], np.linalg.norm(np.diff(at(dense), axis=0), axis=1).cumsum()])
    moments = np.interp(np.arange(frames) / frames * walked[-1], walked, dense)
    return whitening.unwhiten(torch.from_numpy(at(moments)).to(stops))


def eased_legs(stops: int, frames: int, loop: bool = False) -> list[tuple[int, int, float]]:
    """Which two stops each frame lies between, and how far: slow at the stops, quick between them.

    Args:
        stops: at least 2.
        frames: at least 2.
        loop: whether the way leads back to the first stop; then the frame after the last would be the first again.

    Returns:
        for each frame the stop behind it, the stop before it and a share from 0 to 1.

    Raises:
        MNIFError: too few stops or frames.
    """
    if stops < 2:
        raise MNIFError(f"an interpolation of {stops} objects has no two ends; name at least 2.")
    if frames < 2:
        raise MNIFError(f"an interpolation in {frames} frames has no two ends; use at least 2.")
    legs = stops if loop else stops - 1
    plan = []
    for frame in range(frames):
        position = legs * frame / (frames if loop else frames - 1)
        leg = min(int(position), legs - 1)
        share = position - leg
        plan.append((leg, (leg + 1) % stops, share * share * (3 - 2 * share)))
    return plan
