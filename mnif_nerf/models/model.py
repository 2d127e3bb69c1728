"""Where `config.yml` files of 0.1.0 look for the model of radiance fields."""

from mnif_nerf.models.radiance import MNIFModel, MNIFModelConfig

__all__ = ["MNIFModel", "MNIFModelConfig"]
