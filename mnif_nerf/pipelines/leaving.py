"""What a training run leaves behind: the model folder, and the latent prior in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE

from mnif_nerf.errors import MNIFError
from mnif_nerf.machine import describe

if TYPE_CHECKING:
    from mnif_nerf.pipelines.training import MNIFTrainingPipeline


def write_run_model(pipeline: MNIFTrainingPipeline, run: Path, step: int, finished: bool = False) -> Path:
    """Write `<run>/model/` (field, latents, bounds, settings), whole or not at all.

    An older folder is replaced together with its prior, which would not fit the new latents.

    Args:
        pipeline: the training pipeline.
        run: nerfstudio's folder of the run.
        step: the last step taken.
        finished: whether the run has come to its end.

    Raises:
        MNIFError: training has diverged, or the disk is full.
    """
    from mnif_nerf.pipelines.model_folder import StoredModel, write_model

    model = pipeline.model
    latents = model.latents.weight.detach().cpu()
    if not bool(torch.isfinite(latents).all()):
        raise MNIFError(
            f"training has diverged at step {step} (latents are not finite); use smaller learning rates "
            "(--optimizers.fields.optimizer.lr, --optimizers.latents.optimizer.lr)."
        )
    store = pipeline.datamanager.views.train
    stored = StoredModel(
        field=model.field,
        latents=latents,
        names=model.names,
        cells=None if bool(model.bounds.all()) else model.bounds.cpu(),
        half_extent=store.half_extent,
        camera={
            "focal_over_width": float(np.median(store.intrinsics[:, 0])) / store.width,
            "radius": float(np.median(np.linalg.norm(store.poses[:, :3, 3], axis=1))),
        },
        training=_settings(pipeline, step, finished),
    )
    return write_model(stored, Path(run) / "model")


def finish_run(pipeline: MNIFTrainingPipeline, run: Path, step: int) -> None:
    """Write the model folder at the end of a run, train its prior, and say what to do next."""
    folder = write_run_model(pipeline, run, step, finished=True)
    config = Path(run) / "config.yml"
    with_prior = False
    if pipeline.config.train_prior:
        try:
            _train_prior(pipeline, folder)
            with_prior = True
        except MNIFError as error:
            CONSOLE.print(f"[yellow]No prior was trained: {error}")
    CONSOLE.print(f"Model folder: {folder}", soft_wrap=True)
    if with_prior:
        CONSOLE.print("Next:")
        CONSOLE.print(f"  mnif-sample --load-config {config} --num-samples 16 --seed 0", soft_wrap=True)
        CONSOLE.print(f"  mnif-export-mesh --load-config {config} --num-samples 8 --format glb", soft_wrap=True)
    else:
        CONSOLE.print(f"Next: mnif-train-prior --load-config {config}", soft_wrap=True)


def _train_prior(pipeline: MNIFTrainingPipeline, folder: Path) -> None:
    from mnif_nerf.pipelines.model_folder import write_prior
    from mnif_nerf.priors.prior import LatentPrior
    from mnif_nerf.priors.training import PriorConfig

    config = PriorConfig(steps=pipeline.config.prior_steps or None)
    prior = LatentPrior.fit(pipeline.model.latents.weight.detach(), config)
    write_prior(prior.to("cpu"), folder)


def _settings(pipeline: MNIFTrainingPipeline, step: int, finished: bool) -> dict[str, Any]:
    model, data = pipeline.model.config, pipeline.datamanager.config
    return {
        "steps": step + 1,
        "finished": finished,
        "seed": pipeline.seed,
        "data": Path(str(data.data)).name,
        "scenes_per_step": data.scenes_per_step,
        "rays_per_scene": data.rays_per_scene,
        "carve_points": data.carve_points,
        "samples_per_ray": model.samples_per_ray,
        "mask_weight": model.mask_weight,
        "carve_weight": model.carve_weight,
        "carve_length": model.carve_length,
        "latent_weight": model.latent_weight,
        "latent_noise": model.latent_noise,
        "machine": describe(),
    }
