"""Settings of training on points of meshes: signed distance and colour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from mnif_nerf.modalities.settings import InstanceDataSettings, ModelSettings, PipelineSettings

if TYPE_CHECKING:
    from mnif_nerf.fields.losses import DistanceLoss


@dataclass
class SurfaceDataSettings(InstanceDataSettings):
    """Points of several objects per step."""

    config_class: ClassVar[str] = "mnif_nerf.models.surface_data.SurfaceDataManagerConfig"

    modality: Annotated[str, tyro.conf.Suppress] = "sdf"
    """Name of the modality."""
    uniform_share: float = 0.10
    """Share of these points that lie anywhere in the box."""
    wide_share: float = 0.20
    """Share of those around the surface, at about 0.03 world units (an object's diagonal is 1)."""
    near_share: float = 0.50
    """Share of those at about 0.006."""
    on_surface_share: float = 0.20
    """Share of those on it."""


@dataclass
class SurfacePipelineSettings(PipelineSettings):
    """Points of meshes, and the latent prior at its end."""

    config_class: ClassVar[str] = "mnif_nerf.pipelines.training.surfaces.SurfacePipelineConfig"
    own_settings: ClassVar[tuple[str, ...]] = ("fit_points",)

    datamanager: SurfaceDataSettings = field(default_factory=SurfaceDataSettings)
    """The data."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """Field, latents and losses."""
    prior_variance: float = 0.99
    """Share of the latents' variance that the prior models. What is left out is missing in samples: of trees, parts of
    their trunks."""
    fit_points: int = 1024
    """Auto-decoding: points of each unseen object in one of the steps that fit its latent; 0 takes all."""


@dataclass
class SurfaceModelSettings(ModelSettings):
    """Signed distance and colour near a surface."""

    own_settings: ClassVar[tuple[str, ...]] = ("truncation", "near", "color_weight")

    latent_dim: int = 64
    """Size of a latent code."""
    w0: float = 26.0
    """Sine frequency, for coordinates in [-1, 1]."""
    truncation: float = 0.03
    """Distances are learned up to here, in world units (an object's diagonal is 1)."""
    near: float = 0.02
    """Colours are learned up to this distance from the surface, world units."""
    color_weight: float = 20.0
    """Weight of the mean squared error of colours; that of distances, in units of `truncation`, has 1."""
    color_share: float = 0.0
    """Share of a latent's numbers that make the colours and nothing else, so that shape and colour can be exchanged
    (mixtures with layer-wise coefficients only); with 0 everything depends on all numbers."""
    grid_resolution: int = 64
    """Cells per side of the grid that rendering skips empty space with."""

    def distance_loss(self) -> DistanceLoss:
        """Weights and lengths of the loss."""
        from mnif_nerf.fields.losses import DistanceLoss

        return DistanceLoss(self.truncation, self.near, self.color_weight)
