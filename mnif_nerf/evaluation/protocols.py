"""What is measured and at which size: every number depends on these settings, so they travel with it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.labels import GUIDANCE
from mnif_nerf.modalities import Modality


@dataclass(frozen=True)
class Row:
    """One line of a generation table.

    Attributes:
        name: identifier in files.
        label: what a reader sees.
        kind: "data" (training instances as they are: what a perfect model would score), "latents" (the same
            instances decoded from their latents: what a perfect prior would score) or "samples".
        sampler, steps: of samples; see `mnif_nerf.priors.prior.LatentPrior.sample`.
        asked, guidance: of samples that are asked for by attribute and class.
        count: how many, in place of the protocol's number.
    """

    name: str
    label: str
    kind: str = "samples"
    sampler: str = ""
    steps: int | None = None
    asked: tuple[tuple[str, str], ...] = ()
    guidance: float = GUIDANCE
    count: int | None = None


_YARDSTICKS = (
    Row("training-data", "training data (a perfect model)", "data"),
    Row("training-latents", "training latents, decoded (a perfect prior)", "latents"),
    Row("gaussian", "Gaussian prior", sampler="gaussian"),
    Row("interpolation", "interpolation prior", sampler="interpolation"),
)
_DPM = {
    steps: Row(f"dpm-{steps}", f"DPM-Solver++, {steps} steps", sampler="dpm-solver++", steps=steps)
    for steps in (10, 30)
}
_DDIM = Row("ddim-100", "DDIM, 100 steps", sampler="ddim", steps=100)
_DDPM = Row("ddpm-1000", "DDPM, 1000 steps", sampler="ddpm", steps=1000)
# What mnif-sample draws: of diffusion, and of flow matching.
MAIN_ROWS = ("dpm-30", "flow-heun")


@dataclass(frozen=True)
class EvaluationProtocol:
    """Sizes of an evaluation.

    Attributes:
        name: "small", "standard" or "paper".
        num_samples: N, generated objects per row, and instances of the data rows.
        seed: random seed of samples, points, subsets and resampling.
        rows: rows of the generation tables.
        references: splits that samples are compared with, joined; those the data lacks are left out.
        max_references: at most so many reference instances, spread evenly over the splits.
        training_instances: for reconstruction, spread evenly.
        unseen_instances: likewise, of the split test.
        views_per_scene: scored views of each scene in reconstruction (radiance).
        conditioning_views: views that latents of unseen scenes are fitted to (radiance).
        cameras: views per object in the comparison of pictures (radiance).
        most_pictures: of a line; of more, features go into sums for the Fréchet distance, and not all are kept.
        kept_pictures: whose features are kept then, for what else is compared.
        surface_points: points per shape for the Chamfer distance and the histograms.
        emd_points: points per shape for the exact earth mover's distance; 0 leaves it out.
        emd_rows: names of the lines that get the earth mover's distance, which costs more than all else; empty for all.
        neighbours: k of precision, recall, density and coverage.
        resamples: number of resamples of the bootstrap.
    """

    name: str
    num_samples: int
    seed: int = 0
    rows: tuple[Row, ...] = (*_YARDSTICKS, _DPM[10], _DPM[30], _DDIM, _DDPM)
    references: tuple[str, ...] = ("test",)
    max_references: int = 1_000_000
    training_instances: int = 32
    unseen_instances: int = 32
    views_per_scene: int = 4
    conditioning_views: tuple[int, ...] = (64, 104)
    cameras: int = 4
    most_pictures: int = 20_000
    kept_pictures: int = 5_000
    surface_points: int = 2048
    emd_points: int = 256
    emd_rows: tuple[str, ...] = ()
    neighbours: int = 3
    resamples: int = 200

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; rows by name."""
        return {**dataclasses.asdict(self), "rows": [row.name for row in self.rows]}


PROTOCOLS: dict[str, EvaluationProtocol] = {
    protocol.name: protocol
    for protocol in (
        EvaluationProtocol(
            "small",
            num_samples=64,
            references=("val", "test"),
            max_references=200,
            surface_points=1024,
            emd_points=128,
        ),
        EvaluationProtocol(
            "standard",
            num_samples=400,
            training_instances=200,
            unseen_instances=100,
            views_per_scene=8,
            emd_rows=("training-data", *MAIN_ROWS),
        ),
        EvaluationProtocol(
            "paper",
            num_samples=704,
            rows=(*_YARDSTICKS, _DPM[30], _DDPM),
            training_instances=704,
            unseen_instances=704,
            views_per_scene=251,
            cameras=251,
            emd_points=0,
        ),
    )
}


def choose_protocol(name: str, modality: Modality, num_samples: int | None, seed: int) -> EvaluationProtocol:
    """A protocol by name, for a modality.

    Args:
        name: "small" (every day, minutes on two cores), "standard" or "paper" (the authors' sizes: days).
        modality: modality of the model.
        num_samples: N in place of the protocol's own.
        seed: random seed of all that is drawn.

    Raises:
        MNIFError: no such protocol, fewer than 2 samples, or a seed below 0.
    """
    if name not in PROTOCOLS:
        raise MNIFError(f"protocol {name!r} is not known; choose one of {', '.join(PROTOCOLS)}.")
    if seed < 0:
        raise MNIFError(f"`seed` {seed} is below 0; use 0 or more.")
    protocol = dataclasses.replace(PROTOCOLS[name], **modality.protocol_changes(name))
    if num_samples is not None:
        if num_samples <= protocol.neighbours:
            raise MNIFError(
                f"`num_samples` {num_samples} is too few for statistics of {protocol.neighbours} nearest neighbours; "
                f"use at least {protocol.neighbours + 1} (and some dozens for numbers that mean something)."
            )
        protocol = dataclasses.replace(protocol, num_samples=num_samples)
    return dataclasses.replace(protocol, seed=seed)
