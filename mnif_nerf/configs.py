"""The methods of `ns-train`: `mnif` (radiance), `mnif-voxel` and `mnif-image`, their `-lite` forms, and the paper's.

nerfstudio loads this module in every one of its commands, so it only builds settings: it reads no file, fetches
nothing and must not fail.
"""

from __future__ import annotations

from typing import Any

from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from mnif_nerf.machine import default_device_type
from mnif_nerf.models.grid_data import GridDataManagerConfig
from mnif_nerf.models.image import ImageModelConfig
from mnif_nerf.models.radiance import MNIFModelConfig
from mnif_nerf.models.scene_data import MNIFDataManagerConfig
from mnif_nerf.models.schedulers import FieldAdamConfig, LatentAdamConfig, WarmupCosineSchedulerConfig
from mnif_nerf.models.voxel import VoxelModelConfig
from mnif_nerf.pipelines.training.grids import GridPipelineConfig
from mnif_nerf.pipelines.training.radiance import MNIFTrainingPipelineConfig
from mnif_nerf.pipelines.training.trainer import MNIFTrainerConfig


def optimizers(
    field_lr: float,
    projection_lr: float,
    latent_lr: float,
    warmup_steps: int,
    rates_lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.99),
    max_norm: float | None = None,
    final_fraction: float = 0.03,
) -> dict[str, Any]:
    """One optimiser each for bases, projection, latents and inner rates: their gradients differ by orders of magnitude.

    A run has latents or inner rates to optimise, by its adaptation; the settings of the other are left unused.
    """
    rates = {
        "fields": FieldAdamConfig(lr=field_lr, betas=betas, max_norm=max_norm),
        "projection": FieldAdamConfig(lr=projection_lr, betas=betas, max_norm=max_norm),
        "latents": LatentAdamConfig(lr=latent_lr),
        "inner_rates": FieldAdamConfig(lr=rates_lr, betas=betas, max_norm=max_norm),
    }
    return {
        name: {
            "optimizer": optimizer,
            "scheduler": WarmupCosineSchedulerConfig(warmup_steps=warmup_steps, final_fraction=final_fraction),
        }
        for name, optimizer in rates.items()
    }


def trainer(name: str, steps: int, vis: str, **parts: Any) -> MNIFTrainerConfig:
    """What all methods share: where they run, how often they save, evaluate and report."""
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

# Without clipped gradients, second-order training breaks down in some runs and does not recover (mnif-image-lite on the
# digits: 27 dB after 500 steps, 8 after 1000; with them 36 after 1200).

mnif_voxel = MethodSpecification(
    config=trainer(
        "mnif-voxel",
        steps=100_000,
        vis="viewer+tensorboard",
        pipeline=GridPipelineConfig(
            adaptation="meta-learning",
            inner_lr=1.0,
            prior_variance=0.99,
            datamanager=GridDataManagerConfig(modality="voxel", instances_per_step=32, points_per_instance=4096),
            model=VoxelModelConfig(width=64, hidden_layers=4, num_bases=256, latent_dim=512, head="logit"),
        ),
        optimizers=optimizers(field_lr=5e-4, projection_lr=5e-4, latent_lr=5e-3, warmup_steps=500, max_norm=1.0),
    ),
    description="Mixtures of neural implicit functions for voxel shapes: one field for many; new ones are sampled.",
)

mnif_voxel_lite = MethodSpecification(
    config=trainer(
        "mnif-voxel-lite",
        steps=3000,
        vis="tensorboard",
        pipeline=GridPipelineConfig(
            adaptation="meta-learning",
            inner_lr=1.0,
            prior_variance=0.99,
            datamanager=GridDataManagerConfig(modality="voxel", instances_per_step=16, points_per_instance=1024),
            model=VoxelModelConfig(width=48, hidden_layers=3, num_bases=32, latent_dim=64, head="logit"),
        ),
        optimizers=optimizers(field_lr=1e-3, projection_lr=1e-3, latent_lr=5e-3, warmup_steps=100, max_norm=1.0),
    ),
    description="The small mnif-voxel for a CPU: minutes for hundreds of shapes of 64 x 64 x 64 voxels.",
)

mnif_image = MethodSpecification(
    config=trainer(
        "mnif-image",
        steps=100_000,
        vis="viewer+tensorboard",
        pipeline=GridPipelineConfig(
            adaptation="meta-learning",
            inner_lr=1.0,
            prior_variance=0.99,
            datamanager=GridDataManagerConfig(
                modality="image", instances_per_step=32, points_per_instance=0, encode_points=0, jitter=True
            ),
            model=ImageModelConfig(width=64, hidden_layers=4, num_bases=256, latent_dim=1024),
            fit_points=0,
        ),
        optimizers=optimizers(field_lr=5e-4, projection_lr=5e-4, latent_lr=5e-3, warmup_steps=500, max_norm=1.0),
    ),
    description="Mixtures of neural implicit functions for images: one field for many pictures; new ones are sampled.",
)

mnif_image_lite = MethodSpecification(
    config=trainer(
        "mnif-image-lite",
        steps=4000,
        vis="tensorboard",
        pipeline=GridPipelineConfig(
            adaptation="meta-learning",
            inner_lr=1.0,
            prior_variance=0.99,
            datamanager=GridDataManagerConfig(
                modality="image", instances_per_step=64, points_per_instance=1024, encode_points=0, jitter=True
            ),
            model=ImageModelConfig(width=32, hidden_layers=2, num_bases=32, latent_dim=32),
            fit_points=0,
        ),
        optimizers=optimizers(field_lr=1e-3, projection_lr=1e-3, latent_lr=5e-3, warmup_steps=100, max_norm=1.0),
    ),
    description="The small mnif-image for a CPU: minutes for some thousand small pictures.",
)

# ------------------------------------------------------------------------------------------------------ the paper's
# Shapes, batches, inner steps, learning rates and lengths are those of the authors' code. So is the start of voxels and
# images: with the bases scaled up (init "corrected") the authors' inner rate is too long at w0 = 50, and ShapeNet S
# learns nothing in 200 steps. What differs: gradients are clipped for each group of parameters alone, and of
# SRN Cars the bases keep their spread, latents have Adam (theirs, by plain descent, hardly move) and rays meet the
# visual hulls.


def paper_optimizers(max_norm: float | None = None) -> dict[str, Any]:
    """The authors' Adam at 1e-4 for all that is learned, down to 0 along a cosine."""
    return optimizers(1e-4, 1e-4, 5e-3, 0, rates_lr=1e-4, betas=(0.9, 0.999), max_norm=max_norm, final_fraction=0.0)


def paper_shapenet(name: str, steps: int, **shape: Any) -> MethodSpecification:
    """The paper's ShapeNet: 35,019 shapes of 64^3 voxels in batches of 32, 4096 points of each."""
    return MethodSpecification(
        config=trainer(
            name,
            steps=steps,
            vis="viewer+tensorboard",
            pipeline=GridPipelineConfig(
                adaptation="meta-learning",
                datamanager=GridDataManagerConfig(
                    modality="voxel", resolution=64, instances_per_step=32, points_per_instance=4096
                ),
                model=VoxelModelConfig(init="authors", **shape),
            ),
            optimizers=paper_optimizers(max_norm=1.0),
        ),
        description=f"The paper's ShapeNet configuration, {name[-1].upper()}: voxels, meta-learning.",
    )


def paper_celebahq(name: str, steps: int, **shape: Any) -> MethodSpecification:
    """The paper's CelebA-HQ: 27,000 pictures of 64 x 64 in batches of 32, all pixels of each."""
    return MethodSpecification(
        config=trainer(
            name,
            steps=steps,
            vis="viewer+tensorboard",
            pipeline=GridPipelineConfig(
                adaptation="meta-learning",
                datamanager=GridDataManagerConfig(
                    modality="image",
                    resolution=64,
                    channels=3,
                    instances_per_step=32,
                    points_per_instance=0,
                    encode_points=0,
                ),
                model=ImageModelConfig(init="authors", final_activation="sine", **shape),
                fit_points=0,
            ),
            optimizers=paper_optimizers(),
        ),
        description=f"The paper's CelebA-HQ configuration, {name[-1].upper()}: images, meta-learning.",
    )


mnif_shapenet_s = paper_shapenet(
    "mnif-shapenet-s", 876_000, width=64, hidden_layers=4, num_bases=256, latent_dim=512, w0=50.0
)
mnif_shapenet_l = paper_shapenet(
    "mnif-shapenet-l", 438_000, width=128, hidden_layers=5, num_bases=512, latent_dim=1024, w0=30.0
)
mnif_celebahq_s = paper_celebahq(
    "mnif-celebahq-s", 675_200, width=64, hidden_layers=4, num_bases=256, latent_dim=1024, w0=30.0
)
mnif_celebahq_l = paper_celebahq(
    "mnif-celebahq-l", 675_200, width=128, hidden_layers=5, num_bases=384, latent_dim=512, w0=30.0
)

mnif_srn_cars_s = MethodSpecification(
    config=trainer(
        "mnif-srn-cars-s",
        steps=616_000,
        vis="viewer+tensorboard",
        pipeline=MNIFTrainingPipelineConfig(
            datamanager=MNIFDataManagerConfig(scenes_per_step=8, rays_per_scene=16_384, carve_points=64),
            model=MNIFModelConfig(width=64, hidden_layers=4, num_bases=256, latent_dim=128, samples_per_ray=32),
        ),
        optimizers=paper_optimizers(),
    ),
    description="The paper's SRN Cars configuration, S: radiance fields, auto-decoding.",
)
