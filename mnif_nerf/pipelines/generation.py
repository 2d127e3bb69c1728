"""Generation: a trained model as a callable that returns objects. Works without nerfstudio."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.machine import default_device_type
from mnif_nerf.objects.object_list import ObjectList
from mnif_nerf.objects.radiance import NeuralObject
from mnif_nerf.objects.solid import NeuralImage, NeuralShape, object_class
from mnif_nerf.pipelines import editing
from mnif_nerf.pipelines.model_folder import StoredModel, check_replaceable, locate_model, read_model, write_model

if TYPE_CHECKING:
    from mnif_nerf.fields.compact import CompactField
    from mnif_nerf.priors.prior import LatentPrior
    from mnif_nerf.priors.whitening import Whitening

__all__ = ["MNIFPipeline", "NeuralImage", "NeuralObject", "NeuralShape"]


class MNIFPipeline:
    """A trained category: sample new objects, bring back training instances, interpolate, find neighbours.

        pipe = MNIFPipeline.from_pretrained("outputs/.../model")
        objects = pipe(num_samples=4, seed=0)
        objects[0].render(elevation=20, azimuth=45, resolution=256)
        objects[0].mesh(resolution=128).export("object.glb")

    Objects are `NeuralObject` (radiance), `NeuralShape` (voxels) or `NeuralImage`, as the model's `modality` says.

    Args:
        model: what a model folder holds, on the device to work on.
    """

    def __init__(self, model: StoredModel) -> None:
        self.model = model
        self._neighbor_space: Whitening | None = None

    def __repr__(self) -> str:
        spec, prior = self.model.field.spec, "with" if self.prior is not None else "without"
        return (
            f"MNIFPipeline({self.modality}, {len(self.names)} instances, {spec.num_bases} basis networks, latents of "
            f"{spec.latent_dim}, {prior} a latent prior)"
        )

    # --- reading and writing ------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path_or_repo_id: Path | str, device: torch.device | str | None = None) -> MNIFPipeline:
        """Load a model folder, a run folder, a run's config.yml, or "owner/name" from the Hugging Face Hub.

        Args:
            path_or_repo_id: what to load; a local path wins over a repository of the same name.
            device: CUDA where there is one, else the CPU, when None.

        Raises:
            MNIFError: nothing there, a damaged or unfinished model, or one of another format version.
        """
        chosen = _choose_device(device)
        local = Path(path_or_repo_id)
        if not local.exists() and _looks_like_repository(str(path_or_repo_id)):
            local = _download(str(path_or_repo_id))
        return cls(read_model(locate_model(local), chosen))

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write the model folder (safetensors and JSON), replacing an older model there as a whole.

        Raises:
            MNIFError: `folder` holds something that is not a model, or the disk cannot take it.
        """
        folder = Path(folder)
        check_replaceable(folder)
        return write_model(self.model, folder)

    def push_to_hub(self, repo_id: str, private: bool = False, commit_message: str = "Upload mNIF model") -> str:
        """Upload the model to the Hugging Face Hub (log in first: `hf auth login`); returns its address.

        The card says what the model itself knows; `mnif-publish` adds pictures, metrics and a licence.

        Raises:
            MNIFError: the hub refuses or cannot be reached.
        """
        from mnif_nerf.pipelines.publish.publishing import publish, upload

        with tempfile.TemporaryDirectory() as scratch:
            folder = publish(self, Path(scratch) / "model", repo_id, repo_id)
            return upload(folder, repo_id, private, commit_message)

    # --- objects ------------------------------------------------------------------------------------------

    def __call__(
        self,
        num_samples: int = 1,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
    ) -> list[NeuralObject]:
        """New objects from the latent prior; the same seed gives the same objects.

        Args:
            num_samples: how many.
            seed: sample i of a seed does not depend on `num_samples`.
            sampler: "dpm-solver++", "ddim", "ddpm", "flow-heun", or a baseline; None takes what fits the prior: see
                `LatentPrior.sample`.
            steps: denoiser evaluations; the sampler's own default when None (30 for dpm-solver++ and flow-heun).
            temperature: below 1 draws nearer to the typical object (less variety), 1 is the model itself.

        Raises:
            MNIFError: no prior yet, or an argument out of range.
        """
        latents = self.sample_latents(num_samples, seed, sampler, steps, temperature)
        return ObjectList(self.decode(latent, f"sample{index:03d}") for index, latent in enumerate(latents))

    def sample_latents(
        self,
        num_samples: int = 1,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Latents `[num_samples, D]` from the prior; the arguments are those of calling the pipeline."""
        if num_samples < 1:
            raise MNIFError(f"num-samples {num_samples} leaves nothing to do; ask for at least 1.")
        prior = self._need_prior()
        return prior.sample(num_samples, seed=seed, sampler=sampler, steps=steps, temperature=temperature)

    def decode(self, latent: Tensor | Sequence[float], name: str = "object") -> NeuralObject:
        """The object of a latent `[D]`, of the class that fits the model's modality.

        Raises:
            MNIFError: a latent of another size, or with NaNs.
        """
        code = torch.as_tensor(latent, dtype=torch.float32, device=self.model.latents.device)
        if not torch.isfinite(code).all():
            raise MNIFError(f"{name}: the latent has NaN or infinite numbers; it cannot be decoded.")
        return self.wrap(code, self.model.field.collapse(code), name)

    def wrap(
        self, latent: Tensor | None, field: CompactField, name: str, coefficients: Tensor | None = None
    ) -> NeuralObject:
        """A collapsed field as an object of this model, with its scene box, bounds and camera."""
        model = self.model
        resolution = None if model.grid is None else model.grid["resolution"]
        kind = object_class(model.modality, name)
        return kind(latent, field, name, model.cells, model.half_extent, model.camera, resolution, coefficients)

    def instance(self, name_or_index: str | int) -> NeuralObject:
        """A training instance, by name or by index.

        Raises:
            MNIFError: no such instance (the nearest names are suggested).
        """
        index = self._instance_index(name_or_index)
        return self.decode(self.model.latents[index], self.model.names[index])

    def encode(self, *values: np.ndarray, points: int | None = None) -> list[NeuralObject]:
        """The objects nearest to given voxel grids or pictures, found with the networks as they are.

        Args:
            values: voxels bool `[G, G, G]` or pictures uint8 `[H, H, C]`, of any one resolution.
            points: of each grid that the inner loop of a meta-learned model sees; 0 for all, None for as many as in
                training.

        Raises:
            MNIFError: see `mnif_nerf.pipelines.encoding.encode_grids`.
        """
        from mnif_nerf.pipelines.encoding import encode_grids

        latents = encode_grids(self.model, values, points)
        return ObjectList(self.decode(latent, f"encoded{index:03d}") for index, latent in enumerate(latents))

    def fit(self, observation: Any, **settings: Any) -> list[NeuralObject]:
        """The objects that explain what was observed, the best first, found with the networks as they are.

            car = pipe.fit("scan.ply")[0]
            car.mesh().export("car.glb")

        Args:
            observation: a path (a scene folder or transforms.json, a picture, a mesh, voxels, a point cloud), or an
                array: voxels bool `[G, G, G]` (float: NaN is unknown), a picture uint8 `[R, R, C]`, points `[N, 3]`.
            settings: of `mnif_nerf.pipelines.fit.fitting.FitSettings`: `restarts`, `steps`, `views`, `region`, ...

        Raises:
            MNIFError: what cannot be read or does not fit the model, or a setting out of range.
        """
        from mnif_nerf.pipelines.fit.fitting import FitSettings, fit_observation

        return ObjectList(fit_observation(self, observation, FitSettings(**settings)).objects)

    def interpolate(self, a: Any, b: Any, num: int = 8) -> list[NeuralObject]:
        """`num` objects from `a` to `b`, both included exactly.

        The path is straight in whitened latent coordinates. Whitening is an affine map, so this is the
        straight line between the latents themselves, which (unlike the whitened detour) also keeps
        directions the prior drops. An end without a latent is reached by mixture coefficients.

        Args:
            a, b: a `NeuralObject`, a latent `[D]`, or a training instance's name or index.
            num: at least 2.

        Raises:
            MNIFError: fewer than 2 steps, or an end that does not exist.
        """
        if num < 2:
            raise MNIFError(f"an interpolation of {num} objects has no two ends; ask for at least 2.")
        shares = torch.linspace(0, 1, num).tolist()
        return ObjectList(editing.between(self, a, b, share, f"step{k:02d}") for k, share in enumerate(shares))

    def nearest(self, latent: Tensor | NeuralObject) -> tuple[str, float]:
        """The training instance nearest to a latent, and the distance to it.

        Returns:
            its name and the root-mean-square difference per whitened dimension: 0 is a copy, and two
            independent instances are about 1.4 apart.

        Raises:
            MNIFError: a latent of another size, an object of another model or without a latent, or a model without
                training instances.
        """
        if not self.model.names:
            raise MNIFError("this model came without the latents of training instances, so there is no nearest one.")
        space = self._whitening()
        difference = space.whiten(self.model.latents) - space.whiten(self.latent_of(latent))
        distances = difference.square().sum(dim=1).div(max(space.dim, 1)).sqrt()
        index = int(distances.argmin())
        return self.model.names[index], float(distances[index])

    # --- editing: documented in mnif_nerf.pipelines.editing, whose functions these are --------------------------

    mix = editing.mix
    mix_layers = editing.mix_layers
    mix_shape_and_color = editing.mix_shape_and_color
    average = editing.average
    analogy = editing.analogy
    coefficients = editing.coefficients
    project = editing.project

    # --- helpers ------------------------------------------------------------------------------------------

    @property
    def modality(self) -> str:
        """What the model is of: "radiance", "voxel" or "image"."""
        return self.model.modality

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the training instances."""
        return self.model.names

    @property
    def latents(self) -> Tensor:
        """Latents `[N, D]` of the training instances."""
        return self.model.latents

    @property
    def prior(self) -> LatentPrior | None:
        """The latent prior, or None until it is trained."""
        return self.model.prior

    def _need_prior(self) -> LatentPrior:
        if self.model.prior is None:
            raise MNIFError(
                "this model has no latent prior yet, so it cannot sample; train one with "
                "mnif-train-prior --load-config."
            )
        return self.model.prior

    def _instance_index(self, name_or_index: str | int) -> int:
        names = self.model.names
        if not names:
            raise MNIFError("this model came without the latents of training instances; draw samples instead.")
        if isinstance(name_or_index, int):
            if not -len(names) <= name_or_index < len(names):
                raise MNIFError(f"instance {name_or_index} does not exist; there are {len(names)}, numbered from 0.")
            return name_or_index % len(names)
        if name_or_index in names:
            return names.index(name_or_index)
        if name_or_index.isdecimal():
            return self._instance_index(int(name_or_index))
        close = difflib.get_close_matches(name_or_index, names, n=3, cutoff=0.0)
        raise MNIFError(f"instance {name_or_index!r} is not in this model; did you mean {' or '.join(close)}?")

    def latent_of(self, end: Any) -> Tensor:
        """The latent `[D]` of a `NeuralObject`, a latent, or a training instance's name or index.

        Raises:
            MNIFError: no such instance, a latent of another size, an object of another model, or one that was mixed
                layer by layer (`project` has the latent that comes nearest).
        """
        latents = self.model.latents
        if isinstance(end, (str, int)):
            return latents[self._instance_index(end)]
        # An object read from a file may lie on another device, and come from another model.
        code = end.latent if isinstance(end, NeuralObject) else end
        code = torch.as_tensor(code, dtype=torch.float32, device=latents.device)
        if code.shape != latents.shape[1:]:
            raise MNIFError(
                f"a latent of shape {list(code.shape)} does not fit this model, "
                f"which takes {latents.shape[1]} numbers; use a latent of the same model."
            )
        if isinstance(end, NeuralObject):
            editing.check_origin(self.model.field, end)
        return code

    def _whitening(self) -> Whitening:
        if self.model.prior is not None:
            return self.model.prior.whitening
        if self._neighbor_space is None:
            from mnif_nerf.priors.whitening import Whitening

            self._neighbor_space = Whitening.fit(self.model.latents, mode="per-dimension")
        return self._neighbor_space


def _choose_device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device(default_device_type())
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise MNIFError(f"device {device!r} is not known; use cpu or cuda.") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise MNIFError(f"device {device} is not available on this machine; leave --device out, or use cpu.")
    return chosen


def _looks_like_repository(text: str) -> bool:
    """Whether a path that does not exist reads as owner/name; a typo inside an existing folder does not."""
    shape = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text)
    return shape is not None and not text.endswith((".yml", ".json")) and not Path(text).parent.exists()


def _download(repo_id: str) -> Path:
    import huggingface_hub

    from mnif_nerf.pipelines.publish.publishing import first_line

    try:
        folder = huggingface_hub.snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"])
    except Exception as error:  # the hub's client lets its HTTP library's own errors through
        reason = first_line(error)
        raise MNIFError(
            f"{repo_id}: neither a local folder nor a model that the Hugging Face Hub gives out ({reason})."
        ) from error
    return Path(folder)
