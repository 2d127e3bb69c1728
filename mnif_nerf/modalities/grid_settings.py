"""Settings of training on regular grids: voxels, images, arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro

from mnif_nerf.modalities.settings import InstanceDataSettings, ModelSettings, PipelineSettings


@dataclass
class GridDataSettings(InstanceDataSettings):
    """Points of several instances per step."""

    config_class: ClassVar[str] = "mnif_nerf.models.grid_data.GridDataManagerConfig"

    modality: Annotated[str, tyro.conf.Suppress] = "voxel"
    """Name of the modality."""
    resolution: int = 0
    """Cells or pixels along the longest edge; 0 takes what the files have (of images, 64 at most)."""
    channels: int = 0
    """Images: 1 (grey), 3 (colour, on white) or 4 (colour and alpha); 0 takes what the files have."""
    surface_share: float = 0.5
    """Voxels: share of these cells that lie beside the surface."""
    cut_cells: float = 0.5
    """Voxels: cells from the surface up to which signed distances are learned, 4 at most; half a cell leaves only the
    side, the occupancy."""
    reweight: bool = False
    """Voxels: whether weights make up for that share, so that the loss is the mean over all cells again."""
    jitter: bool = False
    """Images and arrays: whether points are drawn anywhere within their cells, with interpolated values. Without, the
    field is sharper at the cells' centres, and w0 alone keeps it smooth in between."""


@dataclass
class GridPipelineSettings(PipelineSettings):
    """Grids of a data set, and the latent prior at its end."""

    config_class: ClassVar[str] = "mnif_nerf.pipelines.training.grids.GridPipelineConfig"
    own_settings: ClassVar[tuple[str, ...]] = ("fit_points",)

    datamanager: GridDataSettings = field(default_factory=GridDataSettings)
    """The data."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """Field, latents and losses."""
    fit_points: int = 1024
    """Auto-decoding: points of each unseen instance in one of the steps that fit its latent; 0 takes all."""


@dataclass
class VoxelModelSettings(ModelSettings):
    """Voxel shapes. The defaults are the paper's ShapeNet S shape, but for the sine frequency."""

    own_settings: ClassVar[tuple[str, ...]] = ("head",)

    latent_dim: int = 512
    """Size of a latent code."""
    head: Literal["signed", "logit", "distance"] = "signed"
    """What the field says: -1 outside to 1 inside by a last sine, with squared errors as in the paper ("signed"); the
    logit of the occupancy, with the binary cross entropy ("logit"); or the signed distance in half cells, with its
    truncated error ("distance")."""
    grid_resolution: int = 64
    """Cells per side of the occupancy grid that rendering skips empty space with."""


@dataclass
class ImageModelSettings(ModelSettings):
    """Images. The defaults are the paper's CelebA-HQ S shape."""

    latent_dim: int = 1024
    """Size of a latent code."""
    w0: float = 0.0
    """Sine frequency; 0 chooses it from the pictures' resolution (3/4 of it, 30 at most): a higher one lets the field
    swing between the pixels, which shows as noise where it is sampled more finely."""
    final_activation: Literal["linear", "sine"] = "linear"
    """What the last layer ends in. With a sine, as in the paper, colours beyond black and white wrap around; on the
    digits, second-order meta-learning then broke down for two seeds of five, and for none without it."""


@dataclass
class SignalModelSettings(ModelSettings):
    """Arrays of real values over one to four axes."""

    latent_dim: int = 128
    """Size of a latent code."""
    w0: float = 0.0
    """Sine frequency; 0 chooses it from the longest axis as for images."""
