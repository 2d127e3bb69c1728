"""Stage 1 of signals: real values on grids of one to four axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.stores.grid_store import GridStore
from mnif_nerf.export.signals import signal_picture
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.metrics.signals import signal_scores
from mnif_nerf.modalities.grid_settings import SignalModelSettings
from mnif_nerf.modalities.grid_training import GridTraining, front_camera, sine_frequency
from mnif_nerf.modalities.training import FieldCache
from mnif_nerf.objects.base import ObjectFacts
from mnif_nerf.objects.signal import NeuralSignal
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.occupancy import OccupancyGrid
from mnif_nerf.rendering.plane import render_texture

_PIXELS = 256  # of the picture that a viewer shows


class SignalTraining(GridTraining):
    """See `ModalityTraining`."""

    model_settings = SignalModelSettings
    nouns = "signals"

    def field_spec(self, model: SignalModelSettings, grid: dict[str, Any] | None) -> FieldSpec:
        """As many coordinates in as the grid has axes, one value out of each channel, -1 the lowest and 1 the
        highest of the data."""
        assert grid is not None, "a signal's field takes its ends from the data"
        return model.field_spec(
            in_features=len(grid["shape"]),
            out_features=grid["channels"],
            final_activation="linear",
            head="signed",
            w0=sine_frequency(model.w0, grid["resolution"]),
        )

    def prepare(
        self, compact: CompactField, bounds: Tensor, model: Any, grid: dict[str, Any] | None
    ) -> tuple[Tensor, None]:
        """The signal's picture, which a viewer shows on the plane x = 0."""
        drawn = np.asarray(_object(compact, grid).picture(_PIXELS), dtype=np.float32) / 255.0
        return torch.from_numpy(drawn).to(bounds.device), None

    def render(
        self, field: Any, grid: OccupancyGrid | None, origins: Tensor, directions: Tensor, model: Any
    ) -> dict[str, Tensor]:
        """The picture on its plane, over white."""
        return render_texture(field, origins, directions)

    def score(self, fields: FieldCache, latent: Tensor, store: GridStore, values: np.ndarray) -> dict[str, float]:
        """ "psnr", of the range of the data, and "rmse", in the data's own units."""
        made = _object(fields.model.field.collapse(latent), fields.grid).values()
        return signal_scores(made, values, store.facts.low, store.facts.high)

    def comparison(self, fields: FieldCache, latent: Tensor, store: GridStore, values: np.ndarray, size: int) -> Tensor:
        """The picture of the given values beside that of the latent's."""
        span = (store.facts.low, store.facts.high)
        made = _object(fields.model.field.collapse(latent), fields.grid).values()
        pictures = [np.asarray(signal_picture(part, store.dims, size, span)) for part in (values, made)]
        return torch.from_numpy(np.concatenate(pictures, axis=1).astype(np.float32) / 255.0)

    def cameras(self, store: GridStore, split: str, size: int) -> tuple[Tensor, Intrinsics]:
        """One camera straight before the picture."""
        picture = self.picture(store, store.values(0), torch.eye(4), Intrinsics.default(size))
        return front_camera(picture.shape[:2])

    def picture(self, store: GridStore, values: np.ndarray, pose: Tensor, camera: Intrinsics) -> np.ndarray:
        """A line, a map or slices."""
        span = (store.facts.low, store.facts.high)
        return np.asarray(signal_picture(values, store.dims, camera.width, span))


def _object(compact: CompactField, grid: dict[str, Any] | None) -> NeuralSignal:
    assert grid is not None
    return NeuralSignal(None, compact, "signal", ObjectFacts(grid=GridFacts.from_dict(grid, len(grid["shape"]))))
