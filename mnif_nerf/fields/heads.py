"""Output heads: what the raw numbers of a field mean."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# density = SCALE * softplus(GAIN * raw - SHIFT), in 1 / world unit. Objects have a diagonal of one unit, so a ray
# starts almost transparent (2.5 per unit) and a raw value of 3 already stops it within two hundredths of a unit.
DENSITY_SCALE = 20.0
DENSITY_GAIN = 1.5
DENSITY_SHIFT = 2.0


def density_from_raw(raw: Tensor) -> Tensor:
    """Raw density channel `[...]` to density `[...]` >= 0, in 1/world unit (softplus, so it can reach zero)."""
    return DENSITY_SCALE * F.softplus(DENSITY_GAIN * raw - DENSITY_SHIFT)


def color_from_raw(raw: Tensor) -> Tensor:
    """Raw colour channels `[..., 3]` (any layout) to colours in [0, 1] (logistic function)."""
    return raw.sigmoid()
