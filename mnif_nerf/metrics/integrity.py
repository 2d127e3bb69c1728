"""How far an object lies outside the range of what a model was trained on: the score that sees what the eye sees.

An object is measured by a few features (`mnif_nerf.metrics.solid_integrity`, `mnif_nerf.metrics.wave_integrity`). A
yardstick holds the range of each over objects that are known to be whole. Trees have loose leaves by nature and cars
have none, so no number is good or bad by itself: what counts is how far it lies beyond that range, in widths of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mnif_nerf.errors import MNIFError

LIMIT = 0.5
"""An object is taken as broken from this score on."""
WORST = 10.0
"""Scores end here; an object without any content has this one."""
# Share of the yardstick's objects that may lie beyond either end of a range: some of them are broken themselves.
_TAIL = 0.025
_TINY = 1e-9

Features = dict[str, float]


@dataclass(frozen=True)
class Feature:
    """Something that is measured of an object.

    Attributes:
        name: as in tables and files.
        least: the least width of a range; smaller differences say nothing.
        side: which side of the range counts as broken.
        scale: how values are compared: as they are, counts by log2(1 + value), ratios by log2(value). `least` is
            meant on that scale.
        above, below: what is wrong with an object beyond either end, in words.
    """

    name: str
    least: float
    side: Literal["above", "below", "both"]
    scale: Literal["plain", "count", "ratio"] = "plain"
    above: str = ""
    below: str = ""

    def on_scale(self, value: float) -> float:
        """A value as it is compared."""
        if self.scale == "plain":
            return value
        return math.log2(1.0 + value) if self.scale == "count" else math.log2(max(value, _TINY))


@dataclass(frozen=True)
class Judgement:
    """What is said of one object.

    Attributes:
        score: 0 within all ranges; else by how many widths of its range the worst feature lies outside, 10 at most.
        reason: what is wrong with it in words; empty where the score is 0.
        features: what was measured; empty for an object without any content.
    """

    score: float
    reason: str
    features: Features

    @property
    def broken(self) -> bool:
        """Whether the score reaches `LIMIT`."""
        return self.score >= LIMIT

    def facts(self) -> dict[str, Any]:
        """JSON-ready, with four digits."""
        features = {name: float(f"{value:.4g}") for name, value in self.features.items()}
        return {"score": round(self.score, 3), "broken": self.broken, "reason": self.reason, "features": features}


@dataclass(frozen=True)
class Yardstick:
    """Ranges of features.

    Attributes:
        features: what is measured.
        ranges: by name, (low, high).
        count: how many objects they were taken from.
    """

    features: tuple[Feature, ...]
    ranges: dict[str, tuple[float, float]]
    count: int

    @classmethod
    def of(cls, features: Sequence[Feature], measured: Iterable[Mapping[str, float]]) -> Yardstick:
        """The ranges of objects: 2.5 % of them may lie below and above.

        Args:
            features: what was measured.
            measured: features of each; those of objects without content (empty) are left out.

        Raises:
            MNIFError: no object has any content.
        """
        known = [found for found in measured if found]
        if not known:
            raise MNIFError(
                "not one object of the yardstick has any content, so nothing can be judged by it; train for longer."
            )
        ranges = {}
        for feature in features:
            values = [found[feature.name] for found in known]
            ranges[feature.name] = (float(np.quantile(values, _TAIL)), float(np.quantile(values, 1.0 - _TAIL)))
        return cls(tuple(features), ranges, len(known))

    def judge(self, features: Mapping[str, float]) -> Judgement:
        """How far an object lies outside; the worst of its features decides."""
        if not features:
            return Judgement(WORST, "empty", {})
        score, reason = 0.0, ""
        for feature in self.features:
            beyond, why = self._beyond(feature, features[feature.name])
            if beyond > score:
                score, reason = beyond, why
        return Judgement(min(score, WORST), reason, dict(features))

    def _beyond(self, feature: Feature, value: float) -> tuple[float, str]:
        low, high = self.ranges[feature.name]
        first, at, last = (feature.on_scale(number) for number in (low, value, high))
        width = max(last - first, feature.least)
        if at > last and feature.side != "below":
            return (at - last) / width, f"{feature.above} ({value:.3g}, data up to {high:.3g})"
        if at < first and feature.side != "above":
            return (first - at) / width, f"{feature.below} ({value:.3g}, data from {low:.3g})"
        return 0.0, ""
