"""A whole evaluation: every part that model and data allow, written as one report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.cache import Cache
from mnif_nerf.evaluation.comparison import LEAST_REFERENCES, compare_pictures, compare_shapes, num_references
from mnif_nerf.evaluation.generated import EvaluationContext, Stage
from mnif_nerf.evaluation.integrity import integrity_section
from mnif_nerf.evaluation.labels import labels_section
from mnif_nerf.evaluation.protocols import EvaluationProtocol
from mnif_nerf.evaluation.reconstruction import reconstruct
from mnif_nerf.evaluation.report import pictures_section, reconstruction_section, shapes_section
from mnif_nerf.evaluation.target import ModelAndData
from mnif_nerf.export.document import Section, write_document
from mnif_nerf.export.figures import check_matplotlib
from mnif_nerf.latents.ranks import ONE, Ranks
from mnif_nerf.machine import describe
from mnif_nerf.metrics.features import inception, random_conv

FORMAT = "mnif_nerf.evaluation"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """What an evaluation left.

    Attributes:
        paths: paths of the files; the JSON is the last one.
        summaries: a sentence of every part.
        notes: what was left out, and warnings.
    """

    paths: list[Path]
    summaries: list[str]
    notes: list[str]


def evaluate(
    target: ModelAndData,
    protocol: EvaluationProtocol,
    output: Path,
    stage: Stage,
    cache: Path | None = None,
    lpips: bool = False,
    inception_weights: Path | None = None,
    ranks: Ranks = ONE,
) -> Outcome:
    """Measure a model and write metrics.json, report.md, report.html and figures.

    Args:
        target: model and data.
        protocol: sizes and seed; all of it is written into the report.
        output: folder of the report.
        stage: makes progress bars.
        cache: folder of what is kept between runs; None keeps nothing.
        lpips: whether reconstructions get the learned perceptual distance too (its weights may be fetched).
        inception_weights: the file of FID's network; None uses the network that needs none, alone.
        ranks: the processes that measure together, each of which calls this; the first one writes.

    Raises:
        MNIFError: whatever the parts raise.
    """
    check_matplotlib()
    device = target.pipe.latents.device
    networks = [random_conv(device)]
    if inception_weights is not None:
        networks.append(inception(inception_weights, device))
    notes = _notes(target, protocol)
    stored = target.stored_surface_points
    if stored is not None and stored < protocol.surface_points:
        notes.append(
            f"The data has only {stored} points on each surface, so shapes are compared by as many and not by "
            f"{protocol.surface_points}; make the data again with more points."
        )
        protocol = dataclasses.replace(
            protocol, surface_points=stored, emd_points=min(stored, protocol.emd_points)
        )  # fmt: skip
    context = EvaluationContext(target, protocol, Cache(cache, ranks), stage, ranks)
    sections: list[Section] = [reconstruction_section(reconstruct(context, lpips))]
    least = max(LEAST_REFERENCES, protocol.neighbours + 1)
    found = min(num_references(context), len(target.pipe.names))
    if found < least:
        notes.append(
            f"Only {found} instances can be compared with (splits {', '.join(protocol.references)}), and comparisons "
            f"of sets need {least}; they are left out. Add unseen data, or name other splits as references."
        )
    if target.has_solids and found >= least:
        sections.append(shapes_section(context, compare_shapes(context)))
    if target.kind.has_pictures and found >= least:
        for network, comparison in zip(networks, compare_pictures(context, networks)):
            section = pictures_section(context, comparison, network.name)
            sections.append(section if network is networks[0] else _renamed(section))
    asked = labels_section(context)
    if asked is not None:
        sections.append(asked)
    whole = integrity_section(context)
    if whole is not None:
        sections.append(whole)
    if not ranks.is_first:
        return Outcome([], [], [])
    about = _about(context, notes)
    lead = [_lead(target, protocol), *notes]
    paths = write_document(output, "metrics", f"Evaluation of a model of {target.data.name}", about, lead, sections)
    return Outcome(paths, [section.summary for section in sections], notes)


def _about(context: EvaluationContext, notes: list[str]) -> dict[str, Any]:
    """The head of metrics.json: what was measured, how and where."""
    target = context.target
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "protocol": context.protocol.to_dict(),
        "model": {
            "modality": target.kind.name,
            "digest": context.model_digest,
            "instances": len(target.pipe.names),
            "field": target.pipe.model.field.spec.to_dict(),
            "training": {k: v for k, v in target.pipe.model.training.items() if k != "machine"},
        },
        "data": {"name": target.data.name, "splits": list(target.splits)},
        # Threads are chosen by time and change no number.
        "machine": {name: value for name, value in describe().items() if name != "threads"},
        "notes": notes,
    }


def _notes(target: ModelAndData, protocol: EvaluationProtocol) -> list[str]:
    notes = [*target.notes]
    if target.pipe.prior is None:
        notes.append(
            "This model has no latent prior, so nothing was sampled; train one with mnif-train-prior and run again."
        )
    if "train" in protocol.references:
        notes.append(
            "Warning: samples are compared with the training data itself. A model that copies it scores best, so read "
            "no quality from these numbers without the novelty beside them."
        )
    if target.kind.solids is not None and not target.has_solids:
        notes.append(
            "The data has no solids (a folder occupancy/), so shapes are not compared, only pictures of them are."
        )
    return notes


def _lead(target: ModelAndData, protocol: EvaluationProtocol) -> str:
    machine: dict[str, Any] = describe()
    return (
        f"EvaluationProtocol {protocol.name!r}, seed {protocol.seed}: {protocol.num_samples} samples a line, "
        f"{protocol.resamples} half-samples for the intervals. {len(target.pipe.names)} training instances, "
        f"{target.kind.name}. Machine: "
        f"{machine['processor']}, {machine['cores']} cores, {machine['device']}; Python {machine['python']}, torch "
        f"{machine['torch']}, mnif_nerf {machine['mnif_nerf']}. All settings are in metrics.json."
    )


def _renamed(section: Section) -> Section:
    """The part of a second network, under a name of its own; the pictures are those of the first."""
    return Section(
        f"{section.key}_inception", f"{section.title}, Inception", section.summary, section.facts, section.body
    )


def check_output(output: Path) -> None:
    """Refuse an output folder that holds something else.

    Raises:
        MNIFError: a folder with files that no evaluation has written.
    """
    started = (output / "metrics.json").is_file() or (output / "cache").is_dir()
    strange = None if started or not output.is_dir() else next(output.iterdir(), None)
    if strange is not None:
        raise MNIFError(f"{output}: holds other files ({strange.name}); choose an empty or new folder.")
