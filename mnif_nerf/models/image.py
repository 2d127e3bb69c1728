"""Where `config.yml` files of 0.1.0 look for the model of images."""

from mnif_nerf.modalities.grid_settings import ImageModelSettings as ImageModelConfig
from mnif_nerf.models.base import InstanceModel as ImageModel

__all__ = ["ImageModel", "ImageModelConfig"]
