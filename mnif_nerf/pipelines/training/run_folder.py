"""What a training run leaves behind: the model folder, and the latent prior in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nerfstudio.utils.rich_utils import CONSOLE

from mnif_nerf.errors import MNIFError
from mnif_nerf.machine import describe

if TYPE_CHECKING:
    from mnif_nerf.pipelines.model_folder import StoredModel
    from mnif_nerf.pipelines.training.base import InstancePipeline


def write_run_model(pipeline: InstancePipeline, run: Path, step: int, finished: bool = False) -> Path:
    """Write `<run>/model/` (field, latents, rates, bounds, settings), whole or not at all.

    An older folder is replaced together with its prior, which would not fit the new latents.

    Args:
        pipeline: the training pipeline.
        run: nerfstudio's folder of the run.
        step: the last step taken.
        finished: whether the run has come to its end.

    Raises:
        MNIFError: training has diverged, or the disk is full.
    """
    from mnif_nerf.pipelines.model_folder import write_model

    pipeline.refresh_latents()
    model, config = pipeline.model, pipeline.config
    if not bool(torch.isfinite(model.latents.weight).all()):
        other = "--optimizers.latents.optimizer.lr" if model.meta is None else "--pipeline.inner-lr"
        raise MNIFError(
            f"training has diverged at step {step} (latents are not finite); use smaller learning rates "
            f"(--optimizers.fields.optimizer.lr, {other})."
        )
    stored = stored_model(pipeline)
    stored.training = {
        "steps": step + 1,
        "finished": finished,
        "seed": pipeline.seed,
        "data": Path(str(config.datamanager.data)).name,
        **pipeline.datamanager.settings(),
        **model.settings(),
        "prior_variance": config.prior_variance,
        "machine": describe(),
    }
    return write_model(stored, Path(run) / "model")


def stored_model(pipeline: InstancePipeline) -> StoredModel:
    """Field, latents, rates and bounds as they are now, as a model folder holds them; nothing is copied."""
    from mnif_nerf.pipelines.model_folder import StoredModel

    model = pipeline.model
    adaptation: dict[str, Any] = {"method": model.adaptation}
    rates = None
    if model.meta is not None:
        adaptation.update(dataclasses.asdict(model.meta))
        rates = model.inner_rates().detach()
    bounds = model.bounds
    return StoredModel(
        field=model.field,
        latents=model.latents.weight.detach(),
        names=model.names,
        cells=None if bool(bounds.all()) else bounds,
        rates=rates,
        adaptation=adaptation,
        **pipeline.datamanager.storage(),
    )


def finish_run(pipeline: InstancePipeline, run: Path, step: int) -> None:
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
    if not with_prior:
        CONSOLE.print(f"Next: mnif-train-prior --load-config {config}", soft_wrap=True)
        return
    CONSOLE.print("Next:")
    for command in stored_model(pipeline).kind.next_commands(config):
        CONSOLE.print(f"  {command}", soft_wrap=True)


def _train_prior(pipeline: InstancePipeline, folder: Path) -> None:
    from mnif_nerf.pipelines.model_folder import write_prior
    from mnif_nerf.priors.prior import LatentPrior
    from mnif_nerf.priors.training import PriorConfig

    config = PriorConfig(steps=pipeline.config.prior_steps or None, explained_variance=pipeline.config.prior_variance)
    prior = LatentPrior.fit(pipeline.model.latents.weight.detach(), config)
    write_prior(prior.to("cpu"), folder)
