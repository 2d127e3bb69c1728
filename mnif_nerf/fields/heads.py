"""Output heads: what the raw numbers of a field mean.

"radiance"          red, green, blue and density, for volume rendering
"radiance-authors"  the same with the authors' activations (for their checkpoints): colours are not bounded
"signed"            values in about [-1, 1]: voxels are occupied where positive; a colour is (value + 1) / 2
"logit"             voxels: the logit of the occupancy, again positive inside
"distance"          voxels: the signed distance to the surface in half cells, again positive inside, so that beyond the
                    two cells that a surface lies between it is 1 or more
"sdf"               red, green, blue and, last (or alone), the signed distance to the surface, positive inside
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

HEADS = ("radiance", "radiance-authors", "signed", "logit", "distance", "sdf")

# density = SCALE * softplus(GAIN * raw - SHIFT), in 1 / world unit. Objects have a diagonal of one unit, so a ray
# starts almost transparent (2.5 per unit) and a raw value of 3 already stops it within two hundredths of a unit.
DENSITY_SCALE = 20.0
DENSITY_GAIN = 1.5
DENSITY_SHIFT = 2.0
# World units per raw unit of a signed distance: a fresh network, whose outputs are about 1, says a tenth of the box.
DISTANCE_SCALE = 0.1


def density_from_raw(raw: Tensor, head: str = "radiance") -> Tensor:
    """Raw density channel `[...]` to density `[...]` >= 0, in 1/world unit (softplus, so it can reach zero)."""
    if head == "radiance-authors":
        return (F.elu(raw, alpha=0.1) + 0.1).clamp(0.0, greatest_density(head))
    return DENSITY_SCALE * F.softplus(DENSITY_GAIN * raw - DENSITY_SHIFT)


def greatest_density(head: str) -> float:
    """The density (1/world unit) that a field with this head cannot exceed."""
    return 10.0 if head == "radiance-authors" else float("inf")


def color_from_raw(raw: Tensor, head: str = "radiance") -> Tensor:
    """Raw colour channels (any layout) to colours: a logistic function, or `(raw + 1) / 2` where they are signed.

    Colours lie in [0, 1], except samples of "radiance-authors". The authors composite samples as the network gives
    them and clamp the finished picture. Their networks rely on it: clamped samples cost 3 dB.
    """
    if head == "radiance-authors":
        return 0.5 * raw + 0.5
    return (0.5 * raw + 0.5).clamp(0.0, 1.0) if head == "signed" else raw.sigmoid()


def occupancy_from_raw(raw: Tensor, head: str) -> Tensor:
    """Raw occupancy channel `[...]` to an occupancy in [0, 1]; above one half is inside."""
    return raw.sigmoid() if head == "logit" else (0.5 * raw + 0.5).clamp(0.0, 1.0)


def distance_from_raw(raw: Tensor) -> Tensor:
    """Raw distance channel `[...]` of a field with head "sdf" to signed distances in world units, positive outside."""
    return -DISTANCE_SCALE * raw
