"""The methods of `mnif-train` and `ns-train`: one small and one large form for each modality, and the paper's.

This module only builds settings: it reads no file, imports no torch and must not fail, since every command of
nerfstudio loads it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.optimizer_settings import optimizer_settings
from mnif_nerf.modalities.grid_settings import (
    GridDataSettings,
    GridPipelineSettings,
    ImageModelSettings,
    SignalModelSettings,
    VoxelModelSettings,
)
from mnif_nerf.modalities.radiance_settings import (
    RadianceModelSettings,
    RadiancePipelineSettings,
    SceneDataSettings,
)
from mnif_nerf.modalities.sdf_settings import (
    SurfaceDataSettings,
    SurfaceModelSettings,
    SurfacePipelineSettings,
)
from mnif_nerf.modalities.settings import PipelineSettings
from mnif_nerf.pipelines.run_settings import RunSettings


@dataclass(frozen=True)
class Rung:
    """Sizes that did better than those of a small form, and where.

    Attributes:
        why: in a few words, for the user.
        settings: what is changed, by its place in the settings of a run.
        instances: of training, at least.
        steps: of the small form that fit into the time: at least, and fewer than.
    """

    why: str
    settings: dict[str, Any]
    instances: int = 0
    steps: tuple[float, float] = (0, math.inf)

    def suits(self, instances: int, steps: int) -> bool:
        """Whether these sizes are for so many instances and steps."""
        return instances >= self.instances and self.steps[0] <= steps < self.steps[1]


@dataclass(frozen=True)
class Method:
    """A named configuration.

    Attributes:
        name: as on the command line.
        modality: modality of its data.
        description: for the help text.
        settings: settings of a run; copied for every use.
        with_viewer: whether `ns-train` opens its viewer beside it. On two cores a viewer takes its share of them, so
            the small forms start none.
        rungs: of a small form, what `preset` "auto" changes of it; later ones replace what earlier ones say. Their
            number of points holds for a run of given `minutes` without a preset too.
    """

    name: str
    modality: str
    description: str
    settings: RunSettings
    with_viewer: bool
    rungs: tuple[Rung, ...] = ()

    def new_run(self) -> RunSettings:
        """Settings of a run to be changed freely."""
        return copy.deepcopy(self.settings)


def _method(
    name: str, modality: str, description: str, steps: int, pipeline: PipelineSettings, optimizers: dict[str, Any]
) -> Method:
    run = RunSettings(method_name=name, max_num_iterations=steps, pipeline=pipeline, optimizers=optimizers)
    return Method(name, modality, description, run, with_viewer=not name.endswith("-lite"), rungs=_RUNGS.get(name, ()))


POINTS = "pipeline.datamanager.points_per_instance"
"""Where the settings of a run hold the points that a step takes of an instance."""

# More steps of fewer points: measured at 60 CPU-seconds (docs/benchmarks.md, "A given time"), where the methods' own
# points left 1,509 and 1,239 steps.
_SHORT = Rung("fewer points where time is short", {POINTS: 512}, steps=(0, 2400))
_RUNGS = {"mnif-sdf-lite": (_SHORT,), "mnif-voxel-lite": (_SHORT,)}


def _grids(modality: str, data: dict[str, Any], model: Any, **pipeline: Any) -> GridPipelineSettings:
    """Settings of grids; `adaptation` is meta-learning where nothing else is given."""
    settings = {"adaptation": "meta-learning", "inner_lr": 1.0, "prior_variance": 0.99, **pipeline}
    return GridPipelineSettings(datamanager=GridDataSettings(modality=modality, **data), model=model, **settings)


_LARGE: dict[str, Any] = {"field_lr": 5e-4, "projection_lr": 5e-4, "latent_lr": 5e-3, "warmup_steps": 500}
_LITE: dict[str, Any] = {"field_lr": 1e-3, "projection_lr": 1e-3, "latent_lr": 5e-3, "warmup_steps": 100}
_CLIPPED: dict[str, Any] = {"max_norm": 1.0}
_WHOLE = {"points_per_instance": 0, "encode_points": 0}  # all pixels
# Rates for "centred" fields of any size and all kinds of data; twice the first two collapsed on furniture and monitors.
_CENTRED: dict[str, Any] = {
    "field_lr": 1.5e-3, "projection_lr": 1.5e-3, "latent_lr": 1e-2, "warmup_steps": 100, "final_fraction": 0.01
}  # fmt: skip
_SCALED_LARGE: dict[str, Any] = {  # for longer runs
    "field_lr": 1e-3, "projection_lr": 1e-3, "latent_lr": 5e-3, "warmup_steps": 500, "final_fraction": 0.01
}  # fmt: skip
_SMALL_FIELD: dict[str, Any] = {
    "width": 64, "hidden_layers": 4, "num_bases": 64, "latent_dim": 64, "parametrization": "centred"
}  # fmt: skip
_LARGE_FIELD: dict[str, Any] = {"width": 64, "hidden_layers": 4, "num_bases": 256}

_FORMS = [
    _method(
        "mnif",
        "radiance",
        "Mixtures of neural implicit functions: one field for many scenes; new ones are sampled.",
        100_000,
        RadiancePipelineSettings(
            datamanager=SceneDataSettings(scenes_per_step=32, rays_per_scene=128, carve_points=64),
            model=RadianceModelSettings(**_LARGE_FIELD, latent_dim=128),
        ),
        optimizer_settings(**{**_LARGE, "projection_lr": 1e-4}),
    ),
    _method(
        "mnif-lite",
        "radiance",
        "The small mnif for a CPU: minutes for a hundred scenes of 64 x 64 pixels.",
        16_000,
        RadiancePipelineSettings(
            datamanager=SceneDataSettings(scenes_per_step=16, rays_per_scene=64, carve_points=64),
            model=RadianceModelSettings(width=48, hidden_layers=3, num_bases=32, latent_dim=32),
        ),
        optimizer_settings(**_LITE),
    ),
    _method(
        "mnif-sdf",
        "sdf",
        "Mixtures of neural implicit functions for meshes: signed distance and colour; new ones are sampled.",
        100_000,
        SurfacePipelineSettings(
            datamanager=SurfaceDataSettings(instances_per_step=32, points_per_instance=4096),
            model=SurfaceModelSettings(**_LARGE_FIELD, latent_dim=256, parametrization="scaled"),
        ),
        optimizer_settings(**_SCALED_LARGE),
    ),
    _method(
        "mnif-sdf-lite",
        "sdf",
        "The small mnif-sdf for a CPU: minutes for a hundred coloured meshes.",
        6000,
        SurfacePipelineSettings(
            datamanager=SurfaceDataSettings(instances_per_step=16, points_per_instance=1024),
            model=SurfaceModelSettings(**_SMALL_FIELD),
        ),
        optimizer_settings(**_CENTRED),
    ),
    _method(
        "mnif-voxel",
        "voxel",
        "Mixtures of neural implicit functions for voxel shapes: one field for many; new ones are sampled.",
        100_000,
        _grids(
            "voxel",
            {"instances_per_step": 32, "points_per_instance": 4096, "cut_cells": 2.0},
            VoxelModelSettings(**_LARGE_FIELD, latent_dim=256, w0=26.0, head="distance", parametrization="scaled"),
            adaptation="auto-decoding",
        ),
        optimizer_settings(**_SCALED_LARGE),
    ),
    _method(
        "mnif-voxel-lite",
        "voxel",
        "The small mnif-voxel for a CPU: minutes for hundreds of shapes of 64 x 64 x 64 voxels.",
        8000,
        _grids(
            "voxel",
            {"instances_per_step": 16, "points_per_instance": 1024, "cut_cells": 2.0},
            VoxelModelSettings(**_SMALL_FIELD, w0=26.0, head="distance"),
            adaptation="auto-decoding",
        ),
        optimizer_settings(**_CENTRED),
    ),
    _method(
        "mnif-image",
        "image",
        "Mixtures of neural implicit functions for images: one field for many pictures; new ones are sampled.",
        100_000,
        _grids(
            "image",
            {"instances_per_step": 64, "points_per_instance": 1024, "encode_points": 0},
            ImageModelSettings(**_LARGE_FIELD, latent_dim=512, parametrization="scaled"),
            adaptation="auto-decoding",
            fit_points=0,
        ),
        optimizer_settings(**_SCALED_LARGE),
    ),
    _method(
        "mnif-image-lite",
        "image",
        "The small mnif-image for a CPU: minutes for some thousand small pictures.",
        8000,
        # Many pictures and few pixels of each: a latent has to be visited often.
        _grids(
            "image",
            {"instances_per_step": 64, "points_per_instance": 256, "encode_points": 0},
            # Pictures differ in more ways than shapes: with 64 numbers unseen ones are 1 to 7 dB worse at equal time.
            ImageModelSettings(**{**_SMALL_FIELD, "latent_dim": 256}),
            adaptation="auto-decoding",
            fit_points=0,
        ),
        optimizer_settings(**_CENTRED),
    ),
    _method(
        "mnif-signal",
        "signal",
        "Mixtures of neural implicit functions for arrays of one to four axes: sounds, series, maps, volumes.",
        100_000,
        _grids(
            "signal",
            {"instances_per_step": 32, "points_per_instance": 4096, "jitter": True},
            SignalModelSettings(**_LARGE_FIELD, latent_dim=128),
            adaptation="auto-decoding",
        ),
        optimizer_settings(**_LARGE),
    ),
    _method(
        "mnif-signal-lite",
        "signal",
        "The small mnif-signal for a CPU: minutes for a thousand series, or hundreds of small volumes.",
        4000,
        _grids(
            "signal",
            {"instances_per_step": 16, "points_per_instance": 1024, "jitter": True},
            SignalModelSettings(width=48, hidden_layers=3, num_bases=32, latent_dim=32),
            adaptation="auto-decoding",
        ),
        optimizer_settings(**_LITE),
    ),
]

# ------------------------------------------------------------------------------------------------------ the paper's
# Shapes, batches, inner steps, learning rates and lengths are those of the authors' code. Voxels and images keep the
# authors' initialisation too: with the bases scaled up (init "corrected"), the authors' inner learning rate is too
# large at w0 = 50, and ShapeNet S learns nothing in 200 steps. Two things differ: gradients are clipped for each
# parameter group separately, and for SRN Cars the bases keep their spread, Adam trains the latents (the authors' plain
# descent hardly moves them) and rays meet the visual hulls.


def _paper_optimizers(**adam: Any) -> dict[str, Any]:
    """The authors' Adam at 1e-4 for all that is learned, down to 0 along a cosine."""
    return optimizer_settings(1e-4, 1e-4, 5e-3, 0, rates_lr=1e-4, final_fraction=0.0, betas=(0.9, 0.999), **adam)


_PAPER_INNER_LOOP: dict[str, Any] = {"inner_lr": 1.0 / 32, "prior_variance": 0.95}


def _paper_shapenet(size: str, steps: int, **shape: Any) -> Method:
    """The paper's ShapeNet: 35,019 shapes of 64^3 voxels in batches of 32, 4096 points of each."""
    data = {"resolution": 64, "instances_per_step": 32, "points_per_instance": 4096}
    return _method(
        f"mnif-shapenet-{size}",
        "voxel",
        f"The paper's ShapeNet configuration, {size.upper()}: voxels, meta-learning.",
        steps,
        _grids("voxel", data, VoxelModelSettings(init="authors", **shape), **_PAPER_INNER_LOOP),
        _paper_optimizers(**_CLIPPED),
    )


def _paper_celebahq(size: str, **shape: Any) -> Method:
    """The paper's CelebA-HQ: 27,000 pictures of 64 x 64 in batches of 32, all pixels of each."""
    data = {"resolution": 64, "channels": 3, "instances_per_step": 32, **_WHOLE}
    model = ImageModelSettings(init="authors", final_activation="sine", w0=30.0, **shape)
    return _method(
        f"mnif-celebahq-{size}",
        "image",
        f"The paper's CelebA-HQ configuration, {size.upper()}: images, meta-learning.",
        675_200,
        _grids("image", data, model, fit_points=0, **_PAPER_INNER_LOOP),
        _paper_optimizers(),
    )


_PAPER = [
    _paper_shapenet("s", 876_000, **_LARGE_FIELD, latent_dim=512, w0=50.0),
    _paper_shapenet("l", 438_000, width=128, hidden_layers=5, num_bases=512, latent_dim=1024, w0=30.0),
    _paper_celebahq("s", **_LARGE_FIELD, latent_dim=1024),
    _paper_celebahq("l", width=128, hidden_layers=5, num_bases=384, latent_dim=512),
    _method(
        "mnif-srn-cars-s",
        "radiance",
        "The paper's SRN Cars configuration, S: radiance fields, auto-decoding.",
        616_000,
        RadiancePipelineSettings(
            datamanager=SceneDataSettings(scenes_per_step=8, rays_per_scene=16_384, carve_points=64),
            model=RadianceModelSettings(**_LARGE_FIELD, latent_dim=128, samples_per_ray=32),
        ),
        _paper_optimizers(),
    ),
]

METHODS: dict[str, Method] = {method.name: method for method in (*_FORMS, *_PAPER)}


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        MNIFError: there is none.
    """
    if name not in METHODS:
        raise MNIFError(f"method {name!r} is not known; this version has {', '.join(METHODS)}.")
    return METHODS[name]


def method_of(modality: str, size: str = "-lite") -> Method:
    """The method of a modality.

    Args:
        modality: its name.
        size: "-lite" for a CPU, "" for a GPU.

    Raises:
        MNIFError: this modality has none.
    """
    found = next((m for m in _FORMS if m.modality == modality and m.name.endswith("-lite") == bool(size)), None)
    if found is None:
        raise MNIFError(f"there is no method for the modality {modality!r}; this version has {', '.join(METHODS)}.")
    return found
