"""Settings of a training run that all modalities share: field and latents, data, adaptation.

Both `ns-train` and `mnif-train` show these settings; their docstrings are the help texts. torch is imported when
something is built from them, so that a `--help` does not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from mnif_nerf.saved_settings import SavedSettings

if TYPE_CHECKING:
    from mnif_nerf.fields.spec import FieldSpec
    from mnif_nerf.latents.meta import MetaConfig
    from mnif_nerf.latents.model import LatentSettings

CONFIG_VERSION = 1


@dataclass
class ModelSettings(SavedSettings):
    """The field and its latents. The defaults are the paper's SRN Cars S shape."""

    retired: ClassVar[frozenset[str]] = frozenset(
        {"_target", "enable_collider", "collider_params", "loss_coefficients", "prompt"}
    )
    own_settings: ClassVar[tuple[str, ...]] = ()
    """Names of further settings that the model folder keeps."""

    eval_num_rays_per_chunk: int = 1 << 15
    """Rays rendered together. On a GPU this default stands for as many as its memory allows."""
    width: int = 64
    """Hidden width of every basis network."""
    hidden_layers: int = 4
    """Hidden layers after the first one."""
    num_bases: int = 256
    """Number of basis networks."""
    latent_dim: int = 128
    """Size of a latent code."""
    w0: float = 30.0
    """Sine frequency."""
    family: str = "siren"
    """Network family: "siren" (sines), "fourier-relu" (ReLUs behind random Fourier features) or "finer" (sines of
    variable frequency)."""
    modulation: str = "mixture"
    """How a latent makes the small network: "mixture" (the average of basis networks), "shift" (of the biases of one
    shared network) or "low-rank" (a low-rank change of its weights)."""
    rank: int = 8
    """Rank of that change ("low-rank" only)."""
    fourier_features: int = 0
    """Random directions of "fourier-relu"; 0 takes as many as the width."""
    coefficients: str = "layer-wise"
    """Mixture coefficients per basis and layer ("layer-wise") or per basis ("network-wise")."""
    init: str = "corrected"
    """"corrected" keeps the initial output's spread whatever the number of bases; "authors" does not."""
    parametrization: str = "plain"
    """"scaled" lets learning rates carry over between widths, numbers of bases and latent sizes; "centred" does, too,
    and learns a mean network and deviations from it, which is faster; "plain" does neither."""
    latent_init_std: float = 0.0
    """Spread of the initial latent codes; 0 starts every instance from the average network."""
    latent_weight: float = 1e-3
    """Weight of the mean squared latent in the loss (auto-decoding only)."""
    latent_noise: float = 0.0
    """Standard deviation of the noise added to latents in training, in units of a latent coordinate."""
    latent_kl: float = 0.0
    """Weight of the KL divergence (nats) of an instance's latent, then a Gaussian whose spreads are learned, from the
    prior; 0 learns points. Reconstructions are a little less sharp then (auto-decoding only)."""

    def field_spec(self, **ends: Any) -> FieldSpec:
        """The shape of the field.

        Args:
            ends: what the modality says of it: `in_features`, `out_features`, `head`, ...

        Raises:
            MNIFError: a value out of range.
        """
        from mnif_nerf.fields.spec import FieldSpec

        names = (
            "width", "hidden_layers", "num_bases", "latent_dim", "w0", "coefficients", "init", "family", "modulation",
            "rank", "fourier_features", "parametrization",
        )  # fmt: skip
        return FieldSpec(**{**{name: getattr(self, name) for name in names}, **ends})

    def rays_per_chunk(self, on_gpu: bool) -> int | None:
        """Rays rendered together; None leaves it to the memory of a GPU."""
        usual = self.eval_num_rays_per_chunk == ModelSettings.eval_num_rays_per_chunk
        return None if on_gpu and usual else self.eval_num_rays_per_chunk

    def latents(self) -> LatentSettings:
        """How latents start and what regularises them."""
        from mnif_nerf.latents.model import LatentSettings

        return LatentSettings(self.latent_init_std, self.latent_weight, self.latent_noise, self.latent_kl)

    def stored(self) -> dict[str, Any]:
        """Weights and sample counts of the losses, for the model folder."""
        names = ("latent_weight", "latent_noise", "latent_kl", *self.own_settings)
        return {name: getattr(self, name) for name in names}


@dataclass
class DataSettings(SavedSettings):
    """Data of many instances."""

    retired: ClassVar[frozenset[str]] = frozenset({"_target"})
    config_class: ClassVar[str] = ""
    """The class of nerfstudio's configurations that a `config.yml` names for these settings."""
    modality: Annotated[str, tyro.conf.Suppress] = "radiance"
    """Name of the modality."""
    data: Path | None = None
    """Folder of the data."""
    labels: str = "auto"
    """Labels of the instances: "auto" takes labels.csv in the data folder, else its sub-folders of classes; "none"
    takes none; or a file like labels.csv."""


@dataclass
class InstanceDataSettings(DataSettings):
    """Points of several instances per step: cells or pixels of grids, or points of meshes."""

    retired: ClassVar[frozenset[str]] = DataSettings.retired | {"dataparser"}

    instance: str = ""
    """Instance to show: its index or its name; empty means the environment's MNIF_SCENE, or else the first."""
    instances_per_step: int = 16
    """Instances per training step."""
    points_per_instance: int = 1024
    """Points (cells, pixels) of each of them; 0 takes all."""
    encode_points: int = 4096
    """Meta-learning: points of an instance that its latent is computed from after training; 0 takes all."""
    eval_num_instances: int = 8
    """Instances an evaluation looks at, spread evenly over the set, and as many unseen ones."""
    picture_size: int = 128
    """Pixels along an edge of the pictures of the shown instance (images have their own)."""


@dataclass
class PipelineSettings(SavedSettings):
    """Latents and networks of a data set, and the latent prior at its end."""

    config_class: ClassVar[str] = ""
    """As in `DataSettings`."""
    own_settings: ClassVar[tuple[str, ...]] = ()
    """As in `ModelSettings`."""

    datamanager: DataSettings = field(default_factory=DataSettings)
    """The data."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """Field, latents and losses."""
    preset: Literal["none", "auto"] = "none"
    """"auto" chooses the sizes of field, latents and steps from the number of instances and the time (`minutes`, or
    the usual number of steps), beginning with those of the method's -lite form, and says which and why; what you set
    yourself stays. "none" takes the method's sizes."""
    adaptation: Literal["auto-decoding", "meta-learning"] = "auto-decoding"
    """Where latents come from: learned, one row of a table per instance, or computed by a few gradient steps from
    zero that the networks are trained to make good use of."""
    inner_steps: int = 3
    """Meta-learning: gradient steps from zero."""
    inner_lr: float = 1.0 / 32
    """Meta-learning: factor on the learned rates of these steps (1/32 is the authors' step in batches of 32)."""
    first_order: bool = False
    """Meta-learning: leave the second derivatives out, which is cheaper and less exact."""
    encode_batch: int = 32
    """Meta-learning: instances whose latents are computed together for a checkpoint; bounds the memory, no more."""
    fit_steps: int = 300
    """Auto-decoding: gradient steps that fit the latent of an unseen instance."""
    train_prior: bool = True
    """Whether the latent prior is trained at the end of the run."""
    prior_steps: int = 0
    """Steps of that training; 0 chooses them from the number of instances."""
    prior_variance: float = 0.95
    """Share of the latents' variance that the prior models; the rest is left out of samples."""
    prior_labels: bool = True
    """Whether the prior is told the data's labels, so that samples can be asked for by them."""
    threads: int = 0
    """Intra-op threads on the CPU; 0 times a few steps and takes the faster setting."""
    cuda_graph: bool = True
    """On CUDA: record the training step once and play it as one launch, several steps at a time; else every operation
    of every step is launched by itself. The steps are the same."""
    tf32: bool = True
    """On CUDA: products of matrices in TF32, which keeps 10 bits of a number and is several times as fast."""
    config_version: int = CONFIG_VERSION
    """Version of this configuration's format; leave it."""

    def stored(self) -> dict[str, Any]:
        """How latents of unseen instances are found, and how the prior is trained, for the model folder."""
        return {
            name: getattr(self, name) for name in ("encode_batch", "fit_steps", "prior_variance", *self.own_settings)
        }

    def meta(self) -> MetaConfig | None:
        """Settings of the inner loop, or None for auto-decoding.

        Raises:
            MNIFError: a value out of range.
        """
        from mnif_nerf.latents.meta import MetaConfig

        if self.adaptation == "auto-decoding":
            return None
        return MetaConfig(self.inner_steps, self.inner_lr, self.first_order)
