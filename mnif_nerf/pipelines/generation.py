"""Generation: a trained model as a callable that returns objects. Works without nerfstudio."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError, first_line, require
from mnif_nerf.labels import GUIDANCE, Label, Wish
from mnif_nerf.latents.rarity import TYPICAL
from mnif_nerf.machine import default_device_type
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.objects.image import NeuralImage
from mnif_nerf.objects.object_list import ObjectList
from mnif_nerf.objects.radiance import NeuralRadiance
from mnif_nerf.objects.shape import NeuralShape
from mnif_nerf.pipelines.editing import Editor
from mnif_nerf.pipelines.integrity import Draw, draw_whole, yardstick_of
from mnif_nerf.pipelines.model_folder import StoredModel, check_replaceable, locate_model, read_model, write_model

if TYPE_CHECKING:
    from mnif_nerf.priors.whitening import Whitening

__all__ = ["MNIFPipeline", "NeuralImage", "NeuralObject", "NeuralRadiance", "NeuralShape"]

_DEVICES = ("cpu", "cuda")


class MNIFPipeline(Editor):
    """A trained category: sample new objects, bring back training instances, interpolate, find neighbours.

        pipe = MNIFPipeline.from_pretrained("outputs/.../model")
        objects = pipe(num_samples=4, seed=0)
        objects[0].render(elevation=20, azimuth=45, resolution=256)
        objects[0].mesh(resolution=128).export("object.glb")

    Objects are of the class that the model's `modality` has: `NeuralRadiance`, `NeuralShape` (voxels), `NeuralImage`.

    Args:
        model: what a model folder holds, on the device to work on.

    Attributes:
        folder: the model folder it was read from; None of a model that was made in memory.
    """

    def __init__(self, model: StoredModel) -> None:
        super().__init__(model)
        self._neighbor_space: Whitening | None = None
        self.folder: Path | None = None

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
        folder = locate_model(local)
        pipe = cls(read_model(folder, chosen))
        pipe.folder = folder
        return pipe

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
        from mnif_nerf.pipelines.publish.model_card import CardOptions
        from mnif_nerf.pipelines.publish.publishing import publish, upload

        with tempfile.TemporaryDirectory() as scratch:
            folder = publish(self.model, Path(scratch) / "model", CardOptions(repo_id, repo_id))
            return upload(folder, repo_id, private, commit_message)

    # --- objects ------------------------------------------------------------------------------------------

    def __call__(
        self,
        num_samples: int = 1,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
        redraw: int = 0,
        typical: float = TYPICAL,
        **asked: Any,
    ) -> list[NeuralObject]:
        """New objects from the latent prior; the same seed gives the same objects.

        Args:
            num_samples: how many.
            seed: sample i of a seed does not depend on `num_samples`.
            sampler: "dpm-solver++", "ddim", "ddpm", "flow-heun", or a baseline; None takes what fits the prior: see
                `LatentPrior.sample`.
            steps: denoiser evaluations; the sampler's own default when None (30 for dpm-solver++ and flow-heun).
            temperature: below 1 draws nearer to the typical object (less variety), 1 is the model itself.
            redraw: how often a sample that falls outside the range of the training instances is drawn again: see
                `mnif_nerf.pipelines.integrity`, which also says how many were and which stayed broken.
            typical: draw again latents that lie in sparser regions than this share of the training latents do, in
                (0, 1]: see `mnif_nerf.latents.rarity`. Less gives up rare kinds for whole ones; 1 takes all.
            asked: `label`, such as `{"species": "oak"}`, of a prior that was trained with labels (`prior.attributes`
                says which), and `guidance`, how strongly: see `mnif_nerf.labels.Wish`.

        Raises:
            MNIFError: no prior yet, an argument out of range, or a label that training has not seen; the sentence
                lists those that it has.
        """
        draw = Draw(seed, sampler, steps, temperature, typical, Wish(**asked) if asked else None)
        if not redraw:
            return ObjectList(draw.objects(self, num_samples))
        self._need_prior()
        yardstick = yardstick_of(self, self.folder)
        return ObjectList(draw_whole(self, num_samples, draw, redraw, yardstick).objects)

    def encode(self, *values: np.ndarray, points: int | None = None) -> list[NeuralObject]:
        """The objects nearest to given voxel grids or pictures, found with the networks as they are.

        Args:
            values: voxels bool `[G, G, G]` or pictures uint8 `[H, W, C]` (C = 4: straight colours and alpha, such as
                `np.asarray(item.image())`), of any one resolution.
            points: of each grid that the inner loop of a meta-learned model sees; 0 for all, None for as many as in
                training.

        Raises:
            MNIFError: see `mnif_nerf.pipelines.encoding.encode_grids`.
        """
        from mnif_nerf.pipelines.encoding import encode_grids

        latents = encode_grids(self.model, values, points)
        return ObjectList(self.decode(latent, f"encoded{index:03d}") for index, latent in enumerate(latents))

    def fit(
        self, observation: Any, label: Label | None = None, guidance: float = GUIDANCE, **settings: Any
    ) -> list[NeuralObject]:
        """The objects that explain what was observed, the best first, found with the networks as they are.

            car = pipe.fit("scan.ply")[0]
            car.mesh().export("car.glb")

        Args:
            observation: a path (a scene folder or transforms.json, a picture, a mesh, voxels, a point cloud), or an
                array: voxels bool `[G, G, G]` (float: NaN is unknown), a picture uint8 `[H, W, C]`, points `[N, 3]`.
            label, guidance: what those answers shall be, as in `__call__`.
            settings: of `mnif_nerf.pipelines.fit.fitting.FitSettings`: `restarts`, `steps`, `views`, `region`, ... With
                `samples=6` they are six answers that the latent prior holds possible, in no order.

        Raises:
            MNIFError: what cannot be read or does not fit the model, or a setting out of range.
        """
        from mnif_nerf.pipelines.fit.fitting import FitSettings, fit_observation

        wish = None if label is None else Wish(label, guidance)
        found = fit_observation(self, observation, FitSettings(**settings, wish=wish))
        return ObjectList(found.answers or found.objects)

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
        return ObjectList(self.between(a, b, share, f"step{k:02d}") for k, share in enumerate(shares))

    def nearest(self, latent: Tensor | NeuralObject, among: Sequence[int] | None = None) -> tuple[str, float]:
        """The training instance nearest to a latent, and the distance to it.

        Args:
            latent: `[D]`, or an object of this model.
            among: rows of the instances that are meant; None: all.

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
        rows = list(range(len(self.model.names)) if among is None else among)
        difference = space.whiten(self.model.latents[rows]) - space.whiten(self.latent_of(latent))
        distances = difference.square().sum(dim=1).div(max(space.dim, 1)).sqrt()
        index = int(distances.argmin())
        return self.model.names[rows[index]], float(distances[index])

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
        raise MNIFError(f"`device` {device!r} is not known; use cpu or cuda.") from None
    if chosen.type not in _DEVICES:
        raise MNIFError(f"`device` {device} cannot be computed on here; use {' or '.join(_DEVICES)}.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise MNIFError(f"`device` {device} is not available on this machine; leave `device` out, or use cpu.")
    return chosen


def _looks_like_repository(text: str) -> bool:
    """Whether a path that does not exist reads as owner/name; a typo inside an existing folder does not."""
    shape = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text)
    return shape is not None and not text.endswith((".yml", ".json")) and not Path(text).parent.exists()


def _download(repo_id: str) -> Path:
    huggingface_hub = require("huggingface_hub", "hub")

    try:
        folder = huggingface_hub.snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"])
    except Exception as error:  # the hub's client lets its HTTP library's own errors through
        reason = first_line(error)
        raise MNIFError(
            f"{repo_id}: neither a local folder nor a model that the Hugging Face Hub gives out ({reason})."
        ) from error
    return Path(folder)
