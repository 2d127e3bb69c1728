"""Reading a prior's folder: every value of prior.json and every tensor, and whether they fit together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError, in_file
from mnif_nerf.files import check_keys, from_description, read_json
from mnif_nerf.labels import Attribute
from mnif_nerf.limits import require_count, require_number
from mnif_nerf.priors.conditions import ConditionalSpec
from mnif_nerf.priors.description import check_prediction, checked_header
from mnif_nerf.priors.networks import AnyDenoiser, check_shapes, network_kind
from mnif_nerf.priors.schedulers import scheduler_from_config
from mnif_nerf.priors.training import PriorConfig, TrainingReport
from mnif_nerf.priors.whitening import MODES, Whitening
from mnif_nerf.tensor_files import read_tensors, require_real

_SIZES = ("latent_dim", "dim", "num_latents")
_KEYS = ("format", "format_version", *_SIZES, "whitening", "network", "denoiser", "training", "report", "labels")


@dataclass(frozen=True)
class StoredPrior:
    """What a prior's folder holds; see `mnif_nerf.priors.prior.LatentPrior`."""

    whitening: Whitening
    denoiser: AnyDenoiser
    scheduler: dict[str, Any]
    train: Tensor
    calibration: tuple[Tensor, Tensor]
    config: PriorConfig
    report: TrainingReport | None
    attributes: tuple[Attribute, ...]


def read_parts(folder: Path) -> StoredPrior:
    """The parts of a prior, on the CPU.

    Raises:
        MNIFError: no prior there, one of another format version, or files that do not fit together.
    """
    if not (folder / "prior.json").is_file():
        raise MNIFError(f"{folder}: holds no latent prior (prior.json); train one with mnif-train-prior.")
    content = checked_header(folder / "prior.json")
    check_keys(content, _KEYS, folder / "prior.json", "train the prior again")
    tensors = read_tensors(folder / "prior.safetensors", "train the prior again")[0]
    require_real(tensors, folder / "prior.safetensors", "train the prior again")
    tensors = {name: value.float() for name, value in tensors.items()}
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    try:
        scheduler_from_config(scheduler)
    except MNIFError as error:
        raise MNIFError(f"{folder / 'scheduler'}/{error}") from None
    try:
        spec_kind, denoiser_kind = network_kind(content, folder / "prior.json")
        spec = spec_kind.from_dict(content["denoiser"])
        config = PriorConfig.from_dict(content.get("training", {}))
        report = _report(content.get("report"))
        attributes = _attributes(content, spec, folder / "prior.json")
        sizes = (int(content["num_latents"]), int(content["latent_dim"]), int(content["dim"]))
        mode = content.get("whitening", "pca")
        if mode not in MODES:
            raise MNIFError(f"whitening {mode!r} is not known; train the prior again.")
        check_prediction(content, scheduler, config)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, MNIFError):
            raise in_file(folder / "prior.json", error) from None
        raise MNIFError(f"{folder / 'prior.json'}: missing or unknown entry {error}; train the prior again.") from None
    with torch.device("meta"):
        denoiser = denoiser_kind(spec)
    check_shapes(folder / "prior.safetensors", tensors, denoiser, sizes)
    weights = {k.removeprefix("denoiser."): v for k, v in tensors.items() if k.startswith("denoiser.")}
    denoiser.load_state_dict(weights, assign=True)
    mean, basis, scale = (tensors[f"whitening.{name}"] for name in ("mean", "basis", "scale"))
    if not bool((scale > 0).all()):
        raise MNIFError(f"{folder / 'prior.safetensors'}: whitening.scale is not above 0; train the prior again.")
    whitening = Whitening(mean, basis, scale, mode)
    calibration = (tensors["calibration.gain"], tensors["calibration.shift"])
    denoiser = denoiser.eval().requires_grad_(False)
    return StoredPrior(whitening, denoiser, scheduler, tensors["train"], calibration, config, report, attributes)


def _report(stored: Any) -> TrainingReport | None:
    """What came of the training; nothing of priors that were not trained here."""
    if stored is None:
        return None
    report = from_description(TrainingReport, stored, "report", "train the prior again")
    require_count("steps of the report", report.steps, 0)
    for name in ("train_loss", "held_out_loss", "gaussian_loss"):
        value = getattr(report, name)
        if value is not None or name == "train_loss":
            require_number(f"{name} of the report", value)
    return report


def _attributes(content: dict[str, Any], spec: Any, place: Path) -> tuple[Attribute, ...]:
    """What the denoiser is told; nothing of priors without labels, and of those older than labels."""
    stored = content.get("labels", [])
    if not isinstance(stored, list):
        raise MNIFError(f"{place}: labels are no list of attributes; train the prior again.")
    attributes = tuple(Attribute.from_dict(one, place) for one in stored)
    expected = spec.classes if isinstance(spec, ConditionalSpec) else ()
    if tuple(len(attribute.classes) for attribute in attributes) != tuple(expected):
        raise MNIFError(f"{place}: its labels are not those of its denoiser; train the prior again.")
    return attributes
