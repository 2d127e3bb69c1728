"""The modality "signal": real values on grids of 1 to 4 axes, such as sounds, series, maps and volumes."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnif_nerf.metrics.signals import signal_scores
from mnif_nerf.modalities.grids import GridModality
from mnif_nerf.modalities.traits import Card, Demo, DemoData
from mnif_nerf.names import quoted
from mnif_nerf.objects.signal import NeuralSignal

if TYPE_CHECKING:
    from torch import Tensor

    from mnif_nerf.data.grid_facts import GridFacts
    from mnif_nerf.metrics.images import Lpips
    from mnif_nerf.metrics.integrity import Features
    from mnif_nerf.modalities.signal_training import SignalTraining
    from mnif_nerf.objects.base import NeuralObject


class Signal(GridModality):
    """See the module."""

    name, noun, nouns, method = "signal", "signal", "signals", "mnif-signal"
    dims, channels, heads = None, None, ("signed",)
    object_class = NeuralSignal
    has_page = False
    no_repainting = "a signal is neither shape nor colour"
    card = Card((), "signals", 'save_as("signal.npy")')

    @cached_property
    def training(self) -> SignalTraining:
        """See `Modality`."""
        from mnif_nerf.modalities.signal_training import SignalTraining

        return SignalTraining()

    @property
    def demo(self) -> Demo:
        """Days of electricity demand."""
        return Demo(
            "mnif-signal-lite", "power_days", "demo-signal", "Days that never were", "days", _make_days,
            num_samples=16, pixels=256, num_scored=100,
        )  # fmt: skip

    def seen_values(self, raw: Tensor, head: str, thickness: float) -> Tensor:
        """The values themselves: -1 and 1 are the lowest and the highest of the data."""
        return raw

    def picture_of_data(self, values: np.ndarray, pixels: int) -> Any:
        """As the object's own picture."""
        from mnif_nerf.export.signals import signal_picture

        return signal_picture(values, values.ndim, pixels)

    def sample_pixels(self, grid: dict[str, Any] | None) -> int:
        """Enough for a line."""
        return 256

    def next_commands(self, config: Path | str) -> tuple[str, ...]:
        """Samples; they have no surface."""
        return (f"mnif-sample --load-config {quoted(config)} --num-samples 16 --seed 0",)

    def reconstruction_scores(self, item: NeuralObject, truth: np.ndarray, lpips: Lpips | None) -> dict[str, float]:
        """PSNR, of the range of the data, and the root of the mean squared error in the data's own units."""
        assert isinstance(item, NeuralSignal)
        return signal_scores(item.values(), truth, item.grid_facts.low, item.grid_facts.high)

    def measure(self, item: NeuralObject) -> Features:
        """See `Modality`: of the values at the data's resolution."""
        assert isinstance(item, NeuralSignal)
        return self.measure_data(item.values(), item.grid_facts)

    def measure_data(self, values: np.ndarray, facts: GridFacts | None) -> Features:
        """See `Modality`; the data's range is taken as 0 to 1."""
        from mnif_nerf.metrics.wave_integrity import wave_features

        assert facts is not None
        return wave_features((values - facts.low) / (facts.high - facts.low), facts.dims)


def _make_days(options: DemoData) -> None:
    from mnif_nerf.data.generate.power_days import make_power_days

    make_power_days(options.folder, seed=options.seed)
