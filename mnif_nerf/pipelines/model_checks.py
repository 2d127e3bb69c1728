"""Whether what a model folder holds is a model, and of one piece: every value of config.json and every tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf import modalities
from mnif_nerf.errors import MNIFError, in_file
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.fields.network import num_parameters
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.files import check_keys, read_json
from mnif_nerf.latents.encoding_settings import EncodingSettings
from mnif_nerf.limits import is_number, require_count, require_number
from mnif_nerf.names import shown
from mnif_nerf.objects.io import check_cells, check_scene
from mnif_nerf.rendering.cameras import default_camera
from mnif_nerf.tensor_files import read_tensors, require_real

FORMAT = "mnif_nerf"
FORMAT_VERSION = 1
ADAPTATIONS = ("auto-decoding", "meta-learning")
REMEDY = "copy the model folder whole, or train again"
_LONGEST_NAME = 4096  # characters
_MOST_INNER_STEPS = 1000


def read_model_config(folder: Path, fields: tuple[str, ...]) -> dict[str, Any]:
    """The content of a model folder's config.json, with nothing in it that no model has.

    Args:
        folder: the model folder.
        fields: entries that this version knows.

    Raises:
        MNIFError: it is missing, of another version, or has an entry of another type or out of range.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise MNIFError(f"{folder / 'config.json'}: not a model of mnif_nerf; give the folder that training wrote.")
    if config.get("format_version") != FORMAT_VERSION:
        versions = config.get("versions")
        written = versions.get("mnif_nerf", "unknown") if isinstance(versions, dict) else "unknown"
        raise MNIFError(
            f"{folder / 'config.json'}: format version {config.get('format_version')} (written by mnif_nerf "
            f"{written}), but this version reads {FORMAT_VERSION}; install the matching one, or train again."
        )
    place = folder / "config.json"
    check_keys(config, ("format", "format_version", *fields), place, REMEDY)
    parts = {"camera": set(default_camera()), "adaptation": {"method", "inner_steps", "inner_lr", "first_order"}}
    for part, known in parts.items():
        check_keys(config.get(part, {}), known, f"{place}: {part}", REMEDY)
    check_scene(config.get("half_extent", 0.5), {**default_camera(), **config.get("camera", {})}, None, place)
    _check_entries(config, place)
    return config


def _check_entries(config: dict[str, Any], place: Path) -> None:
    """Refuse names, training settings and versions of another type than training writes."""
    names = config.get("names")
    if not isinstance(names, list) or not all(isinstance(n, str) and 0 < len(n) <= _LONGEST_NAME for n in names):
        raise MNIFError(f"{place}: names is not a list of the instances' names; {REMEDY}.")
    for part in ("training", "versions"):
        if not isinstance(config.get(part, {}), dict):
            raise MNIFError(f"{place}: {part} is no description ({shown(config[part])}); {REMEDY}.")
    training: dict[str, Any] = config.get("training", {})
    data = training.get("data")
    if data is not None and not isinstance(data, str):
        raise MNIFError(f"{place}: data of training is no name ({shown(data)}); {REMEDY}.")
    for name in ("steps", "heldout_views_per_scene"):
        if training.get(name) is not None:
            require_count(f"{place}: {name} of training", training[name], 0)
    try:
        EncodingSettings.from_training(training)
    except MNIFError as error:
        raise in_file(place, error) from None
    if training.get("prior_variance") is not None:
        require_number(f"{place}: prior_variance of training", training["prior_variance"], 0.0, 1.0, above=True)


def read_weights(spec: FieldSpec, path: Path) -> dict[str, Tensor]:
    """The tensors of a field's file, before the field is made: a description may say anything.

    Raises:
        MNIFError: they are not the weights of this field, or not of finite numbers.
    """
    state = read_tensors(path, REMEDY)[0]
    require_real(state, path, REMEDY)
    stored = sum(value.numel() for value in state.values())
    if (
        not spec.num_parameters <= stored <= spec.num_parameters + num_parameters(spec.shapes[:1])
    ):  # a fixed first layer
        raise MNIFError(
            f"{path}: holds {stored:,} numbers, and the field of config.json has {spec.num_parameters:,}; the two come "
            "from different runs."
        )
    return state


def load_weights(field: ModulatedField, state: dict[str, Tensor], path: Path) -> None:
    """Put weights into a field.

    Raises:
        MNIFError: they do not fit.
    """
    try:
        field.load_state_dict(state)
    except RuntimeError:
        raise MNIFError(
            f"{path}: its weights do not fit the field of config.json; the two come from different runs."
        ) from None


def check_latents(latents: Tensor, names: tuple[str, ...], spec: FieldSpec, place: Path) -> None:
    """Refuse latents that are not one for each name, of the field's size and finite."""
    if latents.ndim != 2 or latents.shape[1] != spec.latent_dim:
        raise MNIFError(
            f"{place}: latents of shape {list(latents.shape)}, but the field takes {spec.latent_dim} numbers "
            "each; the two come from different runs."
        )
    if len(latents) != len(names):
        raise MNIFError(f"{place}: {len(latents)} latents for {len(names)} instance names; they must be as many.")
    if not torch.isfinite(latents).all():
        raise MNIFError(f"{place}: NaN or infinite latents; train the model again with a lower learning rate.")


def check_kind(modality: str, grid: Any, adaptation: dict[str, Any], spec: FieldSpec, place: Path) -> None:
    """Refuse a modality, a grid or an adaptation that is not known or does not fit the field."""
    modalities.get(modality, place).check_field(spec, grid, place)
    if adaptation.get("method") not in ADAPTATIONS:
        raise MNIFError(
            f"{place}: adaptation {adaptation.get('method')!r} is not known; this version has {', '.join(ADAPTATIONS)}."
        )
    if adaptation["method"] != "meta-learning":
        return
    steps, rate = adaptation.get("inner_steps"), adaptation.get("inner_lr")
    if not (isinstance(steps, int) and is_number(rate)):
        raise MNIFError(
            f"{place}: adaptation {adaptation!r} lacks inner_steps and inner_lr as numbers; train the model again."
        )
    if not isinstance(adaptation.get("first_order", False), bool):
        raise MNIFError(f"{place}: first_order {shown(adaptation['first_order'])}, expected true or false; {REMEDY}.")
    require_count(f"{place}: inner_steps", steps, 1, _MOST_INNER_STEPS)
    require_number(f"{place}: inner_lr", rate, 0.0, above=True)


def check_rates(rates: Tensor | None, adaptation: dict[str, Any], spec: FieldSpec, place: Path) -> None:
    """Refuse rates that meta-learning lacks, or that do not fit the field."""
    if rates is None:
        if adaptation["method"] == "meta-learning":
            raise MNIFError(f"{place}: meta-learning needs the learned rates of its inner loop; store them too.")
    elif rates.shape != (spec.latent_dim,) or not torch.isfinite(rates).all():
        raise MNIFError(
            f"{place}: rates of shape {list(rates.shape)} where {spec.latent_dim} finite numbers are expected; "
            "train the model again."
        )


def read_cells(path: Path) -> Tensor | None:
    """The bounds `[G, G, G]` of a model folder, or None where there are none.

    Raises:
        MNIFError: another shape or type, or bounds that hold nothing.
    """
    if not path.is_file():
        return None
    cells = read_tensor(path, "cells", real=False)
    check_cells(cells, path)
    return cells.bool()


def read_tensor(path: Path, name: str, real: bool = True) -> Tensor:
    """One tensor of a file; `real` asks for finite floating-point numbers, which become float32.

    Raises:
        MNIFError: it is missing, damaged or of another type.
    """
    tensors = read_tensors(path, REMEDY)[0]
    if name not in tensors:
        raise MNIFError(f"{path}: has no tensor named {name!r} (it holds {', '.join(sorted(tensors)) or 'nothing'}).")
    if not real:
        return tensors[name]
    require_real({name: tensors[name]}, path, REMEDY)
    return tensors[name].float()
