"""Settings of training radiance fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from mnif_nerf.data.readers.scene_reading import IntrinsicsKind, PoseKind, SceneReading
from mnif_nerf.modalities.settings import DataSettings, ModelSettings, PipelineSettings
from mnif_nerf.saved_settings import SavedSettings

if TYPE_CHECKING:
    from mnif_nerf.rendering.radiance_losses import LossConfig


@dataclass
class RadianceModelSettings(ModelSettings):
    """The mixture of neural implicit functions. The defaults are the paper's SRN Cars S shape."""

    own_settings: ClassVar[tuple[str, ...]] = ("samples_per_ray", "mask_weight", "carve_weight", "carve_length")

    samples_per_ray: int = 8
    """Jittered samples of a ray inside its instance's hull."""
    mask_weight: float = 0.02
    """Weight of the squared error of the accumulation against the silhouette."""
    carve_weight: float = 0.1
    """Weight of the opacity of points outside the hull."""
    carve_length: float = 0.1
    """World units over which that opacity is measured."""
    grid_resolution: int = 48
    """Cells per side of the occupancy grid that rendering skips empty space with."""
    lpips: bool = False
    """Whether evaluation reports LPIPS too; its weights must be in torch's cache or within reach."""

    def loss_config(self, samples_per_ray: int | None = None) -> LossConfig:
        """Weights of the losses and samples per ray (another number of them, where given)."""
        from mnif_nerf.rendering.radiance_losses import LossConfig

        samples = samples_per_ray or self.samples_per_ray
        return LossConfig(samples, self.mask_weight, self.carve_weight, self.carve_length)


@dataclass
class SceneSource(SavedSettings):
    """One scene of a data set in the SRN layout: <root>/<category>_<split>/<scene>/{rgb,pose}/."""

    data: Path = Path("data/srn_cars")
    """Folder that holds the splits."""
    scene: str = ""
    """Scene to show: its index or its name; empty means the environment's MNIF_SCENE, or else the first."""
    heldout_views_per_scene: int = 2
    """Views of every training scene never trained on, where the data set has no split of held-out views."""
    poses: Annotated[PoseKind, tyro.conf.arg(aliases=("--poses",))] = "auto"
    """What the pose files hold: camera-to-world (c2w) or world-to-camera (w2c) matrices, with OpenCV's axes, or with
    OpenGL's (c2w-gl, w2c-gl); auto is c2w but where intrinsics.txt has SRN's flag."""
    intrinsics: Annotated[IntrinsicsKind, tyro.conf.arg(aliases=("--intrinsics",))] = "auto"
    """Whether intrinsics are in pixels (as auto takes them), or normalised by the pictures' width and height."""
    scale: Annotated[Literal["auto"] | float, tyro.conf.arg(aliases=("--scale",))] = 1.0
    """What camera positions are multiplied by; auto moves and scales the data set so that its objects fill the box."""

    @property
    def reading(self) -> SceneReading:
        """How the cameras' files are read."""
        return SceneReading(self.poses, self.intrinsics, self.scale)


@dataclass
class SceneDataSettings(DataSettings):
    """Rays of several instances per step, from a data set in the SRN layout."""

    config_class: ClassVar[str] = "mnif_nerf.models.scene_data.MNIFDataManagerConfig"

    dataparser: SceneSource = field(default_factory=SceneSource)
    """Where the data is, and which scene is shown."""
    scenes_per_step: int = 16
    """Instances per training step."""
    rays_per_scene: int = 64
    """Rays of each of them."""
    carve_points: int = 64
    """Points outside the hull of each of them, where density is pushed to zero."""
    encode_rays_per_scene: int = 256
    """Rays of an instance that its latent is computed from, and as many carve points (meta-learning only)."""
    eval_num_scenes: int = 8
    """Instances an evaluation looks at, spread evenly over the set."""
    eval_views_per_scene: int = 2
    """Held-out views of each of them."""


@dataclass
class RadiancePipelineSettings(PipelineSettings):
    """Radiance fields of a data set, and the latent prior at its end."""

    config_class: ClassVar[str] = "mnif_nerf.pipelines.training.radiance.MNIFTrainingPipelineConfig"
    own_settings: ClassVar[tuple[str, ...]] = ("fit_rays_per_scene", "fit_samples_per_ray")

    datamanager: SceneDataSettings = field(default_factory=SceneDataSettings)
    """The data."""
    model: RadianceModelSettings = field(default_factory=RadianceModelSettings)
    """Field, latents and losses."""
    eval_mode: Literal["heldout-views", "unseen-scenes"] = "heldout-views"
    """Evaluate held-out views of the training scenes, or scenes never seen, to which latents are fitted."""
    conditioning_views: tuple[int, ...] = (64, 104)
    """Views of an unseen scene its latent is fitted to; as many evenly spaced ones where it lacks these."""
    fit_rays_per_scene: int = 128
    """Rays of each scene in one of these steps."""
    fit_samples_per_ray: int = 32
    """Samples of each of these rays; more than in training, for want of a hull."""
