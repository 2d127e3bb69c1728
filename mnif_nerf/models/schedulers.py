"""Where `config.yml` files of 0.1.0 look for optimisers and schedules."""

from mnif_nerf.latents.optimizer_settings import FieldAdamConfig, LatentAdamConfig, WarmupCosineSchedulerConfig

WarmupCosineScheduler = WarmupCosineSchedulerConfig

__all__ = ["FieldAdamConfig", "LatentAdamConfig", "WarmupCosineScheduler", "WarmupCosineSchedulerConfig"]
