"""nerfstudio's pipeline of grids: its settings, under the names that `config.yml` files have for them."""

from __future__ import annotations

from dataclasses import dataclass, field

from mnif_nerf.modalities.grid_settings import GridPipelineSettings
from mnif_nerf.pipelines.training.base import InstancePipeline, InstancePipelineConfig

GridPipeline = InstancePipeline


@dataclass
class GridPipelineConfig(GridPipelineSettings, InstancePipelineConfig):
    """See `GridPipelineSettings`."""

    _target: type = field(default_factory=lambda: InstancePipeline)
