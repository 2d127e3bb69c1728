"""Where `config.yml` files of 0.1.0 look for the trainer."""

from mnif_nerf.pipelines.training.trainer import MNIFTrainer, MNIFTrainerConfig

__all__ = ["MNIFTrainer", "MNIFTrainerConfig"]
