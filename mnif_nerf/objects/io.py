"""The file of one object: latent (else coefficients), network, bounds, and what else it has to know.

A safetensors file of about 100 KB for the paper's shapes; see docs/formats.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.files import check_keys, content_errors
from mnif_nerf.limits import require_number
from mnif_nerf.rendering.cameras import default_camera
from mnif_nerf.tensor_files import read_tensors, require_real, write_tensors

_FORMAT = "mnif_nerf.object"
_FARTHEST = 1e6  # world units: a scene box has an edge of one
_KEYS = {"name", "half_extent", "camera", "modality", "resolution", "grid"}


@dataclass(frozen=True)
class ObjectFacts:
    """What an object knows beside its latent and its network.

    Attributes:
        cells: bool `[G, G, G]` where a solid can be, or None.
        half_extent: half the edge of the scene box, world units.
        camera: "focal_over_width" and "radius" of the training cameras; SRN's where None.
        grid: the grid of the training data, where there is one.
    """

    cells: Tensor | None = None
    half_extent: float = 0.5
    camera: dict[str, float] | None = None
    grid: GridFacts | None = None


@dataclass(frozen=True)
class StoredObject:
    """The content of an object's file."""

    modality: str
    name: str
    latent: Tensor | None
    coefficients: Tensor | None
    field: CompactField
    facts: ObjectFacts


def check_scene(half_extent: Any, camera: Any, cells: Tensor | None, place: object) -> None:
    """Refuse a scene box, a camera or bounds that nothing can be seen with: they may come from a file.

    Args:
        half_extent: half the edge of the scene box, world units.
        camera: "focal_over_width" and "radius".
        cells: bounds, or None.
        place: begins the sentence.

    Raises:
        MNIFError: a value of another type or out of range.
    """
    require_number(f"{place}: half_extent", half_extent, 0.0, _FARTHEST, above=True)
    for name, value in camera.items():
        require_number(f"{place}: {name} of the camera", value, 0.0, _FARTHEST, above=True)
    if cells is not None:
        check_cells(cells, place)


def check_cells(cells: Tensor, place: object) -> None:
    """Refuse bounds that are not `[G, G, G]`, or that leave no room for any object.

    Raises:
        MNIFError: the sentence begins with `place`.
    """
    if cells.ndim != 3 or len(set(cells.shape)) != 1 or cells.dtype not in (torch.uint8, torch.bool):
        kind = str(cells.dtype).removeprefix("torch.")
        raise MNIFError(
            f"{place}: cells of shape {list(cells.shape)} and type {kind}, expected [G, G, G] of uint8; delete it to "
            "go without."
        )
    if not bool(cells.any()):
        raise MNIFError(f"{place}: its cells say that there is nothing anywhere; delete it to go without.")


def write_object(item: StoredObject, path: Path | str) -> Path:
    """Write an object, atomically.

    Raises:
        MNIFError: the disk is full or the folder cannot be written.
    """
    path, field, facts = Path(path), item.field, item.facts
    tensors = {f"field.{name}": value for name, value in field.state_dict().items()}
    if item.latent is not None:
        tensors["latent"] = item.latent.float()
    if item.coefficients is not None:
        tensors["coefficients"] = item.coefficients.float()
    if facts.cells is not None:
        tensors["cells"] = facts.cells.to(torch.uint8)
    about = {
        "name": item.name,
        "half_extent": facts.half_extent,
        "camera": facts.camera or default_camera(),
        "modality": item.modality,
        **field.about,
        "resolution": None if facts.grid is None else facts.grid.resolution,
        "grid": None if facts.grid is None else facts.grid.to_dict(),
    }
    write_tensors(path, tensors, {"format": _FORMAT, "object": json.dumps(about)})
    return path


def read_object(path: Path | str, device: torch.device | str = "cpu") -> StoredObject:
    """Read back `write_object`.

    Raises:
        MNIFError: the file is missing, damaged or of another kind, or a newer version has written it.
    """
    remedy = "write one with NeuralObject.save"
    stored, metadata = read_tensors(path, remedy)
    if metadata.get("format") != _FORMAT:
        raise MNIFError(f"{path}: does not hold a neural object; {remedy}.")
    require_real({name: value for name, value in stored.items() if name != "cells"}, path, remedy)
    tensors = {name: value.to(device) for name, value in stored.items()}
    with content_errors(path, remedy):
        about = json.loads(metadata["object"])
        item = _from_parts(about, tensors, path)
        check_keys(about, (*_KEYS, *item.field.about), path, remedy)
        return item


def _from_parts(about: dict[str, Any], tensors: dict[str, Tensor], path: Path | str) -> StoredObject:
    # Files of version 0.1.0 hold radiance fields and do not say so; later ones lack the grid's shape.
    field = CompactField.from_tensors(tensors, about, "field.")
    weights = field.weights
    grid = about.get("grid")
    if grid is None and about.get("resolution"):
        grid = {"resolution": about["resolution"], "channels": int(weights[-1].shape[0])}
    camera = {**default_camera(), **(about.get("camera") or {})}
    check_scene(about.get("half_extent", 0.5), camera, tensors.get("cells"), path)
    facts = ObjectFacts(
        cells=tensors["cells"].bool() if "cells" in tensors else None,
        half_extent=float(about.get("half_extent", 0.5)),
        camera={name: float(value) for name, value in camera.items()},
        grid=None if grid is None else GridFacts.from_dict(grid, int(weights[0].shape[1]), path),
    )
    modality, name = str(about.get("modality", "radiance")), str(about.get("name", "object"))
    return StoredObject(modality, name, tensors.get("latent"), tensors.get("coefficients"), field, facts)
