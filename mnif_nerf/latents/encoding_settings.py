"""How the latent of an instance that was never trained on is found: one record, stored with the model.

Training's own evaluation, mnif-eval and the Python API all read it, so that they find the same latent of the same
instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.losses import DistanceLoss
from mnif_nerf.limits import MOST_STEPS, require_count, require_number
from mnif_nerf.rendering.radiance_losses import LossConfig

_MOST = {
    "fit_steps": 1_000_000,
    "fit_points": 100_000_000,
    "fit_rays_per_scene": 1_000_000,
    "fit_samples_per_ray": 10_000,
}
_LARGEST = 1e6


@dataclass(frozen=True)
class EncodingSettings:
    """Settings of the inner loop (meta-learning) and of the fit (auto-decoding) of latents, the networks frozen.

    The names are those of the training settings in a model folder; what a folder does not name has the value here.

    Attributes:
        encode_points: grids: cells, pixels or points of an instance that the inner loop sees; 0 for all.
        encode_batch: instances that the inner loop handles together, which bounds the memory and no more.
        fit_points: grids: cells, pixels or points of an instance in one step of a fit; 0 for all.
        fit_steps: gradient steps of a fit.
        surface_share, reweight, jitter, cut_cells, unit_cells: how these points are drawn; see `PointChoice`.
        fit_rays_per_scene: radiance: rays of a scene in one step.
        fit_samples_per_ray: radiance: samples of each; more than in training, for want of a hull.
        mask_weight, carve_weight, carve_length: radiance: see `LossConfig`.
        truncation, near, color_weight: signed distances: see `DistanceLoss`.
        uniform_share, wide_share, near_share, on_surface_share: signed distances: see `KindShares`.
    """

    encode_points: int = 4096
    encode_batch: int = 32
    fit_points: int = 1024
    fit_steps: int = 300
    surface_share: float = 0.5
    reweight: bool = False
    jitter: bool = False
    cut_cells: float = 0.5
    unit_cells: int = 0
    fit_rays_per_scene: int = 128
    fit_samples_per_ray: int = 32
    mask_weight: float = LossConfig.mask_weight
    carve_weight: float = LossConfig.carve_weight
    carve_length: float = LossConfig.carve_length
    truncation: float = DistanceLoss.truncation
    near: float = DistanceLoss.near
    color_weight: float = DistanceLoss.color_weight
    uniform_share: float = 0.10
    wide_share: float = 0.20
    near_share: float = 0.50
    on_surface_share: float = 0.20

    @classmethod
    def from_training(cls, training: Mapping[str, Any]) -> EncodingSettings:
        """Those of a model folder's training settings, which hold others too.

        Raises:
            MNIFError: a value of another type, or a number that nothing can be done with.
        """
        given: dict[str, Any] = {}
        for name, usual in asdict(cls()).items():
            value = training.get(name, usual)
            if isinstance(value, bool) != isinstance(usual, bool) or not isinstance(value, (int, float)):
                raise MNIFError(f"training setting {name} is {value!r}, expected a value like {usual!r}.")
            if isinstance(usual, int) and not isinstance(usual, bool):
                require_count(f"`{name}` of training", value, 0, _MOST.get(name, MOST_STEPS))
            elif not isinstance(usual, bool):
                require_number(f"`{name}` of training", value, 0.0, _LARGEST)
            given[name] = type(usual)(value)
        return cls(**given)

    @property
    def distance(self) -> DistanceLoss:
        """The loss of signed distances and colours."""
        return DistanceLoss(self.truncation, self.near, self.color_weight)

    def losses(self, samples_per_ray: int | None = None) -> LossConfig:
        """The radiance losses of a fit.

        Args:
            samples_per_ray: by default `fit_samples_per_ray`.
        """
        samples = self.fit_samples_per_ray if samples_per_ray is None else samples_per_ray
        return LossConfig(samples, self.mask_weight, self.carve_weight, self.carve_length)
