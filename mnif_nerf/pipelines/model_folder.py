"""The model folder (`<run>/model/`): safetensors and JSON, written by training, read without nerfstudio.

config.json          format, version, modality, field specification, instance names, adaptation, grid, camera, training
                     settings, versions
field.safetensors    the mixture field
latents.safetensors  {"latents": [N, D]}, one row per training instance
rates.safetensors    {"rates": [D]}, the learned rates of the inner loop; absent after auto-decoding
bounds.safetensors   {"cells": uint8 [G, G, G]}, where objects can be; absent if not known
integrity.json       the yardstick of integrity (`pipelines.integrity`); absent until it is first asked for
prior/               the latent prior; absent until it is trained
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnif_nerf import modalities
from mnif_nerf.data.readers.scene_reading import SceneReading
from mnif_nerf.errors import MNIFError, in_file
from mnif_nerf.fields.modulations import ModulatedField, build_field
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.files import atomic_folder, is_leftover, read_json, recover_folder, write_json
from mnif_nerf.labels import Labels
from mnif_nerf.latents.encoding_settings import EncodingSettings
from mnif_nerf.latents.meta import MetaConfig
from mnif_nerf.pipelines.model_checks import (
    FORMAT,
    FORMAT_VERSION,
    check_kind,
    check_latents,
    check_rates,
    load_weights,
    read_cells,
    read_model_config,
    read_tensor,
    read_weights,
)
from mnif_nerf.rendering.cameras import default_camera
from mnif_nerf.tensor_files import write_tensors

if TYPE_CHECKING:
    from mnif_nerf.modalities import Modality
    from mnif_nerf.priors.prior import LatentPrior

_ENTRIES = (
    "config.json", "field.safetensors", "latents.safetensors", "rates.safetensors", "bounds.safetensors",
    "integrity.json", "prior",
)  # fmt: skip
PRIOR_VARIANCE = 0.95


@dataclass
class StoredModel:
    """Everything a trained model needs to generate.

    Attributes:
        field: the mixture field.
        latents: `[N, D]` float32, the training instances' codes.
        names: N instance names.
        cells: bool `[G, G, G]` ([x, y, z]), the union of the training hulls, or None where not known.
        half_extent: half the edge of the scene box, world units.
        camera: "focal_over_width" and "radius" (world units) of the training views.
        training: settings worth keeping, JSON-ready.
        versions: versions of the packages that wrote it.
        prior: the latent prior, or None until it is trained.
        modality: name of its modality; `kind` is the modality itself.
        grid: shape and channels of the training data (`GridFacts`); None where they are no grid.
        rates: `[D]` float32, the learned step sizes of the inner loop; None after auto-decoding.
        adaptation: how latents are found: {"method": "auto-decoding"}, or "meta-learning" with "inner_steps",
            "inner_lr" and optionally "first_order".
        labels: of the training instances, where there are any.
    """

    field: ModulatedField
    latents: Tensor
    names: tuple[str, ...]
    cells: Tensor | None = None
    half_extent: float = 0.5
    camera: dict[str, float] = dataclasses.field(default_factory=default_camera)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: package_versions())
    prior: LatentPrior | None = None
    modality: str = "radiance"
    grid: dict[str, int] | None = None
    rates: Tensor | None = None
    adaptation: dict[str, Any] = dataclasses.field(default_factory=lambda: {"method": "auto-decoding"})
    labels: Labels | None = None

    @property
    def kind(self) -> Modality:
        """The modality.

        Raises:
            MNIFError: this version does not have it.
        """
        return modalities.get(self.modality)

    @property
    def encoding(self) -> EncodingSettings:
        """How latents of unseen instances are found, as `training` says.

        Raises:
            MNIFError: a setting of another type.
        """
        return EncodingSettings.from_training(self.training)

    @property
    def inner_loop(self) -> MetaConfig | None:
        """Settings of the inner loop, as `adaptation` says; None after auto-decoding."""
        if self.adaptation["method"] != "meta-learning":
            return None
        return MetaConfig(int(self.adaptation["inner_steps"]), float(self.adaptation["inner_lr"]))

    @property
    def heldout_views(self) -> int | None:
        """Views of every scene that were held out of training; None where the folder does not say (older ones)."""
        value = self.training.get("heldout_views_per_scene")
        return None if value is None else int(value)

    @property
    def reading(self) -> SceneReading:
        """How the cameras of the training data were read."""
        return SceneReading.from_dict(self.training)

    @property
    def prior_variance(self) -> float:
        """Share of the latents' variance that the run's prior was to model."""
        value = self.training.get("prior_variance")
        return PRIOR_VARIANCE if value is None else float(value)

    @property
    def data_name(self) -> str:
        """Name of the training data's folder, or the modality where the folder does not say."""
        return str(self.training.get("data") or self.modality)


def package_versions() -> dict[str, str]:
    """Versions of this package, Python and torch."""
    import mnif_nerf

    return {
        "mnif_nerf": mnif_nerf.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def locate_model(path: Path | str) -> Path:
    """The model folder that a user means by a run's config.yml, a run folder or a model folder.

    Raises:
        MNIFError: nothing there, or a run that has not written its model yet.
    """
    path = Path(path)
    recover_folder(path)
    if not path.exists():
        raise MNIFError(f"{path}: no such file or folder; give a run's config.yml, a run folder or a model folder.")
    folder = path if path.is_dir() else path.parent
    recover_folder(folder / "model")
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if (folder / "config.yml").is_file():
        raise MNIFError(
            f"{folder}: this run has no model folder yet; let ns-train finish, or resume it with "
            f"--load-dir {folder / 'nerfstudio_models'}."
        )
    runs = sorted(
        (p.parent for depth in range(1, 5) for p in folder.glob("*/" * depth + "model/config.json")),
        key=lambda p: p.stat().st_mtime,
    )
    if runs:
        newest = runs[-1].parent
        raise MNIFError(f"{path}: holds {len(runs)} run(s), not one; name one of them, such as {newest} (the newest).")
    raise MNIFError(f"{path}: no model here (no config.json, no model/); train one with ns-train mnif-lite.")


def require_outside_models(folder: Path) -> None:
    """Refuse to write into a model folder: what has the same name there would be replaced, and the rest would make it
    something else than a model.

    Args:
        folder: where something is to be written; it need not be there yet.

    Raises:
        MNIFError: it is a model folder, or lies in one.
    """
    place = folder.resolve()
    for around in (place, *place.parents):
        if _is_model(around):
            found = "is a model folder" if around == place else f"lies in a model folder ({around.name})"
            raise MNIFError(f"{folder}: {found}, which nothing else is written into; choose another place.")


def _is_model(folder: Path) -> bool:
    try:
        content = read_json(folder / "config.json")
    except MNIFError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def check_replaceable(folder: Path, also: Sequence[str] = ()) -> None:
    """Refuse to write a model over anything but an empty folder or an older model, which is replaced as a whole.

    Args:
        folder: may be absent.
        also: names of further files that may go with the older model.

    Raises:
        MNIFError: a file, a folder without a model, one that holds other things too, or one inside another model.
    """
    require_outside_models(folder.resolve().parent)
    if not folder.exists():
        return
    entries = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    ours = _is_model(folder)
    strange = [name for name in entries if not ours or not (name in (*_ENTRIES, *also) or is_leftover(name))]
    if strange:
        raise MNIFError(
            f"{folder}: holds something else than a model ({strange[0]}); choose an empty or new folder, or move that "
            "away."
        )


def write_model(model: StoredModel, folder: Path | str) -> Path:
    """Write the model folder, replacing an older one as a whole (its prior too).

    Raises:
        MNIFError: latents, rates or a modality that do not fit the field, or a disk that cannot take it.
    """
    folder = Path(folder)
    check_latents(model.latents, model.names, model.field.spec, folder)
    check_kind(model.modality, model.grid, model.adaptation, model.field.spec, folder)
    check_rates(model.rates, model.adaptation, model.field.spec, folder)
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "modality": model.modality,
        "field": model.field.spec.to_dict(),
        "grid": model.grid,
        "adaptation": model.adaptation,
        "half_extent": model.half_extent,
        "camera": model.camera,
        "training": model.training,
        "versions": model.versions,
        "names": list(model.names),
    }
    if model.labels is not None:
        config["labels"] = model.labels.to_dict()
    with atomic_folder(folder, replace=True) as temporary:
        write_tensors(temporary / "field.safetensors", model.field.state_dict())
        write_tensors(temporary / "latents.safetensors", {"latents": model.latents.float()})
        if model.rates is not None:
            write_tensors(temporary / "rates.safetensors", {"rates": model.rates.float()})
        if model.cells is not None:
            write_tensors(temporary / "bounds.safetensors", {"cells": model.cells.to(torch.uint8)})
        if model.prior is not None:
            model.prior.save(temporary / "prior")
        write_json(temporary / "config.json", config)
    return folder


def read_model(folder: Path | str, device: torch.device | str = "cpu", with_prior: bool = True) -> StoredModel:
    """Read a model folder.

    Args:
        folder: as written by `write_model`.
        device: where the field, the latents and the rates go.
        with_prior: whether the prior is read; a damaged one is no hindrance otherwise.

    Raises:
        MNIFError: a missing or damaged file, another format version, NaNs, or parts that do not fit each
            other.
    """
    folder = Path(folder)
    config = read_model_config(folder, tuple(entry.name for entry in dataclasses.fields(StoredModel)))
    try:
        spec = FieldSpec.from_dict(config["field"])
        names = tuple(config["names"])
        half_extent, camera = float(config.get("half_extent", 0.5)), {**default_camera(), **config.get("camera", {})}
        # Folders of version 0.1.0 say "radiance", and neither grid nor adaptation.
        modality, grid = str(config.get("modality", "radiance")), config.get("grid")
        adaptation = dict(config.get("adaptation", {"method": "auto-decoding"}))
        labels = config.get("labels")
        if labels is not None:
            labels = Labels.from_dict(labels, len(names), folder / "config.json")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, MNIFError):
            raise in_file(folder / "config.json", error) from None
        raise MNIFError(f"{folder / 'config.json'}: incomplete ({error!r}); train the model again.") from None
    check_kind(modality, grid, adaptation, spec, folder / "config.json")
    weights = read_weights(spec, folder / "field.safetensors")
    field = build_field(spec)
    load_weights(field, weights, folder / "field.safetensors")
    latents = read_tensor(folder / "latents.safetensors", "latents")
    check_latents(latents, names, spec, folder / "latents.safetensors")
    rates = None
    if adaptation["method"] == "meta-learning" or (folder / "rates.safetensors").is_file():
        rates = read_tensor(folder / "rates.safetensors", "rates")
    check_rates(rates, adaptation, spec, folder / "rates.safetensors")
    cells = read_cells(folder / "bounds.safetensors")
    return StoredModel(
        field=field.to(device).eval().requires_grad_(False),
        latents=latents.to(device),
        names=names,
        cells=None if cells is None else cells.to(device),
        half_extent=half_extent,
        camera=camera,
        training=config.get("training", {}),
        versions=config.get("versions", {}),
        prior=read_prior(folder, field.spec.latent_dim, device) if with_prior else None,
        modality=modality,
        grid=grid,
        rates=None if rates is None else rates.to(device),
        adaptation=adaptation,
        labels=labels,
    )


def read_prior(folder: Path, latent_dim: int, device: torch.device | str = "cpu") -> LatentPrior | None:
    """The prior inside a model folder, or None.

    Raises:
        MNIFError: a damaged prior, or one for latents of another size.
    """
    recover_folder(folder / "prior")
    if not (folder / "prior").is_dir():
        return None
    from mnif_nerf.priors.prior import LatentPrior

    prior = LatentPrior.load(folder / "prior", device)
    if prior.latent_dim != latent_dim:
        raise MNIFError(
            f"{folder / 'prior'}: made for latents of {prior.latent_dim} numbers, but the field takes "
            f"{latent_dim}; train it again with mnif-train-prior."
        )
    return prior


def write_labels(labels: Labels | None, folder: Path | str) -> None:
    """Put other labels into a model folder, or none."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    config.pop("labels", None)
    write_json(path, config if labels is None else {**config, "labels": labels.to_dict()})


def write_prior(prior: LatentPrior, folder: Path | str) -> Path:
    """Put a prior into a model folder, replacing an older one as a whole; returns its folder."""
    target = Path(folder) / "prior"
    with atomic_folder(target, replace=True) as temporary:
        prior.save(temporary)
    return target
