"""The learning-rate schedule of every training in this package."""

from __future__ import annotations

import math


def warmup_cosine(step: int, warmup_steps: int, max_steps: int, final_fraction: float) -> float:
    """Factor on the learning rate at `step`: linear warm-up to 1, then half a cosine down to `final_fraction`.

    Args:
        step: number of steps already taken.
        warmup_steps: length of the warm-up; its first factor is 1/warmup_steps, so that no step is wasted.
        max_steps: where the cosine ends; later steps keep `final_fraction`.
        final_fraction: in [0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))
