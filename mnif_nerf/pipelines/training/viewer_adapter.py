"""A pipeline of nerfstudio's as its viewer sees it: what to show, and the `MNIFPipeline` of the moment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.machine import tune_threads
from mnif_nerf.names import quoted
from mnif_nerf.pipelines.run_folder import stored_model
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.viewer.nerfstudio_patches import Framing, field_of_view

if TYPE_CHECKING:
    from mnif_nerf.pipelines.generation import MNIFPipeline
    from mnif_nerf.pipelines.training.base import InstancePipeline
    from mnif_nerf.priors.prior import LatentPrior

_COMPARED = 64  # latents by which it is checked that a prior belongs to this model
_PROBE_PIXELS = 96
_FLAT_MARGIN = 1.15  # the data's camera sees an image from edge to edge


class ViewerModel:
    """What `mnif_nerf.viewer.panel.Viewed` asks for.

    Args:
        pipeline: the training pipeline, while training or of a loaded checkpoint.
    """

    def __init__(self, pipeline: InstancePipeline) -> None:
        self.pipeline = pipeline
        self._generation: MNIFPipeline | None = None
        self._prior: tuple[float, LatentPrior | None, str] | None = None

    @property
    def trains(self) -> bool:
        """Whether the networks may still change."""
        return self.pipeline.test_mode == "val"

    def generation(self, run: Path) -> tuple[MNIFPipeline, str]:
        """The model as it is now, with the prior in `<run>/model/prior`; and what to say where there is none."""
        from mnif_nerf.pipelines.generation import MNIFPipeline

        if self._generation is None or self.trains:
            self._generation = MNIFPipeline(stored_model(self.pipeline.model.stage1, self.pipeline.datamanager.facts()))
        prior, why = self._prior_of(run)
        if self._generation.model.prior is not prior:
            self._generation.model.prior = prior
        return self._generation, why

    def _prior_of(self, run: Path) -> tuple[LatentPrior | None, str]:
        """The prior and nothing, or nothing and a sentence; read again where the file has changed."""
        from mnif_nerf.pipelines.model_folder import read_prior

        file = run / "model" / "prior" / "prior.json"
        try:
            written = file.stat().st_mtime
        except OSError:
            self._prior = None
            return None, self._how_to_get_one(run)
        if self._prior is None or self._prior[0] != written:
            why = ""
            latents = self.pipeline.model.latents.weight.detach()
            try:
                prior = read_prior(run / "model", latents.shape[1], latents.device)
                if prior is not None and not _belongs(prior, latents):
                    prior, why = None, f"the prior in {file.parent} is of other latents; {self._command(run)}."
            except MNIFError as error:
                prior, why = None, str(error)
            self._prior = (written, prior, why)
        return self._prior[1:]

    def _how_to_get_one(self, run: Path) -> str:
        if self.trains and self.pipeline.config.train_prior:
            return "nothing to draw from yet: the latent prior is trained at the end of this run."
        return f"this run has no latent prior yet, so there is nothing to draw from; {self._command(run)}."

    def _command(self, run: Path) -> str:
        when = "when the run has ended, run" if self.trains else "run"
        config = quoted(run / "config.yml")
        return f"{when} mnif-train-prior --load-config {config} and draw again (this viewer may stay open)"

    def show(self, latent: Tensor, row: int | None) -> None:
        """Render this latent `[D]` wherever a camera names no scene; a training instance, as training moves it."""
        model = self.pipeline.model
        if row is not None and model.row_of(row) == row:
            model.show_scene(row)
            self.pipeline.refresh_latents([row])
        else:
            model.set_shown_latent(latent)
        with torch.no_grad():
            model.collapsed(model.latent_of(None))  # here, and not in the picture whose time sets the resolution

    def first_row(self) -> int:
        """The scene that the data manager shows, where the model knows it."""
        return max(self.pipeline.model.row_of(self.pipeline.datamanager.shown), 0)

    def framing(self) -> Framing:
        """The distance and angle of view of the data's cameras; straight from the front where there are no sides."""
        camera = self.pipeline.datamanager.camera()
        angle = field_of_view(camera["focal_over_width"], 1.0)
        if not self.pipeline.kind.has_views:
            return Framing(_FLAT_MARGIN * camera["radius"], angle, elevation=0.0, azimuth=0.0)
        return Framing(camera["radius"], angle)

    def get_ready(self) -> None:
        """Choose the number of threads by rendering a small picture; while training, training has chosen it."""
        model = self.pipeline.model
        if self.trains or model.device.type != "cpu":
            return
        origins, directions = pixel_rays(orbit_pose(20.0, 45.0), Intrinsics.default(_PROBE_PIXELS))
        tune_threads(lambda: model.render(origins, directions, None))


def _belongs(prior: LatentPrior, latents: Tensor) -> bool:
    """Whether a prior was trained on these latents `[N, D]`."""
    if len(prior.train) != len(latents):
        return False
    own = prior.whitening.whiten(latents[:_COMPARED])
    return bool(torch.allclose(own, prior.train[:_COMPARED], rtol=1e-2, atol=1e-2))
