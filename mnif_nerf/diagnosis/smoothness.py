"""Latent smoothness of a trained model: how its values follow its latents, at instances and along straight paths."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage
import scipy.stats
import torch
from torch import Tensor

from mnif_nerf.diagnosis.bases import check_instances, data_points
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import kernel
from mnif_nerf.fields.solid import surface_thickness
from mnif_nerf.metrics.smoothness import (
    Map,
    curvature,
    detour,
    directional_derivatives,
    jacobian_norm,
    local_lipschitz,
    path_length,
    turning,
)
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.priors.whitening import Whitening

if TYPE_CHECKING:
    from mnif_nerf.pipelines.generation import MNIFPipeline

KINDS = ("training", "samples", "training to sample")
_BATCH = 8  # latents differentiated together, which bounds the memory
_DIRECTIONS = 64  # of the sensitivity; exact up to that many whitened dimensions
_MOST_CELLS = 64  # along an edge, where solids are looked at
_LEAST_TO_CORRELATE = 5
_LEAST_RESOLVED = 0.7  # it is 0.96 on a trained voxel model


@dataclass(frozen=True)
class SmoothnessSettings:
    """What is looked at.

    Attributes:
        num_pairs: paths of each kind.
        num_samples: samples of the prior, and as many training instances (all where there are fewer).
        points: coordinates at which values are compared.
        seed: random seed of samples, pairs, points and directions.
        positions: points of a path with both ends, 4k + 1: derivatives are taken at all, and shapes looked at in
            every second one.
    """

    num_pairs: int = 8
    num_samples: int = 40
    points: int = 1024
    seed: int = 0
    positions: int = 17

    def check(self) -> None:
        """Refuse settings that leave nothing to do.

        Raises:
            MNIFError: a number that is too small.
        """
        for name, least in (("num_pairs", 1), ("num_samples", 2), ("points", 1), ("positions", 5)):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise MNIFError(f"{flag} {getattr(self, name)} is too few; use at least {least}.")
        if self.seed < 0:
            raise MNIFError(f"`seed` {self.seed} is negative; use 0 or more.")


@dataclass(frozen=True)
class Instances:
    """Training instances or samples.

    Attributes:
        lipschitz, sensitivity: `[n]`, `local_lipschitz` and `jacobian_norm` in whitened coordinates.
        measures: `[n]` each, see `measure`.
    """

    lipschitz: Tensor
    sensitivity: Tensor
    measures: dict[str, np.ndarray]

    @property
    def stable_rank(self) -> Tensor:
        """In how many directions values move about equally fast: `[n]`, at least 1."""
        return (self.sensitivity / self.lipschitz.clamp(min=1e-12)).square()


@dataclass(frozen=True)
class Paths:
    """P straight paths between latents.

    Attributes:
        lipschitz: `[P]`, in the middle.
        curvature: `[P, S]` radians per root mean square of the values.
        degrees: `[P]`, by how much the path of the values turns in all.
        chord: `[P]`, root mean square difference of the ends' values.
        detour: `[P]`, length over chord.
        resolved: bool `[P]`, whether the positions lie closely enough for `degrees` and `detour`: their straight steps
            add up to most of the length that the derivatives give.
        measures: `[P, (S + 1) / 2]` each, of shapes along the path, see `measure`.
        latents: `[P, (S + 1) / 2, D]` of those shapes.
    """

    lipschitz: Tensor
    curvature: Tensor
    degrees: Tensor
    chord: Tensor
    detour: Tensor
    resolved: Tensor
    measures: dict[str, np.ndarray]
    latents: Tensor


@dataclass(frozen=True)
class SmoothnessDiagnosis:
    """All that is measured: instances by group ("training", "samples"), and paths by kind (`KINDS`).

    Without a prior there are no samples, and only what needs none.
    """

    dim: int
    instances: dict[str, Instances]
    paths: dict[str, Paths]

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "whitened_dimensions": self.dim,
            "instances": {name: _instance_facts(group) for name, group in self.instances.items()},
            "paths": {kind: _path_facts(paths) for kind, paths in self.paths.items()},
            "smoothness_against_quality": self.relations(),
        }

    def relations(self) -> list[dict[str, Any]]:
        """Spearman's rank correlation, over instances of a group, of the Lipschitz constant with each quality measure.

        `rho` and `p` are None where fewer than five instances have the measure, or all have the same.
        """
        found = []
        for group, instances in self.instances.items():
            for name in ("loose", "nearest"):
                # A training instance is its own nearest one.
                if name in instances.measures and (group, name) != ("training", "nearest"):
                    row = _spearman(instances.lipschitz.numpy(), instances.measures[name])
                    found.append({"group": group, "measure": name, **row})
        return found


def diagnose_smoothness(
    pipe: MNIFPipeline, settings: SmoothnessSettings | None = None, advance: Callable[[], None] | None = None
) -> SmoothnessDiagnosis:
    """Measure how smoothly a model's values follow its latents.

    Args:
        pipe: the model, with the latents of at least 2 training instances; without a prior, samples are left out.
        settings: what is looked at.
        advance: called `smoothness_steps(pipe, settings)` times.

    Raises:
        MNIFError: fewer than 2 instances, instances that are all the same, or a setting that is too small.
    """
    settings = settings or SmoothnessSettings()
    settings.check()
    check_instances(pipe)
    space = whitened_space(pipe)
    function = output_map(pipe, space, data_points(pipe, settings.points, settings.seed))
    study = _Study(pipe, space, function, settings, advance or (lambda: None))
    generator = torch.Generator().manual_seed(settings.seed)
    groups = {"training": pipe.latents[torch.randperm(len(pipe.latents), generator=generator)[: settings.num_samples]]}
    if pipe.prior is not None:
        groups["samples"] = pipe.sample_latents(settings.num_samples, settings.seed, typical=1.0)
    pairs = draw_pairs(pipe.latents, groups.get("samples"), settings.num_pairs, generator)
    instances = {name: study.instances(latents) for name, latents in groups.items()}
    return SmoothnessDiagnosis(space.dim, instances, {kind: study.paths(*ends) for kind, ends in pairs.items()})


def smoothness_steps(pipe: MNIFPipeline, settings: SmoothnessSettings) -> int:
    """How often `diagnose_smoothness` advances: once per instance and per path."""
    training = min(len(pipe.names), settings.num_samples)
    if pipe.prior is None:
        return training + settings.num_pairs
    return training + settings.num_samples + len(KINDS) * settings.num_pairs


def whitened_space(pipe: MNIFPipeline) -> Whitening:
    """Principal components of the training latents, all that vary, each scaled to unit variance.

    The prior's own whitening may drop the weakest directions; here all count, so that models are comparable.

    Raises:
        MNIFError: all training latents are the same.
    """
    space = Whitening.fit(pipe.latents, "pca")
    if space.dim == 0:
        raise MNIFError(f"all {len(pipe.latents)} training latents are the same; train stage 1 before a diagnosis.")
    return space


def output_map(pipe: MNIFPipeline, space: Whitening, points: Tensor) -> Map:
    """The map from whitened latents `[B, K]` to the values that one sees or measures at `points` `[in, N]`.

    See `Modality.seen_values`; radiance is taken to become opaque over 1/32 of the box.

    Returns:
        a map to `[B, N * channels]`, in float64 and in plain torch, so that it can be differentiated in any way.
    """
    model = pipe.model
    field = copy.deepcopy(model.field).double().eval().requires_grad_(False)
    mean, back = space.mean.double(), (space.basis.double() * space.scale.double()).T
    at, head, step = points.double(), field.spec.head, surface_thickness(model.half_extent)

    def values(whitened: Tensor) -> Tensor:
        latents = whitened @ back + mean
        with kernel.reference_only():
            raw = field.evaluate(latents, at.expand(len(latents), -1, -1))
        return model.kind.seen_values(raw, head, step).flatten(1)

    return values


def draw_pairs(
    training: Tensor, samples: Tensor | None, count: int, generator: torch.Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    """Ends `[count, D]` of random paths of each kind; two ends are never the same instance."""
    first = torch.randint(len(training), (count,), generator=generator)
    step = torch.randint(1, len(training), (count,), generator=generator)
    pairs = {"training": (training[first], training[(first + step) % len(training)])}
    if samples is not None:
        a = torch.randint(len(samples), (count,), generator=generator)
        b = torch.randint(1, len(samples), (count,), generator=generator)
        pairs["samples"] = (samples[a], samples[(a + b) % len(samples)])
        c = torch.randint(len(training), (count,), generator=generator)
        pairs["training to sample"] = (training[c], samples[a])
    return pairs


def measure(pipe: MNIFPipeline, latents: Tensor) -> dict[str, np.ndarray]:
    """What is measured of instances, beside their derivatives.

    Args:
        pipe: the model.
        latents: `[n, D]`.

    Returns:
        by name, `[n]` each. For all: "nearest", the distance to the nearest training latent as mnif-sample gives it
        (root mean square per whitened dimension). For solids, on a grid as fine as the data but of at most
        64 cells along an edge: "volume", the share of the box that is inside; "components", connected parts (cells that
        touch, be it at a corner, are connected); "loose", the share of the volume outside the largest part, NaN where
        nothing is inside.
    """
    found = {"nearest": np.array([round(pipe.nearest(latent)[1], 5) for latent in latents])}
    if not pipe.model.kind.has_surface:
        return found
    resolution = min((pipe.model.grid or {"resolution": _MOST_CELLS})["resolution"], _MOST_CELLS)
    solids = [_solid_measures(require_solid(pipe.decode(latent)).occupancy(resolution)) for latent in latents]
    return {**found, **{name: np.array([solid[name] for solid in solids]) for name in solids[0]}}


def quartiles(values: Any) -> dict[str, float | int | None]:
    """Quartiles and mean of the numbers that are finite, and how many those are; None where there are none."""
    array = np.asarray(values, dtype=np.float64).ravel()
    array = array[np.isfinite(array)]
    if len(array) == 0:
        return {"q1": None, "median": None, "q3": None, "mean": None, "count": 0}
    found: dict[str, float | int | None] = {
        name: float(np.quantile(array, share)) for name, share in (("q1", 0.25), ("median", 0.5), ("q3", 0.75))
    }
    return {**found, "mean": float(array.mean()), "count": len(array)}


@dataclass(frozen=True)
class _Study:
    """What every measurement needs."""

    pipe: MNIFPipeline
    space: Whitening
    function: Map
    settings: SmoothnessSettings
    tick: Callable[[], None]

    def whitened(self, latents: Tensor) -> Tensor:
        return self.space.whiten(latents.float()).double()

    def instances(self, latents: Tensor) -> Instances:
        lipschitz, norm = [], []
        for some in self.whitened(latents).split(_BATCH):
            lipschitz.append(local_lipschitz(self.function, some, self.settings.seed).cpu())
            norm.append(jacobian_norm(self.function, some, _DIRECTIONS, self.settings.seed).cpu())
            for _ in some:
                self.tick()
        return Instances(torch.cat(lipschitz), torch.cat(norm), measure(self.pipe, latents))

    def paths(self, starts: Tensor, ends: Tensor) -> Paths:
        shares = torch.linspace(0, 1, self.settings.positions, dtype=torch.float64, device=starts.device)
        numbers, measures, shown = [], [], []
        for start, end in zip(starts, ends):
            numbers.append(self._path(self.whitened(start), self.whitened(end), shares))
            shown.append(torch.stack([torch.lerp(start, end, float(share)) for share in shares[::2]]))
            measures.append(measure(self.pipe, shown[-1]))
            self.tick()
        slope, bend, degrees, chord, length, resolved = (torch.stack(column).cpu() for column in zip(*numbers))
        together = {name: np.stack([one[name] for one in measures]) for name in measures[0]}
        return Paths(slope, bend, degrees, chord, length, resolved, together, torch.stack(shown))

    def _path(self, a: Tensor, b: Tensor, shares: Tensor) -> tuple[Tensor, ...]:
        """The numbers of one path between whitened ends `[K]`, in the order of the attributes of `Paths`."""
        parts = [
            directional_derivatives(self.function, some, (b - a).expand_as(some).contiguous())
            for some in (a + shares.unsqueeze(1) * (b - a)).split(_BATCH)
        ]
        value, first, second = (torch.cat(part) for part in zip(*parts))
        degrees = torch.trapezoid(turning(first, second), shares).rad2deg()
        slope = local_lipschitz(self.function, torch.lerp(a, b, 0.5).unsqueeze(0), self.settings.seed)[0]
        chord = (value[-1] - value[0]).square().mean().sqrt()
        steps = value.diff(dim=0).square().mean(dim=1).sqrt().sum()
        resolved = steps >= _LEAST_RESOLVED * path_length(first, shares)
        return slope, curvature(first, second), degrees, chord, detour(value, first, shares), resolved


def _solid_measures(inside: np.ndarray) -> dict[str, float]:
    labels, count = scipy.ndimage.label(inside, structure=np.ones((3, 3, 3)))
    volume = int(inside.sum())
    largest = int(np.bincount(labels.ravel())[1:].max()) if count else 0
    loose = 1.0 - largest / volume if volume else float("nan")
    return {"volume": volume / inside.size, "components": float(count), "loose": loose}


def _spearman(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) < _LEAST_TO_CORRELATE or np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"rho": None, "p": None, "count": len(x)}
    result = scipy.stats.spearmanr(x, y)
    return {"rho": float(result.statistic), "p": float(result.pvalue), "count": len(x)}


def _instance_facts(group: Instances) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "lipschitz": quartiles(group.lipschitz),
        "sensitivity": quartiles(group.sensitivity),
        "stable_rank": quartiles(group.stable_rank),
        **{name: quartiles(values) for name, values in group.measures.items()},
    }
    if "volume" in group.measures:
        facts["with_loose_parts"] = int((group.measures["components"] > 1).sum())
        facts["empty"] = int((group.measures["volume"] == 0).sum())
    return facts


def _path_facts(paths: Paths) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "lipschitz_in_the_middle": quartiles(paths.lipschitz),
        "curvature": quartiles(paths.curvature),
        "turning_degrees": quartiles(paths.degrees),
        "chord": quartiles(paths.chord),
        "detour": quartiles(paths.detour),
        "unresolved": int((~paths.resolved).sum()),
    }
    for name, values in paths.measures.items():
        facts[f"{name}_at_ends"] = quartiles(values[:, [0, -1]])
        facts[f"{name}_between"] = quartiles(values[:, 1:-1])
    if "volume" in paths.measures:
        facts["largest_change_of_volume"] = quartiles(_volume_change(paths.measures["volume"]))
        facts["empty"] = int((paths.measures["volume"] == 0).sum())
    return facts


def _volume_change(volume: np.ndarray) -> np.ndarray:
    """How far the volume `[P, S]` strays from a straight course between its ends, relative to their mean; `[P]`."""
    straight = np.linspace(volume[:, 0], volume[:, -1], volume.shape[1], axis=1)
    mean = 0.5 * (volume[:, 0] + volume[:, -1])
    return np.abs(volume - straight).max(axis=1) / np.where(mean > 0, mean, np.nan)
