"""Basis diversity of a trained model: bases over the coordinates of its data, and what its instances use of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations.mixture import MixtureField, as_mixture
from mnif_nerf.metrics.bases import (
    DEAD_BELOW,
    Use,
    basis_outputs,
    correlations,
    effective_rank,
    mean_absolute_correlation,
    singular_values,
    use_of_bases,
)
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.rendering.grids import cell_coordinates, in_cube
from mnif_nerf.rendering.occupancy import dilate

if TYPE_CHECKING:
    from mnif_nerf.pipelines.generation import MNIFPipeline

# Models of voxels and surfaces come without bounds; so many training shapes, at this resolution, show where they are.
_SHAPES_FOR_BOUNDS = 64
_BOUNDS_RESOLUTION = 32
_DEFAULT_PIXELS = 64


@dataclass(frozen=True)
class Diversity:
    """Effective rank, mean absolute correlation and singular values of the rows of one matrix.

    `untrained_rank` and `untrained_correlation` are the same of a field of the same shape that was never trained, with
    the same latents: what there is without any learning.
    """

    rank: float
    correlation: float
    spectrum: Tensor
    untrained_rank: float
    untrained_correlation: float

    def facts(self) -> dict[str, Any]:
        """JSON-ready, without the singular values' absolute size."""
        largest = float(self.spectrum[0]) or 1.0
        return {
            "effective_rank": self.rank,
            "mean_absolute_correlation": self.correlation,
            "untrained_effective_rank": self.untrained_rank,
            "untrained_mean_absolute_correlation": self.untrained_correlation,
            "singular_values": [float(value) / largest for value in self.spectrum],
        }


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer: its bases' weights, and the use that the training instances make of them."""

    weights: Diversity
    coefficients: Diversity
    use: Use

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "weights": self.weights.facts(),
            "coefficients": self.coefficients.facts(),
            "dead": self.use.dead().nonzero().flatten().tolist(),
            "static": self.use.static().nonzero().flatten().tolist(),
            "latent_share_of_coefficients": self.use.latent_share,
            "latent_share_of_weights": self.use.network_share,
            "contributions": self.use.total.tolist(),
        }


@dataclass(frozen=True)
class BasesDiagnosis:
    """All that is measured of the bases.

    Attributes:
        points: number of coordinates the bases were evaluated at.
        most: the largest effective rank that coefficients can have: min(M, D, N - 1).
        outputs: the basis networks' values there.
        output_correlations: `[M, M]`.
        layers: from the input to the output.
    """

    points: int
    most: int
    outputs: Diversity
    output_correlations: Tensor
    layers: list[LayerDiagnosis]

    @property
    def dead_everywhere(self) -> list[int]:
        """Bases that are dead in every layer: they could be left out of the model."""
        return torch.stack([layer.use.dead() for layer in self.layers]).all(dim=0).nonzero().flatten().tolist()

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "points": self.points,
            "dead_below": DEAD_BELOW,
            "largest_possible_rank_of_coefficients": self.most,
            "outputs": self.outputs.facts(),
            "dead_in_every_layer": self.dead_everywhere,
            "layers": [layer.facts() for layer in self.layers],
        }


def data_points(pipe: MNIFPipeline, count: int, seed: int = 0) -> Tensor:
    """Coordinates where a model's data lies.

    Centres of pixels, or of a signal's cells (all, or `count` random ones where there are more); for radiance random
    points in the training bounds; for voxels and surfaces random points where training shapes are (decoded coarsely),
    with one cell around.

    Args:
        pipe: the model.
        count: how many points.
        seed: random seed of the random points.

    Returns:
        `[in, N]` float32 in the field's coordinates.

    Raises:
        MNIFError: a count below 1.
    """
    if count < 1:
        raise MNIFError(f"points {count} leaves nothing to look at; use at least 1 (1024 is usual).")
    generator = torch.Generator().manual_seed(seed)
    model = pipe.model
    kind = model.kind
    if kind.is_grid and not kind.has_surface:
        grid = GridFacts.from_dict(model.grid or {"resolution": _DEFAULT_PIXELS}, model.field.spec.in_features)
        cells_drawn = torch.randperm(grid.num_cells, generator=generator)[:count].sort().values
        return cell_coordinates(cells_drawn, grid.shape).to(pipe.latents.device)
    cells = shape_bounds(pipe) if model.cells is None and kind.by_instance else model.cells
    cells = torch.ones(1, 1, 1, dtype=torch.bool) if cells is None or not cells.any() else cells.cpu().bool()
    inside = cells.nonzero()
    # As evenly over the cells as the count allows.
    order = torch.cat([torch.randperm(len(inside), generator=generator) for _ in range(-(-count // len(inside)))])
    corner = inside[order[:count]]
    points = (corner + torch.rand(count, 3, generator=generator)) * (2.0 / len(cells)) - 1.0
    scale = 1.0 if kind.by_instance else model.half_extent
    return (scale * points).T.contiguous().to(pipe.latents.device)


def shape_bounds(pipe: MNIFPipeline) -> Tensor:
    """Cells that some training shape reaches, and their neighbours: bool `[G, G, G]`, all false where none is inside.

    Looks at up to 64 training shapes, evenly spaced, as the model decodes them.
    """
    rows = torch.linspace(0, len(pipe.names) - 1, min(len(pipe.names), _SHAPES_FOR_BOUNDS)).round().long().tolist()
    reached = torch.zeros(_BOUNDS_RESOLUTION, _BOUNDS_RESOLUTION, _BOUNDS_RESOLUTION, dtype=torch.bool)
    for row in rows:
        reached |= in_cube(torch.from_numpy(require_solid(pipe.instance(row)).occupancy(_BOUNDS_RESOLUTION)))
    return dilate(reached)


def check_instances(pipe: MNIFPipeline) -> None:
    """Refuse a model whose instances cannot be compared.

    Raises:
        MNIFError: no training latents, or only one.
    """
    if len(pipe.names) == 0:
        raise MNIFError(
            "this model came without the latents of training instances, which a diagnosis looks at; use the model "
            "folder that ns-train wrote."
        )
    if len(pipe.names) < 2:
        raise MNIFError("this model has one training instance and a diagnosis compares them; train on at least 2.")


def diagnose_bases(
    pipe: MNIFPipeline, points: int = 1024, seed: int = 0, advance: Callable[[], None] | None = None
) -> BasesDiagnosis:
    """Measure the bases of a trained model.

    Args:
        pipe: the model, with the latents of at least 2 training instances.
        points: coordinates to evaluate the bases at.
        seed: random seed of the coordinates and of the untrained field beside.
        advance: called `bases_steps(pipe)` times.

    Raises:
        MNIFError: fewer than 2 instances, a number below 1, or a model that is no mixture.
    """
    check_instances(pipe)
    field, latents = as_mixture(pipe.model.field, "a diagnosis of bases"), pipe.latents
    untrained = MixtureField(field.spec, seed=seed).to(latents.device)
    at = data_points(pipe, points, seed)
    outputs = [basis_outputs(one, at, latents) for one in (field, untrained)]
    _call(advance)
    layers = []
    for layer in range(len(field.bases)):
        layers.append(_diagnose_layer(field, untrained, latents, layer))
        _call(advance)
    most = min(field.spec.num_bases, field.spec.latent_dim, len(latents) - 1)
    return BasesDiagnosis(at.shape[1], most, _diversity(*outputs), correlations(outputs[0]), layers)


def bases_steps(pipe: MNIFPipeline) -> int:
    """How often `diagnose_bases` advances."""
    return 1 + len(pipe.model.field.bases)


@torch.no_grad()
def _diagnose_layer(field: MixtureField, untrained: MixtureField, latents: Tensor, layer: int) -> LayerDiagnosis:
    uses = [
        use_of_bases(one.coefficients(latents)[:, :, layer].contiguous(), one.bases[layer])
        for one in (field, untrained)
    ]
    weights = _diversity(field.bases[layer], untrained.bases[layer])
    return LayerDiagnosis(weights, _coefficient_diversity(*uses), uses[0])


def _diversity(rows: Tensor, untrained: Tensor) -> Diversity:
    """Diversity of bases, one per row: uncentred, so that M copies of one basis have rank 1."""
    return Diversity(
        effective_rank(rows),
        mean_absolute_correlation(rows),
        singular_values(rows),
        effective_rank(untrained),
        mean_absolute_correlation(untrained),
    )


def _coefficient_diversity(use: Use, untrained: Use) -> Diversity:
    """Diversity of instances, one per row: centred, because what all instances share tells none from another."""
    return Diversity(
        effective_rank(use.contributions, centred=True),
        mean_absolute_correlation(use.contributions.T),
        singular_values(use.contributions, centred=True),
        effective_rank(untrained.contributions, centred=True),
        mean_absolute_correlation(untrained.contributions.T),
    )


def _call(advance: Callable[[], None] | None) -> None:
    if advance is not None:
        advance()
