"""Where `config.yml` files of 0.1.0 look for the model of voxel shapes."""

from mnif_nerf.modalities.grid_settings import VoxelModelSettings as VoxelModelConfig
from mnif_nerf.models.base import InstanceModel as VoxelModel

__all__ = ["VoxelModel", "VoxelModelConfig"]
