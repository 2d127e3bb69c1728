"""What the number of bases, the size of the latents and the kind of coefficients do: a grid of small models.

Every model of the grid is trained on the same voxels or pictures with the same seed, batches and steps, by
auto-decoding and without nerfstudio. Each grid point is one JSON file, so that a sweep that was interrupted goes on
where it was.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf import modalities
from mnif_nerf.data.sampling.point_sampler import PointSampler
from mnif_nerf.data.stores.grid_store import GridStore
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.files import read_json, write_json
from mnif_nerf.latents.fitting import FitConfig, fit, frozen
from mnif_nerf.latents.meta import PointObjective
from mnif_nerf.latents.optimizer_settings import optimizer_settings
from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.stage1 import Stage1Model, Stage1Trainer
from mnif_nerf.metrics.bases import basis_outputs, effective_rank, mean_absolute_correlation, use_of_bases
from mnif_nerf.modalities.grid_settings import GridDataSettings
from mnif_nerf.modalities.grid_training import GridData
from mnif_nerf.pipelines.methods import method_of
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.training import PriorConfig
from mnif_nerf.rendering.grids import cell_centres, cell_coordinates

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
        fit_steps, fit_lr: of fitting the latents of unseen instances.
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
    fit_lr: float = 5e-3
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
    train: GridStore,
    unseen: GridStore,
    folder: Path | str,
    config: SweepConfig | None = None,
    advance: Callable[[], None] | None = None,
) -> list[dict[str, Any]]:
    """Train and score every point of the grid that is not in `folder` yet.

    Args:
        train, unseen: voxels or pictures of one modality, resolution and number of channels.
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
    train, unseen = _first(train, config.train_instances), _first(unseen, config.unseen_instances)
    for name in ("modality", "resolution", "channels"):
        if getattr(train, name) != getattr(unseen, name):
            raise MNIFError(
                f"{unseen.root}: unseen instances have {name} {getattr(unseen, name)}, the training ones "
                f"{getattr(train, name)}; sweep over data of one kind."
            )
    if train.num_instances < unseen.num_instances or unseen.num_instances < _LEAST_INSTANCES:
        raise MNIFError(
            f"{unseen.root}: {unseen.num_instances} unseen instances beside {train.num_instances} for training; a "
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


def field_spec(store: GridStore, bases: int, latent_dim: int, coefficients: str, config: SweepConfig) -> FieldSpec:
    """The field of one grid point: that of the modality's -lite method, with other sizes."""
    model = dataclasses.replace(
        method_of(store.modality).new_run().pipeline.model,
        width=config.width,
        hidden_layers=config.hidden_layers,
        num_bases=bases,
        latent_dim=latent_dim,
        coefficients=coefficients,
    )
    grid = store.facts.to_dict()
    return modalities.get(store.modality).training.field_spec(model, grid)


def score_point(train: GridStore, unseen: GridStore, spec: FieldSpec, config: SweepConfig) -> dict[str, Any]:
    """Train one model and measure it.

    Returns:
        "modality", "bases", "latent_dim", "coefficients", "parameters" (of bases and projection); with "train_" and
        "unseen_" before it "psnr", of voxels "iou" too (means over instances); of the bases "output_rank" and
        "output_correlation", "weight_rank", "coefficient_rank" (means over layers, see `mnif_nerf.metrics.bases`) and
        "dead" (share of bases and layers); of as many samples as there are unseen instances, compared with those,
        the scores of `compare_sets` with "sample_" before it, and with "real_" those of training instances in their
        place; "train_seconds", "seconds".

    Raises:
        MNIFError: training or a fit diverged.
    """
    start = time.perf_counter()
    field, latents = train_field(train, spec, config)
    trained = time.perf_counter() - start
    fitted = fit_unseen(field, unseen, latents, config)
    row: dict[str, Any] = {
        "modality": train.modality,
        "bases": spec.num_bases,
        "latent_dim": spec.latent_dim,
        "coefficients": spec.coefficients,
        "parameters": sum(parameter.numel() for parameter in field.parameters()),
    }
    count = unseen.num_instances
    for name, store, codes in (("train", train, latents[:count]), ("unseen", unseen, fitted)):
        row |= {f"{name}_{key}": value for key, value in _reconstruction(field, store, codes).items()}
    row |= _diversity(field, train, latents, config.seed)
    prior = LatentPrior.fit(latents, PriorConfig(steps=config.prior_steps, seed=config.seed), progress=False)
    samples = decode(field, prior.sample(count, seed=config.seed), train)
    real = {name: _truth(store)[:count] for name, store in (("train", train), ("unseen", unseen))}
    for name, made in (("sample", samples), ("real", real["train"])):
        row |= {f"{name}_{key}": value for key, value in compare_sets(made, real["unseen"], train).items()}
    return {**row, "train_seconds": trained, "seconds": time.perf_counter() - start}


def train_field(store: GridStore, spec: FieldSpec, config: SweepConfig) -> tuple[ModulatedField, Tensor]:
    """Auto-decoding: the field and the latents `[N, D]` of all instances of the store."""
    task = modalities.get(store.modality).training.task(None)
    model = Stage1Model(spec, store.names, task, seed=config.seed)
    settings = optimizer_settings(config.field_lr, config.field_lr, config.latent_lr, _WARMUP, max_norm=_MAX_NORM)
    optimizers = OptimizerGroups.from_settings(model.parameter_groups(), settings, config.steps)
    batch = min(config.instances_per_step, store.num_instances)
    drawn = GridDataSettings(instances_per_step=batch, points_per_instance=config.points_per_instance)
    source = GridData(drawn, seed=config.seed)
    source.store = store
    Stage1Trainer(model, source, optimizers, config.seed).train(0, config.steps)
    model.require_finite(config.steps)
    return model.field.eval().requires_grad_(False), model.latents.weight.detach()


def fit_unseen(field: MixtureField, store: GridStore, latents: Tensor, config: SweepConfig) -> Tensor:
    """Latents `[U, D]` of instances that the field was not trained on."""
    sampler = PointSampler(store, store.num_instances, config.points_per_instance, seed=config.seed)
    everyone = torch.arange(store.num_instances)

    def loss(codes: Tensor, step: int) -> Tensor:
        drawn = sampler.fixed(everyone, config.points_per_instance, salt=step)
        return PointObjective(field, drawn).losses(codes)

    with frozen(field):
        return fit(loss, len(everyone), latents, FitConfig(config.fit_steps, config.fit_lr))


@torch.no_grad()
def decode(field: MixtureField, latents: Tensor, store: GridStore) -> Tensor:
    """Occupancies or colours `[B, C, cells]` in [0, 1] of latents `[B, D]` at the store's resolution."""
    centres = cell_centres(store.shape)
    raw = torch.stack([field.collapse(latent).evaluate(centres) for latent in latents])
    return modalities.get(store.modality).unit_values(raw, field.spec.head)


def compare_sets(made: Tensor, real: Tensor, store: GridStore) -> dict[str, float]:
    """Scores of two sets of one size, `[S, C, cells]` in [0, 1] each: see `Modality.set_scores`."""
    shape = (store.channels, *store.shape)
    return modalities.get(store.modality).set_scores(made, real, shape)


def _truth(store: GridStore) -> Tensor:
    everyone = np.arange(store.num_instances)
    return 0.5 * (torch.from_numpy(store.all_targets(everyone)) + 1.0)


def _reconstruction(field: MixtureField, store: GridStore, latents: Tensor) -> dict[str, float]:
    made, truth = decode(field, latents, store), _truth(store)[: len(latents)]
    return modalities.get(store.modality).unit_scores(made, truth)


@torch.no_grad()
def _diversity(field: MixtureField, store: GridStore, latents: Tensor, seed: int) -> dict[str, float]:
    if modalities.get(store.modality).has_surface:  # where some shape has it
        cells = np.unique(np.concatenate([store.surface(index) for index in range(store.num_instances)]))
    else:
        cells = np.arange(store.num_cells)
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:_BASIS_POINTS]
    points = cell_coordinates(torch.from_numpy(cells)[order].long(), store.shape)
    outputs, alpha = basis_outputs(field, points, latents), field.coefficients(latents)
    uses = [use_of_bases(alpha[:, :, layer], rows) for layer, rows in enumerate(field.bases)]
    return {
        "output_rank": effective_rank(outputs),
        "output_correlation": mean_absolute_correlation(outputs),
        "weight_rank": statistics.fmean(effective_rank(rows) for rows in field.bases),
        "coefficient_rank": statistics.fmean(effective_rank(use.contributions, centred=True) for use in uses),
        "dead": statistics.fmean(float(use.dead().float().mean()) for use in uses),
    }


def _first(store: GridStore, count: int) -> GridStore:
    """A store of the first instances; nothing here looks further."""
    return dataclasses.replace(store, names=store.names[:count])


def _settings(train: GridStore, unseen: GridStore, config: SweepConfig) -> dict[str, Any]:
    """What a point's result depends on beside its place in the grid."""
    shared = dataclasses.asdict(config)
    for axis in ("bases", "latent_dims", "coefficients"):
        shared.pop(axis)
    facts = {name: getattr(train, name) for name in ("modality", "resolution", "channels")}
    for name, store in (("train", train), ("unseen", unseen)):
        used = np.ascontiguousarray(store.packed[: store.num_instances])
        facts[f"{name}_data"] = f"{store.num_instances} instances, crc32 {zlib.crc32(used.data):08x}"
    return {**shared, **facts}


def _finished(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or set(content) != {"settings", "row"}:
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
