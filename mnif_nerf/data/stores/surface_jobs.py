"""From one file, a mesh or voxels, to the points of one instance: what worker processes do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnif_nerf.data.geometry.cut_outs import without_cut_outs
from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.geometry.signed_distance import SignedDistance
from mnif_nerf.data.geometry.solid_mesh import SolidMesh, solid_of_surface
from mnif_nerf.data.geometry.surface_points import PointCounts, SurfacePoints, draw_points
from mnif_nerf.data.geometry.voxel_points import draw_voxel_points
from mnif_nerf.data.readers.mesh_files import MESH_SUFFIXES
from mnif_nerf.data.readers.mesh_input import MeshInput
from mnif_nerf.data.readers.mesh_notes import LACKS_MATERIALS, LACKS_PICTURE
from mnif_nerf.data.readers.splits import GridSource
from mnif_nerf.data.readers.voxels import ShapeReader
from mnif_nerf.data.stores.surface_pack import encode, read_facts, write_part
from mnif_nerf.errors import MNIFError
from mnif_nerf.names import listed
from mnif_nerf.random import stream

_CLUSTER_CELLS, _CLUSTER_POINTS = 32, 20_000
_SMALLEST = 0.2  # diagonal of the largest part of a mesh, where its diagonal is 1
_FACTS = ("tinted", "capped", "sheets", "turned", "closed", "cut")
_OUTLINE, _MOST_CUT = 0.015, 40_000  # edges and number of faces at outlines in pictures


@dataclass(frozen=True)
class PointJob:
    """One instance.

    Attributes:
        source: its file.
        part: where its points go.
        counts: how many points of each kind.
        mesh: how the file is read if it is a mesh; None: as it is by default.
    """

    source: GridSource
    part: Path
    counts: PointCounts
    mesh: MeshInput | None = None


def make_part(job: PointJob) -> str | None:
    """Compute and write the points of one instance; returns why there are none, or None."""
    generator = np.random.default_rng(stream(0, f"points of {job.source.name}"))
    try:
        if job.source.path.suffix.lower() in MESH_SUFFIXES:
            points, facts = mesh_points(job.mesh or MeshInput(job.source.path), job.counts, generator)
        else:
            with ShapeReader() as reader:
                points, facts = draw_voxel_points(reader.read(job.source), job.counts, generator), {}
    except MNIFError as error:
        return str(error)
    numbers = np.array([facts.get(name, 0) for name in _FACTS], np.int64)
    write_part(job.part, {**encode(points), "facts": numbers})
    return None


def mesh_points(
    mesh: MeshInput, counts: PointCounts, generator: np.random.Generator
) -> tuple[SurfacePoints, dict[str, int]]:
    """The points of a mesh file, and what was done to it: "capped", "sheets", "turned" and "closed" count its pieces
    (see `ClosedPieces`), "tinted" is 1 where it has colour, "cut" where pictures cut out parts of its faces.

    Raises:
        MNIFError: unreadable, without area, without its textures, too large, or of small parts far apart.
    """
    content, path = mesh.read(), mesh.path
    surface = content.surface
    for note in content.notes:
        if note.kind in (LACKS_PICTURE, LACKS_MATERIALS):
            raise MNIFError(f"{path}: {note}; put what is missing there, or export the mesh again.")
    tinted = has_color(surface)
    cut = without_cut_outs(surface, _OUTLINE, _MOST_CUT)
    if not len(cut.faces):
        raise MNIFError(f"{path}: its pictures are clear all over its faces, so nothing would be seen.")
    try:
        solid = solid_of_surface(cut)
        _require_one_place(solid)
        points = draw_points(cut, solid, counts, generator)
    except MNIFError as error:
        raise MNIFError(f"{path}: {str(error).removeprefix(f'{path}: ').rstrip('.')}.") from None
    return points, {"tinted": int(tinted), "cut": int(cut is not surface), **_facts(solid)}


def has_color(surface: Surface) -> bool:
    """Whether a mesh is more than one grey all over."""
    if surface.textures:
        return True
    first = surface.corner_colors.reshape(-1, 3)[0]
    return bool(np.ptp(first) > 1e-6 or (np.abs(surface.corner_colors - first) > 1e-6).any())


def wanting(jobs: Iterable[PointJob]) -> list[PointJob]:
    """Those whose part is not there yet; parts appear whole."""
    return [job for job in jobs if not job.part.exists()]


def join_facts(parts: Mapping[str, Path]) -> tuple[bool, list[str]]:
    """Whether the instances of these parts, by name, have colour together, and sentences on what was done to them."""
    facts, colored = {}, True
    for name, path in parts.items():
        found, has_colors = read_facts(path)
        facts[name] = {**dict.fromkeys(_FACTS, 0), **dict(zip(_FACTS, found or []))}
        colored &= has_colors
    tinted = colored and any(one["tinted"] for one in facts.values())
    sheets = [name for name, one in facts.items() if one["sheets"]]
    only = [name for name in sheets if not facts[name]["closed"] + facts[name]["capped"]]
    told = (
        ([name for name, one in facts.items() if one["capped"]], "open: their rims were closed"),
        ([name for name in sheets if name not in only], "partly sheets, which were made 0.01 of the diagonal thick"),
        (only, "nothing but sheets, which enclose nothing: they were made 0.01 of the diagonal thick"),
        (
            [name for name, one in facts.items() if one["cut"]],
            "cut out by their pictures (leaves, fences), which was followed",
        ),
        ([name for name, one in facts.items() if one["turned"]], "inside out in part, which was turned"),
    )
    notes = [f"{len(names)} of {len(facts)} meshes are {what} ({listed(names)})." for names, what in told if names]
    if not tinted:
        notes.append("no file has colour: shapes are learned alone.")
    return tinted, notes


def _facts(solid: SolidMesh) -> dict[str, int]:
    assert solid.pieces is not None
    pieces = solid.pieces
    counts = {"capped": pieces.num_capped, "sheets": pieces.num_sheets, "turned": pieces.num_turned}
    return {**counts, "closed": pieces.num_closed}


def _require_one_place(solid: SolidMesh) -> None:
    """Refuse a mesh of small parts far apart: a field would see specks.

    Raises:
        MNIFError: with the size of the largest part.
    """
    from scipy import ndimage

    on, _ = SignedDistance(solid).sample(_CLUSTER_POINTS, np.random.default_rng(0))
    cells = ((np.clip(on, -0.5, 0.5) + 0.5) * (_CLUSTER_CELLS - 1e-3)).astype(int)
    filled = np.zeros((_CLUSTER_CELLS,) * 3, dtype=bool)
    filled[tuple(cells.T)] = True
    labels, _ = ndimage.label(filled, np.ones((3, 3, 3)))
    spans = (np.array([side.stop - side.start for side in box]) for box in ndimage.find_objects(labels))
    largest = max(float(np.linalg.norm(span)) for span in spans) / _CLUSTER_CELLS
    if largest < _SMALLEST:
        raise MNIFError(
            f"its parts lie far apart, the largest is {largest:.2f} of the whole across; remove what strays, or save "
            "the parts as files of their own"
        )
