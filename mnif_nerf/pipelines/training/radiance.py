"""nerfstudio's pipeline of radiance fields: its settings, under the names that `config.yml` files have for them."""

from __future__ import annotations

from dataclasses import dataclass, field

from mnif_nerf.modalities.radiance_settings import RadiancePipelineSettings
from mnif_nerf.pipelines.training.base import InstancePipeline, InstancePipelineConfig

MNIFTrainingPipeline = InstancePipeline


@dataclass
class MNIFTrainingPipelineConfig(RadiancePipelineSettings, InstancePipelineConfig):
    """See `RadiancePipelineSettings`."""

    _target: type = field(default_factory=lambda: InstancePipeline)
