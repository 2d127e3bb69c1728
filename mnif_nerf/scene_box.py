"""The scene box: every object lies in the cube [-0.5, 0.5]^3, world units, z up. Files repeat it as `half_extent`."""

from __future__ import annotations

HALF_EXTENT = 0.5
