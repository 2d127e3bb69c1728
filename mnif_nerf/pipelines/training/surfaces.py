"""nerfstudio's pipeline of signed distance and colour: its settings, under the name that `config.yml` files have."""

from __future__ import annotations

from dataclasses import dataclass, field

from mnif_nerf.modalities.sdf_settings import SurfacePipelineSettings
from mnif_nerf.pipelines.training.base import InstancePipeline, InstancePipelineConfig


@dataclass
class SurfacePipelineConfig(SurfacePipelineSettings, InstancePipelineConfig):
    """See `SurfacePipelineSettings`."""

    _target: type = field(default_factory=lambda: InstancePipeline)
