"""Where `config.yml` files of 0.1.0 look for the model of radiance fields."""

from mnif_nerf.modalities.radiance_settings import RadianceModelSettings as MNIFModelConfig
from mnif_nerf.models.base import InstanceModel as MNIFModel

__all__ = ["MNIFModel", "MNIFModelConfig"]
