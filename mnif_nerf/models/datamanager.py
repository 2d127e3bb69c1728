"""Where `config.yml` files of 0.1.0 look for the data manager of radiance fields."""

from mnif_nerf.models.scene_data import MNIFDataManager, MNIFDataManagerConfig

__all__ = ["MNIFDataManager", "MNIFDataManagerConfig"]
