"""mnif-train-prior: train the latent prior of a run again, with other settings."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.names import quoted

if TYPE_CHECKING:
    from mnif_nerf.labels import Labels
    from mnif_nerf.pipelines.model_folder import StoredModel
    from mnif_nerf.priors.prior import LatentPrior


@dataclass
class TrainPriorOptions:
    """Train the latent prior on the latents of a run, replacing the one in its model folder.

    Options left out have the values that ns-train uses.
    """

    load_config: Path
    """The run's config.yml, the run folder, or a model folder."""
    steps: int | None = None
    """Training steps; by default chosen from the number of latents."""
    seed: int | None = None
    """Random seed of the initial weights, the noise and the order of the latents."""
    whitening: Literal["pca", "per-dimension", "none"] | None = None
    """How latents are brought to unit variance; pca by default."""
    rank: int | None = None
    """Most principal directions kept (pca); no limit by default."""
    explained_variance: float | None = None
    """Share of the latents' variance that the kept principal directions hold (pca); by default what the run was trained
    with, 0.95 where it does not say."""
    prediction: Literal["v_prediction", "sample", "epsilon", "flow"] | None = None
    """What the denoiser predicts; v_prediction by default. flow is flow matching in place of diffusion."""
    schedule: Literal["cosine", "linear"] | None = None
    """Noise schedule of diffusion; cosine by default."""
    width: int | None = None
    """Features per layer of the denoiser; by default chosen from the data."""
    blocks: int | None = None
    """Residual blocks of the denoiser; by default chosen from the data."""
    dropout: float | None = None
    """Share of features dropped during training; 0 by default."""
    batch_size: int | None = None
    """Latents per step; 128 by default."""
    learning_rate: float | None = None
    """Peak learning rate; 2e-3 by default."""
    latent_noise: float | None = None
    """Deviation of noise added to training examples, in whitened units; 0 by default."""
    held_out: float | None = None
    """Share of the latents kept out of training, to report a loss on them; 0 by default."""
    use_labels: bool = True
    """Whether the prior is told the labels in the model folder, so that samples can be asked for by them."""
    labels: Path | None = None
    """A .csv of labels (name,species,...) of the training instances, in place of those in the model folder."""
    label_dropout: float | None = None
    """Share of the examples whose labels are dropped, so that guidance knows samples without; 0.1 by default."""


def main(options: TrainPriorOptions) -> Path:
    """Run the command; returns the prior's folder.

    Raises:
        MNIFError: no model, a setting out of range, a training that diverged (the prior that is there stays), or a
            folder that cannot be written.
    """
    from mnif_nerf.pipelines.model_folder import locate_model, read_model, write_labels, write_prior
    from mnif_nerf.priors.prior import LatentPrior, PriorConfig

    folder = locate_model(options.load_config)
    given = {key: value for key, value in dataclasses.asdict(options).items() if value is not None}
    for name in ("load_config", "use_labels", "labels"):
        given.pop(name, None)
    model = read_model(folder, with_prior=False)
    given.setdefault("explained_variance", model.prior_variance)
    config = PriorConfig(**given)
    labels = _labels(options, model)
    prior = LatentPrior.fit(model.latents, config, labels=labels)
    prior.require_sound()
    if options.labels is not None:
        write_labels(labels, folder)
    target = write_prior(prior, folder)
    _say(prior, target, options)
    return target


def _labels(options: TrainPriorOptions, model: StoredModel) -> Labels | None:
    """The labels that the prior is told.

    Raises:
        MNIFError: a table that does not fit the model, or that nobody is to be told of.
    """
    from mnif_nerf.data.readers.labels import match_labels, read_labels, table_labels

    if options.labels is None:
        return model.labels if options.use_labels else None
    if not options.use_labels:
        raise MNIFError("--labels gives labels that --no-use-labels leaves out; drop one of the two.")
    table, files = read_labels(options.labels), dict.fromkeys(model.names)
    if not set(table.names) & set(model.names):
        match_labels(table, files, options.labels.parent)  # says which names there are
    # A table of the whole data set names instances of other splits too, which a model folder does not know.
    return table_labels(table, {**dict.fromkeys(table.names), **files}, options.labels.parent, model.names)


def _say(prior: LatentPrior, target: Path, options: TrainPriorOptions) -> None:
    report = prior.report
    assert report is not None, "a prior that was just trained has its report"
    held = ""
    if report.held_out_loss is not None:
        held = f", held-out loss {report.held_out_loss:.4f} (Gaussian prior: {report.gaussian_loss:.4f})"
    print(f"prior trained for {report.steps} steps: loss {report.train_loss:.4f}{held}")
    print(f"wrote {target}")
    print(f"next: mnif-sample --load-config {quoted(options.load_config)} --num-samples 16 --seed 0{_example(prior)}")
    if prior.attributes:
        print(f"labels: {'; '.join(attribute.describe() for attribute in prior.attributes)}")


def _example(prior: LatentPrior) -> str:
    """The option that asks for a label; nothing without any."""
    if not prior.attributes:
        return ""
    first = prior.attributes[0]
    value = f"{first.mean:.3g}" if first.is_numeric else first.classes[0]
    return f" --label {shlex.quote(f'{first.name}={value}')}"


def entrypoint() -> None:
    """The console script."""
    import tyro

    run_command(lambda: main(tyro.cli(TrainPriorOptions)), [TrainPriorOptions])


if __name__ == "__main__":
    entrypoint()
