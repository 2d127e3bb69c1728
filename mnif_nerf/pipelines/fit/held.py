"""Holding a part of an object while the rest is drawn anew: what the model itself says there is the observation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.observations.observations import Cells, Picture
from mnif_nerf.data.observations.observed_region import HALVES, Region
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.heads import color_from_raw, distance_from_raw
from mnif_nerf.labels import Wish
from mnif_nerf.latents.distance_evidence import DistanceEvidence
from mnif_nerf.latents.evidence import PointPool
from mnif_nerf.latents.search import Evidence
from mnif_nerf.limits import require_number
from mnif_nerf.objects.image import NeuralImage
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.pipelines.fit.answers import draw
from mnif_nerf.pipelines.fit.fitting import FitSettings
from mnif_nerf.pipelines.fit.preparation import prepare
from mnif_nerf.pipelines.fit.task import FitTask
from mnif_nerf.random import stream

if TYPE_CHECKING:
    from mnif_nerf.pipelines.decoder import Decoder

SIDES = tuple(HALVES)
"""What can be held: from this side of the scene box on; of pictures not front and back."""
_POINTS, _WEIGHT, _NEAR_SHARE = 40_000, 3e-2, 0.75
_CELLS = 48


def redraw(
    pipe: Decoder, latent: Tensor, side: str, share: float, seed: int = 0, samples: int = 1, wish: Wish | None = None
) -> Tensor:
    """Latents `[samples, D]` of objects that are like one on one side, and else whatever the latent prior holds
    possible.

    Args:
        pipe: the model.
        latent: `[D]` of the object.
        side: which side of it is held, one of `SIDES`.
        share: how much of the scene box is held, from there on, above 0 and below 1.
        seed: random seed; sample i of a seed does not depend on their number.
        samples: how many.
        wish: the label that the rest shall have, and how strongly it is guided there.

    Raises:
        MNIFError: no prior, a label that training has not seen, a side or share that does not exist, or nothing of the
            object there.
    """
    if side not in HALVES:
        raise MNIFError(f"`side` {side}: unknown; choose one of {', '.join(SIDES)}.")
    require_number("`share`", share, 0.01, 0.99)
    task = held_task(pipe, latent, side, share, seed)
    assert task.evidence is not None
    return draw(pipe, task.evidence, FitSettings(seed=seed, samples=samples, wish=wish), task.weight)


def held_task(pipe: Decoder, latent: Tensor, side: str, share: float, seed: int) -> FitTask:
    """What the model says of an object on one side, as an observation; the arguments are those of `redraw`."""
    axis, sign = HALVES[side]
    item, places = pipe.decode(latent), (np.arange(_CELLS) + 0.5) / _CELLS - 0.5
    if isinstance(item, NeuralImage):
        pixels = item.pixels()
        return prepare(pipe.model, Picture(pixels, _pixels(side, share, pixels.shape[:2])), Region(), (), seed)
    low, high = [-0.5] * 3, [0.5] * 3
    (low if sign > 0 else high)[axis] = sign * (0.5 - share)
    cells = require_solid(item).occupancy_in_cube(_CELLS)
    along = (places >= low[axis]) & (places <= high[axis])
    known = np.broadcast_to(along.reshape([-1 if k == axis else 1 for k in range(3)]), cells.shape).copy()
    task = prepare(pipe.model, Cells(cells, known), Region(), (), seed)
    if not pipe.kind.fitting.distances:
        return task
    return replace(task, evidence=_own_points(pipe, latent, low, high, seed), weight=_WEIGHT)


def _pixels(side: str, share: float, shape: tuple[int, int]) -> np.ndarray:
    """Which pixels are held: bool [H, W]."""
    if HALVES[side][0] == 0:
        raise MNIFError(f"`side` {side}: a picture has left, right, top and bottom.")
    known = np.zeros(shape, dtype=bool)
    count = max(1, round(share * (shape[0] if side in ("top", "bottom") else shape[1])))
    rows = {"top": slice(None, count), "bottom": slice(-count, None)}
    columns = {"left": slice(None, count), "right": slice(-count, None)}
    known[rows.get(side, slice(None)), columns.get(side, slice(None))] = True
    return known


@torch.no_grad()
def _own_points(pipe: Decoder, latent: Tensor, low: list[float], high: list[float], seed: int) -> Evidence:
    """Distances and colours that the model itself says at points of a box."""
    field, encoding = pipe.model.field, pipe.model.encoding
    generator = torch.Generator().manual_seed(stream(seed, "held points"))
    start, end = torch.tensor(low), torch.tensor(high)
    points = (start + (end - start) * torch.rand(_POINTS, 3, generator=generator)).to(latent.device)
    raw = torch.cat([field.evaluate(latent[None], 2 * part.T[None].contiguous())[0].T for part in points.split(8192)])
    distance = distance_from_raw(raw[:, -1:])
    colors = torch.full_like(points, torch.nan)
    if raw.shape[1] > 1:
        near = distance[:, 0].abs() < encoding.near
        colors[near] = color_from_raw(raw[near, :3], field.spec.head)
    targets = torch.cat([colors, distance, distance], dim=1)
    close = distance[:, 0].abs() < encoding.distance.truncation
    pools = [
        PointPool(points[close], targets[close], _NEAR_SHARE),
        PointPool(points[~close], targets[~close], 1 - _NEAR_SHARE),
    ]
    return DistanceEvidence(field, pools, seed=seed, distance=encoding.distance)
