"""Assets: an object's surface as files that open coloured, at the size, upright and on the ground in other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import trimesh

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.atlas import check_texture, unwrap
from mnif_nerf.export.bake import bake
from mnif_nerf.export.decimate import check_faces, decimate
from mnif_nerf.export.mesh import MeshOptions, check_request, to_rgba8
from mnif_nerf.export.mesh_files import (
    MESH_FORMATS,
    TEXTURED_FORMATS,
    ExportMesh,
    Up,
    check_up,
    to_export_axes,
    to_library_axes,
    write_mesh,
)
from mnif_nerf.limits import require_number

_LENGTHS = (1e-9, 1e9)  # of a longest side: single precision, and other programs, keep the shape within these


class Solid(Protocol):
    """What an asset is made of: `SolidObject` is one."""

    name: str

    @property
    def has_color(self) -> bool:
        """Whether there are colours at all."""

    def mesh(
        self,
        resolution: int = 128,
        level: float | None = None,
        keep: Literal["largest", "all"] = "largest",
        smooth: int = 0,
        max_faces: int | None = None,
        colors: bool = True,
    ) -> ExportMesh:
        """The surface."""

    def surface_colors(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Colours at points of it."""


@dataclass(frozen=True)
class AssetOptions:
    """What becomes of a surface on its way into files.

    Attributes:
        resolution, level, keep, smooth: of the surface, see `SolidObject.mesh`.
        faces: decimate to at most this many triangles; None keeps them all. Colours are taken from the field after
            decimation, those of a picture at the surface before it.
        lods: levels of detail, triangles of each, descending; in place of `faces`.
        texture: texels along an edge of a baked base-colour picture; None gives vertices the colours.
        scale: length of the object's longest side in the file (metres in glTF); None leaves the scene's units, in
            which objects of the training data have a bounding-box diagonal of 1. All levels of detail are scaled alike.
        up: "y" or "z" for another upward axis than the format's own: y for GLB and OBJ, z for PLY and STL.
        origin: which point of the bounding box becomes the origin: "bottom", the middle of its lowest face, or
            "centre"; None leaves it where the scene has it.
    """

    resolution: int = 128
    level: float | None = None
    keep: Literal["largest", "all"] = "largest"
    smooth: int = 0
    faces: int | None = None
    lods: tuple[int, ...] = ()
    texture: int | None = None
    scale: float | None = None
    up: Up | None = None
    origin: Literal["bottom", "centre"] | None = None


@dataclass(frozen=True)
class Asset:
    """One level of detail of an object.

    Attributes:
        mesh: its surface, in glTF's axes, placed and scaled: closed, with vertex colours where there are any.
        textured: the same with a picture in place of them; its vertices are split where the atlas is cut. None where
            no picture was asked for.
        suffix: for its file names: "" or "_lod0", "_lod1", ...
    """

    mesh: ExportMesh
    textured: ExportMesh | None = None
    suffix: str = ""

    def write(self, stem: Path | str, formats: Sequence[str], up: Up | None = None) -> list[Path]:
        """Write it as `<stem><suffix>.<format>` in every format, with the picture in those that carry one.

        Returns:
            the files, the picture and the material of OBJ not among them.

        Raises:
            MNIFError: see `write_mesh`.
        """
        stem = Path(stem)
        written = []
        for kind in formats:
            pictured = self.textured is not None and kind in TEXTURED_FORMATS
            mesh = self.textured if pictured else self.mesh
            assert mesh is not None
            written.append(write_mesh(mesh, stem.with_name(f"{stem.name}{self.suffix}.{kind}"), up))
        return written


def check_assets(options: AssetOptions, formats: Sequence[str] = ("obj",)) -> None:
    """Refuse what cannot be made, or not written in all these formats, before any work is done.

    Raises:
        MNIFError: an option out of range, levels of detail that do not descend or come with `faces`, a picture for
            formats of which none carries one, or an axis that one of them cannot have.
    """
    check_request(options.resolution, MeshOptions(None, options.keep, options.smooth))
    if options.faces is not None:
        check_faces("faces", options.faces)
    if options.lods:
        _check_lods(options)
    if options.texture is not None:
        check_texture(options.texture)
        if not set(formats) & set(TEXTURED_FORMATS):
            kinds, textured = " and ".join(formats), " or ".join(TEXTURED_FORMATS)
            raise MNIFError(f"`texture` {options.texture}: {kinds} cannot carry a picture; write {textured} too.")
    if options.scale is not None:
        require_number("`scale`", options.scale, *_LENGTHS)
    if options.origin not in (None, "bottom", "centre"):
        raise MNIFError(f"`origin` {options.origin} is not known; use bottom or centre.")
    for kind in formats:
        check_up(kind, options.up)


def _check_lods(options: AssetOptions) -> None:
    lods = options.lods
    told = ",".join(map(str, lods))
    if options.faces is not None:
        raise MNIFError(f"`faces` {options.faces} and `lods` {told}: each says how many triangles; give one of them.")
    for faces in lods:
        check_faces("lods", faces)
    if any(following >= faces for faces, following in pairwise(lods)):
        raise MNIFError(f"`lods` {told}: must descend, the most detailed first, as in 20000,5000,1000.")


def make_assets(item: Solid, options: AssetOptions | None = None) -> list[Asset]:
    """The levels of detail of an object (one, without `lods`), coloured, placed and scaled.

    Raises:
        MNIFError: see `check_assets`, `SolidObject.mesh`, `decimate` and `unwrap`; a picture of an object without
            colours.
    """
    options = options or AssetOptions()
    check_assets(options)
    if options.texture is not None and not item.has_color:
        raise MNIFError(f"{item.name}: has no colours to bake; leave out `texture`.")
    whole = item.mesh(options.resolution, options.level, options.keep, options.smooth, None, False)
    detail = to_library_axes(whole)
    assets: list[Asset] = []
    placing = None
    for number, faces in enumerate(options.lods or (options.faces,)):
        smaller = detail if faces is None else decimate(detail, faces)
        placing = placing or _placing(smaller, options)  # that of the first, so that the others lie in the same place
        suffix = f"_lod{number}" if options.lods else ""
        assets.append(_asset(item, smaller, detail, placing, replace(options, faces=faces), suffix))
    return assets


def write_assets(item: Solid, path: Path | str, options: AssetOptions | None = None) -> list[Path]:
    """`make_assets` into files: `car.glb`, or with `lods` `car_lod0.glb`, `car_lod1.glb`, ...

    Args:
        item: an object with a surface.
        path: the suffix chooses the format.
        options: the defaults when None.

    Returns:
        the files, the most detailed first.

    Raises:
        MNIFError: see `make_assets` and `write_mesh`.
    """
    options = options or AssetOptions()
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in MESH_FORMATS:
        raise MNIFError(f"{path}: unknown mesh format {path.suffix!r}; use one of {', '.join(MESH_FORMATS)}.")
    check_assets(options, (kind,))
    written = [asset.write(path.with_suffix(""), (kind,), options.up) for asset in make_assets(item, options)]
    return [file for files in written for file in files]


def _asset(
    item: Solid,
    mesh: ExportMesh,
    detail: ExportMesh,
    placing: tuple[np.ndarray, float],
    options: AssetOptions,
    suffix: str,
) -> Asset:
    """One level of detail: `mesh` and `detail` in the library's axes and world units, not placed yet."""
    painted = _placed(mesh, placing)
    if item.has_color:
        colors = item.surface_colors(np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals))
        painted.visual = trimesh.visual.ColorVisuals(painted, vertex_colors=to_rgba8(colors))
    textured = None
    if options.texture is not None:
        atlas = unwrap(mesh, options.texture)
        picture = bake(mesh, atlas, detail, item.surface_colors)
        textured = _placed(mesh, placing, atlas.vertices, atlas.faces)
        material = trimesh.visual.material.PBRMaterial(
            name="baked", baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0
        )
        uv = atlas.uv * [1, -1] + [0, 1]
        textured.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
        textured = to_export_axes(textured)
    return Asset(to_export_axes(painted), textured, suffix)


def _placing(mesh: ExportMesh, options: AssetOptions) -> tuple[np.ndarray, float]:
    """What becomes the origin `[3]` (world units, z up), and the factor on lengths."""
    low, high = np.asarray(mesh.bounds)
    origin = np.zeros(3) if options.origin is None else (low + high) / 2
    if options.origin == "bottom":
        origin[2] = low[2]
    return origin, 1.0 if options.scale is None else options.scale / float((high - low).max())


def _placed(
    mesh: ExportMesh,
    placing: tuple[np.ndarray, float],
    vertices: np.ndarray | None = None,
    faces: np.ndarray | None = None,
) -> ExportMesh:
    """A moved and scaled copy; with vertices `[W]` and faces of an atlas, split as that is, with its normals."""
    origin, factor = placing
    chosen = np.arange(len(mesh.vertices)) if vertices is None else vertices
    placed = ExportMesh(
        (np.asarray(mesh.vertices)[chosen] - origin) * factor,
        np.asarray(mesh.faces) if faces is None else faces,
        process=False,
    )
    placed.metadata.update(mesh.metadata, axes="z-up")
    placed.vertex_normals = np.asarray(mesh.vertex_normals)[chosen]
    return placed
