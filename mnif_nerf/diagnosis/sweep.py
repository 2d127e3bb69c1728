"""What the number of bases, the size of the latents and the kind of coefficients do: a grid of small models.

Every model of the grid is trained on the same voxels, pictures or points of meshes with the same seed, batches and
steps, by auto-decoding and without nerfstudio. Each grid point is one JSON file, so that a sweep that was interrupted
goes on where it was.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.files import read_record, write_json
from mnif_nerf.latents.fitting import FitConfig, fit, frozen
from mnif_nerf.latents.model import Stage1Model, Stage1Task
from mnif_nerf.latents.optimizer_settings import optimizer_settings
from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.stage1 import Stage1Trainer
from mnif_nerf.metrics.bases import basis_outputs, effective_rank, mean_absolute_correlation, use_of_bases
from mnif_nerf.modalities.sweeping import SweepSplit
from mnif_nerf.pipelines.methods import method_of
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.training import PriorConfig

_WARMUP = 50
_MAX_NORM = 1.0
_BASIS_POINTS = 1024
_LEAST_INSTANCES = 4  # that sets can be compared by


@dataclass(frozen=True)
class SweepConfig:
    """The grid, and what all its models share.

    Attributes:
        bases, latent_dims, coefficients: the grid's axes: M, D, and "layer-wise" or "network-wise".
        train_instances, unseen_instances: how many are used at most; the unseen ones are what samples are compared
            with, and as many samples are drawn.
        width, hidden_layers: of every network.
        steps, instances_per_step, points_per_instance: of training; 0 points takes all.
        field_lr, latent_lr: peak rates of Adam; they fall to 3 % along a cosine.
        fit_steps, fit_lr: of fitting the latents of unseen instances; the rate in standard deviations of the latents.
        prior_steps: training steps of the latent prior that samples are drawn from.
        seed: random seed of everything.
    """

    bases: tuple[int, ...] = (1, 4, 16, 64)
    latent_dims: tuple[int, ...] = (4, 16, 64)
    coefficients: tuple[str, ...] = ("layer-wise", "network-wise")
    train_instances: int = 128
    unseen_instances: int = 32
    width: int = 32
    hidden_layers: int = 2
    steps: int = 400
    instances_per_step: int = 16
    points_per_instance: int = 512
    field_lr: float = 1e-3
    latent_lr: float = 5e-3
    fit_steps: int = 100
    fit_lr: float = 0.2
    prior_steps: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("bases", "latent_dims", "coefficients"):
            if not getattr(self, name):
                raise MNIFError(f"sweep: {name} is empty; give at least one value.")
        for name in ("steps", "fit_steps", "prior_steps"):
            if getattr(self, name) < 1:
                raise MNIFError(f"sweep: {name} is {getattr(self, name)}; it must be at least 1.")
        if min(self.train_instances, self.unseen_instances) < _LEAST_INSTANCES:
            raise MNIFError(f"sweep: at least {_LEAST_INSTANCES} training and as many unseen instances are needed.")

    @property
    def points(self) -> list[tuple[int, int, str]]:
        """The grid: (M, D, coefficients)."""
        return list(itertools.product(self.bases, self.latent_dims, self.coefficients))


def run_sweep(
    train: SweepSplit,
    unseen: SweepSplit,
    folder: Path | str,
    config: SweepConfig | None = None,
    advance: Callable[[], None] | None = None,
) -> list[dict[str, Any]]:
    """Train and score every point of the grid that is not in `folder` yet.

    Args:
        train, unseen: splits of one data set.
        folder: keeps one file per point.
        config: grid, sizes, steps, seed.
        advance: called after every point, `len(config.points)` times.

    Returns:
        One dictionary per point, see `score_point`.

    Raises:
        MNIFError: data that do not fit each other, files of a sweep with other settings or data, or a training that
            diverged.
    """
    config, folder = config or SweepConfig(), Path(folder)
    train, unseen = train.first(config.train_instances), unseen.first(config.unseen_instances)
    train.check_fits(unseen)
    if len(train) < len(unseen) or len(unseen) < _LEAST_INSTANCES:
        raise MNIFError(
            f"{unseen.store.root}: {len(unseen)} unseen instances beside {len(train)} for training; a "
            f"sweep needs at least {_LEAST_INSTANCES}, and no fewer for training than unseen."
        )
    settings = _settings(train, unseen, config)
    rows = []
    for bases, latent_dim, coefficients in config.points:
        path = folder / f"m{bases:03d}-d{latent_dim:03d}-{coefficients}.json"
        row = _finished(path, settings)
        if row is None:
            spec = field_spec(train, bases, latent_dim, coefficients, config)
            row = score_point(train, unseen, spec, config)
            write_json(path, {"settings": settings, "row": row})
        rows.append(row)
        if advance is not None:
            advance()
    return rows


def field_spec(split: SweepSplit, bases: int, latent_dim: int, coefficients: str, config: SweepConfig) -> FieldSpec:
    """The field of one grid point: that of the modality's -lite method, with other sizes."""
    model = dataclasses.replace(
        method_of(split.kind.name).new_run().pipeline.model,
        width=config.width,
        hidden_layers=config.hidden_layers,
        num_bases=bases,
        latent_dim=latent_dim,
        coefficients=coefficients,
    )
    return split.kind.training.field_spec(model, split.grid)


def score_point(train: SweepSplit, unseen: SweepSplit, spec: FieldSpec, config: SweepConfig) -> dict[str, Any]:
    """Train one model and measure it.

    Returns:
        "modality", "bases", "latent_dim", "coefficients", "parameters" (of bases and projection); with "train_" and
        "unseen_" before it the scores of `SweepSplit.scores` (means over instances); of the bases "output_rank" and
        "output_correlation", "weight_rank", "coefficient_rank" (means over layers, see `mnif_nerf.metrics.bases`) and
        "dead" (share of bases and layers); of as many samples as there are unseen instances, compared with those,
        the scores of `SweepSplit.set_scores` with "sample_" before it, and with "real_" those of training instances in
        their place; "train_seconds", "seconds".

    Raises:
        MNIFError: training or a fit diverged.
    """
    start = time.perf_counter()
    field, latents = train_field(train, spec, config)
    trained = time.perf_counter() - start
    fitted = fit_unseen(field, unseen, latents, config)
    row: dict[str, Any] = {
        "modality": train.kind.name,
        "bases": spec.num_bases,
        "latent_dim": spec.latent_dim,
        "coefficients": spec.coefficients,
        "parameters": sum(parameter.numel() for parameter in field.parameters()),
    }
    count = len(unseen)
    for name, split, codes in (("train", train, latents[:count]), ("unseen", unseen, fitted)):
        row |= {f"{name}_{key}": value for key, value in split.scores(field, codes).items()}
    row |= _diversity(field, train, latents, config.seed)
    prior = LatentPrior.fit(latents, PriorConfig(steps=config.prior_steps, seed=config.seed), progress=False)
    samples, real = train.decode(field, prior.sample(count, seed=config.seed)), unseen.truth()
    for name, made in (("sample", samples), ("real", train.first(count).truth())):
        row |= {f"{name}_{key}": value for key, value in train.set_scores(made, real).items()}
    return {**row, "train_seconds": trained, "seconds": time.perf_counter() - start}


def train_field(split: SweepSplit, spec: FieldSpec, config: SweepConfig) -> tuple[ModulatedField, Tensor]:
    """Auto-decoding: the field and the latents `[N, D]` of all instances of the split."""
    model = Stage1Model(spec, split.names, _task(split), seed=config.seed)
    settings = optimizer_settings(config.field_lr, config.field_lr, config.latent_lr, _WARMUP, max_norm=_MAX_NORM)
    optimizers = OptimizerGroups.from_settings(model.parameter_groups(), settings, config.steps)
    data = split.data(min(config.instances_per_step, len(split)), config.points_per_instance, config.seed)
    Stage1Trainer(model, data, optimizers, config.seed).train(0, config.steps)
    model.require_finite(config.steps)
    return model.field.eval().requires_grad_(False), model.latents.weight.detach()


def fit_unseen(field: MixtureField, split: SweepSplit, latents: Tensor, config: SweepConfig) -> Tensor:
    """Latents `[U, D]` of instances that the field was not trained on."""
    task = _task(split)

    def loss(codes: Tensor, step: int) -> Tensor:
        drawn = split.fixed(config.points_per_instance, config.seed, step)
        objective: Any = task.objective(field, drawn)  # of points: it tells instances apart
        return objective.losses(codes)

    with frozen(field):
        return fit(loss, len(split), latents, FitConfig(config.fit_steps, config.fit_lr))


def _task(split: SweepSplit) -> Stage1Task:
    """The losses of the modality's -lite method."""
    return split.kind.training.task(method_of(split.kind.name).new_run().pipeline.model)


@torch.no_grad()
def _diversity(field: MixtureField, split: SweepSplit, latents: Tensor, seed: int) -> dict[str, float]:
    points = split.near(_BASIS_POINTS, seed)
    outputs, alpha = basis_outputs(field, points, latents), field.coefficients(latents)
    uses = [use_of_bases(alpha[:, :, layer], rows) for layer, rows in enumerate(field.bases)]
    return {
        "output_rank": effective_rank(outputs),
        "output_correlation": mean_absolute_correlation(outputs),
        "weight_rank": statistics.fmean(effective_rank(rows) for rows in field.bases),
        "coefficient_rank": statistics.fmean(effective_rank(use.contributions, centred=True) for use in uses),
        "dead": statistics.fmean(float(use.dead().float().mean()) for use in uses),
    }


def _settings(train: SweepSplit, unseen: SweepSplit, config: SweepConfig) -> dict[str, Any]:
    """What a point's result depends on beside its place in the grid."""
    shared = dataclasses.asdict(config)
    for axis in ("bases", "latent_dims", "coefficients"):
        shared.pop(axis)
    return {**shared, **train.facts, "train_data": train.fingerprint, "unseen_data": unseen.fingerprint}


def _finished(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content = read_record(path)
    if set(content) != {"settings", "row"} or not all(isinstance(part, dict) for part in content.values()):
        raise MNIFError(f"{path}: not a result of a sweep; choose another folder, or remove the file.")
    found = content["settings"]
    other = [name for name in settings if found.get(name) != settings[name]] + sorted(set(found) - set(settings))
    if other:
        name = other[0]
        raise MNIFError(
            f"{path}: made with {name} {found.get(name)}, now {settings.get(name)}; choose another folder, or remove "
            "the old results."
        )
    return content["row"]
