"""The methods `mnif` and `mnif-lite` of `ns-train`.

nerfstudio loads this module in every one of its commands, so it only builds settings: it reads no file, fetches
nothing and must not fail.
"""

from __future__ import annotations

from typing import Any

from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from mnif_nerf.machine import default_device_type
from mnif_nerf.models.datamanager import MNIFDataManagerConfig
from mnif_nerf.models.model import MNIFModelConfig
from mnif_nerf.models.schedulers import FieldAdamConfig, LatentAdamConfig, WarmupCosineSchedulerConfig
from mnif_nerf.pipelines.trainer import MNIFTrainerConfig
from mnif_nerf.pipelines.training import MNIFTrainingPipelineConfig


def optimizers(field_lr: float, projection_lr: float, latent_lr: float, warmup_steps: int) -> dict[str, Any]:
    """One optimiser each for bases, projection and latents: their gradients differ by orders of magnitude."""
    rates = {
        "fields": FieldAdamConfig(lr=field_lr),
        "projection": FieldAdamConfig(lr=projection_lr),
        "latents": LatentAdamConfig(lr=latent_lr),
    }
    return {
        name: {"optimizer": optimizer, "scheduler": WarmupCosineSchedulerConfig(warmup_steps=warmup_steps)}
        for name, optimizer in rates.items()
    }


def trainer(name: str, steps: int, vis: str, **parts: Any) -> MNIFTrainerConfig:
    """What both methods share: where they run, how often they save, evaluate and report."""
    return MNIFTrainerConfig(
        method_name=name,
        max_num_iterations=steps,
        steps_per_save=2000,
        steps_per_eval_batch=0,
        steps_per_eval_image=1000,
        steps_per_eval_all_images=2000,
        mixed_precision=False,
        machine=MachineConfig(device_type=default_device_type()),  # type: ignore[arg-type]
        # Plain lines: nerfstudio's table moves the cursor up and would overwrite what else is printed.
        logging=LoggingConfig(
            steps_per_log=100, local_writer=LocalWriterConfig(enable=True, max_log_size=0), profiler="none"
        ),
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, max_num_display_images=16),
        vis=vis,  # type: ignore[arg-type]
        **parts,
    )


mnif = MethodSpecification(
    config=trainer(
        "mnif",
        steps=100_000,
        vis="viewer+tensorboard",
        pipeline=MNIFTrainingPipelineConfig(
            datamanager=MNIFDataManagerConfig(scenes_per_step=32, rays_per_scene=128, carve_points=64),
            model=MNIFModelConfig(width=64, hidden_layers=4, num_bases=256, latent_dim=128),
        ),
        optimizers=optimizers(field_lr=5e-4, projection_lr=1e-4, latent_lr=5e-3, warmup_steps=500),
    ),
    description="Mixtures of neural implicit functions: one field for many scenes; new ones are sampled.",
)

mnif_lite = MethodSpecification(
    config=trainer(
        "mnif-lite",
        steps=16_000,
        # No server beside the training: on two cores the viewer would take its share of them.
        vis="tensorboard",
        pipeline=MNIFTrainingPipelineConfig(
            datamanager=MNIFDataManagerConfig(scenes_per_step=16, rays_per_scene=64, carve_points=64),
            model=MNIFModelConfig(width=48, hidden_layers=3, num_bases=32, latent_dim=32),
        ),
        optimizers=optimizers(field_lr=1e-3, projection_lr=1e-3, latent_lr=5e-3, warmup_steps=100),
    ),
    description="The small mnif for a CPU: minutes for a hundred scenes of 64 x 64 pixels.",
)
