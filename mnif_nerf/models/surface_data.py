"""nerfstudio's data manager of surfaces: its settings; it works as that of grids does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tyro

from mnif_nerf.modalities.sdf_settings import SurfaceDataSettings
from mnif_nerf.models.grid_data import GridDataManager
from mnif_nerf.models.instance_data import InstanceDataManagerConfig


@dataclass
class SurfaceDataManagerConfig(SurfaceDataSettings, InstanceDataManagerConfig):
    """Points of several objects per step."""

    _target: type = field(default_factory=lambda: GridDataManager)
    dataparser: tyro.conf.Suppress[Any] = None
