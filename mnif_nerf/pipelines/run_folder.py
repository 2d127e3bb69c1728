"""What a training run leaves behind: the model folder, and the latent prior in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.machine import describe
from mnif_nerf.names import quoted
from mnif_nerf.pipelines.model_folder import StoredModel, write_model, write_prior
from mnif_nerf.pipelines.run_checks import finished_steps

if TYPE_CHECKING:
    from mnif_nerf.latents.model import Stage1Model
    from mnif_nerf.modalities.settings import PipelineSettings
    from mnif_nerf.modalities.training import TrainingData


@dataclass(frozen=True)
class Run:
    """What is written of a training run.

    Attributes:
        model: field and latents, the latter as they belong to the networks of this moment.
        data: what it was trained on.
        settings: settings of the run.
        folder: folder of the run.
        seed: random seed of the run.
    """

    model: Stage1Model
    data: TrainingData
    settings: PipelineSettings
    folder: Path
    seed: int


def write_run_model(run: Run, step: int, finished: bool = False) -> Path:
    """Write `<run>/model/` (field, latents, rates, bounds, settings), whole or not at all.

    An older folder is replaced together with its prior, which would not fit the new latents. A run that was begun anew
    replaces a finished model of as many steps only when it is finished itself.

    Args:
        run: what is written.
        step: the last step taken.
        finished: whether the run has come to its end.

    Raises:
        MNIFError: training has diverged, or the disk is full.
    """
    run.model.require_finite(step)
    if not finished and finished_steps(run.folder) > step + 1:
        return run.folder / "model"
    stored = stored_model(run.model, run.data.facts())
    stored.labels = run.data.labels
    stored.training = {
        "steps": step + 1,
        "finished": finished,
        "seed": run.seed,
        "data": run.data.root.name,
        **run.data.stored(),
        **run.settings.model.stored(),
        **run.settings.stored(),
        "machine": describe(),
    }
    return write_model(stored, run.folder / "model")


def stored_model(model: Stage1Model, facts: dict[str, Any]) -> StoredModel:
    """Field, latents, rates and bounds as they are now, as a model folder holds them; nothing is copied.

    Args:
        model: field and latents.
        facts: facts of the data, see `TrainingData.facts`.
    """
    adaptation: dict[str, Any] = {"method": model.adaptation}
    rates = None
    if model.meta is not None:
        adaptation.update(dataclasses.asdict(model.meta))
        rates = model.inner_rates().detach()
    return StoredModel(
        field=model.field,
        latents=model.latents.weight.detach(),
        names=model.names,
        cells=None if bool(model.bounds.all()) else model.bounds,
        rates=rates,
        adaptation=adaptation,
        **facts,
    )


def finish_run(run: Run, step: int, say: Callable[[str], None] = print) -> None:
    """Write the model folder at the end of a run, train its prior, and say what to do next.

    Args:
        run: what is written.
        step: the last step taken.
        say: prints a line.

    Raises:
        MNIFError: see `write_run_model`; or the prior has diverged, or could not be written.
        SystemExit: interrupted by the user; the sentence says how to go on.
    """
    config = run.folder / "config.yml"
    try:
        _finish(run, step, config, say)
    except KeyboardInterrupt:
        raise SystemExit(
            "interrupted after the last step, before the latent prior was trained: go on with "
            f"mnif-train-prior --load-config {quoted(config)}."
        ) from None


def _finish(run: Run, step: int, config: Path, say: Callable[[str], None]) -> None:
    from mnif_nerf.priors.prior import NothingToLearnError

    folder = write_run_model(run, step, finished=True)
    with_prior = False
    if run.settings.train_prior:
        try:
            _train_prior(run, folder)
            with_prior = True
        except NothingToLearnError as error:
            say(f"No prior was trained: {error}")
        except MNIFError as error:
            say(f"Model folder: {folder}")
            raise MNIFError(
                f"no prior was trained: {str(error).rstrip('.')}; then mnif-train-prior --load-config {quoted(config)}."
            ) from error
    say(f"Model folder: {folder}")
    if not with_prior:
        say(f"Next: mnif-train-prior --load-config {quoted(config)}")
        return
    say("Next:")
    for command in stored_model(run.model, run.data.facts()).kind.next_commands(config):
        say(f"  {command}")


def _train_prior(run: Run, folder: Path) -> None:
    from mnif_nerf.priors.prior import LatentPrior
    from mnif_nerf.priors.training import PriorConfig

    config = PriorConfig(steps=run.settings.prior_steps or None, explained_variance=run.settings.prior_variance)
    labels = run.data.labels if run.settings.prior_labels else None
    prior = LatentPrior.fit(run.model.latents.weight.detach(), config, labels=labels)
    prior.require_sound()
    write_prior(prior.to("cpu"), folder)
